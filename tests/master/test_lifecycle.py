"""Starting, ending, starting again: H1-H7, M1-M16, E1-E8, T1 as the master carries them out."""

import pytest

from posthouse import limits
from posthouse.messages import (
    Goodbye,
    LatchWorker,
    ListWorkers,
    Ready,
    SetLatch,
    Signal,
    SignalWorker,
    Start,
    Started,
    StartFailed,
    Stop,
)
from posthouse.states import NEVER_RESTART, StopReason

WHOLE_LIFE = ["registered", "starting", "started"]


@pytest.fixture
def host(town):
    return town.host("b")


@pytest.fixture
def client(town):
    return town.client()


def failed(start, reason="no memory", *, retry=True):
    return StartFailed(
        slot=start.slot,
        generation=start.generation,
        incarnation=start.incarnation,
        token=start.token,
        reason=reason,
        retry=retry,
    )


# --- H: what a handle sees ---


def test_h1_not_yet_started_while_it_waits_and_while_start_is_on_its_way(town, client):
    client.register("w")
    status = client.status("w")
    assert (str(status.state), status.final) == ("not_yet_started", False)
    assert status.reason == "waiting: no host has joined yet"
    host = town.host("b")
    assert str(client.status("w").state) == "not_yet_started"
    assert client.status("w").reason == "starting on b"
    host.run()
    assert str(client.status("w").state) == "started"


def test_h2_started_with_a_pid_even_while_terminate_is_pending(host, client):
    client.register("w")
    start = host.run(pid=4242)
    status = client.status("w")
    assert (str(status.state), status.pid, status.host) == ("started", 4242, "b")
    assert (status.incarnation, status.token) == (1, start.token)
    client.terminate("w")
    status = client.status("w")
    assert (str(status.state), status.pid) == ("started", 4242)
    assert status.stopping is StopReason.TERMINATE
    assert "terminated by client:local, its end is awaited" in status.reason


def test_h2_started_while_its_host_is_not_reachable(town, host, client):
    client.register("w")
    host.run()
    town.pass_time(limits.silence_s + 1, quiet=(host,))
    status = client.status("w")
    assert (str(status.state), status.reachable) == ("started", False)
    assert status.last_heard_s == pytest.approx(limits.silence_s + 1, abs=0.6)


def test_h3_h4_stopped_between_a_failure_and_the_next_start(town, host, client):
    client.register("w", restart_time=10)
    start = host.run()
    host.end(start, code=1)
    status = client.status("w")
    assert (str(status.state), status.final, status.pid) == ("stopped", False, None)
    assert status.restart_in_s == 10.0
    assert status.reason == "exited with code 1; restarts in 10.0 s"
    assert status.last_exit.code == 1
    town.pass_time(4)
    assert client.status("w").restart_in_s == pytest.approx(6.0)
    town.pass_time(6.5)
    assert str(client.status("w").state) == "stopped"  # START is on its way
    host.run(pid=2)
    status = client.status("w")
    assert (str(status.state), status.pid, status.incarnation) == ("started", 2, 2)


def test_h5_stopped_and_final_once_unregistered(host, client):
    client.register("w")
    host.end(host.run(), code=0)
    status = client.status("w")
    assert (str(status.state), status.final) == ("stopped", True)
    assert status.reason == "exited with code 0"
    assert status.last_exit.code == 0


def test_h11_ready_is_told_once_and_ends_with_the_process(town, host, client):
    client.register("w", restart_time=0)
    start = host.run()
    assert not client.status("w").ready
    said = Ready(
        slot=start.slot,
        generation=start.generation,
        incarnation=start.incarnation,
        token=start.token,
    )
    host.say(said)
    host.say(said)
    assert client.status("w").ready
    host.end(start, code=1)
    host.run()
    assert not client.status("w").ready
    assert town.kinds("0.1").count("ready") == 1


def test_h6_healed_a_pid_comes_with_started_alone_and_with_its_token(host, client):
    """PostgreSQL writes the pid for BGWH_STARTED only, and it may be somebody else's by then.
    Healed: the token beside it is that of no other start."""
    client.register("w", restart_time=0)
    seen = []
    for _ in range(3):
        status = client.status("w")
        assert (str(status.state) == "started", status.pid) == (False, None)
        start = host.run(pid=4242)  # the same pid again
        status = client.status("w")
        assert (status.pid, status.token) == (4242, start.token)
        seen.append(status.token)
        host.end(start, code=1)
    assert seen == sorted(set(seen))
    assert client.status("w").pid is None


