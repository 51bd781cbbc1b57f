"""Who waits for what of a master, and what they are told: the same for threads and for tasks.

Owns: the open calls and watches of one client, what is known of its session, when a caller gives
up. Must not know: sockets, threads, event loops; it wakes by ringing bells. Invariant: whoever
waits here is told one outcome, and `end` leaves nobody out.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

from posthouse.dial import Lost, Opened, Rejected
from posthouse.errors import (
    PosthouseError,
    RequestConflict,
    TimedOut,
    Unreachable,
    UsageError,
    from_wire,
)
from posthouse.ids import Cursor
from posthouse.messages import Refused, Reply, Request, Welcome
from posthouse.records import Event
from posthouse.session import (
    Answered,
    Arrived,
    ClientEffect,
    MasterBack,
    MasterSilent,
    WatchFailed,
)
from posthouse.settings import ClientSettings

__all__ = ["Bell", "Deadline", "Inbox", "Silence", "Switchboard", "Waiter", "own"]

_TOOK_AT_ONCE: Final = 64  # events taken before the session is told so


class Silence(Exception):
    """No master answered for as long as a waiter has to believe."""

    def __init__(self, silent_s: float) -> None:
        super().__init__(f"no master answered for {silent_s:.0f} s")
        self.silent_s = silent_s


class Deadline:
    """When a call gives up, by the clock of its engine. `None`: never."""

    def __init__(
        self, timeout_s: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if timeout_s is not None and not timeout_s >= 0:
            raise UsageError(f"timeout is {timeout_s!r}: must be seconds, 0 or more, or None")
        self.timeout_s = timeout_s
        self._clock = clock
        self._at_s = None if timeout_s is None else clock() + timeout_s

    @property
    def left_s(self) -> float | None:
        return None if self._at_s is None else max(self._at_s - self._clock(), 0.0)

    @property
    def passed(self) -> bool:
        return self.left_s == 0


class Bell(Protocol):
    """Wakes all who wait at it: threading.Condition, or what an event loop has for it."""

    def notify_all(self) -> None: ...


SomeBell = TypeVar("SomeBell", bound=Bell)


class Waiter(Generic[SomeBell]):
    """One request, and those who wait for its answer."""

    def __init__(self, request: Request, bell: SomeBell) -> None:
        self.request = request
        self.bell = bell
        self.asking = 0
        self.given_up = False
        self.outcome: Reply | PosthouseError | None = None


class Inbox(Generic[SomeBell]):
    """Events of one watch that have arrived and were not taken."""

    def __init__(self, subscription: int, bell: SomeBell) -> None:
        self.subscription = subscription
        self.bell = bell
        self._events: deque[Event] = deque()
        self._error: PosthouseError | None = None
        self._taken = 0
        self._cursor: Cursor | None = None  # everything up to here has been put here

    def put(self, events: tuple[Event, ...], cursor: Cursor) -> None:
        self._events.extend(events)
        self._cursor = cursor
        self.bell.notify_all()

    def fail(self, error: PosthouseError) -> None:
        """Nothing more comes; the first reason counts."""
        self._error = self._error or error
        self.bell.notify_all()

    def ready(self, deadline: Deadline, until: Cursor | None, silent_s: float | None) -> bool:
        """True if `pop` has an answer now. Raises what ended the watch, Silence if `silent_s` says
        for how long no master answered, and TimedOut."""
        if self._events or (
            until is not None and self._cursor is not None and self._cursor >= until
        ):
            return True
        if self._error is not None:
            raise own(self._error)
        if silent_s is not None:
            raise Silence(silent_s)
        if deadline.passed:
            raise TimedOut(f"no event within {deadline.timeout_s:g} s")
        return False

    def pop(self) -> Event | None:
        """The next event; None where `until` is reached."""
        if not self._events:
            return None
        self._taken += 1
        return self._events.popleft()

    def settle(self) -> int:
        """How many events are now to be told as taken; few words for many events."""
        if self._events and self._taken < _TOOK_AT_ONCE:
            return 0
        taken, self._taken = self._taken, 0
        return taken


class Switchboard(Generic[SomeBell]):
    """The state that a client's callers see. Whoever owns it keeps others out meanwhile."""

    def __init__(self, settings: ClientSettings, bell: Callable[[], SomeBell]) -> None:
        self.settings = settings
        self.clock: Callable[[], float] = time.monotonic
        """What the deadlines of its callers are reckoned by; a simulated client has another."""
        self.bell = bell
        self.changed = bell()  # rung when a session begins, is refused, or the client ends
        self.waiters: dict[bytes, Waiter[SomeBell]] = {}
        self.inboxes: dict[int, Inbox[SomeBell]] = {}
        self.open = False
        self.silent_s: float | None = None  # for how long no master answers, if that is too long
        self.trouble = ""
        self.ended: PosthouseError | None = None
        self._welcome: Welcome | None = None
        self._refused: Refused | None = None
        self._subscriptions = 0

    @property
    def welcome(self) -> Welcome:
        """That of the last session."""
        assert self._welcome is not None, "start() has not returned"
        return self._welcome

    @property
    def welcomed(self) -> bool:
        """True once there has been a session. Raises why there will be none."""
        if self._welcome is None:
            if self.ended is not None:
                raise own(self.ended)
            if self._refused is not None and self._refused.retry_after_s <= 0:
                raise from_wire(self._refused.code, self._refused.message, self._refused.hint)
        return self._welcome is not None

    @property
    def state(self) -> str:
        if self.ended is not None:
            return "closed"
        return "connected" if self.open else "reconnecting"

    def unreachable(self, timeout_s: float) -> Unreachable:
        """What to raise where no session has begun in time."""
        why = self.trouble
        if self._refused is not None:
            why = f"refused: {self._refused.message or self._refused.code}"
        return Unreachable(
            f"no master answered at {self.settings.master} within {timeout_s:g} s"
            + (f": {why}" if why else ""),
            hint="`posthouse up` starts a local one; $POSTHOUSE_MASTER names another",
            endpoint=self.settings.master,
        )

    # --- those who wait ---

    def waiter(self, request: Request) -> tuple[Waiter[SomeBell], bool]:
        """The waiter of a request, and whether it is new, so that the request is to be said."""
        waiter = self.waiters.get(request.request)
        if waiter is None:
            waiter = Waiter(request, self.bell())
            waiter.outcome = self.ended
            if self.ended is None:
                self.waiters[request.request] = waiter
            return waiter, self.ended is None
        if waiter.request != request:
            raise RequestConflict("a request with this id and another body is waiting")
        return waiter, False

    def next_subscription(self) -> int:
        self._subscriptions += 1
        return self._subscriptions

    def add(self, inbox: Inbox[SomeBell]) -> None:
        if self.ended is not None:
            inbox.fail(self.ended)
        else:
            self.inboxes[inbox.subscription] = inbox

    # --- what they are told ---

    def tell(self, effect: ClientEffect) -> None:
        match effect:
            case Answered(request_id, outcome):
                waiter = self.waiters.pop(request_id, None)
                if waiter is not None:
                    waiter.outcome = outcome
                    waiter.bell.notify_all()
            case Arrived(subscription, events, cursor):
                inbox = self.inboxes.get(subscription)
                if inbox is not None:
                    inbox.put(events, cursor)
            case WatchFailed(subscription, error):
                inbox = self.inboxes.pop(subscription, None)
                if inbox is not None:
                    inbox.fail(error)
            case _:
                self._note(effect)

    def end(self, error: PosthouseError) -> None:
        """Nothing more will come: everybody is told so."""
        self.ended, self.open = error, False
        for waiter in self.waiters.values():
            waiter.outcome = waiter.outcome or error
            waiter.bell.notify_all()
        for inbox in self.inboxes.values():
            inbox.fail(error)
        self.waiters.clear()
        self.inboxes.clear()
        self.changed.notify_all()

    def _note(self, effect: ClientEffect) -> None:
        """What everybody is concerned by."""
        match effect:
            case Opened(welcome):
                self._welcome, self.open, self._refused = welcome, True, None
                self.trouble = ""
                self.changed.notify_all()
            case Lost(reason):
                self.open, self.trouble = False, reason
            case Rejected(refused):
                self._refused = refused
                self.changed.notify_all()
            case MasterSilent(silent_s):
                self.silent_s = silent_s
                for waiter in self.waiters.values():
                    waiter.bell.notify_all()
                for inbox in self.inboxes.values():
                    inbox.bell.notify_all()
            case MasterBack():
                self.silent_s = None


def own(error: PosthouseError) -> PosthouseError:
    """A copy for one raise: several callers may get the same outcome and add their tracebacks."""
    copy = type(error)(error.message, hint=error.hint)
    copy.detail.update(error.detail)
    copy.__cause__ = error.__cause__
    return copy
