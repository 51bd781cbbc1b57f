"""Light-weight locks in shared memory that a dead holder cannot keep (K20).

Owns: acquiring, waiting, releasing, the record of what is held. Must not know: what is protected.
Invariant: who has a lock is the kernel's word, and it ends with the process, however that ends; the
word in the segment says only that the last holder has not finished.

The kernel's record locks of a process (fcntl) are laid on a file of the crash domain that nobody
reads or writes: two bytes a lock, the lock itself and a gate before it. Who waits for the lock
holds the gate, so that readers who come later cannot keep a writer out. They are dropped when a
process closes any descriptor of that file: it has one, which is never closed. A worker's own
threads are kept apart by the table of held locks, because the kernel sees one process.
"""

import fcntl
import os
import struct
import threading
import time
from typing import Final, Self

from posthouse import limits, worker
from posthouse.errors import TimedOut, UsageError
from posthouse.shmem import segments
from posthouse.shmem.segments import Segment
from posthouse.shmem.wrong import Abandoned

__all__ = ["LWLock"]

_FLOCK: Final = "hhqqi0q"
_WORD: Final = struct.Struct("=q")
_held: Final[dict[tuple[int, int], "LWLock"]] = {}
_mutex: Final = threading.RLock()


class LWLock:
    """A lock in the 8 bytes at `offset` of a segment, which are zeros to begin with. Exclusive as
    `with lock:`, shared as `with lock.shared():`. Not re-entrant. While one is held, the default
    handler of TERM waits. Ending with one held counts as a crash."""

    def __init__(self, segment: Segment, offset: int = 0) -> None:
        segment.region(offset, 8)
        if offset % 8:
            raise UsageError(f"offset is {offset}: must be a multiple of 8")
        self._word = memoryview(segment)[offset : offset + 8].cast("Q")
        self._key = (segment.number, offset)
        self._at = (segment.number << 33) | (offset << 1)
        self._shared = False
        self.thread = 0  # of its holder here

    def __repr__(self) -> str:
        return f"<LWLock of segment {self._key[0]} at {self._key[1]}>"

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def shared(self, timeout: float = limits.lock_wait_s) -> "_Shared":
        """For `with`: together with others who only read."""
        return _Shared(self, timeout)

    def acquire(self, *, shared: bool = False, timeout: float = limits.lock_wait_s) -> None:
        """Raises TimedOut, which names the process that holds it; Abandoned; UsageError."""
        if not self._acquire(shared, time.monotonic() + timeout):
            pid = self.holder()
            who = f"process {pid} holds it" if pid else "it was free for moments only"
            raise TimedOut(f"{self!r} was not had within {timeout:g} s: {who}")

    def try_acquire(self, *, shared: bool = False) -> bool:
        """Without waiting [LWLockConditionalAcquire]. Raises Abandoned, UsageError."""
        return self._acquire(shared, 0.0)

    def release(self) -> None:
        """Raises UsageError if this process does not hold it."""
        with _mutex:
            if _held.get(self._key) is not self:
                raise UsageError(f"{self!r} is not held")
            self.drop()
        if not worker.interrupts.held and worker.interrupts.pending:
            worker.interrupts.pending = False
            worker.interrupts.fire()

    def held_by_me(self) -> bool:
        """[LWLockHeldByMe]."""
        return _held.get(self._key) is self

    def holder(self) -> int:
        """The pid of another process that holds it, or keeps it from being had; 0 for none."""
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, self._at, 1, 0)
        told = fcntl.fcntl(segments.locks_fd(), fcntl.F_GETLK, asked)
        kind, *_, pid = struct.unpack(_FLOCK, told)
        return 0 if kind == fcntl.F_UNLCK else int(pid)

    # --- inside ---

    def _acquire(self, shared: bool, deadline_s: float) -> bool:
        pause_s = 20e-6
        gate = False
        try:
            while True:
                with _mutex:
                    self._check()
                    if self._key not in _held:
                        gate = gate or _lock(self._at + 1, exclusive=True)
                        if gate and _lock(self._at, exclusive=not shared):
                            self._take(shared)
                            return True
                if time.monotonic() >= deadline_s:
                    return False
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, limits.lock_look_s_max)
        finally:
            if gate:
                _unlock(self._at + 1)

    def _check(self) -> None:
        other = _held.get(self._key)
        if other is not None and other.thread == threading.get_ident():
            raise UsageError(f"{self!r} is held by this very thread: it is not re-entrant")
        if len(_held) >= limits.locks_held_max:
            raise UsageError(f"too many locks held: at most {limits.locks_held_max}")

    def _take(self, shared: bool) -> None:
        if self._word[0] != 0:
            _unlock(self._at)
            raise Abandoned(f"process {self._word[0]} died with {self!r} held")
        if not _held:
            segments.on_leave(_leave)
        worker.interrupts.held += 1
        _held[self._key] = self
        self._shared, self.thread = shared, threading.get_ident()
        _note()
        if not shared:
            self._word[0] = os.getpid()

    def drop(self, *, finished: bool = True) -> None:
        """Give it back; not `finished`: nobody is to have it again in this epoch."""
        if finished and not self._shared:
            self._word[0] = 0
        del _held[self._key]
        _unlock(self._at)
        _note()
        worker.interrupts.held -= 1  # last: TERM may come right behind it


class _Shared:
    def __init__(self, lock: LWLock, timeout: float) -> None:
        self._lock = lock
        self._timeout = timeout

    def __enter__(self) -> LWLock:
        self._lock.acquire(shared=True, timeout=self._timeout)
        return self._lock

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _lock(at: int, *, exclusive: bool) -> bool:
    how = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB
    try:
        fcntl.lockf(segments.locks_fd(), how, 1, at)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _unlock(at: int) -> None:
    fcntl.lockf(segments.locks_fd(), fcntl.LOCK_UN, 1, at)


def _note() -> None:
    """The record that the warden looks into when this process is dead."""
    _, fd = worker.memory_fds()
    os.pwrite(fd, _WORD.pack(len(_held)), limits.traceback_bytes_max + _WORD.size)


def _leave() -> None:
    """On the way out: what they protected may be half done, so it counts as a crash, and who gets
    them next, an exit callback or another worker, is told."""
    with _mutex:
        if not _held:
            return
        count = len(_held)
        for lock in list(_held.values()):
            lock.drop(finished=False)
    _, fd = worker.memory_fds()
    os.pwrite(fd, _WORD.pack(count), limits.traceback_bytes_max + _WORD.size)
