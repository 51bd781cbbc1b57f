"""CORE: how an agent or a client opens a session, keeps it, and opens the next one.

Owns: HELLO and WELCOME, RENEW and GRANT, silence, back-off. Must not know: what travels in the
session, sockets, clocks, random (both are arguments).

Invariant: a session lives on exactly one socket. Whenever a session ends, whoever ended it, the
next one begins with Redial, that is on a fresh socket; so nothing queued for an old master or in
an old connection can reach a new session.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from posthouse import codec, limits
from posthouse.codec import NO_SESSION
from posthouse.errors import BadFrame
from posthouse.link import Link
from posthouse.messages import (
    KIND_OF,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    Goodbye,
    Grant,
    Hello,
    Message,
    Refused,
    Renew,
    Unsupported,
    Welcome,
)

__all__ = [
    "Delivered",
    "DialEffect",
    "Dialler",
    "Granted",
    "Lost",
    "Opened",
    "Redial",
    "Rejected",
    "Transmit",
]


@dataclass(frozen=True, slots=True)
class Redial:
    """Close the socket, if any, with all that is queued in it; open and connect a fresh one."""


@dataclass(frozen=True, slots=True)
class Transmit:
    """Put this frame on the socket of the last Redial; keep it only as long as that socket."""

    frame: bytes


@dataclass(frozen=True, slots=True)
class Opened:
    welcome: Welcome


@dataclass(frozen=True, slots=True)
class Lost:
    """The session is over; everything that was sent in it and not answered is unknown."""

    reason: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """The master refused the HELLO. Dialling goes on; a client may tell its caller."""

    refused: Refused


@dataclass(frozen=True, slots=True)
class Granted:
    """The lease runs to `stamp_s + lease_s` on our own clock (lease_s 0: no deadline). `stamp`:
    the same moment, as RENEW named it."""

    stamp_s: float
    lease_s: float
    stamp: int = 0


@dataclass(frozen=True, slots=True)
class Delivered:
    message: Message


DialEffect = Redial | Transmit | Opened | Lost | Rejected | Granted | Delivered


class _State(Enum):
    IDLE = "idle"
    GREETING = "greeting"
    OPEN = "open"


class Dialler:
    """The active end of sessions. `hello` makes a HELLO around a nonce; `entropy(n)` gives bytes;
    `in_force`, if given, tells the stamp of the newest grant that has taken effect.

    Keeps working until `hang_up`: every failure leads to another HELLO after a growing pause.
    """

    def __init__(
        self,
        hello: Callable[[bytes], Hello],
        entropy: Callable[[int], bytes],
        digest: Callable[[], bytes] = bytes,
        in_force: Callable[[], int] | None = None,
    ) -> None:
        self._in_force = in_force
        self._hello = hello
        self._entropy = entropy
        self._digest = digest
        self._state = _State.IDLE
        self._nonce = b""
        self._attempts = 0
        self._wake_s = 0.0
        self._deadline_s = 0.0  # greeting: give up; open: silence
        self._dialled_s = 0.0
        self._renew_s = limits.renew_s
        self._silence_s = limits.silence_s
        self._stamps: OrderedDict[int, None] = OrderedDict()
        self._granted = 0
        self._granted_lease_s = 0.0
        self.link: Link | None = None
        self.welcome: Welcome | None = None

    @property
    def open(self) -> bool:
        return self._state is _State.OPEN

    @property
    def greeting(self) -> bool:
        """HELLO is said, and not answered yet."""
        return self._state is _State.GREETING

    @property
    def wake_s(self) -> float:
        """When `tick` has to be called at the latest."""
        if self.link is None:
            return self._wake_s
        own = min(self._wake_s, self._deadline_s)
        link_wake = self.link.wake_s
        return own if link_wake is None else min(own, link_wake)

    def tick(self, now_s: float) -> list[DialEffect]:
        """Let time pass. The first call dials."""
        match self._state:
            case _State.IDLE:
                return self._dial(now_s) if now_s >= self._wake_s else []
            case _State.GREETING:
                if now_s < self._deadline_s:
                    return []
                return self._pause(now_s)
            case _State.OPEN:
                assert self.link is not None
                if now_s >= self._deadline_s:
                    return [*self._unheard(now_s), *self._lose("silence", now_s)]
                effects: list[DialEffect] = [Transmit(frame) for frame in self.link.due(now_s)]
                if now_s >= self._wake_s:
                    effects.append(self.renew(now_s))
                return effects

    def send(self, message: Message, now_s: float) -> Transmit:
        """A sequenced message in the open session. Raises LinkFull."""
        assert self.link is not None
        return Transmit(self.link.send(message, now_s))

    def hang_up(self, reason: str, now_s: float) -> list[DialEffect]:
        """Say goodbye, if there is someone to say it to, and do not dial again by itself."""
        effects: list[DialEffect] = []
        if self.link is not None and self.link.room > 0:
            effects.append(self.send(Goodbye(reason=reason), now_s))
        self._state, self.link, self._wake_s = _State.IDLE, None, float("inf")
        self._nonce = b""
        return effects

    def receive(self, frame: bytes, now_s: float) -> list[DialEffect]:
        """A frame came from the socket. A bad one ends the session."""
        try:
            envelope = codec.decode(frame)
            if self.link is None:  # also in the pause: libzmq connects again by itself
                return self._greeted(envelope, now_s)
            if envelope.session != self.link.session or envelope.epoch != self.link.epoch:
                return []  # of an older session: void
            message = self.link.receive(envelope, now_s)
            if envelope.body is None and message is not None:
                return [Transmit(self.link.loose(message))]  # a kind of a later version: say so
        except BadFrame as error:
            return self._lose(f"bad frame from the master: {error}", now_s) if self.open else []
        return self._opened_message(message, now_s) if message is not None else []

    def extend(self, now_s: float) -> None:
        """The other end has made progress that only its working thread can make (it acknowledged
        a page of a long inventory, which it answers with no GRANT): silence counts from now."""
        if self._state is _State.OPEN:
            self._deadline_s = max(self._deadline_s, now_s + self._silence_s)

    def broken(self, reason: str, now_s: float, *, retried: bool = False) -> list[DialEffect]:
        """The socket's connection broke (a monitor or an error said so). `retried`: nobody listens
        there, and the socket tries again by itself."""
        match self._state:
            case _State.OPEN:
                return self._lose(reason, now_s)
            case _State.GREETING if retried:
                return self._not_asked(now_s)
            case _State.GREETING:  # libzmq never tries a refused key again on this socket
                return self._pause(now_s)
            case _State.IDLE:
                return []

    def _opened_message(self, message: Message, now_s: float) -> list[DialEffect]:
        match message:
            case Grant():
                return self._grant(message, now_s)
            case Refused():
                return self._lose(f"{message.code}: {message.message}", now_s)
            case Goodbye():
                return self._lose(f"the master said goodbye: {message.reason}", now_s)
            case Unsupported():
                return []
            case _:
                return [Delivered(message)]

    def _greeted(self, envelope: codec.Envelope, now_s: float) -> list[DialEffect]:
        body = envelope.body
        if not self._nonce:  # nothing was asked, or it is answered
            return []
        if isinstance(body, Refused) and body.nonce in (b"", self._nonce):
            pause = self._pause(now_s, body.retry_after_s)
            self._nonce = b""
            return [Rejected(body), *pause]
        if not isinstance(body, Welcome) or body.nonce != self._nonce:
            return []
        if body.session == NO_SESSION or not PROTOCOL_MIN <= body.protocol <= PROTOCOL_MAX:
            wrong = Refused(code="protocol", message=f"the master chose protocol {body.protocol}")
            self._nonce = b""
            return [Rejected(wrong), *self._pause(now_s)]
        self._state, self._nonce = _State.OPEN, b""
        self.welcome = body
        self.link = Link(body.session, body.epoch, now_s)
        self._renew_s = min(max(body.renew_s, 0.05), 60.0)
        self._silence_s = min(max(body.silence_s, 2 * self._renew_s), 600.0)
        self._deadline_s = now_s + self._silence_s
        self._stamps.clear()
        self._granted, self._granted_lease_s = 0, 0.0
        return [Opened(body), self.renew(now_s)]

    def renew(self, now_s: float) -> Transmit:
        """Ask for a GRANT now; the next one is asked for a pace later."""
        assert self.link is not None
        stamp = int(now_s * 1e6)
        self._stamps[stamp] = None
        while len(self._stamps) > limits.renewals_remembered:
            self._stamps.popitem(last=False)
        self._wake_s = now_s + self._renew_s
        granted = self._granted if self._in_force is None else self._in_force()
        renew = Renew(stamp=stamp, granted=granted, digest=self._digest())
        return Transmit(self.link.loose(renew))

    def _grant(self, grant: Grant, now_s: float) -> list[DialEffect]:
        # Only a stamp we remember sending extends anything: not a forged one from the future.
        # The one that was granted last may be granted longer: a master that ends on purpose does.
        again = grant.stamp == self._granted and grant.lease_s > self._granted_lease_s > 0
        if grant.stamp not in self._stamps and not again:
            return []
        while self._stamps and next(iter(self._stamps)) <= grant.stamp:
            self._stamps.popitem(last=False)
        self._granted, self._granted_lease_s = grant.stamp, grant.lease_s
        self._attempts = 0  # not at WELCOME: one that refuses us next must not be redialled at once
        self._deadline_s = now_s + self._silence_s
        return [Granted(grant.stamp / 1e6, grant.lease_s, grant.stamp)]

    def _unheard(self, now_s: float) -> list[DialEffect]:
        # Where only one direction is cut, the master need not find out by itself.
        if self.link is None or self.link.room <= 0:
            return []
        return [self.send(Goodbye(reason="it hears nothing", unheard=True), now_s)]

    def _not_asked(self, now_s: float) -> list[DialEffect]:
        """HELLO has not left yet: the time for its answer counts from now. Now and then a fresh
        socket takes its place (the address may mean another place by now); and at once, because
        this is the one moment at which the old one cannot be about to send it."""
        if now_s < self._dialled_s + limits.silence_s:
            self._deadline_s = self._wake_s = now_s + limits.silence_s
        else:
            self._state, self._wake_s = _State.IDLE, now_s
            self._attempts -= 1
        return []

    def _dial(self, now_s: float) -> list[DialEffect]:
        self._state = _State.GREETING
        self._attempts += 1
        self._nonce = self._entropy(16)
        self._dialled_s = now_s
        self._deadline_s = self._wake_s = now_s + limits.silence_s
        hello = self._hello(self._nonce)
        body = codec.encode_body(hello)
        frame = codec.frame(KIND_OF[Hello], NO_SESSION, 0, 0, 0, body)
        return [Redial(), Transmit(frame)]

    def _pause(self, now_s: float, at_least_s: float = 0.0) -> list[DialEffect]:
        self._state, self.link = _State.IDLE, None
        backoff = limits.dial_backoff_s_min * 2 ** min(self._attempts, 10)
        backoff = min(backoff, limits.dial_backoff_s_max)
        jitter = 0.5 + self._entropy(1)[0] / 256  # 0.5 to 1.5: a fleet does not return in lockstep
        self._wake_s = now_s + max(backoff * jitter, min(at_least_s, 60.0))
        return []

    def _lose(self, reason: str, now_s: float) -> list[DialEffect]:
        self._pause(now_s)
        return [Lost(reason)]
