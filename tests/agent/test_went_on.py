"""A host without its master goes on with its kept workers, with real processes; and what it did is
told by incarnation, each start and each end once."""

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from posthouse import BackgroundWorker, EventKind, Handle
from posthouse_testing.cluster import LocalCluster

HERE = Path(__file__).parent
Eventually = Callable[..., Any]


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(hosts=["a"], path=[HERE / "workers"]) as cluster:
        yield cluster


def pinned(cluster: LocalCluster, name: str = "w", **values: Any) -> BackgroundWorker:
    record = str(cluster.dir / f"{name}.record")
    given = {"main": "agent_jobs:steady", "main_arg": record, "restart_time": 0.1, "host": "a"}
    return BackgroundWorker(name=name, **(given | values))


def ran(cluster: LocalCluster, name: str = "w") -> list[tuple[int, int, int]]:
    """Token, incarnation and pid of all that really ran, in order."""
    lines = (cluster.dir / f"{name}.record").read_text().splitlines()
    return [tuple(map(int, line.split()[:3])) for line in lines]  # type: ignore[misc]


def end_newest(cluster: LocalCluster, eventually: Eventually, name: str = "w") -> None:
    """Kill the newest process, and wait until another one runs."""
    before = ran(cluster, name)
    os.kill(before[-1][2], signal.SIGKILL)
    eventually(lambda: len(ran(cluster, name)) > len(before))


def told_once(handle: Handle, count: int) -> None:
    """Each incarnation has one start, and each but the last one end."""
    rows = Counter((row.kind, row.incarnation) for row in handle.events(follow=False))
    for number in range(1, count + 1):
        assert rows[EventKind.STARTING, number] == rows[EventKind.STARTED, number] == 1, number
        ends = rows[EventKind.EXITED, number] + rows[EventKind.START_FAILED, number]
        assert ends == (number < count), number


@pytest.mark.timeout(120)
def test_kept_workers_are_restarted_while_the_master_is_dead(
    cluster: LocalCluster, eventually: Eventually
) -> None:
    with cluster.connect() as client:
        handle = client.register(pinned(cluster))
        handle.wait_for_ready(timeout=20)
        moves = client.register(pinned(cluster, "moves", host=None))
        moves.wait_for_ready(timeout=20)

        cluster.master.kill()
        os.kill(ran(cluster, "moves")[-1][2], signal.SIGKILL)
        end_newest(cluster, eventually)
        end_newest(cluster, eventually)
        cluster.agent("a").restart()  # the next agent learns of it from the warden
        end_newest(cluster, eventually)
        end_newest(cluster, eventually)
        assert len(ran(cluster, "moves")) == 1, "only its master starts one that may move"

        cluster.master.start()
        status = eventually(lambda: (s := handle.status()).incarnation == 5 and s.ready and s)
        assert status.pid == ran(cluster)[-1][2]
        assert [number for _, number, _ in ran(cluster)] == [1, 2, 3, 4, 5]
        tokens = [token for token, _, _ in ran(cluster)]
        assert tokens == sorted(set(tokens))
        told_once(handle, 5)
        eventually(lambda: len(ran(cluster, "moves")) == 2)

        os.kill(status.pid, signal.SIGKILL)
        eventually(lambda: handle.status().incarnation == 6 and handle.status().ready)
        told_once(handle, 6)
        handle.terminate()
        assert handle.wait_until_unregistered(timeout=20).final
        assert len(ran(cluster)) == 6


@pytest.mark.timeout(120)
def test_a_crash_loop_without_a_master_is_told_whole(
    cluster: LocalCluster, eventually: Eventually
) -> None:
    with cluster.connect() as client:
        handle = client.register(pinned(cluster, main="agent_jobs:churn", restart_budget=(4, 2.0)))
        eventually(lambda: handle.status().incarnation >= 2)
        cluster.master.kill()
        before = len(ran(cluster))
        eventually(lambda: len(ran(cluster)) >= before + 5, timeout_s=40)
        cluster.master.start()
        handle.hold()
        held = eventually(lambda: (s := handle.status()).stopping is None and s)
        count = len(ran(cluster))
        started = [e.incarnation for e in handle.events(follow=False) if e.kind == "started"]
        assert started == sorted(set(started))
        assert len(started) == count
        tokens = [token for token, _, _ in ran(cluster)]
        assert tokens == sorted(set(tokens))
        assert held.pid is None
