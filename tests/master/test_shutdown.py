"""Smart, fast and immediate: N5-N10 as design.md decides them."""

import pytest

from posthouse import limits
from posthouse.messages import (
    Done,
    Drain,
    GetStatus,
    Goodbye,
    Hold,
    Release,
    Shutdown,
    Start,
    Started,
    Stop,
)
from posthouse.states import NEVER_RESTART, ShutdownMode, StopReason
from posthouse_master.effects import Interrupted


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
    town.pass_time(limits.shutdown_away_s - 1, quiet=(far,))
    assert town.halted is None  # its agent may be on its way back
    town.pass_time(1.5, quiet=(far,))
    told = client.one(Done).message
    assert "hosts not reached, their workers may still run: c (1 worker); " in told
    assert "leases have no deadline there" in told
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


def test_an_agent_that_restarts_while_the_shutdown_begins_is_waited_for(town, host, client):
    client.register("w")
    start = host.run()
    town.pass_time(limits.silence_s + 1, quiet=(host,))
    assert not town.core.fleet.hosts["b"].reachable
    shut_down(client, ShutdownMode.IMMEDIATE)
    assert town.halted is None
    host.link = None
    host.open(settle=False)
    host.settle(running=[host.running(start)])
    stop = host.obey_stop(start)
    assert (stop.signal, stop.grace_s) == (3, limits.postmaster_grace_s)  # immediate, for it too
    assert client.one(Done).message == "immediate shutdown"


def test_a_new_master_asked_at_once_waits_for_its_hosts(town, host, client):
    client.register("w")
    start = host.run()
    town.crash()
    client = town.client()
    shut_down(client, ShutdownMode.FAST)
    assert town.halted is None
    host = town.agent("b")
    host.open(settle=False)
    host.settle(running=[host.running(start)])
    host.obey_stop(start)
    assert client.one(Done).message == "fast shutdown"


def test_smart_waits_for_hosts_that_are_away_and_fast_takes_over(town, host, client):
    client.register("w")
    host.run()
    town.pass_time(limits.silence_s + 1, quiet=(host,))
    shut_down(client, ShutdownMode.SMART)
    town.pass_time(600, quiet=(host,))
    assert town.halted is None
    shut_down(client, ShutdownMode.FAST, request=b"f" * 16)
    town.pass_time(limits.shutdown_away_s + 1, quiet=(host,))
    first, second = client.take(Done)
    assert first.message == second.message
    assert second.message.startswith("fast shutdown; hosts not reached")


@pytest.mark.parametrize("mode", list(ShutdownMode))
def test_g4_a_restart_that_comes_due_during_a_shutdown_is_the_next_masters(
    town, host, client, mode
):
    """A cluster that is to end begins nothing, in smart neither (N5: PostgreSQL does). Healed."""
    client.register("waits", restart_time=2)
    client.register("runs")
    waits, runs = host.take(Start)
    host.end(waits, code=1)
    shut_down(client, mode)
    town.pass_time(4)
    assert not host.take(Start)
    assert client.status("waits").reason.endswith("waiting: the cluster is shutting down")
    host.end(runs, None if mode is ShutdownMode.SMART else StopReason.SHUTDOWN, code=1)
    assert town.halted
    town.crash()
    host = town.host("b")
    town.pass_time(6)
    assert sorted(start.spec["name"] for start in host.take(Start)) == ["runs", "waits"]


def test_a_hold_under_way_outlives_the_shutdown(town, host, client):
    client.register("held", stop_grace_s=60)
    client.register("other")
    held, other = host.take(Start)
    for start in (held, other):
        host.say(Started(worker=host.running(start)))
    client.ask(Hold, ref="held")
    assert host.one(Stop).reason is StopReason.HOLD
    shut_down(client, ShutdownMode.FAST, grace_s=1)
    stops = {stop.token: stop for stop in host.take(Stop)}
    assert stops[held.token].reason is StopReason.HOLD
    assert stops[held.token].grace_s == 1  # the shutdown does not wait for its minute
    host.end(held, StopReason.SHUTDOWN, code=0)
    host.end(other, StopReason.SHUTDOWN, code=0)
    assert town.halted
    town.crash()
    client, host = town.client(), town.host("b")
    assert [start.spec["name"] for start in host.take(Start)] == ["other"]
    assert "held" in client.status("held").reason
    assert client.ask(Release, ref="held").changed
    assert host.one(Start).spec["name"] == "held"


def test_a_hold_asked_for_during_a_shutdown_is_kept(town, host, client):
    client.register("w")
    start = host.run()
    shut_down(client, ShutdownMode.FAST)
    host.take(Stop)
    assert client.ask(Hold, ref="w").changed
    host.end(start, StopReason.SHUTDOWN, code=0)
    town.crash()
    assert not town.host("b").take(Start)


