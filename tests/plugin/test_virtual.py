"""Simulated workers: what they can do, how they die, what a test may do to their cluster."""

import os
import signal
import subprocess
import sys
import time

import pytest

from posthouse import (
    BackgroundWorker,
    EventKind,
    InvalidField,
    NotRunning,
    TimedOut,
    UsageError,
    WorkerState,
    worker,
)
from posthouse_testing import DoubleRun
from posthouse_testing.virtual.faults import CHAOS


def record(**fields):
    return BackgroundWorker(**{"name": "w", "main": "app:main", "restart_time": 1.0} | fields)


def steady(me):
    me.unblock_signals()
    me.ready()
    while True:
        me.latch.reset()
        yield me.latch.wait(timeout=60)


@pytest.fixture
def cluster(posthouse_cluster):
    made = posthouse_cluster(hosts=["a", "b"])
    made.worker("app:main")(steady)
    return made


@pytest.fixture
def played(cluster):
    """Registers a body, and gives its handle once it has begun."""

    def play(body, **fields):
        cluster.worker("app:main")(body)
        handle = cluster.register(record(**fields))
        cluster.run_until(lambda: cluster.processes(handle), timeout=10)
        return handle

    return play


@pytest.fixture
def declared(cluster):
    """Registers a body; nothing of it has happened then."""

    def declare(body):
        cluster.worker("app:main")(body)
        cluster.register(record())

    return declare


def started(cluster, **fields):
    """One is registered and has begun: its runtime may take seconds to be loaded."""
    handle = cluster.register(record(**fields))
    cluster.run_until(lambda: cluster.running(handle), timeout=10)
    cluster.run(0.5)
    return handle


def exits(cluster, handle):
    return [e for e in cluster.events(handle) if e.kind is EventKind.EXITED]


# --- the client is the real one, on virtual time ---


def test_handles_wait_in_virtual_time(cluster):
    handle = cluster.register(record())
    assert handle.wait_for_ready(timeout=10).state is WorkerState.STARTED
    assert handle == cluster.client.handle("w")
    assert [host.name for host in cluster.client.hosts()] == ["a", "b"]
    at_s = cluster.now_s
    with pytest.raises(TimedOut, match=r"waited 600 s for .*: worker w, last known started"):
        handle.wait_until_unregistered(timeout=600)
    assert 600 <= cluster.now_s - at_s < 601
    assert handle.terminate()
    assert handle.wait_until_unregistered(timeout=10).final
    kinds = [event.kind for event in handle.events()]
    assert kinds[:3] == [EventKind.REGISTERED, EventKind.STARTING, EventKind.STARTED]
    assert kinds[-1] is EventKind.UNREGISTERED


def test_no_master_is_told_as_ever(posthouse_cluster):
    cluster = posthouse_cluster(lease_s=0)
    cluster.worker("app:main")(steady)
    handle = started(cluster)
    cluster.kill("master", down_s=60)
    with pytest.raises(TimedOut):
        cluster.client.hosts(timeout=1)
    assert handle.wait_for_shutdown(timeout=50).state is WorkerState.POSTMASTER_DIED
    assert cluster.running(handle)[0].incarnation == 1, "a master's death ends no worker"


# --- what a worker can do ---


def test_it_knows_who_it_is(cluster, played):
    seen = []

    class Body:
        def __init__(self, me):
            self.me = me

        def run(self):
            me = self.me
            seen.append((me.name, me.host, me.main_arg, me.incarnation, me.token, me.entry().extra))
            yield me.sleep(1.5)
            seen.append(me.now_s - cluster.processes()[0].born_s)
            sys.exit(0)

    handle = played(Body, main_arg={"x": 1}, extra=b"e", host="b")
    assert handle.wait_until_unregistered(timeout=10).last_exit.code == 0
    assert seen[0] == ("w", "b", {"x": 1}, 1, 1, b"e")
    assert 1.5 <= seen[1] < 1.6


def test_its_latch_is_set_from_anywhere(cluster, played):
    woken = []

    def body(me):
        while True:
            me.latch.reset()
            woken.append(
                (yield me.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH, timeout=5))
            )

    handle = played(body)
    cluster.run(1)
    handle.set_latch()
    cluster.run(1)
    assert woken == [{worker.LATCH_SET}]
    cluster.run(5)
    assert woken[1:] == [{worker.TIMEOUT}]


