"""PostgreSQL's test_shm_mq, by examples/shm_mq.py on real workers (Q16-Q23)."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from posthouse import NEVER_RESTART, SHMEM_ACCESS, BackgroundWorker, Cluster
from posthouse_testing.cluster import LocalCluster

EXAMPLES = Path(__file__).parents[2] / "examples"
Run = Callable[..., tuple[Any, list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with LocalCluster(hosts=("a",), path=[EXAMPLES]) as running, running.connect() as made:
        yield made


@pytest.fixture
def run(cluster: Cluster, request: pytest.FixtureRequest) -> Run:
    def run(main: str = "main", **arg: Any) -> tuple[Any, list[dict[str, Any]]]:
        """Its last status, and what it said."""
        handle = cluster.register(
            BackgroundWorker(
                name=request.node.name[:60],
                main=f"shm_mq:{main}",
                main_arg=arg,
                flags=SHMEM_ACCESS,
                restart_time=NEVER_RESTART,
            )
        )
        status = handle.wait_until_unregistered(timeout=50)
        assert status.last_exit is not None, status.reason
        lines = status.last_exit.output_tail.splitlines()
        return status, [json.loads(line) for line in lines if line.startswith("{")]

    return run


@pytest.mark.parametrize(
    ("queue", "sizes", "loops", "workers", "pipelined"),
    [
        pytest.param(1024, [0, 0], 2000, 1, False, id="q16"),
        pytest.param(1024, [1, 1], 2001, 1, False, id="q17"),
        pytest.param(32_768, [100, 1000], 10_000, 1, False, id="q18"),
        pytest.param(100, [100, 300], 10_000, 1, False, id="q19", marks=pytest.mark.slow),
        pytest.param(16_384, [270_000, 270_000], 200, 3, True, id="q20"),
    ],
)
def test_q16_q17_q18_q19_q20_all_arrive_intact(
    run: Run, queue: int, sizes: list[int], loops: int, workers: int, pipelined: bool
) -> None:
    status, said = run(queue=queue, sizes=sizes, loops=loops, workers=workers, pipelined=pipelined)
    assert status.last_exit.code == 0, status.last_exit
    assert said[0]["ok"] is True


def test_q21_one_copier_fails_before_all_are_ready(run: Run, cluster: Cluster) -> None:
    status, said = run(queue=1024, sizes=[1, 1], loops=1, workers=3, copier="shm_mq:failing_copier")
    assert (status.last_exit.code, said) == (1, [])
    assert "failed to start" in status.last_exit.traceback
    for listed in cluster.workers():
        if "copier" in (name := str(listed.spec["name"])):
            cluster.handle(name).wait_until_unregistered(timeout=20)


@pytest.mark.parametrize(
    ("queue", "loops", "workers"), [(71, 1, 1), (1024, -1, 1), (1024, 1, 0), (1024, 1, -1)]
)
def test_q22_bad_arguments(run: Run, queue: int, loops: int, workers: int) -> None:
    status, _ = run(queue=queue, sizes=[1, 1], loops=loops, workers=workers)
    assert status.last_exit.code == 1
    assert "UsageError" in status.last_exit.traceback


def test_q23_a_dead_handle(cluster: Cluster) -> None:
    handle = cluster.register(
        BackgroundWorker(
            name="alone",
            main="shm_mq:copier",
            main_arg=[5, "nobody"],
            flags=SHMEM_ACCESS,
            restart_time=NEVER_RESTART,
        )
    )
    status = handle.wait_until_unregistered(timeout=20)
    assert status.last_exit is not None
    assert status.last_exit.code == 1
    assert "unable to map" in status.last_exit.traceback
