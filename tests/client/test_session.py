"""ClientCore against a scripted master on virtual time, over lossy sessions."""

import itertools
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posthouse import errors, limits
from posthouse.dial import Redial, Rejected, Transmit
from posthouse.ids import Cursor
from posthouse.messages import (
    Credit,
    Events,
    Failed,
    GetStatus,
    Missing,
    Refused,
    Register,
    Registered,
    Request,
    Subscribe,
    Subscribed,
)
from posthouse.records import Event
from posthouse.session import (
    Answered,
    Arrived,
    Broken,
    Call,
    Cancel,
    ClientCore,
    ClientEffect,
    ClientInput,
    Close,
    Frame,
    MasterBack,
    MasterSilent,
    Tick,
    Took,
    Unwatch,
    Watch,
    WatchFailed,
)
from posthouse.states import EventKind
from posthouse.watches import Watches

EXITED = EventKind.EXITED


class Net:
    """The core, the script, and the wire between them. Loss is per direction."""

    def __init__(self, script: Any, **options: Any) -> None:
        self.script = script
        self.random = random.Random(7)
        self.core = ClientCore(self.random.randbytes, **options)
        self.now_s = 1000.0
        self.socket = 0
        self.loss = 0.0
        self.cut = False
        self.master_up = True
        self.wire: list[tuple[int, bytes]] = []
        self.answers: dict[bytes, Any] = {}
        self.answered: list[bytes] = []
        self.arrived: dict[int, list[int]] = {}
        self.held: dict[int, int] = {}
        self.failed: dict[int, errors.PosthouseError] = {}
        self.told: list[ClientEffect] = []
        self.taking = True

    def do(self, event: ClientInput) -> None:
        effects = self.core.handle(event, self.now_s)
        for effect in effects:
            match effect:
                case Redial():
                    self.socket += 1
                case Transmit(frame):
                    self.wire.append((self.socket, frame))
                case Answered(request_id, outcome):
                    assert request_id not in self.answers or request_id in self.answered
                    self.answered.append(request_id)
                    self.answers[request_id] = outcome
                case Arrived(subscription, events, cursor):
                    rows = self.arrived.setdefault(subscription, [])
                    rows += [event.sequence for event in events]
                    assert all(event.cursor <= cursor for event in events)
                    self.held[subscription] = self.held.get(subscription, 0) + len(events)
                case WatchFailed(subscription, error):
                    self.failed[subscription] = error
                case _:
                    self.told.append(effect)

    def step(self) -> None:
        """Deliver what is on the wire, answer, let the consumers take."""
        frames, self.wire = self.wire, []
        for socket, frame in frames:
            if socket != self.socket or not self.reaches():
                continue
            for peer, back in self.script.receive(socket, frame, self.now_s):
                self.back(peer, back)
        if self.master_up:
            for peer, back in self.script.pump(self.now_s):
                self.back(peer, back)
        if self.taking:
            self.take()

    def take(self) -> None:
        for subscription, count in list(self.held.items()):
            if count:
                self.held[subscription] = 0
                self.do(Took(subscription, count))

    def back(self, peer: int, frame: bytes) -> None:
        if peer == self.socket and self.reaches():
            self.do(Frame(frame))

    def reaches(self) -> bool:
        return self.master_up and not self.cut and self.random.random() >= self.loss

    def run(self, seconds: float, step_s: float = 0.02) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            if self.now_s >= self.core.wake_s:
                self.do(Tick())
            self.step()
            self.now_s += step_s

    def open(self) -> None:
        self.do(Tick())
        for _ in range(500):
            self.run(0.02)
            if self.core.open:
                return
        raise AssertionError("no session")


ids = itertools.count(1)


def status() -> GetStatus:
    return GetStatus(request=next(ids).to_bytes(16, "big"), ref="w")


def register(name: str = "w") -> Register:
    spec = {"name": name, "main": "m:f"}
    return Register(request=next(ids).to_bytes(16, "big"), spec=spec)


@pytest.fixture
def net(script: Any) -> Net:
    made = Net(script())
    made.open()
    return made


