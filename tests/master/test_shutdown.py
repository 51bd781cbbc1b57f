"""Smart, fast and immediate: N5-N10 as design.md decides them."""

import pytest

from posthouse import limits
from posthouse.messages import Done, Shutdown, Start, Stop
from posthouse.states import NEVER_RESTART, ShutdownMode, StopReason


@pytest.fixture
def host(town):
    return town.host("b")


@pytest.fixture
def client(town):
    return town.client()


def shut_down(client, mode, request=b"s" * 16, **values):
    client.say(Shutdown(request=request, mode=mode, **values))


def start_three(host, client):
    starts = []
    for name in ("keep", "once", "patient"):
        client.register(
            name,
            restart_time=NEVER_RESTART if name == "once" else 5,
            stop_grace_s=20 if name == "patient" else 1,
            stop_signal="INT" if name == "patient" else "TERM",
        )
        starts.append(host.run())
    return starts


def test_n6_fast_stops_each_with_its_own_signal_and_grace(town, host, client):
    starts = start_three(host, client)
    shut_down(client, ShutdownMode.FAST)
    stops = host.take(Stop)
    assert [(s.signal, s.grace_s, s.reason) for s in stops] == [
        (15, 1.0, StopReason.SHUTDOWN),
        (15, 1.0, StopReason.SHUTDOWN),
        (2, 20.0, StopReason.SHUTDOWN),
    ]
    for start in starts:
        assert town.halted is None
        host.end(start, StopReason.SHUTDOWN, code=0)
    assert town.halted.status == 0
    assert client.one(Done).message == "fast shutdown"
    assert town.core.unheard
    client.acknowledge()
    assert not town.core.unheard
    assert str(town.log()[-1].kind) == "shutdown"


def test_registrations_survive_every_mode_and_start_again(town, host, client):
    for start, code in zip(start_three(host, client), (0, 1, 7), strict=True):
        client.status("keep")
        shut_down(client, ShutdownMode.FAST, request=bytes([code] * 16))
        host.end(start, StopReason.SHUTDOWN, code=code)
    assert town.halted
    town.crash()
    client, host = town.client(), town.host("b")
    starts = host.take(Start)
    assert [start.spec["name"] for start in starts] == ["keep", "once", "patient"]
    assert all(start.incarnation == 2 for start in starts)
    assert not client.status("once").final


def test_n8_immediate_quits_at_once_with_the_postmasters_grace(town, host, client):
    [start, *_] = start_three(host, client)
    shut_down(client, ShutdownMode.IMMEDIATE)
    stops = host.take(Stop)
    assert {(s.signal, s.grace_s) for s in stops} == {(3, limits.postmaster_grace_s)}
    assert start.token in {s.token for s in stops}


def test_n5_healed_smart_refuses_registrations_and_waits(town, host, client):
    starts = start_three(host, client)
    shut_down(client, ShutdownMode.SMART)
    assert not host.take(Stop)
    assert client.register_failed("late").code == "shutting_down"
    town.pass_time(300)
    assert town.halted is None
    host.end(starts[0], code=1)
    assert "the cluster is shutting down" in client.status("keep").reason or (
        client.status("keep").restart_in_s is not None
    )
    town.pass_time(10)
    assert not host.take(Start)  # G4
    host.end(starts[1], code=1)
    host.end(starts[2], code=0)
    assert town.halted.status == 0
    town.crash()
    client, host = town.client(), town.host("b")
    assert client.status("once").final  # never restarted: nobody asked for its end
    assert client.status("patient").final  # exit 0
    assert not host.take(Start)
    town.pass_time(6)
    assert host.one(Start).spec["name"] == "keep"


def test_a_cluster_without_workers_ends_at_once(town, host, client):
    client.register("waiting", labels=("nowhere",))
    shut_down(client, ShutdownMode.FAST)
    assert town.halted
    assert client.one(Done)
    town.crash()
    assert not town.client().status("waiting").final


