"""The watchdog: who gives no heartbeat is ended, and nobody else."""

import os
import signal

import pytest

from posthouse import SHMEM_ACCESS, BackgroundWorker, limits
from posthouse.errors import InvalidField
from posthouse.ids import Instant
from posthouse.records import ExitFacts
from posthouse.restart import decide
from posthouse_agent.orders import Ended, Forked, StartWorker, StopWorker
from posthouse_agent.warden_core import WardenCore, recover
from posthouse_agent.warden_effects import (
    Fork,
    ForkDone,
    Heard,
    Kill,
    Listen,
    MemoryAsked,
    Ordered,
    ProcessEnded,
    Reap,
    Tick,
    WriteJournal,
)


class Bench:
    """A core with one worker whose watchdog is two seconds."""

    def __init__(self, **spec):
        self.now_s = 100.0
        self.core = WardenCore(instance="1" * 32, kind="fenced", boot_id="b", pid=1)
        self.give(recover([], rebooted=False))
        spec = {"name": "w", "main": "m:f", "watchdog_s": 2.0, "stop_grace_s": 4.0, **spec}
        order = StartWorker(
            token=1, registry="9f" * 16, slot=0, generation=1, incarnation=1, revision=1, host="h",
            spec=spec,
        )  # fmt: skip
        assert isinstance(self.give(Ordered(order))[-1], Fork)
        self.give(ForkDone(token=1, pid=7, pid_start=1))

    def give(self, event):
        return self.core.handle(event, Instant(self.now_s, self.now_s))

    def at(self, now_s):
        self.now_s = now_s
        return self.give(Tick())


def test_silence_ends_a_worker_by_abort_and_then_kill():
    bench = Bench()
    assert bench.core.deadline() == 102.0
    assert bench.at(102.0) == [Listen(1)]
    assert bench.give(Heard(token=1, silent_s=0.5)) == []
    assert bench.core.deadline() == 103.5
    assert bench.at(103.5) == [Listen(1)]
    assert bench.give(Heard(token=1, silent_s=2.0)) == [Kill(1, signal.SIGABRT)]
    assert bench.at(107.5)[0] == Kill(1, signal.SIGKILL)
    done = bench.give(ProcessEnded(token=1, facts={"cause": "signaled", "signal": 9}))
    assert isinstance(done[0], WriteJournal)
    assert done[0].entry.facts["cause"] == "watchdog"
    assert Reap(1) in done


def test_a_warden_that_looks_late_gives_everybody_time():
    """It was stopped, or the machine slept: whoever could not give a heartbeat is not to blame."""
    bench = Bench()
    late = 102.0 + limits.watchdog_late_s + 0.1
    assert bench.at(late) == []
    assert bench.core.deadline() == late + 2.0
    assert bench.at(late + 2.0) == [Listen(1)]


def test_an_end_that_was_asked_for_is_no_silence():
    bench = Bench()
    stop = StopWorker(token=1, slot=0, reason="hold", signal=15, grace_s=60.0)
    bench.give(Ordered(stop))
    assert bench.at(102.0) == [Listen(1)]
    assert bench.give(Heard(token=1, silent_s=9.0)) == []
    (done, *_) = bench.give(ProcessEnded(token=1, facts={"cause": "exited", "code": 0}))
    assert done.entry.facts["cause"] == "exited"


def test_no_watchdog_no_listening():
    assert Bench(watchdog_s=None).core.deadline() is None


@pytest.mark.parametrize("how", [{"code": 0}, {"code": 1}, {"signal": 6}])
def test_silence_is_a_crash_whatever_the_exit_says(how):
    """An exit 0 under the watchdog's signal must not unregister a worker that hung."""
    spec = BackgroundWorker(name="w", main="m:f", watchdog_s=2.0, restart_time=7.0)
    decision = decide(spec, ExitFacts(cause="watchdog", **how), None)
    assert (decision.kind, decision.delay_s, decision.rule) == ("restart", 7.0, "E3")
    assert "gave no heartbeat for 2.0 s" in decision.reason


def test_silence_that_resets_a_crash_domain_is_told_to_all_of_its_members():
    bench = Bench(flags=1, crash_domain="d")
    bench.give(MemoryAsked(1, {"op": "create", "id": 1, "size": 8}))
    bench.at(102.0)
    bench.give(Heard(token=1, silent_s=2.0))
    (done, *_) = bench.give(ProcessEnded(token=1, facts={"cause": "signaled", "signal": 6}))
    told = "worker w (pid 7) gave no heartbeat for 2 s, ended by signal 6"
    assert done.entry.facts["domain_cause"] == told
    spec = BackgroundWorker(name="w", main="m:f", watchdog_s=2.0, flags=SHMEM_ACCESS)
    decision = decide(spec, ExitFacts(**done.entry.facts), None)
    assert (decision.kind, decision.delay_s, decision.rule) == ("restart", 0.0, "C2")
    assert decision.reason.startswith("gave no heartbeat for 2.0 s; ")


def test_a_program_has_no_heartbeat():
    spec = BackgroundWorker(name="w", main="posthouse.exec", main_arg=["true"], watchdog_s=2.0)
    with pytest.raises(InvalidField, match="watchdog_s"):
        spec.check()


# --- real processes ---


def test_a_worker_that_hangs_is_ended_and_its_stack_is_told(host, agent, eventually, alive):
    """The agent is away at that time, which changes nothing."""
    order = host.order("beat_then_hang", {"beats": 15, "pause": 0.1}, watchdog_s=0.7)
    agent.give(order)
    forked = agent.expect(Forked, order.token)
    agent.close()
    eventually(lambda: not alive(forked.pid))
    (ended,) = [report for report in host.connect().attach() if isinstance(report, Ended)]
    assert {"hangs": True} in host.said(order.slot)  # fifteen heartbeats were heard
    assert (ended.facts["cause"], ended.facts["signal"]) == ("watchdog", signal.SIGABRT)
    assert "in hang" in ended.facts["output_tail"]


def test_a_stopped_worker_is_silent_and_a_stopped_warden_is_not_deaf(host, agent):
    order = host.order(
        "beat_then_hang", {"beats": 10**6, "pause": 0.05}, watchdog_s=0.6, stop_grace_s=0.2
    )
    agent.give(order)
    beating = agent.expect(Forked, order.token)
    os.kill(host.pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        agent.socket.settimeout(1.5)  # longer than anybody may be silent
        agent.receive()
    os.kill(host.pid, signal.SIGCONT)
    agent.socket.settimeout(20)
    assert host.run(agent, "nothing").facts["code"] == 0
    os.kill(beating.pid, signal.SIGSTOP)
    ended = agent.expect(Ended, order.token)
    assert (ended.facts["cause"], ended.facts["signal"]) == ("watchdog", signal.SIGKILL)
