"""PostgreSQL's latch: a flag that anyone may set, and on which its owner waits (rules L1-L10).

Owns: the wait and its rules. Must not know: who sets it. Invariant: the flag is an eventfd's
counter, so it lives in the kernel: a set is never lost, whoever dies, and many sets are one.
"""

import os
import select
import time
from collections.abc import Iterable
from contextlib import suppress
from enum import IntFlag
from typing import TYPE_CHECKING, Final, Protocol

from posthouse.errors import UsageError

if TYPE_CHECKING:
    from posthouse.channel import Channel

__all__ = [
    "EXIT_ON_PM_DEATH",
    "LATCH_SET",
    "POSTMASTER_DEATH",
    "SOCKET_READABLE",
    "SOCKET_WRITEABLE",
    "TIMEOUT",
    "Latch",
    "WaitEvent",
]


class WaitEvent(IntFlag):
    """What a wait may be for, and why it ended. The values are PostgreSQL's WL_ constants."""

    LATCH_SET = 1
    SOCKET_READABLE = 2
    SOCKET_WRITEABLE = 4
    TIMEOUT = 8
    POSTMASTER_DEATH = 16
    EXIT_ON_PM_DEATH = 32


LATCH_SET: Final = WaitEvent.LATCH_SET
SOCKET_READABLE: Final = WaitEvent.SOCKET_READABLE
SOCKET_WRITEABLE: Final = WaitEvent.SOCKET_WRITEABLE
TIMEOUT: Final = WaitEvent.TIMEOUT
POSTMASTER_DEATH: Final = WaitEvent.POSTMASTER_DEATH
EXIT_ON_PM_DEATH: Final = WaitEvent.EXIT_ON_PM_DEATH

_SOCKET_EVENTS: Final = SOCKET_READABLE | SOCKET_WRITEABLE
_DEATH_EVENTS: Final = POSTMASTER_DEATH | EXIT_ON_PM_DEATH
_BROKEN: Final = select.POLLHUP | select.POLLERR | select.POLLNVAL


class HasFileno(Protocol):
    def fileno(self) -> int: ...


Waitable = HasFileno | int


