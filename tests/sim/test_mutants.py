"""Planted bugs: the simulator has to find each of them within a stated number of seeds.

A checker that never objects proves nothing; these prove that it objects. Each mutant is a bug that
somebody could write; the numbers are the invariants that it may break (0: a core's own assertion).
"""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from posthouse import codec
from posthouse.errors import StoreError
from posthouse.link import Link
from posthouse.messages import KIND_OF, Grant, ListHosts, Start
from posthouse.restart import Decision
from posthouse.states import WorkerState
from posthouse_agent import orders, warden_effects
from posthouse_agent.core import AgentCore
from posthouse_agent.domains import Domains
from posthouse_agent.effects import Give
from posthouse_agent.warden_core import WardenCore
from posthouse_master import declare, hosts, lifecycle, sessions
from posthouse_master.core import MasterCore
from posthouse_master.declare import Declarations
from posthouse_master.effects import Room, Send
from posthouse_master.eventlog import EventLog, Page
from posthouse_master.hosts import Hosts
from posthouse_master.lifecycle import Lifecycle
from posthouse_master.placement import Fleet
from posthouse_master.recovery import Recovery
from posthouse_master.registry import Registry
from posthouse_master.requests import RequestBook
from posthouse_master.rollout import Rollout
from posthouse_master.sessions import FrontDoor
from posthouse_master.starter import Starter
from posthouse_master.store.base import Life, PutEvent
from posthouse_master.store.memory import MemoryStore
from posthouse_master.turn import Turn
from posthouse_master.unclaimed import Unclaimed
from posthouse_master.view import View
from posthouse_testing.sim.master import MasterSeat
from posthouse_testing.sim.run import Failure, Simulation, simulate
from posthouse_testing.sim.world import Knobs

pytestmark = pytest.mark.timeout(300)  # seconds of a processor, on a busy machine

Plant = Callable[[pytest.MonkeyPatch], None]
MUTANTS: dict[str, tuple[Plant, frozenset[int], int, tuple[str, ...]]] = {}


def mutant(*numbers: int, within: int, only: tuple[str, ...] = ()) -> Callable[[Plant], Plant]:
    """`only`: with the kinds of faults that can show it; else with whatever a seed draws."""

    def note(plant: Plant) -> Plant:
        MUTANTS[plant.__name__] = (plant, frozenset(numbers), within, only)
        return plant

    return note


# --- the warden ---


@mutant(17, within=20)
def stop_is_acknowledged_when_the_signal_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    true = WardenCore._end_worker

    def end_worker(self: Any, worker: Any, *arguments: Any) -> Any:
        token, slot = worker.intent.token, worker.intent.slot
        told = self._tell(orders.StopUnknown(token=token, slot=slot))
        return true(self, worker, *arguments) + told

    monkeypatch.setattr(WardenCore, "_end_worker", end_worker)


@mutant(17, within=50, only=("warden killed between effects", "worker killed"))
def exit_is_reaped_before_it_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    true = WardenCore._on_end

    def on_end(self: Any, *given: Any) -> Any:
        write, reap, *rest = true(self, *given)
        return [reap, write, *rest]

    monkeypatch.setattr(WardenCore, "_on_end", on_end)


@mutant(3, 7, 17, within=50, only=("warden killed between effects", "worker killed"))
def intent_is_written_after_the_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    true = WardenCore._start

    def start(self: Any, order: Any, now: Any) -> Any:
        effects = true(self, order, now)
        if any(isinstance(effect, warden_effects.Fork) for effect in effects):
            effects.reverse()
        return effects

    monkeypatch.setattr(WardenCore, "_start", start)


@mutant(0, 24, within=100)
def next_epoch_begins_while_members_live(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Domains.ended

    def ended(self: Any, token: int, name: str) -> Any:
        domain = self._domains.get(name)
        if domain is not None and domain.cause:
            return self._begin_epoch(domain)
        return true(self, token, name)

    monkeypatch.setattr(Domains, "ended", ended)


@mutant(11, 20, 24, within=100)
def nobody_is_ended_with_its_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WardenCore, "_reset", lambda *_: [])


