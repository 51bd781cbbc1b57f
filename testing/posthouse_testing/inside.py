"""For workers under test in real processes: `from posthouse_testing.inside import exclusive`.

Owns: a worker's word to the test's oracle; the driver that runs a simulated worker's body for real.
Must not know: the test, the cluster. Invariant: standard library and posthouse.worker only, because
it is loaded in workers.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, Final

from posthouse import worker
from posthouse.errors import UsageError
from posthouse_testing.oracle import DoubleRun

__all__ = ["ORACLE", "RealWorker", "exclusive", "run"]

ORACLE: Final = "PHTEST_ORACLE"
"""The environment variable that names the socket of the test's oracle."""
_ANSWER_BYTES: Final = 65_536


@contextmanager
def exclusive(name: str) -> Iterator[None]:
    """`with exclusive("shard 7"):` holds it, and fails the test if another process holds it too.

    The kernel ends the hold when this process, and whatever it has forked meanwhile, is gone; so
    one that is stopped, cut off or forgotten still holds. Raises DoubleRun; UsageError outside
    posthouse_real_cluster.
    """
    path = os.environ.get(ORACLE)
    if path is None:
        raise UsageError(
            "exclusive() is for workers under test, and there is no test here",
            hint="posthouse_real_cluster sets it up for the workers of its cluster",
        )
    me = worker.entry()
    who = f"{me.name} on {me.host}, token {me.token}, pid {os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        line.connect(path)
        line.send(json.dumps({"name": name, "who": who}).encode())
        answer = json.loads(line.recv(_ANSWER_BYTES) or b'""')
        if answer:
            raise DoubleRun(answer)
        yield


class _Latch:
    """As SimulatedLatch; what is yielded is done by `run`."""

    set = staticmethod(worker.latch.set)
    reset = staticmethod(worker.latch.reset)
    is_set = staticmethod(worker.latch.is_set)

    def wait(self, *events: worker.WaitEvent, timeout: float | None = None) -> Callable[[], Any]:
        return lambda: worker.latch.wait(*events, timeout=timeout)


class RealWorker:
    """The `me` of a SimulatedWorker in a real process: the same names, for the same body."""

    ready = staticmethod(worker.ready)
    heartbeat = staticmethod(worker.heartbeat)
    unblock_signals = staticmethod(worker.unblock_signals)
    block_signals = staticmethod(worker.block_signals)
    before_exit = staticmethod(worker.before_exit)
    on_exit = staticmethod(worker.on_exit)
    entry = staticmethod(worker.entry)
    exclusive = staticmethod(exclusive)

    def __init__(self) -> None:
        me = worker.entry()
        self.name, self.host, self.main_arg = me.name, me.host, me.main_arg
        self.token, self.incarnation = me.token, me.incarnation
        self.latch = _Latch()

    def __str__(self) -> str:
        return f"{self.name} on {self.host}, token {self.token}"

    @property
    def now_s(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> Callable[[], Any]:
        return lambda: time.sleep(seconds)

    def signal(self, number: int, handler: Callable[[int, Any], Any]) -> None:
        import signal

        signal.signal(number, handler)


def run(body: Callable[[Any], Generator[Any, Any, Any]]) -> None:
    """Run the body of a simulated worker in this real one, to its end.

    def main(arg):
        run(consume)
    """
    steps = body(RealWorker())
    told: Any = None
    while True:
        try:
            wanted = steps.send(told)
        except StopIteration:
            return
        told = wanted() if wanted is not None else None
