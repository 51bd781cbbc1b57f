"""What processes use, and whether it grows.

Owns: numbers read from /proc and their slope. Must not know: what happens between two samples.
Invariant: a slope is of what was sampled, over all of it but the first part, in which caches fill.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Use:
    """Of one process, or of several together."""

    processes: int
    rss_kib: int
    fds: int
    threads: int


def use_of(pids: Iterable[int]) -> Use:
    count = rss_kib = fds = threads = 0
    for pid in pids:
        try:
            status = Path(f"/proc/{pid}/status").read_text().splitlines()
            found = {line.partition(":")[0]: line.split()[1] for line in status if "\t" in line
                     and len(line.split()) > 1}  # fmt: skip
            open_now = len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            continue
        count += 1
        rss_kib += int(found.get("VmRSS", "0"))
        threads += int(found.get("Threads", "0"))
        fds += open_now
    return Use(count, rss_kib, fds, threads)


def slope(points: list[tuple[float, float]], skip: float = 0.3) -> float:
    """Least squares, without the first part; per unit of the first coordinate."""
    points = points[int(len(points) * skip) :]
    if len(points) < 3:
        return float("nan")
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
