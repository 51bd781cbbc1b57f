"""CORE: processes that run an older revision of their registration are replaced, a few at a time.

Owns: who is outdated, who is on the way, the pace. Must not know: how a revision came about
(declare), how a process is stopped and started (lifecycle).

Invariant: it follows from what is durable alone, so a new master goes on where the last one was
killed; a rollout takes away at most `max_unavailable` processes of a source at a time, and one is
back when its new process has said ready(). Where the old one never did, running for
limits.healthy_s is enough. A revision that does not come up keeps its place, so a bad one stops its
rollout by itself.
"""

from posthouse import limits
from posthouse.states import Phase, StopReason
from posthouse_master.effects import Room
from posthouse_master.lifecycle import Lifecycle
from posthouse_master.registry import Key, Registration, Registry
from posthouse_master.sessions import TimerKey
from posthouse_master.starter import Starter
from posthouse_master.store.base import Life
from posthouse_master.timers import Timers
from posthouse_master.turn import Turn

__all__ = ["Rollout"]

_SHOWN = 3  # names of those that a rollout waits for


class Rollout:
    """All sources at once."""

    def __init__(
        self, registry: Registry, lifecycle: Lifecycle, starter: Starter, timers: Timers[TimerKey]
    ) -> None:
        self._registry = registry
        self._lifecycle = lifecycle
        self._starter = starter
        self._timers = timers
        self._outdated: dict[str, dict[Key, None]] = {}  # by source, in the order they were seen
        self._busy: dict[str, dict[Key, None]] = {}  # by source: on the way to the new revision
        self._ripe: dict[str, None] = {}  # sources to be looked at

    def __repr__(self) -> str:
        outdated = sum(map(len, self._outdated.values()))
        return f"Rollout({outdated} outdated, {sum(map(len, self._busy.values()))} on the way)"

    def look(self, turn: Turn) -> None:
        """After an input: take note of what has changed, and go on where there is room."""
        for registration in self._registry.changed.values():
            self.note(registration, turn.now.boot_s)
        for registration in self._registry.forgotten:
            # It may have ended in this very turn: nobody waits for it.
            _discard(self._outdated, registration.source, registration.key)
            _discard(self._busy, registration.source, registration.key)
            self._ripe[registration.source] = None
        while self._ripe and self._may_replace():
            source, _ = self._ripe.popitem()
            self._advance(turn, source)

    def _may_replace(self) -> bool:
        """Who is stopped must be able to start again."""
        starter = self._starter
        may_start = starter.phase is not Phase.STOPPING and not starter.recovering
        return may_start and starter.room is Room.AMPLE

    def note(self, registration: Registration, now_s: float) -> None:
        """Where a registration stands. Also for each one at the beginning of a term."""
        source, key = registration.source, registration.key
        was_known = key in self._outdated.get(source, ()) or key in self._busy.get(source, ())
        if registration.revision == registration.proven_revision and not was_known:
            return
        _discard(self._outdated, source, key)
        _discard(self._busy, source, key)
        if _is_outdated(registration):
            self._outdated.setdefault(source, {})[key] = None
        if _is_busy(registration):
            self._busy.setdefault(source, {})[key] = None
            self._time(registration, now_s)
        self._ripe[source] = None

    def due(self, key: Key) -> None:
        """It was given limits.healthy_s."""
        registration = self._registry.get(*key)
        if registration is not None and self._proves_itself(registration):
            self._lifecycle.prove(registration)

    def why(self, registration: Registration) -> str:
        """What a registration whose process is outdated waits for; "" if it is not."""
        if not _is_outdated(registration):
            return ""
        if self._starter.recovering:
            return (
                f"revision {registration.revision} waits until all hosts are back after the restore"
            )
        waits = [self._registry.get(*key) for key in self._busy.get(registration.source, ())]
        names = [other.name for other in waits[:_SHOWN] if other is not None]
        more = f" and {len(waits) - _SHOWN} others" if len(waits) > _SHOWN else ""
        return (
            f"revision {registration.revision} waits for the rollout of {registration.source}: "
            f"{', '.join(names) or 'nobody'}{more} must be ready first"
        )

    def _advance(self, turn: Turn, source: str) -> None:
        busy = self._busy.get(source, {})
        # Who is on the way to another revision already is not taken away by being stopped again.
        keys = list(self._outdated.get(source, ()))
        for key in sorted(keys, key=lambda key: key not in busy):
            registration = self._registry.get(*key)
            assert registration is not None, f"{key} is outdated and unknown"
            if key not in busy and len(self._busy.get(source, ())) >= registration.max_unavailable:
                return
            self._lifecycle.stop(turn, registration, StopReason.APPLY, f"apply:{source}")
            self.note(registration, turn.now.boot_s)

    def _time(self, registration: Registration, now_s: float) -> None:
        timer = ("proof", registration.key)
        if not self._proves_itself(registration):
            self._timers.cancel(timer)
        elif self._timers.due_of(timer) is None:
            self._timers.set(timer, now_s + limits.healthy_s)

    def _proves_itself(self, registration: Registration) -> bool:
        return (
            registration.life is Life.RUNNING
            and registration.ran_revision == registration.revision
            and registration.revision > registration.proven_revision
            and not registration.awaits_ready
        )


def _is_outdated(registration: Registration) -> bool:
    """It has a process to be replaced, and nobody has asked for its end yet."""
    return registration.outdated and registration.stopping is None


def _is_busy(registration: Registration) -> bool:
    return (
        registration.live
        and registration.life is not Life.HELD
        and registration.revision > registration.proven_revision
        # Before it is stopped, a process of a revision that was proved is as good as ever.
        and not (
            _is_outdated(registration) and registration.ran_revision <= registration.proven_revision
        )
    )


def _discard(table: dict[str, dict[Key, None]], source: str, key: Key) -> None:
    found = table.get(source)
    if found is not None:
        found.pop(key, None)
        if not found:
            del table[source]
