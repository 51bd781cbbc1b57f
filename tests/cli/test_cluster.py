"""LocalCluster: what the tests of all other parts stand on."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from posthouse import BackgroundWorker
from posthouse_testing import sweep
from posthouse_testing.cluster import LocalCluster

WORKERS = Path(__file__).parent / "workers"


def start_idle(cluster, host="a"):
    with cluster.connect() as client:
        handle = client.register(BackgroundWorker(name="idle", main="jobs:idle", host=host))
        return handle.wait_for_startup(timeout=20)


def gone(folder, patience_s=15.0):
    """Wait until no process writes into the folder and the folder is gone."""
    deadline_s = time.monotonic() + patience_s
    while sweep.writers(folder) or Path(folder).exists():
        assert time.monotonic() < deadline_s, sweep.writers(folder)
        time.sleep(0.02)


def test_nothing_is_left_after_an_exception(capfd):
    with pytest.raises(ZeroDivisionError), LocalCluster(["a"], path=[WORKERS]) as cluster:
        pid = start_idle(cluster).pid
        folder, warden = cluster.dir, cluster.warden_pid("a")
        assert {pid, warden, cluster.master.pid, cluster.agent("a").pid} <= {
            who.pid for who in cluster.processes()
        }
        raise ZeroDivisionError
    assert not folder.exists()
    assert sweep.writers(folder) == []
    for number in (pid, warden):
        assert sweep.identify(number) is None
    # What happened is shown, because the logs are gone.
    assert "agent-a.log" in capfd.readouterr().err


def test_nothing_is_left_when_the_test_process_is_killed():
    script = textwrap.dedent(
        f"""
        import time
        from posthouse import BackgroundWorker
        from posthouse_testing.cluster import LocalCluster
        with LocalCluster(["a"], path=[{str(WORKERS)!r}]) as cluster, cluster.connect() as client:
            worker = BackgroundWorker(name="idle", main="jobs:idle")
            status = client.register(worker).wait_for_startup(timeout=20)
            print(cluster.dir, status.pid, flush=True)
            time.sleep(60)
        """
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as running:
        folder, pid = running.stdout.readline().decode().split()
        assert sweep.identify(int(pid)) is not None
        running.kill()
    gone(folder)
    assert sweep.identify(int(pid)) is None


def test_daemons_are_killed_and_started_again_and_the_worker_stays():
    with LocalCluster(["a"], path=[WORKERS]) as cluster:
        before = start_idle(cluster)
        cluster.agent("a").restart()
        cluster.master.restart(kill=False)
        cluster.wait_for_hosts()
        with cluster.connect() as client:
            after = client.handle("idle").status()
        assert (after.pid, after.incarnation) == (before.pid, before.incarnation)


def test_a_process_is_proved_by_its_start_and_by_what_it_holds(tmp_path):
    lock = tmp_path / "lock"
    with lock.open("w") as writing:
        holding = subprocess.Popen(["sleep", "60"], stdout=writing)
    with lock.open() as opened:
        reading = subprocess.Popen(["sleep", "60"], stdin=opened)
    try:
        who = sweep.identify(holding.pid)
        assert who is not None
        assert set(sweep.holders(lock)) >= {who, sweep.identify(reading.pid)}
        assert sweep.writers(tmp_path) == [who]
        # Another process that got the number is not touched.
        assert sweep.end(who._replace(start=who.start + 1), term_s=0.1)
        assert holding.poll() is None
        assert sweep.end(who, term_s=5)
        assert holding.wait() == -signal.SIGTERM
        assert sweep.identify(holding.pid) is None
    finally:
        for process in (holding, reading):
            process.kill()
            process.wait()


def test_who_does_not_hear_term_is_killed(tmp_path):
    script = (
        "import signal,time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as deaf:
        deaf.stdout.readline()
        assert sweep.end(sweep.identify(deaf.pid), term_s=0.1)
        assert deaf.wait() == -signal.SIGKILL


def test_a_zombie_is_nobody():
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert sweep.identify(pid) is None
    os.waitpid(pid, 0)