@pytest.mark.parametrize(
    ("code", "runs"), [(0, 1), (None, 1), (1, 2), (7, 2), ("some text", 2), (256, 2)]
)
def test_its_exit_code_decides(cluster, played, code, runs):
    def body(me):
        yield
        if me.incarnation == 2:
            yield me.sleep(1000)
        sys.exit(code)

    handle = played(body)
    cluster.run(15)
    assert len(cluster.processes(handle)) == runs


def test_an_uncaught_error_is_an_exit_1_with_its_traceback(cluster, played):
    def body(me):
        yield me.sleep(0.1)
        raise ValueError("no such order")

    handle = played(body)
    cluster.run_until(lambda: exits(cluster, handle), timeout=10)
    event = exits(cluster, handle)[0]
    assert event.exit.code == 1
    assert 'raise ValueError("no such order")' in event.exit.traceback
    assert "ValueError: no such order" in cluster.report()


def test_exit_callbacks_run_in_order_at_a_good_end_only(cluster, played):
    done = []

    def body(me):
        for name in ("one", "two"):
            me.before_exit(lambda name=name: done.append(f"before {name}"))
            me.on_exit(lambda name=name: done.append(name))
        yield me.sleep(0.1)
        if me.incarnation == 1:
            sys.exit(1)
        yield me.sleep(1000)

    handle = played(body)
    cluster.run_until(lambda: cluster.processes(handle)[-1].incarnation == 2, timeout=10)
    assert done == ["before two", "before one", "two", "one"]
    cluster.run(1)
    cluster.kill(handle)
    cluster.run(0.5)
    assert len(done) == 4


def test_it_registers_others_and_asks_about_them(cluster, played):
    told = []

    def launch(me):
        if me.name == "child":
            yield from steady(me)
        cluster.kill("master", down_s=3)
        handle = yield me.register(record(name="child"))
        told.append(handle.name)
        yield me.sleep(10)
        status = yield me.handle(str(handle.id)).status()
        told.append((status.state, status.ready))
        yield handle.set_latch()
        told.append((yield handle.terminate()))
        yield me.sleep(3)
        told.append((yield handle.status()).final)
        try:
            yield handle.set_latch()
        except NotRunning:
            told.append("gone")
        cluster.kill("master", down_s=60)
        try:
            yield handle.status(timeout=2)
        except TimedOut as error:
            told.append(str(error))
        yield me.sleep(1000)

    played(launch)
    cluster.run(60)
    assert told == [
        "child",
        (WorkerState.STARTED, True),
        True,
        True,
        "gone",
        "no answer to 'status' within 2 s",
    ]


# --- how it dies ---


def test_kill_runs_nothing_more_of_it(cluster, played):
    done = []

    def body(me):
        try:
            yield me.sleep(1000)
        finally:
            done.append("finally")

    handle = played(body, restart_time=60)
    cluster.run(1)
    cluster.kill(handle)
    cluster.run(1)
    assert done == []
    assert exits(cluster, handle)[0].exit.signal == signal.SIGKILL
    with pytest.raises(NotRunning):
        cluster.kill(handle)


def test_term_comes_up_at_the_yield(cluster, played):
    done = []

    def body(me):
        me.unblock_signals()
        try:
            yield me.sleep(1000)
        finally:
            done.append(me.now_s)

    handle = played(body)
    cluster.run(1)
    handle.terminate()
    assert handle.wait_until_unregistered(timeout=10).last_exit.code == 1
    assert len(done) == 1


def test_signals_wait_until_they_are_unblocked(cluster, played):
    got = []

    def body(me):
        me.signal(signal.SIGHUP, lambda number, _: got.append((number, me.now_s)))
        yield me.sleep(2)
        me.unblock_signals()
        got.append("then")
        yield me.sleep(1000)

    handle = played(body)
    cluster.run(0.5)
    handle.signal("HUP")
    cluster.run(1)
    assert got == []
    cluster.run(2)
    assert got[0][0] == signal.SIGHUP
    assert got[1] == "then"


def test_one_that_blocks_signals_is_killed_after_its_grace(cluster, played):
    def body(me):
        while True:
            yield me.sleep(1)

    handle = played(body, stop_grace_s=2)
    at_s = cluster.now_s
    handle.terminate()
    assert handle.wait_until_unregistered(timeout=10).last_exit.signal == signal.SIGKILL
    assert 2 <= cluster.now_s - at_s < 3


