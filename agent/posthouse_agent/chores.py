"""One thread for what may block: disks, starting a process, a terminal that does not read.

Owns: the thread, its queue, the descriptor that says "something is done". Must not know: what the
chores are. Invariant: `submit` never blocks and the queue is bounded, so that the thread that
renews the host's session waits for no disk.
"""

import contextlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["Chores"]


class Chores:
    """Runs callables one after the other in a thread of its own; what they return is collected."""

    def __init__(self, name: str, queued_max: int) -> None:
        self.refused = 0  # chores that found the queue full
        self._queue: queue.Queue[Callable[[], Any] | None] = queue.Queue(queued_max)
        self._done: deque[Any] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # A daemon thread: a disk that hangs must not keep the agent from ending.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Readable when `collect` has something."""
        return self._wake

    def submit(self, chore: Callable[[], Any]) -> bool:
        """Have it run; False if too much is waiting already."""
        try:
            self._queue.put_nowait(chore)
        except queue.Full:
            self.refused += 1
            return False
        return True

    def collect(self) -> list[Any]:
        """Results since the last call, without Nones, in the order of submission. A chore that
        raised counts as a defect: its exception is raised here."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        found = []
        while self._done:
            result = self._done.popleft()
            if isinstance(result, BaseException):
                raise result
            found.append(result)
        return found

    def close(self, timeout_s: float) -> None:
        """Let it finish what is queued, for so long at the most."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=timeout_s)
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            os.close(self._wake)

    def _run(self) -> None:
        while (chore := self._queue.get()) is not None:
            try:
                result = chore()
            except Exception as error:  # noqa: BLE001 - handed to the main thread, which raises it
                result = error
            if result is not None:
                self._done.append(result)
                os.eventfd_write(self._wake, 1)
