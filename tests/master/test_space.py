"""The registry's disk is full: what is refused, what goes on, what comes again."""

import pytest

from posthouse.messages import (
    Done,
    Failed,
    GetStatus,
    Hold,
    ListWorkers,
    Register,
    Registered,
    Release,
    Restart,
    SignalWorker,
    Start,
    Started,
)
from posthouse.spec import BackgroundWorker
from posthouse.states import EventKind, WorkerState
from posthouse_master.effects import Room, Space
from posthouse_master.web.picture import paint

LOW = Space(Room.LOW, "/var/lib/posthouse", 1_234_567)
NONE = Space(Room.NONE, "/var/lib/posthouse", 4096)
AMPLE = Space(Room.AMPLE)


@pytest.fixture
def busy(town):
    """A client, a host, and a worker that runs there."""
    client, host = town.client(), town.host("b")
    client.register("w", restart_time=1)
    host.run()
    town.commits = 0
    return client, host


def test_what_begins_something_is_refused_with_path_and_free_bytes(town, busy):
    client, _ = busy
    town.handle(LOW)
    spec = BackgroundWorker(name="new", main="acme.x:main").to_wire()
    for kind, values in (
        (Register, {"spec": spec}),
        (Restart, {"ref": "w"}),
        (Release, {"ref": "w"}),
    ):
        answer = client.ask(kind, **values)
        assert isinstance(answer, Failed)
        assert answer.code == "resource_exhausted"
        assert "/var/lib/posthouse, where 1,234,567 bytes are free" in answer.hint
        assert answer.detail == {"path": "/var/lib/posthouse", "free_bytes": 1_234_567}
    assert town.commits == 0, "a refusal needs no room"


def test_what_ends_something_is_done_while_it_can_be_written_down(town, busy):
    client, host = busy
    town.handle(LOW)
    start = host_start(host, town.core.registry.get(0, 1))
    assert isinstance(client.ask(SignalWorker, ref="w", signal=10), Done)
    client.terminate("w")
    host.obey_stop(start)
    assert town.kinds("0.1")[-3:] == ["stop_requested", "exited", "unregistered"]


def test_a_retry_of_what_was_done_gets_its_answer_and_a_refusal_is_forgotten(town, busy):
    client, _ = busy
    spec = BackgroundWorker(name="early", main="acme.x:main").to_wire()
    first = client.ask(Register, request=b"e" * 16, spec=spec)
    town.handle(NONE)
    assert client.ask(Register, request=b"e" * 16, spec=spec) == first
    late = BackgroundWorker(name="late", main="acme.x:main").to_wire()
    assert client.ask(Register, request=b"l" * 16, spec=late).code == "resource_exhausted"
    town.handle(AMPLE)
    assert isinstance(client.ask(Register, request=b"l" * 16, spec=late), Registered)


@pytest.mark.parametrize("space", [LOW, NONE])
def test_reads_and_renewals_go_on(town, busy, space):
    client, host = busy
    town.handle(space)
    for peer in (client, host):
        before = len(peer.grants)
        peer.renew()
        assert len(peer.grants) == before + 1
    assert client.ask(GetStatus, ref="w").status.state is WorkerState.STARTED
    assert client.ask(ListWorkers).workers
    client.follow(credit=100)
    assert EventKind.STARTED in [event.kind for event in client.events()]
    assert town.commits == 0


def test_an_exit_is_kept_from_the_reserve_and_its_restart_waits_for_room(town, busy):
    client, host = busy
    start = town.core.registry.get(0, 1)
    town.handle(LOW)
    host.end(host_start(host, start), code=1)
    town.pass_time(3)
    assert town.kinds("0.1")[-1] == "exited"
    assert not host.take(Start)
    status = client.status("w")
    assert status.state is WorkerState.STOPPED
    assert "the master's disk is full" in status.reason
    town.handle(AMPLE)
    assert host.run().incarnation == 2


def test_nothing_of_a_host_is_acknowledged_that_cannot_be_kept(town, busy):
    _, host = busy
    start = town.core.registry.get(0, 1)
    town.pass_time(0.5)
    assert host.link.unacknowledged == 0
    town.handle(NONE)
    town.commits = 0
    host.end(host_start(host, start), code=1)
    town.pass_time(2)
    assert host.link.unacknowledged == 1
    assert town.kinds("0.1")[-1] == "started"
    assert town.commits == 0
    town.handle(AMPLE)
    for frame in host.link.due(town.boot_s):  # its link says it again
        host.raw(frame)
    town.pass_time(0.5)
    assert town.kinds("0.1").count("exited") == 1
    assert host.link.unacknowledged == 0
    town.pass_time(2)
    assert host.run().incarnation == 2


def test_a_host_is_not_admitted_while_its_word_cannot_be_kept(town, busy):
    town.handle(NONE)
    late = town.host("c", settle=False)
    assert late.refused[0].code == "resource_exhausted"
    assert late.refused[0].retry_after_s > 0
    town.handle(LOW)
    late.open()
    assert late.welcome is not None


def test_a_host_that_falls_silent_is_told_of_when_there_is_room(town, busy):
    _, host = busy
    town.handle(NONE)
    town.pass_time(8, quiet=(host,))
    assert town.commits == 0
    town.handle(AMPLE)
    town.pass_time(2)
    kinds = [event.kind for event in town.log("host:b")]
    assert kinds == [EventKind.HOST_UP, EventKind.HOST_DOWN]


def test_what_waits_for_room_is_started_oldest_first(town):
    client, host = town.client(), town.host("b")
    for name in ("first", "second"):
        client.register(name, restart_time=0)
    starts = host.take(Start)
    town.handle(LOW)
    for start in reversed(starts):
        host.say(Started(worker=host.running(start)))
        host.end(start, code=1)
    assert not host.take(Start)
    town.handle(AMPLE)
    assert [start.slot for start in host.take(Start)] == [1, 0]  # by the order of their ends


def test_a_hold_needs_no_room_for_something_new(town, busy):
    client, host = busy
    town.handle(LOW)
    assert client.ask(Hold, ref="w").changed
    start = town.core.registry.get(0, 1)
    host.obey_stop(host_start(host, start))
    assert client.status("w").state is WorkerState.STOPPED
    assert town.kinds("0.1")[-1] == "held"


@pytest.mark.parametrize(("space", "ready"), [(AMPLE, True), (LOW, False), (NONE, False)])
def test_a_master_without_room_is_not_ready(town, space, ready):
    town.handle(space)
    *_, picture = paint(town.core, town.now, "")
    assert (picture.not_ready == ()) is ready


def host_start(host, registration) -> Start:
    """The START that the worker was started with, as its host remembers it."""
    return Start(
        registry=host.town.core.term.registry,
        slot=registration.slot,
        generation=registration.generation,
        incarnation=registration.incarnation,
        token=registration.token,
        revision=registration.revision,
        spec=registration.wire,
    )
