"""CORE: a client's side of the conversation, whatever happens to sessions and masters.

Owns: which requests wait for an answer, and since when no master answered. Must not know: sockets,
threads, clocks, random (an argument), what a handle makes of an event.

Invariant: a request keeps its id and is sent in every new session until it is answered or given
up. The watches keep their own (watches).

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
    PosthouseError,
    RequestConflict,
    TimedOut,
    Unreachable,
    UsageError,
    from_wire,
)
from posthouse.messages import (
    MUTATING,
    CursorTooOld,
    Events,
    Failed,
    Hello,
    Message,
    Reply,
    Request,
    Subscribed,
    Welcome,
)
from posthouse.watches import FROM_START, Arrived, Watch, Watches, WatchFailed

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
    """The socket's connection broke. `retried`: there is none yet, and the socket tries again."""

    reason: str
    retried: bool = False


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


class ClientCore:
    """`handle(input, now_s)` for every input; `wake_s` says when the next Tick is due."""

    def __init__(
        self,
        entropy: Callable[[int], bytes],
        *,
        version: str = "",
        master_silence_s: float | None = None,
    ) -> None:
        self._version = version
        self._silence_s = master_silence_s
        self._dialler = Dialler(self._hello, entropy)
        self._calls: dict[bytes, _Call] = {}
        self._unsent: deque[bytes] = deque()
        self._in_flight = 0
        self._watches = Watches(entropy)
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
            case Broken(reason, retried):
                effects += self._dialled(self._dialler.broken(reason, now_s, retried=retried))
            case Tick():
                effects += self._dialled(self._dialler.tick(now_s))
            case Call(request):
                effects += self._call(request)
            case Cancel(request_id):
                effects += self._cancel(request_id)
            case Watch(subscription) if self._closed:
                effects.append(WatchFailed(subscription, _is_closed()))
            case Watch():
                effects += self._watches.add(event)
            case Took(subscription, count):
                self._watches.took(subscription, count)
            case Unwatch(subscription):
                self._watches.remove(subscription)
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
        return effects + self._watches.opened(welcome.registry)

    def _begin_again(self) -> None:
        """No session, or a new one: whatever was sent counts as not sent."""
        for call in self._calls.values():
            call.in_flight = False
        self._watches.begin_again()
        self._unsent = deque(self._calls)
        self._in_flight = 0

    def _delivered(self, message: Message) -> list[ClientEffect]:
        watches = self._watches
        match message:
            case Subscribed(request=request_id) if watches.asked(request_id):
                assert self.welcome is not None
                watches.subscribed(message, self.welcome.registry)
                return []
            case Failed(request=request_id) if watches.asked(request_id):
                return [*watches.refused(request_id, _error(message))]
            case Events():
                return [*watches.events(message)]
            case CursorTooOld():
                return [*watches.too_old(message)]
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

    # --- what is still to be said in this session ---

    def _pump(self, now_s: float) -> list[ClientEffect]:
        effects: list[ClientEffect] = []
        link = self._dialler.link
        if not self._dialler.open or link is None:
            return effects
        while link.room > 0:
            message = self._watches.say()
            if message is None:
                break
            effects.append(self._dialler.send(message, now_s))
        while self._unsent and link.room > 0 and self._in_flight < limits.requests_in_flight_max:
            call = self._calls.get(self._unsent.popleft())
            if call is not None and not call.in_flight:
                assert self.welcome is not None
                call.registry, call.in_flight = self.welcome.registry, True
                self._in_flight += 1
                effects.append(self._dialler.send(call.request, now_s))
        return effects

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
        effects += self._watches.end(_is_closed())
        effects += self._dialled(self._dialler.hang_up(reason, now_s))
        return effects


def _error(failed: Failed) -> PosthouseError:
    return from_wire(failed.code, failed.message, failed.hint, failed.detail)


def _is_closed() -> PosthouseError:
    return Unreachable("this client is closed", hint="connect() opens another")