# --- M: the state machine ---


def test_m1_m5_registered_starting_started(town, host, client):
    client.register("w")
    assert town.kinds("0.1") == ["registered", "starting"]
    start = host.run()
    assert town.kinds("0.1") == WHOLE_LIFE
    starting = town.log("0.1")[1]
    assert (starting.incarnation, starting.token, starting.host) == (1, start.token, "b")


def test_m2_what_is_acknowledged_is_listed_at_once(town, client):
    """The postmaster lists what it finds in its next look; until then nobody sees it. Kept, without
    the wait: the answer to a registration is after the list has it."""
    answer = client.register("w", labels=("nowhere",))
    [listed] = client.ask(ListWorkers).workers
    assert listed.status.handle == answer.handle
    town.crash()
    [listed] = town.client().ask(ListWorkers).workers
    assert listed.status.handle == answer.handle


def test_m3_m4_terminate_before_it_ran(town, client):
    client.register("w")
    client.terminate("w")
    [_, event] = town.log("0.1")
    assert (event.kind, event.rule, event.by) == ("unregistered", "M4", "client:local")
    assert client.status("w").final


def test_m6_a_failed_start_is_tried_again_after_restart_time(town, host, client):
    client.register("w", restart_time=3)
    host.say(failed(host.one(Start)))
    status = client.status("w")
    assert str(status.state) == "not_yet_started"  # it never ran
    assert status.reason == "could not be started: no memory; tried again in 3.0 s"
    town.pass_time(2.5)
    assert not host.take(Start)
    town.pass_time(1)
    again = host.run()
    assert again.incarnation == 2
    assert town.kinds("0.1") == [
        "registered",
        "starting",
        "start_failed",
        "starting",
        "started",
    ]


def test_m6_after_it_ran_once_a_failed_start_leaves_it_stopped(host, client):
    client.register("w", restart_time=0)
    host.end(host.run(), code=1)
    host.say(failed(host.one(Start)))
    assert str(client.status("w").state) == "stopped"


def test_m7_a_failed_start_of_one_never_restarted_unregisters_it(town, host, client):
    client.register("w", restart_time=NEVER_RESTART)
    host.say(failed(host.one(Start)))
    assert client.status("w").final
    assert [event.rule for event in town.log("0.1")[-2:]] == ["M7", "M7"]


def test_m8_exactly_one_stop_however_often_terminate_is_asked(host, client):
    client.register("w", stop_signal="INT", stop_grace_s=2.5)
    start = host.run()
    assert client.terminate("w").changed
    assert not client.terminate("w").changed
    stop = host.obey_stop(start)
    assert (stop.reason, stop.signal, stop.grace_s) == (StopReason.TERMINATE, 2, 2.5)
    assert client.status("w").final


def test_m8_terminate_between_start_and_started_sends_one_stop(town, host, client):
    client.register("w")
    start = host.one(Start)
    client.terminate("w")
    stop = host.one(Stop)
    assert stop.token == start.token
    host.say(Started(worker=host.running(start)))
    assert not host.take(Stop)
    host.end(start, StopReason.TERMINATE, code=1)
    rest = ["stop_requested", "started", "exited", "unregistered"]
    assert town.kinds("0.1") == ["registered", "starting", *rest]


def test_m9_exit_0_unregisters_whatever_restart_time_is(town, host, client):
    for restart_time in (0, 5, NEVER_RESTART):
        client.register("w", restart_time=restart_time)
        host.end(host.run(), code=0)
        assert client.status("w").final
    town.pass_time(20)
    assert not host.take(Start)


def test_m10_terminated_is_never_restarted_whatever_the_code(town, host, client):
    for facts in ({"code": 0}, {"code": 1}, {"code": 7}, {"cause": "signaled", "signal": 9}):
        client.register("w", restart_time=0)
        start = host.run()
        client.terminate("w")
        host.obey_stop(start, **facts)
        assert client.status("w").final
    town.pass_time(20)
    assert not host.take(Start)


def test_m10_an_exit_that_crosses_terminate_is_never_restarted(town, host, client):
    client.register("w", restart_time=0)
    start = host.run()
    client.terminate("w")
    host.end(start, None, code=1)  # it ended by itself before STOP arrived
    assert client.status("w").final
    host.no_such_process(host.one(Stop))
    town.pass_time(5)
    assert not host.take(Start)


