"""Workers of the fault tests. Before it does anything each writes a line into the oracle's file,
takes the lock of its name, and asks the oracle's server for the resource of its name."""

import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

from posthouse import worker

_kept: list[Any] = []


def _write(folder: str, what: str) -> None:
    me = worker.entry()
    line = f"{what} {me.name} {me.incarnation} {me.token} {os.getpid()}\n".encode()
    descriptor = os.open(f"{folder}/lives", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.write(descriptor, line)
    os.close(descriptor)


def _begin(folder: str) -> None:
    me = worker.entry()
    lock = os.open(f"{folder}/lock.{me.name}", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _write(folder, "taken")
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end.connect(f"{folder}/resource")
    said = {"name": me.name, "incarnation": me.incarnation, "token": me.token}
    end.send(json.dumps({**said, "pid": os.getpid(), "host": me.host}).encode())
    assert end.recv(16) == b"yours"
    _write(folder, "begin")
    worker.on_exit(lambda: _write(folder, "end"))
    _kept.extend([lock, end])


def steady(folder: str) -> None:
    """Until it is ended."""
    _begin(folder)
    worker.unblock_signals()
    worker.ready()
    while True:
        worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH, timeout=60)
        worker.latch.reset()


def deaf(folder: str) -> None:
    """All signals blocked, spinning: only KILL ends it."""
    _begin(folder)
    worker.ready()
    while True:
        time.sleep(0.01)


def fail(folder: str) -> None:
    """Fails at once."""
    _begin(folder)
    raise SystemExit(1)


def done(folder: str) -> None:
    """Has nothing to do."""
    _begin(folder)


def parent(folder: str) -> None:
    """Has a child in another session that does not listen to TERM."""
    _begin(folder)
    code = "import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
    argv = [sys.executable, "-I", "-S", "-c", code]
    _kept.append(subprocess.Popen(argv, start_new_session=True))
    worker.unblock_signals()
    worker.ready()
    worker.latch.wait(worker.EXIT_ON_PM_DEATH, timeout=600)


def hungry(folder: str) -> None:
    """Takes memory once it is told to."""
    _begin(folder)
    worker.unblock_signals()
    worker.ready()
    worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH, timeout=600)
    food = []
    while True:
        food.append(b"x" * (8 << 20))
