"""The dialler: opening, keeping and losing sessions, on a virtual clock, the master by hand."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posthouse import limits
from posthouse.codec import NO_SESSION, Envelope, decode, encode
from posthouse.dial import (
    Delivered,
    DialEffect,
    Dialler,
    Granted,
    Lost,
    Opened,
    Redial,
    Rejected,
    Transmit,
)
from posthouse.link import Link
from posthouse.messages import (
    Goodbye,
    Grant,
    Hello,
    Message,
    Refused,
    Renew,
    Start,
    Stop,
    Unsubscribe,
    Welcome,
)
from posthouse.states import StopReason

REGISTRY = "9f" * 16
STOP = Stop(
    registry=REGISTRY,
    slot=1,
    generation=1,
    token=1,
    reason=StopReason.TERMINATE,
    signal=15,
    grace_s=5.0,
)


class Peer:
    """A dialler, its clock, and the master's end of what it says."""

    def __init__(self) -> None:
        self.counter = 0
        self.now_s = 1000.0
        self.dialler = Dialler(lambda nonce: Hello(nonce=nonce, role="agent"), self.entropy)
        self.redials = 0
        self.frames: list[Envelope] = []
        self.told: list[DialEffect] = []
        self.sessions = 0
        self.link: Link | None = None

    def entropy(self, count: int) -> bytes:
        self.counter += 1
        return self.counter.to_bytes(count) if count > 1 else b"\x80"

    def run(self, effects: list[DialEffect]) -> list[DialEffect]:
        """What a shell does; returns the effects that are for the owner."""
        told: list[DialEffect] = []
        for effect in effects:
            match effect:
                case Redial():
                    self.redials += 1
                    self.frames.clear()
                case Transmit(frame):
                    assert self.redials, "nothing is sent before the first dial"
                    self.frames.append(decode(frame))
                case _:
                    told.append(effect)
        return told

    def tick(self, seconds: float = 0.0) -> list[DialEffect]:
        self.now_s += seconds
        return self.run(self.dialler.tick(self.now_s))

    def hear(self, frame: bytes) -> list[DialEffect]:
        return self.run(self.dialler.receive(frame, self.now_s))

    def said(self, cls: type[Message]) -> list[Any]:
        return [envelope.body for envelope in self.frames if isinstance(envelope.body, cls)]

    def welcome(self, **changes: Any) -> Welcome:
        self.sessions += 1
        fields = {
            "nonce": self.said(Hello)[-1].nonce,
            "session": self.sessions.to_bytes(16),
            "epoch": 7,
            "timeline": 1,
            "registry": REGISTRY,
            "protocol": 0,
            "principal": "agent:b",
        }
        return Welcome(**{**fields, **changes})

    def answer(self, welcome: Welcome) -> list[DialEffect]:
        self.link = Link(welcome.session, welcome.epoch, self.now_s)
        return self.hear(loose(welcome))

    def open(self, **changes: Any) -> "Peer":
        """Dial until a session is open and kept by a GRANT."""
        while not self.said(Hello):
            self.tick(0.1)
        assert self.answer(self.welcome(**changes)) == [Opened(self.dialler.welcome)]  # type: ignore[arg-type]
        return self

    def grant(self, stamp: int | None = None) -> list[DialEffect]:
        assert self.link is not None
        last = self.said(Renew)[-1].stamp
        return self.hear(self.link.loose(Grant(stamp=last if stamp is None else stamp)))


def loose(message: Message, session: bytes = NO_SESSION, epoch: int = 0) -> bytes:
    return encode(Envelope(session, epoch, 0, 0, message))


@pytest.fixture
def peer() -> Peer:
    return Peer()


# --- opening ---


def test_the_first_tick_dials(peer: Peer) -> None:
    assert peer.dialler.tick(0.0)[0] == Redial()
    peer.tick()
    assert not peer.dialler.open


def test_a_hello_goes_out_on_a_fresh_socket(peer: Peer) -> None:
    peer.tick()
    (hello,) = peer.frames
    assert (hello.session, hello.epoch, hello.sequence, hello.acknowledged) == (NO_SESSION, 0, 0, 0)
    assert isinstance(hello.body, Hello)
    assert (peer.redials, peer.tick(0.1), len(peer.frames)) == (1, [], 1)