def test_a_request_is_answered_once(net: Net) -> None:
    request = register()
    net.do(Call(request))
    net.do(Call(request))  # joins
    net.run(1)
    assert isinstance(net.answers[request.request], Registered)
    assert net.answered == [request.request]
    assert net.script.effects == [request.request]


def test_a_request_waits_for_a_master(script: Any) -> None:
    net = Net(script())
    request = register()
    net.do(Call(request))
    net.master_up = False
    net.do(Tick())
    net.run(20)
    assert not net.answers
    net.master_up = True
    net.run(10)
    assert isinstance(net.answers[request.request], Registered)


def test_a_request_keeps_its_id_over_a_master_restart(net: Net) -> None:
    request = register()
    net.do(Call(request))
    frames, net.wire = net.wire, []
    for socket, frame in frames:  # carried out, but the answer is lost with the master
        net.script.receive(socket, frame, net.now_s)
    assert net.script.effects == [request.request]
    net.script.restart()
    net.run(10)
    assert isinstance(net.answers[request.request], Registered)
    assert net.script.effects == [request.request]
    assert [hello.epoch for hello in net.script.hellos] == [0, 1]
    assert net.script.hellos[-1].registry == net.script.registry


def test_a_refusal_is_the_error_it_names(net: Net) -> None:
    request = status()
    net.do(Call(request))
    net.run(1)
    assert isinstance(net.answers[request.request], errors.NoSuchWorker)


def test_detail_of_a_refusal_may_use_any_key(net: Net) -> None:
    detail = {"hint": 1, "message": 2, "self": 3}
    net.script.answer = lambda request: Failed(
        request=request.request, code="usage", message="m", detail=detail
    )
    request = status()
    net.do(Call(request))
    net.run(1)
    assert net.answers[request.request].detail == detail


def test_the_same_id_with_another_body_is_refused(net: Net) -> None:
    request = register()
    net.cut = True
    net.do(Call(request))
    net.do(Call(Register(request=request.request, spec={"name": "other"})))
    assert isinstance(net.answers[request.request], errors.RequestConflict)


def test_giving_up_says_what_is_known(script: Any) -> None:
    net = Net(script())
    unsent, sent, read = register(), register(), status()
    net.do(Call(unsent))
    net.do(Cancel(unsent.request))
    assert isinstance(net.answers[unsent.request], errors.Unreachable)
    net.open()
    net.cut = True
    for request in (sent, read):
        net.do(Call(request))
        net.do(Cancel(request.request))
        error = net.answers[request.request]
        assert isinstance(error, errors.TimedOut)
        assert error.detail["request_id"] == request.request
    assert "unknown" in str(net.answers[sent.request])
    assert "unknown" not in str(net.answers[read.request])
    net.do(Cancel(sent.request))  # a second time: nothing


def test_a_late_answer_to_a_request_given_up_is_dropped(net: Net) -> None:
    request = register()
    net.do(Call(request))
    net.do(Cancel(request.request))
    net.run(1)
    assert isinstance(net.answers[request.request], errors.TimedOut)
    assert net.script.effects == [request.request]
    net.do(Call(request))  # asking again settles it
    net.run(1)
    assert isinstance(net.answers[request.request], Registered)
    assert net.script.effects == [request.request]


def test_calls_are_bounded(net: Net) -> None:
    net.run(0.1)
    net.cut = True
    for _ in range(limits.waiting_calls_max):
        net.do(Call(status()))
    assert len(net.wire) <= limits.outbox_messages_max
    one_more = status()
    net.do(Call(one_more))
    assert isinstance(net.answers[one_more.request], errors.UsageError)
    net.run(10)
    net.cut = False
    net.run(60)
    assert len(net.answers) == limits.waiting_calls_max + 1


def test_a_master_that_thinks_long_is_not_flooded(net: Net) -> None:
    net.script.silent_to = {GetStatus}
    for _ in range(2 * limits.requests_in_flight_max):
        net.do(Call(status()))
    net.run(10)  # it acknowledges, so the link has room
    assert sum(isinstance(seen, GetStatus) for seen in net.script.seen) == (
        limits.requests_in_flight_max
    )


