"""CORE: a client's side of the conversation, whatever happens to sessions and masters.

Owns: which requests wait for an answer, which subscriptions exist and how far each has been told,
how much each consumer can take, and since when no master answered. Must not know: sockets,
threads, clocks, random (an argument), what a handle makes of an event.

Invariant: a request keeps its id and is sent in every new session until it is answered or given
up; a watcher is given each event at most once, in order, and none between two of its events is
left out: where that cannot be kept the watch ends with an error, never silently.

Each session begins with nothing: every open request is sent again and every watch subscribes
again after its own cursor. So nothing here depends on what an old session had got across.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from posthouse import limits
from posthouse.dial import (
    Delivered,
    DialEffect,
    Dialler,
    Lost,
    Opened,
    Redial,
    Rejected,
    Transmit,
)
from posthouse.errors import (
    CursorTooOld,
    PosthouseError,
    RemoteError,
    RequestConflict,
    TimedOut,
    Unreachable,
    UsageError,
    from_wire,
)
from posthouse.ids import Cursor
from posthouse.messages import (
    MUTATING,
    Credit,
    Events,
    Failed,
    Hello,
    Message,
    Reply,
    Request,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Welcome,
)
from posthouse.messages import CursorTooOld as CursorTooOldMessage
from posthouse.records import Event

__all__ = [
    "FROM_START",
    "Answered",
    "Arrived",
    "Broken",
    "Call",
    "Cancel",
    "ClientCore",
    "ClientEffect",
    "ClientInput",
    "Close",
    "Frame",
    "MasterBack",
    "MasterSilent",
    "Tick",
    "Took",
    "Unwatch",
    "Watch",
    "WatchFailed",
]

FROM_START = Cursor(0, 0)
"""`Watch.after`: from the first event that there is."""


# --- inputs ---


@dataclass(frozen=True, slots=True)
class Call:
    """Ask. The same id with the same body again joins the first; it is answered once."""

    request: Request


@dataclass(frozen=True, slots=True)
class Cancel:
    """Give a request up. Answered at once: TimedOut if it may have reached a master (the outcome is
    unknown), Unreachable if it was never sent (it had no effect)."""

    request_id: bytes


@dataclass(frozen=True, slots=True)
class Watch:
    """Follow the log of one registration (`ref`) or of all (""), after a cursor; None: from now on.
    The caller numbers its watches and never uses a number twice. At most `window` events are
    given that it did not take yet."""

    subscription: int
    ref: str = ""
    after: Cursor | None = FROM_START
    window: int = 256


@dataclass(frozen=True, slots=True)
class Took:
    """The consumer has taken `count` of the events that Arrived gave it."""

    subscription: int
    count: int


@dataclass(frozen=True, slots=True)
class Unwatch:
    subscription: int


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame came from the socket of the last Redial."""

    frame: bytes


