"""CORE: one session's sequenced, acknowledged stream of messages. Both ends run it.

Owns: sequence numbers, cumulative acknowledgements, the bounded outbox, resending. Must not know:
how a session is opened (dial, the master's front door), what messages mean, sockets, clocks.

Invariant: within a session every sequenced message is delivered at most once and in order, and it
is resent until it is acknowledged; nothing of one session is ever delivered in another.

ZeroMQ loses what is in flight when a connection breaks and may deliver an old connection's bytes
late. So a receiver takes only the next number, drops the rest, and the sender goes back to the
oldest unacknowledged message when `limits.resend_s` has passed without progress.
"""

from collections import deque
from dataclasses import dataclass
from itertools import islice

from posthouse import codec, limits
from posthouse.codec import Envelope
from posthouse.errors import BadFrame, PosthouseError
from posthouse.messages import KIND_OF, UNSEQUENCED, Ack, Message, Unsupported

__all__ = ["Link", "LinkFull"]

_RESEND_BATCH = 64  # frames put on the wire again at a time: enough to fill a round trip


class LinkFull(PosthouseError):
    """The other end has not acknowledged for too long; the session has to end."""

    code = "link_full"


@dataclass(slots=True)
class _Sent:
    sequence: int
    kind: int
    body: bytes


class Link:
    """One end of an open session. Times are seconds of CLOCK_BOOTTIME, given by the caller."""

    def __init__(self, session: bytes, epoch: int, now_s: float) -> None:
        self.session = session
        self.epoch = epoch
        self.heard_s = now_s
        self._next = 1
        self._outbox: deque[_Sent] = deque()
        self._outbox_bytes = 0
        self._progress_s = now_s  # when the outbox last became shorter, or began
        self.repetitions = 0  # in a row, none of which has led to an acknowledgement
        self._repeated = 0  # the last number of the last repetition
        self._recover_to = 0  # numbers up to this were sent before that repetition began
        self._received = 0
        self._told = 0  # the acknowledgement that the other end has been sent
        self._ack_due_s: float | None = None

    def __repr__(self) -> str:
        return (
            f"Link({self.session.hex()[:8]} epoch={self.epoch} sent={self._next - 1} "
            f"unacknowledged={len(self._outbox)} received={self._received})"
        )

    @property
    def room(self) -> int:
        """Messages that may be sent before the link is full."""
        if self._outbox_bytes >= limits.outbox_bytes_max:
            return 0
        return limits.outbox_messages_max - len(self._outbox)

    @property
    def unacknowledged(self) -> int:
        return len(self._outbox)

    @property
    def acknowledged(self) -> int:
        """The highest sequence number of ours that the other end has acknowledged."""
        return self._outbox[0].sequence - 1 if self._outbox else self._next - 1

    @property
    def sent(self) -> int:
        """The sequence number given last."""
        return self._next - 1

    def send(self, message: Message, now_s: float) -> bytes:
        """The frame of a sequenced message, kept until it is acknowledged. Raises LinkFull, or
        InternalError for one that nobody would accept."""
        assert type(message) not in UNSEQUENCED
        body = codec.encode_body(message)
        if self.room <= 0:
            raise LinkFull(f"{len(self._outbox)} messages are unacknowledged")
        sent = _Sent(self._next, KIND_OF[type(message)], body)
        frame = self._frame(sent)  # first: a message that is too large must not stay in the outbox
        if not self._outbox:
            self._progress_s = now_s
        self._next += 1
        self._outbox.append(sent)
        self._outbox_bytes += len(body)
        return frame

    def loose(self, message: Message) -> bytes:
        """The frame of an unsequenced message. Only ACK acknowledges: a GRANT may overtake the
        commit that makes a received message durable, so it must not speak for it."""
        assert type(message) in UNSEQUENCED
        acknowledged = 0
        if isinstance(message, Ack):
            acknowledged = self._tell()
        body = codec.encode_body(message)
        return codec.frame(KIND_OF[type(message)], self.session, self.epoch, 0, acknowledged, body)

    def receive(self, envelope: Envelope, now_s: float) -> Message | None:
        """The message to be handled, or None for a repetition, a gap or a bare acknowledgement.

        The caller has matched the session. Raises BadFrame for an acknowledgement of what was
        never sent, a sequenced message without a number or the other way round.
        """
        if envelope.acknowledged >= self._next:
            raise BadFrame(f"acknowledges {envelope.acknowledged}, sent {self._next - 1}")
        self.heard_s = now_s
        self._acknowledge(envelope.acknowledged, now_s)
        body = envelope.body
        if body is not None and (envelope.sequence == 0) != (type(body) in UNSEQUENCED):
            raise BadFrame(f"{type(body).__name__} with sequence {envelope.sequence}")
        if envelope.sequence == 0:
            return None if body is None or isinstance(body, Ack) else body
        self._ack_due_s = self._ack_due_s or now_s + limits.ack_delay_s
        if envelope.sequence != self._received + 1:
            if envelope.sequence <= self._received:
                self._told = min(self._told, self._received - 1)  # it missed our word: say it again
            return None
        self._received = envelope.sequence
        return Unsupported(kind=envelope.kind) if body is None else body

    def due(self, now_s: float) -> list[bytes]:
        """Frames whose time has come: repetitions, or a bare acknowledgement."""
        frames = []
        if self._outbox and now_s >= self._progress_s + limits.resend_s:
            self._progress_s = now_s
            self.repetitions += 1
            again = list(islice(self._outbox, _RESEND_BATCH))
            self._repeated = again[-1].sequence
            self._recover_to = max(self._recover_to, self.sent)
            frames = [self._frame(sent) for sent in again]
        if self._ack_due_s is not None and now_s >= self._ack_due_s:
            self._ack_due_s = None
            if self._told < self._received:
                frames.append(self.loose(Ack()))
        return frames

    @property
    def wake_s(self) -> float | None:
        """When `due` may have something next."""
        resend = self._progress_s + limits.resend_s if self._outbox else None
        times = [t for t in (resend, self._ack_due_s) if t is not None]
        return min(times, default=None)

    def _frame(self, sent: _Sent) -> bytes:
        return codec.frame(
            sent.kind, self.session, self.epoch, sent.sequence, self._tell(), sent.body
        )

    def _tell(self) -> int:
        self._told = self._received
        self._ack_due_s = None
        return self._received

    def _acknowledge(self, acknowledged: int, now_s: float) -> None:
        while self._outbox and self._outbox[0].sequence <= acknowledged:
            self._outbox_bytes -= len(self._outbox.popleft().body)
            self._progress_s = now_s
            self.repetitions = 0
        # A whole repetition has arrived and more was sent before it: the receiver dropped that as
        # it came after a gap, so the next batch need not wait for another timeout.
        if self._outbox and acknowledged == self._repeated < self._recover_to:
            self._progress_s = now_s - limits.resend_s
