"""Control calls and the restart of another worker while a hundred workers fail in a loop.

uv run python bench/storm.py [--workers 100] [--seconds 20]
"""

import argparse
import statistics
import time
from pathlib import Path

from noise import machine, probe

from posthouse import BackgroundWorker, Cluster, Handle
from posthouse_testing.cluster import LocalCluster

CALM = 20  # workers that are killed once each
HERE = Path(__file__).resolve().parent


def percentiles(name: str, times_s: list[float]) -> str:
    ordered = sorted(times_s)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return (
        f"  {name:34} {statistics.median(ordered) * 1000:8.2f} {p99 * 1000:8.2f} "
        f"{ordered[-1] * 1000:8.2f} ms  n={len(ordered)}"
    )


def calls(cluster: Cluster, span_s: float) -> None:
    """status, register, terminate and a list, one after another, for a while."""
    taken: dict[str, list[float]] = {}
    end_s = time.monotonic() + span_s
    number = 0
    while time.monotonic() < end_s:
        number += 1
        made: Handle | None = None
        for name in ("register", "status", "list of 256", "terminate"):
            begun_s = time.monotonic()
            if name == "register":
                record = BackgroundWorker(name=f"c{number}", main="m:f", labels=("none",))
                made = cluster.register(record)
            elif name == "status":
                cluster.status("calm:0")
            elif name == "terminate":
                assert made is not None
                made.terminate()
            else:
                cluster.workers()
            taken.setdefault(name, []).append(time.monotonic() - begun_s)
    for name, times_s in taken.items():
        print(percentiles(name, times_s))


def restarts(calm: list[Handle]) -> None:
    """How late restarts with restart_time 1 are, of workers that have not failed before."""
    late_s = []
    for handle in calm:
        cursor = handle.wait_for_startup(timeout=30).cursor
        handle.signal("KILL")
        ended_s = 0.0
        for event in handle.events(after=cursor, timeout=30):
            if event.kind == "exited":
                ended_s = event.at_unix_s
            elif event.kind == "started":
                late_s.append(event.at_unix_s - ended_s - 1.0)
                break
    print(percentiles("restart of another, late by", late_s))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    print(machine(), probe(), sep="; ")
    with LocalCluster(hosts=("a",), path=[HERE]) as house, house.connect() as cluster:
        record = BackgroundWorker(name="calm", main="storm_jobs:idle", restart_time=1)
        calm = list(cluster.register_group(record, CALM))
        print("quiet: p50, p99, worst")
        calls(cluster, options.seconds / 4)
        for number in range(options.workers):
            record = BackgroundWorker(name=f"storm{number}", main="storm_jobs:fail", restart_time=0)
            cluster.register(record)
        before = sum(info.starts for info in cluster.workers())
        begun_s = time.monotonic()
        print(f"{options.workers} workers fail at once, restart_time 0:")
        calls(cluster, options.seconds)
        restarts(calm)
        starts = sum(info.starts for info in cluster.workers()) - before
        print(f"  {starts / (time.monotonic() - begun_s):.0f} starts a second meanwhile")
    print(probe())


if __name__ == "__main__":
    main()
