"""A peer as docs/reference/protocol.md describes it: raw DEALERs, frames built by hand.

Owns: bytes, sockets, sequence numbers and acknowledgements of the peers that a case plays, and the
laws that every frame of a master has to keep. Must not know: anything of posthouse's own code, so
that a master in another language is judged by the same bytes. Invariant: every wait has an end.
"""

import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgpack
import zmq

__all__ = [
    "NOBODY",
    "UNSEQUENCED",
    "Frame",
    "Keys",
    "Mismatch",
    "NoConnection",
    "Peer",
    "Wires",
    "assembled",
    "pack",
]

HELLO, WELCOME, REFUSED, RENEW, GRANT, ACK, UNSUPPORTED, GOODBYE = range(1, 9)
INVENTORY, STARTED, START_FAILED, READY, EXITED, STOP_DONE, LOG_CHUNK = range(10, 17)
HOST_TOLD, WORKER_ASKS = 18, 19
START, STOP, SIGNAL, SET_LATCH, READ_LOG, RENEW_RUNTIMES = range(20, 26)
DUMP_STACKS, WORKER_ANSWER, MEASURE, NOTIFY = range(26, 30)
REGISTER, TERMINATE, SIGNAL_WORKER, LATCH_WORKER, SHUTDOWN, HOLD, RELEASE, RESTART = range(30, 38)
DRAIN, RELOAD_RUNTIMES = 38, 39
GET_STATUS, LIST_WORKERS, LIST_HOSTS, EXPLAIN, READ_OUTPUT = range(40, 45)
SUBSCRIBE, CREDIT, UNSUBSCRIBE = range(45, 48)
APPLY, REGISTER_GROUP, DECLARE_PART = range(50, 53)
GET_STACKS, GET_USAGE = 54, 55
REGISTERED, DONE, STATUS_REPLY, WORKERS_PAGE, HOSTS_PAGE, EXPLAINED = range(60, 66)
OUTPUT, SUBSCRIBED, FAILED, EVENTS, CURSOR_TOO_OLD = range(66, 71)
DRAINED, APPLIED, GROUP_REGISTERED = range(71, 74)
STACKS, USAGE = 76, 77
UNKNOWN: Final = 4_000_000  # a number that no version will give to a kind

UNSEQUENCED: Final = frozenset({HELLO, WELCOME, REFUSED, RENEW, GRANT, ACK, UNSUPPORTED})
FROM_MASTER: Final = frozenset({GOODBYE, *range(20, 30), *range(60, 78)}) | UNSEQUENCED
# Within each of these the order is the master's; one of them may overtake another.
ANSWERS: Final = frozenset((*range(REGISTERED, EVENTS), *range(71, 74), STACKS, USAGE))
STREAMS: Final = (
    ANSWERS,
    frozenset({EVENTS, CURSOR_TOO_OLD}),
    frozenset(range(START, NOTIFY + 1)),
    frozenset({UNSUPPORTED}),
)
NOBODY: Final = bytes(16)

_RENEW_S: Final = 0.5
_OPTIONS: Final = (
    (zmq.LINGER, 0),
    (zmq.IMMEDIATE, 1),
    (zmq.HEARTBEAT_IVL, 2000),
    (zmq.HEARTBEAT_TIMEOUT, 6000),
    (zmq.HEARTBEAT_TTL, 6000),
    (zmq.MAXMSGSIZE, 262144),
)
_GOODBYE_LINGER_MS: Final = 100

Found = TypeVar("Found")


class Mismatch(Exception):
    """The master did something else than the document says."""

    def __init__(self, expected: str, got: object) -> None:
        super().__init__(expected, got)
        self.expected = expected
        self.got = got if isinstance(got, str) else _shown(got)


class NoConnection(Exception):
    """No master took a frame in time."""


@dataclass(frozen=True, slots=True)
class Keys:
    """CURVE keys of a peer, in Z85."""

    public: str
    secret: str
    server: str


@dataclass(frozen=True, slots=True)
class Frame:
    """What came, decoded and not judged."""

    kind: int
    session: bytes
    epoch: int
    sequence: int
    acknowledged: int
    body: dict[str, Any]


def pack(value: object) -> bytes:
    """MessagePack."""
    packed: bytes = msgpack.packb(value)
    return packed


