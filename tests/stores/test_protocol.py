"""What every store promises."""

import pytest

from posthouse.errors import StoreError
from posthouse.states import StopReason
from posthouse_master.store.base import (
    Counters,
    DropRegistration,
    DropRequests,
    EpochLost,
    EventRow,
    HostRow,
    Life,
    PutCounters,
    PutEvent,
    PutHost,
    PutRegistration,
    PutRequest,
    PutSlot,
    PutState,
    RegistryRefused,
    RequestRow,
    SpecRow,
    StateRow,
    TrimEvents,
)

SPEC = SpecRow(
    slot=3,
    generation=2,
    revision=1,
    name="ingest",
    spec=b"\x81\xa4name\xa6ingest",
    registered_unix_s=1.5,
    by="client:local",
    source="apply:x",
    order=7,
)
PLAIN = StateRow(slot=3, generation=2, life=Life.SUBMITTED)
FULL = StateRow(
    slot=3,
    generation=2,
    life=Life.RUNNING,
    host="b",
    warden="kept",
    incarnation=4,
    token=2**63 - 1,
    pid=4711,
    pid_start=99,
    started_unix_s=1.25,
    ready=True,
    stopping=StopReason.TERMINATE,
    stop_by="client:local",
    stop_grace_s=1.5,
    reason="running on b",
    rule="M5",
    restart_delay_s=0.0,
    starts=4,
    failures=3,
    trimmed_to=12,
    last_exit=b"\x80",
)
HOST = HostRow(name="b", machine_id="m", boot_id="1", offer=b"\x80", heard_unix_s=2.0, up=True)


def request(number: int) -> RequestRow:
    return RequestRow(
        principal="client:local",
        request=number.to_bytes(16),
        digest=b"d" * 32,
        kind=61,
        result=b"\x80",
        at_unix_s=3.0,
    )


def event(sequence: int, stream: str = "3.2") -> EventRow:
    return EventRow(sequence=sequence, stream=stream, body=b"\x81" * sequence)


def test_a_new_registry_is_empty_and_has_a_name(opened):
    store = opened()
    term = store.begin_term()
    snapshot = store.load()
    assert snapshot.term == term
    assert (len(term.registry), term.timeline, term.epoch) == (32, 1, 1)
    assert snapshot.counters == Counters()
    assert not any((snapshot.specs, snapshot.states, snapshot.slots, snapshot.events))
    assert not any((snapshot.hosts, snapshot.requests))


def test_every_row_comes_back_as_it_was_written(opened):
    store = opened()
    epoch = store.begin_term().epoch
    counters = Counters(token=2**63 - 1, sequence=9, trimmed_to=4)
    store.commit(
        epoch,
        [
            PutSlot(3, 2),
            PutRegistration(SPEC),
            PutState(FULL),
            PutEvent(event(9)),
            PutHost(HOST),
            PutRequest(request(1)),
            PutCounters(counters),
        ],
    )
    store.close()
    again = opened()
    term = again.begin_term()
    snapshot = again.load()
    assert term.epoch == epoch + 1
    assert list(snapshot.specs) == [SPEC]
    assert list(snapshot.states) == [FULL]
    assert list(snapshot.slots) == [(3, 2)]
    assert list(snapshot.events) == [event(9)]
    assert list(snapshot.hosts) == [HOST]
    assert list(snapshot.requests) == [request(1)]
    assert snapshot.counters == counters
    assert type(snapshot.states[0].life) is Life
    assert type(snapshot.states[0].stopping) is StopReason
    assert snapshot.states[0].ready is True


def test_a_row_that_is_put_again_is_replaced(opened):
    store = opened()
    epoch = store.begin_term().epoch
    store.commit(epoch, [PutRegistration(SPEC), PutState(PLAIN), PutSlot(3, 2)])
    store.commit(epoch, [PutState(FULL), PutSlot(3, 3), PutHost(HOST), PutHost(HOST)])
    snapshot = store.load()
    assert list(snapshot.states) == [FULL]
    assert list(snapshot.slots) == [(3, 3)]
    assert len(snapshot.hosts) == 1


def test_operations_of_a_commit_apply_in_their_order(opened):
    store = opened()
    epoch = store.begin_term().epoch
    store.commit(
        epoch,
        [
            PutRegistration(SPEC),
            PutState(PLAIN),
            PutState(FULL),
            PutEvent(event(1)),
            TrimEvents((1,)),
            DropRegistration(3, 2),
            PutEvent(event(2)),
        ],
    )
    snapshot = store.load()
    assert not snapshot.specs
    assert not snapshot.states
    assert list(snapshot.events) == [event(2)]


def test_events_come_by_sequence_and_are_trimmed_one_by_one(opened):
    store = opened()
    epoch = store.begin_term().epoch
    store.commit(epoch, [PutEvent(event(n, f"{n % 3}.1")) for n in (1, 2, 3, 4, 5, 6)])
    store.commit(epoch, [TrimEvents((1, 4))])
    assert [row.sequence for row in store.load().events] == [2, 3, 5, 6]


def test_an_event_is_written_once(opened):
    store = opened()
    epoch = store.begin_term().epoch
    store.commit(epoch, [PutEvent(event(1))])
    with pytest.raises(StoreError):
        store.commit(epoch, [PutEvent(event(1))])


def test_requests_come_oldest_first_and_are_dropped_by_key(opened):
    store = opened()
    epoch = store.begin_term().epoch
    store.commit(epoch, [PutRequest(request(n)) for n in (9, 2, 5)])
    store.commit(epoch, [DropRequests((("client:local", (2).to_bytes(16)),))])
    assert [row.request for row in store.load().requests] == [
        (9).to_bytes(16),
        (5).to_bytes(16),
    ]


def test_an_older_epoch_can_commit_nothing(opened):
    store = opened()
    first = store.begin_term().epoch
    second = store.begin_term().epoch
    assert second == first + 1
    with pytest.raises(EpochLost):
        store.commit(first, [PutHost(HOST)])
    with pytest.raises(EpochLost):
        store.commit(first, [])
    with pytest.raises(EpochLost):
        store.check(first)
    assert not store.load().hosts
    store.commit(second, [PutHost(HOST)])
    store.check(second)


def test_a_second_opening_is_refused_while_the_first_is_open(opened):
    store = opened()
    epoch = store.begin_term().epoch
    with pytest.raises(RegistryRefused, match="another master"):
        opened()
    store.commit(epoch, [PutHost(HOST)])  # and the first is none the worse for it
    store.close()
    assert list(opened().load().hosts) == [HOST]


def test_a_closed_store_says_so(opened):
    store = opened()
    epoch = store.begin_term().epoch
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.commit(epoch, [])
    with pytest.raises(StoreError, match="closed"):
        store.load()
