"""A start from end to end, beside the least that it can cost on this machine, in one run.

uv run python bench/launch.py [--samples 150] [--seconds 4] [--idle 200]
"""

import argparse
import os
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
from floor import Floor
from noise import machine, probe

from posthouse import BackgroundWorker, connect

HERE = Path(__file__).resolve().parent
BUDGET = (1000, 0.001)  # the default would brake a worker that fails all the time
HZ = os.sysconf("SC_CLK_TCK")


class Fifo:
    """Where workers say that they have come to their first line, and when."""

    def __init__(self, path: str) -> None:
        os.mkfifo(path)
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def read(self, timeout_s: float = 10.0) -> tuple[int, float]:
        """A number and a time of CLOCK_MONOTONIC."""
        if not select.select([self.fd], [], [], timeout_s)[0]:
            raise TimeoutError("no worker said that it runs")
        number, at_s = struct.unpack("=Qd", os.read(self.fd, 16))
        return number, at_s


class House:
    """A master, an agent and its warden, as `posthouse master` and `posthouse agent` run them."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        Path(folder).chmod(0o700)
        base = [sys.executable, "-m", "posthouse_cli"]
        # Else every worker would compile its module, which no installed one does.
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        common = ["--dir", folder, "--log-format", "json"]
        self._log = open(f"{folder}/daemons.log", "wb")  # noqa: SIM115 - closed in `close`
        master = subprocess.Popen([*base, "master", *common], stderr=self._log, env=env)
        placed = ["--host", "here", "--path", str(HERE), "--module", "*"]
        command = [*base, "agent", *common, *placed]
        agent = subprocess.Popen(command, stderr=self._log, env=env)
        self.daemons = {"master": psutil.Process(master.pid), "agent": psutil.Process(agent.pid)}
        self._started = (agent, master)
        self.endpoint = f"ipc://{folder}/clients.sock"
        self.cluster = connect(self.endpoint, timeout=20)

    def find_warden(self) -> psutil.Process:
        (lock,) = Path(self._folder).glob("**/warden.lock")
        warden = self.daemons["warden"] = psutil.Process(int(lock.read_text()))
        for child in warden.children():
            title = " ".join(child.cmdline())
            if title.startswith("posthouse zygote") and os.getsid(child.pid) == child.pid:
                self.daemons["zygote"] = child
        return warden

    def cpu_s(self) -> dict[str, float]:
        found = {}
        for name, process in self.daemons.items():
            rest = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            # A zygote's children are what forks its spares.
            found[name] = sum(map(int, rest[11 : 15 if name == "zygote" else 13])) / HZ
        # What the children of the warden used, once it has reaped them.
        times = self.daemons["warden"].cpu_times()
        found["workers"] = times.children_user + times.children_system
        return found

    def close(self) -> None:
        self.cluster.close()
        warden = self.find_warden()
        for process in self._started:  # the agent first: it would start another warden
            process.terminate()
            process.wait()
        warden.terminate()
        psutil.wait_procs([warden], 3)
        self._log.close()


@dataclass
class Samples:
    """Seconds by what they are of."""

    by_name: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value_s: float) -> None:
        self.by_name.setdefault(name, []).append(value_s)

    def p50(self, name: str) -> float:
        return statistics.median(self.by_name[name])

    def p99(self, name: str) -> float:
        ordered = sorted(self.by_name[name])
        return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]

    def line(self, name: str, floor: str = "") -> str:
        text = f"  {name:34} {self.p50(name) * 1000:8.2f} {self.p99(name) * 1000:8.2f} ms"
        if floor:
            text += f"   {self.p50(name) / self.p50(floor):4.1f} x {floor}"
        return text


def record(fifo: str, function: str, number: int, **fields: Any) -> BackgroundWorker:
    return BackgroundWorker(
        name=f"{function}-{number}-{time.monotonic_ns()}",
        main=f"launch_jobs:{function}",
        main_arg={"fifo": fifo, "number": number},
        restart_budget=BUDGET,
        unblock_signals=True,  # else a stop waits for its grace
        **fields,
    )


def starts(house: House, floor: Floor, fifo: Fifo, path: str, count: int) -> Samples:
    """One of the floor, one of posthouse, and so on."""
    found = Samples()
    for number in range(1, count + 1):
        found.add("zmq round trip", floor.round_trip())
        found.add("seqpacket round trip", floor.packets())
        found.add("commit of 4 rows", floor.commit())
        begun_s, fork_s = floor.fork(number)
        found.add("fork returns", fork_s)
        found.add("fork to first line", fifo.read()[1] - begun_s)
        begun_s, registered_s, started_s = floor.start(number)
        found.add("floor: registered", registered_s)
        found.add("floor: STARTED", started_s)
        found.add("floor: first line", fifo.read()[1] - begun_s)

        begun_s = time.monotonic()
        handle = house.cluster.register(record(path, "wait", number))
        found.add("registered", time.monotonic() - begun_s)
        handle.wait_for_startup(timeout=10)
        found.add("STARTED", time.monotonic() - begun_s)
        found.add("first line", fifo.read()[1] - begun_s)
        handle.terminate()
        handle.wait_until_unregistered(timeout=10)
    return found


def restarts(house: House, fifo: Fifo, path: str, count: int) -> Samples:
    """From the last line of a worker that fails to its first one again."""
    found = Samples()
    handle = house.cluster.register(record(path, "fail", 1, restart_time=0))
    ended_s = 0.0
    while len(found.by_name.get("exit 1 to first line", ())) < count:
        number, at_s = fifo.read()
        if number == 0:
            ended_s = at_s
        elif ended_s:
            found.add("exit 1 to first line", at_s - ended_s)
    handle.terminate()
    handle.wait_until_unregistered(timeout=10)
    while select.select([fifo.fd], [], [], 0.1)[0]:
        os.read(fifo.fd, 4096)
    return found


def _start_many(endpoint: str, number: int, begin_s: float, end_s: float) -> int:
    with connect(endpoint, timeout=20) as cluster:
        time.sleep(max(0.0, begin_s - time.time()))
        count = 0
        while time.time() < end_s:
            name = f"many-{number}-{count}"
            handle = cluster.register(BackgroundWorker(name=name, main="launch_jobs:nothing"))
            handle.wait_until_unregistered(timeout=20)
            count += 1
        return count


def rate(house: House, clients: int, seconds: float) -> str:
    """Workers that were registered, started, ended and were seen to by clients that do no more."""
    begin_s = time.time() + 4.0  # until every client is there
    jobs = [(house.endpoint, n, begin_s, begin_s + seconds) for n in range(clients)]
    with get_context("spawn").Pool(clients) as pool:
        result = pool.starmap_async(_start_many, jobs)
        time.sleep(max(0.0, begin_s - time.time()))
        before = house.cpu_s()
        counts = result.get(60)
        after = house.cpu_s()
    total = sum(counts)
    each = ", ".join(f"{n} {(after[n] - before[n]) / total * 1000:.2f}" for n in after)
    return f"starts and ends: {total / seconds:,.0f}/s from {clients} clients; CPU ms each: {each}"


def forks(floor: Floor, fifo: Fifo, seconds: float) -> str:
    begun_s = time.monotonic()
    count = 0
    while time.monotonic() - begun_s < seconds:
        floor.fork(count)
        fifo.read()
        count += 1
    return f"bare forks, one after another: {count / (time.monotonic() - begun_s):,.0f}/s"


def _pss(process: psutil.Process) -> float:
    return float(process.memory_full_info().pss) / 1e6


def idle(house: House, count: int, seconds: float) -> str:
    """Memory and CPU with so many workers that wait."""
    handles = [
        house.cluster.register(
            BackgroundWorker(name=f"idle-{n}", main="launch_jobs:idle", unblock_signals=True)
        )
        for n in range(count)
    ]
    pids = [handle.wait_for_startup(timeout=30).pid for handle in handles]
    time.sleep(1.0)
    before = house.cpu_s()
    time.sleep(seconds)
    after = house.cpu_s()
    used = {n: (after[n] - before[n]) / seconds * 100 for n in after if n != "workers"}
    daemons = {name: _pss(process) for name, process in house.daemons.items()}
    workers = statistics.median(_pss(psutil.Process(pid)) for pid in pids if pid)
    for handle in handles:
        handle.terminate()
    for handle in handles:
        handle.wait_until_unregistered(timeout=30)
    shares = ", ".join(f"{name} {share:.2f}" for name, share in used.items())
    sizes = ", ".join(f"{name} {size:.1f}" for name, size in daemons.items())
    return (
        f"{count} idle workers: CPU {sum(used.values()):.2f} % of a core ({shares}); "
        f"PSS MB: {sizes}, a worker {workers:.2f}"
    )


@contextmanager
def _cleaned(make: Callable[[], Any]) -> Iterator[Any]:
    made = make()
    try:
        yield made
    finally:
        made.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=150)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--idle", type=int, default=200)
    parser.add_argument("--idle-seconds", type=float, default=10.0)
    chosen = parser.parse_args()
    print(machine(), probe(), sep="\n")
    with (
        tempfile.TemporaryDirectory(prefix="ph", dir="/tmp") as folder,
        _cleaned(lambda: House(folder)) as house,
    ):
        path = f"{folder}/fifo"
        fifo = Fifo(path)
        warm = house.cluster.register(record(path, "once", 0))
        warm.wait_until_unregistered(timeout=20)
        fifo.read()
        house.find_warden()
        with _cleaned(lambda: Floor(folder)) as floor:
            found = starts(house, floor, fifo, path, chosen.samples)
            print(f"milliseconds, p50 and p99 of {chosen.samples}")
            for name in found.by_name:
                posthouse = name in ("registered", "STARTED", "first line")
                print(found.line(name, f"floor: {name}" if posthouse else ""))
            print(restarts(house, fifo, path, chosen.samples).line("exit 1 to first line"))
            print(forks(floor, fifo, 1.0))
        print(rate(house, chosen.clients, chosen.seconds))
        print(idle(house, chosen.idle, chosen.idle_seconds))
    print(probe())


if __name__ == "__main__":
    main()
