"""Forks, stops, exits and attachments, with real processes."""

import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from posthouse import limits
from posthouse_agent import procfs
from posthouse_agent.orders import (
    Attach,
    Attached,
    Confirm,
    Ended,
    Forget,
    Forked,
    ForkFailed,
    NoteReady,
    SignalWorker,
    SnapshotEnd,
    StartWorker,
    StopUnknown,
    StopWorker,
)


def stop(forked, signal_=signal.SIGTERM, grace_s=30.0, reason="terminate"):
    return StopWorker(
        token=forked.token, slot=forked.slot, reason=reason, signal=signal_, grace_s=grace_s
    )


def test_start_is_answered_with_the_process(host, agent, alive):
    order = host.order("idle")
    agent.give(order)
    forked = agent.expect(Forked)
    process = procfs.read(forked.pid)
    assert process.start == forked.pid_start
    assert process.parent == host.pid
    for name in ("token", "registry", "slot", "generation", "incarnation", "revision"):
        assert getattr(forked, name) == getattr(order, name)
    assert not forked.known
    assert forked.token in agent.descriptors


def test_latch_is_set_from_outside(host, agent, eventually):
    order = host.order("wait_for_latch")
    agent.give(order)
    agent.expect(Forked)
    for round_ in range(1, 4):
        agent.set_latch(order.token)
        eventually(lambda n=round_: len(host.said(order.slot)) >= n)
    assert host.said(order.slot)[-1] == {"woken": ["LATCH_SET"], "rounds": 3}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_end_by_signal(host, agent, number):
    forked = host.begin(agent, "open_idle", rlimits={"CORE": 0})
    agent.give(SignalWorker(token=forked.token, signal=number))
    ended = agent.expect(Ended)
    assert (ended.facts["cause"], ended.facts["signal"]) == ("signaled", number)
    assert "code" not in ended.facts
    assert ended.facts["pid"] == forked.pid
    assert not ended.facts["core"]
    assert procfs.read(forked.pid) is None  # reaped before it was told


def test_fault_leaves_its_stack(host, agent):
    facts = host.run(agent, "crash").facts
    assert facts["signal"] == signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in facts["output_tail"]
    assert "in crash" in facts["output_tail"]


def test_core_dump_is_noted(host, agent, tmp_path):
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    if hard == 0 or Path("/proc/sys/kernel/core_pattern").read_text().startswith("|"):
        pytest.skip("no core dumps to a file here")
    forked = host.begin(agent, "idle", cwd=str(tmp_path), rlimits={"CORE": 64 * 1024 * 1024})
    agent.give(SignalWorker(token=forked.token, signal=signal.SIGABRT))
    assert agent.expect(Ended).facts["core"] is True


def test_usage_is_told(host, agent):
    facts = host.run(agent, "eat_processor", 0.3).facts
    assert 0.3 <= facts["user_s"] + facts["system_s"] < 20
    assert facts["max_rss_bytes"] > 40_000_000
    assert facts["runtime_s"] >= 0.3
    assert facts["ended_unix_s"] >= facts["started_unix_s"]


def test_output_tail_is_bounded_by_lines_and_bytes(host, agent):
    tail = host.run(agent, "chatter", {"lines": 1000, "width": 10}).facts["output_tail"]
    assert tail.splitlines() == [f"line {n} " + "x" * 10 for n in range(960, 1000)]
    tail = host.run(agent, "chatter", {"lines": 100, "width": 1000}).facts["output_tail"]
    assert len(tail.encode()) <= 4096
    assert [line[:8] for line in tail.splitlines()] == [f"line {n} " for n in range(96, 100)]
    tail = host.run(agent, "chatter", {"lines": 1, "width": 10_000}).facts["output_tail"]
    assert tail == "x" * 4095 + "\n"  # one long line: its end is better than nothing


def test_output_tail_is_this_incarnation_s(host, agent):
    first, second = host.order("chatter", {"lines": 2, "width": 1}), host.order("nothing")
    second = StartWorker(**{**_fields(second), "slot": first.slot, "incarnation": 2})
    for order in (first, second):
        agent.give(order)
        ended = agent.expect(Ended, order.token)
    assert "output_tail" not in ended.facts
    assert host.log_path(first.slot).read_text() == "line 0 x\nline 1 x\n"


