"""What the client's tests run on real hosts."""

import signal
import sys
import time
from typing import Any

from posthouse import worker


def idle(arg: Any) -> None:
    """Says that it is ready, and waits; a latch or a signal is written down."""
    signal.signal(signal.SIGHUP, lambda number, frame: print("got HUP", flush=True))
    worker.unblock_signals()
    print(f"arg {arg!r} incarnation {worker.entry().incarnation}", flush=True)
    worker.ready()
    while True:
        events = worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH, timeout=60)
        if worker.LATCH_SET in events:
            worker.latch.reset()
            print("latch set", flush=True)


def end(arg: int) -> None:
    sys.exit(arg)


def fail(arg: str) -> None:
    raise ValueError(arg)


def end_later(arg: float) -> None:
    worker.unblock_signals()
    time.sleep(arg)
