"""Wardens whose folder was deleted: nobody can reach them any more, and they must not run on.

Owns: finding and ending them. Must not know: settings, sessions. Runs in the I/O thread.
Invariant: when `end_homeless` has returned, no process holds a deleted lock of this folder, so a
new warden there is the only one.

The race is between two agents: 1. somebody (a cleaner of temporary folders) deletes the folder of
a living warden; 2. its agent ends; 3. the next agent finds no socket and starts a second warden,
which knows nothing of the first one's workers; the master takes them for lost and starts them
again, beside themselves. The kernel still knows: the old warden and each of its workers has
host.lock open, under a name that ends with " (deleted)".
"""

import os
import select
import signal
import time
from contextlib import suppress
from pathlib import Path

from posthouse import limits
from posthouse_agent import procfs

__all__ = ["end_homeless"]

_KILL_S = 5.0  # for processes that were sent KILL


def end_homeless(folder: str) -> int:
    """End what still lives of a warden that served this folder before it was deleted: by TERM to
    the warden, which ends its workers in their own way, then by KILL. Returns how many there were.

    Raises TimeoutError if something does not die.
    """
    parent = os.path.realpath(folder)
    warden, host = (f"{parent}/{name}.lock (deleted)" for name in ("warden", "host"))
    found = _holders(host)
    if not found:
        return 0
    for pid in found:
        with suppress(OSError):
            pidfd = os.pidfd_open(pid)
            try:
                if _holds(pid, warden):
                    signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            finally:
                os.close(pidfd)
    if not _gone(host, limits.postmaster_grace_s):
        for pid in _holders(host):
            pidfd_or_none = procfs.kill_if(pid, lambda p: _holds(p, host))
            if pidfd_or_none is not None:
                select.select([pidfd_or_none], [], [], _KILL_S)
                os.close(pidfd_or_none)
        if not _gone(host, _KILL_S):
            raise TimeoutError(f"processes {_holders(host)} do not die")
    return len(found)


def _gone(link: str, patience_s: float) -> bool:
    deadline_s = time.monotonic() + patience_s
    while _holders(link):
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(0.02)
    return True


def _holders(link: str) -> list[int]:
    return [pid for pid in procfs.pids() if pid != os.getpid() and _holds(pid, link)]


def _holds(pid: int, link: str) -> bool:
    with suppress(OSError):  # gone, or not ours to look at
        for name in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if str(name.readlink()) == link:
                    return True
    return False
