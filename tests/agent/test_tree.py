"""Workers under a tree warden, as their users see them; every number is one of the host's."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from posthouse import BackgroundWorker, EventKind
from posthouse_agent import namespace
from posthouse_testing.cluster import LocalCluster

HERE = Path(__file__).parent
Eventually = Callable[..., Any]


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    if lacking := namespace.lacking():
        pytest.skip(lacking)
    with LocalCluster(hosts=["a"], path=[HERE / "workers"]) as cluster:
        yield cluster


def test_a_tree_from_its_start_to_its_end(cluster: LocalCluster, eventually: Eventually) -> None:
    """Signals, stacks, usage, output and exits go by pids of the host, and the next agent finds
    the tree again. Its warden's end is that of all that the worker has started, and is told."""
    record = cluster.dir / "w.record"
    with cluster.connect() as client:
        assert client.hosts()[0].fences == ["process", "tree"]
        worker = BackgroundWorker(
            name="w", main="agent_jobs:steady", main_arg=str(record), restart_time=0.1, fence="tree"
        )
        handle = client.register(worker)
        first = handle.wait_for_ready(timeout=20)
        warden = cluster.warden_pid("a", "tree")
        status = Path(f"/proc/{first.pid}/status").read_text()
        assert f"PPid:\t{warden}\n" in status
        assert f"NSpid:\t{first.pid}\n" not in status

        (used,) = client.usage("a").workers
        assert used.pid == first.pid
        assert f"process {first.pid}" in handle.stacks()

        cluster.agent("a").restart()
        eventually(lambda: handle.status().reachable)
        assert handle.status().pid == first.pid

        os.kill(warden, signal.SIGKILL)
        again = eventually(lambda: (s := handle.status()).incarnation == 2 and s.ready and s)
        (exited,) = [e for e in handle.events(follow=False) if e.kind is EventKind.EXITED]
        assert exited.exit is not None
        assert (exited.exit.cause, exited.exit.pid) == ("warden_died", first.pid)
        handle.signal(signal.SIGKILL)
        eventually(lambda: (s := handle.status()).incarnation == 3 and s.ready and s)
        ends = [e.exit for e in handle.events(follow=False) if e.kind is EventKind.EXITED]
        assert (ends[-1].signal, ends[-1].pid) == (signal.SIGKILL, again.pid)
        handle.terminate()
        assert handle.wait_until_unregistered(timeout=20).final