@mutant(24, within=100)
def members_are_not_told_of_the_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Domains, "facts", lambda *_: {})


@mutant(12, within=100)
def every_reset_restarts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    true = lifecycle.decide

    def decide(spec: Any, facts: Any, *args: Any) -> Any:
        decision = true(spec, facts, *args)
        again = facts.domain_resets > 1 and decision.kind == "restart"
        return replace(decision, delay_s=0.0) if again else decision

    monkeypatch.setattr(lifecycle, "decide", decide)


# --- the agent ---


@mutant(7, 17, within=50)
def exit_is_confirmed_before_the_master_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    true = AgentCore._ended

    def ended(self: Any, kind: str, report: Any, now: Any) -> None:
        true(self, kind, report, now)
        self._effects.append(Give(kind, orders.Confirm(tokens=[report.token])))

    monkeypatch.setattr(AgentCore, "_ended", ended)


@mutant(3, 7, 11, 20, within=100, only=("warden paused", "connection reset", "worker killed"))
def inventory_is_taken_while_a_start_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def settled(self: Any) -> bool:
        return all(seat.complete for seat in self._seats.values())

    monkeypatch.setattr(AgentCore, "_settled", property(settled))


# --- the master ---


@mutant(3, within=20)
def messages_leave_before_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Turn.effects

    def effects(self: Any) -> Any:
        return [
            Send(e.peer, e.frame, urgent=True) if isinstance(e, Send) else e for e in true(self)
        ]

    monkeypatch.setattr(Turn, "effects", effects)


@mutant(6, within=100)
def start_is_sent_again_in_a_new_session(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Hosts._missing

    def missing(self: Any, turn: Any, host: Any, registration: Any, *, rebooted: bool) -> None:
        if registration.life is not Life.STARTING or rebooted:
            true(self, turn, host, registration, rebooted=rebooted)
            return
        start = Start(
            registry=self._registry.identity,
            slot=registration.slot,
            generation=registration.generation,
            incarnation=registration.incarnation,
            token=registration.token,
            revision=registration.revision,
            spec=registration.wire,
        )
        self._door.command(turn, self._door.get(host.session), start)

    monkeypatch.setattr(Hosts, "_missing", missing)


@mutant(0, 7, 17, within=100)
def terminal_event_is_not_unique(monkeypatch: pytest.MonkeyPatch) -> None:
    """A word about an older incarnation is taken for one about the present one."""

    def believed(self: Any, host: str, word: Any) -> Any:
        registration = self._registry.get(word.slot, word.generation)
        return registration if registration is not None and registration.placed else None

    monkeypatch.setattr(Hosts, "_believed", believed)


@mutant(11, within=20)
def exit_0_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    true = lifecycle.decide

    def decide(spec: Any, facts: Any, *arguments: Any) -> Decision:
        decision = true(spec, facts, *arguments)
        return Decision("restart", 0.0, "E1", "") if decision.rule == "E1" else decision

    monkeypatch.setattr(lifecycle, "decide", decide)


@mutant(11, within=20)
def never_restart_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    true = lifecycle.decide

    def decide(spec: Any, facts: Any, *arguments: Any) -> Decision:
        decision = true(spec, facts, *arguments)
        return Decision("restart", 0.0, "M10", "") if spec.restart_time == -1 else decision

    monkeypatch.setattr(lifecycle, "decide", decide)


@mutant(11, within=100)
def terminate_is_lost_when_it_races_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Lifecycle.exited

    def exited(self: Any, turn: Any, registration: Any, ended: Any, **named: Any) -> None:
        registration.stopping = None
        true(self, turn, registration, ended, **named)

    monkeypatch.setattr(Lifecycle, "exited", exited)


@mutant(12, within=20)
def crash_is_restarted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Starter.restart_in

    def restart_in(self: Any, turn: Any, registration: Any, _delay_s: float) -> None:
        true(self, turn, registration, 0.0)

    monkeypatch.setattr(Starter, "restart_in", restart_in)


@mutant(20, within=50)
def due_restart_is_forgotten_with_the_master(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Lifecycle.resume

    def resume(self: Any, turn: Any, registration: Any) -> None:
        if registration.life is not Life.WAITING:
            true(self, turn, registration)

    monkeypatch.setattr(Lifecycle, "resume", resume)


@mutant(10, within=50)
def request_results_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RequestBook, "remember", lambda *_: None)


@mutant(10, within=100)
def request_results_are_forgotten_with_the_master(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RequestBook, "restore", lambda *_: None)


@mutant(8, within=20)
def watcher_skips_what_it_had_no_credit_for(monkeypatch: pytest.MonkeyPatch) -> None:
    true = EventLog.read

    def read(self: Any, *arguments: Any) -> Page:
        return Page(true(self, *arguments).events, self.sequence)

    monkeypatch.setattr(EventLog, "read", read)


@mutant(8, within=100)
def trimmed_log_says_that_nothing_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EventLog, "trimmed_in", lambda *_: 0)


