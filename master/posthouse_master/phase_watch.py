"""CORE: the word of the followed server, and who may start because of it.

Owns: the change of the phase: its row in the log, and the round of starts that follows. Must not
know: which server is followed and how (phase_source), who may start in which phase (phases).

Invariant: a change starts only who waits, oldest first, a bounded number in one go; it stops
nobody (G5). A shutdown is the last phase there is: no word of a server undoes it.
"""

from collections import deque

from posthouse import limits
from posthouse.states import EventKind, Phase
from posthouse_master.chronicle import Chronicle
from posthouse_master.effects import PhaseChanged, Room
from posthouse_master.placement import Fleet
from posthouse_master.registry import Key, Registry
from posthouse_master.sessions import TimerKey
from posthouse_master.starter import Starter
from posthouse_master.timers import Timers
from posthouse_master.turn import Turn

__all__ = ["PhaseWatch"]

_ROUND = ("phase", "")


class PhaseWatch:
    """Idle where no server is followed."""

    def __init__(
        self,
        registry: Registry,
        fleet: Fleet,
        starter: Starter,
        chronicle: Chronicle,
        timers: Timers[TimerKey],
    ) -> None:
        self._registry = registry
        self._fleet = fleet
        self._starter = starter
        self._chronicle = chronicle
        self._timers = timers
        self._round: deque[Key] = deque()  # who is yet to be looked at
        self._held: PhaseChanged | None = None  # a word that there was no room to write down

    def changed(self, turn: Turn, word: PhaseChanged) -> None:
        """The server says where it is now."""
        before = self._starter.phase
        if self._starter.room is Room.NONE:
            self._held = word  # nothing can be started meanwhile either
            return
        self._held = None
        if before is Phase.STOPPING:
            return
        detail = word.detail[: limits.phase_detail_chars_max]
        self._starter.phase_detail = detail
        if word.phase is before:
            return
        self._starter.phase = word.phase
        self._chronicle.record(
            turn,
            EventKind.PHASE,
            registry=self._registry.identity,
            phase=word.phase,
            reason=detail,
        )
        turn.note("phase.changed", phase=str(word.phase), before=str(before), reason=detail)
        self._round = deque(self._starter.queue)
        self.go_on(turn)

    def room(self, turn: Turn) -> None:
        """There may be room again."""
        if self._held is not None:
            self.changed(turn, self._held)

    def go_on(self, turn: Turn) -> None:
        """Some more of the round; what is left waits until events have been handled."""
        for _ in range(min(len(self._round), limits.starts_per_round)):
            self._starter.place(turn, self._round.popleft())
        if not any(host.open for host in self._fleet.hosts.values()):
            self._round.clear()  # a host that is open again serves the queue itself
        if self._round:
            self._timers.set(_ROUND, turn.now.boot_s)
