"""Whether a process that KILL ended had run out of memory: the kernel counts those per cgroup.

Owns: the counters of cgroup version 2 (memory.events) and 1 (memory.oom_control). Must not know:
who sent signals. Invariant: one count explains one death.

A cgroup of the worker's own gives a certain answer. One that it shares tells that somebody in it
ran out of memory; the count is taken by the next death by KILL that nobody here has ordered.
"""

import os
from typing import Final

from posthouse_agent import cgroups, procfs

__all__ = ["MemoryEvents", "kills_in"]

_FILES: Final = ("memory.events", "memory.oom_control")


class MemoryEvents:
    """The counter that this process and its children share: that of the nearest cgroup with one."""

    def __init__(self) -> None:
        self._folder = _nearest()
        self._taken = kills_in(self._folder) or 0

    def take(self) -> bool:
        """Whether somebody was ended for want of memory whom no earlier call has accounted for."""
        counted = kills_in(self._folder) or 0
        if counted <= self._taken:
            return False
        self._taken += 1
        return True


def kills_in(folder: str | None) -> int | None:
    """How many processes of this cgroup the kernel has ended for want of memory, so far; None if
    it does not count them."""
    if folder is None:
        return None
    for name in _FILES:
        try:
            text = procfs.slurp(f"{folder}/{name}").decode()
        except OSError:
            continue
        for line in text.splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill":
                return int(value)
    return None


def _nearest() -> str | None:
    for controller in ("", "memory"):
        folder = cgroups.own_folder(controller)
        while folder and folder != "/":
            if kills_in(folder) is not None:
                return folder
            folder = os.path.dirname(folder)
    return None