class Latch:
    """A process's wake-up flag. `worker.latch` is the one that a worker owns.

    The two loops that lose nothing (never test the condition between wait and reset):

        while True:                          while True:
            worker.latch.reset()                 if work_is_there():
            if work_is_there():                      do_it()
                do_it()                          worker.latch.wait(timeout=60)
            worker.latch.wait(timeout=60)        worker.latch.reset()

    Waking up without a cause is normal: signals, notifications and queues share the latch.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._owner_pid = 0
        self._channel: Channel | None = None
        self._postmaster_dead = False

    def __repr__(self) -> str:
        return f"<Latch fd={self._fd} owner={self._owner_pid}>"

    def own(self, fd: int, channel: "Channel | None" = None) -> None:
        """Make this process the owner of the latch behind an eventfd. Called once, by posthouse."""
        if self._fd != -1:
            raise UsageError("this latch has an owner")
        self._fd, self._owner_pid, self._channel = fd, os.getpid(), channel

    def set(self) -> None:
        """Wake the owner. Safe in signal handlers and threads, and cheap if it is set (L9)."""
        self._need_fd()
        with suppress(BlockingIOError):  # the counter is full: it is set
            os.eventfd_write(self._fd, 1)

    def reset(self) -> None:
        """Clear the flag. Only the owner may."""
        self._need_owner("reset")
        with suppress(BlockingIOError):  # it was not set
            os.eventfd_read(self._fd)

    def is_set(self) -> bool:
        """Whether the flag is set now; it stays as it is."""
        self._need_fd()
        return bool(_poll([(self._fd, select.POLLIN)], 0.0))

    def wait(
        self,
        *events: WaitEvent,
        timeout: float | None = None,
        sockets: Waitable | Iterable[Waitable] = (),
    ) -> frozenset[WaitEvent]:
        """Wait for the latch, the end of the time, sockets or the postmaster's death.

        Without `events` it waits for the latch and the postmaster's death, and for `sockets` to
        become readable. With them, POSTMASTER_DEATH or EXIT_ON_PM_DEATH must be among them (L5);
        EXIT_ON_PM_DEATH ends the process with `sys.exit(1)`. The postmaster counts as dead when
        the lease of this worker's host comes to its end, a stop grace before it. `timeout` is in
        seconds, counted from the call; without it the wait has no end. At least one cause that is
        true is returned, not all; a latch that is set wins (L6). A socket's end or error counts
        as ready (L10).

        Raises UsageError: not in a worker, not the owner, or events that make no sense.
        """
        self._need_owner("wait on")
        fds = _filenos(sockets)
        wanted = _wanted(events, timeout, bool(fds))
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            found = self._look(wanted, fds, deadline)
            if EXIT_ON_PM_DEATH in found:
                raise SystemExit(1)
            if found:
                return frozenset(found)
            if deadline is not None and time.monotonic() >= deadline:
                return frozenset((TIMEOUT,))

    def readable(self, fd: int) -> bool:
        """Whether that descriptor is readable now; for posthouse.shmem."""
        return bool(_poll([(fd, select.POLLIN)], 0.0))

    def note_postmaster(self, *, dead: bool) -> None:
        """The host's agent says whether this worker's cluster is gone for it."""
        self._postmaster_dead = dead

    # --- inside ---

    def _look(self, wanted: WaitEvent, sockets: list[int], deadline: float | None) -> WaitEvent:
        """Poll once, until something happens or the deadline; what of `wanted` is true now."""
        watched: list[tuple[int, int]] = []
        if LATCH_SET in wanted:
            watched.append((self._fd, select.POLLIN))
        channel = self._channel
        if channel is not None and not channel.closed:
            watched.append((channel.fileno(), select.POLLIN))
        mask = (select.POLLIN if SOCKET_READABLE in wanted else 0) | (
            select.POLLOUT if SOCKET_WRITEABLE in wanted else 0
        )
        watched += [(fd, mask) for fd in sockets]
        left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        if self._dead():
            left_s = 0.0
        ready = _poll(watched, left_s)
        if ready.get(self._fd):
            return LATCH_SET
        if channel is not None and ready.get(channel.fileno()):
            channel.pump()
        found = _sockets_ready(wanted, sockets, ready)
        if self._dead():
            found |= EXIT_ON_PM_DEATH if EXIT_ON_PM_DEATH in wanted else POSTMASTER_DEATH
        return found

    def _dead(self) -> bool:
        return self._postmaster_dead or (self._channel is not None and self._channel.closed)

    def _need_fd(self) -> None:
        if self._fd == -1:
            raise UsageError(
                "there is no latch in this process: it is not a background worker",
                hint="register the function with posthouse; it has a latch when a host runs it",
            )

    def _need_owner(self, verb: str) -> None:
        self._need_fd()
        if os.getpid() != self._owner_pid:
            raise UsageError(
                f"cannot {verb} a latch owned by another process",
                hint="a process that a worker forked may set the worker's latch, and no more",
            )


def _wanted(events: tuple[WaitEvent, ...], timeout: float | None, sockets: bool) -> WaitEvent:
    """The events of a call as one set of flags, checked."""
    if timeout is not None and not 0 <= timeout <= 2**31:
        raise UsageError(f"timeout is {timeout}: must be 0 or more seconds")
    wanted = WaitEvent(0)
    for event in events:
        if not isinstance(event, WaitEvent):
            raise UsageError(f"{event!r} is no wait event; durations are given as timeout=seconds")
        wanted |= event
    if not wanted:
        wanted = LATCH_SET | POSTMASTER_DEATH | (SOCKET_READABLE if sockets else WaitEvent(0))
    if not wanted & _DEATH_EVENTS:
        raise UsageError("name POSTMASTER_DEATH or EXIT_ON_PM_DEATH among the events")
    if TIMEOUT in wanted and timeout is None:
        raise UsageError("TIMEOUT needs timeout=seconds")
    if bool(wanted & _SOCKET_EVENTS) != sockets:
        raise UsageError("SOCKET_READABLE, SOCKET_WRITEABLE and sockets= need each other")
    return wanted


def _sockets_ready(wanted: WaitEvent, fds: list[int], ready: dict[int, int]) -> WaitEvent:
    found = WaitEvent(0)
    for fd in fds:
        state = ready.get(fd, 0)
        if SOCKET_READABLE in wanted and state & (select.POLLIN | _BROKEN):
            found |= SOCKET_READABLE
        if SOCKET_WRITEABLE in wanted and state & (select.POLLOUT | _BROKEN):
            found |= SOCKET_WRITEABLE
    return found


def _poll(watched: list[tuple[int, int]], timeout_s: float | None) -> dict[int, int]:
    poll = select.poll()
    for fd, mask in watched:
        poll.register(fd, mask)
    # poll() counts in whole ms: rounded up by it, so that a wait never ends early.
    return dict(poll.poll(None if timeout_s is None else min(timeout_s, 86_400.0) * 1000))


def _filenos(sockets: Waitable | Iterable[Waitable]) -> list[int]:
    if isinstance(sockets, int):
        return [sockets]
    if isinstance(sockets, Iterable):
        return [s if isinstance(s, int) else s.fileno() for s in sockets]
    return [sockets.fileno()]