@mutant(3, 7, 22, within=50)
def slot_keeps_its_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Registry.take_slot

    def take_slot(self: Any) -> Any:
        slot, generation = true(self)
        if generation > 1:
            generation = self._slots[slot].generation = generation - 1
        return slot, generation

    monkeypatch.setattr(Registry, "take_slot", take_slot)


@mutant(5, within=50, only=("master deposed", "worker killed"))
def epoch_is_not_checked_in_the_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    true = MemoryStore.commit

    def commit(self: Any, _epoch: int, ops: Any) -> None:
        disk = self._open()
        for op in ops:
            if isinstance(op, PutEvent):
                disk.events.pop(op.row.sequence, None)
        true(self, disk.epoch, ops)

    monkeypatch.setattr(MemoryStore, "commit", commit)


@mutant(13, within=50)
def host_is_given_more_than_its_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fleet, "free", lambda *_: 1)


@mutant(3, 7, 17, 20, within=100, only=("host rebooted", "warden killed"))
def reboot_is_not_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Hosts._missing

    def missing(self: Any, turn: Any, host: Any, registration: Any, *, rebooted: bool) -> None:
        true(self, turn, host, registration, rebooted=False)

    monkeypatch.setattr(Hosts, "_missing", missing)


@mutant(7, 17, within=50, only=("agent lies about others",))
def word_of_a_host_counts_for_the_workers_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def believed(self: Any, _host: str, word: Any) -> Any:
        registration = self._registry.get(word.slot, word.generation)
        if registration is None or not registration.placed:
            return None
        return registration if registration.token == word.token else None

    monkeypatch.setattr(Hosts, "_believed", believed)
    # The first guard: whose token it is. The liar would lose its session before it is believed.
    monkeypatch.setattr(hosts, "check_word", lambda _registry, _host, _word: None)


@mutant(7, 21, within=20)
def events_are_committed_apart_from_what_they_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    true = MasterSeat.commit

    def commit(self: Any, node: Any, ops: Any) -> None:
        true(self, node, [op for op in ops if not isinstance(op, PutEvent)])
        true(self, node, [op for op in ops if isinstance(op, PutEvent)])

    monkeypatch.setattr(MasterSeat, "commit", commit)


@mutant(21, within=50)
def status_says_started_before_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    true = View.status

    def status(self: Any, registration: Any, now: Any) -> Any:
        told = true(self, registration, now)
        if registration.life is not Life.STARTING:
            return told
        return msgspec.structs.replace(told, state=WorkerState.STARTED)

    monkeypatch.setattr(View, "status", status)


# --- declarations ---


@mutant(22, within=30)
def what_is_no_longer_declared_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Declarations, "_prunes", lambda *_: [])


@mutant(22, within=30)
def other_content_passes_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Declarations._step

    def step(self: Any, *arguments: Any) -> Any:
        found = true(self, *arguments)
        return None if found is not None and found.action == "update" else found

    monkeypatch.setattr(Declarations, "_step", step)


