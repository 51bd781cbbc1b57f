"""What hosts use, by two looks at each.

Owns: the pace of the looks, the difference between them. Must not know: how it is shown.
Invariant: hosts are asked at the same time, so one that cannot be asked, or does not answer in its
time, is left out and costs the others nothing but that time.
"""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from posthouse import Cluster
from posthouse.errors import RefusedError, TimedOut
from posthouse.records import HostInfo, HostUse

__all__ = ["HostLoad", "look_at"]

_SAMPLE_S = 0.2  # between the two looks
_ANSWER_S = 2.0  # for one host; a host answers in milliseconds
_AT_ONCE_MAX = 32  # threads, each of which only waits: 500 hosts that are away cost half a minute


@dataclass(frozen=True, slots=True)
class HostLoad:
    """`cpu_percent`: of all its processors together; None where there was only one look."""

    use: HostUse
    cpu_percent: float | None


def look_at(
    cluster: Cluster, hosts: Iterable[HostInfo], timeout: float | None
) -> dict[str, HostLoad]:
    """The load of those that are reachable, by name."""
    deadline_s = None if timeout is None else time.monotonic() + timeout
    names = [host.name for host in hosts if host.reachable]
    first = _look(cluster, names, deadline_s)
    if first and (deadline_s is None or deadline_s - time.monotonic() > _SAMPLE_S):
        time.sleep(_SAMPLE_S)
    second = _look(cluster, first, deadline_s)
    return {name: _load(at_s, use, second.get(name)) for name, (at_s, use) in first.items()}


def _load(at_s: float, use: HostUse, later: tuple[float, HostUse] | None) -> HostLoad:
    if later is None or not later[1].cpus:
        return HostLoad(use, None)
    spent_s = max(0.0, later[1].busy_s - use.busy_s)
    percent = 100.0 * spent_s / (max(later[0] - at_s, 0.001) * later[1].cpus)
    return HostLoad(later[1], round(min(percent, 100.0), 1))


def _look(
    cluster: Cluster, names: Iterable[str], deadline_s: float | None
) -> dict[str, tuple[float, HostUse]]:
    def ask(name: str) -> tuple[float, HostUse] | None:
        left_s = _ANSWER_S if deadline_s is None else min(_ANSWER_S, deadline_s - time.monotonic())
        if left_s <= 0:
            return None
        try:
            use = cluster.usage(name, workers=False, timeout=left_s).use
        except (RefusedError, TimedOut):
            return None
        return (time.monotonic(), use)

    asked = list(names)
    with ThreadPoolExecutor(_AT_ONCE_MAX) as pool:
        answers = zip(asked, pool.map(ask, asked), strict=True)
        return {name: answer for name, answer in answers if answer is not None}
