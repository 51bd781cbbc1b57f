"""Starts and exits without end, while watchers are slow, late, dead or reconnect.

    python tests/faults/churn.py [CYCLES] [--seconds S] [--made-up]

With --made-up there are no worker processes, and the master has several times as many cycles in
the same time.

Workers that fail at once are started again at once. A reader that keeps up checks that each start
and each end is told exactly once, in order; slow and late ones may be told that rows are gone, and
then nothing twice; dead ones are processes that subscribe and are stopped. Prints memory and
descriptors of master, agent, warden and zygote with their slopes, of the whole run but its first
third, and of its second half. Exit 0: nothing lost or doubled.
"""

import argparse
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event as Flag
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import zmq
from faulting.made_up import Host
from faulting.measure import slope, use_of
from faulting.oracle import LIFE, TERMINAL

import posthouse
from posthouse import BackgroundWorker, Cluster, Cursor, EventKind
from posthouse.errors import CursorTooOld, PosthouseError
from posthouse_agent import facts
from posthouse_agent.effects import Tick
from posthouse_testing.cluster import LocalCluster

WORKERS = 24
DEAD = """
import sys, posthouse
with posthouse.connect(sys.argv[1]) as client:
    for event in client.events(after=posthouse.Cursor(0, 0)):
        print(event.sequence, flush=True)
"""


class Reader:
    """Reads events by their cursor; none may come twice or out of order."""

    def __init__(self) -> None:
        self.cursor = Cursor(0, 0)
        self.count = 0
        self.gaps = 0
        self.connections = 0
        self.problems: list[str] = []

    def take(self, event: posthouse.Event) -> None:
        if event.kind is EventKind.TRIMMED:
            self.gaps += 1
        elif event.cursor <= self.cursor:
            self.problems.append(f"{event.cursor} after {self.cursor}")
        self.cursor = max(self.cursor, event.cursor)
        self.count += 1

    def read(self, client: Cluster, count: int, pause_s: float, end: threading.Event) -> None:
        """So many events, slowly."""
        self.connections += 1
        try:
            with client.events(after=self.cursor, timeout=2) as stream:
                for _ in range(count):
                    self.take(next(stream))
                    if end.wait(pause_s) if pause_s else end.is_set():
                        return
        except CursorTooOld as error:
            self.gaps += 1
            self.cursor = Cursor(*error.detail["cursor"])
        except PosthouseError:
            return


class Ledger(Reader):
    """The reader that keeps up: counts what is told of each incarnation."""

    def __init__(self) -> None:
        super().__init__()
        self.open: dict[tuple[str, int], list[EventKind]] = {}
        self.cycles = 0
        self.starts = 0

    def take(self, event: posthouse.Event) -> None:
        super().take(event)
        if event.kind is EventKind.TRIMMED:
            self.problems.append("the reader that keeps up was told of a gap")
        if event.kind not in LIFE or event.incarnation is None:
            return
        key = (event.name, event.incarnation)
        if event.kind is EventKind.STARTING:
            if key in self.open:
                self.problems.append(f"{key} starts twice")
            self.open[key] = [event.kind]
            self.starts += 1
        elif key not in self.open:
            self.problems.append(f"{key}: {event.kind} of one that has not begun, or has ended")
        elif event.kind in self.open[key]:
            self.problems.append(f"{key}: {event.kind} twice")
        elif event.kind in TERMINAL:
            del self.open[key]
            self.cycles += 1
        else:
            self.open[key].append(event.kind)


def watch(cluster: LocalCluster, reader: Reader, kind: str, end: threading.Event) -> None:
    """One watcher's life."""
    while not end.is_set():
        try:
            with cluster.connect(timeout=10) as client:
                match kind:
                    case "slow":
                        reader.read(client, 1_000_000, 0.1, end)
                    case "late":  # from where it was long ago
                        reader.read(client, 200, 0, end)
                    case "reconnecting":
                        reader.read(client, 500, 0, end)
        except PosthouseError:
            continue
        if kind == "late":
            end.wait(5)


def die(cluster: LocalCluster, counted: list[int], end: threading.Event) -> None:
    """Watchers that read a little, are stopped, and after a while killed."""
    while not end.is_set():
        argv = [sys.executable, "-c", DEAD, cluster.clients]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, env=cluster.env) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(signal.SIGSTOP)
            end.wait(15)
            process.kill()
        counted[0] += 1


def made_up(cluster: LocalCluster, end: Flag) -> None:
    """A process that is host `a`, as far as the master can tell."""
    poller = zmq.Poller()
    host = Host("a", cluster.agents, poller, mortal=True)
    host.feed(Tick())
    while not end.is_set():
        wake_s = host.core.wake_s - facts.instant().boot_s
        poller.poll(max(0, min(50, int(wake_s * 1000))))
        host.turn()
    os._exit(0)


