"""What this host and its workers use: processors, memory, descriptors, threads.

Owns: the look at /proc through psutil. Must not know: who asked. Invariant: runs in a thread of its
own, never on the one that renews; a process that ends meanwhile is left out; a number that the
host may not see is absent, never a guess.
"""

import contextlib
import os
import re

import psutil

from posthouse.messages import Running
from posthouse.records import HostUse, WorkerUse
from posthouse_agent import procfs
from posthouse_agent.effects import MeasureUse, UseMeasured

__all__ = ["measure", "pss_bytes"]

_PSS = re.compile(rb"^Pss:\s+(\d+) kB$", re.MULTILINE)


def measure(asked: MeasureUse) -> UseMeasured:
    """The host, and the workers that still run."""
    memory = psutil.virtual_memory()
    host = HostUse(
        cpus=psutil.cpu_count() or 0,
        busy_s=_busy_s(),
        load=os.getloadavg()[0],
        memory_bytes=memory.total,
        available_bytes=memory.available,
    )
    found = (_of(worker) for worker in asked.workers)
    return UseMeasured(asked.read, host, tuple(use for use in found if use), asked.more)


def _busy_s() -> float:
    """Processor time of all processors that was neither idle nor waiting. What virtual machines on
    this host took is part of user already, and what others took from it is not its own."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def _of(worker: Running) -> WorkerUse | None:
    try:
        process = psutil.Process(worker.pid)
        with process.oneshot():
            times, memory = process.cpu_times(), process.memory_info()
            threads = process.num_threads()
        descriptors = None
        with contextlib.suppress(psutil.AccessDenied):
            descriptors = process.num_fds()
        pss = pss_bytes(worker.pid)
    except psutil.Error:
        return None
    now = procfs.read(worker.pid)
    if now is None or now.start != worker.pid_start or now.dead:
        return None  # the numbers may be another process's
    return WorkerUse(
        slot=worker.slot,
        generation=worker.generation,
        token=worker.token,
        pid=worker.pid,
        cpu_s=times.user + times.system,
        rss_bytes=memory.rss,
        pss_bytes=pss,
        descriptors=descriptors,
        threads=threads,
    )


def pss_bytes(pid: int) -> int | None:
    """Its share of memory: what workers of one runtime share is counted once over all of them."""
    try:
        found = _PSS.search(procfs.slurp(f"/proc/{pid}/smaps_rollup"))
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