# --- watches ---


def test_a_watcher_is_given_everything_once_in_order(net: Net) -> None:
    net.script.worker()
    net.do(Watch(1))
    for _ in range(50):
        net.script.add(EXITED)
        net.run(0.05)
    assert net.arrived[1] == list(range(1, 52))


def test_a_watcher_from_now_on_keeps_its_place_over_sessions(net: Net) -> None:
    net.script.worker()
    net.do(Watch(1, after=None))
    net.run(0.1)
    net.script.restart()
    net.script.add(EXITED)  # while nobody follows
    net.run(10)
    net.script.add(EXITED)
    net.run(1)
    assert net.arrived[1] == [2, 3]


def test_one_registration_only(net: Net) -> None:
    net.script.worker("a")
    net.script.worker("b")
    net.do(Watch(1, ref="b"))
    for slot in (0, 1, 0, 1):
        net.script.add(EXITED, slot)
    net.run(1)
    assert net.arrived[1] == [2, 4, 6]


def test_what_is_told_twice_is_given_once(net: Net) -> None:
    net.script.worker()
    net.do(Watch(1, window=4))
    for _ in range(20):
        net.script.add(EXITED)
        net.run(0.1)
        for session in net.script.sessions.values():
            following = session.subscriptions[1]
            following.sequence = max(following.sequence - 2, 0)
    assert net.arrived[1] == list(range(1, 22))


def test_a_watch_with_a_place_keeps_it_whatever_is_answered(net: Net) -> None:
    for _ in range(5):
        net.script.add(EXITED)
    subscribe = net.script._subscribe
    net.script._subscribe = lambda session, message: msgspec.structs.replace(
        subscribe(session, message), sequence=4
    )
    net.do(Watch(1, after=Cursor(1, 2)))
    net.run(1)
    assert net.arrived[1] == [3, 4, 5]


def test_a_slow_consumer_bounds_what_is_sent(net: Net) -> None:
    for _ in range(100):
        net.script.add(EXITED)
    net.taking = False
    net.do(Watch(1, window=10))
    net.run(5)
    assert net.arrived[1] == list(range(1, 11))
    net.script.restart()  # a new session must not give a full window again
    net.run(10)
    assert net.arrived[1] == list(range(1, 11))
    net.do(Took(1, 3))
    net.held[1] -= 3
    net.run(5)
    assert net.arrived[1] == list(range(1, 14))
    net.taking = True
    net.run(10)
    assert net.arrived[1] == list(range(1, 101))


def test_more_events_than_credit_end_the_watch(net: Net) -> None:
    for _ in range(9):
        net.script.add(EXITED)
    net.taking = False
    net.do(Watch(1, window=2))
    net.run(1)
    for session in net.script.sessions.values():
        session.subscriptions[1].credit += 100
    net.run(1)
    assert isinstance(net.failed[1], errors.RemoteError)
    net.run(1)
    assert not any(session.subscriptions for session in net.script.sessions.values())


def test_a_trimmed_log_is_told(net: Net) -> None:
    for _ in range(9):
        net.script.add(EXITED)
    net.do(Watch(1))
    net.run(1)
    net.cut = True
    net.run(5)
    for _ in range(9):
        net.script.add(EXITED)
    net.script.trimmed_to = 12
    net.cut = False
    net.run(10)
    assert net.arrived[1] == list(range(1, 10))
    error = net.failed[1]
    assert isinstance(error, errors.CursorTooOld)
    assert error.detail["cursor"] == Cursor(1, 12)
    net.do(Watch(2, after=error.detail["cursor"]))
    net.run(1)
    assert net.arrived[2] == list(range(13, 19))