def _fields(order):
    return {name: getattr(order, name) for name in order.__slots__}


def test_output_tail_of_a_file_that_was_replaced(host, agent):
    forked = host.begin(agent, "open_idle")
    path = host.log_path(forked.slot)
    path.rename(path.with_suffix(".old"))
    path.write_text("somebody else's words\n" * 100)
    agent.give(SignalWorker(token=forked.token, signal=signal.SIGKILL))
    assert "output_tail" not in agent.expect(Ended).facts


def test_output_tail_is_printable(host, agent):
    tail = host.run(agent, "odd_bytes").facts["output_tail"]
    assert tail == "good\n\ufffd\ufffd null bold end\nlast\ufffd"


def test_log_file_is_private_and_appended(host, agent):
    host.run(agent, "nothing")
    assert host.log_path(1).stat().st_mode & 0o777 == 0o640
    assert host.logs.stat().st_mode & 0o777 == 0o750


# --- stops ---


def test_stop_by_the_worker_s_own_handler(host, agent):
    forked = host.begin(agent, "own_term")
    agent.give(stop(forked, reason="restart"))
    ended = agent.expect(Ended)
    assert (ended.facts["code"], ended.stop) == (0, "restart")


def test_n7_healed_stop_becomes_kill_after_the_grace(host, agent):
    forked = host.begin(agent, "ignore_term")
    agent.give(stop(forked, grace_s=0.2))
    ended = agent.expect(Ended)
    assert (ended.facts["signal"], ended.stop) == (signal.SIGKILL, "terminate")
    assert ended.facts["runtime_s"] >= 0.2


def test_stop_with_signals_blocked_needs_the_kill(host, agent):
    forked = host.begin(agent, "idle")
    agent.give(stop(forked, grace_s=0.2))
    assert agent.expect(Ended).facts["signal"] == signal.SIGKILL


def test_stop_with_signal_0_kills_at_once(host, agent):
    forked = host.begin(agent, "ignore_term")
    agent.give(stop(forked, signal_=0))
    assert agent.expect(Ended).facts["signal"] == signal.SIGKILL


def test_second_stop_brings_the_end_nearer(host, agent):
    forked = host.begin(agent, "ignore_term")
    agent.give(stop(forked, grace_s=3600, reason="drain"))
    agent.give(stop(forked, grace_s=0.1, reason="terminate"))
    ended = agent.expect(Ended)
    assert (ended.facts["signal"], ended.stop) == (signal.SIGKILL, "terminate")


def test_stop_of_an_unknown_token_leaves_a_tombstone(host, agent):
    order = host.order("nothing", slot=5)
    agent.give(StopWorker(token=order.token, slot=5, reason="unknown", signal=15, grace_s=1))
    assert agent.expect(StopUnknown) == StopUnknown(token=order.token, slot=5)
    agent.give(order)
    failed = agent.expect(ForkFailed)
    assert (failed.code, failed.retry) == ("stale_token", False)
    # it is remembered over the warden's death
    host.kill()
    host.start()
    agent = host.agent()
    agent.give(order)
    assert agent.expect(ForkFailed).code == "stale_token"


def test_stale_token(host, agent):
    old, new = host.order("nothing", slot=1), host.order("nothing", slot=1)
    agent.give(new)
    agent.expect(Ended)
    agent.give(old)
    failed = agent.expect(ForkFailed)
    assert (failed.token, failed.code, failed.retry) == (old.token, "stale_token", False)


def test_one_process_a_slot(host, agent):
    forked = host.begin(agent, "idle", slot=1)
    agent.give(host.order("nothing", slot=1))
    failed = agent.expect(ForkFailed)
    assert (failed.code, failed.retry) == ("bad_order", True)
    assert str(forked.token) in failed.reason


def test_repeated_start_is_answered_again_and_not_done_again(host, agent):
    order = host.order("idle")
    agent.give(order)
    first = agent.expect(Forked)
    agent.give(order)
    assert agent.expect(Forked) == first
    agent.give(stop(first, signal_=0))
    agent.expect(Ended)
    agent.give(order)
    assert agent.expect(Ended).known