def test_m11_m12_t1_restart_exactly_once_after_restart_time(town, host, client):
    client.register("w", restart_time=5)
    start = host.run()
    host.end(start, cause="signaled", signal=11)
    event = town.log("0.1")[-1]
    assert (event.rule, event.final, event.restart_in_s) == ("E3", False, 5.0)
    assert event.restart_at_unix_s == town.unix_s + 5
    assert event.exit.signal == 11
    town.pass_time(4.5)
    assert not host.take(Start)
    town.pass_time(1)
    again = host.run()
    assert (again.incarnation, again.generation) == (2, start.generation)
    assert again.token > start.token
    assert town.log("0.1")[-2].rule == "M12"
    town.pass_time(20)
    assert not host.take(Start)


def test_m13_terminate_while_waiting_for_a_restart(town, host, client):
    client.register("w", restart_time=5)
    host.end(host.run(), code=1)
    client.terminate("w")
    assert client.status("w").final
    event = town.log("0.1")[-1]
    assert (event.kind, event.rule) == ("unregistered", "M13")
    town.pass_time(10)
    assert not host.take(Start)
    assert not host.take(Stop)


def test_t3_restart_time_0_restarts_at_once(host, client):
    client.register("w", restart_time=0)
    for incarnation in (1, 2, 3):
        start = host.run()
        assert start.incarnation == incarnation
        host.end(start, code=1)


def test_m14_healed_a_crash_concerns_the_worker_alone(town, client):
    """In PostgreSQL any exit but 0 and 1 of any child resets the whole cluster. Healed: without a
    crash domain nobody else notices."""
    hosts = [town.host("a"), town.host("b")]
    for number in range(4):
        client.register(f"w{number}", restart_time=5)
    starts = {host.name: host.take(Start) for host in hosts}
    for host in hosts:
        for start in starts[host.name]:
            host.say(Started(worker=host.running(start)))
    crashed = starts["a"][0]
    hosts[0].end(crashed, cause="signaled", signal=11, core=True)
    town.pass_time(2)
    assert not any(host.take(Stop) + host.take(Start) for host in hosts)
    others = [s for found in starts.values() for s in found if s.token != crashed.token]
    assert len(others) == 3
    for start in others:
        status = client.status(start.spec["name"])
        assert (str(status.state), status.token) == ("started", start.token)


# --- E: exit classes, told as such ---


@pytest.mark.parametrize(
    ("facts", "rule", "final"),
    [
        pytest.param({"code": 0}, "E1", True, id="E1"),
        pytest.param({"code": 1}, "E2", False, id="E2"),
        pytest.param({"code": 3}, "E3", False, id="E3"),
        pytest.param({"cause": "signaled", "signal": 9}, "E3", False, id="E3-kill"),
        pytest.param({"cause": "signaled", "signal": 15}, "E6", False, id="E6"),
        pytest.param({"cause": "warden_died"}, "E3", False, id="warden"),
        pytest.param({"cause": "host_rebooted"}, "E3", False, id="reboot"),
        pytest.param({"cause": "daemonised", "code": 0}, "E2", False, id="daemonised"),
    ],
)
def test_each_exit_class_is_told_with_its_rule(town, host, client, facts, rule, final):
    client.register("w")
    host.end(host.run(), **facts)
    exited = next(event for event in town.log("0.1") if event.kind == "exited")
    assert (exited.rule, exited.final) == (rule, final)
    assert (town.kinds("0.1")[-1] == "unregistered") is final


def test_an_exit_without_started_is_preceded_by_started(town, host, client):
    client.register("w")
    start = host.one(Start)
    host.end(start, code=1, pid=77)
    assert town.kinds("0.1") == [*WHOLE_LIFE, "exited"]
    assert town.log("0.1")[2].pid == 77


def test_a_repeated_exit_is_told_once(town, host, client):
    client.register("w", restart_time=60)
    start = host.run()
    host.end(start, code=1)
    host.end(start, code=1)
    host.end(start, cause="signaled", signal=9)
    assert town.kinds("0.1").count("exited") == 1


def test_exit_facts_are_kept_and_shown(town, host, client):
    client.register("w")
    host.end(host.run(), code=1, output_tail="boom\n", traceback="Traceback", max_rss_bytes=9)
    shown = client.status("w").last_exit
    assert (shown.output_tail, shown.traceback, shown.max_rss_bytes) == ("boom\n", "Traceback", 9)
    town.crash()
    assert town.client().status("w").last_exit == shown