def test_missing_rows_are_told_in_the_stream_and_take_no_place() -> None:
    watches = Watches(lambda n: b"q" * n)
    watches.add(Watch(1, after=Cursor(1, 5), window=4))
    subscribe = watches.say()
    assert isinstance(subscribe, Subscribe)
    told = Subscribed(request=subscribe.request, subscription=1, timeline=1, sequence=5)
    watches.subscribed(told, "ab" * 16)
    row = Event(timeline=1, sequence=40, kind=EXITED, at_unix_s=0.0)
    page = Events(
        subscription=1,
        events=[row],
        timeline=1,
        sequence=41,
        missing=[Missing(slot=3, generation=1, sequence=30)],
    )
    (arrived,) = watches.events(page)
    assert isinstance(arrived, Arrived)
    mark, given = arrived.events
    assert given == row and arrived.cursor == Cursor(1, 41)
    assert (mark.kind, mark.slot, mark.generation, mark.trimmed_to) == ("trimmed", 3, 1, 30)
    assert mark.cursor == Cursor(1, 5), "who goes on from there is told again"
    assert "3.1 up to 1/30 are no longer kept" in mark.reason
    watches.took(1, 2)
    credit = watches.say()
    assert credit is None or isinstance(credit, Credit)


def test_another_timeline_is_told(net: Net) -> None:
    net.script.add(EXITED)
    net.do(Watch(1))
    net.run(1)
    net.script.restart()
    net.script.timeline = 2
    net.script.trimmed_to = 1
    net.run(10)
    assert isinstance(net.failed[1], errors.CursorTooOld)


def test_another_registry_gets_neither_cursors_nor_old_requests(net: Net, script: Any) -> None:
    net.script.worker()
    net.do(Watch(1))
    net.run(1)
    sent, unsent, read = register("sent"), register("unsent"), status()
    net.cut = True
    net.do(Call(sent))
    net.do(Call(read))
    net.run(5)
    net.do(Call(unsent))
    net.script = script(registry="cd" * 16)
    net.script.worker()
    net.cut = False
    net.run(10)
    assert isinstance(net.failed[1], errors.CursorTooOld)
    assert net.failed[1].detail["cursor"] is None
    assert isinstance(net.answers[sent.request], errors.TimedOut)
    assert isinstance(net.answers[unsent.request], Registered)
    assert net.script.effects == [unsent.request]
    assert read.request in net.answers


def test_unknown_names_fail_the_watch(net: Net) -> None:
    net.do(Watch(1, ref="nobody"))
    net.run(1)
    assert isinstance(net.failed[1], errors.NoSuchWorker)


def test_unwatch_ends_it_at_the_master(net: Net) -> None:
    net.do(Watch(1))
    net.run(1)
    net.do(Unwatch(1))
    net.run(1)
    net.script.add(EXITED)
    net.run(1)
    assert 1 not in net.arrived or net.arrived[1] == []
    assert not any(session.subscriptions for session in net.script.sessions.values())


def test_watches_are_bounded(net: Net) -> None:
    bound = limits.subscriptions_per_session_max
    for number in range(bound + 1):
        net.do(Watch(number))
    assert list(net.failed) == [bound]
    assert isinstance(net.failed[bound], errors.UsageError)


# --- the master's silence ---


def test_silence_is_told_once_and_only_after_the_limit(net: Net) -> None:
    began_s = net.now_s
    net.cut = True
    net.told.clear()
    net.run(limits.master_silence_s - 1)
    assert not any(isinstance(effect, MasterSilent) for effect in net.told)
    net.run(60)
    silent = [effect for effect in net.told if isinstance(effect, MasterSilent)]
    assert len(silent) == 1
    assert 0 <= silent[0].silent_s - limits.master_silence_s < 0.1
    assert silent[0].silent_s <= net.now_s - began_s
    assert net.core.silent
    net.cut = False
    net.run(10)
    assert sum(isinstance(effect, MasterBack) for effect in net.told) == 1
    assert not net.core.silent


def test_a_longer_lease_is_waited_for(script: Any) -> None:
    net = Net(script(), master_silence_s=90)
    net.open()
    net.cut = True
    net.run(89)
    assert not net.core.silent
    net.run(5)
    assert net.core.silent


def test_a_client_that_was_stopped_itself_knows_nothing(net: Net) -> None:
    net.now_s += 3600  # SIGSTOP, or a lid
    net.do(Tick())
    assert not net.core.silent
    net.run(10)
    assert net.core.open
    assert not any(isinstance(effect, MasterSilent) for effect in net.told)