def test_a_welcome_opens_and_the_first_renew_goes_at_once(peer: Peer) -> None:
    peer.open()
    assert peer.dialler.open
    (renew,) = peer.said(Renew)
    assert (renew.stamp, renew.granted) == (int(peer.now_s * 1e6), 0)
    assert (peer.frames[-1].session, peer.frames[-1].epoch) == ((1).to_bytes(16), 7)


def test_a_welcome_to_another_hello_is_ignored(peer: Peer) -> None:
    peer.tick()
    assert peer.answer(peer.welcome(nonce=b"x" * 16)) == []
    assert not peer.dialler.open
    peer.open()
    assert peer.redials == 1


def test_a_refusal_of_another_hello_is_ignored(peer: Peer) -> None:
    peer.tick()
    assert peer.hear(loose(Refused(code="host_taken", nonce=b"x" * 16))) == []
    peer.open()


@pytest.mark.parametrize("changes", [{"protocol": 1}, {"session": NO_SESSION}])
def test_a_welcome_that_cannot_be_is_rejected(peer: Peer, changes: dict[str, Any]) -> None:
    peer.tick()
    (rejected,) = peer.answer(peer.welcome(**changes))
    assert isinstance(rejected, Rejected)
    assert rejected.refused.code == "protocol"
    assert not peer.dialler.open
    peer.frames.clear()
    peer.open()


def test_no_answer_leads_to_a_fresh_socket_and_another_nonce(peer: Peer) -> None:
    peer.tick()
    first = peer.said(Hello)[0]
    peer.tick(limits.silence_s)
    assert not peer.dialler.open
    while peer.redials == 1:
        peer.tick(0.05)
    assert peer.said(Hello)[0].nonce != first.nonce
    # The answer to the first one comes late, on whatever way.
    assert peer.answer(peer.welcome(nonce=first.nonce)) == []
    peer.open()


def test_a_refused_hello_is_told_and_tried_again_when_it_says(peer: Peer) -> None:
    peer.tick()
    nonce = peer.said(Hello)[0].nonce
    refused = Refused(code="host_taken", retry_after_s=5.0, nonce=nonce)
    assert peer.hear(loose(refused)) == [Rejected(refused)]
    peer.tick(4.9)
    assert peer.redials == 1
    peer.tick(0.2)
    assert peer.redials == 2
    peer.open()


def test_a_refusal_cannot_silence_a_peer_for_long(peer: Peer) -> None:
    peer.tick()
    peer.hear(loose(Refused(code="x", retry_after_s=1e15)))
    peer.tick(61.0)
    assert peer.redials == 2


def test_nonsense_while_greeting_is_ignored(peer: Peer) -> None:
    peer.tick()
    for frame in (b"", b"\xc1", loose(Grant(stamp=1)), loose(STOP), encode_unknown()):
        assert peer.hear(frame) == []
    peer.open()


def encode_unknown(kind: int = 99, sequence: int = 0) -> bytes:
    import msgpack

    packed: bytes = msgpack.packb([kind, NO_SESSION, 0, sequence, 0, {}])
    return packed


def test_a_connection_that_breaks_while_greeting_is_dialled_anew(peer: Peer) -> None:
    # libzmq never tries a key again that was refused once: waiting longer would be in vain.
    peer.tick()
    assert peer.run(peer.dialler.broken("the master does not accept our key", peer.now_s)) == []
    peer.tick(limits.dial_backoff_s_max * 1.5)
    assert peer.redials == 2
    assert peer.run(peer.dialler.broken("again", peer.now_s)) == []
    assert peer.run(peer.dialler.broken("idle: nothing to break", peer.now_s)) == []


def test_while_nobody_listens_the_socket_that_has_the_hello_is_kept(peer: Peer) -> None:
    """The HELLO of a socket that is closed may just be on its way, and then begins a session that
    is over at once: its host would be told as gone and back."""
    peer.tick()
    for _ in range(20):  # each time the answer has its whole time again
        peer.run(peer.dialler.broken("nobody listens there", peer.now_s, retried=True))
        peer.tick()  # a fresh one takes its place now and then, when it cannot have sent it
        before = peer.redials
        peer.tick(limits.silence_s * 0.9)
        assert (peer.redials, len(peer.said(Hello))) == (before, 1)
    assert peer.redials == 10
    peer.open()


