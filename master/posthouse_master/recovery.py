"""CORE: after a restore: what has become of the registrations in the backup, before any start.

Owns: how long nothing is started, and whose process was looked for where the backup has it and not
found. Must not know: how a host's word arrives, processes without a registration (unclaimed).

Invariant: as long as a host may still tell that it runs a registration, no process of it is
started, and none is taken for ended because another host does not have it.
"""

from posthouse import limits
from posthouse_master.registry import Key, Registration, Registry
from posthouse_master.sessions import TimerKey
from posthouse_master.starter import Starter
from posthouse_master.store.base import first_number
from posthouse_master.timers import Timers
from posthouse_master.turn import Turn

__all__ = ["Recovery"]


class Recovery:
    """Idle in a registry that was never restored, and once all is known."""

    def __init__(
        self,
        mode: str,
        timeline: int,
        registry: Registry,
        starter: Starter,
        timers: Timers[TimerKey],
    ) -> None:
        self.mode = mode  # "", "known", "any": see store.base.Counters
        self._first = first_number(timeline)
        self._registry = registry
        self._starter = starter
        self._timers = timers
        self._awaited: set[str] = set()  # hosts of the backup
        self._doubts: dict[Key, tuple[int, bool]] = {}  # token; whether its host has rebooted

    def begin(self, hosts: set[str], now_s: float) -> None:
        """The master begins, with the hosts that are in its registry."""
        if self.mode:
            self._starter.recovering = True
            self._awaited = hosts
            self._timers.set(("recovery", ""), now_s + limits.recovery_s)

    def newer(self, registration: Registration, token: int) -> bool:
        """Whether it is a process of the lost history, in which the registration went on."""
        return registration.live and registration.token < token <= self._first

    def lost(self, token: int) -> bool:
        """Whether it is of the time before a restore: the history that was lost may have been told
        that its start failed."""
        return token <= self._first

    def doubt(self, registration: Registration, *, rebooted: bool) -> bool:
        """The host that has it in the registry does not run it. True if that says nothing yet."""
        if self.mode:
            self._doubts[registration.key] = (registration.token, rebooted)
        return bool(self.mode)

    def settled(self, host: str) -> bool:
        """The host has told what it runs, or never will. True if nobody else is waited for."""
        self._awaited.discard(host)
        return self.mode == "known" and not self._awaited

    def end(self, turn: Turn) -> list[tuple[Registration, bool]]:
        """All that can be known is known: starts go on. Who was not found anywhere."""
        self.mode = ""
        self._starter.recovering = False
        self._timers.cancel(("recovery", ""))
        turn.note("registry.recovered", missing=len(self._doubts))
        found = []
        for key, (token, rebooted) in self._doubts.items():
            registration = self._registry.get(*key)
            if registration is not None and registration.placed and registration.token == token:
                found.append((registration, rebooted))
        self._doubts.clear()
        return found
