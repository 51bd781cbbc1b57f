"""AgentCore under everything that can be lost, late or killed, by hypothesis.

A master that remembers what it acknowledged, wardens that come and go with a truthful journal, a
line that loses frames. What must hold is checked at every step:
- an exit is confirmed to a warden only if the master acknowledged it;
- every session tells each unconfirmed exit exactly once, and each live worker;
- STARTED, READY, EXITED of a token come in this order; pages are within their bounds;
- no HELLO while a start is unanswered or a snapshot incomplete.
"""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from posthouse import codec, limits
from posthouse.messages import Exited, Grant, Hello, Inventory, Ready, Renew, Start, Started, Stop
from posthouse.states import StopReason
from posthouse_agent import effects, orders

REGISTRY = "ab" * 16
LOST = st.sampled_from([False, False, False, True])


class Journal:
    """A truthful warden: what it runs, which exits it still owes."""

    def __init__(self) -> None:
        self.live: dict[int, orders.Forked] = {}
        self.exits: dict[int, orders.Ended] = {}
        self.inbox: list[Any] = []  # orders that were sent and not read
        self.instances = 0
        self.here = False
        self.told = False  # the snapshot is complete


class AgentMachine(RuleBasedStateMachine):
    bench_class: type[Any]

    def __init__(self) -> None:
        super().__init__()
        self.bench = self.bench_class()
        self.warden = Journal()
        self.to_agent: list[bytes] = []
        self.next_token = 1
        self.acknowledged: set[int] = set()  # exits whose frame the master has acknowledged
        self.read = 0  # orders of the bench that went into the inbox
        self.checked = 0  # effects of the bench whose frames were looked at
        self.outstanding: set[int] = set()
        self.pid = 100
        self.bench.tick()
        self.warden_comes()
        self.all_goes_well(3, True)

    # --- plumbing ---

    def _sync(self) -> None:
        """Orders reach the warden's socket; what they confirm is checked."""
        for order in self.bench.orders[self.read :]:
            if isinstance(order, orders.Confirm):
                assert set(order.tokens) <= self.acknowledged, "confirmed without the master's word"
            if isinstance(order, orders.StartWorker):
                self.outstanding.add(order.token)
            self.warden.inbox.append(order)
        self.read = len(self.bench.orders)

    def _check_frames(self) -> None:
        new, self.checked = self.bench.effects[self.checked :], len(self.bench.effects)
        for frame in (effect.frame for effect in new if isinstance(effect, effects.Transmit)):
            envelope = codec.decode(frame)
            if isinstance(envelope.body, Hello):
                assert not self.outstanding, "HELLO while a start is unanswered"
                assert self.warden.told, "HELLO without a whole snapshot"
            if isinstance(envelope.body, Inventory):
                assert len(frame) <= limits.page_bytes_max + 64

    def _did(self) -> None:
        self._sync()
        self._check_frames()

    # --- the line and the master ---

    @rule(seconds=st.sampled_from([0.01, 0.2, 1.1]))
    def time_passes(self, seconds: float) -> None:
        self.bench.tick(seconds)
        self._did()

    @precondition(lambda self: self.bench.to_master)
    @rule(lost=LOST)
    def the_master_hears(self, lost: bool) -> None:
        frame = self.bench.to_master.popleft()
        if lost and codec.decode(frame).sequence:
            return
        said = self.bench.master.take(frame, self.bench.now_s)
        if isinstance(said, Hello):
            self.to_agent = [self.bench.master.welcome(self.bench.now_s)]
        elif isinstance(said, Renew) and self._whole():
            self.to_agent.append(self.bench.master.link.loose(Grant(stamp=said.stamp)))

    def _whole(self) -> bool:
        return any(isinstance(m, Inventory) and m.last for m in self.bench.master.said)

    @precondition(lambda self: self.bench.master.link is not None)
    @rule()
    def the_master_speaks(self) -> None:
        self.to_agent += self.bench.master.link.due(self.bench.now_s)

    @precondition(lambda self: self.bench.master.link is not None and self._whole())
    @rule(slot=st.integers(0, 3))
    def the_master_starts(self, slot: int) -> None:
        token, self.next_token = self.next_token, self.next_token + 1
        start = Start(
            registry=REGISTRY, slot=slot, generation=1, incarnation=token, token=token,
            revision=1, spec={"name": "w", "main": "m:f"},
        )  # fmt: skip
        self.to_agent.append(self.bench.master.link.send(start, self.bench.now_s))

    @precondition(lambda self: self.bench.master.link is not None and self.next_token > 1)
    @rule(data=st.data())
    def the_master_stops(self, data: st.DataObject) -> None:
        token = data.draw(st.integers(1, self.next_token - 1))
        stop = Stop(
            registry=REGISTRY, slot=0, generation=1, token=token, reason=StopReason.TERMINATE,
            signal=15, grace_s=1.0,
        )  # fmt: skip
        self.to_agent.append(self.bench.master.link.send(stop, self.bench.now_s))

    @precondition(lambda self: self.to_agent)
    @rule(lost=LOST)
    def the_agent_hears(self, lost: bool) -> None:
        frame = self.to_agent.pop(0)
        if lost:
            return
        envelope = codec.decode(frame)
        self._remember(envelope)
        self.bench.feed(effects.Frame(frame))
        self._did()

    def _remember(self, envelope: Any) -> None:
        link = self.bench.master.link
        if link is None or envelope.session != link.session:
            return
        carriers = self.bench.master.said[: envelope.acknowledged]
        for message in carriers:
            if isinstance(message, Inventory):
                self.acknowledged |= {worker.token for worker in message.exits}
            elif isinstance(message, Exited):
                self.acknowledged.add(message.worker.token)

    @rule(rounds=st.integers(1, 3), warden=st.booleans())
    def all_goes_well(self, rounds: int, warden: bool) -> None:
        """For a while nothing is lost; random steps alone would hardly ever open a session."""
        for _ in range(rounds):
            self.bench.tick(0.2)
            self._did()
            while self.bench.to_master:
                self.the_master_hears(False)
            if self.bench.master.link is not None:
                self.the_master_speaks()
            while self.to_agent:
                self.the_agent_hears(False)
            while warden and self.warden.here and self.warden.inbox:
                self.the_warden_reads(False)

    @precondition(lambda self: self.bench.core.session is not None)
    @rule()
    def the_connection_breaks(self) -> None:
        self.to_agent.clear()
        self.bench.feed(effects.ConnectionBroken("cut"))
        self._did()

    # --- wardens ---

    @precondition(lambda self: self.warden.inbox and self.warden.here)
    @rule(fails=LOST)
    def the_warden_reads(self, fails: bool) -> None:
        order = self.warden.inbox.pop(0)
        match order:
            case orders.StartWorker(token=token):
                self.outstanding.discard(token)
                if fails:
                    self._say(orders.ForkFailed(
                        token=token, slot=order.slot, generation=1, incarnation=token,
                        code="fork_failed", reason="no", retry=True,
                    ))  # fmt: skip
                    return
                self.pid += 1
                self.warden.live[token] = orders.Forked(
                    token=token, registry=REGISTRY, slot=order.slot, generation=1,
                    incarnation=token, revision=1, pid=self.pid, pid_start=1, started_unix_s=1.0,
                )  # fmt: skip
                self._say(self.warden.live[token])
            case orders.StopWorker(token=token):
                if token in self.warden.live:
                    self._ends(token, "terminate")
                elif token in self.warden.exits:
                    self._say(replace(self.warden.exits[token], known=True))
                else:
                    self._say(orders.StopUnknown(token=token, slot=order.slot))
            case orders.Confirm(tokens=tokens):
                for token in tokens:
                    self.warden.exits.pop(token, None)

    @precondition(lambda self: self.warden.live and self.warden.here)
    @rule(data=st.data())
    def a_worker_ends(self, data: st.DataObject) -> None:
        self._ends(data.draw(st.sampled_from(sorted(self.warden.live))), "")

    @precondition(lambda self: self.warden.live and self.warden.told)
    @rule(data=st.data())
    def a_worker_is_ready(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(sorted(self.warden.live)))
        self.bench.feed(effects.WorkerSaid(token, {"op": "ready", "id": 1}))
        self._did()

    def _ends(self, token: int, stop: str) -> None:
        was = self.warden.live.pop(token)
        facts = {"cause": "exited", "code": 1, "output_tail": "x" * 4000}
        self.warden.exits[token] = orders.Ended(
            token=token, registry=REGISTRY, slot=was.slot, generation=1, incarnation=token,
            revision=1, facts=facts, stop=stop,
        )  # fmt: skip
        self._say(self.warden.exits[token])

    def _say(self, report: Any) -> None:
        if self.warden.told:
            self.bench.report(report)
            self._did()

    @precondition(lambda self: self.warden.here)
    @rule(dies=st.booleans())
    def the_warden_goes(self, dies: bool) -> None:
        """Killed, or only the connection is lost: then its workers live on."""
        self.warden.inbox.clear()
        self.outstanding.clear()
        self.warden.here = self.warden.told = False
        if dies:
            self.warden.instances += 1
            for token in list(self.warden.live):
                self._ends(token, "")
        self.bench.warden_gone()
        self._did()

    @precondition(lambda self: not self.warden.here and self.bench.needed)
    @rule()
    def warden_comes(self) -> None:
        self.bench.needed.clear()
        self.warden.here = True
        self.bench.feed(effects.WardenUp("fenced"))
        instance = f"{self.warden.instances:032x}"
        self.bench.report(orders.Attached(
            instance=instance, kind="fenced", boot_id="b", pid=1, highest_token=self.next_token,
        ))  # fmt: skip
        for report in (*self.warden.live.values(), *self.warden.exits.values()):
            self.bench.report(replace(report, known=True))
        self._sync()
        self._check_frames()
        self.warden.told = True
        self.bench.report(orders.SnapshotEnd(
            running=len(self.warden.live), exits=len(self.warden.exits)))  # fmt: skip
        self._did()

    # --- what must hold ---

    @invariant()
    def a_session_tells_everything_once_and_in_order(self) -> None:
        master = self.bench.master
        if master.link is None:
            return
        seen: dict[int, int] = {}  # token -> the last step told
        for message in master.said:
            if isinstance(message, Inventory):
                for running in message.running:
                    assert running.token not in seen
                    seen[running.token] = 1 + running.ready
                for exit_ in message.exits:
                    assert exit_.token not in seen
                    seen[exit_.token] = 3
            elif isinstance(message, Started):
                assert message.worker.token not in seen
                seen[message.worker.token] = 1
            elif isinstance(message, Ready):
                assert seen[message.token] == 1
                seen[message.token] = 2
            elif isinstance(message, Exited):
                assert seen[message.worker.token] < 3
                seen[message.worker.token] = 3

    @invariant()
    def nothing_is_forgotten(self) -> None:
        """What the warden knows and the master has not acknowledged, the core still holds."""
        if self.warden.told:
            owed = set(self.warden.exits) - self.acknowledged
            assert owed <= set(self.bench.core.unconfirmed)
            assert set(self.bench.core.running) == set(self.warden.live)

    def teardown(self) -> None:
        """All faults stop: the master is told every exit, and every one is confirmed."""
        if not self.warden.here:
            for _ in range(200):
                if self.bench.needed:
                    break
                self.time_passes(0.2)
            self.warden_comes()
        for _ in range(200):
            self.all_goes_well(1, True)
            if self.bench.core.session and not self.warden.exits:
                break
        assert not self.warden.exits
        assert not self.bench.core.unconfirmed


def explore(bench_class: type[Any], examples: int, *, derandomize: bool) -> None:
    machine = type("Machine", (AgentMachine,), {"bench_class": bench_class})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            deadline=None,
            derandomize=derandomize,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


@pytest.mark.timeout(300)  # a failing example takes long to shrink
def test_no_exit_is_lost_doubled_or_confirmed_too_early(new_bench: type[Any]) -> None:
    explore(new_bench, 250, derandomize=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_exit_is_lost_in_many_random_lives(new_bench: type[Any]) -> None:
    explore(new_bench, 10_000, derandomize=False)