def test_a_master_that_refuses_is_not_silent(script: Any) -> None:
    net = Net(script())
    net.script.refuse = Refused(code="too_many", retry_after_s=1.0)
    net.do(Tick())
    net.run(60)
    assert not net.core.silent
    assert any(isinstance(effect, Rejected) for effect in net.told)
    net.script.refuse = None
    net.run(10)
    assert net.core.open


def test_a_broken_connection_is_dialled_again_at_once(net: Net) -> None:
    net.do(Broken("disconnected"))
    assert not net.core.open
    net.run(1)
    assert net.core.open


# --- the end ---


def test_close_answers_everything_and_says_goodbye(net: Net) -> None:
    request = status()
    net.cut = True
    net.do(Call(request))
    net.do(Watch(1))
    net.cut = False
    net.wire.clear()
    net.do(Close())
    assert isinstance(net.answers[request.request], errors.Unreachable)
    assert isinstance(net.failed[1], errors.Unreachable)
    assert len(net.wire) == 1
    late = status()
    net.do(Call(late))
    net.do(Watch(2))
    assert isinstance(net.answers[late.request], errors.Unreachable)
    assert isinstance(net.failed[2], errors.Unreachable)
    net.wire.clear()
    net.run(100)
    assert net.wire == []
    assert net.core.wake_s == float("inf")


# --- properties ---

STEPS = [
    "event",
    "event",
    "event",
    "register",
    "register",
    "restart",
    "cut",
    "heal",
    "broken",
    "pause",
    "pause",
    "busy",
    "free",
    "lossy",
    "clean",
    "watch",
    "stopped",
]


class Play:
    """What a test of properties does with the net, and what has to come of it."""

    def __init__(self, net: Net, window: int) -> None:
        self.net = net
        self.window = window
        self.asked: list[Request] = []
        self.began: dict[int, int] = {}

    def watch(self, after: int) -> None:
        number = len(self.began) + 1
        self.began[number] = after
        self.net.do(Watch(number, after=Cursor(1, after), window=self.window))

    def step(self, step: str) -> None:
        net = self.net
        match step:
            case "event":
                net.script.add(EXITED)
            case "register":
                self.asked.append(register())
                net.do(Call(self.asked[-1]))
            case "restart":
                net.script.restart()
            case "cut" | "heal":
                net.cut = step == "cut"
            case "broken":
                net.do(Broken("disconnected"))
            case "pause":
                net.run(1.0)
            case "busy" | "free":
                net.taking = step == "free"
            case "lossy" | "clean":
                net.loss = 0.3 if step == "lossy" else 0.0
            case "watch":
                self.watch(net.random.randint(0, len(net.script.log)))
            case "stopped":
                net.now_s += 20
        net.run(0.1)

    def check(self) -> None:
        for number, after in self.began.items():
            rows = self.net.arrived.get(number, [])
            assert rows == list(range(after + 1, after + 1 + len(rows)))
            assert self.net.held.get(number, 0) <= self.window

    def settle(self) -> None:
        net = self.net
        net.cut, net.loss, net.taking = False, 0.0, True
        net.run(30)
        for number, after in self.began.items():
            assert net.arrived.get(number, []) == list(range(after + 1, len(net.script.log) + 1))
        assert not net.failed
        assert sorted(net.answers) == sorted(request.request for request in self.asked)
        assert all(isinstance(answer, Registered) for answer in net.answers.values())
        effects = net.script.effects
        assert len(set(effects)) == len(effects) == len(self.asked)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.sampled_from(STEPS), min_size=5, max_size=60),
    seed=st.integers(0, 2**32),
    window=st.integers(1, 8),
)
def test_each_event_once_and_each_request_one_effect(
    script: Any, steps: list[str], seed: int, window: int
) -> None:
    net = Net(script(), master_silence_s=60)
    net.random.seed(seed)
    net.script.worker()
    play = Play(net, window)
    net.do(Tick())
    play.watch(0)
    for step in steps:
        play.step(step)
        play.check()
    play.settle()
