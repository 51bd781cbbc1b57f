"""Timers, event log, start queue, placement: the small parts, against plain models."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse import limits
from posthouse.records import Event
from posthouse.spec import BackgroundWorker
from posthouse.states import EventKind, Phase, StartTime
from posthouse_master import placement
from posthouse_master.eventlog import EventLog
from posthouse_master.phases import may_start
from posthouse_master.placement import Fleet, Host, Offer, StartQueue, wants_of
from posthouse_master.timers import Timers

# --- timers ---


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), st.integers(0, 5), st.integers(0, 20)),
            st.tuples(st.just("cancel"), st.integers(0, 5), st.just(0)),
            st.tuples(st.just("pop"), st.just(0), st.integers(0, 20)),
        )
    )
)
def test_timers_are_like_a_table_of_due_times(steps):
    timers: Timers[int] = Timers()
    model: dict[int, int] = {}
    now = 0
    for what, key, number in steps:
        if what == "set":
            timers.set(key, now + number)
            model[key] = now + number
        elif what == "cancel":
            timers.cancel(key)
            model.pop(key, None)
        else:
            now += number
            expected = {key for key, due in model.items() if due <= now}
            given_back = list(timers.pop(now))
            assert [model[key] for key in given_back] == sorted(model[key] for key in given_back)
            assert set(given_back) == expected
            for gone in expected:
                del model[gone]
        assert len(timers) == len(model)
        if model:
            assert timers.wake_s is not None
            assert timers.wake_s <= min(model.values())
        for each in range(6):
            assert timers.due_of(each) == model.get(each)


def test_a_timer_set_while_its_key_is_popped_comes_again():
    timers: Timers[str] = Timers()
    timers.set("a", 1.0)
    for key in timers.pop(1.0):
        timers.set(key, 2.0)
    assert list(timers.pop(1.9)) == []
    assert list(timers.pop(2.0)) == ["a"]


# --- event log ---


def append(log: EventLog, stream: str) -> int:
    event = Event(
        timeline=1, sequence=log.sequence + 1, kind=EventKind.STARTED, at_unix_s=0.0, name=stream
    )
    log.append(stream, event)
    return event.sequence


@given(st.lists(st.sampled_from("abc"), max_size=40), st.integers(0, 45), st.integers(1, 10))
def test_reading_in_pages_gives_every_row_after_the_cursor_once(streams, after, count):
    log = EventLog(1, 0, 0)
    rows = [(append(log, stream), stream) for stream in streams]
    for stream in (None, "a", "z"):
        expected = [n for n, s in rows if n > after and stream in (None, s)]
        cursor, found = after, []
        while cursor < log.sequence:
            page = log.read(cursor, stream, count, 10**6)
            assert len(page.events) <= count
            found += [event.sequence for event in page.events]
            assert page.sequence > cursor or not page.events
            cursor = page.sequence
        assert found == expected


def test_a_page_is_bounded_in_bytes_but_never_empty():
    log = EventLog(1, 0, 0)
    for _ in range(10):
        append(log, "a" * 90)
    size = len(log._rows[1])
    assert len(log.read(0, None, 100, size * 3).events) == 3
    assert len(log.read(0, None, 100, 1).events) == 1


def test_a_storm_trims_only_its_own_stream():
    log = EventLog(1, 0, 0)
    quiet = append(log, "quiet")
    trimmed = []
    for _ in range(3 * limits.events_per_registration_max):
        append(log, "storm")
        trimmed += log.overflow("storm")
    assert log.overflow("quiet") == ()
    assert [e.sequence for e in log.read(0, "quiet", 10, 10**6).events] == [quiet]
    kept = log.read(0, "storm", 10**6, 10**9).events
    assert limits.events_per_registration_max <= len(kept) < 300
    assert kept[-1].sequence == log.sequence
    assert log.trimmed_in("quiet") == 0
    assert log.trimmed_in("storm") == trimmed[-1] == kept[0].sequence - 1 == log.trimmed_in(None)


def test_a_full_log_lowers_the_bound_of_who_appends(monkeypatch):
    monkeypatch.setattr(limits, "events_total_max", 100)
    log = EventLog(1, 0, 0)
    for _ in range(60):
        append(log, "a")
        append(log, "b")
        log.overflow("b")
    assert len(log._streams["a"].sequences) == 60  # whoever is quiet loses nothing
    assert len(log._streams["b"].sequences) <= 100 // 2 + 16


# --- queue ---


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(0, 8), st.sampled_from(["", "a", "b"])),
            st.tuples(st.just("discard"), st.integers(0, 8), st.just("")),
            st.tuples(st.just("take"), st.integers(1, 3), st.sampled_from(["a", "b"])),
            st.tuples(st.just("skip"), st.integers(1, 3), st.sampled_from(["a", "b"])),
        )
    )
)
def test_the_queue_is_first_come_first_served_per_host(steps):
    queue = StartQueue()
    model: list[tuple[tuple[int, int], str]] = []

    def fits(wants, host):
        return wants.host in ("", host.name)

    for what, number, host in steps:
        key = (number, 1)
        if what == "add":
            wants = wants_of(BackgroundWorker(name="w", main="m:f", host=host or None))
            queue.add(key, wants, 0.0)
            if (key, host) not in model:
                model = [entry for entry in model if entry[0] != key]
                model.append((key, host))
        elif what == "discard":
            queue.discard(key)
            model = [entry for entry in model if entry[0] != key]
        else:
            expected = [k for k, h in model if h in ("", host)][:number]
            found = []
            for candidate in queue.for_host(Host(host), fits):
                found.append(candidate)
                if what == "take":
                    queue.discard(candidate)
                if len(found) == number:
                    break
            assert found == expected
            if what == "take":
                model = [entry for entry in model if entry[0] not in found]
        assert len(queue) == len(model)


def test_a_line_that_never_empties_does_not_grow_for_ever(monkeypatch):
    monkeypatch.setattr(placement, "_COMPACT_ABOVE", 8)
    queue = StartQueue()
    wants = wants_of(BackgroundWorker(name="w", main="m:f"))
    for number in range(500):
        queue.add((number, 1), wants, 0.0)
        if number >= 3:
            first = next(queue.for_host(Host("b"), lambda *_: True))
            assert first == (number - 3, 1)
            queue.discard(first)
    [line] = queue._lines[""].values()
    assert len(line.entries) <= 10


# --- placement ---

OFFER = Offer(runtimes=("default",), modules=("acme.*", "one"), slots=2)


def fleet_of(*hosts: Host, load: dict[str, int] | None = None) -> Fleet:
    fleet = Fleet(lambda name: (load or {}).get(name, 0), 1000)
    for host in hosts:
        fleet.hosts[host.name] = host
    return fleet


def host(name: str, **offer) -> Host:
    values = {name: getattr(OFFER, name) for name in OFFER.__slots__} | offer
    return Host(name, Offer(**values), heard_s=0.0, session=b"s", settled=True)


def wants(**values):
    return wants_of(BackgroundWorker(name="w", **({"main": "acme.jobs:main"} | values)))


def test_the_least_loaded_host_by_name_among_equals():
    load = {"a": 1, "b": 0, "c": 0}
    fleet = fleet_of(host("c"), host("b"), host("a"), load=load)
    assert fleet.choose(wants()).name == "b"
    load["b"] = 2
    assert fleet.choose(wants()).name == "c"
    load |= {"a": 2, "c": 2}
    assert fleet.choose(wants()) is None
    assert fleet.choose(wants(host="a")).name == "a"  # its slot there is its own


@pytest.mark.parametrize(
    ("values", "offer", "reason"),
    [
        ({"labels": ("gpu",)}, {}, "has not the label gpu"),
        ({"labels": ("gpu", "eu")}, {"labels": ("gpu",)}, "has not the label eu"),
        ({"runtime": "ml"}, {}, "has no runtime 'ml'"),
        ({"main": "other.jobs:main"}, {}, "its modules do not allow other.jobs"),
        ({"main": "acme:main"}, {}, "its modules do not allow acme"),
        ({"main": "posthouse.exec", "main_arg": ["ls"]}, {}, "does not allow posthouse.exec"),
        ({"main": "posthouse.exec", "main_arg": ["ls"]}, {"modules": ("*",)}, "posthouse.exec"),
        ({"fence": "tree"}, {}, "offers no fence 'tree'"),
        ({"run_as": "www"}, {}, "does not let workers run as 'www'"),
        ({"host": "a"}, {}, "is for host a"),
    ],
)
def test_what_a_host_lacks_is_named(values, offer, reason):
    only = host("b", **offer)
    fleet = fleet_of(only)
    assert fleet.choose(wants(**values)) is None
    assert reason in fleet.verdict(wants(**values), only)


@pytest.mark.parametrize(
    ("values", "offer"),
    [
        ({"labels": ("gpu",)}, {"labels": ("eu", "gpu")}),
        ({"runtime": "ml"}, {"runtimes": ("default", "ml")}),
        ({"main": "one:main"}, {}),
        ({"main": "any.thing:main"}, {"modules": ("*",)}),
        ({"main": None, "library": "acme.jobs", "function": "main"}, {}),
        ({"main": "posthouse.exec", "main_arg": ["ls"]}, {"allow_exec": True, "modules": ()}),
        ({"fence": "tree"}, {"fences": ("process", "tree")}),
        ({"fence": "process"}, {}),
        ({"run_as": "www"}, {"users": ("www",)}),
        ({"host": "b"}, {}),
    ],
)
def test_what_a_host_offers_is_enough(values, offer):
    only = host("b", **offer)
    fleet = fleet_of(only)
    assert fleet.verdict(wants(**values), only) == ""
    assert fleet.choose(wants(**values)) is only


def test_a_host_that_cannot_be_used_now_says_why():
    away, greeting, full, choked = host("a"), host("b"), host("c"), host("d")
    away.session = b""
    greeting.settled = False
    choked.choked = True
    fleet = fleet_of(away, greeting, full, choked, load={"c": 2})
    assert fleet.choose(wants()) is None
    reasons = {h.name: fleet.verdict(wants(), h) for h in fleet.hosts.values()}
    assert reasons == {
        "a": "it is not reachable",
        "b": "its inventory is still being taken",
        "c": "all 2 slots of its max_worker_processes are taken",
        "d": "it takes no more starts for a moment",
    }
    assert fleet.why_waiting(wants()).startswith("no host can take it (a: it is not reachable; b: ")
    assert fleet.why_waiting(wants(host="z")) == "host z: no such host has joined"
    assert fleet_of().why_waiting(wants()) == "no host has joined yet"


def test_a_changed_offer_is_looked_at_anew():
    only = host("b")
    fleet = fleet_of(only)
    assert fleet.choose(wants(labels=("gpu",))) is None
    only.offer = Offer(labels=("gpu",), runtimes=("default",), modules=("*",), slots=1)
    fleet.offer_changed()
    assert fleet.choose(wants(labels=("gpu",))) is only


# --- phases ---


@pytest.mark.parametrize(
    ("phase", "allowed"),
    [
        pytest.param(Phase.STARTING, {StartTime.POSTMASTER_START}, id="G1"),
        pytest.param(
            Phase.HOT_STANDBY,
            {StartTime.POSTMASTER_START, StartTime.CONSISTENT_STATE},
            id="G2",
        ),
        pytest.param(Phase.RUNNING, set(StartTime), id="G3"),
        pytest.param(Phase.STOPPING, set(), id="G4"),
    ],
)
def test_the_gate(phase, allowed):
    assert {start_time for start_time in StartTime if may_start(phase, start_time)} == allowed
