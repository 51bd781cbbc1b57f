"""CORE: who follows the log, and how far each has come.

Owns: subscriptions, their cursors and credits. Must not know: what an event means.

Invariant: what a watcher is sent is a suffix of the log from its cursor without repetition, and of
a gap it is told: which registration's rows are missing, or that its cursor is too old. Without
credit nothing is sent, so a slow watcher costs the master a cursor and nothing else.
"""

from dataclasses import dataclass

from posthouse import limits
from posthouse.messages import CursorTooOld, Events, Missing
from posthouse_master.eventlog import EventLog, Page
from posthouse_master.sessions import FrontDoor, Session
from posthouse_master.turn import Turn

__all__ = ["Watch", "Watchers"]

_ROOM_MIN = 64  # the link keeps this much for answers; events wait for acknowledgements


@dataclass(slots=True, eq=False)
class Watch:
    session: Session
    number: int
    stream: str | None  # None: everything
    cursor: int
    credit: int
    forgiven: int = 0  # rows up to here may be missing: it asked for what is kept
    void: str = ""  # why nothing can be read after the cursor
    told: bool = False  # something was sent: at least that there is nothing yet
    trims: int = 0  # trims that it has been told of, or that do not concern it


class Watchers:
    """All subscriptions, indexed by what they follow."""

    def __init__(self, log: EventLog, door: FrontDoor) -> None:
        self._log = log
        self._door = door
        self._of_session: dict[bytes, dict[int, Watch]] = {}
        self._of_stream: dict[str | None, dict[Watch, None]] = {}
        self._dirty: dict[Watch, None] = {}
        self._starved: dict[bytes, dict[Watch, None]] = {}  # by session: waits for acknowledgements

    def __len__(self) -> int:
        return sum(len(found) for found in self._of_session.values())

    def count(self, session: Session) -> int:
        return len(self._of_session.get(session.identity, {}))

    def add(self, watch: Watch) -> None:
        """Begin; a subscription of the same number is replaced."""
        self.remove(watch.session, watch.number)
        self._of_session.setdefault(watch.session.identity, {})[watch.number] = watch
        self._of_stream.setdefault(watch.stream, {})[watch] = None
        self._dirty[watch] = None

    def remove(self, session: Session, number: int) -> None:
        watch = self._of_session.get(session.identity, {}).pop(number, None)
        if watch is None:
            return
        self._dirty.pop(watch, None)
        self._starved.get(session.identity, {}).pop(watch, None)
        followers = self._of_stream[watch.stream]
        del followers[watch]
        if not followers:
            del self._of_stream[watch.stream]

    def drop(self, session: Session) -> None:
        """The session is over, and with it all it followed."""
        for number in list(self._of_session.get(session.identity, ())):
            self.remove(session, number)
        self._of_session.pop(session.identity, None)
        self._starved.pop(session.identity, None)

    def credit(self, session: Session, number: int, credit: int) -> None:
        watch = self._of_session.get(session.identity, {}).get(number)
        if watch is not None:
            watch.credit = min(watch.credit + credit, limits.credit_max)
            self._dirty[watch] = None

    def roused(self, session: Session) -> None:
        """The session's link may have room again."""
        starved = self._starved.get(session.identity)
        if starved and session.link.room > _ROOM_MIN:
            del self._starved[session.identity]
            self._dirty.update(starved)

    def forgotten(self, stream: str, last: int) -> None:
        """The stream is no longer kept; `last` was its last row. Nothing will come of it again."""
        for watch in list(self._of_stream.get(stream, ())):
            if watch.cursor < last:
                watch.void = "the registration is no longer listed"
                self._dirty[watch] = None
            else:
                self.remove(watch.session, watch.number)

    def grown(self, stream: str) -> None:
        """The stream has a new row."""
        for followed in (stream, None):
            followers = self._of_stream.get(followed)
            if followers:
                self._dirty.update(followers)

    def pump(self, turn: Turn) -> None:
        """Send what is new to those that have credit for it."""
        while self._dirty:
            watch, _ = self._dirty.popitem()
            self._serve(turn, watch)

    def _serve(self, turn: Turn, watch: Watch) -> None:
        if watch.void:
            self._too_old(turn, watch, watch.void)
            return
        while watch.credit > 0:
            if watch.session.link.room <= _ROOM_MIN:
                self._starved.setdefault(watch.session.identity, {})[watch] = None
                return
            trimmed = self._log.trimmed_in(watch.stream)
            if watch.cursor < trimmed and watch.forgiven < trimmed:
                reason = "rows after the cursor are no longer kept"
                self._too_old(turn, watch, reason, trimmed)
                return
            if watch.cursor >= self._log.sequence and watch.told:
                return
            missing = self._missing(watch)
            count = min(watch.credit, limits.page_items_max)
            if watch.stream is None and watch.trims < self._log.trims:
                page = Page([], watch.cursor)  # no row before all is told that is missing before it
            else:
                page = self._log.read(watch.cursor, watch.stream, count, limits.page_bytes_max)
            watch.cursor = page.sequence
            if not page.events and not missing and watch.told:
                return
            watch.told = True  # an empty first page tells a reader that he has caught up
            watch.credit -= len(page.events)
            message = Events(
                subscription=watch.number,
                events=page.events,
                timeline=self._log.timeline,
                sequence=page.sequence,
                missing=missing,
            )
            if not self._door.send(turn, watch.session, message):
                return

    def _missing(self, watch: Watch) -> list[Missing]:
        """What a watcher of everything is now to be told of rows that are gone; more of it with the
        next page, if there is too much for one."""
        if watch.stream is not None:
            return []
        after = max(watch.cursor, watch.forgiven)
        trims = self._log.trims_since(watch.trims, after)[::-1][: limits.page_items_max]
        watch.trims = trims[-1].number if len(trims) == limits.page_items_max else self._log.trims
        return [
            Missing(slot=trim.slot, generation=trim.generation, sequence=trim.sequence)
            for trim in trims
        ]

    def _too_old(self, turn: Turn, watch: Watch, reason: str, sequence: int | None = None) -> None:
        """`sequence`: after it nothing is missing; by default the end of the log."""
        self.remove(watch.session, watch.number)
        message = CursorTooOld(
            subscription=watch.number,
            timeline=self._log.timeline,
            sequence=self._log.sequence if sequence is None else sequence,
            reason=reason,
        )
        self._door.answer(turn, watch.session, message)
