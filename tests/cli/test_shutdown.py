"""`posthouse shutdown`: the workers end, then the master; registrations stay."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from posthouse_testing import sweep
from posthouse_testing.cluster import LocalCluster

WORKERS = Path(__file__).parent / "workers"


@pytest.fixture
def running():
    with LocalCluster(["a"], path=[WORKERS]) as cluster:
        assert cluster.run("run", "jobs:idle", "--detach").returncode == 0
        cluster.run("wait", "jobs.idle", "--for", "ready", "--timeout", "20")
        pid = int(cluster.run("pid", "jobs.idle").stdout)
        yield cluster, pid


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_it_is_over_when_the_command_ends(running, mode):
    cluster, pid = running
    ran = cluster.run("shutdown", "-m", mode)
    assert (ran.returncode, ran.stdout) == (0, f"{mode} shutdown\n"), ran
    assert sweep.identify(pid) is None
    assert cluster.master.wait() == 0

    cluster.master.start()
    cluster.wait_for_hosts()
    status = cluster.run("wait", "jobs.idle", "--for", "started", "--timeout", "20")
    while status.returncode == 1:  # stopped, and about to be started again
        status = cluster.run("wait", "jobs.idle", "--for", "started", "--timeout", "20")
    assert status.returncode == 0, status
    assert int(cluster.run("pid", "jobs.idle").stdout) != pid


def test_smart_waits_for_the_workers_and_takes_no_new_ones(running):
    cluster, pid = running
    waited = cluster.run("shutdown", "-m", "smart", "--timeout", "0.3")
    assert waited.returncode == 5
    assert "the smart shutdown goes on; workers left: 1 on a" in waited.stderr
    assert "a harder mode takes over" in waited.stderr
    assert sweep.identify(pid) is not None
    refused = cluster.run("run", "jobs:idle", "--name", "late", "--detach")
    assert refused.returncode == 1
    assert "shut" in refused.stderr
    # A harder mode takes over.
    assert cluster.run("shutdown").returncode == 0
    assert cluster.run("ps", "--timeout", "0.3").returncode == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_master_ends_the_master_and_nothing_else(running, number):
    """PostgreSQL's postmaster takes its workers along; here a master is upgraded at noon."""
    cluster, pid = running
    cluster.master.signal(number)
    assert cluster.master.wait() == 0
    assert sweep.identify(pid) is not None
    cluster.master.start()
    cluster.wait_for_hosts()
    assert int(cluster.run("pid", "jobs.idle").stdout) == pid
    told = cluster.run("events", "--json", "jobs.idle").stdout
    assert '"stop_requested"' not in told
    assert '"exited"' not in told


def test_a_shutdown_waits_for_a_host_that_is_away_for_a_moment(running):
    cluster, pid = running
    cluster.agent("a").signal(signal.SIGSTOP)
    while "unreachable" not in cluster.run("hosts").stdout:
        assert cluster.master.alive
    asked = subprocess.Popen(
        [sys.executable, "-P", "-m", "posthouse_cli", "shutdown"],
        env=cluster.command_env(),
        stdout=subprocess.PIPE,
        text=True,
    )
    while "stopping" not in cluster.run("hosts").stderr:
        assert asked.poll() is None
    cluster.agent("a").signal(signal.SIGCONT)
    told, _ = asked.communicate(timeout=30)
    assert (asked.returncode, told) == (0, "fast shutdown\n")
    assert sweep.identify(pid) is None
