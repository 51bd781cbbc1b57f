"""Crash domains as the client sees them: master, agents, wardens and workers are real (C2-C8)."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from posthouse import (
    NEVER_RESTART,
    SHMEM_ACCESS,
    BackgroundWorker,
    Cluster,
    EventKind,
    Handle,
    StopReason,
)
from posthouse_testing.cluster import LocalCluster

HERE = Path(__file__).parent
Begin = Callable[..., Handle]


@pytest.fixture(scope="module")
def house() -> Iterator[LocalCluster]:
    with LocalCluster(hosts=("a", "b"), path=[HERE / "workers"]) as running:
        yield running


@pytest.fixture
def cluster(house: LocalCluster) -> Iterator[Cluster]:
    with house.connect() as made:
        yield made


@pytest.fixture
def begin(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Begin]:
    handles = []

    def begin(name: str, **fields: Any) -> Handle:
        spec = {"host": "a", "crash_domain": request.node.name[:60], **fields}
        record = BackgroundWorker(name=name, main="domainjobs:member", flags=SHMEM_ACCESS, **spec)
        handles.append(cluster.register(record))
        handles[-1].wait_for_ready(timeout=20)
        return handles[-1]

    yield begin
    for handle in handles:
        handle.terminate()
    for handle in handles:
        handle.wait_until_unregistered(timeout=20)


def kill(handle: Handle) -> None:
    pid = handle.pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def end_of(handle: Handle) -> Any:
    return next(e for e in handle.events(timeout=20) if e.kind is EventKind.EXITED)


def again(handle: Handle, incarnation: int) -> None:
    stream = handle.events(timeout=20)
    next(e for e in stream if e.kind is EventKind.READY and e.incarnation == incarnation)


def test_c2_c3_c8_members_restart_at_once_and_events_tell_why(begin: Begin) -> None:
    crasher = begin("crasher", restart_time=1000)
    innocent = begin("innocent", restart_time=1000)
    once = begin("once", restart_time=NEVER_RESTART)
    elsewhere = begin("elsewhere", restart_time=1000, host="b")
    pid = crasher.pid()
    kill(crasher)
    first = end_of(crasher)
    assert first.exit.domain_cause == f"worker crasher (pid {pid}) ended by signal 9"
    assert (first.rule, first.restart_in_s, first.stop) == ("C2", 0.0, None)
    assert "a crash that resets crash domain test_c2" in first.reason
    told = end_of(innocent)
    assert (told.rule, told.restart_in_s, told.stop) == ("C2", 0.0, StopReason.DOMAIN_RESET)
    assert "stopped by the reset of its crash domain" in told.reason
    assert f"worker crasher (pid {pid}) ended by signal 9" in told.reason
    assert told.exit.domain_epoch == first.exit.domain_epoch == 2
    again(crasher, 2)
    again(innocent, 2)
    gone = once.wait_until_unregistered(timeout=20)
    assert "never restarted" in gone.reason
    assert end_of(once).rule == "C3"
    assert elsewhere.status().incarnation == 1, "a domain is one host's"


def test_c2_a_second_reset_within_a_minute_waits_for_restart_time(begin: Begin) -> None:
    crasher = begin("crasher", restart_time=0.5)
    innocent = begin("innocent", restart_time=0.25)
    for incarnation in (1, 2):
        again(crasher, incarnation)
        again(innocent, incarnation)
        kill(crasher)
    again(crasher, 3)
    again(innocent, 3)
    delays = [
        [
            e.restart_in_s
            for e in handle.events(timeout=20, follow=False)
            if e.kind is EventKind.EXITED
        ]
        for handle in (crasher, innocent)
    ]
    assert delays[0][0] == 0.0
    assert delays[0][1] >= 0.5
    assert delays[1] == [0.0, 0.25]


def test_c4_c5_c9_who_has_no_process_keeps_its_delay_and_slots_stay(
    cluster: Cluster, begin: Begin
) -> None:
    waiting = begin("waiting", restart_time=1000, main_arg=1)
    waiting.set_latch()
    waiting.wait_for_shutdown(timeout=20)
    before = cluster.handle(waiting.name).status().handle
    crasher = begin("crasher")
    kill(crasher)
    again(crasher, 2)
    status = waiting.status()
    assert (status.incarnation, status.restart_in_s is not None) == (1, True)
    assert status.handle == before
