"""CORE: registrations and hosts as people and programs see them.

Owns: the translation of what is believed into Status, WorkerInfo, HostInfo. Must not know: who
asks, how it travels.

Invariant: a status never claims more than is known: STARTED only between the host's word that a
process exists and its word that it has ended; beside it stands whether the host is heard now.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from posthouse.ids import HandleId, Instant
from posthouse.records import ExitFacts, HandleRef, HostInfo, Status, UnclaimedWorker, WorkerInfo
from posthouse.spec import BackgroundWorker
from posthouse.states import Phase, StopReason, WorkerState
from posthouse_master.chronicle import unpack_facts
from posthouse_master.effects import Room
from posthouse_master.eventlog import EventLog
from posthouse_master.leases import ends_with_lease
from posthouse_master.phases import may_start
from posthouse_master.placement import Fleet, Host
from posthouse_master.registry import Registration, Registry
from posthouse_master.rollout import Rollout
from posthouse_master.sessions import FrontDoor, TimerKey
from posthouse_master.starter import Starter, wants_now
from posthouse_master.static import StaticRegistrations
from posthouse_master.store.base import Life
from posthouse_master.timers import Timers
from posthouse_master.unclaimed import Process, Unclaimed

__all__ = ["PRIVATE_FIELDS", "View"]

PRIVATE_FIELDS: Final = ("main_arg", "extra", "env")
"""May hold secrets: shown only to who may register, and in no list."""


class View:
    """Read-only."""

    def __init__(
        self,
        registry: Registry,
        log: EventLog,
        fleet: Fleet,
        starter: Starter,
        rollout: Rollout,
        static: StaticRegistrations,
        door: FrontDoor,
        unclaimed: Unclaimed,
        timers: Timers[TimerKey],
        dead_for_sure_s: Callable[[Host], float | None],
    ) -> None:
        self._unclaimed = unclaimed
        self._dead_for_sure_s = dead_for_sure_s
        self._registry = registry
        self._log = log
        self._fleet = fleet
        self._starter = starter
        self._rollout = rollout
        self._static = static
        self._door = door
        self._timers = timers

    def status(self, registration: Registration, now: Instant) -> Status:
        """What a handle sees (H1-H5), and why."""
        life = registration.life
        state = _state(registration)
        host = self._fleet.hosts.get(registration.host)
        in_s = self._restart_in(registration, now)
        placed = registration.placed
        fenced = ends_with_lease(registration)  # no time ends the others
        return Status(
            state=state,
            handle=HandleRef(
                registry=self._registry.identity,
                slot=registration.slot,
                generation=registration.generation,
            ),
            name=registration.name,
            host=registration.host,
            pid=registration.pid if state is WorkerState.STARTED else None,
            incarnation=registration.incarnation,
            token=registration.token or None,
            revision=registration.revision,
            running_revision=registration.ran_revision,
            runtime=registration.spec.runtime,
            code=registration.code,
            ready=registration.ready,
            reason=self._reason(registration, in_s),
            final=life is Life.RETIRED,
            flapping=self._starter.pace.flapping(registration, now.boot_s),
            restart_in_s=in_s,
            restart_at_unix_s=None if in_s is None else now.unix_s + in_s,
            started_unix_s=registration.started_unix_s,
            stopping=registration.stopping,
            reachable=host.reachable if placed and host is not None else not placed,
            last_heard_s=self._heard(host, now) if placed and host is not None else None,
            dead_for_sure_in_s=self._dead_in(host, now) if placed and host and fenced else None,
            last_exit=unpack_facts(registration.last_exit) if registration.last_exit else None,
            timeline=self._log.timeline,
            sequence=self._log.sequence,
        )

    def stale(self, handle: HandleId) -> Status:
        """D11: a handle that reaches no registration any more answers STOPPED."""
        foreign = handle.registry != self._registry.identity
        return Status(
            state=WorkerState.STOPPED,
            handle=HandleRef(
                registry=handle.registry, slot=handle.slot, generation=handle.generation
            ),
            reason="a handle of another registry" if foreign else "no longer registered",
            final=True,
            timeline=self._log.timeline,
            sequence=self._log.sequence,
        )

    def info(self, registration: Registration, now: Instant) -> WorkerInfo:
        """A line of a list: without what may be secret or long."""
        status = self.status(registration, now)
        if status.last_exit is not None:
            status = msgspec.structs.replace(status, last_exit=_short(status.last_exit))
        return WorkerInfo(
            status=status,
            spec=public(registration.wire),
            registered_unix_s=registration.registered_unix_s,
            by=registration.by,
            source=registration.source,
            group=registration.group,
            retired=not registration.live,
            starts=registration.starts,
            failures=registration.failures,
        )

    @property
    def phase(self) -> tuple[Phase, str]:
        """Where the cluster is, and why."""
        return self._starter.phase, self._starter.phase_detail

    @property
    def reports(self) -> list[str]:
        """What of the configuration was skipped."""
        return self._static.reports

    def host(self, host: Host, now: Instant) -> HostInfo:
        placed = self._registry.placed_on(host.name)
        return HostInfo(
            name=host.name,
            reachable=host.reachable,
            boot_id=host.boot_id,
            machine_id=host.machine_id,
            last_heard_s=self._heard(host, now),
            labels=list(host.offer.labels),
            runtimes=list(host.offer.runtimes),
            fences=list(host.offer.fences),
            slots=self._fleet.slots(host),
            workers=len(placed),
            stuck=sum(bool(registration.stuck) for registration in placed.values()),
            draining=host.draining,
            version=host.offer.version,
            unclaimed=self._unclaimed.count(host.name),
        )

    def unclaimed(self, process: Process) -> UnclaimedWorker:
        running = process.running
        record = process.record or {}
        main = record.get("main") or f"{record.get('library', '')}:{record.get('function', '')}"
        return UnclaimedWorker(
            token=running.token,
            host=process.host,
            name=running.name,
            handle=HandleRef(
                registry=running.registry, slot=running.slot, generation=running.generation
            ),
            incarnation=running.incarnation,
            pid=running.pid,
            started_unix_s=running.started_unix_s,
            main=str(main)[:128] if record else "",
        )

    def why_not_running(self, registration: Registration) -> str:
        """What a registration without a process waits for."""
        if registration.strays:
            return "a process of it that should not exist is being ended first"
        phase = self._starter.phase
        if phase is Phase.STOPPING:
            return "the cluster is shutting down"
        if self._starter.recovering:
            return "the registry was restored: nothing is started before it is known what runs"
        if registration.name in self._starter.withheld:
            return "an unclaimed process of this name runs (`posthouse unclaimed`)"
        if self._starter.room is not Room.AMPLE:
            return "the master's disk is full: nothing is started before there is room"
        spec = registration.spec
        if not may_start(phase, spec.start_time):
            return self._gate(spec)
        return self._fleet.why_waiting(wants_now(registration))

    def _gate(self, spec: BackgroundWorker) -> str:
        """What its start_time waits for; "" if the phase lets it start (or a shutdown decides)."""
        phase = self._starter.phase
        if phase is Phase.STOPPING or may_start(phase, spec.start_time):
            return ""
        return f"waits for {spec.start_time}: {self._starter.phase_detail or f'it is {phase}'}"

    def _reason(self, registration: Registration, in_s: float | None) -> str:
        life = registration.life
        gate = "" if registration.placed else self._gate(registration.spec)
        if life is Life.SUBMITTED and gate and not registration.strays:
            return gate
        if life is Life.SUBMITTED:
            return f"waiting: {self.why_not_running(registration) or 'about to be started'}"
        if life is Life.WAITING:
            if in_s is not None:
                verb = "restarts" if registration.starts else "tried again"
                then = f", then {gate}" if gate else ""
                return f"{registration.reason}; {verb} in {in_s:.1f} s{then}"
            waits = gate or self.why_not_running(registration)
            shown = waits if gate else f"waiting: {waits}"
            return f"{registration.reason}; {shown}" if waits else registration.reason
        if registration.stopping is not None:
            verb = _VERBS.get(registration.stopping, str(registration.stopping))
            by = f" by {registration.stop_by}" if registration.stop_by else ""
            reason = f"{registration.reason}; {verb}{by}, its end is awaited"
            return f"{reason}; {registration.stuck}" if registration.stuck else reason
        waits = registration.stuck or self._rollout.why(registration)
        if waits:
            return f"{registration.reason}; {waits}"
        return registration.reason

    def _restart_in(self, registration: Registration, now: Instant) -> float | None:
        if registration.life is not Life.WAITING:
            return None
        due_s = self._timers.due_of(("restart", registration.key))
        return None if due_s is None else max(0.0, due_s - now.boot_s)

    def _dead_in(self, host: Host, now: Instant) -> float | None:
        """Of a host that is not heard: until nothing that ends with its lease lives there."""
        due_s = None if host.reachable else self._dead_for_sure_s(host)
        return None if due_s is None else max(0.0, due_s - now.boot_s)

    def _heard(self, host: Host, now: Instant) -> float | None:
        session = self._door.get(host.session)
        heard_s = session.link.heard_s if session is not None else host.heard_s
        return None if heard_s is None else max(0.0, now.boot_s - heard_s)


_VERBS: Final = {
    StopReason.TERMINATE: "terminated",
    StopReason.SHUTDOWN: "stopped for the shutdown",
    StopReason.HOLD: "to be held",
    StopReason.DRAIN: "to be moved off a drained host",
    StopReason.RESTART: "to be restarted",
    StopReason.APPLY: "to be started with its new revision",
}


def public(wire: dict[str, Any]) -> dict[str, Any]:
    """The record without PRIVATE_FIELDS."""
    return {name: value for name, value in wire.items() if name not in PRIVATE_FIELDS}


def _state(registration: Registration) -> WorkerState:
    if registration.life is Life.RUNNING:
        return WorkerState.STARTED  # H2
    if registration.life is Life.RETIRED or registration.starts:
        return WorkerState.STOPPED  # H3, H5
    return WorkerState.NOT_YET_STARTED  # H1, M6


def _short(facts: ExitFacts) -> ExitFacts:
    return msgspec.structs.replace(facts, output_tail="", traceback="")
