"""The one real clock of a simulated cluster: how long a single step of a worker takes.

Owns: a thread that looks at it, and the signal that interrupts a step. Must not know: virtual
time. Invariant: it changes nothing in a run whose steps are short.

A generator that never yields would stop the world for ever, and with it everything that could
notice. Its loop may be one of Python or a call that waits (time.sleep): a signal ends both, where
the test runs in the main thread; elsewhere nobody is interrupted.
"""

import signal
import threading
import time
from types import FrameType
from typing import Any

__all__ = ["STEP_S_MAX", "StuckStep", "Watchdog"]

STEP_S_MAX = 10.0  # of real time; what is computed between two yields takes milliseconds
_LOOK_S = 0.25
_SIGNAL = signal.SIGVTALRM  # not ALRM: pytest-timeout's

_watching: "list[Watchdog]" = []
"""Those that have a thread. The first one installs the handler, the last one takes it off."""
_before: "list[Any]" = []


class StuckStep(BaseException):
    """Raised inside a step that takes too long; not an Exception, so that no worker swallows it."""


class Watchdog:
    """`begin` and `end` around each step, between `open` and `close`."""

    def __init__(self, step_s_max: float = STEP_S_MAX) -> None:
        self.step_s_max = step_s_max
        self._begun_s: float | None = None
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._watched = threading.main_thread()

    def begin(self) -> None:
        if self._thread is None and threading.current_thread() is self._watched:
            self._thread = threading.Thread(target=self._look, name="watchdog", daemon=True)
            if not _watching:
                _before.append(signal.signal(_SIGNAL, _interrupt))
            _watching.append(self)
            self._thread.start()
        self._begun_s = time.monotonic()

    def end(self) -> None:
        self._begun_s = None

    def close(self) -> None:
        if self._thread is not None:
            self._closed.set()
            self._thread.join()
            self._thread = None
            _watching.remove(self)
            if not _watching:
                signal.signal(_SIGNAL, _before.pop())

    def overdue(self) -> bool:
        begun_s = self._begun_s
        return begun_s is not None and time.monotonic() - begun_s > self.step_s_max

    def _look(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while not self._closed.wait(_LOOK_S):
            if self.overdue():
                signal.pthread_kill(self._watched.ident or 0, _SIGNAL)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    # In the main thread: the step that was seen may have ended since.
    if any(watchdog.overdue() for watchdog in _watching):
        raise StuckStep
