"""The client against a real master, real agents, wardens and workers."""

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import posthouse
from posthouse import (
    NEVER_RESTART,
    BackgroundWorker,
    Cluster,
    Cursor,
    Event,
    EventKind,
    EventStream,
    Handle,
    HandleId,
    StopReason,
    WorkerState,
    errors,
)
from posthouse_testing.cluster import LocalCluster

HERE = Path(__file__).parent
Eventually = Callable[..., Any]
STARTED, STOPPED = WorkerState.STARTED, WorkerState.STOPPED
numbers = itertools.count(1)


@pytest.fixture(scope="module")
def house() -> Iterator[LocalCluster]:
    with LocalCluster(hosts=("a", "b"), path=[HERE / "workers"]) as running:
        yield running


@pytest.fixture
def cluster(house: LocalCluster) -> Iterator[Cluster]:
    with house.connect() as made:
        yield made


@pytest.fixture
def idle(cluster: Cluster) -> Iterator[Handle]:
    """A worker that idles on host b, ready."""
    handle = cluster.register(job("idle", host="b"))
    assert handle.wait_for_ready(timeout=20).state is STARTED
    yield handle
    handle.terminate()


def job(function: str, **fields: Any) -> BackgroundWorker:
    name = f"{function}-{next(numbers)}"
    return BackgroundWorker(name=name, main=f"clientjobs:{function}", **fields)


def kinds(events: list[Event]) -> list[EventKind]:
    return [event.kind for event in events]


def background(call: Callable[[], Any]) -> Callable[[], Any]:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()

    def result() -> Any:
        thread.join(30)
        return found[0]

    return result


def test_the_life_of_a_worker(cluster: Cluster) -> None:
    handle = cluster.register(job("idle", main_arg={"a": 1}, host="b", restart_time=0.1))
    status = handle.wait_for_startup(timeout=20)
    assert (status.state, status.host, status.incarnation) == (STARTED, "b", 1)
    assert status.pid is not None
    assert handle.pid() == status.pid
    stopped = background(partial(handle.wait_for_shutdown, timeout=20))
    stream = handle.events(timeout=20)
    while next(stream).kind is not EventKind.READY:
        pass
    os.kill(status.pid, signal.SIGKILL)
    exited = next(stream)
    assert exited.kind is EventKind.EXITED
    assert exited.exit is not None
    assert (exited.exit.signal, exited.pid or exited.exit.pid) == (9, status.pid)
    assert "SIGKILL" in exited.reason
    assert exited.restart_in_s is not None
    assert not exited.final
    first = stopped()
    assert (first.state, first.final, first.last_exit) == (STOPPED, False, exited.exit)
    again = [next(stream) for _ in range(3)]
    assert kinds(again) == [EventKind.STARTING, EventKind.STARTED, EventKind.READY]
    assert again[1].incarnation == 2
    assert again[1].pid not in (None, status.pid)
    assert handle.terminate()
    rest = list(stream)
    assert kinds(rest) == [EventKind.STOP_REQUESTED, EventKind.EXITED, EventKind.UNREGISTERED]
    assert rest[0].by == cluster.principal
    assert rest[1].final
    assert rest[1].stop is StopReason.TERMINATE
    end = handle.wait_until_unregistered(timeout=20)
    assert (end.state, end.final) == (STOPPED, True)
    assert not handle.terminate()
    assert kinds(list(handle.events(timeout=20))) == [  # a late watcher is told all of it
        EventKind.REGISTERED, EventKind.STARTING, EventKind.STARTED, EventKind.READY,
        EventKind.EXITED, EventKind.STARTING, EventKind.STARTED, EventKind.READY,
        EventKind.STOP_REQUESTED, EventKind.EXITED, EventKind.UNREGISTERED,
    ]  # fmt: skip
    assert list(handle.events(after=rest[-1].cursor, timeout=20)) == []


