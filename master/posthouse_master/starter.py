"""CORE: who is started, where and when: the line of those that wait, and the START itself.

Owns: the queue, the gates that all starts pass (phase, room on the disk), delays before restarts,
who cannot be started where. Must not know: how a process ends and what becomes of its registration
(lifecycle), how the gates come to change.

Invariant: an incarnation has one STARTING row, written with its token before its START leaves, and
a new token is drawn only when no process of an older one can exist. Who has waited longest for a
host goes first. What a host may start by itself is started nowhere else.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from posthouse import limits
from posthouse.messages import Start, StructRequest
from posthouse.spec import BackgroundWorker
from posthouse.states import NEVER_RESTART, SHMEM_ACCESS, EventKind, Phase, StopReason
from posthouse_master.chronicle import Chronicle
from posthouse_master.effects import Room
from posthouse_master.pace import Pace
from posthouse_master.phases import may_start
from posthouse_master.placement import KEPT, Fleet, Host, StartQueue, Wants, keeps, wants_of
from posthouse_master.registry import (
    Key,
    Registration,
    Registry,
    Step,
    domain_of,
    packed_tokens,
)
from posthouse_master.sessions import FrontDoor, Session, TimerKey
from posthouse_master.store.base import Life
from posthouse_master.timers import Timers
from posthouse_master.turn import Turn

__all__ = ["Starter", "wants_now"]

_NO_PROCESS: Final[dict[str, Any]] = {
    "pid": None,
    "pid_start": None,
    "started_unix_s": None,
    "code": "",
    "ready": False,
}
_START_ROOM: Final = 128  # messages a link keeps free for stops and signals while it is given work


class Starter:
    """The only one that draws tokens and sends STARTs."""

    def __init__(
        self,
        registry: Registry,
        fleet: Fleet,
        door: FrontDoor,
        chronicle: Chronicle,
        timers: Timers[TimerKey],
        pace: Pace,
    ) -> None:
        # Written by PhaseWatch, and by ShutdownWatch for good.
        self.phase = Phase.RUNNING
        self.phase_detail = ""
        self.room = Room.AMPLE  # written by the core alone
        self.structs: tuple[StructRequest, ...] = ()  # written by the core, once
        self.recovering = False  # written by Recovery: nothing is started before it is over
        self.withheld: Counter[str] = Counter()  # written by Unclaimed: names of what runs
        self.queue = StartQueue()
        self.pace = pace
        self._registry = registry
        self._fleet = fleet
        self._door = door
        self._chronicle = chronicle
        self._timers = timers
        self._barred: dict[str, set[Key]] = {}  # by host: who cannot be started there
        # Written by Lifecycle: have its host give back the tokens that it has for this one.
        self.take_back: Callable[[Turn, Registration, StopReason], None]

    def offer(self, turn: Turn, registration: Registration) -> None:
        """It may run as far as it is concerned: start it, or let it wait in line."""
        if registration.strays:
            return  # asked again when the last of them is known to be gone
        if registration.loose and not _stays(registration):
            self.take_back(turn, registration, StopReason.APPLY)
            return
        wants = wants_now(registration)._replace(failing=registration.streak > 1)
        self.queue.add(registration.key, wants, turn.now.boot_s)
        host = self._fleet.choose(wants)
        if host is not None:
            self.serve(turn, host)  # who has waited longer for this host goes first

    def serve(self, turn: Turn, host: Host) -> None:
        """The host has room: start there who has waited for it longest."""
        if not host.open or not len(self.queue) or self.phase is Phase.STOPPING:
            return
        if self.recovering or self.room is not Room.AMPLE:
            return  # what runs already may end: the room that is left is for that
        for key in self.queue.for_host(host, self._fits):
            registration = self._registry.get(*key)
            assert registration is not None
            if not host.open:
                return
            if registration.name in self.withheld:
                continue
            if not registration.pinned and self._fleet.free(host) <= 0:
                continue  # one that names the host may still follow: its slot is its own
            if not self._fleet.warden(wants_now(registration), host):
                continue  # one that was started just now has settled where their domain lives
            self._start(turn, registration, host)

    def place(self, turn: Turn, key: Key) -> None:
        """Start it on the host that suits it best, if there is one. For a caller that goes through
        the queue from its oldest: nobody is passed over, and no host is filled up first."""
        registration = self._registry.get(*key)
        if registration is None or key not in self.queue or self.room is not Room.AMPLE:
            return
        if self.recovering or registration.name in self.withheld:
            return
        wants = wants_now(registration)
        host = self._fleet.choose(wants) if may_start(self.phase, wants.start_time) else None
        if host is not None:
            self._start(turn, registration, host)

    def _fits(self, wants: Wants, host: Host) -> bool:
        return may_start(self.phase, wants.start_time) and self._fleet.fits(wants, host)

    def _start(self, turn: Turn, registration: Registration, host: Host) -> None:
        session = self._door.get(host.session)
        warden = self._fleet.warden(wants_of(registration.spec), host)
        assert session is not None
        assert warden, "placement lets nobody start where its crash domain lives under another"
        if registration.loose and warden != KEPT:
            self.take_back(turn, registration, StopReason.RESTART)
            return
        token, *after = registration.after or (self._registry.draw_token(),)
        if warden == KEPT and registration.spec.restart_time != NEVER_RESTART:
            missing = limits.reserved_tokens_max - len(after)
            after += [self._registry.draw_token() for _ in range(missing)]
        self.queue.discard(registration.key)
        self._timers.cancel(("restart", registration.key))
        self._registry.move(
            registration,
            Step.START,
            host=host.name,
            warden=warden,
            incarnation=registration.incarnation + 1,
            domain=domain_of(registration.spec),
            token=token,
            reserved=packed_tokens(after),
            **_NO_PROCESS,
            stopping=None,
            stop_by="",
            stop_grace_s=None,
            reason=f"starting on {host.name}",
            rule="M12" if registration.starts else "M5",
            restart_delay_s=None,
            ran_revision=registration.revision,
        )
        self.pace.started(registration, turn.now.boot_s)
        self._chronicle.record(turn, EventKind.STARTING, registration, rule=registration.rule)
        self._send(turn, registration, session)
        host.choked = self._is_choked(host, session)

    def presume(self, turn: Turn, registration: Registration, **wish: Any) -> None:
        """Its host may start the next incarnation by itself, or has done so: from here on that one
        counts as being started. `wish`: the stop that it was asked for, which stands."""
        assert registration.loose
        token, *after = registration.after
        self.withdraw(registration)
        self._registry.move(
            registration,
            Step.START,
            incarnation=registration.incarnation + 1,
            token=token,
            reserved=packed_tokens(after),
            **_NO_PROCESS,
            reason=f"host {registration.host} may start it by itself",
            rule="E-ALONE",
            restart_delay_s=None,
            **wish,
        )
        self._chronicle.record(
            turn,
            EventKind.STARTING,
            registration,
            rule=registration.rule,
            reason=registration.reason,
        )

    def resend(self, turn: Turn, registration: Registration, host: Host) -> None:
        """START once more, under the same token: the host does not know it, or the host's plan may
        come to it yet. Whatever it does, it runs this token once. To a host that has gone again it
        is said in the next session."""
        session = self._door.get(host.session) if host.settled else None
        if session is None:
            return
        if registration.outdated:
            self._registry.move(
                registration,
                Step.REVISE,
                ran_revision=registration.revision,
                domain=domain_of(registration.spec),
            )
        self._send(turn, registration, session)

    def _send(self, turn: Turn, registration: Registration, session: Session) -> None:
        start = Start(
            registry=self._registry.identity,
            slot=registration.slot,
            generation=registration.generation,
            incarnation=registration.incarnation,
            token=registration.token,
            revision=registration.revision,
            spec=registration.wire,
            warden=registration.warden,
            structs=self._structs(registration.spec),
            source=registration.source,
            group=registration.group,
            reserved=list(registration.after),
        )
        self._door.command(turn, session, start)
        due_s = turn.now.boot_s + limits.start_attempt_s
        self._timers.set(("start", registration.key), due_s)

    def _structs(self, spec: BackgroundWorker) -> list[StructRequest]:
        """K1: what libraries requested of the worker's crash domain."""
        if not spec.flags & SHMEM_ACCESS:
            return []
        return [s for s in self.structs if s.crash_domain == spec.crash_domain]

    def unchoke(self, turn: Turn, host: Host, session: Session) -> None:
        """The host has said something: there may be room for starts again."""
        if not self._is_choked(host, session):
            host.choked = False
            self.serve(turn, host)

    def _is_choked(self, host: Host, session: Session) -> bool:
        """A host is given so many starts at a time that it can still hear of a stop soon, and that
        who has to wait waits here, where the line is kept."""
        full = self._registry.starting(host.name) >= limits.starts_in_flight_max
        return full or session.link.room <= _START_ROOM or bool(session.backlog)

    def withdraw(self, registration: Registration) -> None:
        """It is not to be started, neither from the queue nor when its delay is over."""
        self.queue.discard(registration.key)
        self._timers.cancel(("restart", registration.key))

    # --- starts to come ---

    def freed(self, turn: Turn, name: str) -> None:
        """A slot of the host may be free: a process has ended, or one that could run only there,
        and so held a slot, is gone. It is for whoever waits for one."""
        host = self._fleet.hosts.get(name)
        if host is not None:
            self.serve(turn, host)

    def restart_in(self, turn: Turn, registration: Registration, delay_s: float) -> None:
        if delay_s > 0:
            self._timers.set(("restart", registration.key), turn.now.boot_s + delay_s)
        else:
            self.restart_due(turn, registration.key)

    def restart_due(self, turn: Turn, key: Key) -> None:
        """T1: its delay is over."""
        registration = self._registry.get(*key)
        if registration is None or registration.life is not Life.WAITING:
            return
        due_s = self.pace.put_off_s(registration, turn.now.boot_s)
        if due_s is not None:
            self._timers.set(("restart", key), due_s)
            return
        self.offer(turn, registration)

    def bar(self, registration: Registration) -> frozenset[str]:
        """Its host is not tried again before the host's next session."""
        self._barred.setdefault(registration.host, set()).add(registration.key)
        return registration.barred | {registration.host}

    def unbar(self, turn: Turn, host: str) -> None:
        """The host begins anew: what it said can never run there may be tried again."""
        for key in list(self._barred.pop(host, ())):
            registration = self._registry.get(*key)
            if registration is None or host not in registration.barred:
                continue
            registration.barred -= {host}
            if key in self.queue:
                self.offer(turn, registration)


def wants_now(registration: Registration) -> Wants:
    """What placement looks at. A host that may start it by itself is the only one for it."""
    wants = wants_of(registration.spec, registration.barred)
    return wants._replace(host=registration.host) if registration.loose else wants


def _stays(registration: Registration) -> bool:
    """Whether its next incarnation may be the one that its host would start by itself."""
    spec = registration.spec
    return keeps(spec) and spec.host in (None, registration.host)