@mutant(23, within=30)
def rollout_takes_all_away_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Rollout._advance

    def advance(self: Any, turn: Any, source: str) -> None:
        self._busy.pop(source, None)
        for key in self._outdated.get(source, ()):
            self._registry.get(*key).max_unavailable = 1000
        true(self, turn, source)

    monkeypatch.setattr(Rollout, "_advance", advance)


@mutant(23, within=30)
def new_revision_is_believed_as_soon_as_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def time(self: Any, registration: Any, now_s: float) -> None:
        if self._proves_itself(registration):
            self._timers.set(("proof", registration.key), now_s)

    monkeypatch.setattr(Rollout, "_time", time)


@mutant(23, within=400)
def next_bad_revision_takes_another_one_away(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Lifecycle.revise

    def revise(self: Any, turn: Any, registration: Any, *arguments: Any) -> None:
        placed = registration.placed
        true(self, turn, registration, *arguments)
        if not placed:
            registration.proven_revision = registration.revision

    monkeypatch.setattr(Lifecycle, "revise", revise)


@mutant(20, 23, within=100)
def rollout_is_forgotten_with_the_master(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Registry.restore

    def restore(self: Any, *rows: Any) -> Any:
        registration = true(self, *rows)
        registration.ran_revision = registration.proven_revision = registration.revision
        return registration

    monkeypatch.setattr(Registry, "restore", restore)


@mutant(13, within=50)
def host_is_named_without_a_slot_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declare, "_moves", lambda _step: False)


# --- the disk ---


@mutant(7, 9, 17, 20, within=50, only=("disk of the master full", "worker killed"))
def reports_are_acknowledged_while_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    true = MasterCore._in_session

    def in_session(self: Any, turn: Any, session: Any, envelope: Any) -> None:
        if self.starter.room is Room.NONE and session.role == "agent" and envelope.sequence:
            session.link.receive(envelope, turn.now.boot_s)
        else:
            true(self, turn, session, envelope)

    monkeypatch.setattr(MasterCore, "_in_session", in_session)


@mutant(20, within=50, only=("disk of the master full", "worker killed"))
def room_that_is_back_is_not_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    true = MasterCore._room

    def room(self: Any, turn: Any, space: Any) -> None:
        if space.room is not Room.AMPLE:
            true(self, turn, space)

    monkeypatch.setattr(MasterCore, "_room", room)


@mutant(20, within=50, only=("disk of the master full", "worker killed"))
def starts_that_waited_for_room_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    def room(self: Any, _turn: Any, space: Any) -> None:
        self._space, self.starter.room = space, space.room

    monkeypatch.setattr(MasterCore, "_room", room)


@mutant(3, 7, 8, 9, 10, 17, 21, within=50, only=("commit failed", "worker killed"))
def error_of_the_disk_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    true = MasterSeat.commit

    def commit(self: Any, node: Any, ops: Any) -> None:
        with contextlib.suppress(StoreError):
            true(self, node, ops)

    monkeypatch.setattr(MasterSeat, "commit", commit)


# --- a registry that is older than what was seen of it ---


@mutant(6, within=100, only=("disk of the master lied", "worker killed"))
def older_term_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    true, opened = FrontDoor.judge, AgentCore._opened

    def judge(self: Any, peer: Any, hello: Any) -> Any:
        return true(self, peer, msgspec.structs.replace(hello, epoch=0, master=""))

    def _opened(self: Any, *arguments: Any) -> None:
        self._term, self._master = (0, 0), ""
        opened(self, *arguments)

    monkeypatch.setattr(FrontDoor, "judge", judge)
    monkeypatch.setattr(AgentCore, "_opened", _opened)


@mutant(1, 3, 7, 17, within=100, only=("registry restored", "worker killed", "connection reset"))
def restored_master_does_not_wait_for_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Recovery.begin

    def begin(self: Any, *arguments: Any) -> None:
        true(self, *arguments)
        self.mode, self._starter.recovering = "", False

    monkeypatch.setattr(Recovery, "begin", begin)


@mutant(25, within=100, only=("registry restored", "worker killed", "connection reset"))
def what_a_restored_registry_does_not_know_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Unclaimed, "hold", lambda *_: False)


