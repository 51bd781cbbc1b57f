"""CORE: processes that should not be there, and the starts that wait until they are gone.

Owns: which tokens are known to run on which host without leave. Must not know: how a host's word
arrives, what becomes of a registration.

Invariant: a registration with a stray process starts nothing before every one of them is known to
be gone: never two.
"""

from collections.abc import Container
from typing import Final

from posthouse.messages import Running, Stop
from posthouse.signals import SIGNALS
from posthouse.states import StopReason
from posthouse_master.placement import Host
from posthouse_master.registry import Key, Registry
from posthouse_master.sessions import FrontDoor, TimerKey
from posthouse_master.starter import Starter
from posthouse_master.store.base import Life
from posthouse_master.timers import Timers
from posthouse_master.turn import Turn

__all__ = ["Strays"]

_UNKNOWN_GRACE_S: Final = 5.0  # for processes whose registration, and so whose grace, is not known


class Strays:
    """Kept in memory only: after a restart of the master the inventories tell of them again."""

    def __init__(
        self,
        registry: Registry,
        starter: Starter,
        door: FrontDoor,
        timers: Timers[TimerKey],
    ) -> None:
        self._registry = registry
        self._starter = starter
        self._door = door
        self._timers = timers
        self._held_up: dict[str, dict[int, Key]] = {}  # by host and token: whose START waits

    def stop(self, turn: Turn, host: Host, running: Running) -> None:
        """A process that should not be there: end it, and let its registration start nothing
        before it is known to be gone. Never two."""
        registration = self._registry.get(running.slot, running.generation)
        spec = registration.spec if registration is not None else None
        if registration is not None and registration.live:
            self._held_up.setdefault(host.name, {})[running.token] = registration.key
            registration.strays += 1
            self._starter.queue.discard(registration.key)
        session = self._door.get(host.session)
        assert session is not None
        turn.note(
            "worker.stray",
            host=host.name,
            handle=f"{running.slot}.{running.generation}",
            token=running.token,
            pid=running.pid,
        )
        self._door.command(
            turn,
            session,
            Stop(
                registry=running.registry,
                slot=running.slot,
                generation=running.generation,
                token=running.token,
                reason=StopReason.UNKNOWN,
                signal=SIGNALS[spec.stop_signal if spec else "TERM"],
                grace_s=float(spec.stop_grace_s if spec else _UNKNOWN_GRACE_S),
            ),
        )

    def holds(self, host: str, token: int) -> bool:
        return token in self._held_up.get(host, {})

    def gone(self, turn: Turn, host: str, token: int) -> bool:
        """The process of this token is gone for sure. False if nobody waited to hear so."""
        key = self._held_up.get(host, {}).pop(token, None)
        if key is None:
            return False
        registration = self._registry.get(*key)
        if registration is not None:
            registration.strays -= 1
            waits = registration.life in (Life.SUBMITTED, Life.WAITING)
            delayed = self._timers.due_of(("restart", key)) is not None
            if waits and not delayed and not registration.strays:
                self._starter.offer(turn, registration)
        return True

    def settled(self, turn: Turn, host: str, alive: Container[int]) -> None:
        """The host's inventory is whole: strays that it does not list are gone."""
        for token in list(self._held_up.get(host, ())):
            if token not in alive:
                self.gone(turn, host, token)
