"""Following the log: cursors, credits, trimming, slow watchers."""

import pytest

from posthouse import limits
from posthouse.messages import (
    Credit,
    CursorTooOld,
    Events,
    Failed,
    Missing,
    Subscribe,
    Subscribed,
    Unsubscribe,
)


@pytest.fixture
def client(town):
    return town.client()


def test_everything_after_the_cursor_then_everything_new(town, client):
    client.register("w0")
    client.register("w1")
    answer = client.follow(sequence=1)
    assert (answer.timeline, answer.sequence) == (1, 1)
    client.register("w2")
    assert [(e.sequence, e.name) for e in client.events()] == [(2, "w1"), (3, "w2")]


def test_from_now_on(town, client):
    client.register("w0")
    answer = client.follow(sequence=-1)
    assert answer.sequence == 1
    client.register("w1")
    assert [event.name for event in client.events()] == ["w1"]


def test_the_answer_to_a_request_comes_before_the_news_of_it(town, client):
    client.follow()
    client.register("w")  # asserts that its answer is there
    client.inbox.clear()
    client.say(
        Subscribe(request=b"s" * 16, subscription=2, sequence=0),
    )
    kinds = [type(message).__name__ for message in client.inbox]
    assert kinds == ["Subscribed", "Events"]


def test_an_empty_first_page_says_that_there_is_nothing_yet(town, client):
    client.register("w")
    client.follow(sequence=1)
    [page] = client.take(Events)
    assert (page.events, page.sequence) == ([], 1)
    client.register("v")
    assert [event.name for event in client.events()] == ["v"]


def test_only_one_registration_if_asked(town, client):
    client.register("w0")
    client.register("w1")
    client.follow("w1")
    client.terminate("w0")
    client.terminate("w1")
    found = client.events()
    assert [(event.name, str(event.kind)) for event in found] == [
        ("w1", "registered"),
        ("w1", "unregistered"),
    ]


def test_the_page_says_up_to_where_everything_was_sent(town, client):
    client.register("w0")
    client.register("w1")
    client.follow("w0")
    [page] = client.take(Events)
    assert (len(page.events), page.sequence) == (1, 2)  # w1's row is not of this subscription


def test_credit_bounds_what_is_sent(town, client):
    for number in range(10):
        client.register(f"w{number}")
    client.follow(credit=3)
    assert [event.sequence for event in client.events()] == [1, 2, 3]
    client.say(Credit(subscription=1, credit=4))
    assert [event.sequence for event in client.events()] == [4, 5, 6, 7]
    client.register("more")
    assert not client.events()
    client.say(Credit(subscription=1, credit=100))
    assert [event.sequence for event in client.events()] == [8, 9, 10, 11]


def test_without_credit_a_watcher_costs_nothing(town, client):
    slow = town.client()
    slow.follow(credit=1, sequence=-1)
    for number in range(50):
        client.register(f"w{number}")
    assert len(slow.events()) == 1
    assert slow.link.acknowledged is not None
    assert len(town.core.watchers._dirty) == 0


def test_unsubscribe_ends_it(town, client):
    client.follow()
    client.say(Unsubscribe(subscription=1))
    client.register("w")
    assert not client.events()
    assert len(town.core.watchers) == 0


def test_a_subscription_of_the_same_number_replaces_the_first(town, client):
    client.register("w0")
    client.register("w1")
    client.follow("w0")
    client.events()
    client.follow("w1")
    assert [event.name for event in client.events()] == ["w1"]
    client.terminate("w0")
    assert not client.events()
    assert len(town.core.watchers) == 1


def test_many_pages_arrive_as_the_watcher_acknowledges(town, client):
    for number in range(700):
        client.register(f"w{number}")
        client.acknowledge()
    watcher = town.client()
    watcher.follow(credit=limits.credit_max)
    pages = watcher.take(Events)
    assert all(len(page.events) <= limits.page_items_max for page in pages)
    found = [event.sequence for page in pages for event in page.events]
    assert found == list(range(1, 701))


def test_a_watcher_without_room_is_served_once_it_acknowledges(town, client):
    watcher = town.client()
    watcher.follow(credit=4096)
    watcher.follow(credit=4096, number=2)
    seen = []
    for number in range(limits.outbox_messages_max):
        client.register(f"w{number}")
        client.acknowledge()
        seen += [e.sequence for page in watcher.take(Events) for e in page.events
                 if page.subscription == 1]  # fmt: skip
    assert len(seen) < limits.outbox_messages_max  # it has never acknowledged anything
    for _ in range(3):
        watcher.acknowledge()
        seen += [e.sequence for page in watcher.take(Events) for e in page.events
                 if page.subscription == 1]  # fmt: skip
    assert seen == list(range(1, limits.outbox_messages_max + 1))


