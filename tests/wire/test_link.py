"""The link: at most once, in order, until acknowledged; over a channel that loses, repeats, delays
and reorders, and by itself on a virtual clock."""

from collections import deque
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posthouse import limits
from posthouse.codec import Envelope, decode
from posthouse.errors import BadFrame, InternalError
from posthouse.link import Link, LinkFull
from posthouse.messages import (
    Ack,
    Credit,
    Goodbye,
    Grant,
    Message,
    Register,
    Renew,
    Unsubscribe,
    Unsupported,
)

SESSION = b"\x5e" * 16


def make(now_s: float = 0.0) -> Link:
    return Link(SESSION, 1, now_s)


def numbered(number: int) -> Message:
    return Unsubscribe(subscription=number)


def take(link: Link, frame: bytes, now_s: float = 0.0) -> Message | None:
    return link.receive(decode(frame), now_s)


def acknowledge(number: int) -> Envelope:
    return Envelope(SESSION, 1, 0, number, Ack(), 6)


# --- sending and acknowledging ---


def test_messages_are_numbered_from_one() -> None:
    link = make()
    frames = [decode(link.send(numbered(n), 0.0)) for n in range(3)]
    assert [f.sequence for f in frames] == [1, 2, 3]
    assert {(f.session, f.epoch, f.acknowledged) for f in frames} == {(SESSION, 1, 0)}
    assert (link.sent, link.acknowledged, link.unacknowledged) == (3, 0, 3)


def test_a_message_is_delivered_once() -> None:
    here, there = make(), make()
    frame = here.send(numbered(1), 0.0)
    assert take(there, frame) == numbered(1)
    assert take(there, frame) is None
    assert take(there, frame) is None


def test_acknowledgements_ride_on_messages() -> None:
    here, there = make(), make()
    take(there, here.send(numbered(1), 0.0))
    take(there, here.send(numbered(2), 0.0))
    answer = there.send(numbered(9), 0.0)
    assert decode(answer).acknowledged == 2
    assert take(here, answer) == numbered(9)
    assert (here.acknowledged, here.unacknowledged) == (2, 0)
    assert there.due(10.0)  # its own message, unacknowledged; but no bare acknowledgement
    assert all(decode(f).sequence for f in there.due(20.0))


def test_a_bare_acknowledgement_comes_after_a_while() -> None:
    here, there = make(), make()
    take(there, here.send(numbered(1), 0.0), 5.0)
    assert there.due(5.0) == []
    assert there.wake_s == 5.0 + limits.ack_delay_s
    (frame,) = there.due(there.wake_s)
    assert (decode(frame).body, decode(frame).sequence, decode(frame).acknowledged) == (Ack(), 0, 1)
    assert there.wake_s is None
    assert there.due(100.0) == []
    assert take(here, frame) is None
    assert here.unacknowledged == 0
    assert here.wake_s is None


def test_acknowledgements_are_cumulative_and_may_come_late() -> None:
    link = make()
    for n in range(5):
        link.send(numbered(n), 0.0)
    link.receive(acknowledge(3), 0.0)
    assert (link.acknowledged, link.unacknowledged) == (3, 2)
    link.receive(acknowledge(1), 0.0)  # an old one
    assert (link.acknowledged, link.unacknowledged) == (3, 2)
    link.receive(acknowledge(5), 0.0)
    assert (link.acknowledged, link.unacknowledged) == (5, 0)


def test_only_acks_and_sequenced_messages_acknowledge() -> None:
    # A GRANT may leave before the commit that makes what was received durable.
    here, there = make(), make()
    take(there, here.send(numbered(1), 0.0))
    for message in (Grant(stamp=1), Renew(stamp=1), Unsupported(kind=99)):
        assert decode(there.loose(message)).acknowledged == 0
    assert decode(there.loose(Ack())).acknowledged == 1


def test_acknowledging_what_was_never_sent_is_bad() -> None:
    link = make()
    link.send(numbered(1), 0.0)
    with pytest.raises(BadFrame, match="acknowledges 2, sent 1"):
        link.receive(acknowledge(2), 0.0)
    with pytest.raises(BadFrame):
        link.receive(Envelope(SESSION, 1, 1, 2**63 - 1, numbered(1), 47), 0.0)
    assert link.unacknowledged == 1


def test_numbers_belong_to_sequenced_messages_and_to_no_others() -> None:
    link = make()
    with pytest.raises(BadFrame, match="Unsubscribe with sequence 0"):
        link.receive(Envelope(SESSION, 1, 0, 0, numbered(1), 47), 0.0)
    with pytest.raises(BadFrame, match="Grant with sequence 1"):
        link.receive(Envelope(SESSION, 1, 1, 0, Grant(stamp=1), 5), 0.0)
    with pytest.raises(BadFrame, match="Ack with sequence 1"):
        link.receive(Envelope(SESSION, 1, 1, 0, Ack(), 6), 0.0)