def assembled(
    kind: object,
    session: object,
    epoch: object,
    sequence: object,
    acknowledged: object,
    body: bytes,
) -> bytes:
    """A frame from five values and a body that is packed already, well-formed or not."""
    head = (kind, session, epoch, sequence, acknowledged)
    return b"\x96" + b"".join(pack(value) for value in head) + body


class Wires:
    """All peers of a case, driven by one thread, and the moment by which the case must be over."""

    def __init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.peers: list[Peer] = []
        self.handles: list[dict[str, Any]] = []  # of every REGISTERED and APPLIED that came in
        self.end_s = 0.0
        self.span_s = 0.0

    def begin(self, span_s: float) -> None:
        """All waits together end this long from now."""
        self.span_s = span_s
        self.end_s = time.monotonic() + span_s

    def peer(self, endpoint: str, keys: Keys | None, **hello: Any) -> "Peer":
        """Another peer, not connected yet."""
        self.peers.append(Peer(self, endpoint, keys, hello))
        return self.peers[-1]

    def turn(self, wait_ms: int = 10) -> None:
        """Receive what there is, acknowledge it, renew."""
        poller = zmq.Poller()
        connected = [peer for peer in self.peers if peer.socket is not None]
        for peer in connected:
            peer.keep_up()
            poller.register(peer.socket, zmq.POLLIN)
        poller.poll(wait_ms)
        for peer in connected:
            peer.receive()
            peer.keep_up()

    def wait(self, what: str, look: Callable[[], Found | None]) -> Found:
        """What `look` finds at last. Raises Mismatch, which says `what` was awaited."""
        while not (found := look()):
            if time.monotonic() > self.end_s:
                states = "; ".join(str(peer) for peer in self.peers if peer.socket is not None)
                raise Mismatch(what, f"nothing within {self.span_s:g} s ({states})")
            self.turn()
        return found

    def idle(self, span_s: float) -> None:
        """Let time pass, in which something may come that should not."""
        end_s = time.monotonic() + span_s
        while time.monotonic() < end_s:
            self.turn()

    def close(self, keep: "Peer | None" = None) -> None:
        """Leave every session and drop every socket, but for one."""
        for peer in self.peers:
            if peer is not keep:
                peer.leave()
        self.peers[:] = [peer for peer in self.peers if peer is keep]

    def term(self) -> None:
        """The end of all sockets."""
        self.close()
        self.context.term()


