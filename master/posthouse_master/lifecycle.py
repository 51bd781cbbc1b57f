"""CORE: what happens to registrations: registered, revised, stopped, ended, forgotten.

Owns: the meaning of every step, its rows in the log, its commands to hosts. Must not know: frames,
who may ask for what, how a host's word arrives.

Invariant: an incarnation has exactly one terminal row (EXITED or START_FAILED), after its STARTING
row. The slot is free in the transaction that tells of the end (D15).
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from posthouse import limits
from posthouse.messages import Exit, Running, Stop
from posthouse.pacing import Budget, next_streak
from posthouse.records import Event, ExitFacts
from posthouse.restart import Decision, Repeat, decide, decide_failed_start, takes_back
from posthouse.signals import SIGNALS
from posthouse.spec import BackgroundWorker
from posthouse.states import EventKind, Phase, StopReason
from posthouse_master.chronicle import Chronicle, pack_facts
from posthouse_master.placement import KEPT, Fleet
from posthouse_master.registry import Registration, Registry, Step, domain_of
from posthouse_master.sessions import FrontDoor, Session, TimerKey
from posthouse_master.starter import Starter
from posthouse_master.store.base import (
    DropRegistration,
    Life,
    PutRegistration,
    PutSlot,
)
from posthouse_master.timers import Timers
from posthouse_master.turn import Turn

__all__ = ["Lifecycle"]

_START_ROOM: Final = 128  # messages a link keeps free for stops and signals while it is given work
_OPERATORS: Final = frozenset(
    (StopReason.TERMINATE, StopReason.HOLD, StopReason.RESTART, StopReason.APPLY, StopReason.DRAIN)
)
_OF_PROCESS: Final = ("pid", "pid_start", "started_unix_s", "code", "warden")
_OF_STOP: Final = ("stopping", "stop_by", "stop_grace_s")
_MASTER: Final = "the master"
_WARDEN_GONE: Final = ("warden_died", "host_rebooted")  # causes of ends that it told after that
_STRONGER_THAN_HOLD: Final = (StopReason.TERMINATE, StopReason.HOLD)
_STRONGER_THAN_SHUTDOWN: Final = _STRONGER_THAN_HOLD  # what they ask for outlives the shutdown


def _choked(session: Session) -> bool:
    return session.link.room <= _START_ROOM or bool(session.backlog)


def _signal(name: str) -> int:
    return SIGNALS[name]


def _ended_by(stop: StopReason | None, facts: ExitFacts | None) -> str:
    """A word for what ended an incarnation, out of a small set: it labels a metric."""
    if stop is not None:
        return str(stop)
    if facts is None:
        return "start_failed"
    if facts.oom:
        return "oom"
    if facts.signal is not None:
        return "signal"
    if facts.code is None:
        return facts.cause
    return f"exit_{facts.code}" if facts.code < 2 else "exit_other"


def _attributed(facts: ExitFacts, registration: Registration, stop: StopReason | None) -> ExitFacts:
    """With who asked for it, which is not the host's to say. The signal of an operator is no
    request to end: it decides nothing, and is only told."""
    if stop is not None:
        return msgspec.structs.replace(facts, stop=stop, by=registration.stop_by)
    sent = registration.signal == facts.signal
    return msgspec.structs.replace(facts, stop=None, by=registration.signal_by if sent else "")


class _Ways(NamedTuple):
    """The steps by which an incarnation ends, by what becomes of its registration."""

    again: Step
    held: Step
    final: Step


_ENDED: Final = _Ways(Step.EXIT, Step.EXIT_HELD, Step.EXIT_FOR_GOOD)
_NEVER_RAN: Final = _Ways(Step.FAIL, Step.FAIL_HELD, Step.FAIL_FOR_GOOD)


class Lifecycle:
    """All steps of all registrations but the START; with Starter the only caller of
    Registry.move."""

    def __init__(
        self,
        registry: Registry,
        fleet: Fleet,
        door: FrontDoor,
        starter: Starter,
        chronicle: Chronicle,
        timers: Timers[TimerKey],
        draw: Callable[[], float],
    ) -> None:
        self._registry = registry
        self._fleet = fleet
        self._door = door
        self._starter = starter
        self._chronicle = chronicle
        self._timers = timers
        self._draw = draw  # from 0 up to 1, for jitter
        starter.take_back = self.take_back
        # Signal and grace of a shutdown, written by ShutdownWatch; None: the worker's own.
        self.shutdown_manner: tuple[str | None, float | None] = (None, None)
        # Ends of incarnations in this term, by what ended them.
        self.exits: Counter[str] = Counter()

    # --- registering and starting ---

    def register(
        self,
        turn: Turn,
        spec: BackgroundWorker,
        packed: bytes,
        by: str,
        source: str,
        *,
        group: str = "",
        max_unavailable: int = 1,
        registrant: str = "",
    ) -> tuple[Registration, Event]:
        """M1: take a slot, write it down, and start it if a host takes it. Raises NoFreeSlot."""
        slot, generation = self._registry.take_slot()
        registration = Registration(
            slot=slot,
            generation=generation,
            revision=1,
            name=spec.name,
            packed=packed,
            pinned=spec.host or "",
            registered_unix_s=turn.now.unix_s,
            by=by,
            source=source,
            order=self._chronicle.next_sequence,
            group=group,
            max_unavailable=max_unavailable,
            registrant=registrant,
            proven_revision=1,
        )
        turn.persist(PutSlot(slot, generation))
        turn.persist(PutRegistration(registration.spec_row()))
        self._registry.add(registration, spec)
        event = self._chronicle.record(turn, EventKind.REGISTERED, registration, by=by)
        turn.note("worker.registered", worker=spec.name, handle=f"{slot}.{generation}", by=by)
        self._starter.offer(turn, registration)
        return registration, event

    def claim(
        self,
        turn: Turn,
        spec: BackgroundWorker,
        packed: bytes,
        running: Running,
        host: str,
        by: str,
        *,
        source: str = "",
        group: str = "",
    ) -> None:
        """Make a process that a restored registry does not know a registration again, under its
        old handle. Raises NoFreeSlot."""
        self._registry.take_back(running.slot, running.generation)
        revision = max(running.revision, 1)
        registration = Registration(
            slot=running.slot,
            generation=running.generation,
            revision=revision,
            name=spec.name,
            packed=packed,
            pinned=spec.host or "",
            registered_unix_s=turn.now.unix_s,
            by=by,
            source=source,
            order=self._chronicle.next_sequence,
            group=group,
            proven_revision=revision,
        )
        turn.persist(PutSlot(running.slot, self._registry.given(running.slot)))
        turn.persist(PutRegistration(registration.spec_row()))
        self._registry.add(registration, spec)
        reason = f"claimed by {by}"
        self._chronicle.record(turn, EventKind.REGISTERED, registration, by=by, reason=reason)
        turn.note("worker.claimed", worker=spec.name, host=host, token=running.token, by=by)
        self.adopt(turn, registration, host, running)

    def adopt(
        self, turn: Turn, registration: Registration, host: str, word: Running | Exit
    ) -> None:
        """The host has, or had, a newer process of it than a restored registry knows: it is taken
        over as it is. What is older has ended in the history that was lost. That it be terminated
        was asked since: nothing is started after that, so the lost history had no such wish."""
        terminated = registration.stopping is StopReason.TERMINATE
        wish = {name: getattr(registration, name) for name in _OF_STOP} if terminated else {}
        if registration.placed:
            lost = {"reason": "its end is part of the history that the restore lost"}
            ran = registration.life is Life.RUNNING
            kind = EventKind.EXITED if ran else EventKind.START_FAILED
            self._chronicle.record(turn, kind, registration, **lost)
        self._starter.withdraw(registration)
        self._timers.cancel(("start", registration.key))
        known: dict[str, Any]
        reason = f"running on {host}, as it was before the restore"
        revision = registration.revision
        if isinstance(word, Running):
            known = {name: getattr(word, name) for name in _OF_PROCESS}
            revision = word.revision or revision
            if revision > registration.revision:  # revised since the backup: nobody waits for it
                known["proven_revision"] = max(revision, registration.proven_revision)
                reason += f", with revision {revision}, which is lost"
                reason += "; a restart or `posthouse apply` replaces it"
        else:
            facts = word.facts
            known = {"pid": facts.pid, "pid_start": None, "started_unix_s": facts.started_unix_s}
        self._registry.move(
            registration,
            Step.ADOPT,
            host=host,
            incarnation=word.incarnation,
            token=word.token,
            domain=domain_of(registration.spec),
            ready=False,
            stuck="",
            stopping=None,
            stop_by="",
            stop_grace_s=None,
            signal=0,
            signal_by="",
            restart_delay_s=None,
            reason=reason,
            rule="",
            starts=max(registration.starts + 1, word.incarnation),
            ran_revision=revision,
            reserved=b"",
            **known,
        )
        self._chronicle.record(turn, EventKind.STARTING, registration, reason=registration.reason)
        self._chronicle.record(turn, EventKind.STARTED, registration, pid=registration.pid)
        turn.note("worker.adopted", **self._fields(registration), pid=registration.pid)
        if word.ready:
            self.ready(turn, registration)
        if terminated:  # STOP follows, once the host is settled
            self._registry.move(registration, Step.STOP, **wish)
            self._asked(turn, registration)

    def resume(self, turn: Turn, registration: Registration) -> None:
        """After the master's own restart: a delay runs again in full, because nobody knows how
        long it has been; a shutdown is over."""
        if registration.stopping is StopReason.SHUTDOWN:
            registration.stopping, registration.stop_by = None, ""
            registration.stop_grace_s = None
        if registration.life is Life.WAITING:
            self._starter.restart_in(turn, registration, registration.restart_delay_s or 0.0)
        elif registration.life is Life.SUBMITTED:
            self._starter.offer(turn, registration)

    # --- what hosts report ---

    def started(self, turn: Turn, registration: Registration, running: Running) -> None:
        """The process of the drawn token exists (M5, M12). One that its host has started by itself
        may have the content of before the last revision."""
        if 0 < running.revision < registration.ran_revision:
            registration.ran_revision = running.revision
        self._started(
            turn,
            registration,
            running.pid,
            running.pid_start,
            running.started_unix_s,
            running.code,
        )
        if running.ready:
            self.ready(turn, registration)

    def _started(
        self,
        turn: Turn,
        registration: Registration,
        pid: int | None,
        pid_start: int | None,
        started_unix_s: float | None,
        code: str = "",
    ) -> None:
        self._timers.cancel(("start", registration.key))
        self._registry.move(
            registration,
            Step.STARTED,
            pid=pid,
            pid_start=pid_start,
            started_unix_s=started_unix_s,
            code=code,
            starts=registration.starts + 1,
            reason=f"running on {registration.host}",
        )
        self._chronicle.record(turn, EventKind.STARTED, registration, pid=pid)
        turn.note("worker.started", **self._fields(registration), pid=pid)

    def ready(self, turn: Turn, registration: Registration) -> None:
        if registration.life is Life.RUNNING and not registration.ready:
            proven = max(registration.proven_revision, registration.ran_revision)
            self._registry.move(registration, Step.READY, ready=True, proven_revision=proven)
            self._chronicle.record(turn, EventKind.READY, registration, pid=registration.pid)

    def stuck(self, turn: Turn, registration: Registration, state: str) -> None:
        """KILL does not end its process, its host says, so it keeps its slot; or "": it obeys."""
        if state and not registration.stuck:
            turn.note("worker.unkillable", **self._fields(registration), state=state)
        registration.stuck = state

    def exited(
        self, turn: Turn, registration: Registration, ended: Exit, *, gone: bool = False
    ) -> None:
        """The process is gone and reaped; the word of the host is judged by restart.decide. `gone`:
        with whatever the host might have started after it."""
        facts = ended.facts
        if registration.life is Life.STARTING:  # its STARTED was never heard
            self._started(turn, registration, facts.pid, None, facts.started_unix_s)
        if ended.ready:
            self.ready(turn, registration)
        # What was reserved for its host: a warden that did not live to see an end has no plans.
        gone = gone or (facts.cause in _WARDEN_GONE and not ended.went_on)
        back = gone or takes_back(ended.stop)
        if registration.reserved and not back and ended.went_on:
            self._onward(turn, registration, facts, "its host went on by itself")
            return
        # What an operator asked for is durable and stands whatever the host heard of it. Any other
        # stop counts only if the host had begun it: else the worker ended by itself before.
        stop = registration.stopping if registration.stopping in _OPERATORS else ended.stop
        facts = _attributed(facts, registration, stop)
        streak = next_streak(registration.streak, facts, registration.restart_delay_s or 0.0)
        decision = decide(
            registration.spec,
            facts,
            stop,
            registration.stop_by if stop else "",
            Repeat(streak - 1, self._draw()),
        )
        if stop is StopReason.SHUTDOWN and self._starter.phase is not Phase.STOPPING:
            # The host's own end, or a shutdown that is over: nothing else would start it again.
            reason = f"stopped with its warden ({facts.describe()})"
            decision = Decision("restart", 0.0, "N6", reason)
        asked = stop in _OPERATORS and decision.kind != "restart"
        if registration.reserved and not back and asked and self._host_goes_on(registration, ended):
            # It ended before its STOP came, so its host may have gone on since.
            self._onward(turn, registration, facts, "its host is asked whether it went on")
            self.send_stop(turn, registration)
            return
        changes: dict[str, Any] = {"last_exit": pack_facts(facts)}
        if back or decision.kind != "restart":
            changes["reserved"] = b""
        if stop is None:
            changes["failures"] = registration.failures + (decision.kind != "unregister")
            changes["streak"] = streak
        self._settle(turn, registration, decision, stop, facts, changes)

    def lost(self, turn: Turn, registration: Registration, cause: str) -> None:
        """Its process is gone for sure, and nobody saw how."""
        ended = Exit(
            registry=self._registry.identity,
            slot=registration.slot,
            generation=registration.generation,
            incarnation=registration.incarnation,
            token=registration.token,
            facts=ExitFacts(
                cause=cause, pid=registration.pid, started_unix_s=registration.started_unix_s
            ),
            stop=registration.stopping,
        )
        self.exited(turn, registration, ended, gone=True)

    def start_failed(
        self, turn: Turn, registration: Registration, why: str, code: str, *, retry: bool
    ) -> None:
        """The drawn incarnation never ran (M6, M7)."""
        turn.note("worker.start_failed", **self._fields(registration), code=code, reason=why)
        if code == "no_lease":
            # Its warden was stopped for so long that it has renewals to read, the newest one last.
            self.never_reached(turn, registration, why, limits.renew_s)
            return
        if code == "stale_token" and registration.warden == KEPT:
            # Its host has used this one up while it was alone; the next is above all of those.
            self.never_reached(turn, registration, why)
            return
        if code == "stopping":
            # Its warden is ending; the agent's next session is with another one.
            self.never_reached(turn, registration, why, barred=self._starter.bar(registration))
            return
        decision = decide_failed_start(
            registration.spec,
            why,
            registration.stopping,
            registration.stop_by,
            Repeat(registration.streak, self._draw()),
        )
        changes: dict[str, Any] = {
            "failures": registration.failures + 1,
            "streak": registration.streak + 1,
            "reserved": b"",
        }
        if not retry:
            changes["barred"] = self._starter.bar(registration)
        self._settle(turn, registration, decision, registration.stopping, None, changes)

    def never_reached(
        self,
        turn: Turn,
        registration: Registration,
        why: str,
        delay_s: float = 0.0,
        **changes: Any,
    ) -> None:
        """Its START did not get to the host and never will: nobody's failure, so no delay of its
        own. Nor does anything that its host might have started after it."""
        changes["reserved"] = b""
        if registration.stopping is None:
            decision = Decision("restart", delay_s, "M5", why)
        else:
            decision = decide_failed_start(
                registration.spec, why, registration.stopping, registration.stop_by
            )
            if decision.kind == "unregister" and registration.rule == "E-ALONE":
                # It waited for its restart, and its host has not gone on by itself.
                told = f"terminated by {registration.stop_by} while it had no process"
                decision = Decision("unregister", 0.0, "M13", told)
        self._settle(turn, registration, decision, registration.stopping, None, changes)

    def prove(self, registration: Registration) -> None:
        """Its newest process has run for long enough: no rollout waits for its ready()."""
        self._registry.move(registration, Step.PROVE, proven_revision=registration.ran_revision)

    def _settle(
        self,
        turn: Turn,
        registration: Registration,
        decision: Decision,
        stop: StopReason | None,
        facts: ExitFacts | None,
        changes: dict[str, Any],
        *,
        onward: bool = False,
    ) -> None:
        """The incarnation has ended: its terminal row, then what becomes of the registration.
        `onward`: its host starts the next one, or has done so."""
        if decision.kind == "restart" and stop is None and not onward:
            healthy = changes.get("streak") == 1
            decision = self._paced(turn, registration, decision, healthy=healthy)
        self._timers.cancel(("start", registration.key))
        ran = registration.life is Life.RUNNING
        host = registration.host  # it may be started on another one before this is over
        final = decision.kind == "unregister"
        pid = registration.pid
        again = decision.kind == "restart"
        values: dict[str, Any] = {"reason": decision.reason, "rule": decision.rule, "final": final}
        if again:
            values["restart_in_s"] = decision.delay_s
            values["restart_at_unix_s"] = turn.now.unix_s + decision.delay_s
        if stop is not None:
            values |= {"stop": stop, "by": registration.stop_by}
        if ran:
            values |= {"exit": facts, "pid": pid}
        held = stop is StopReason.HOLD and decision.kind == "keep"
        ways = _ENDED if ran else _NEVER_RAN
        step = ways.final if final else ways.held if held else ways.again
        by = registration.stop_by
        self.exits[_ended_by(stop, facts if ran else None)] += 1
        self._registry.move(
            registration,
            step,
            pid=None,
            pid_start=None,
            ready=False,
            stuck="",
            stopping=None,
            stop_by=by if final and stop is StopReason.TERMINATE else "",  # whose word ended it
            stop_grace_s=None,
            signal=0,
            signal_by="",
            reason=decision.reason,
            rule=decision.rule,
            restart_delay_s=decision.delay_s if again else None,
            **changes,
        )
        self._chronicle.record(
            turn, EventKind.EXITED if ran else EventKind.START_FAILED, registration, **values
        )
        if ran:
            fields = self._fields(registration)
            turn.note("worker.exited", **fields, pid=pid, reason=decision.reason, final=final)
        if final:
            self._unregistered(turn, registration, by)
        elif held:
            self._chronicle.record(
                turn, EventKind.HELD, registration, by=by, reason=decision.reason
            )
        elif again and not onward:
            self._starter.restart_in(turn, registration, decision.delay_s)
        if not onward:
            self._starter.freed(turn, host)
        if final and registration.pinned != host:  # revised while it ran: that slot was its, too
            self._starter.freed(turn, registration.pinned)

    # --- what its host does by itself ---

    def _host_goes_on(self, registration: Registration, ended: Exit) -> bool:
        """What the host makes of this end, which has heard of no operator."""
        return decide(registration.spec, ended.facts, ended.stop).kind == "restart"

    def reach(self, turn: Turn, registration: Registration, token: int) -> None:
        """Its host has gone on by itself, and speaks of the incarnation of this token: all of those
        before it are over."""
        while registration.token != token:
            if registration.loose:
                self._starter.presume(turn, registration)
            elif registration.life is Life.RUNNING:
                unseen = ExitFacts(
                    cause="warden_died",
                    pid=registration.pid,
                    started_unix_s=registration.started_unix_s,
                )
                self._onward(turn, registration, unseen, "its host went on by itself")
            else:
                self._onward(turn, registration, None, "its host could not start it by itself")

    def _onward(
        self, turn: Turn, registration: Registration, facts: ExitFacts | None, told: str
    ) -> None:
        """This incarnation is over, and its host starts the next one, if any. What somebody asked
        for meanwhile is asked of that one: its host has not heard of it."""
        wish = {name: getattr(registration, name) for name in _OF_STOP}
        reason = told if facts is None else f"{facts.describe()}; {told}"
        changes: dict[str, Any] = {
            "failures": registration.failures + 1,
            "streak": next_streak(registration.streak, facts, registration.restart_delay_s or 0.0),
        }
        if facts is not None:
            facts = _attributed(facts, registration, None)
            changes["last_exit"] = pack_facts(facts)
        decision = Decision("restart", 0.0, "E-ALONE", reason)
        self._settle(turn, registration, decision, None, facts, changes, onward=True)
        self._starter.presume(turn, registration, **wish)
        if registration.stopping is not None:
            self._asked(turn, registration)

    def _asked(self, turn: Turn, registration: Registration) -> None:
        """The row of a stop that was asked for before, and stands for its newest process, too."""
        self._chronicle.record(
            turn,
            EventKind.STOP_REQUESTED,
            registration,
            stop=registration.stopping,
            by=registration.stop_by,
            rule="M8",
        )

    def take_back(
        self, turn: Turn, registration: Registration, reason: StopReason, by: str = _MASTER
    ) -> None:
        """Its host may start it by itself, and shall not any more: once it has said that nothing
        of it runs, or has ended what does, the registration is as `reason` says."""
        self._starter.presume(turn, registration)
        self.stop(turn, registration, reason, by)

    def given_back(self, turn: Turn, registration: Registration) -> None:
        """Its host is gone for sure, and starts nothing any more."""
        registration.reserved = b""
        self._registry.changed[registration.key] = registration
        if registration.key in self._starter.queue:
            self._starter.offer(turn, registration)

    def _paced(
        self, turn: Turn, registration: Registration, decision: Decision, *, healthy: bool
    ) -> Decision:
        """Its budget may put the restart off, and then people are told that it is flapping."""
        now_s = turn.now.boot_s
        delay_s = self._starter.pace.delay_s(registration, decision.delay_s, now_s, healthy=healthy)
        if delay_s <= decision.delay_s:
            return decision
        why = f"flapping: {Budget.of(registration.spec)}"
        return Decision("restart", delay_s, "T3", f"{decision.reason}; {why}")

    # --- other content ---

    def revise(
        self, turn: Turn, registration: Registration, spec: BackgroundWorker, packed: bytes, by: str
    ) -> None:
        """Let it run with this content from its next start on. One without a process that waits
        for nothing but time is started at once: the delay was for what it was."""
        on_the_way = registration.proven_revision < registration.revision
        # What has no process is none that this takes away; a rollout before may have done so.
        waits = registration.placed or on_the_way
        left = registration.pinned
        self._registry.revise(registration, spec, packed)
        self._registry.move(
            registration,
            Step.REVISE,
            barred=frozenset(),
            streak=0,
            restart_delay_s=None,
            awaits_ready=registration.ready or (on_the_way and registration.awaits_ready),
            proven_revision=registration.proven_revision if waits else registration.revision,
        )
        turn.persist(PutRegistration(registration.spec_row()))
        self._chronicle.record(turn, EventKind.REVISED, registration, by=by)
        turn.note("worker.revised", **self._fields(registration), revision=registration.revision)
        if registration.life in (Life.SUBMITTED, Life.WAITING):
            self._timers.cancel(("restart", registration.key))
            self._starter.offer(turn, registration)
        if registration.pinned != left:
            self._starter.freed(turn, left)  # it held a slot of the host that it named

    def pace(self, turn: Turn, registration: Registration, max_unavailable: int) -> None:
        """The rollout that it waits for is to go on at this pace."""
        if registration.max_unavailable != max_unavailable:
            registration.max_unavailable = max_unavailable
            turn.persist(PutRegistration(registration.spec_row()))
            self._registry.changed[registration.key] = registration

    # --- stopping ---

    def signalled(self, registration: Registration, number: int, by: str) -> None:
        """Somebody has its process sent a signal: told with its end, if that is what ended it."""
        registration.signal, registration.signal_by = number, by
        self._registry.changed[registration.key] = registration

    def terminate(self, turn: Turn, registration: Registration, by: str) -> bool:
        """Unregister it, once its process, if any, is gone. False if there is nothing to do."""
        if not registration.live or registration.stopping is StopReason.TERMINATE:
            return False
        if registration.placed:
            self.stop(turn, registration, StopReason.TERMINATE, by)
            return True
        if registration.loose:
            self.take_back(turn, registration, StopReason.TERMINATE, by)
            return True
        rule = "M4" if registration.life is Life.SUBMITTED else "M13"
        reason = f"terminated by {by} while it had no process"
        self._starter.withdraw(registration)
        self._registry.move(registration, Step.CANCEL, reason=reason, rule=rule, stop_by=by)
        self._unregistered(turn, registration, by)
        self._starter.freed(turn, registration.pinned)
        return True

    def hold(self, turn: Turn, registration: Registration, by: str) -> bool:
        """Keep it from running until it is released. False if there is nothing to do."""
        if registration.life is Life.HELD or registration.stopping in _STRONGER_THAN_HOLD:
            return False
        if registration.placed:
            self.stop(turn, registration, StopReason.HOLD, by)
            return True
        if registration.loose:
            self.take_back(turn, registration, StopReason.HOLD, by)
            return True
        self._starter.withdraw(registration)
        reason = f"held by {by}"
        self._registry.move(registration, Step.HOLD, reason=reason, restart_delay_s=None)
        self._chronicle.record(
            turn, EventKind.HELD, registration, by=by, reason=registration.reason
        )
        return True

    def release(self, turn: Turn, registration: Registration, by: str) -> bool:
        """End a hold, also one whose process has yet to end. False if it is not held."""
        if registration.stopping is StopReason.HOLD:
            # STOP is on its way and cannot be called back: it comes to a restart.
            self._registry.move(registration, Step.STOP, stopping=StopReason.RESTART, stop_by=by)
            self._chronicle.record(turn, EventKind.RELEASED, registration, by=by)
            return True
        if registration.life is not Life.HELD:
            return False
        self._registry.move(
            registration, Step.RELEASE, reason=f"released by {by}", restart_delay_s=None
        )
        self._chronicle.record(turn, EventKind.RELEASED, registration, by=by)
        self._starter.offer(turn, registration)
        return True

    def restart(self, turn: Turn, registration: Registration, by: str) -> bool:
        """Start it anew, at once when its end is confirmed. False if there is nothing to do."""
        if registration.placed:
            if registration.stopping in (StopReason.TERMINATE, StopReason.RESTART):
                return False
            self.stop(turn, registration, StopReason.RESTART, by)
            return True
        if self._timers.due_of(("restart", registration.key)) is None:
            return False
        self._timers.cancel(("restart", registration.key))
        registration.restart_delay_s = None  # nor does the next master wait
        self._registry.changed[registration.key] = registration
        self._chronicle.record(turn, EventKind.RESTART_REQUESTED, registration, by=by)
        self._starter.offer(turn, registration)
        return True

    def stop(
        self,
        turn: Turn,
        registration: Registration,
        reason: StopReason,
        by: str,
        *,
        signal: str | None = None,
        grace_s: float | None = None,
    ) -> None:
        """Have its process ended (M8). The word is durable before STOP leaves, with its grace; a
        host that is away hears it with its next inventory."""
        first = registration.stopping is None
        stronger = registration.stopping is StopReason.TERMINATE or (
            reason is StopReason.SHUTDOWN and registration.stopping in _STRONGER_THAN_SHUTDOWN
        )
        if not stronger:
            self._registry.move(registration, Step.STOP, stopping=reason, stop_by=by)
            self._chronicle.record(
                turn, EventKind.STOP_REQUESTED, registration, stop=reason, by=by, rule="M8"
            )
        hasten = grace_s is not None
        if grace_s is not None and reason is not StopReason.SHUTDOWN:
            self._bound(registration, grace_s)
            grace_s = None
        if first or signal is not None or hasten:
            self.send_stop(turn, registration, signal=signal, grace_s=grace_s)

    def hasten(self, turn: Turn, registration: Registration, grace_s: float) -> None:
        """Bring nearer the KILL of a process whose end is asked for already, whoever asked."""
        if self._bound(registration, grace_s):
            self.send_stop(turn, registration)

    def _bound(self, registration: Registration, grace_s: float) -> bool:
        """Keep the grace with the stop, as the next master must know it. Whether it is shorter."""
        bound_s = registration.stop_grace_s
        before_s = registration.spec.stop_grace_s if bound_s is None else bound_s
        shorter = max(0.0, grace_s) < before_s
        if shorter:
            self._registry.move(registration, Step.STOP, stop_grace_s=max(0.0, grace_s))
        return shorter

    def send_stop(
        self,
        turn: Turn,
        registration: Registration,
        *,
        signal: str | None = None,
        grace_s: float | None = None,
    ) -> None:
        """STOP for the incarnation that is believed to have a process, if its host is there."""
        assert registration.stopping is not None
        host = self._fleet.hosts.get(registration.host)
        session = self._door.get(host.session) if host is not None and host.settled else None
        if session is None:
            return
        spec = registration.spec
        bounds = [grace_s, registration.stop_grace_s]
        if self._starter.phase is Phase.STOPPING:
            # Also who is stopped for another reason, and whose host was away when it began.
            manner, bound_s = self.shutdown_manner
            signal = manner or signal
            bounds.append(bound_s)
        given = [bound for bound in bounds if bound is not None]
        self._door.command(
            turn,
            session,
            Stop(
                registry=self._registry.identity,
                slot=registration.slot,
                generation=registration.generation,
                token=registration.token,
                reason=registration.stopping,
                signal=_signal(signal or spec.stop_signal),
                grace_s=float(min(given, default=spec.stop_grace_s)),
            ),
        )

    # --- the end ---

    def _unregistered(self, turn: Turn, registration: Registration, by: str) -> None:
        self._chronicle.record(
            turn,
            EventKind.UNREGISTERED,
            registration,
            final=True,
            reason=registration.reason,
            rule=registration.rule,
            by=by,
        )
        self._starter.pace.forget(registration.key)
        turn.note("worker.unregistered", **self._fields(registration), reason=registration.reason)
        while (oldest := self._registry.oldest_retired(limits.retired_max)) is not None:
            self._registry.forget(oldest)
            turn.persist(DropRegistration(oldest.slot, oldest.generation))
            self._chronicle.forget(turn, oldest)

    def _fields(self, registration: Registration) -> dict[str, object]:
        return {
            "worker": registration.name,
            "handle": f"{registration.slot}.{registration.generation}",
            "host": registration.host,
            "incarnation": registration.incarnation,
            "token": registration.token,
        }
