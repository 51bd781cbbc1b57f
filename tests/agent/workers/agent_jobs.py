"""Workers of the agent's tests. Each start writes one line into a file of its own accord: what
really ran, to be compared with what was told."""

import os
from typing import Any

from posthouse import worker
from posthouse.errors import PosthouseError


def _write(path: str) -> None:
    me = worker.entry()
    line = f"{me.token} {me.incarnation} {os.getpid()} {me.name}\n".encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, line)
    os.close(descriptor)


def steady(path: str) -> None:
    """Runs until it is ended; prints a line whenever its latch is set."""
    worker.unblock_signals()
    _write(path)
    worker.ready()
    while True:
        worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH, timeout=60)
        worker.latch.reset()
        print("latch", flush=True)


def churn(path: str) -> None:
    """Fails at once."""
    _write(path)
    raise SystemExit(1)


def talk(ops: list[Any]) -> None:
    """Says these things in its channel, then waits."""
    worker.unblock_signals()
    channel = worker._process.channel  # type: ignore[union-attr]
    for op in ops:
        print(op, _ask(channel, op), flush=True)
    worker.latch.wait(worker.EXIT_ON_PM_DEATH, timeout=60)


def _ask(channel: Any, op: str) -> str:
    try:
        return str(channel.request(op, timeout=10.0))
    except PosthouseError as error:
        return f"{type(error).__name__} {error}"


def flood(path: str) -> None:
    """Fills its channel for ever and reads no answers."""
    worker.unblock_signals()
    _write(path)
    channel = worker._process.channel  # type: ignore[union-attr]
    end = channel._socket
    end.setblocking(True)
    print("flooding", flush=True)
    while True:
        end.send(b'{"op":"nonsense","id":1}')


def fail_when(path: str) -> None:
    """Fails with last words once there is such a file."""
    worker.unblock_signals()
    worker.ready()
    while not os.path.exists(path):
        worker.latch.wait(worker.EXIT_ON_PM_DEATH, timeout=0.02)
    print("printed before", flush=True)
    raise ValueError("last words")