class Peer:
    """One DEALER and its present session. Flags switch off what a peer should do."""

    def __init__(
        self, wires: Wires, endpoint: str, keys: Keys | None, hello: dict[str, Any]
    ) -> None:
        self.wires = wires
        self.endpoint = endpoint
        self.keys = keys
        self.hello = hello
        self.socket: zmq.Socket[bytes] | None = None
        self._forget()

    def __str__(self) -> str:
        state = f"over: {_shown(self.over)}" if self.over else "open" if self.open_now else "no"
        return f"{self.hello['role']}: session {state}, sent {self.sent}, acked {self.acked}"

    def _forget(self) -> None:
        self.session, self.epoch = NOBODY, 0
        self.sent = self.acked = self.received = self.told = 0
        self.inbox: deque[Frame] = deque()  # sequenced messages in order, and UNSUPPORTED
        self.arrived: list[Frame] = []  # every sequenced frame of the session, repetitions too
        self.strays: list[Frame] = []  # frames of no session or of another
        self.granted: list[Frame] = []
        self.over: dict[str, Any] | None = None
        self.renewing = self.acknowledging = True
        self._renewed_s = 0.0

    @property
    def open_now(self) -> bool:
        return self.socket is not None and self.session != NOBODY and self.over is None

    # --- the socket ---

    def connect(self) -> None:
        """A fresh socket without a session."""
        self.drop()
        self._forget()
        made = self.wires.context.socket(zmq.DEALER)
        for option, value in _OPTIONS:
            made.setsockopt(option, value)
        if self.keys is not None:
            made.curve_publickey = self.keys.public.encode()
            made.curve_secretkey = self.keys.secret.encode()
            made.curve_serverkey = self.keys.server.encode()
        made.connect(self.endpoint)
        self.socket = made

    def drop(self, linger_ms: int = 0) -> None:
        """Close the socket without a word."""
        if self.socket is not None:
            self.socket.close(linger_ms)
            self.socket = None

    def leave(self) -> None:
        """GOODBYE, if there is a session, and close."""
        if self.socket is not None and self.open_now and self.socket.poll(0, zmq.POLLOUT):
            self.socket.send(self.frame(GOODBYE, {}, self.sent + 1, self.received), zmq.NOBLOCK)
            self.drop(_GOODBYE_LINGER_MS)
        self.drop()

    def put(self, *parts: bytes) -> None:
        """Send these bytes as one message. Raises NoConnection."""
        assert self.socket is not None
        left_ms = max(0, int((self.wires.end_s - time.monotonic()) * 1000))
        if not self.socket.poll(left_ms, zmq.POLLOUT):
            raise NoConnection(f"{self.endpoint} took no frame within {left_ms / 1000:g} s")
        self.socket.send_multipart(parts)

    def frame(self, kind: int, body: Any, sequence: int = 0, acknowledged: int = 0) -> bytes:
        """A frame of this session."""
        return pack([kind, self.session, self.epoch, sequence, acknowledged, body])

    # --- the session ---

    def greet(self, **hello: Any) -> Frame:
        """HELLO on a fresh socket, and the WELCOME or REFUSED that answers it."""
        self.connect()
        return self.greet_again(**hello)

    def greet_again(self, **hello: Any) -> Frame:
        """HELLO on the socket that there is."""
        nonce = os.urandom(16)
        begun = len(self.strays)
        body = {"nonce": nonce, **self.hello, **hello}
        self.put(pack([HELLO, NOBODY, 0, 0, 0, body]))

        def answer() -> Frame | None:
            for frame in self.strays[begun:]:
                if frame.kind == WELCOME and frame.body.get("nonce") == nonce:
                    return frame
                if frame.kind == REFUSED and frame.body.get("nonce", b"") in (nonce, b""):
                    return frame
            return None

        return self.wires.wait("WELCOME or REFUSED with the nonce of the HELLO", answer)

    def open(self, **hello: Any) -> dict[str, Any]:
        """A session; the body of its WELCOME. Waits where it is told to come later."""
        while True:
            answer = self.greet(**hello)
            if answer.kind == WELCOME:
                break
            pause_s = float(answer.body.get("retry_after_s", 0.0))
            if not pause_s or time.monotonic() + pause_s > self.wires.end_s:
                raise Mismatch("WELCOME", f"REFUSED {_shown(answer.body)}")
            self.wires.idle(max(0.05, pause_s))
        self.adopt(answer)
        return answer.body

    def adopt(self, welcome: Frame) -> None:
        """Go on in the session of this WELCOME."""
        socket = self.socket
        self._forget()
        self.socket = socket
        self.session, self.epoch = welcome.body["session"], welcome.body["epoch"]

    def send(self, kind: int, /, **body: Any) -> int:
        """The next sequenced message; its number."""
        assert kind not in UNSEQUENCED
        self.sent += 1
        self.told = self.received
        self.put(self.frame(kind, body, self.sent, self.received))
        return self.sent

    def ask(self, kind: int, answer: int, request: bytes = b"", **body: Any) -> dict[str, Any]:
        """The body of the answer to a request, which must be of this kind."""
        request = request or os.urandom(16)
        self.send(kind, request=request, **body)
        return self.answer(answer, request)

    def answer(self, kind: int, request: bytes) -> dict[str, Any]:
        """The body of the answer to this request, which must be of this kind."""
        found = self._pick(
            f"kind {kind} for request {request.hex()}",
            lambda frame: frame.kind in ANSWERS and frame.body.get("request") == request,
        )
        if found.kind != kind:
            raise Mismatch(f"kind {kind} for request {request.hex()}", found)
        return found.body

    def next(self, kind: int) -> dict[str, Any]:
        """The body of the next message of its stream, which must be of this kind."""
        return self.next_of(kind).body

    def next_of(self, *kinds: int) -> Frame:
        """The next message of its stream (answers, events, commands), of one of these kinds."""
        wanted = " or ".join(f"kind {kind}" for kind in kinds)
        stream = next(one for one in STREAMS if kinds[0] in one)
        frame = self._pick(wanted, lambda frame: frame.kind in stream)
        if frame.kind not in kinds:
            raise Mismatch(wanted, frame)
        return frame

    def _pick(self, what: str, fits: Callable[[Frame], bool]) -> Frame:
        def look() -> Frame | bool:
            return next((frame for frame in self.inbox if fits(frame)), self.over is not None)

        found = self.wires.wait(what, look)
        if not isinstance(found, Frame):
            raise Mismatch(what, f"the end of the session: {_shown(self.over)}")
        self.inbox.remove(found)
        return found

    def settled(self) -> None:
        """Wait until everything that was sent is acknowledged: durable, says a master."""
        self.wires.wait(
            f"an acknowledgement of everything sent, {self.sent}", lambda: self.acked >= self.sent
        )

    def ended(self, code: str) -> dict[str, Any]:
        """Wait until the master ends the session by REFUSED with this code."""
        body = self.wires.wait(f"REFUSED {code} in the session", lambda: self.over)
        if body.get("code") != code:
            raise Mismatch(f"REFUSED {code} in the session", body)
        return body

    # --- receiving ---

    def receive(self) -> None:
        """Take all frames that have arrived."""
        while self.socket is not None and self.socket.poll(0):
            parts = self.socket.recv_multipart()
            if len(parts) != 1:
                raise Mismatch("messages of one part", f"{len(parts)} parts")
            try:
                values = msgpack.unpackb(parts[0])
            except (ValueError, msgpack.exceptions.UnpackException) as error:
                raise Mismatch("frames of MessagePack", f"{error!r}: {parts[0][:64]!r}") from None
            if not isinstance(values, list) or [type(value) for value in values] != [
                *(int, bytes, int, int, int, dict)
            ]:
                raise Mismatch("[kind, session, epoch, sequence, acknowledged, body]", values)
            self._sort(Frame(*values))

    def _sort(self, frame: Frame) -> None:
        if self.session == NOBODY or (frame.session, frame.epoch) != (self.session, self.epoch):
            self.strays.append(frame)
            return
        self._judge(frame)
        if frame.kind == ACK or frame.kind not in UNSEQUENCED:
            self.acked = max(self.acked, frame.acknowledged)
        if frame.kind not in UNSEQUENCED:
            self._take(frame)
        elif frame.kind == GRANT:
            self.granted.append(frame)
        elif frame.kind == REFUSED:
            self.over = self.over or frame.body  # what we sent meanwhile may be answered as well
        elif frame.kind == UNSUPPORTED:
            self.inbox.append(frame)

    def _judge(self, frame: Frame) -> None:
        if frame.kind not in FROM_MASTER:
            raise Mismatch("a kind that a master sends", frame)
        if frame.acknowledged > self.sent:
            raise Mismatch(f"nothing above {self.sent} is acknowledged", frame)
        if frame.kind in UNSEQUENCED:
            if frame.sequence or (frame.kind != ACK and frame.acknowledged):
                raise Mismatch("numbers 0 in an unsequenced message", frame)
        elif frame.sequence < 1:
            raise Mismatch("numbers from 1 in sequenced messages", frame)

    def _take(self, frame: Frame) -> None:
        self.arrived.append(frame)
        if frame.sequence <= self.received:
            self.told = -1  # the other side missed our acknowledgement
        elif frame.sequence == self.received + 1:
            self.received = frame.sequence
            self.inbox.append(frame)
            if frame.kind == REGISTERED:
                self.wires.handles.append(frame.body["handle"])
            elif frame.kind == APPLIED:
                handles = (change.get("handle") for change in frame.body.get("changes", []))
                self.wires.handles += [handle for handle in handles if handle is not None]
            elif frame.kind == GOODBYE:
                self.over = {"code": "goodbye", **frame.body}

    def keep_up(self) -> None:
        """Acknowledge and renew; both may be lost."""
        if self.socket is None or not self.open_now:
            return
        due: list[bytes] = []
        if self.acknowledging and self.told < self.received:
            self.told = self.received
            due.append(self.frame(ACK, {}, 0, self.received))
        now_s = time.monotonic()
        if self.renewing and now_s - self._renewed_s > _RENEW_S:
            self._renewed_s = now_s
            due.append(self.frame(RENEW, {"stamp": int(now_s * 1e6)}))
        for packed in due:
            if self.socket.poll(0, zmq.POLLOUT):
                self.socket.send(packed, zmq.NOBLOCK)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 400 else f"{text[:400]}..."
