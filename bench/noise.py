"""How noisy the machine is right now: a fixed loop, timed."""

import os
import platform
import statistics
import time


def probe() -> str:
    """Median and worst of 30 runs of a fixed loop, in milliseconds."""
    times = []
    for _ in range(30):
        begun_s = time.perf_counter()
        total = 0
        for number in range(40_000):
            total += number * number
        times.append((time.perf_counter() - begun_s) * 1000)
    return f"fixed loop {statistics.median(times):.2f} ms (worst {max(times):.2f})"


def machine() -> str:
    """What this runs on."""
    return (
        f"CPython {platform.python_version()}, Linux {platform.release()}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
