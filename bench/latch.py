"""How long a sleeping worker takes to wake: `uv run python bench/latch.py`.

On one host by whoever has its latch (here the other end of a queue, message included); and through
the master, set by a client, by a worker of the same host and by one of another host. From the call
to the first line after the wait, by CLOCK_MONOTONIC, which all processes of a machine share.
"""

import argparse
import statistics
import tempfile
import time

from launch import HERE, Fifo
from noise import machine, probe

from posthouse import SHMEM_ACCESS, BackgroundWorker, Cluster
from posthouse_testing.cluster import LocalCluster


def _line(name: str, aim_ms: float, times_s: list[float]) -> str:
    times = sorted(t * 1e3 for t in times_s)
    p50, p99 = statistics.median(times), times[int(len(times) * 0.99)]
    verdict = "met" if p50 < aim_ms else "missed"
    return f"{name:44} p50 {p50:6.3f}  p99 {p99:6.3f} ms   aim {aim_ms} ms: {verdict}"


def _record(name: str, job: str, **spec: object) -> BackgroundWorker:
    return BackgroundWorker(name=name, main=f"latch_jobs:{job}", **{"host": "a", **spec})  # type: ignore[arg-type]


def by_queue(cluster: Cluster, fifo: Fifo, path: str, count: int) -> list[float]:
    arg = {"fifo": path, "count": count}
    handles = [
        cluster.register(_record(job, job, main_arg=arg, flags=SHMEM_ACCESS))
        for job in ("receiver", "sender")
    ]
    found = [fifo.read()[1] for _ in range(count)]
    for handle in handles:
        handle.terminate()
    return found


def by_client(
    cluster: Cluster, fifo: Fifo, path: str, count: int
) -> tuple[list[float], list[float]]:
    """And beside it what an answer of the master takes in the same run."""
    handle = cluster.register(_record("woken", "woken", main_arg={"fifo": path}))
    handle.wait_for_ready(timeout=20)
    found = []
    for _ in range(count):
        time.sleep(0.005)
        began_s = time.monotonic()
        handle.set_latch()
        found.append(fifo.read()[1] - began_s)
    trips = []
    for _ in range(count):
        time.sleep(0.005)
        began_s = time.monotonic()
        handle.status()
        trips.append(time.monotonic() - began_s)
    handle.terminate()
    handle.wait_until_unregistered(timeout=20)
    return found, trips


def by_worker(cluster: Cluster, fifo: Fifo, path: str, count: int, host: str) -> list[float]:
    handle = cluster.register(_record(f"woken-{host}", "woken", main_arg={"fifo": path}))
    handle.wait_for_ready(timeout=20)
    arg = {"fifo": path, "count": count, "handle": str(handle.id)}
    cluster.register(_record(f"asker-{host}", "asker", main_arg=arg, host=host))
    found = []
    began_s = 0.0
    while (told := fifo.read())[0] != 3:  # it says that it has done
        number, at_s = told
        if number == 0:
            began_s = at_s
        elif began_s:
            found.append(at_s - began_s)
            began_s = 0.0  # what is set twice may be seen once
    handle.terminate()
    handle.wait_until_unregistered(timeout=20)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=300)
    count = parser.parse_args().samples
    print(machine(), probe(), sep="\n")
    with (
        tempfile.TemporaryDirectory(prefix="ph", dir="/tmp") as folder,
        LocalCluster(hosts=("a", "b"), path=[HERE]) as running,
        running.connect() as cluster,
    ):
        path = f"{folder}/fifo"
        fifo = Fifo(path)
        print(_line("one host, by the end of a queue", 0.3, by_queue(cluster, fifo, path, count)))
        times, trips = by_client(cluster, fifo, path, count)
        print(_line("master, by a client", 2.0, times))
        ratio = statistics.median(times) / statistics.median(trips)
        print(f"{'':44} {ratio:.2f} times a status, {statistics.median(trips) * 1e3:.3f} ms")
        for host, what in (("a", "the same host"), ("b", "another host")):
            times = by_worker(cluster, fifo, path, count, host)
            print(_line(f"master, by a worker of {what}", 2.0, times))
    print(probe())


if __name__ == "__main__":
    main()
