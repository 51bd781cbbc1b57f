"""CORE: the end of the whole cluster: smart, fast, immediate.

Owns: the mode, who waits for its outcome, when it is over. Must not know: exit classes; an exit
during a shutdown is judged like any other, and the phase keeps everything from starting again.

Invariant: modes only escalate (N10); no registration is lost by a shutdown; who asked is told
which hosts were not reached and what did not end in time. A shutdown is over with its master: the
next one starts what it stopped.
"""

from typing import Final

from posthouse import limits
from posthouse.messages import Done, Shutdown
from posthouse.states import EventKind, Phase, ShutdownMode, StopReason
from posthouse_master.chronicle import Chronicle
from posthouse_master.leases import lost_after_s
from posthouse_master.lifecycle import Lifecycle
from posthouse_master.placement import Fleet
from posthouse_master.registry import Registration, Registry
from posthouse_master.requests import RequestBook
from posthouse_master.sessions import FrontDoor, Session, TimerKey
from posthouse_master.starter import Starter
from posthouse_master.timers import Timers
from posthouse_master.turn import Turn

__all__ = ["ShutdownWatch"]

_SEVERITY: Final = list(ShutdownMode)  # smart < fast < immediate
_AWAY: Final = ("shutdown", "away")
_END: Final = ("shutdown", "end")
_SLACK_S: Final = 10.0  # beyond the longest grace: KILL, reaping and the way back


class ShutdownWatch:
    """Idle until the first request."""

    def __init__(
        self,
        registry: Registry,
        fleet: Fleet,
        lifecycle: Lifecycle,
        starter: Starter,
        chronicle: Chronicle,
        door: FrontDoor,
        book: RequestBook,
        timers: Timers[TimerKey],
    ) -> None:
        self.mode: ShutdownMode | None = None
        self._registry = registry
        self._fleet = fleet
        self._lifecycle = lifecycle
        self._starter = starter
        self._chronicle = chronicle
        self._door = door
        self._book = book
        self._timers = timers
        self._waiting: dict[tuple[str, bytes], tuple[bytes, Shutdown]] = {}
        self.answered: set[bytes] = set()  # sessions
        self._over = False
        self._away_until_s = 0.0  # hosts that are away may come back until then

    def request(self, turn: Turn, session: Session, message: Shutdown) -> None:
        """Begin, join or escalate. The answer comes when it is over."""
        self._waiting[session.principal, message.request] = (session.identity, message)
        if self.mode is not None and _SEVERITY.index(message.mode) <= _SEVERITY.index(self.mode):
            return
        self.mode = message.mode
        self._starter.phase = Phase.STOPPING
        self._starter.phase_detail = f"{message.mode} shutdown by {session.principal}"
        turn.note("shutdown.begun", mode=str(message.mode), by=session.principal)
        if message.mode is ShutdownMode.SMART:
            return
        immediate = message.mode is ShutdownMode.IMMEDIATE
        grace_s = limits.postmaster_grace_s if immediate else message.grace_s
        self._lifecycle.shutdown_manner = ("QUIT" if immediate else None, grace_s)
        longest_s = limits.postmaster_grace_s
        for name in self._registry.hosts_with_workers():
            for registration in list(self._registry.placed_on(name).values()):
                own_s = registration.spec.stop_grace_s
                longest_s = max(longest_s, own_s if grace_s is None else grace_s)
                self._stop(turn, registration, session.principal)
        self._away_until_s = turn.now.boot_s + limits.shutdown_away_s
        self._timers.set(_AWAY, self._away_until_s)
        self._timers.set(_END, turn.now.boot_s + longest_s + _SLACK_S)

    def _stop(self, turn: Turn, registration: Registration, by: str) -> None:
        signal, grace_s = self._lifecycle.shutdown_manner
        self._lifecycle.stop(
            turn, registration, StopReason.SHUTDOWN, by, signal=signal, grace_s=grace_s
        )

    def check(self, turn: Turn) -> None:
        """Over, if no host that is there has a worker left, and none that is away may come back.
        Smart waits for those as well: their workers run on."""
        if self.mode is None or self._over:
            return
        left = self._registry.hosts_with_workers()
        if any(self._fleet.hosts[name].reachable for name in left):
            return
        smart = self.mode is ShutdownMode.SMART
        if left and (smart or turn.now.boot_s < self._away_until_s):
            return
        self.finish(turn)

    def _until(self) -> str:
        """When what is not reached is dead for sure."""
        leases = [
            self._fleet.hosts[name].lease_s
            for name in self._registry.hosts_with_workers()
            if not self._fleet.hosts[name].reachable
        ]
        if not all(leases):
            return "nobody can say until when, because leases have no deadline there"
        ends_s = lost_after_s(max(leases))
        return f"what may move ends there with the lease, within {ends_s:.0f} s"

    def due(self, turn: Turn, subject: object) -> None:
        """Time is over: for hosts to come back (`check` looks at that), or for all."""
        if ("shutdown", subject) == _END:
            self.finish(turn)

    def finish(self, turn: Turn) -> None:
        """Tell who asked, write it down, end the process."""
        self._over = True
        missed = [
            f"{name} ({_workers(len(self._registry.placed_on(name)))})"
            for name in self._registry.hosts_with_workers()
            if not self._fleet.hosts[name].reachable
        ]
        late = [
            registration.name
            for name in self._registry.hosts_with_workers()
            if self._fleet.hosts[name].reachable
            for registration in self._registry.placed_on(name).values()
        ]
        told = [f"{self.mode} shutdown"]
        if missed:
            told.append(
                f"hosts not reached, their workers may still run: {', '.join(missed[:32])}; "
                f"{self._until()}"
            )
        if late:
            told.append(f"did not end in time: {', '.join(late[:32])}")
        text = "; ".join(told)[: limits.wide_text_bytes_max]
        self._chronicle.record(
            turn, EventKind.SHUTDOWN, registry=self._registry.identity, reason=text
        )
        for (principal, request), (identity, message) in self._waiting.items():
            answer = Done(request=request, message=text)
            self._book.remember(turn, principal, message, answer)
            session = self._door.get(identity)
            if session is not None and self._door.send(turn, session, answer):
                self.answered.add(identity)
        # No goodbye: it would end the sessions of those who have yet to acknowledge the answer.
        turn.halt(0, text)


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"