def test_n7_healed_a_worker_that_does_not_end_does_not_hold_it_up_for_ever(town, host, client):
    client.register("deaf", stop_grace_s=3)
    host.run()
    shut_down(client, ShutdownMode.FAST)
    town.pass_time(12)
    assert town.halted is None
    town.pass_time(4)
    assert town.halted
    assert "did not end in time: deaf" in client.one(Done).message


def test_hosts_that_are_not_reached_are_reported(town, host, client):
    client.register("near", host="b")
    near = host.run()
    far = town.host("c")
    client.register("far", host="c")
    start = far.run()
    town.pass_time(5, quiet=(far,))
    shut_down(client, ShutdownMode.FAST)
    host.obey_stop(near)
    assert "hosts not reached, their workers may still run: c (1 workers)" in (
        client.one(Done).message
    )
    town.crash()
    client, far = town.client(), town.agent("c")
    far.open(settle=False)
    far.settle(running=[far.running(start)])
    assert not far.take(Stop)  # that shutdown is over
    status = client.status("far")
    assert (str(status.state), status.stopping, status.incarnation) == ("started", None, 1)


def test_a_host_that_comes_back_during_a_shutdown_is_stopped_as_well(town, host, client):
    client.register("near", host="b")
    near = host.run()
    far = town.host("c")
    client.register("far", host="c")
    start = far.run()
    town.pass_time(5, quiet=(far,))
    shut_down(client, ShutdownMode.FAST)
    far.link = None
    far.open(settle=False)
    far.settle(running=[far.running(start)])
    far.obey_stop(start)
    assert town.halted is None
    host.obey_stop(near)
    assert town.halted
    assert client.one(Done).message == "fast shutdown"


def test_n10_modes_only_escalate(town, host, client):
    [start, *_] = start_three(host, client)
    shut_down(client, ShutdownMode.SMART, request=b"1" * 16)
    assert not host.take(Stop)
    shut_down(client, ShutdownMode.FAST, request=b"2" * 16)
    assert [stop.signal for stop in host.take(Stop)] == [15, 15, 2]
    shut_down(client, ShutdownMode.SMART, request=b"3" * 16)
    assert not host.take(Stop)
    shut_down(client, ShutdownMode.IMMEDIATE, request=b"4" * 16)
    assert [stop.signal for stop in host.take(Stop)] == [3, 3, 3]
    assert start.token


def test_a_terminate_during_a_shutdown_still_unregisters(town, host, client):
    [start, *_] = start_three(host, client)
    shut_down(client, ShutdownMode.FAST)
    host.take(Stop)
    assert client.terminate("keep").changed
    assert not host.take(Stop)  # it is being stopped already
    host.end(start, StopReason.SHUTDOWN, code=0)
    assert client.status("keep").final


def test_the_answer_to_a_shutdown_is_kept_for_who_asks_again(town, host, client):
    start = start_three(host, client)[0]
    client.terminate("once")
    client.terminate("patient")
    for stop in host.take(Stop):
        host.no_such_process(stop)
    shut_down(client, ShutdownMode.FAST)
    shut_down(client, ShutdownMode.FAST)  # the same id again: one shutdown, one answer
    host.take(Stop)
    host.end(start, StopReason.SHUTDOWN, code=0)
    assert len(client.take(Done)) == 1
    town.crash()
    client = town.client()
    shut_down(client, ShutdownMode.FAST)
    assert client.one(Done).message == "fast shutdown"
    assert town.halted is None  # that was done, and is not done again


def test_grace_can_be_given_for_all(town, host, client):
    start_three(host, client)
    shut_down(client, ShutdownMode.FAST, grace_s=0.5)
    assert {stop.grace_s for stop in host.take(Stop)} == {0.5}


def test_a_worker_that_ended_by_itself_before_it_heard_is_judged_by_its_exit(town, host, client):
    [start, *_] = start_three(host, client)
    shut_down(client, ShutdownMode.FAST)
    host.end(start, None, code=0)
    assert client.status("keep").final
