"""What the measured workers do: say when their main was entered, then end, fail or wait.

Standard library only, and as little of it as that takes: a worker pays for what it imports.
"""

import os
import struct
import time


def _arrive(arg: dict[str, object]) -> None:
    entered_s = time.monotonic()
    fd = os.open(str(arg["fifo"]), os.O_WRONLY)
    os.write(fd, struct.pack("=Qd", arg["number"], entered_s))
    os.close(fd)


def once(arg: dict[str, object]) -> None:
    """Ends with 0: unregistered."""
    _arrive(arg)


def wait(arg: dict[str, object]) -> None:
    """Says so and stays until it is ended."""
    _arrive(arg)
    time.sleep(3600)


def fail(arg: dict[str, object]) -> None:
    """Says when it ends, too, and ends with 1: started again."""
    _arrive(arg)
    fd = os.open(str(arg["fifo"]), os.O_WRONLY)
    os.write(fd, struct.pack("=Qd", 0, time.monotonic()))
    raise SystemExit(1)


def nothing(_arg: object) -> None:
    """Ends with 0 at once."""


def idle(_arg: object) -> None:
    """A bare worker that waits."""
    time.sleep(3600)