def test_waiting_for_somebody_to_listen_makes_no_pause_longer(peer: Peer) -> None:
    peer.tick()
    for _ in range(10):
        peer.now_s += limits.silence_s
        peer.run(peer.dialler.broken("nobody listens there", peer.now_s, retried=True))
        peer.tick()
    assert peer.redials == 11
    peer.run(peer.dialler.broken("disconnected", peer.now_s))
    assert peer.dialler.wake_s - peer.now_s == pytest.approx(2 * limits.dial_backoff_s_min)


# --- keeping ---


@pytest.mark.parametrize("why", ["silence", "the connection broke"])
def test_a_welcome_that_comes_during_the_pause_opens(peer: Peer, why: str) -> None:
    """libzmq connects again by itself, and a master that has just begun answers late: the session
    is there, and another HELLO would end it (its host would be told as gone and back)."""
    peer.tick()
    welcome = peer.welcome()
    if why == "silence":
        peer.tick(limits.silence_s)
    else:
        peer.run(peer.dialler.broken(why, peer.now_s))
    assert peer.answer(welcome) == [Opened(welcome)]
    assert peer.dialler.open
    peer.tick(limits.dial_backoff_s_max)  # longer than the pause
    assert peer.redials == 1


def test_a_welcome_opens_nothing_a_second_time(peer: Peer) -> None:
    welcome = peer.open().dialler.welcome
    assert welcome is not None
    peer.run(peer.dialler.broken("lost", peer.now_s))
    assert peer.answer(welcome) == []
    hung_up = Peer()
    hung_up.tick()
    late = hung_up.welcome()
    hung_up.dialler.hang_up("ended", hung_up.now_s)
    assert hung_up.answer(late) == []
    assert not hung_up.dialler.open


def test_renewals_go_at_the_masters_pace(peer: Peer) -> None:
    peer.open(renew_s=0.5, silence_s=3.0)
    for _ in range(20):
        peer.grant()
        peer.tick(0.25)
    assert peer.dialler.open
    assert len(peer.said(Renew)) == 11
    assert peer.said(Renew)[-1].granted == peer.said(Renew)[-2].stamp


def test_a_grant_counts_from_the_stamp(peer: Peer) -> None:
    peer.open()
    stamp = peer.said(Renew)[-1].stamp
    peer.now_s += 0.7
    assert peer.hear(peer.link.loose(Grant(stamp=stamp, lease_s=30.0))) == [  # type: ignore[union-attr]
        Granted(stamp / 1e6, 30.0, stamp)
    ]


def test_silence_ends_the_session(peer: Peer) -> None:
    peer.open()
    peer.grant()
    for _ in range(23):
        assert peer.tick(0.1) == []
    assert peer.tick(0.2) == [Lost("silence")]
    assert not peer.dialler.open
    assert peer.said(Goodbye) == [Goodbye(reason="it hears nothing", unheard=True)]
    peer.frames.clear()
    peer.open()
    assert peer.redials == 2


def test_other_messages_do_not_break_the_silence(peer: Peer) -> None:
    # Only what the thread that does the work answers counts.
    peer.open()
    assert peer.link is not None
    lost: list[DialEffect] = []
    while not lost:
        peer.hear(peer.link.send(STOP, peer.now_s))
        lost = peer.tick(0.1)
    assert lost == [Lost("silence")]
    assert 1002.3 < peer.now_s < 1002.6


def test_progress_can_be_made_to_count(peer: Peer) -> None:
    peer.open()
    for _ in range(50):
        peer.dialler.extend(peer.now_s)
        assert peer.tick(0.2) == []
    assert peer.dialler.open


@pytest.mark.parametrize("off", [1, -1, 999_999, -(10**6), 2**62])
def test_only_stamps_that_were_sent_extend(peer: Peer, off: int) -> None:
    peer.open()
    stamp = peer.said(Renew)[-1].stamp
    lost: list[DialEffect] = []
    while not lost:
        assert peer.grant(max(stamp + off, 0)) == []
        lost = peer.tick(0.1)
    assert lost == [Lost("silence")]


def test_a_stamp_extends_once_and_older_ones_no_more(peer: Peer) -> None:
    peer.open()
    old = peer.said(Renew)[-1].stamp
    peer.tick(1.0)
    new = peer.said(Renew)[-1].stamp
    assert len(peer.grant(new)) == 1
    assert peer.grant(new) == []
    assert peer.grant(old) == []