def test_a_cursor_survives_the_master(town, client):
    client.register("w0")
    client.follow()
    cursor = client.events()[-1].sequence
    client.register("w1")
    town.crash()
    client = town.client()
    client.follow(sequence=cursor, timeline=1)
    client.register("w2")
    assert [event.name for event in client.events()] == ["w1", "w2"]


# --- trimming ---


def storm(town, host, client, name="storm"):
    """A worker that fails in a loop until its own history has been trimmed."""
    client.register(name, host="b", restart_time=0, restart_budget=(1000, 0.001))
    for _ in range(limits.events_per_registration_max // 3 + 20):
        host.end(host.run(), code=1)
        host.acknowledge()
        client.acknowledge()


def test_a_trimmed_place_is_too_old_never_nothing_new(town, client):
    host = town.host("b")
    storm(town, host, client)
    client.follow("storm", sequence=1)
    told = client.one(CursorTooOld)
    assert (told.subscription, told.timeline) == (1, 1)
    assert told.sequence == town.core.log.trimmed_to  # after it every row is kept
    assert not client.take(Events)
    assert len(town.core.watchers) == 0


def test_a_watcher_of_everything_is_told_whose_rows_are_missing(town, client):
    """And is given every other row: a storm of one worker costs nobody the word of another."""
    host = town.host("b")
    client.register("quiet", host="b")
    host.run()
    place = client.status("quiet").sequence
    storm(town, host, client)
    client.follow(sequence=place - 1, credit=1000)
    pages = client.take(Events)
    trimmed_to = town.core.log.trimmed_to
    assert [page.missing for page in pages if page.missing] == [
        [Missing(slot=1, generation=1, sequence=trimmed_to)]
    ]
    assert pages[0].missing, "before what comes after the gap"
    given = [event.sequence for page in pages for event in page.events]
    kept = [row.sequence for row in town.disk.events.values() if row.sequence >= place]
    assert given == sorted(kept)
    assert given[0] == place


def test_a_gap_is_told_once_for_each_trim(town, client, monkeypatch):
    monkeypatch.setattr(limits, "page_items_max", 2)
    host = town.host("b")
    place = town.core.log.sequence
    for name in ("a", "b", "c"):
        storm(town, host, client, name)
        host.run()
    follower = town.client()
    follower.follow(sequence=place, credit=1000)
    pages = follower.take(Events)
    assert sorted(missing.slot for page in pages for missing in page.missing) == [0, 1, 2]
    assert all(len(page.missing) <= 2 for page in pages)
    storm(town, host, client, "d")
    follower.acknowledge()
    assert not [m for page in follower.take(Events) for m in page.missing]


def test_what_is_forgotten_whole_makes_a_place_too_old(town, client, monkeypatch):
    """Of a registration that is no longer listed nobody could be told."""
    monkeypatch.setattr(limits, "retired_max", 0)
    client.register("gone")
    client.terminate("gone")
    client.register("there")
    for _ in range(2):
        client.follow(sequence=1)
        told = client.one(CursorTooOld)
        assert told.sequence == town.core.log.dropped_to == 2
        town.crash()
        client = town.client()


def test_a_storm_trims_only_itself(town, client):
    host = town.host("b")
    client.register("quiet", host="b")
    host.end(host.run(), code=0)
    storm(town, host, client)
    client.follow("quiet", sequence=0)
    assert [str(event.kind) for event in client.events()][-1] == "unregistered"
    assert len(town.kinds("0.2")) <= limits.events_per_registration_max + 16
    rows = {row.stream for row in town.disk.events.values()}
    assert rows == {"0.1", "0.2", "host:b"}


def test_what_was_trimmed_is_known_after_a_restart(town, client):
    host = town.host("b")
    client.register("quiet", host="b")
    host.run()
    storm(town, host, client)
    town.crash()
    client = town.client()
    client.follow("storm", sequence=1)
    client.one(CursorTooOld)
    client.follow("", sequence=1)
    (missing,) = client.take(Events)[0].missing
    assert (missing.slot, missing.sequence) == (1, town.core.log.trimmed_to)
    client.follow("quiet", sequence=0, number=2)
    assert len([event for event in client.events() if event.name == "quiet"]) == 3


def test_a_watcher_that_fell_behind_a_trim_is_told(town, client):
    host = town.host("b")
    watcher = town.client()
    watcher.follow(credit=2)
    assert len(watcher.events()) == 1
    storm(town, host, client)
    watcher.events()
    watcher.say(Credit(subscription=1, credit=100))
    pages = watcher.take(Events)
    (missing,) = pages[0].missing
    found = [event.sequence for page in pages for event in page.events]
    assert found == list(range(missing.sequence + 1, missing.sequence + 101))


@pytest.mark.parametrize(
    "cursor", [{"timeline": 2, "sequence": 0}, {"timeline": 1, "sequence": 99}]
)
def test_a_cursor_of_another_history_is_too_old(town, client, cursor):
    client.register("w")
    client.follow(**cursor)
    told = client.one(CursorTooOld)
    assert told.reason
    assert told.sequence == 1


def test_a_registration_that_is_no_longer_listed_cannot_be_followed(town, client, monkeypatch):
    monkeypatch.setattr(limits, "retired_max", 0)
    handle = str(client.register("w").handle.id)
    client.follow(handle)
    client.terminate("w")
    assert [str(event.kind) for event in client.events()] == ["registered", "unregistered"][:1]
    assert client.one(CursorTooOld).reason == "the registration is no longer listed"
    client.follow(handle)
    assert client.one(CursorTooOld).reason == "no longer registered"


def test_an_unknown_name_cannot_be_followed(town, client):
    answer = client.follow("nobody")
    assert isinstance(answer, Failed)
    assert answer.code == "no_such_worker"


def test_subscriptions_of_a_session_are_bounded(town, client, monkeypatch):
    monkeypatch.setattr(limits, "subscriptions_per_session_max", 2)
    client.follow(number=1)
    client.follow(number=2)
    assert client.follow(number=3).code == "refused"


def test_retired_registrations_are_forgotten_oldest_first_with_their_rows(
    town, client, monkeypatch
):
    monkeypatch.setattr(limits, "retired_max", 2)
    for name in ("a", "b", "c", "d"):
        client.register(name)
    for name in ("c", "a", "d", "b"):
        client.terminate(name)
    assert {row.name for row in town.disk.specs.values()} == {"d", "b"}
    assert {event.name for event in town.log()} == {"d", "b"}
    town.crash()
    client = town.client()
    client.register("e")
    client.terminate("e")
    assert {row.name for row in town.disk.specs.values()} == {"b", "e"}
    assert client.follow("", sequence=1) is not None
    client.one(CursorTooOld)


def test_from_the_start_means_what_is_kept_and_says_what_may_be_missing(town, client):
    """A storm must not take the whole log from who has no place in it yet."""
    host = town.host("b")
    client.register("calm", labels=("none",))
    storm(town, host, client)
    trimmed = town.core.log.trimmed_to
    assert trimmed
    for number, ref in ((1, ""), (2, "storm"), (3, "calm")):
        answer = client.follow(ref, sequence=0, number=number)
        assert (answer.missing_to > 0) == (ref != "calm")
        seen = []
        while found := client.take(Events):
            seen += [event for page in found for event in page.events]
            client.say(Credit(subscription=number, credit=256))
            client.acknowledge()
        kept = [e for e in town.log() if not ref or e.name == ref]
        assert [event.sequence for event in seen] == [event.sequence for event in kept]
    assert not client.take(CursorTooOld)


# --- clients that ask faster than they listen ---


def flood(client, town, count, **values):
    """So many SUBSCRIBEs at once, before anything of the answers has been acknowledged."""
    client.deaf = True
    frames = [
        client.link.send(
            Subscribe(request=town.request_id(), subscription=n, ref="", credit=16, **values),
            town.boot_s,
        )
        for n in range(count)
    ]
    for frame in frames:
        client.raw(frame)
    client.deaf = False


def listen(client, town):
    """Let the link repeat what was not heard, and acknowledge it, until nothing more comes."""
    for _ in range(200):
        before = len(client.inbox)
        town.pass_time(0.5)
        if len(client.inbox) == before and not client_of(town, client).backlog:
            return
    raise AssertionError("it never ends")


def client_of(town, client):
    return town.core.door.of_peer(client.peer)


def test_a_thousand_subscriptions_at_once_are_all_answered(town, client):
    client.register("w")
    watcher = town.client()
    flood(watcher, town, limits.subscriptions_per_session_max)
    assert client_of(town, watcher) is not None, "it keeps its session"
    listen(watcher, town)
    answers = watcher.take(Subscribed)
    assert [answer.subscription for answer in answers] == list(
        range(limits.subscriptions_per_session_max)
    )
    pages = watcher.take(Events)
    assert {page.subscription for page in pages} == set(range(len(answers)))
    client.register("v")
    listen(watcher, town)
    assert len(watcher.take(Events)) == len(answers)
