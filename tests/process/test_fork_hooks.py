"""A zygote forks without the hooks of register_at_fork that one thread does not need; its workers
have them again."""

import subprocess
import sys

from posthouse_agent import fork_hooks

_TAKEN_OFF_AND_PUT_BACK = """
import logging, os, random, threading
from posthouse_agent import fork_hooks

def ours(): pass
os.register_at_fork(before=ours, after_in_parent=ours, after_in_child=ours)
kinds = ("before", "after_in_parent", "after_in_child")
def named():
    return [[getattr(hook, "__name__", "") for hook in fork_hooks._listed(k)] for k in kinds]

before = named()
assert all("ours" in names for names in before), before
assert "_after_fork" in before[2], before
fork_hooks.take_off("threading", "logging")
without = named()
assert without[0][-1:] == without[1][-1:] == without[2][-1:] == ["ours"], without
assert "_after_fork" not in without[2], without
assert len(before[2]) == len(without[2]) + 2, (before, without)
assert len(before[0]) == len(without[0]) + 1, (before, without)

# One thread and no lock held: a child is as it would be with them.
pid = os.fork()
if pid == 0:
    assert threading.main_thread() is threading.current_thread()
    assert threading.active_count() == 1
    assert logging._lock.acquire(blocking=False)
    logging._lock.release()
    thread = threading.Thread(target=lambda: logging.getLogger("x").error("from a thread"))
    thread.start()
    thread.join(5)
    os._exit(0 if not thread.is_alive() else 1)
assert os.waitpid(pid, 0)[1] == 0

fork_hooks.put_back()
assert named() == before, (named(), before)
fork_hooks.put_back()
assert named() == before, (named(), before)
"""


def test_hooks_are_taken_off_and_put_back_in_their_order():
    done = subprocess.run(
        [sys.executable, "-c", _TAKEN_OFF_AND_PUT_BACK], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr


def test_an_interpreter_that_keeps_its_hooks_elsewhere_is_left_alone(monkeypatch):
    monkeypatch.setattr(fork_hooks.gc, "get_referrers", lambda _found: [])
    fork_hooks.take_off("threading", "logging")
    assert fork_hooks._taken == []


def test_a_worker_can_fork_while_a_thread_of_it_holds_a_lock(shared_host, shared_agent):
    """What the hooks are for: the thread that would release the lock is not in the child."""
    ended = shared_host.run(shared_agent, "fork_while_a_thread_holds_a_lock")
    assert ended.facts["code"] == 0, ended.facts
    assert shared_host.said(ended.slot) == [{"child": 0, "threads": [1]}]
