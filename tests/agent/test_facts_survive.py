"""Why a worker ended, told in full, whoever dies between its end and the master's confirmation."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from posthouse import BackgroundWorker, Cluster, Event, EventKind, WorkerState
from posthouse_testing.cluster import LocalCluster

HERE = Path(__file__).parent
Eventually = Callable[..., Any]
DAEMONS = ("agent", "warden", "master")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(hosts=("a",), path=[HERE / "workers"]) as made:
        yield made


def kill(cluster: LocalCluster, who: str) -> None:
    if who == "master":
        cluster.master.kill()
    elif who == "agent":
        cluster.agent("a").kill()
    else:
        os.kill(cluster.warden_pid("a"), signal.SIGKILL)


def revive(cluster: LocalCluster, eventually: Eventually) -> None:
    for daemon in (cluster.master, cluster.agent("a")):
        if not daemon.alive:
            daemon.start()
    cluster.wait_for_hosts()


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "killed",
    [("agent",), ("master",), ("agent", "warden"), ("master", "warden"), DAEMONS],
    ids="+".join,
)
def test_inv7_exit_facts_survive_those_who_carry_them(
    cluster: LocalCluster, eventually: Eventually, killed: tuple[str, ...]
) -> None:
    """The warden writes them down before it reaps; agent and master may be dead, and the warden
    itself may die with the record unconfirmed. One exit, told once, with all of it."""
    first = [who for who in killed if who != "warden"]
    go = cluster.dir / f"go-{'-'.join(killed)}"
    with cluster.connect(timeout=30) as client:
        cursor = client.cursor()
        name = "-".join(killed)
        handle = client.register(
            BackgroundWorker(
                name=name,
                main="agent_jobs:fail_when",
                main_arg=str(go),
                restart_time=600.0,
            )
        )
        pid = handle.wait_for_ready(timeout=20).pid
        for who in first:
            kill(cluster, who)
        go.touch()
        journal = cluster.host_dir("a") / "fenced" / "journal"
        written = f'"pid":{pid},"started_unix_s"'
        eventually(
            lambda: '"op":"Exited"' in journal.read_text() and written in journal.read_text()
        )
        if "warden" in killed:
            kill(cluster, "warden")
        revive(cluster, eventually)
        eventually(lambda: handle.status(timeout=20).state is WorkerState.STOPPED)
        (exited,) = _exits(client, cursor, name)
        facts = exited.exit
        assert facts is not None
        assert (facts.cause, facts.code, facts.pid) == ("exited", 1, pid)
        assert facts.traceback.endswith("ValueError: last words\n")
        assert "printed before" in facts.output_tail
        assert facts.runtime_s is not None
        assert facts.runtime_s > 0
        assert facts.user_s is not None
        assert facts.system_s is not None
        assert (facts.max_rss_bytes or 0) > 1_000_000
        assert facts.started_unix_s is not None
        assert (facts.ended_unix_s or 0) >= facts.started_unix_s
        handle.terminate()
        handle.wait_until_unregistered(timeout=20)
        assert len(_exits(client, cursor, name)) == 1


def _exits(client: Cluster, cursor: Any, name: str) -> list[Event]:
    found = client.events(after=cursor, follow=False)
    return [event for event in found if event.kind is EventKind.EXITED and event.name == name]
