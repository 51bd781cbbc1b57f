"""`posthouse agent` as pid 1 of a container: a pid namespace is all of it that matters here."""

import dataclasses
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from posthouse import BackgroundWorker, EventKind
from posthouse_testing.cluster import Daemon, LocalCluster

HERE = Path(__file__).parent
SPACE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
# Children of pid 1 that are nobody's: one that ends soon, one whose parent ends before it.
STRANGERS = "sleep 0.1 & (sh -c 'sleep 0.3 & exit 0'); exec \"$@\""
Eventually = Callable[..., Any]


class Inside(NamedTuple):
    """A process of the namespace, seen from outside."""

    pid: int
    outer: int
    parent: int  # outer
    state: str
    words: str

    def kill(self, number: int) -> None:
        os.kill(self.outer, number)


class Container:
    def __init__(self, cluster: LocalCluster, daemon: Daemon) -> None:
        self.cluster = cluster
        self.daemon = daemon

    def processes(self) -> dict[int, Inside]:
        """By the pid that they have inside."""
        found = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdecimal():
                continue
            try:
                status = (folder / "status").read_text()
                words = (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            numbers = fields["NSpid"].split()
            if len(numbers) > 1 and self._is_ours(int(folder.name)):
                found[int(numbers[1])] = Inside(
                    int(numbers[1]),
                    int(folder.name),
                    int(fields["PPid"]),
                    fields["State"][0],
                    words,
                )
        return found

    def _is_ours(self, pid: int) -> bool:
        while pid > 1:
            if pid == self.daemon.pid:
                return True
            try:
                text = Path(f"/proc/{pid}/stat").read_text()
            except OSError:
                return False
            pid = int(text.rpartition(")")[2].split()[1])
        return False

    def find(self, words: str) -> list[Inside]:
        return [p for p in self.processes().values() if words in p.words and p.state != "Z"]


@pytest.fixture
def container() -> Iterator[Container]:
    if shutil.which(SPACE[0]) is None or subprocess.run([*SPACE, "true"]).returncode != 0:
        pytest.skip("no pid namespaces here")
    with LocalCluster(hosts=(), path=[HERE / "workers"]) as cluster:
        daemon = cluster._daemon("agent-c", *cluster._agent_argv("c"))
        daemon.argv = [*SPACE, "sh", "-c", STRANGERS, "sh", *daemon.argv]
        cluster._agents["c"] = daemon
        daemon.start()
        try:
            cluster.wait_for_hosts()
            yield Container(cluster, daemon)
        finally:
            daemon.kill()


@pytest.mark.timeout(90)
def test_an_agent_that_is_pid_1_is_a_small_init(
    container: Container, eventually: Eventually
) -> None:
    """It starts warden and agent and starts both again; the warden is never pid 1; zombies of
    strangers are reaped; TERM ends workers in their own way, and they are told."""
    cluster = container.cluster
    with cluster.connect() as client:
        worker = BackgroundWorker(
            name="w",
            main="agent_jobs:steady",
            main_arg=str(cluster.dir / "record"),
            restart_time=0.1,
        )
        handle = client.register(worker)
        first = handle.wait_for_ready(timeout=20)

        init = container.processes()[1]
        (warden,) = container.find("posthouse warden")
        (agent,) = container.find("posthouse: agent")
        assert warden.pid != 1
        assert warden.parent == agent.parent == init.outer
        assert "posthouse_cli agent" in init.words

        agent.kill(signal.SIGKILL)
        (second,) = eventually(
            lambda: [p for p in container.find("posthouse: agent") if p.pid != agent.pid]
        )
        eventually(lambda: handle.status().reachable)
        status = handle.status()
        assert (status.pid, status.incarnation) == (first.pid, 1)
        second.kill(signal.SIGTERM)  # on purpose or not: it is started again
        eventually(
            lambda: {p.pid for p in container.find("posthouse: agent")} - {agent.pid, second.pid}
        )

        warden.kill(signal.SIGKILL)
        eventually(lambda: handle.status().incarnation == 2 and handle.status().ready)
        eventually(lambda: not [p for p in container.processes().values() if p.state == "Z"])
        assert not container.find("sleep")

        # One that is pinned goes on without the master, under a warden of its own.
        pinned = client.register(dataclasses.replace(worker, name="pinned", host="c"))
        pinned.wait_for_ready(timeout=20)
        (kept,) = container.find("posthouse warden kept")
        assert kept.parent == init.outer

        # A tree in the container's own namespace: its fuse, and inside of that its warden.
        guarded = client.register(dataclasses.replace(worker, name="guarded", fence="tree"))
        pid = guarded.wait_for_ready(timeout=20).pid
        (fuse,) = container.find("posthouse fuse")
        (tree,) = container.find("posthouse warden tree")
        assert (fuse.parent, tree.parent) == (init.outer, fuse.outer)
        assert container.processes()[pid].parent == tree.outer

        cursor = client.cursor()
        init.kill(signal.SIGTERM)
        assert container.daemon.wait(30) == 0
        assert not container.processes()

        def ends() -> list[Any]:
            """The agent has said its last word; its master may have yet to read it."""
            told = list(client.events(after=cursor, follow=False))
            return [e for e in told if e.kind is EventKind.EXITED]

        exits = eventually(lambda: len(found := ends()) == 3 and found)
        assert sorted(e.name for e in exits) == ["guarded", "pinned", "w"]
        for exited in exits:
            assert exited.stop is not None
            assert exited.exit is not None
            assert exited.exit.cause == "exited"  # by its own handler, not the namespace's end
        log = container.daemon.log.read_text()
        assert "posthouse-init: agent ended (killed by SIGKILL); it is started again" in log
        assert "posthouse-init: warden ended (killed by SIGKILL); it is started again" in log