def test_remembered_stamps_are_bounded(peer: Peer) -> None:
    peer.open(renew_s=0.05, silence_s=600.0)
    first = peer.said(Renew)[0].stamp
    for _ in range(limits.renewals_remembered):
        peer.tick(0.06)
    assert len(peer.said(Renew)) == limits.renewals_remembered + 1
    assert peer.grant(first) == []
    assert len(peer.grant(peer.said(Renew)[1].stamp)) == 1


@pytest.mark.parametrize(
    ("given", "renew_s", "silence_s"),
    [
        ({"renew_s": 0.0, "silence_s": 0.0}, 0.05, 0.1),
        ({"renew_s": -5.0, "silence_s": -5.0}, 0.05, 0.1),
        ({"renew_s": 1e15, "silence_s": 1e15}, 60.0, 600.0),
        ({"renew_s": 2.0, "silence_s": 1.0}, 2.0, 4.0),
    ],
)
def test_the_masters_pace_is_bounded(
    peer: Peer, given: dict[str, float], renew_s: float, silence_s: float
) -> None:
    peer.open(**given)
    start_s = peer.now_s
    lost: list[DialEffect] = []
    while not lost:
        assert peer.dialler.wake_s <= peer.now_s + renew_s + 1e-6
        peer.now_s = max(peer.dialler.wake_s, peer.now_s + 0.001)
        lost = peer.tick()
    assert lost == [Lost("silence")]
    assert start_s + silence_s <= peer.now_s < start_s + silence_s + 0.01


# --- what travels in the session ---


def test_messages_are_delivered_once(peer: Peer) -> None:
    peer.open()
    assert peer.link is not None
    frame = peer.link.send(STOP, peer.now_s)
    assert peer.hear(frame) == [Delivered(STOP)]
    assert peer.hear(frame) == []
    peer.tick(limits.ack_delay_s)
    assert peer.frames[-1].acknowledged == 1


def test_messages_that_are_not_acknowledged_are_repeated(peer: Peer) -> None:
    peer.open()
    peer.run([peer.dialler.send(Unsubscribe(subscription=1), peer.now_s)])
    for _ in range(2):
        peer.grant()
        peer.tick(limits.resend_s)
    assert [e.sequence for e in peer.frames if isinstance(e.body, Unsubscribe)] == [1, 1, 1]


def test_an_unknown_kind_is_answered(peer: Peer) -> None:
    import msgpack

    peer.open()
    assert peer.link is not None
    frame = msgpack.packb([99, peer.link.session, 7, 1, 0, {"x": 1}])
    assert peer.hear(frame) == []
    last = peer.frames[-1]
    assert (last.kind, last.body.kind) == (7, 99)  # type: ignore[union-attr]
    assert peer.dialler.open


def test_frames_of_other_sessions_are_void(peer: Peer) -> None:
    peer.open()
    stale = peer.link
    assert stale is not None
    peer.hear(stale.send(STOP, peer.now_s))
    peer.run(peer.dialler.broken("cut", peer.now_s))
    peer.frames.clear()
    peer.open()
    for frame in (
        stale.send(STOP, peer.now_s),
        stale.loose(Refused(code="bad_frame")),
        stale.loose(Grant(stamp=peer.said(Renew)[-1].stamp)),
        loose(STOP, peer.link.session, 6),  # type: ignore[union-attr]
        loose(Refused(code="bad_frame")),
        loose(Goodbye(reason="x"), b"z" * 16, 7),
    ):
        assert peer.hear(frame) == []
    assert peer.dialler.open


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xff" * 100,
        b"\xc1",
    ],
)
def test_a_bad_frame_ends_the_session(peer: Peer, frame: bytes) -> None:
    peer.open()
    (lost,) = peer.hear(frame)
    assert isinstance(lost, Lost)
    assert lost.reason.startswith("bad frame from the master")
    assert not peer.dialler.open


def test_a_message_against_the_links_rules_ends_the_session(peer: Peer) -> None:
    peer.open()
    assert peer.link is not None
    frame = encode(Envelope(peer.link.session, 7, 1, 5, STOP))  # acknowledges what was never sent
    (lost,) = peer.hear(frame)
    assert isinstance(lost, Lost)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            Refused(code="stale_session", message="no such session"),
            "stale_session: no such session",
        ),
        (Refused(code="bad_frame"), "bad_frame: "),
        (Goodbye(reason="shutting down"), "the master said goodbye: shutting down"),
    ],
)
def test_the_master_can_end_a_session(peer: Peer, message: Message, reason: str) -> None:
    peer.open()
    assert peer.link is not None
    frame = (
        peer.link.send(message, peer.now_s)
        if isinstance(message, Goodbye)
        else peer.link.loose(message)
    )
    assert peer.hear(frame) == [Lost(reason)]
    peer.frames.clear()
    peer.open()
    assert peer.redials == 2