def test_a_drain_under_way_comes_to_a_start_elsewhere_under_the_next_master(town, host, client):
    client.register("w")
    start = host.run()
    other = town.host("c")
    client.ask(Drain, host="b")
    assert host.one(Stop).reason is StopReason.DRAIN
    shut_down(client, ShutdownMode.FAST)
    host.take(Stop)
    host.end(start, StopReason.DRAIN, code=0)
    assert town.halted
    assert not other.take(Start)
    town.crash()
    host, other = town.host("b"), town.host("c")
    assert not host.take(Start)  # it is still drained
    assert other.one(Start).spec["name"] == "w"


def test_who_asks_and_dies_has_begun_it_all_the_same(town, host, client):
    client.register("w")
    start = host.run()
    shut_down(client, ShutdownMode.FAST)
    stop = host.one(Stop)
    client.say(Goodbye(reason="killed"))
    host.end(start, stop.reason, code=0)
    assert town.halted.status == 0
    town.crash()
    again = town.client()
    shut_down(again, ShutdownMode.FAST)  # the answer is kept for its id
    assert again.one(Done).message == "fast shutdown"


def test_a_shutdown_is_over_with_its_master(town, host, client):
    """SIGTERM, or kill -9, in the middle of it: what was stopped is started by the next one."""
    client.register("stopped")
    client.register("deaf")
    starts = host.take(Start)
    for start in starts:
        host.say(Started(worker=host.running(start)))
    shut_down(client, ShutdownMode.FAST)
    host.end(starts[0], StopReason.SHUTDOWN, code=0)
    town.handle(Interrupted("SIGTERM"))
    town.crash()
    client, host = town.client(), town.agent("b")
    host.open(settle=False)
    host.settle(running=[host.running(starts[1], stopping=StopReason.SHUTDOWN)])
    assert host.one(Start).spec["name"] == "stopped"
    assert client.status("deaf").stopping is None
    host.end(starts[1], StopReason.SHUTDOWN, cause="signaled", signal=9)
    again = host.one(Start)
    assert (again.spec["name"], again.incarnation) == ("deaf", 2)


def test_n9_healed_what_is_asked_for_in_the_stop_phase_is_refused_with_the_reason(
    town, host, client
):
    """PostgreSQL says true and cancels when it looks: it seems started and stopped. Healed."""
    client.register("w", stop_grace_s=30)
    host.run()
    shut_down(client, ShutdownMode.FAST)
    refused = client.register_failed("late")
    assert refused.code == "shutting_down"
    assert client.ask(GetStatus, ref="late").code == "no_such_worker"


def test_m15_m16_healed_what_has_not_started_is_kept_and_says_why(town, host, client):
    """PostgreSQL forgets an unstarted worker with a waiter (M15), and never starts one without
    (M16). Healed: both are started by the next master, and say what holds them up."""
    client.register("w", labels=("gpu",))
    client.register("runs")
    start = host.run()
    client.follow("w", sequence=-1)
    shut_down(client, ShutdownMode.FAST)
    gpu = town.host("g", labels=["gpu"])
    assert not gpu.take(Start)
    status = client.status("w")
    assert (str(status.state), status.final) == ("not_yet_started", False)
    assert status.reason == "waiting: the cluster is shutting down"
    host.obey_stop(start)
    assert not client.events()
    town.crash()
    started = [start.spec["name"] for start in town.host("g", labels=["gpu"]).take(Start)]
    assert started == ["w", "runs"]


def test_n8_immediate_counts_no_exit_code(town, host, client):
    """PostgreSQL's immediate stop runs no callbacks, kills after 5 s. Kept; and no code counts."""
    starts = start_three(host, client)
    shut_down(client, ShutdownMode.IMMEDIATE)
    host.take(Stop)
    for start, facts in zip(
        starts, ({"code": 2}, {"code": 0}, {"cause": "signaled", "signal": 9}), strict=True
    ):
        host.end(start, StopReason.SHUTDOWN, **facts)
    town.crash()
    assert len(town.host("b").take(Start)) == 3


def test_n10_modes_only_escalate(town, host, client):
    [start, *_] = start_three(host, client)
    shut_down(client, ShutdownMode.SMART, request=b"1" * 16)
    assert not host.take(Stop)
    shut_down(client, ShutdownMode.FAST, request=b"2" * 16)
    assert [stop.signal for stop in host.take(Stop)] == [15, 15, 2]
    for number, mode in enumerate((ShutdownMode.SMART, ShutdownMode.FAST)):
        shut_down(client, mode, request=bytes([number]) * 16)
        assert not host.take(Stop)
        assert town.core.shutdown.mode is ShutdownMode.FAST
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