def test_h8_a_short_worker_may_be_stopped_already(cluster: Cluster) -> None:
    handle = cluster.register(job("end", main_arg=0))
    assert handle.wait_for_startup(timeout=20).state in (STARTED, STOPPED)
    end = handle.wait_until_unregistered(timeout=20)
    assert end.last_exit is not None
    assert (end.last_exit.code, end.final) == (0, True)


def test_a_traceback_comes_with_the_exit(cluster: Cluster) -> None:
    handle = cluster.register(job("fail", main_arg="no luck", restart_time=NEVER_RESTART))
    end = handle.wait_until_unregistered(timeout=20)
    assert end.last_exit is not None
    assert "ValueError: no luck" in end.last_exit.traceback


def test_masters_death_in_the_middle_of_waits(
    house: LocalCluster, cluster: Cluster, eventually: Eventually
) -> None:
    handle = cluster.register(job("end_later", main_arg=60, host="a", restart_time=0))
    status = handle.wait_for_startup(timeout=20)
    assert status.pid is not None
    waits = [
        background(partial(handle.wait_for_shutdown, timeout=30)),
        background(partial(handle.wait_until_unregistered, timeout=30)),
        background(lambda: list(handle.events(timeout=30))),
    ]
    eventually(lambda: len(cluster._connection.engine.board.inboxes) == 3)  # snapshots are taken
    house.master.kill()
    os.kill(status.pid, signal.SIGKILL)  # while nobody hears of it
    call = background(partial(cluster.register, job("idle"), timeout=30))
    house.master.start()
    stopped = waits[0]()
    assert stopped.state is STOPPED
    assert (stopped.last_exit.signal, stopped.incarnation) == (9, 1)
    other = call()
    house.master.restart()
    assert other.wait_for_ready(timeout=30).state is STARTED
    assert other.terminate(timeout=30)
    house.master.restart()
    assert handle.terminate(timeout=30)
    assert waits[1]().final
    events = waits[2]()
    assert [event.sequence for event in events] == sorted({event.sequence for event in events})
    exits = [event for event in events if event.kind is EventKind.EXITED]
    assert exits[0].exit is not None
    assert (exits[0].exit.signal, exits[0].incarnation) == (9, 1)
    assert [event.incarnation for event in exits] == list(range(1, len(exits) + 1))
    assert events[-1].kind is EventKind.UNREGISTERED


def test_h10_healed_every_watcher_is_told_the_same(house: LocalCluster, cluster: Cluster) -> None:
    def told_to(stream: EventStream) -> list[Cursor]:
        return [next(stream).cursor for _ in range(14)]

    begin = cluster.cursor()
    streams = [cluster.events(after=begin, timeout=20) for _ in range(3)]
    watchers = [background(partial(told_to, stream)) for stream in streams]
    for _ in range(3):
        handle = cluster.register(job("end", main_arg=0))
        handle.wait_until_unregistered(timeout=20)
    with house.connect() as another:
        late = another.events(after=begin, timeout=20)
        handle = another.register(job("end", main_arg=0))
        told = told_to(late)
    assert len(set(told)) == 14
    for watcher in watchers:
        assert watcher() == told


def test_threads_share_a_cluster(cluster: Cluster) -> None:
    def one() -> int:
        handle = cluster.register(job("idle"))
        pid = handle.wait_for_startup(timeout=30).pid
        handle.terminate()
        handle.wait_until_unregistered(timeout=30)
        assert pid is not None
        return pid

    calls = [background(one) for _ in range(6)]
    assert len({call() for call in calls}) == 6


def test_the_same_name_is_refused_with_the_other_handle(cluster: Cluster, idle: Handle) -> None:
    with pytest.raises(errors.AlreadyRegistered) as caught:
        cluster.register(BackgroundWorker(name=idle.name, main="clientjobs:idle"))
    assert HandleId.parse(caught.value.detail["handle"]) == idle.id
    assert cluster.handle(caught.value.detail["handle"]) == idle