# --- peers ---


@mutant(1, 6, 7, 17, within=100, only=("agent lies about others", "worker killed"))
def name_in_the_hello_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the key says."""
    true = sessions._who

    def who(peer: Any, hello: Any) -> Any:
        found = true(peer, hello)
        if isinstance(found, str) or found.role != "agent" or not hello.host:
            return found
        return replace(found, name=hello.host, principal=f"agent:{hello.host}")

    monkeypatch.setattr(sessions, "_who", who)


@mutant(6, within=20, only=("peer of another version",))
def every_version_is_welcome(monkeypatch: pytest.MonkeyPatch) -> None:
    true = FrontDoor.judge

    def judge(self: Any, peer: Any, hello: Any) -> Any:
        ours = msgspec.structs.replace(hello, protocol_min=0, protocol_max=0)
        return true(self, peer, ours)

    monkeypatch.setattr(FrontDoor, "judge", judge)


# --- the link ---


@mutant(0, 8, 17, 20, within=100)
def gap_in_the_sequence_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Link.receive

    def receive(self: Any, envelope: Any, now_s: float) -> Any:
        if envelope.sequence > self._received:
            self._received = envelope.sequence - 1
        return true(self, envelope, now_s)

    monkeypatch.setattr(Link, "receive", receive)


@mutant(20, within=50)
def nothing_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Link.due

    def due(self: Any, now_s: float) -> Any:
        self._progress_s = now_s
        return true(self, now_s)

    monkeypatch.setattr(Link, "due", due)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, numbers, within, only = MUTANTS[name]
    plant(monkeypatch)
    for seed in range(within):
        try:
            simulate(seed, only=only)
        except Failure as failure:
            print(f"{name}: seed {seed}: {failure}")
            assert failure.number in numbers, failure
            return
    pytest.fail(f"{name} is not caught within {within} seeds")


@pytest.mark.parametrize("planted", [True, False])
def test_a_grant_acknowledges_nothing(planted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too rare for seeds: an exit and a RENEW in one batch whose commit fails, after the GRANT,
    which does not wait for commits, has left."""
    true = Link.loose

    def loose(self: Any, message: Any) -> bytes:
        if not isinstance(message, Grant):
            return true(self, message)
        body = codec.encode_body(message)
        return codec.frame(KIND_OF[Grant], self.session, self.epoch, 0, self._received, body)

    if planted:
        monkeypatch.setattr(Link, "loose", loose)
    simulation = Simulation(1, knobs=Knobs.quiet(length_s=12.0))
    (client,), (machine,), seat = simulation.clients, simulation.machines, simulation.seat

    def strike() -> None:
        assert seat.node is not None
        seat.node.pause(1.5)
        seat.store_fails = "before"
        machine.live[0].kill(9)

    simulation.world.at(2.0, lambda: client.register(name="w", restart_time=1.0))
    simulation.world.at(5.0, strike)
    if not planted:
        simulation.run()
        return
    with pytest.raises(Failure) as caught:
        simulation.run()
    assert caught.value.number == 17


@pytest.mark.parametrize("planted", [True, False])
def test_an_outbox_has_an_end(planted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too rare for seeds: a client that asks and asks, and hears nothing for a while."""
    if planted:
        monkeypatch.setattr(Link, "room", property(lambda _self: 1024))
    simulation = Simulation(1, knobs=Knobs.quiet(length_s=12.0))
    simulation._squeeze = {"outbox_messages_max": 160}
    (client,), world = simulation.clients, simulation.world

    def hole(*, down: bool) -> None:
        simulation.network.swallow("c1", up=False, down=down)

    def ask() -> None:
        client.ask(ListHosts(request=world.entropy(16)))

    world.at(3.0, lambda: hole(down=True))
    for number in range(400):
        world.at(3.1 + number / 1000, ask)
    world.at(5.0, lambda: hole(down=False))
    if not planted:
        simulation.run()
        assert all(question.answer is not None for question in client.questions.values())
        return
    with pytest.raises(Failure) as caught:
        simulation.run()
    assert caught.value.number == 19