@pytest.mark.parametrize("target", ["host:a", "warden:a"])
def test_it_dies_with_its_host_and_its_warden(cluster, target):
    handle = started(cluster, host="a")
    cluster.kill(target)
    cluster.run(0.5)
    assert not cluster.running(handle)
    cluster.run_until(lambda: cluster.running(handle), timeout=30)
    assert [p.incarnation for p in cluster.running(handle)] == [2]


def test_a_paused_one_is_killed_at_the_end_of_its_lease(cluster):
    handle = started(cluster, restart_time=0)
    (process,) = cluster.running(handle)
    for target in (process, f"agent:{process.host}", f"warden:{process.host}"):
        cluster.pause(target, 60)
    at_s = cluster.now_s
    cluster.run_until(lambda: not process.live, timeout=60)
    assert cluster.now_s - at_s < 10.1
    cluster.run_until(lambda: cluster.running(handle), timeout=60)
    assert cluster.running(handle)[0].host != process.host


# --- what a test may do ---


@pytest.mark.parametrize("way", [{}, {"from_master": False}, {"to_master": False}])
def test_a_cut_host_ends_its_worker_before_another_runs(cluster, way):
    handle = started(cluster, restart_time=0)
    (first,) = cluster.running(handle)
    cluster.cut(first.host, **way)
    cluster.run_until(lambda: len(cluster.processes(handle)) == 2, timeout=30)
    second = cluster.processes(handle)[1]
    assert first.died_s < second.born_s
    assert second.host != first.host
    assert second.token > first.token
    cluster.heal()
    hosts = cluster.client.hosts
    cluster.run_until(lambda: all(host.reachable for host in hosts()), timeout=30)


def test_a_worker_that_is_pinned_goes_on_while_its_host_is_cut(cluster):
    handle = started(cluster, host="a")
    cluster.cut("a")
    cluster.run(60)
    assert not handle.status().reachable
    cluster.heal()
    cluster.run_until(lambda: handle.status().reachable, timeout=30)
    assert [process.live for process in cluster.processes(handle)] == [True]


def test_chaos_of_each_kind_leaves_a_cluster_that_works(posthouse_cluster):
    cluster = posthouse_cluster(hosts=3, seed=11)
    cluster.worker("app:main")(steady)
    handles = [cluster.register(record(name=f"w{n}")) for n in range(3)]
    for kind in CHAOS:
        cluster.chaos(5, rate=1, kinds=[kind])
    cluster.run(60)
    assert [len(cluster.running(handle)) for handle in handles] == [1, 1, 1]
    assert len(cluster.struck) > len(CHAOS)


RUN = """
from posthouse import BackgroundWorker
from posthouse_testing import VirtualCluster
cluster = VirtualCluster(2, seed=5)
@cluster.worker("app:main")
def main(me):
    while True:
        yield me.latch.wait(timeout=1)
cluster.register(BackgroundWorker(name="w", main="app:main"))
cluster.chaos(20)
print(cluster.world.trace_hash)
cluster.close()
"""


def test_a_seed_is_the_same_run_everywhere(capsys):
    exec(RUN, {"__name__": "run"})
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    there = subprocess.run([sys.executable, "-c", RUN], env=env, capture_output=True, text=True)
    assert there.stdout == capsys.readouterr().out, there.stderr
    assert len(there.stdout.strip()) == 32


def test_the_world_outside_goes_on_by_itself(cluster, played):
    arrived = []

    def body(me):
        cluster.after(5, arrived.append, me.token)
        yield me.sleep(1000)

    handle = played(body, restart_time=60)
    cluster.run(1)
    cluster.kill(handle)
    cluster.run(5)
    assert arrived == [1]


# --- what must not happen ---


def test_two_holders_fail_the_test_with_their_history(cluster):
    def body(me):
        yield me.sleep(me.main_arg)
        with me.exclusive("shard"):
            yield me.sleep(1000)

    cluster.worker("app:main")(body)
    cluster.register(record(name="one", main_arg=1))
    cluster.register(record(name="two", main_arg=2))
    with pytest.raises(DoubleRun) as raised:
        cluster.run(20)
    first, *lines = str(raised.value).splitlines()
    assert first.startswith("shard is held twice: by ")
    assert sorted(line.split()[2] for line in lines) == ["one", "two"]
    with pytest.raises(DoubleRun):
        cluster.check()
    cluster.exclusive("shard").broken.clear()  # or this very test would fail


