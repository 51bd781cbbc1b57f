"""Latches that are set from other processes and other hosts (L1-L10): everything is real."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from posthouse import BackgroundWorker, Cluster, Handle
from posthouse.errors import NotRunning
from posthouse_testing.cluster import LocalCluster

HERE = Path(__file__).parent
PATIENCE_S = 30.0
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
def begin(cluster: Cluster) -> Iterator[Begin]:
    handles: list[Handle] = []

    def begin(job: str, arg: Any = None, **fields: Any) -> Handle:
        name = f"{job}-{len(handles)}"
        record = BackgroundWorker(name=name, main=f"latchjobs:{job}", main_arg=arg, **fields)
        handles.append(cluster.register(record))
        return handles[-1]

    yield begin
    for handle in handles:
        handle.terminate()
    for handle in handles:
        handle.wait_until_unregistered(timeout=PATIENCE_S)


def exit_of(handle: Handle) -> Any:
    facts = handle.wait_until_unregistered(timeout=PATIENCE_S).last_exit
    assert facts is not None
    return facts


@pytest.mark.parametrize("host", ["a", "b"])
def test_l2_a_worker_sets_the_latch_of_another_on_its_host_or_another(
    begin: Begin, host: str
) -> None:
    sleeper = begin("sleep", host="a")
    sleeper.wait_for_ready(timeout=PATIENCE_S)
    begin("wake", str(sleeper.id), host=host)
    facts = exit_of(sleeper)
    assert (facts.code, "woken by LATCH_SET" in facts.output_tail) == (0, True)


def test_l1_l6_l10_over_a_set_of_sockets_the_latch_wins(begin: Begin) -> None:
    """Two sockets of which one is ready, one that ends, and a latch that a client sets."""
    waiter = begin("wait_over_sockets", host="b")
    waiter.wait_for_ready(timeout=PATIENCE_S)
    waiter.set_latch()
    facts = exit_of(waiter)
    assert facts.code == 0, facts.output_tail
    assert facts.output_tail.split("\n")[:3] == [
        "first SOCKET_READABLE",
        "then LATCH_SET",
        "last SOCKET_READABLE",
    ]


def test_l9_nobody_is_woken_where_the_owner_is_gone(begin: Begin) -> None:
    """PostgreSQL: a no-op. A handle says so; who comes after it is not woken for it."""
    gone = begin("leave", host="a")
    exit_of(gone)
    with pytest.raises(NotRunning):
        gone.set_latch()
