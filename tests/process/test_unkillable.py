"""A process that KILL does not end: it is told where the kernel holds it, and keeps its slot.

The stand-in for a disk that hangs is the freezer of cgroup v1: what it has frozen dies when it is
thawed, and not before.
"""

import os
import signal
import sys
from pathlib import Path

import pytest

from posthouse_agent import procfs
from posthouse_agent.orders import (
    Ended,
    Forked,
    ForkFailed,
    SignalWorker,
    StopWorker,
    Stuck,
)


class Freezer:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def freeze(self, pid: int) -> None:
        (self.folder / "cgroup.procs").write_text(f"{pid}")
        (self.folder / "freezer.state").write_text("FROZEN")

    def thaw(self) -> None:
        (self.folder / "freezer.state").write_text("THAWED")


@pytest.fixture
def freezer():
    root = _freezer_root()
    if root is None or os.geteuid() != 0:
        pytest.skip("needs root and the freezer of cgroup v1")
    folder = root / f"posthouse-test-{os.getpid()}"
    folder.mkdir()
    made = Freezer(folder)
    yield made
    made.thaw()
    for pid in (folder / "cgroup.procs").read_text().split():
        (root / "cgroup.procs").write_text(pid)
    folder.rmdir()


def _freezer_root():
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        rest = fields[fields.index("-") + 1 :]
        if rest[0] == "cgroup" and "freezer" in rest[2].split(","):
            return Path(fields[4])
    return None


def kill(agent, forked):
    agent.give(
        StopWorker(token=forked.token, slot=forked.slot, reason="hold", signal=15, grace_s=0.1)
    )


def test_a_worker_that_kill_does_not_end(freezer, host, agent, alive):
    forked = host.begin(agent, "idle")
    freezer.freeze(forked.pid)
    kill(agent, forked)
    stuck = agent.expect(Stuck)
    assert stuck.token == forked.token
    assert stuck.state.startswith("KILL has not ended it: in uninterruptible sleep (D)")
    assert alive(forked.pid, forked.pid_start)
    # its slot is taken, and the others' are served
    agent.give(host.order("nothing", slot=forked.slot))
    failed = agent.expect(ForkFailed)
    assert (failed.code, failed.retry) == ("bad_order", True)
    assert host.run(agent, "nothing").facts["code"] == 0
    # the next agent is told as well
    (known,) = [r for r in host.connect().attach() if isinstance(r, Forked)]
    assert (known.token, known.stuck, known.stopping) == (forked.token, stuck.state, "hold")
    agent = host.agent()
    freezer.thaw()
    ended = agent.expect(Ended, forked.token)
    assert (ended.facts["signal"], ended.stop) == (signal.SIGKILL, "hold")


def test_what_a_dead_worker_left_and_kill_does_not_end(freezer, host, agent, alive, eventually):
    forked = host.begin(agent, "keep_daemon")
    neighbour = host.begin(agent, "keep_daemon")
    child, other_child = (host.said(f.slot)[0]["child"] for f in (forked, neighbour))
    freezer.freeze(child)
    agent.give(SignalWorker(token=forked.token, signal=signal.SIGKILL))
    stuck = agent.expect(Stuck)
    assert stuck.token == forked.token
    assert stuck.state.startswith(
        f"1 processes that it left do not die: pid {child} in uninterruptible sleep (D)"
    )
    # its own end is known and not told before the whole of it has ended
    assert procfs.read(forked.pid).state == "Z"
    assert host.run(agent, "nothing").facts["code"] == 0
    # behind that zombie, dead strangers are reaped all the same
    os.kill(other_child, signal.SIGKILL)
    eventually(lambda: procfs.read(other_child) is None, "a zombie stays")
    freezer.thaw()
    ended = agent.expect(Ended, forked.token)
    assert ended.facts["signal"] == signal.SIGKILL
    assert not alive(child)
    assert alive(neighbour.pid, neighbour.pid_start)


def test_a_warden_does_not_begin_while_a_leftover_lives(freezer, host, agent, alive):
    """Whoever serves says that nothing of the earlier warden runs; so it must be true."""
    forked = host.begin(agent, "idle")
    freezer.freeze(forked.pid)
    host.kill()
    code = (
        "import sys, posthouse_agent.warden as w\n"
        "w._LEFTOVERS_S = 0.3\n"
        "argv = sys.argv[sys.argv.index('posthouse_agent.warden') + 1:]\n"
        "sys.exit(w.main(argv))\n"
    )
    host.python = [sys.executable, "-P", "-c", code]
    assert host.spawn().wait(20) == 1
    text = host.warden_log()
    assert "cannot start: processes of an earlier warden do not die: " in text
    assert f"pid {forked.pid} in uninterruptible sleep (D)" in text
    freezer.thaw()
    exits = [r for r in host.start().connect().attach() if isinstance(r, Ended)]
    assert [(e.token, e.facts["cause"]) for e in exits] == [(forked.token, "warden_died")]