def test_a_hold_ends_with_its_process(cluster):
    def body(me):
        me.exclusive("shard")
        yield me.sleep(1000)

    cluster.worker("app:main")(body)
    handle = started(cluster, restart_time=0)
    for _ in range(3):
        cluster.kill(handle)
        cluster.run(10)
    assert cluster.exclusive("shard").taken == 4
    assert "signal 9" in cluster.exclusive("shard").history[1]


def test_what_a_worker_asserts_fails_the_test(cluster, played):
    def body(me):
        yield me.sleep(1)
        assert me.token == 2, "stale"

    played(body)
    with pytest.raises(AssertionError, match="stale"):
        cluster.run(5)


# --- what a worker must not do ---


def test_a_call_that_is_not_yielded_is_told(cluster, declared):
    def body(me):
        me.sleep(1)
        yield

    declared(body)
    with pytest.raises(UsageError, match=r"called me.sleep\(\) and did not yield it"):
        cluster.run(10)


def test_what_is_yielded_must_be_something_to_wait_for(cluster, declared):
    def body(_me):
        yield 3

    declared(body)
    with pytest.raises(UsageError, match=r"yields 3: must be me\.sleep"):
        cluster.run(10)


def test_a_body_must_be_a_generator(cluster, declared):
    declared(lambda me: None)
    with pytest.raises(UsageError, match="gave None: must be a generator"):
        cluster.run(10)


@pytest.mark.parametrize("how", ["computes", "sleeps"])
def test_one_that_never_yields_is_interrupted(posthouse_cluster, how):
    cluster = posthouse_cluster(step_s_max=0.3)

    def body(_me):
        yield
        while True:
            if how == "sleeps":
                time.sleep(60)

    cluster.worker("app:main")(body)
    cluster.register(record())
    with pytest.raises(AssertionError, match=r"did not yield in time: it is at .*test_virtual"):
        cluster.run(10)


def test_the_watchdog_leaves_no_handler_behind(posthouse_cluster):
    before = signal.getsignal(signal.SIGVTALRM)
    made = [posthouse_cluster() for _ in range(2)]
    for one in made:
        one.worker("app:main")(steady)
        one.register(record())
        one.run(1)
    for one in made:
        one.close()
    assert signal.getsignal(signal.SIGVTALRM) is before


def test_one_that_spins_without_waiting_is_told(cluster, declared):
    def body(me):
        while True:
            yield me.sleep(0)

    declared(body)
    with pytest.raises(AssertionError, match="steps in a virtual second"):
        cluster.run(10)


def test_a_worker_cannot_let_time_pass_for_others(cluster, played):
    def body(_me):
        yield
        cluster.client.hosts()

    handle = played(body)
    cluster.run(1)
    assert "virtual time does not pass" in exits(cluster, handle)[0].exit.traceback


# --- bad words ---


def test_bad_words_are_told_with_the_field_and_the_rule(cluster, posthouse_cluster):
    with pytest.raises(UsageError, match="no simulated worker 'app:other'; declared: 'app:main'"):
        cluster.register(record(main="app:other"))
    with pytest.raises(InvalidField, match="restart_time is -2"):
        cluster.register(record(restart_time=-2))
    for wrong, rule in (
        (lambda: cluster.worker("app"), "main is 'app': must be \"module:function\""),
        (lambda: cluster.cut("c"), "host is 'c': must be one of a, b"),
        (lambda: cluster.kill("worker:w"), "target is 'worker:w': must be \"master\""),
        (lambda: cluster.kill("warden:a", down_s=3), "down_s is 3 for warden:a"),
        (lambda: cluster.pause("master", 0), "seconds is 0: must be more than 0"),
        (lambda: cluster.run(-1), "seconds is -1: must be 0 to"),
        (lambda: cluster.chaos(1, rate=100), "rate is 100: must be more than 0, and 20 at most"),
        (lambda: cluster.chaos(1, kinds=["flood"]), "kinds has 'flood': must be of"),
        (lambda: posthouse_cluster(hosts=[]), "hosts is .*: must be 1 to 50 different names"),
        (lambda: posthouse_cluster(hosts=0), "hosts is 0: must be 1 to 50"),
        (lambda: posthouse_cluster(lease_s=1), "lease_s is 1: must be 0, or 5 to 3600"),
    ):
        with pytest.raises(UsageError, match=rule):
            wrong()
    with pytest.raises(TimedOut, match="not within 1 virtual seconds"):
        cluster.run_until(lambda: False, timeout=1)