# --- signals and latches ---


def test_signals_and_latches_reach_the_process_that_runs(host, client):
    client.register("w")
    start = host.run()
    client.ask(SignalWorker, ref="w", signal=1)
    client.ask(LatchWorker, ref="w")
    signal, latch = host.one(Signal), host.one(SetLatch)
    assert (signal.token, signal.signal) == (start.token, 1)
    assert latch.token == start.token


def test_l1_l9_a_latch_waits_for_no_disk(town, host, client):
    """Nothing of it is remembered: a request that is said again sets what is set."""
    client.register("w")
    start = host.run()
    commits = town.commits
    answers = [client.ask(LatchWorker, ref="w", request=b"l" * 16) for _ in range(2)]
    assert town.commits == commits
    assert all(answer.changed for answer in answers)
    assert [latch.token for latch in host.take(SetLatch)] == [start.token] * 2


def test_signals_to_what_does_not_run_are_refused(town, host, client):
    client.register("w", restart_time=60)
    host.end(host.run(), code=1)
    assert client.ask(SignalWorker, ref="w", signal=1).code == "not_running"
    assert client.ask(LatchWorker, ref="nobody").code == "no_such_worker"
    client.register("v")
    host.run()
    town.pass_time(4, quiet=(host,))
    answer = client.ask(SignalWorker, ref="v", signal=1)
    assert (answer.code, answer.message) == ("refused", "host b is not reachable now")


# --- order of starts ---


def test_t5_healed_the_oldest_registration_starts_first(town, client):
    for number in range(5):
        client.register(f"w{number}")
    host = town.host("b")
    assert [start.slot for start in host.take(Start)] == [0, 1, 2, 3, 4]


def test_a_host_gets_no_more_starts_than_it_has_slots(town, client):
    for number in range(5):
        client.register(f"w{number}")
    host = town.host("b", slots=2)
    starts = host.take(Start)
    assert [start.slot for start in starts] == [0, 1]
    host.end(starts[0], code=0)
    assert host.one(Start).slot == 2


def test_workers_for_any_host_go_to_the_least_loaded(town, client):
    a, b = town.host("a"), town.host("b")
    for number in range(6):
        client.register(f"w{number}")
    assert len(a.take(Start)) == len(b.take(Start)) == 3


def test_more_workers_than_a_link_holds_are_started_as_the_host_answers(towns):
    town = towns.Town(towns.Policy(max_worker_processes_per_host=5000))
    client = town.client()
    count = limits.outbox_messages_max + 100
    for number in range(count):
        client.register(f"w{number}")
        client.acknowledge()
    host = town.host("b", slots=5000)
    seen = []
    while starts := host.take(Start):
        assert len(starts) <= limits.starts_in_flight_max
        seen += [start.slot for start in starts]
        for start in starts:
            host.say(Started(worker=host.running(start)))
        host.acknowledge()
    assert seen == list(range(count))
    assert not host.refused


def test_stops_beyond_the_links_room_follow_as_it_acknowledges(towns):
    town = towns.Town(towns.Policy(max_worker_processes_per_host=5000))
    client, host = town.client(), town.host("b", slots=5000)
    count = limits.outbox_messages_max + 300
    starts = []
    for number in range(count):
        client.register(f"w{number}")
        client.acknowledge()
        starts.append(host.run())
    host.acknowledge()
    for number in range(count):
        client.terminate(f"w{number}")
        client.acknowledge()
    stops = []
    for _ in range(20):
        stops += host.take(Stop)
        host.acknowledge()
    assert [stop.token for stop in stops] == [start.token for start in starts]
    assert not host.refused


def test_a_start_that_can_never_work_on_a_host_is_not_tried_there_again(town, client):
    a = town.host("a")
    client.register("w", restart_time=1)
    a.say(failed(a.one(Start), retry=False))
    town.pass_time(10)
    assert not a.take(Start)
    assert "trying again there is of no use" in client.status("w").reason
    assert town.host("b").run().incarnation == 2


def test_a_new_session_of_the_host_may_try_again(town, client):
    a = town.host("a")
    client.register("w", host="a", restart_time=1)
    a.say(failed(a.one(Start), retry=False))
    town.pass_time(5)
    assert not a.take(Start)
    a.say(Goodbye(reason="new configuration"))
    assert town.host("a").run().incarnation == 2
