"""CORE: the watches of a client: how far each has been told, and how much it may be sent.

Owns: cursors, credit, what is still to be said about watches in this session. Must not know: how
a session is kept, requests, who consumes the events.

Invariant: a watch gives each event at most once, in order, and leaves none out between two without
an event TRIMMED that says so; where that cannot be kept it ends with an error. `granted` + `held`
never exceed its window but by what stands for missing rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

from posthouse import limits
from posthouse.errors import CursorTooOld, PosthouseError, RemoteError, UsageError
from posthouse.ids import Cursor
from posthouse.messages import Credit, Events, Message, Missing, Subscribe, Subscribed, Unsubscribe
from posthouse.messages import CursorTooOld as CursorTooOldMessage
from posthouse.records import Event
from posthouse.states import EventKind

__all__ = ["FROM_START", "Arrived", "Watch", "WatchFailed", "Watches"]

FROM_START = Cursor(0, 0)
"""`Watch.after`: from the first event that there is."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Input: follow the log of one registration (`ref`) or of all (""), after a cursor; None: from
    now on. The caller numbers its watches and never uses a number twice. At most `window` events
    are given that it did not take yet."""

    subscription: int
    ref: str = ""
    after: Cursor | None = FROM_START
    window: int = 256


@dataclass(frozen=True, slots=True)
class Arrived:
    """Effect: the next events of a watch, perhaps none; all up to `cursor` has now been given."""

    subscription: int
    events: tuple[Event, ...]
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class WatchFailed:
    """Effect: the watch is over. CursorTooOld: events are missing; a snapshot tells the state, and
    another watch may begin at `error.detail["cursor"]`."""

    subscription: int
    error: PosthouseError


@dataclass(slots=True)
class _Watch:
    subscription: int
    ref: str
    cursor: Cursor | None
    window: int
    registry: str = ""  # that of the master which told the cursor
    asked: bytes = b""  # id of the Subscribe of this session
    granted: int = 0  # events the master may still send
    held: int = 0  # events the consumer has not taken

    @property
    def owed(self) -> int:
        return self.window - self.granted - self.held


class Watches:
    """`say` gives the messages that are due in this session, one at a time."""

    def __init__(self, entropy: Callable[[int], bytes]) -> None:
        self._entropy = entropy
        self._all: dict[int, _Watch] = {}
        self._asked: dict[bytes, int] = {}  # Subscribe of this session: to which watch
        self._look_at: dict[int, None] = {}  # watches that may have something to say
        self._ended: list[int] = []  # of this session

    def __len__(self) -> int:
        return len(self._all)

    def add(self, watch: Watch) -> list[WatchFailed]:
        if len(self._all) >= limits.subscriptions_per_session_max:
            error = UsageError(
                f"{len(self._all)} subscriptions are open",
                hint="one cluster.events() sees all registrations",
                limit=limits.subscriptions_per_session_max,
            )
            return [WatchFailed(watch.subscription, error)]
        assert watch.subscription not in self._all
        window = min(max(watch.window, 1), limits.credit_max)
        self._all[watch.subscription] = _Watch(watch.subscription, watch.ref, watch.after, window)
        self._look_at[watch.subscription] = None
        return []

    def took(self, subscription: int, count: int) -> None:
        watch = self._all.get(subscription)
        if watch is not None:
            assert 0 <= count <= watch.held
            watch.held -= count
            self._look_at[subscription] = None

    def remove(self, subscription: int) -> None:
        watch = self._all.pop(subscription, None)
        if watch is not None and watch.asked:
            self._asked.pop(watch.asked, None)
            self._ended.append(subscription)

    def end(self, error: PosthouseError) -> list[WatchFailed]:
        """All of them."""
        return [self._fail(watch, error) for watch in list(self._all.values())]

    # --- sessions ---

    def begin_again(self) -> None:
        """No session, or a new one: whatever was sent counts as not sent."""
        for watch in self._all.values():
            watch.asked, watch.granted = b"", 0
        self._asked.clear()
        self._look_at = dict.fromkeys(self._all)
        self._ended.clear()

    def opened(self, registry: str) -> list[WatchFailed]:
        """Another registry at the same address has other events at the same cursors."""
        failed = []
        for watch in list(self._all.values()):
            if watch.registry not in ("", registry):
                error = CursorTooOld(
                    f"events after {watch.cursor} are missing: another registry answers now",
                    hint="take a snapshot and follow from now on",
                    cursor=None,
                )
                failed.append(self._fail(watch, error))
        return failed

    def say(self) -> Message | None:
        """The next message that is due; it counts as sent."""
        if self._ended:
            return Unsubscribe(subscription=self._ended.pop(0))
        while self._look_at:
            subscription = next(iter(self._look_at))
            del self._look_at[subscription]
            watch = self._all.get(subscription)
            message = self._grant(watch) if watch is not None else None
            if message is not None:
                return message
        return None

    def _grant(self, watch: _Watch) -> Message | None:
        """Subscribe, or give credit back once half the window is free."""
        owed = watch.owed
        if owed <= 0 or (watch.asked and 2 * owed < watch.window):
            return None
        watch.granted += owed
        if watch.asked:
            return Credit(subscription=watch.subscription, credit=owed)
        cursor = watch.cursor or Cursor(0, -1)
        watch.asked = self._entropy(limits.request_id_bytes)
        self._asked[watch.asked] = watch.subscription
        return Subscribe(
            request=watch.asked,
            subscription=watch.subscription,
            ref=watch.ref,
            timeline=cursor.timeline,
            sequence=cursor.sequence,
            credit=owed,
        )

    # --- what a master says ---

    def asked(self, request_id: bytes) -> bool:
        """Whether it is the id of one of our Subscribes."""
        return request_id in self._asked

    def subscribed(self, message: Subscribed, registry: str) -> None:
        watch = self._all.get(self._asked.pop(message.request))
        if watch is None:
            return
        watch.registry = registry
        if watch.cursor is None or watch.cursor.timeline == 0:
            # Only a watch without a place of its own takes the master's word for where it begins.
            watch.cursor = Cursor(message.timeline, message.sequence)

    def refused(self, request_id: bytes, error: PosthouseError) -> list[WatchFailed]:
        watch = self._all.get(self._asked.pop(request_id))
        return [self._fail(watch, error)] if watch is not None else []

    def events(self, message: Events) -> list[Arrived | WatchFailed]:
        watch = self._all.get(message.subscription)
        if watch is None or not watch.asked:
            return []
        cursor = watch.cursor or FROM_START
        fresh = [_trimmed(cursor, watch.registry, missing) for missing in message.missing]
        for event in message.events:
            if event.cursor > cursor:
                fresh.append(event)
                cursor = event.cursor
        watch.cursor = cursor = max(cursor, Cursor(message.timeline, message.sequence))
        watch.granted -= len(message.events)
        if watch.granted < 0:
            self._ended.append(watch.subscription)
            return [self._fail(watch, RemoteError("the master sent more events than it may"))]
        watch.held += len(fresh)
        self._look_at[watch.subscription] = None
        return [Arrived(watch.subscription, tuple(fresh), cursor)]

    def too_old(self, message: CursorTooOldMessage) -> list[WatchFailed]:
        watch = self._all.get(message.subscription)
        if watch is None or not watch.asked:
            return []
        self._asked.pop(watch.asked, None)
        error = CursorTooOld(
            message.reason or f"events after {watch.cursor} are no longer in the log",
            hint="take a snapshot and follow from the cursor of this error",
            cursor=Cursor(message.timeline, message.sequence),
        )
        return [self._fail(watch, error)]

    def _fail(self, watch: _Watch, error: PosthouseError) -> WatchFailed:
        del self._all[watch.subscription]
        return WatchFailed(watch.subscription, error)


def _trimmed(cursor: Cursor, registry: str, missing: Missing) -> Event:
    """What stands for rows that are missing. It has the reader's own place, so that who goes on
    from there is told again rather than not at all."""
    return Event(
        timeline=cursor.timeline,
        sequence=cursor.sequence,
        kind=EventKind.TRIMMED,
        at_unix_s=0.0,
        registry=registry,
        slot=missing.slot,
        generation=missing.generation,
        trimmed_to=missing.sequence,
        reason=f"events of {missing.slot}.{missing.generation} up to "
        f"{cursor.timeline}/{missing.sequence} are no longer kept; its status tells the rest",
    )
