"""`posthouse hosts`: what there is, and what is in use, by the kernel's own word."""

import os
import signal

import psutil
import pytest

from posthouse import limits


def test_hosts_show_what_is_in_use(objects, posthouse, idle, cluster):
    hosts = {host["name"]: host for host in objects("hosts")}
    assert hosts["b"]["workers"] >= 1
    for host in hosts.values():
        assert host["cpus"] == os.cpu_count()
        assert host["memory_bytes"] == psutil.virtual_memory().total
        assert 0 < host["available_bytes"] < host["memory_bytes"]
        assert 0 <= host["cpu_percent"] <= 100
        assert host["load"] >= 0
    rows = {
        line.split("\t")[0]: line.split("\t") for line in posthouse("hosts").stdout.splitlines()
    }
    name, state, workers, slots, percent, load, memory, _labels, version = rows["b"]
    assert (name, state, slots) == ("b", "reachable", str(limits.workers_per_host_max))
    assert int(workers) >= 1
    assert 0 <= int(percent) <= 100
    assert load.endswith(f" of {os.cpu_count()}")
    assert memory.count("iB of ") == 1
    assert version


def test_a_busy_host_is_seen_to_be_busy(objects, posthouse, name):
    posthouse("run", "jobs:hang", "--name", name, "--on", "a", "--detach", "--arg", '"loop"')
    while min(host["cpu_percent"] for host in objects("hosts")) < 25:
        pass  # one of two processors; the suite's time limit bounds it
    posthouse("terminate", name)


def test_a_host_that_cannot_be_asked_has_no_load_and_the_others_are_asked(objects, cluster):
    """At the same time: it takes all the time there is, and is the first of them by name."""
    agent = cluster.agent("a").pid
    os.kill(agent, signal.SIGSTOP)
    try:
        hosts = {host["name"]: host for host in objects("hosts", "--timeout", "1s")}
        assert hosts["a"]["load"] is None
        assert hosts["a"]["cpu_percent"] is None
        assert hosts["b"]["load"] is not None
    finally:
        os.kill(agent, signal.SIGCONT)
        cluster.wait_for_hosts()


def test_hosts_that_are_there_are_not_waited_for(objects):
    for wanted in ("a,b", "b", "2", "0"):
        assert [host["name"] for host in objects("hosts", "--wait", wanted)] == ["a", "b"]


@pytest.mark.parametrize(
    ("wanted", "told"),
    [("a,nowhere", "nowhere: not reachable yet; reachable: a, b"), ("3", "3 hosts: not reachable")],
)
def test_who_waits_in_vain_is_told_for_whom(posthouse, wanted, told):
    ran = posthouse("hosts", "--wait", wanted, "--timeout", "0.2s", status=5)
    assert told in ran.stderr and not ran.stdout


def test_nobody_can_be_waited_for_without_a_name(posthouse):
    assert "must be names" in posthouse("hosts", "--wait", "a,", status=2).stderr