def test_the_same_request_has_one_effect(house: LocalCluster, cluster: Cluster) -> None:
    identity = os.urandom(16)
    worker = job("idle")
    first = cluster.register(worker, request_id=identity)
    house.master.restart()
    assert cluster.register(worker, request_id=identity, timeout=30) == first
    with pytest.raises(errors.RequestConflict):
        cluster.register(job("idle"), request_id=identity)
    first.terminate()


def test_a_wait_for_what_cannot_start_says_why(cluster: Cluster) -> None:
    with pytest.raises(errors.UnknownHost, match="nowhere"):
        cluster.register(job("idle", host="nowhere"))
    handle = cluster.register(job("idle", labels=("gpu",)))
    with pytest.raises(errors.TimedOut, match="gpu") as caught:
        handle.wait_for_startup(timeout=0.2)
    assert caught.value.detail["status"].state is WorkerState.NOT_YET_STARTED
    explanation = handle.explain()
    assert [verdict.fits for verdict in explanation.verdicts] == [False, False]
    assert "gpu" in explanation.verdicts[0].reason
    handle.terminate()
    assert handle.wait_for_shutdown(timeout=20).final  # H5


def test_latch_signal_and_output(cluster: Cluster, idle: Handle, eventually: Eventually) -> None:
    idle.set_latch()
    eventually(lambda: "latch set" in idle.output().text)
    idle.signal("HUP")
    eventually(lambda: "got HUP" in idle.output().text)
    page = idle.output(offset=0, limit=3)
    assert (page.data, page.offset, page.next_offset, page.host) == (b"arg", 0, 3, "b")
    rest = idle.output(offset=page.next_offset)
    assert page.data + rest.data == idle.output(offset=0).data
    assert idle.output(offset=rest.size).data == b""


def test_a_stale_handle_says_stopped_whatever_came_after(cluster: Cluster) -> None:
    worker = job("idle")
    old = cluster.register(worker)
    old.terminate()
    old.wait_until_unregistered(timeout=20)
    new = cluster.register(worker)
    assert new.wait_for_startup(timeout=20).state is STARTED
    assert old != new
    assert old.status().state is STOPPED
    assert old.pid() is None
    assert not old.terminate()
    for call in (old.set_latch, partial(old.signal, "TERM")):
        with pytest.raises(errors.NotRunning):
            call()
    assert new.status().state is STARTED
    assert cluster.handle(worker.name) == new
    stranger = Handle(cluster._connection, HandleId("0" * 32, 0, 1), "stranger")
    assert stranger.status().state is STOPPED
    new.terminate()


def test_lists_and_hosts(cluster: Cluster, idle: Handle, eventually: Eventually) -> None:
    found = {info.status.name: info for info in cluster.workers()}
    assert found[idle.name].status.handle_id == idle.id
    assert found[idle.name].status.state is STARTED
    assert found[idle.name].by == cluster.principal
    assert not any(info.retired for info in found.values())
    assert [host.name for host in cluster.hosts()] == ["a", "b"]
    eventually(lambda: all(host.reachable for host in cluster.hosts()))
    everything = list(cluster.events(after=Cursor(0, 0), follow=False, timeout=20))
    assert everything[0].sequence == 1
    assert everything[-1].cursor <= cluster.cursor()


def test_a_callable_of_main_is_refused_with_the_way_out(house: LocalCluster) -> None:
    code = """
import posthouse
def work(arg): pass
with posthouse.connect() as cluster:
    try:
        cluster.register(posthouse.BackgroundWorker(name="w", main=work))
    except posthouse.InvalidField as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=house.command_env(),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert 'say main="' in done.stdout
    assert "__main__" in done.stdout


def test_a_client_made_in_a_forked_child_works(house: LocalCluster, cluster: Cluster) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            with pytest.raises(errors.UsageError):
                cluster.workers()
            with posthouse.connect(house.clients) as mine:
                os._exit(7 if mine.registry == cluster.registry else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
