"""The registry's disk is really full: a file system of its own, somebody who fills it, clients that
do not stop asking. Needs the right to mount; says so where it has none."""

import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from posthouse import BackgroundWorker, Cluster, Cursor, EventKind, Handle, WorkerState
from posthouse.errors import NotRunning, PosthouseError, ResourceExhausted
from posthouse_testing.cluster import LocalCluster

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZE_MIB = 64
HOLD = """
mount -t tmpfs -o size={size}m,mode=700 none {folder} && echo mounted && exec sleep 600
"""


class SmallDisk:
    """A file system of a few MiB that only those see who enter it, for as long as it is held."""

    def __init__(self, folder: Path) -> None:
        user = [] if os.geteuid() == 0 else ["--map-root-user"]
        self._holder = subprocess.Popen(
            ["unshare", *user, "--mount", "sh", "-c", HOLD.format(size=SIZE_MIB, folder=folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._holder.stdout is not None
        said = self._holder.stdout.readline()
        if said != "mounted\n":
            self.close()
            pytest.skip(f"no file system of our own can be mounted here: {said.strip()}")
        enter = ["--preserve-credentials", "--user"] if user else []
        self.enter = ["nsenter", "-t", str(self._holder.pid), "--mount", *enter]
        self.folder = Path("/proc", str(self._holder.pid), "root", *folder.parts[1:])
        self._filler = self.folder / "filler"

    def fill(self) -> None:
        """Take what is free, to the last byte."""
        with self._filler.open("ab", buffering=0) as file:
            for size in (65_536, 4096, 1):
                try:
                    while True:
                        file.write(b"x" * size)
                except OSError:
                    continue

    def empty(self) -> None:
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        self._holder.kill()
        self._holder.communicate()


@pytest.fixture
def house() -> Iterator[tuple[LocalCluster, SmallDisk]]:
    cluster = LocalCluster(hosts=("a",), path=[EXAMPLES])
    state = cluster.dir / "master"
    state.mkdir(mode=0o700, parents=True)
    disk = SmallDisk(state)
    try:
        cluster.master.argv[:0] = disk.enter
        with cluster:
            yield cluster, disk
    finally:
        disk.close()


class Hammer:
    """Clients that register without a pause, and remember what was acknowledged."""

    def __init__(self, house: LocalCluster, count: int) -> None:
        self.acknowledged: list[str] = []
        self.told: Counter[str] = Counter()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(house, n)) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self, house: LocalCluster, number: int) -> None:
        with house.connect() as cluster:
            count = 0
            while not self._over.is_set():
                count += 1
                worker = BackgroundWorker(
                    name=f"x{number}-{count}",
                    main="beat:main",
                    labels=("nowhere",),
                    extra=b"x" * 999,
                )
                try:
                    self.acknowledged.append(str(cluster.register(worker).id))
                except ResourceExhausted as error:
                    assert error.detail["free_bytes"] < 16 * 1024 * 1024
                    self.told["full"] += 1
                    time.sleep(0.01)
                except PosthouseError as error:
                    self.told[error.code] += 1
                    time.sleep(0.01)

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def until(true: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.02)


def runs(handle: Handle, incarnation: int) -> bool:
    status = handle.status()
    return (status.state, status.incarnation) == (WorkerState.STARTED, incarnation)


def spend_the_reserve(disk: SmallDisk, stopped: Handle) -> None:
    """Refusals of signals are remembered, and so need room; nobody is refused to send any."""

    def is_spent() -> bool:
        for _ in range(20):
            with pytest.raises(NotRunning):
                stopped.signal("USR1")
        return not (disk.folder / "registry.reserve").exists()

    until(is_spent, "the reserve is used")


def test_d9_a_full_disk_costs_nothing_that_was_acknowledged(house):
    """PostgreSQL's registrations live in memory, so its disk does not matter to them; ours are
    durable, so it does. What was acknowledged stays, what runs goes on, and hosts are heard."""
    running, disk = house
    pid = running.master.pid
    with running.connect() as cluster:
        first, late, gone = (
            cluster.register(BackgroundWorker(name=name, main="beat:main", restart_time=0.1))
            for name in ("first", "late", "gone")
        )
        pids = [handle.wait_for_startup(timeout=20).pid for handle in (first, late, gone)]
        hammer = Hammer(running, 3)
        try:
            until(lambda: len(hammer.acknowledged) > 50, "clients are heard")
            disk.fill()
            until(lambda: hammer.told["full"] > 20, "clients are refused")
            # Whoever runs goes on and can be ended; an end is written down, a start is not begun.
            assert runs(first, 1)
            os.kill(pids[0], signal.SIGKILL)
            until(lambda: "disk is full" in first.status().reason, "it waits for room")
            gone.terminate()
            gone.wait_until_unregistered(timeout=20)
            spend_the_reserve(disk, first)
            disk.fill()
            until(lambda: '"disk.none"' in running.master.log.read_text(), "nothing can be kept")
            # Now an end cannot be written down, so its host keeps it; reads go on all the same.
            with pytest.raises(ResourceExhausted):
                late.terminate()
            os.kill(pids[1], signal.SIGKILL)
            for _ in range(20):
                assert runs(late, 1)
                assert [host.reachable for host in cluster.hosts()] == [True]
                time.sleep(0.1)
            disk.empty()
            until(lambda: runs(first, 2) and runs(late, 2), "starts go on by themselves")
            before = len(hammer.acknowledged)
            until(lambda: len(hammer.acknowledged) > before + 20, "clients are heard again")
        finally:
            disk.empty()
            hammer.end()
        check(cluster, hammer)
        assert (running.master.alive, running.master.pid) == (True, pid)
    running.master.restart()
    running.wait_for_hosts()
    with running.connect() as cluster:
        check(cluster, hammer)


def check(cluster: Cluster, hammer: Hammer) -> None:
    """Everything that was acknowledged is there, and nobody thought that the host was gone."""
    there = {str(worker.status.handle.id) for worker in cluster.workers()}
    assert set(hammer.acknowledged) <= there
    assert set(hammer.told) == {"full"}
    rows = list(cluster.events(after=Cursor(0, 0), follow=False))
    assert not [row for row in rows if row.kind is EventKind.HOST_DOWN]
    ended = Counter((r.name, r.incarnation) for r in rows if r.kind is EventKind.EXITED)
    assert ended == {("first", 1): 1, ("late", 1): 1, ("gone", 1): 1}


def test_a_master_that_finds_no_room_for_its_term_waits(house):
    """Not even the reserve helps, as somebody else has its room. It says so and waits."""
    running, disk = house
    with running.connect() as cluster:
        handle = cluster.register(BackgroundWorker(name="w", main="beat:main"))
        pid = handle.wait_for_startup(timeout=20).pid
    assert running.master.terminate() == 0  # so its -wal file is gone, and has no room in it
    (disk.folder / "registry.reserve").unlink()
    disk.fill()
    running.master.start()
    until(lambda: '"master.no_room"' in running.master.log.read_text(), "it says so")
    assert running.master.alive
    disk.empty()
    with running.connect(timeout=20) as cluster:
        until(lambda: runs(cluster.handle("w"), 1), "the worker was never touched")
        assert cluster.handle("w").status().pid == pid
