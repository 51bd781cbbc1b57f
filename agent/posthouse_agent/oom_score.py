"""Whom the kernel ends first when memory runs out: workers before the daemons that tell of it.

Owns: oom_score_adj of this process. Must not know: cgroups, who ran out of memory. Invariant: what
a daemon took off its own score no worker inherits.
"""

import os
from contextlib import suppress
from typing import Final

__all__ = ["protect", "write"]

DAEMON: Final = -900
_PATH: Final = "/proc/self/oom_score_adj"


def protect() -> int | None:
    """Lower this daemon's score if that is permitted (or systemd has done so). Returns what its
    workers must write; None if they have the right one without."""
    before = _read()
    if before > DAEMON:
        with suppress(OSError):
            write(DAEMON)
    now = _read()
    return max(0, before) if now < 0 else None


def write(score: int) -> None:
    """Raises OSError: lowering takes CAP_SYS_RESOURCE, raising nothing."""
    fd = os.open(_PATH, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(score).encode())
    finally:
        os.close(fd)


def _read() -> int:
    fd = os.open(_PATH, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.read(fd, 32))
    finally:
        os.close(fd)