# --- attachments ---


def test_agents_come_and_go(host, agent, alive):
    running = [host.begin(agent, "open_idle") for _ in range(3)]
    gone = host.run(agent, "leave", 7)
    agent.give(NoteReady(token=running[0].token))
    agent.give(stop(running[1], grace_s=3600, signal_=signal.SIGUSR2, reason="drain"))
    agent.give(host.order("nothing"))
    agent.expect(Ended)
    agent.close()
    second = host.connect()
    snapshot = second.attach()
    assert snapshot[0].pid == host.pid
    assert snapshot[0].highest_token == 5
    forked = [r for r in snapshot if isinstance(r, Forked)]
    assert [(f.token, f.pid, f.pid_start) for f in forked] == [
        (f.token, f.pid, f.pid_start) for f in running
    ]
    assert all(f.known for f in forked)
    assert [f.ready for f in forked] == [True, False, False]
    assert [f.stopping for f in forked] == ["", "drain", ""]
    assert all(f.token in second.descriptors for f in running)
    exits = [r for r in snapshot if isinstance(r, Ended)]
    assert [e.token for e in exits] == [gone.token, 5]
    assert exits[0].known
    assert exits[0].facts == gone.facts
    assert snapshot[-1] == SnapshotEnd(running=3, exits=2)
    # confirmed ones go, the others stay
    second.give(Confirm(tokens=[gone.token, 999]))
    second.close()
    again = host.connect().attach()
    assert [r.token for r in again if isinstance(r, Ended)] == [5]
    assert all(alive(f.pid, f.pid_start) for f in running)


def test_exit_while_no_agent_is_there(host, agent, eventually, alive):
    forked = host.begin(agent, "open_idle")
    agent.close()
    os.kill(forked.pid, signal.SIGTERM)
    eventually(lambda: not alive(forked.pid))
    ended = [r for r in host.connect().attach() if isinstance(r, Ended)]
    assert [(e.token, e.facts["code"], e.stop) for e in ended] == [(forked.token, 1, "")]


def test_newer_agent_replaces_the_older(host, agent):
    second = host.agent()
    with pytest.raises((EOFError, ConnectionError)):
        agent.receive()
    order = host.order("nothing")
    second.give(order)
    assert second.expect(Ended).token == order.token


def test_orders_that_were_not_read_are_void(host, agent):
    """The older agent's orders are in the warden's socket when the newer attaches: of the two
    connections the newer one's Attach is read first only if the warden is not running meanwhile."""
    os.kill(host.pid, signal.SIGSTOP)
    stale = host.order("nothing")
    fresh = host.connect()
    fresh.give(Attach(agent="new"))
    agent.give(stale)
    os.kill(host.pid, signal.SIGCONT)
    reports = [fresh.receive()]
    while not isinstance(reports[-1], SnapshotEnd):
        reports.append(fresh.receive())
    # Whether the stale order was read before is the warden's to say; what it says is one thing.
    started = any(getattr(r, "token", None) == stale.token for r in reports)
    fresh.give(StopWorker(token=stale.token, slot=stale.slot, reason="x", signal=0, grace_s=0))
    kind = Ended if started else StopUnknown
    assert fresh.expect(kind).token == stale.token


@pytest.mark.parametrize(
    "data", [b"\xc1", b"", b"\x80", b"x" * 262_145, b"\x82\xa2op\xabStartWorker\xa5token\xa1x"]
)
def test_nonsense_costs_the_agent_its_connection(host, agent, data):
    forked = host.begin(agent, "idle")
    if data:
        agent.socket.send(data)
    else:
        agent.socket.shutdown(socket.SHUT_WR)
    with pytest.raises((EOFError, ConnectionError)):
        agent.receive()
    again = host.connect().attach()
    assert [r.pid for r in again if isinstance(r, Forked)] == [forked.pid]


def test_caller_that_does_not_attach_is_cut(host, agent):
    caller = host.connect()
    caller.give(Confirm(tokens=[1]))
    with pytest.raises((EOFError, ConnectionError)):
        caller.receive()
    silent = [host.connect() for _ in range(40)]  # more than wait at a time
    order = host.order("nothing")
    agent.give(order)
    assert agent.expect(Ended).token == order.token
    assert isinstance(host.connect().attach()[0], Attached)
    assert len(silent) == 40


