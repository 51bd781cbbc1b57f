"""Nothing that a worker started stays behind, and a worker that daemonises is told so."""

import os
import signal
import subprocess

import pytest

from posthouse_agent import procfs
from posthouse_agent.orders import Confirm, Ended, Forked, SignalWorker, StopWorker


@pytest.mark.parametrize("how", ["session", "setsid", "double", "exec"])
def test_daemonising_counts_as_1(host, agent, alive, how):
    ended = host.run(agent, "leave_child", {"code": 0, "how": how})
    assert (ended.facts["cause"], ended.facts["code"]) == ("daemonised", 1)
    assert not alive(host.said(ended.slot)[0]["child"])
    assert not host.strays()


def test_helpers_that_end_by_themselves_are_no_daemons(host, agent):
    """As multiprocessing's resource tracker: it sees the end of its pipe, and cleans up."""
    for code in (0, 1):
        ended = host.run(agent, "leave_helper", code)
        assert (ended.facts["cause"], ended.facts["code"]) == ("exited", code)
        assert ended.facts["output_tail"] == "the helper has cleaned up\n"


def test_other_workers_are_served_while_one_lingers(host, agent):
    lingering = host.order("leave_child", {"code": 0, "how": "double"})
    agent.give(lingering)
    agent.expect(Forked)
    quick = [host.run(agent, "chatter:lines").token for _ in range(3)]
    assert agent.expect(Ended).token == lingering.token
    assert len(quick) == 3


def test_other_codes_stay_and_the_child_goes(host, agent, alive):
    ended = host.run(agent, "leave_child", {"code": 3, "how": "double"})
    assert (ended.facts["cause"], ended.facts["code"]) == ("exited", 3)
    assert not alive(host.said(ended.slot)[0]["child"])


def test_leftovers_of_one_worker_are_told_from_another_s(host, agent, alive):
    """A daemonised child of a living worker is its own business while the worker lives."""
    leaver = host.begin(agent, "leave_child", {"code": 0, "how": "double", "wait": True})
    keeper = host.begin(agent, "keep_daemon")  # later, so that its daemon is among the suspects
    daemon = host.said(keeper.slot)[0]["child"]
    assert procfs.read(daemon).parent == host.pid
    agent.set_latch(leaver.token)
    assert agent.expect(Ended, leaver.token).facts["cause"] == "daemonised"
    assert alive(daemon)
    agent.give(SignalWorker(token=keeper.token, signal=signal.SIGKILL))
    assert agent.expect(Ended, keeper.token).facts["signal"] == signal.SIGKILL
    assert not alive(daemon)


def test_tree_of_term_ignoring_processes(host, agent, eventually, alive):
    forked = host.begin(agent, "tree", 4)
    eventually(lambda: len(host.said(forked.slot)) == 4)
    pids = [line["pid"] for line in host.said(forked.slot)]
    assert all(alive(p) for p in pids)
    agent.give(
        StopWorker(token=forked.token, slot=forked.slot, reason="terminate", signal=15, grace_s=20)
    )
    ended = agent.expect(Ended)
    # asked to end, and ended: that it left its helpers to us is no fault
    assert (ended.facts["cause"], ended.facts["code"]) == ("exited", 1)
    assert not any(alive(p) for p in pids)


def test_children_of_a_killed_worker(host, agent, eventually, alive):
    forked = host.begin(agent, "tree", 3)
    eventually(lambda: len(host.said(forked.slot)) == 3)
    pids = [line["pid"] for line in host.said(forked.slot)]
    agent.give(SignalWorker(token=forked.token, signal=signal.SIGKILL))
    agent.expect(Ended)
    assert not any(alive(p) for p in pids)


def test_threads_are_no_leftovers(host, agent):
    """Thread ids are pids to the kernel: those of a neighbour must not be taken for processes."""
    neighbour = host.begin(agent, "many_threads")
    first = host.order("short")
    agent.give(first)
    ended = agent.expect(Ended, first.token)
    assert (ended.facts["cause"], ended.facts["code"]) == ("exited", 0)
    agent.give(SignalWorker(token=neighbour.token, signal=signal.SIGKILL))
    agent.expect(Ended, neighbour.token)


def test_strangers_of_the_warden_s_parent_are_safe(host, agent):
    outsider = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        for _ in range(5):
            agent.give(Confirm(tokens=[host.run(agent, "nothing").token]))
        assert outsider.poll() is None
    finally:
        outsider.kill()
        outsider.wait()


def test_dead_strangers_are_reaped(host, agent, eventually):
    """A living worker's orphans become the warden's children; when they end nobody else waits."""
    keeper = host.begin(agent, "keep_daemon")
    daemon = host.said(keeper.slot)[0]["child"]
    os.kill(daemon, signal.SIGKILL)
    eventually(lambda: procfs.read(daemon) is None, "a zombie stays")


def test_programs_that_workers_started_die_with_the_next_warden(host, agent, alive):
    """They have neither the lock nor the parent-death signal: the cookie tells whose they are."""
    forked = host.begin(agent, "start_program")
    program = host.said(forked.slot)[0]["child"]
    host.kill()
    assert alive(program)
    host.start()
    assert not alive(program)


def test_neighbours_on_one_machine_leave_each_other_alone(host, agent, make_host, alive):
    """Two hosts: tokens and pids of the one mean nothing to the other's wardens."""
    kept = [host.begin(agent, main) for main in ("idle", "keep_daemon", "start_program")]
    children = [host.said(f.slot)[0]["child"] for f in kept[1:]]
    other = make_host().start()
    for _ in range(2):
        others_agent = other.agent()
        other.begin(others_agent, "keep_daemon")
        other.run(others_agent, "leave_child", {"code": 0, "how": "double"})
        other.kill()
        other.start()
    assert host.process.poll() is None
    assert all(alive(f.pid, f.pid_start) for f in kept)
    assert all(alive(pid) for pid in children)
