"""Workers that sleep until their latch is set, for tests/client/test_latches_real.py."""

import socket
import time
from typing import Any

from posthouse import worker


def _names(causes: Any) -> str:
    return " ".join(sorted(cause.name for cause in causes))


def sleep(_: Any) -> None:
    worker.unblock_signals()
    worker.ready()
    causes = worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH, timeout=60)
    print(f"woken by {_names(causes)}", flush=True)


def wake(text: str) -> None:
    """Another worker, whose handle it was given."""
    worker.handle(text).set_latch()


def leave(_: Any) -> None:
    """Ends at once."""


def wait_over_sockets(_: Any) -> None:
    worker.unblock_signals()
    quiet, _far = socket.socketpair()
    ready, other = socket.socketpair()
    other.send(b"x")
    print(f"first {_names(worker.latch.wait(timeout=60, sockets=[quiet, ready]))}", flush=True)
    worker.ready()
    while not worker.latch.is_set():  # the client sets it, while a socket is ready all the time
        time.sleep(0.005)
    print(f"then {_names(worker.latch.wait(timeout=60, sockets=[quiet, ready]))}", flush=True)
    worker.latch.reset()
    ready.recv(1)
    other.close()
    print(f"last {_names(worker.latch.wait(timeout=60, sockets=[quiet, ready]))}", flush=True)
