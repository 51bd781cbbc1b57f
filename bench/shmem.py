"""Shared memory beside PostgreSQL's own figures: `uv run python bench/shmem.py`.

Q16-Q20 of test_shm_mq by examples/shm_mq.py (each includes starting the workers, as PostgreSQL's
figures do: 15.20, on 2 shared cores), and a crash domain of 20 members that is killed and back.
"""

import os
import signal
import statistics
import time
from pathlib import Path

from posthouse import NEVER_RESTART, SHMEM_ACCESS, BackgroundWorker, Cluster, EventKind
from posthouse_testing.cluster import LocalCluster

HERE = Path(__file__).parent
RUNS = 5
MEMBERS = 20
CASES = {
    "Q16 empty x 2000": ("15-17", (1024, [0, 0], 2000, 1, False)),
    "Q17 1 byte x 2001": ("14-15", (1024, [1, 1], 2001, 1, False)),
    "Q18 100-1000 bytes x 10000": ("56-58", (32_768, [100, 1000], 10_000, 1, False)),
    "Q19 100-byte queue x 10000": ("670-1200", (100, [100, 300], 10_000, 1, False)),
    "Q20 270 KB x 200, 3 workers": ("210-220", (16_384, [270_000, 270_000], 200, 3, True)),
}
KEYS = ("queue", "sizes", "loops", "workers", "pipelined")


def queues(cluster: Cluster, name: str, case: tuple[object, ...]) -> float:
    record = BackgroundWorker(
        name=name,
        main="shm_mq:main",
        main_arg=dict(zip(KEYS, case, strict=True)),
        flags=SHMEM_ACCESS,
        restart_time=NEVER_RESTART,
    )
    status = cluster.register(record).wait_until_unregistered(timeout=60)
    assert status.last_exit is not None
    assert status.last_exit.code == 0, status.last_exit
    return float(status.last_exit.output_tail.partition('"all_ms": ')[2].rstrip("}\n "))


def reset(cluster: Cluster, number: int) -> float:
    """From the kill of one of 20 members until the last of them is ready again, in ms."""
    handles = [
        cluster.register(
            BackgroundWorker(
                name=f"m{number}.{at}",
                main="shmem_jobs:member",
                flags=SHMEM_ACCESS,
                crash_domain=f"bench{number}",
            )
        )
        for at in range(MEMBERS)
    ]
    for handle in handles:
        handle.wait_for_ready(timeout=30)
    pid = handles[0].pid()
    assert pid is not None
    began = time.time()
    os.kill(pid, signal.SIGKILL)
    back = 0.0
    for handle in handles:
        events = handle.events(timeout=30)
        ready = next(e for e in events if e.kind is EventKind.READY and e.incarnation == 2)
        back = max(back, ready.at_unix_s)
        handle.terminate()
    return (back - began) * 1e3


def main() -> None:
    path = [HERE, HERE.parent / "examples"]
    with LocalCluster(hosts=("a",), path=path) as running, running.connect() as cluster:
        print(f"{'':30} posthouse, ms (median, range of {RUNS})   PostgreSQL, ms")
        for name, (theirs, case) in CASES.items():
            found = [queues(cluster, f"{name[:3]}-{n}", case) for n in range(RUNS)]
            low, high = min(found), max(found)
            print(f"{name:30} {statistics.median(found):8.0f}  ({low:.0f}-{high:.0f})   {theirs}")
        found = [reset(cluster, n) for n in range(RUNS)]
        low, high = min(found), max(found)
        name = f"{MEMBERS} members reset and ready"
        print(f"{name:30} {statistics.median(found):8.0f}  ({low:.0f}-{high:.0f})   about 140")


if __name__ == "__main__":
    main()