@dataclass(frozen=True, slots=True)
class Broken:
    """The socket's connection broke."""

    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed. The first one dials."""


@dataclass(frozen=True, slots=True)
class Close:
    """Say goodbye and never dial again. All that waits is answered Unreachable."""

    reason: str = "closed"


ClientInput = Call | Cancel | Watch | Took | Unwatch | Frame | Broken | Tick | Close


# --- effects (with those of dial: Redial, Transmit, Opened, Lost, Rejected) ---


@dataclass(frozen=True, slots=True)
class Answered:
    """The one outcome of a request."""

    request_id: bytes
    outcome: Reply | PosthouseError


@dataclass(frozen=True, slots=True)
class Arrived:
    """The next events of a watch, perhaps none; everything up to `cursor` has now been given."""

    subscription: int
    events: tuple[Event, ...]
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class WatchFailed:
    """The watch is over. CursorTooOld: events are missing; a snapshot tells the state, and another
    watch may begin at `error.detail["cursor"]`."""

    subscription: int
    error: PosthouseError


@dataclass(frozen=True, slots=True)
class MasterSilent:
    """No master answered for so long that a waiter may be told POSTMASTER_DIED."""

    silent_s: float


@dataclass(frozen=True, slots=True)
class MasterBack:
    """A master answers again, after MasterSilent."""


ClientEffect = (
    Redial
    | Transmit
    | Opened
    | Lost
    | Rejected
    | Answered
    | Arrived
    | WatchFailed
    | MasterSilent
    | MasterBack
)


@dataclass(slots=True)
class _Call:
    request: Request
    registry: str = ""  # that of the master it was last sent to; empty: never sent
    in_flight: bool = False  # sent in this session


@dataclass(slots=True)
class _Watch:
    """`granted` + `held` <= `window`: what the master may still send, what the consumer holds."""

    subscription: int
    ref: str
    cursor: Cursor | None
    window: int
    registry: str = ""  # that of the master which told the cursor
    asked: bytes = b""  # id of the Subscribe of this session
    granted: int = 0
    held: int = 0

    @property
    def owed(self) -> int:
        return self.window - self.granted - self.held


class ClientCore:
    """`handle(input, now_s)` for every input; `wake_s` says when the next Tick is due."""

    def __init__(
        self,
        entropy: Callable[[int], bytes],
        *,
        version: str = "",
        master_silence_s: float | None = None,
    ) -> None:
        self._entropy = entropy
        self._version = version
        self._silence_s = master_silence_s
        self._dialler = Dialler(self._hello, entropy)
        self._calls: dict[bytes, _Call] = {}
        self._unsent: deque[bytes] = deque()
        self._in_flight = 0
        self._watches: dict[int, _Watch] = {}
        self._subscribing: dict[bytes, int] = {}
        self._look_at: dict[int, None] = {}  # watches that may have something to say
        self._unsubscribe: list[int] = []
        self._listened_s: float | None = None
        self._unheard_s = 0.0
        self._silent = False
        self._closed = False
        self.welcome: Welcome | None = None

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self.open else "dialling"
        return f"ClientCore({state} calls={len(self._calls)} watches={len(self._watches)})"

    @property
    def open(self) -> bool:
        return self._dialler.open

    @property
    def silent(self) -> bool:
        return self._silent

    @property
    def master_silence_s(self) -> float:
        """For how long no master has to answer before a waiter is told POSTMASTER_DIED."""
        if self._silence_s is not None:
            return self._silence_s
        lease_s = self.welcome.lease_s if self.welcome else 0.0
        return max(lease_s, limits.master_silence_s)

    @property
    def wake_s(self) -> float:
        wake_s = self._dialler.wake_s
        if self._closed or self._silent or self._listened_s is None:
            return wake_s
        left_s = max(self.master_silence_s - self._unheard_s, 0.0)
        return min(wake_s, self._listened_s + min(left_s, limits.silence_s))

    def handle(self, event: ClientInput, now_s: float) -> list[ClientEffect]:
        """The effects of one input, in the order in which they are to be run."""
        effects: list[ClientEffect] = []
        match event:
            case Frame(frame):
                effects += self._dialled(self._dialler.receive(frame, now_s))
                self._hear(effects, now_s)
            case Broken(reason):
                effects += self._dialled(self._dialler.broken(reason, now_s))
            case Tick():
                effects += self._dialled(self._dialler.tick(now_s))
            case Call(request):
                effects += self._call(request)
            case Cancel(request_id):
                effects += self._cancel(request_id)
            case Watch():
                effects += self._watch(event)
            case Took(subscription, count):
                self._took(subscription, count)
            case Unwatch(subscription):
                self._unwatch(subscription)
            case Close(reason):
                effects += self._close(reason, now_s)
        effects += self._listen(now_s)
        effects += self._pump(now_s)
        return effects

    # --- session ---

    def _hello(self, nonce: bytes) -> Hello:
        known = self.welcome
        return Hello(
            nonce=nonce,
            role="client",
            version=self._version,
            registry=known.registry if known else "",
            epoch=known.epoch if known else 0,
        )

    def _dialled(self, dialled: list[DialEffect]) -> list[ClientEffect]:
        effects: list[ClientEffect] = []
        for effect in dialled:
            match effect:
                case Redial() | Transmit() | Rejected():
                    effects.append(effect)
                case Opened(welcome):
                    effects.append(effect)
                    effects += self._opened(welcome)
                case Lost():
                    effects.append(effect)
                    self._begin_again()
                case Delivered(message):
                    effects += self._delivered(message)
        return effects

    def _opened(self, welcome: Welcome) -> list[ClientEffect]:
        """Another registry at the same address knows neither our cursors nor our request ids: a
        request that the old one may have carried out must not be carried out by the new one too."""
        self.welcome = welcome
        self._begin_again()
        effects: list[ClientEffect] = []
        for request_id, call in list(self._calls.items()):
            if call.registry not in ("", welcome.registry) and type(call.request) in MUTATING:
                error = TimedOut(
                    f"the outcome is unknown: registry {call.registry} no longer answers here",
                    hint=f"registry {welcome.registry} does",
                    request_id=request_id,
                )
                effects += self._answer(request_id, error)
        for watch in list(self._watches.values()):
            if watch.registry not in ("", welcome.registry):
                gone = CursorTooOld(
                    f"events after {watch.cursor} are missing: another registry answers now",
                    hint="take a snapshot and follow from now on",
                    cursor=None,
                )
                effects.append(self._fail(watch, gone))
        return effects

    def _begin_again(self) -> None:
        """No session, or a new one: whatever was sent counts as not sent."""
        for call in self._calls.values():
            call.in_flight = False
        for watch in self._watches.values():
            watch.asked, watch.granted = b"", 0
        self._unsent = deque(self._calls)
        self._in_flight = 0
        self._look_at = dict.fromkeys(self._watches)
        self._subscribing.clear()
        self._unsubscribe.clear()

    def _delivered(self, message: Message) -> list[ClientEffect]:
        match message:
            case Subscribed(request=request_id) if request_id in self._subscribing:
                return self._subscribed(self._subscribing.pop(request_id), message)
            case Failed(request=request_id) if request_id in self._subscribing:
                watch = self._watches.get(self._subscribing.pop(request_id))
                return [self._fail(watch, _error(message))] if watch else []
            case Events():
                return self._events(message)
            case CursorTooOldMessage():
                return self._too_old(message)
            case Failed(request=request_id):
                return self._answer(request_id, _error(message))
            case Reply(request=request_id):
                return self._answer(request_id, message)
            case _:
                return []

    # --- requests ---

    def _call(self, request: Request) -> list[ClientEffect]:
        known = self._calls.get(request.request)
        if known is not None:
            if known.request == request:
                return []
            conflict = RequestConflict("a request with this id and another body is waiting")
            return [Answered(request.request, conflict)]
        if self._closed:
            return [Answered(request.request, _is_closed())]
        if len(self._calls) >= limits.waiting_calls_max:
            error = UsageError(
                f"{len(self._calls)} calls of this client wait for an answer",
                hint="wait for some of them first",
                limit=limits.waiting_calls_max,
            )
            return [Answered(request.request, error)]
        self._calls[request.request] = _Call(request)
        self._unsent.append(request.request)
        return []

    def _cancel(self, request_id: bytes) -> list[ClientEffect]:
        call = self._calls.get(request_id)
        if call is None:
            return []
        what = type(call.request).__name__
        error: PosthouseError
        if not call.registry:
            error = Unreachable(
                f"no master answered; {what} was not sent",
                hint="is a master running? `posthouse up` starts one",
                request_id=request_id,
            )
        elif type(call.request) in MUTATING:
            error = TimedOut(
                f"no answer to {what} in time: whether it took effect is unknown",
                hint="asking again with the same request_id settles it",
                request_id=request_id,
            )
        else:
            error = TimedOut(f"no answer to {what} in time", request_id=request_id)
        return self._answer(request_id, error)

    def _answer(self, request_id: bytes, outcome: Reply | PosthouseError) -> list[ClientEffect]:
        call = self._calls.pop(request_id, None)
        if call is None:
            return []  # given up before; or a repetition
        self._in_flight -= call.in_flight
        return [Answered(request_id, outcome)]

    # --- watches ---

    def _watch(self, watch: Watch) -> list[ClientEffect]:
        error: PosthouseError | None = None
        if self._closed:
            error = _is_closed()
        elif len(self._watches) >= limits.subscriptions_per_session_max:
            error = UsageError(
                f"{len(self._watches)} subscriptions are open",
                hint="one cluster.events() sees all registrations",
                limit=limits.subscriptions_per_session_max,
            )
        if error is not None:
            return [WatchFailed(watch.subscription, error)]
        assert watch.subscription not in self._watches
        window = min(max(watch.window, 1), limits.credit_max)
        self._watches[watch.subscription] = _Watch(
            watch.subscription, watch.ref, watch.after, window
        )
        self._look_at[watch.subscription] = None
        return []

    def _took(self, subscription: int, count: int) -> None:
        watch = self._watches.get(subscription)
        if watch is not None:
            assert 0 <= count <= watch.held
            watch.held -= count
            self._look_at[subscription] = None

    def _unwatch(self, subscription: int) -> None:
        watch = self._watches.pop(subscription, None)
        if watch is not None and watch.asked:
            self._subscribing.pop(watch.asked, None)
            self._unsubscribe.append(subscription)

    def _fail(self, watch: _Watch, error: PosthouseError) -> WatchFailed:
        del self._watches[watch.subscription]
        return WatchFailed(watch.subscription, error)

    def _subscribed(self, subscription: int, message: Subscribed) -> list[ClientEffect]:
        watch = self._watches.get(subscription)
        assert self.welcome is not None
        if watch is None:
            return []
        watch.registry = self.welcome.registry
        if watch.cursor is None or watch.cursor.timeline == 0:
            # Only a watch without a place of its own takes the master's word for where it begins.
            watch.cursor = Cursor(message.timeline, message.sequence)
        return []

    def _events(self, message: Events) -> list[ClientEffect]:
        watch = self._watches.get(message.subscription)
        if watch is None or not watch.asked:
            return []
        cursor = watch.cursor or FROM_START
        fresh: list[Event] = []
        for event in message.events:
            if event.cursor > cursor:
                fresh.append(event)
                cursor = event.cursor
        watch.cursor = cursor = max(cursor, Cursor(message.timeline, message.sequence))
        watch.granted -= len(message.events)
        if watch.granted < 0:
            self._unsubscribe.append(watch.subscription)
            return [self._fail(watch, RemoteError("the master sent more events than it may"))]
        watch.held += len(fresh)
        self._look_at[watch.subscription] = None
        return [Arrived(watch.subscription, tuple(fresh), cursor)]

    def _too_old(self, message: CursorTooOldMessage) -> list[ClientEffect]:
        watch = self._watches.get(message.subscription)
        if watch is None:
            return []
        self._subscribing.pop(watch.asked, None)
        error = CursorTooOld(
            message.reason or f"events after {watch.cursor} are no longer in the log",
            hint="take a snapshot and follow from the cursor of this error",
            cursor=Cursor(message.timeline, message.sequence),
        )
        return [self._fail(watch, error)]

    # --- what is still to be said in this session ---

    def _pump(self, now_s: float) -> list[ClientEffect]:
        effects: list[ClientEffect] = []
        link = self._dialler.link
        if not self._dialler.open or link is None:
            return effects
        while self._unsubscribe and link.room > 0:
            message = Unsubscribe(subscription=self._unsubscribe.pop(0))
            effects.append(self._dialler.send(message, now_s))
        while self._look_at and link.room > 0:
            subscription = next(iter(self._look_at))
            del self._look_at[subscription]
            effects += self._grant(subscription, now_s)
        while self._unsent and link.room > 0 and self._in_flight < limits.requests_in_flight_max:
            call = self._calls.get(self._unsent.popleft())
            if call is not None and not call.in_flight:
                assert self.welcome is not None
                call.registry, call.in_flight = self.welcome.registry, True
                self._in_flight += 1
                effects.append(self._dialler.send(call.request, now_s))
        return effects

    def _grant(self, subscription: int, now_s: float) -> list[ClientEffect]:
        """Subscribe, or give credit back once half the window is free."""
        watch = self._watches.get(subscription)
        if watch is None or watch.owed <= 0:
            return []
        if watch.asked:
            if watch.owed < (watch.window + 1) // 2:
                return []
            message: Message = Credit(subscription=subscription, credit=watch.owed)
        else:
            cursor = watch.cursor or Cursor(0, -1)
            watch.asked = self._entropy(limits.request_id_bytes)
            self._subscribing[watch.asked] = subscription
            message = Subscribe(
                request=watch.asked,
                subscription=subscription,
                ref=watch.ref,
                timeline=cursor.timeline,
                sequence=cursor.sequence,
                credit=watch.owed,
            )
        watch.granted += watch.owed
        return [self._dialler.send(message, now_s)]

    # --- silence ---

    def _hear(self, effects: list[ClientEffect], now_s: float) -> None:
        link = self._dialler.link
        answered = any(isinstance(effect, Rejected) for effect in effects)
        if answered or (link is not None and link.heard_s == now_s):
            self._unheard_s, self._listened_s = 0.0, now_s
            if self._silent:
                self._silent = False
                effects.append(MasterBack())

    def _listen(self, now_s: float) -> list[ClientEffect]:
        """Only time in which we listened counts as silence: a client that was itself stopped, or a
        suspended laptop, has heard nothing and knows nothing."""
        if self._listened_s is not None:
            self._unheard_s += min(max(now_s - self._listened_s, 0.0), limits.silence_s)
        self._listened_s = now_s
        if self._closed or self._silent or self._unheard_s < self.master_silence_s:
            return []
        self._silent = True
        return [MasterSilent(self._unheard_s)]

    # --- the end ---

    def _close(self, reason: str, now_s: float) -> list[ClientEffect]:
        if self._closed:
            return []
        self._closed = True
        effects: list[ClientEffect] = []
        for request_id in list(self._calls):
            effects += self._answer(request_id, _is_closed())
        effects += [self._fail(watch, _is_closed()) for watch in list(self._watches.values())]
        effects += self._dialled(self._dialler.hang_up(reason, now_s))
        return effects


def _error(failed: Failed) -> PosthouseError:
    return from_wire(failed.code, failed.message, failed.hint, failed.detail)


def _is_closed() -> PosthouseError:
    return Unreachable("this client is closed", hint="connect() opens another")
