"""Hosts that are cut off for real, and an oracle outside the system that would see two at once."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.leases.conftest import WORKERS

from posthouse import BackgroundWorker, EventKind
from posthouse_agent import namespace


def worker_of(site: Any, **fields: Any) -> BackgroundWorker:
    return BackgroundWorker(
        name="holder",
        main="oracle_jobs:hold",
        main_arg=str(site.oracle),
        restart_time=0,
        stop_grace_s=1.0,
        **fields,
    )


def held_by(site: Any, host: str) -> bool:
    return any(where == host for _, _, where, _ in site.beats()[-3:])


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def holder_of(site: Any, host: str) -> int:
    """The worker's process, by who is its parent: nobody can be asked."""
    children = psutil.Process(site.warden_pid(host, "kept")).children()
    (pid,) = [child.pid for child in children if "holder" in " ".join(child.cmdline())]
    return int(pid)


def no_overlap(site: Any) -> None:
    """Nobody met another one's lock, and the beats of one token are not among another's."""
    beats = site.beats()
    assert not [beat for beat in beats if beat[0] == "overlap"]
    order = [token for _, token, _, _ in beats]
    assert order == sorted(order), "two held it at once"


def test_a_cut_hosts_worker_runs_on_the_other_one_and_never_on_both(site, eventually):
    site = site()
    with site.connect() as cluster:
        before = cluster.cursor()
        handle = cluster.register(worker_of(site))
        first = handle.wait_for_startup(timeout=30)
        other = next(name for name in site.hosts if name != first.host)
        eventually(lambda: held_by(site, first.host), site)
        site.cut(first.host)
        eventually(lambda: held_by(site, other), site)
        no_overlap(site)
        site.heal(first.host)
        eventually(lambda: site.heard() == set(site.hosts), site)
        rows = []
        for row in cluster.events(after=before, timeout=20):
            rows.append(row)
            if row.kind is EventKind.EXIT_AMENDED:
                break
        assert row.token == first.token
        assert row.exit.signal == signal.SIGKILL  # its warden saw that, at the end of the lease
        ends = [row for row in rows if row.kind is EventKind.EXITED]
        assert [(row.token, row.exit.cause) for row in ends] == [(first.token, "host_lost")]
        now = handle.status()
        assert (now.host, now.incarnation) == (other, first.incarnation + 1)
    no_overlap(site)


def test_a_host_whose_programs_are_all_stopped_is_fenced_all_the_same(site, eventually):
    """SIGSTOP to agent and warden: nothing of ours runs there, and the worker blocks all signals.
    Its place is taken by another one only after the kernel has ended it."""
    site = site()
    with site.connect() as cluster:
        handle = cluster.register(worker_of(site))
        first = handle.wait_for_startup(timeout=30)
        other = next(name for name in site.hosts if name != first.host)
        eventually(lambda: held_by(site, first.host), site)
        agent, warden = site.processes[first.host].pid, site.warden_pid(first.host)
        for pid in (agent, warden):
            os.kill(pid, signal.SIGSTOP)
        eventually(lambda: held_by(site, other), site)
        no_overlap(site)
        os.kill(agent, signal.SIGCONT)
        eventually(lambda: site.heard() == set(site.hosts), site)
        assert handle.status().host == other
    no_overlap(site)


@pytest.mark.parametrize("stopped", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_program_and_its_daemon_run_on_the_other_host_and_never_on_both(
    site, eventually, stopped
):
    """posthouse.exec as it is by default: a tree. What is watched is a daemon that the program has
    started and that has nothing of it any more. The host is cut off, or everything of ours on it
    is stopped: agent, fuse and warden."""
    if lacking := namespace.lacking():
        pytest.skip(lacking)
    site = site()
    with site.connect() as cluster:
        program = [sys.executable, str(WORKERS / "oracle_jobs.py"), str(site.oracle)]
        worker = BackgroundWorker(
            name="program",
            main="posthouse.exec",
            main_arg=program,
            restart_time=0,
            stop_grace_s=1.0,
        )
        handle = cluster.register(worker)
        first = handle.wait_for_startup(timeout=30)
        other = next(name for name in site.hosts if name != first.host)
        eventually(lambda: held_by(site, first.host), site)
        agent, warden = site.processes[first.host].pid, site.warden_pid(first.host, "tree")
        fuse = parent_of(warden)
        if stopped:
            for pid in (agent, warden, fuse):
                os.kill(pid, signal.SIGSTOP)
        else:
            site.cut(first.host)
        eventually(lambda: held_by(site, other), site)
        no_overlap(site)
        if stopped:
            os.kill(agent, signal.SIGCONT)
        else:
            site.heal(first.host)
        eventually(lambda: site.heard() == set(site.hosts), site)
        assert handle.status().host == other
    no_overlap(site)


def test_a_cut_host_goes_on_with_its_kept_worker_and_its_history_is_merged(site, eventually):
    """It is killed while its host is cut off, and started again by the host alone, under tokens
    that were reserved for that; when the cable is back all of it is told."""
    site = site()
    with site.connect() as cluster:
        host = site.hosts[0]
        handle = cluster.register(worker_of(site, host=host))
        first = handle.wait_for_startup(timeout=30)
        eventually(lambda: held_by(site, host), site)
        site.cut(host)
        tokens = [first.token]
        for _ in range(2):
            os.kill(holder_of(site, host), signal.SIGKILL)
            eventually(lambda: site.beats()[-1][1] not in tokens, site)
            tokens.append(site.beats()[-1][1])
        assert tokens == sorted(set(tokens))
        eventually(lambda: not handle.status().reachable, site)
        assert handle.status().incarnation == 1, "nobody has told"
        site.heal(host)
        last = eventually(
            lambda: (s := handle.status()).incarnation == 3 and s.reachable and s, site
        )
        assert (last.token, last.pid) == (tokens[-1], holder_of(site, host))
        no_overlap(site)
        rows = list(handle.events(follow=False))
        for number, token in enumerate(tokens, 1):
            mine = [row for row in rows if row.incarnation == number]
            assert {row.token for row in mine} == {token}
            kinds = [row.kind for row in mine]
            assert kinds.count(EventKind.STARTED) == 1
            assert kinds.count(EventKind.EXITED) == (number < 3)
        ends = [row for row in rows if row.kind is EventKind.EXITED]
        assert [row.rule for row in ends] == ["E-ALONE", "E-ALONE"]
        assert all(row.exit.signal == signal.SIGKILL for row in ends)