def test_agent_that_does_not_read(host, agent, eventually):
    """Reports wait; workers are started and reaped meanwhile; nothing is lost."""
    tokens = []
    for _ in range(100):
        order = host.order("chatter:lines")
        tokens.append(order.token)
        agent.give(order)
    eventually(lambda: host.log_path(tokens[-1]).exists())
    assert [agent.expect(Ended, token).token for token in tokens] == tokens


def test_reports_for_an_agent_that_does_not_read_are_not_the_next_one_s(host, agent, eventually):
    given = [host.order("chatter:lines") for _ in range(150)]
    for order in given:
        agent.give(order)
    eventually(lambda: _journal(host).count('"op":"Exited"') == len(given))
    snapshot = host.connect().attach()  # asserts that Attached comes first
    exits = [r for r in snapshot if isinstance(r, Ended)]
    assert sorted(r.token for r in exits) == [order.token for order in given]
    assert all(r.known for r in exits)


def _journal(host):
    return (host.home / "journal").read_text()


def test_foreign_user_is_not_heard(host, agent):
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    os.chmod(host.folder, 0o755)
    os.chmod(host.runtime, 0o755)
    os.chmod(host.home, 0o755)
    os.chmod(host.socket_path, 0o777)
    code = (
        "import os, socket\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        f"s.settimeout(10); s.connect({host.socket_path!r})\n"
        "try: data = s.recv(1)\n"
        "except ConnectionError: data = b''\n"
        "assert data == b'', data\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)


# --- the warden's own end ---


def test_n13_healed_kill_of_the_warden_ends_its_workers(host, agent, eventually, alive):
    running = [host.begin(agent, main) for main in ("idle", "open_idle", "ignore_term")]
    gone = host.run(agent, "leave", 3)
    agent.give(stop(running[2], grace_s=3600, reason="drain"))
    eventually(lambda: "Stopping" in (host.home / "journal").read_text())
    host.kill()
    eventually(lambda: not any(alive(f.pid, f.pid_start) for f in running))
    host.start()
    snapshot = host.connect().attach()
    exits = {r.token: r for r in snapshot if isinstance(r, Ended)}
    assert exits.keys() == {f.token for f in running} | {gone.token}
    assert exits[gone.token].facts == gone.facts
    for forked in running:
        facts = exits[forked.token].facts
        assert facts["cause"] == "warden_died"
        assert facts["pid"] == forked.pid
        assert not {"code", "signal"} & facts.keys()
    assert exits[running[2].token].stop == "drain"
    assert not [r for r in snapshot if isinstance(r, Forked)]
    # not told twice, once it is confirmed: nor by a third warden
    second = host.agent()
    second.give(Confirm(tokens=list(exits)))
    second.give(stop(running[0]))
    second.expect(StopUnknown)
    host.kill()
    host.start()
    assert [type(r) for r in host.connect().attach()] == [Attached, SnapshotEnd]


def test_exits_are_told_by_each_warden_until_they_are_confirmed(host, agent):
    forked = host.begin(agent, "idle")
    for _ in range(3):
        host.kill()
        host.start()
        exits = [r for r in host.connect().attach() if isinstance(r, Ended)]
        assert [(e.token, e.facts["cause"]) for e in exits] == [(forked.token, "warden_died")]


def test_host_that_was_rebooted(host, agent, eventually):
    forked = host.begin(agent, "idle")
    host.kill()
    journal = host.home / "journal"
    journal.write_text(journal.read_text().replace(procfs.boot_id(), "another boot"))
    host.start()
    exits = [r for r in host.connect().attach() if isinstance(r, Ended)]
    assert [(e.token, e.facts["cause"]) for e in exits] == [(forked.token, "host_rebooted")]


def test_leftover_that_outlives_its_warden_is_killed(host, agent, alive):
    """A worker that took off its parent-death signal: the next warden waits until it is gone."""
    forked = host.begin(agent, "no_posthouse_death")
    host.kill()
    assert alive(forked.pid, forked.pid_start)
    host.start()
    assert not alive(forked.pid, forked.pid_start)


def test_leftovers_without_a_journal_are_found_by_the_lock(host, agent, alive):
    forked = host.begin(agent, "no_posthouse_death")
    host.kill()
    (host.home / "journal").unlink()
    host.start()
    assert not alive(forked.pid, forked.pid_start)


def test_who_merely_reads_the_lock_file_is_left_alone(host, agent, alive):
    with open(host.home / "host.lock") as file:
        reader = subprocess.Popen(["sleep", "60"], stdin=file)
    try:
        forked = host.begin(agent, "no_posthouse_death")
        host.kill()
        host.start()
        assert not alive(forked.pid, forked.pid_start)
        assert reader.poll() is None
    finally:
        reader.kill()
        reader.wait()


def test_term_ends_the_workers_and_then_the_warden(host, agent, alive):
    calm = host.begin(agent, "own_term")
    stubborn = host.begin(agent, "ignore_term", stop_grace_s=0.3)
    by_int = host.begin(agent, "open_idle", stop_signal="QUIT")
    host.process.terminate()
    ends = {
        token: agent.expect(Ended, token) for token in (calm.token, stubborn.token, by_int.token)
    }
    assert isinstance(agent.expect(Forget), Forget)
    assert host.process.wait(20) == 0
    assert ends[calm.token].facts["code"] == 0
    assert ends[stubborn.token].facts["signal"] == signal.SIGKILL
    assert ends[by_int.token].facts["code"] == 2
    assert {e.stop for e in ends.values()} == {"shutdown"}
    assert not os.path.exists(host.socket_path)
    # what was not confirmed is told by the next one
    host.start()
    exits = {r.token: r for r in host.connect().attach() if isinstance(r, Ended)}
    assert {t: e.facts for t, e in exits.items()} == {t: e.facts for t, e in ends.items()}
    assert {e.stop for e in exits.values()} == {"shutdown"}


def test_start_while_the_warden_ends(host, agent):
    stubborn = host.begin(agent, "ignore_term", stop_grace_s=2.0)
    host.process.terminate()
    order = host.order("nothing")

    # the order may be read before the signal: then it runs, and is ended
    agent.give(order)
    report = agent.receive()
    while getattr(report, "token", None) != order.token:
        report = agent.receive()
    if isinstance(report, ForkFailed):
        assert (report.code, report.retry) == ("stopping", True)
    agent.expect(Ended, stubborn.token)
    agent.expect(Forget)
    assert host.process.wait(20) == 0


def test_second_warden_of_a_folder_is_refused(host, agent):
    second = host.spawn()
    assert second.wait(20) == 3
    assert f"another warden serves this folder (pid {host.pid})" in host.warden_log()
    order = host.order("nothing")
    agent.give(order)
    assert agent.expect(Ended).token == order.token


def test_many_starts_leak_nothing(host, agent):
    def held():
        return sorted(os.listdir(f"/proc/{host.pid}/fd"), key=int)

    agent.give(Confirm(tokens=[host.run(agent, "chatter:lines").token]))
    before = held()
    for _ in range(200):
        ended = host.run(agent, "chatter:lines")
        assert ended.facts["code"] == 0
        agent.give(Confirm(tokens=[ended.token]))
        for fd in agent.descriptors.pop(ended.token):
            os.close(fd)
    agent.give(StopWorker(token=9999, slot=9, reason="x", signal=0, grace_s=0))
    agent.expect(StopUnknown)  # all before it has been read
    # more or fewer spares, with two descriptors each
    assert len(held()) <= len(before) + 2 * limits.spares_max
    assert not host.strays()


def test_warden_is_lean(host, agent):
    """No thread, no foreign module; workers come from a process that loads none of it."""
    host.begin(agent, "idle")
    assert len(os.listdir(f"/proc/{host.pid}/task")) == 1
    code = (
        "import posthouse_agent.warden, sys\n"
        "foreign = {'zmq', 'msgspec', 'structlog', 'asyncio', 'sqlite3', 'pathlib'}\n"
        "assert not foreign & sys.modules.keys(), foreign & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
