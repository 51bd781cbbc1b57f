"""The fuse of a tree warden: a process outside its namespace, which the kernel ends in time.

Owns: the timer, the line between fuse and warden. Must not know: workers, the agent, the master.
Invariant: the namespace never outlives the fuse (its first process has the fuse's death for a
signal, and the kernel ends the others with that one), and a deadline is in force only once the
fuse has said so.

The first process of a namespace is immune to a timer of its own: only what comes from outside
kills it. So the timer ends another process. Stopped, the fuse sets no newer deadline and answers
nothing; then the older one holds, and the warden goes by that (docs/decisions/0027).
"""

import os
import select
import signal
import socket
import struct
import time
from typing import Final

from posthouse import limits
from posthouse_agent import native

__all__ = ["Line", "burn"]

_DEADLINE: Final = struct.Struct("=qd")  # stamp of the renewal, second of CLOCK_BOOTTIME


class Line:
    """The warden's end."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end

    def fileno(self) -> int:
        return self._end.fileno()

    @property
    def broken(self) -> bool:
        """Whether the fuse had ended before it could take this process along."""
        try:
            return not self._end.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def ask(self, stamp: int, deadline_s: float) -> bool:
        """Have the deadline set (0: none). False: the fuse has not read for so long that there is
        no room; the older deadline stays."""
        try:
            self._end.send(_DEADLINE.pack(stamp, deadline_s), socket.MSG_NOSIGNAL)
        except OSError:
            return False
        return True

    def answers(self) -> list[tuple[int, float]] | None:
        """Stamps and deadlines that are in force now, in their order; None: the fuse has ended."""
        found: list[tuple[int, float]] = []
        while True:
            try:
                data = self._end.recv(_DEADLINE.size)
            except BlockingIOError:
                return found
            except OSError:
                return None
            if not data:
                return None
            found.append(_DEADLINE.unpack(data))


def burn(end: socket.socket, warden_pid: int, timer: native.Fuse) -> int:
    """The fuse's whole life: until the warden has ended, and with it the namespace. Returns the
    exit status for this process."""
    end.setblocking(False)
    warden = os.pidfd_open(warden_pid)  # our child, and nobody else reaps it
    signals = native.open_signalfd((signal.SIGTERM, signal.SIGINT))
    poll = select.poll()
    for fd in (warden, signals, end.fileno()):
        poll.register(fd, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == warden:
                # 1. the first process dies; 2. the kernel ends all others of the namespace;
                # 3. only then it is a zombie, and this readable.
                _, status = os.waitpid(warden_pid, 0)
                return max(1, os.waitstatus_to_exitcode(status)) if status else 0
            if fd == signals:
                for number in native.read_signalfd(signals):
                    signal.pidfd_send_signal(warden, number)
            elif not _set(end, timer):
                poll.unregister(end.fileno())


def _set(end: socket.socket, timer: native.Fuse) -> bool:
    """One deadline. False: the warden is ending."""
    try:
        data = end.recv(_DEADLINE.size)
    except OSError:
        return False
    if not data:
        return False
    stamp, deadline_s = _DEADLINE.unpack(data)
    if deadline_s:
        now_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        deadline_s = min(deadline_s, now_s + limits.lease_s_max)
    timer.arm(deadline_s)
    try:
        end.send(_DEADLINE.pack(stamp, deadline_s), socket.MSG_NOSIGNAL)
    except BlockingIOError:
        pass  # a warden that does not read: the next renewal's answer will do
    except OSError:
        return False
    return True
