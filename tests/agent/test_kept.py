"""Workers that go on while their host is cut off, with real processes."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from posthouse import BackgroundWorker, EventKind
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


def test_a_second_warden_comes_when_it_is_needed_and_is_found_again(
    cluster: LocalCluster, eventually: Eventually
) -> None:
    with cluster.connect() as client:
        client.register(pinned(cluster, "moves", host=None)).wait_for_startup(timeout=20)
        assert not (cluster.host_dir("a") / "kept").exists()
        handle = client.register(pinned(cluster))
        first = handle.wait_for_ready(timeout=20)
        kept = cluster.warden_pid("a", "kept")
        assert kept != cluster.warden_pid("a")
        assert f"PPid:\t{kept}\n" in Path(f"/proc/{first.pid}/status").read_text()

        cluster.agent("a").restart()
        eventually(lambda: handle.status().reachable)
        assert handle.status().pid == first.pid
        assert cluster.warden_pid("a", "kept") == kept

        os.kill(kept, signal.SIGKILL)
        again = eventually(lambda: (s := handle.status()).incarnation == 2 and s.ready and s)
        assert again.pid != first.pid
        (exited,) = [e for e in handle.events(follow=False) if e.kind is EventKind.EXITED]
        assert exited.exit is not None
        assert exited.exit.cause == "warden_died"
        assert client.handle("moves").status().incarnation == 1
        handle.terminate()
        assert handle.wait_until_unregistered(timeout=20).final