def test_loose_messages_are_delivered_as_they_come() -> None:
    here, there = make(), make()
    for stamp in (5, 5, 3):
        assert take(there, here.loose(Renew(stamp=stamp))) == Renew(stamp=stamp)
    assert here.wake_s is None


def test_an_unknown_kind_is_acknowledged_and_told() -> None:
    link = make()
    assert link.receive(Envelope(SESSION, 1, 1, 0, None, 99), 0.0) == Unsupported(kind=99)
    assert link.receive(Envelope(SESSION, 1, 1, 0, None, 99), 0.0) is None  # a repetition
    assert link.receive(Envelope(SESSION, 1, 0, 0, None, 98), 0.0) is None  # loose: ignored
    assert link.receive(Envelope(SESSION, 1, 2, 0, numbered(1), 47), 0.0) == numbered(1)
    assert decode(link.loose(Ack())).acknowledged == 2


# --- gaps and repetitions ---


def test_what_comes_after_a_gap_is_dropped() -> None:
    here, there = make(), make()
    frames = [here.send(numbered(n), 0.0) for n in range(1, 5)]
    assert take(there, frames[0]) == numbered(1)
    assert take(there, frames[2]) is None
    assert take(there, frames[3]) is None
    assert take(there, frames[1]) == numbered(2)
    # 3 was dropped, not kept: only 3 itself comes next.
    assert take(there, frames[3]) is None
    assert take(there, frames[2]) == numbered(3)
    assert take(there, frames[3]) == numbered(4)


def test_the_oldest_are_repeated_when_nothing_moves() -> None:
    link = make()
    frames = [link.send(numbered(n), 0.0) for n in range(3)]
    assert link.due(limits.resend_s - 0.001) == []
    assert link.wake_s == limits.resend_s
    assert link.due(limits.resend_s) == frames
    assert link.due(limits.resend_s) == []
    assert link.due(2 * limits.resend_s) == frames
    link.receive(acknowledge(2), 5.0)
    assert link.wake_s == 5.0 + limits.resend_s
    assert link.due(5.0 + limits.resend_s) == frames[2:]


def test_a_repetition_carries_the_newest_acknowledgement() -> None:
    here, there = make(), make()
    here.send(numbered(1), 0.0)
    take(here, there.send(numbered(2), 0.0))
    (again,) = here.due(limits.resend_s)
    assert (decode(again).sequence, decode(again).acknowledged) == (1, 1)


def test_a_repetition_is_acknowledged_again() -> None:
    # Our acknowledgement was lost: the sender repeats, and must hear it once more.
    here, there = make(), make()
    frame = here.send(numbered(1), 0.0)
    take(there, frame, 0.0)
    assert len(there.due(1.0)) == 1  # lost
    (again,) = here.due(limits.resend_s)
    assert take(there, again, 2.0) is None
    (ack,) = there.due(3.0)
    take(here, ack, 3.0)
    assert here.unacknowledged == 0