def pids(cluster: LocalCluster) -> dict[str, list[int]]:
    if not cluster.hosts:
        return {"master": [cluster.master.pid]}
    warden = cluster.warden_pid("a")
    children = Path(f"/proc/{warden}/task/{warden}/children").read_text().split()
    zygotes = []  # by age: the runtime's own, and then spares that still have its name
    for child in children:
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{child}/stat").read_text()
            if "(posthouse zygot" in status and status.rpartition(")")[2].split()[3] == child:
                zygotes.append(int(child))
    return {"master": [cluster.master.pid], "agent": [cluster.agent("a").pid],
            "warden": [warden], "zygote": zygotes[:1]}  # fmt: skip


def churn(cluster: LocalCluster, client: Cluster, cycles: int, seconds: float) -> int:
    ledger = Ledger()
    ledger.cursor = client.cursor()
    readers = {kind: Reader() for kind in ("slow", "late", "reconnecting")}
    dead = [0]
    end = threading.Event()
    threads = [threading.Thread(target=watch, args=(cluster, reader, kind, end))
               for kind, reader in readers.items()]  # fmt: skip
    threads += [threading.Thread(target=die, args=(cluster, dead, end))]
    for thread in threads:
        thread.start()
    handles = [client.register(BackgroundWorker(
        name=f"churn{number}", main="churn_jobs:fail", restart_time=0, restart_budget=(1000, 1.0),
    )) for number in range(WORKERS)]  # fmt: skip
    begun_s = time.monotonic()
    samples: list[tuple[int, dict[str, tuple[int, int]]]] = []
    step = max(100, cycles // 40)
    try:
        with client.events(after=ledger.cursor, timeout=30) as stream:
            while ledger.cycles < cycles and time.monotonic() - begun_s < seconds:
                ledger.take(next(stream))
                if ledger.problems:
                    break
                if ledger.cycles >= (len(samples) + 1) * step:
                    used = {role: use_of(found) for role, found in pids(cluster).items()}
                    shown = {role: (use.rss_kib, use.fds) for role, use in used.items()}
                    samples.append((ledger.cycles, shown))
                    print(f"  {ledger.cycles} cycles: {shown}", flush=True)
            for handle in handles:
                handle.terminate(timeout=60)
            names = {handle.name for handle in handles}
            while names and not ledger.problems:
                event = next(stream)
                ledger.take(event)
                if event.kind is EventKind.UNREGISTERED:
                    names.discard(event.name)
    finally:
        end.set()
        for thread in threads:
            thread.join(30)
    took_s = time.monotonic() - begun_s
    report(ledger, readers, dead[0], samples, took_s)
    problems = [*ledger.problems, *(p for r in readers.values() for p in r.problems)]
    problems += [f"{key} was never told to end" for key in ledger.open]
    print("\n".join(problems) or "no problem")
    return len(problems)


def report(
    ledger: Ledger,
    readers: dict[str, Reader],
    dead: int,
    samples: list[tuple[int, dict[str, tuple[int, int]]]],
    took_s: float,
) -> None:
    rate = ledger.cycles / took_s
    print(f"{ledger.cycles} cycles in {took_s:.0f} s ({rate:.0f} a second), {ledger.starts} starts")
    for kind, reader in readers.items():
        print(f"  {kind}: {reader.count} events, {reader.connections} streams, {reader.gaps} gaps")
    print(f"  dead: {dead} processes")
    show: list[tuple[str, int, Callable[[float], str]]] = [
        ("KiB", 0, lambda found: f"{found * 1000:+.1f}"),
        ("descriptors", 1, lambda found: f"{found * 1000:+.3f}"),
    ]
    for role in samples[0][1] if samples else ():
        for what, index, told in show:
            points = [(float(cycle), float(used[role][index])) for cycle, used in samples]
            print(f"  {role:8}{what:12}{points[0][1]:9.0f} ->{points[-1][1]:9.0f}  "
                  f"{told(slope(points))} per 1,000 cycles; in the second half "
                  f"{told(slope(points, 0.5))}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cycles", type=int, nargs="?", default=100_000)
    parser.add_argument("--seconds", type=float, default=1e9, help="at the most")
    parser.add_argument("--made-up", action="store_true", help="no worker processes")
    options = parser.parse_args()
    workers = Path(__file__).parent / "workers"
    hosts = () if options.made_up else ("a",)
    fork = multiprocessing.get_context("fork")
    end = fork.Event()
    with LocalCluster(hosts=hosts, path=[workers]) as cluster:
        host = fork.Process(target=made_up, args=(cluster, end))
        if options.made_up:
            host.start()
        try:
            with cluster.connect() as client:
                wrong = churn(cluster, client, options.cycles, options.seconds)
        finally:
            end.set()
            if options.made_up:
                host.join(20)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