def test_hanging_up_says_goodbye_and_rests(peer: Peer) -> None:
    peer.open()
    peer.run(peer.dialler.hang_up("done", peer.now_s))
    assert peer.said(Goodbye) == [Goodbye(reason="done")]
    assert peer.dialler.wake_s == float("inf")
    assert peer.tick(1e6) == []
    assert peer.redials == 1
    idle = Peer()
    assert idle.dialler.hang_up("never began", 0.0) == []


# --- when to dial ---


def test_the_pause_grows_and_is_bounded(peer: Peer) -> None:
    pauses = []
    for _ in range(12):
        while not peer.said(Hello):
            peer.tick(0.001)
        peer.hear(loose(Refused(code="unavailable", nonce=peer.said(Hello)[-1].nonce)))
        peer.frames.clear()
        pauses.append(peer.dialler.wake_s - peer.now_s)
    assert pauses == sorted(pauses)
    assert pauses[0] == pytest.approx(0.2)
    assert pauses[-1] == pytest.approx(limits.dial_backoff_s_max)


@settings(max_examples=50)
@given(st.integers(0, 255), st.integers(1, 12))
def test_the_pause_is_jittered_within_bounds(byte: int, attempts: int) -> None:
    peer = Peer()
    peer.dialler = Dialler(
        lambda nonce: Hello(nonce=nonce, role="agent"), lambda count: bytes((byte,)) * count
    )
    for _ in range(attempts):
        peer.now_s = max(peer.now_s, peer.dialler.wake_s)
        peer.tick()
        peer.run(peer.dialler.broken("x", peer.now_s))
    pause = peer.dialler.wake_s - peer.now_s
    plain = min(limits.dial_backoff_s_min * 2**attempts, limits.dial_backoff_s_max)
    assert 0.5 * plain - 1e-6 <= pause <= 1.5 * plain + 1e-6


def test_a_session_that_was_kept_is_redialled_soon_others_later(peer: Peer) -> None:
    pauses = []
    for _ in range(6):
        peer.open()
        peer.run(peer.dialler.broken("at once", peer.now_s))
        pauses.append(peer.dialler.wake_s - peer.now_s)
        peer.frames.clear()
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(limits.dial_backoff_s_max)
    peer.open()
    peer.grant()
    peer.run(peer.dialler.broken("after a while", peer.now_s))
    assert peer.dialler.wake_s - peer.now_s == pytest.approx(limits.dial_backoff_s_min)


def losses() -> list[Callable[[Peer], list[DialEffect]]]:
    return [
        lambda p: p.run(p.dialler.broken("cut", p.now_s)),
        lambda p: p.tick(100.0),
        lambda p: p.hear(b""),
        lambda p: p.hear(p.link.loose(Refused(code="stale_session"))),  # type: ignore[union-attr]
        lambda p: p.hear(p.link.send(Goodbye(), p.now_s)),  # type: ignore[union-attr]
    ]


@given(st.lists(st.sampled_from(range(5)), max_size=8))
def test_every_session_has_its_own_socket(choices: list[int]) -> None:
    peer = Peer()
    for number, choice in enumerate(choices):
        peer.open()
        assert peer.redials == number + 1
        assert any(isinstance(effect, Lost) for effect in losses()[choice](peer))
        assert not peer.dialler.open
        assert peer.dialler.link is None
        # Between two sessions nothing is sent.
        before = len(peer.frames)
        peer.hear(loose(an_old_start(), b"q" * 16, 7))
        assert len(peer.frames) == before
        peer.frames.clear()


def an_old_start() -> Message:
    return Start(
        registry=REGISTRY, slot=0, generation=1, incarnation=1, token=1, revision=1, spec={}
    )


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=10), st.booleans())
def test_no_frame_raises(frames: list[bytes], opened: bool) -> None:
    peer = Peer()
    peer.open() if opened else peer.tick()
    for frame in frames:
        peer.hear(frame)