def test_catching_up_after_a_gap_does_not_wait_for_each_batch() -> None:
    here, there = make(), make()
    count = 1000
    frames = [here.send(numbered(n), 0.0) for n in range(1, count + 1)]
    got = [take(there, frame) for frame in frames[1:]]  # the first one was lost
    assert set(got) == {None}
    now_s, rounds = limits.resend_s, 0
    while here.unacknowledged:
        batch = here.due(now_s)
        assert batch, f"idle with {here.unacknowledged} unacknowledged at {now_s}"
        assert len(batch) <= 64
        delivered = [take(there, frame, now_s) for frame in batch]
        assert all(delivered)
        now_s += limits.ack_delay_s
        for frame in there.due(now_s):
            take(here, frame, now_s)
        rounds += 1
    assert rounds == -(-count // 64)
    assert now_s < limits.resend_s + 1.0


# --- bounds ---


def test_a_link_is_full_by_count() -> None:
    link = make()
    for n in range(limits.outbox_messages_max):
        assert link.room == limits.outbox_messages_max - n
        link.send(numbered(n), 0.0)
    assert link.room == 0
    with pytest.raises(LinkFull):
        link.send(numbered(0), 0.0)
    assert link.sent == limits.outbox_messages_max
    link.receive(acknowledge(1), 0.0)
    assert decode(link.send(numbered(0), 0.0)).sequence == limits.outbox_messages_max + 1


def test_a_link_is_full_by_bytes() -> None:
    link = make()
    big = Register(request=b"r" * 16, spec={"extra": bytes(limits.extra_bytes_max)})
    count = 0
    while link.room:
        link.send(big, 0.0)
        count += 1
    assert limits.outbox_bytes_max <= count * limits.extra_bytes_max < 2 * limits.outbox_bytes_max
    with pytest.raises(LinkFull):
        link.send(numbered(0), 0.0)
    link.receive(acknowledge(1), 0.0)
    assert link.room


def test_a_message_that_is_too_large_is_not_taken() -> None:
    link = make()
    huge = Register(request=b"r" * 16, spec={"extra": bytes(limits.frame_body_bytes_max)})
    with pytest.raises(InternalError):
        link.send(huge, 0.0)
    assert (link.sent, link.unacknowledged) == (0, 0)
    assert decode(link.send(numbered(1), 0.0)).sequence == 1


def test_a_link_shows_itself() -> None:
    link = make()
    link.send(Goodbye(reason="end"), 0.0)
    assert repr(link) == "Link(5e5e5e5e epoch=1 sent=1 unacknowledged=1 received=0)"


# --- over a channel that misbehaves ---


class Channel:
    """One direction: what the random numbers say happens to each frame."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._frames: list[bytes] = []
        self.healed = False

    def put(self, frame: bytes) -> None:
        fate = 9 if self.healed else self._random.randrange(8)
        if fate < 2:
            return  # lost
        if fate == 2:
            self._frames.append(frame)  # doubled
        place = self._random.randrange(len(self._frames) + 1) if fate == 3 else len(self._frames)
        self._frames.insert(place, frame)  # overtakes, or comes in order

    def take(self) -> list[bytes]:
        count = len(self._frames)
        if not self.healed:
            count = self._random.randrange(count + 1)  # the rest is late
        taken, self._frames = self._frames[:count], self._frames[count:]
        return taken


class Side:
    """One end: sends the numbers below `count`, some at a time; keeps the numbers it receives."""

    def __init__(self, random: Random, count: int, out: Channel) -> None:
        self._random = random
        self._unsent = deque(range(count))
        self._out = out
        self.link = make()
        self.got: list[int] = []

    def step(self, frames: list[bytes], now_s: float) -> None:
        for frame in frames:
            message = take(self.link, frame, now_s)
            if isinstance(message, Unsubscribe):
                self.got.append(message.subscription)
        for _ in range(self._random.randrange(4)):
            if self._unsent and self.link.room:
                number = self._unsent.popleft()
                self._out.put(self.link.send(numbered(number), now_s))
        if self._random.randrange(10) == 0:
            self._out.put(self.link.loose(Renew(stamp=1)))
        for frame in self.link.due(now_s):
            self._out.put(frame)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 200), st.integers(0, 200))
def test_everything_arrives_once_in_order_after_the_faults(
    seed: int, count: int, other_count: int
) -> None:
    random = Random(seed)
    there, back = Channel(random), Channel(random)
    here, other = Side(random, count, there), Side(random, other_count, back)
    now_s = 0.0

    def step() -> None:
        here.step(back.take(), now_s)
        other.step(there.take(), now_s)

    for _ in range(200):
        now_s += random.choice((0.001, 0.06, 0.5))
        step()
        for side in (here, other):  # at every moment: a gap-free beginning of what was sent
            assert side.got == list(range(len(side.got)))
    there.healed = back.healed = True
    for _ in range(200):
        now_s += 0.3
        step()
    assert here.got == list(range(other_count))
    assert other.got == list(range(count))
    assert (here.link.unacknowledged, other.link.unacknowledged) == (0, 0)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(
            st.integers(0, 6),
            st.integers(0, 6),
            st.sampled_from((numbered(1), Ack(), Grant(stamp=1), Credit(subscription=1, credit=1))),
        ),
        max_size=20,
    )
)
def test_any_envelopes_never_break_the_counts(
    envelopes: list[tuple[int, int, Message]],
) -> None:
    link = make()
    for n in range(3):
        link.send(numbered(n), 0.0)
    delivered = 0
    for sequence, acknowledged, body in envelopes:
        envelope = Envelope(SESSION, 1, sequence, acknowledged, body)
        try:
            message = link.receive(envelope, 0.0)
        except BadFrame:
            assert acknowledged > 3 or (sequence == 0) != isinstance(body, Ack | Grant)
            continue
        if message is not None and sequence:
            delivered += 1
            assert sequence == delivered
        assert 0 <= link.acknowledged <= link.sent == 3
        assert link.unacknowledged == 3 - link.acknowledged
