"""posthouse_real_cluster: real processes, and what is done to them."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posthouse import BackgroundWorker, NotRunning, UsageError
from posthouse_testing import DoubleRun, MakeRealCluster, RealCluster, sweep

pytest_plugins = ["pytester"]

WORKERS = """
import os
from posthouse import worker
from posthouse_testing.inside import exclusive, run

def holder(name):
    worker.unblock_signals()
    with exclusive(name):
        worker.ready()
        while True:
            worker.latch.reset()
            worker.latch.wait(timeout=60)

def body(me):
    me.unblock_signals()
    me.ready()
    while True:
        me.latch.reset()
        found = yield me.latch.wait(timeout=60)
        print(me, *found, flush=True)
        yield me.sleep(0.01)
        yield

def driven(_arg):
    run(body)
"""


def eventually(true: Callable[[], Any]) -> Any:
    end_s = time.monotonic() + 40
    while not (found := true()):
        assert time.monotonic() < end_s, "it did not become true in time"
        time.sleep(0.02)
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(WORKERS)
    return tmp_path


def holder(cluster: RealCluster, name: str = "holder", **fields: Any) -> Any:
    record = {"main": "app:holder", "main_arg": "shard", "restart_time": 0, "stop_grace_s": 0.5}
    return cluster.client.register(BackgroundWorker(name=name, **(record | fields)))


@pytest.mark.timeout(120)
def test_faults_of_every_process(posthouse_real_cluster: MakeRealCluster, path: Path) -> None:
    cluster = posthouse_real_cluster(path=[path])
    handle = holder(cluster, host="a")
    assert handle.wait_for_ready(timeout=20).incarnation == 1
    shard = cluster.exclusive("shard")
    assert [who.split(",")[0] for who in shard.holders] == ["holder on a"]

    cluster.kill(handle)
    eventually(lambda: handle.status().incarnation == 2 and handle.status().ready)
    cluster.kill("warden:a")
    eventually(lambda: handle.status().incarnation == 3 and handle.status().ready)

    cluster.cut("a")
    eventually(lambda: not handle.status().reachable)
    cluster.heal()
    eventually(lambda: handle.status().reachable)
    cluster.slow("a")
    cluster.reset("a")
    cluster.heal("a")

    cluster.kill("agent:a")
    with pytest.raises(NotRunning):
        cluster.stop("agent:a")
    cluster.restart("agent:a")
    cluster.restart("master", kill=False)
    with cluster.stopped(handle):
        pid = handle.pid()
        stat = Path(f"/proc/{pid}/stat")
        eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
    eventually(lambda: handle.status().reachable)
    assert handle.status().incarnation == 3, "agent and master come and go"
    assert shard.taken == 3
    assert len(shard.holders) == 1

    driven = cluster.client.register(BackgroundWorker(name="d", main="app:driven", host="b"))
    driven.wait_for_ready(timeout=20)
    driven.set_latch()
    eventually(lambda: "d on b, token" in driven.output().text)

    with pytest.raises(DoubleRun):
        shard.take("the test")
    with pytest.raises(DoubleRun):
        cluster.check()
    shard.broken.clear()  # or this very test would fail

    for wrong, rule in (
        (lambda: cluster.cut("c"), "host is 'c': must be one of a, b"),
        (lambda: cluster.kill("worker:x"), "target is 'worker:x': must be"),
        (lambda: cluster.restart("warden:a"), "target is 'warden:a': must be"),
        (lambda: posthouse_real_cluster(lease_s=1), "lease_s is 1: must be None, or 5 to"),
    ):
        with pytest.raises(UsageError, match=rule):
            wrong()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_cut_host_is_fenced(posthouse_real_cluster: MakeRealCluster, path: Path) -> None:
    cluster = posthouse_real_cluster(path=[path], lease_s=5)
    handle = holder(cluster)
    host = handle.wait_for_ready(timeout=20).host
    cluster.cut(host, from_master=False)
    cluster.stop(f"agent:{host}")
    cluster.stop(f"warden:{host}")
    cluster.stop(handle)
    eventually(lambda: handle.status().host != host and handle.status().ready)
    assert cluster.exclusive("shard").taken == 2
    cluster.check()


@pytest.mark.timeout(120)
def test_its_end_is_exact_and_a_failure_shows_the_logs(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    """One run of a user's: two holders, a stopped agent, and a process that is none of ours."""
    pytester.makepyfile(
        f"""
from posthouse import BackgroundWorker

def test_it(posthouse_real_cluster):
    cluster = posthouse_real_cluster(hosts=["a"], path=[{str(path)!r}])
    for name in ("one", "two"):
        record = BackgroundWorker(name=name, main="app:holder", main_arg="shard")
        handle = cluster.client.register(record)
        handle.wait_for_startup(timeout=20)
        handle.wait_for_shutdown(timeout=20) if name == "two" else handle.wait_for_ready(timeout=20)
    cluster.stop("agent:a")
    with open("dir", "w") as file:
        file.write(str(cluster.dir))
"""
    )
    other = os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "600")
    try:
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # hypothesis takes a second
        result = pytester.runpytest_inprocess("-p", "posthouse_testing.plugin")
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(
            [
                "E *shard is held twice: by two on a, token * while one on a, token *",
                "*posthouse: <RealCluster *",
                "--- agent-a.log",
                "--- logs/a/1.1.log",
                "*DoubleRun: shard is held twice*",
                "--- master.log",
            ]
        )
        folder = Path((pytester.path / "dir").read_text())
        assert not folder.exists()
        assert sweep.writers(folder) == []
        assert sweep.identify(other) is not None
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
