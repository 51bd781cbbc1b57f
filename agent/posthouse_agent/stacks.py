"""Where a worker's process is: its Python stacks, taken without its doing.

Owns: asking faulthandler in the process by the signal that is reserved for it, and collecting what
it writes. Must not know: who asked. Invariant: the signal is sent through a pidfd, to the process
that the warden forked, and only if that process catches it: for any other program it is deadly.
"""

import os
import re
import signal
import time
from pathlib import Path

from posthouse import limits, worker
from posthouse_agent import procfs
from posthouse_agent.effects import StacksTaken, TakeStacks
from posthouse_agent.remains import printable

__all__ = ["take"]

_STEP_S = 0.01
_MEMORY = re.compile(r"/memfd:posthouse-[0-9a-f]+-\d+ \(deleted\)")


class _NoStacks(Exception):
    """Why there are none."""


def take(asked: TakeStacks) -> StacksTaken:
    """Runs in a thread of its own, for limits.stacks_s at the most."""
    try:
        pidfd = os.pidfd_open(asked.pid)
    except OSError:
        return StacksTaken(asked.read, error="its process has just ended")
    try:
        return StacksTaken(asked.read, text=_take(asked.pid, asked.pid_start, pidfd))
    except _NoStacks as why:
        return StacksTaken(asked.read, error=str(why))
    except OSError as error:
        return StacksTaken(asked.read, error=f"process {asked.pid}: {error.strerror}")
    finally:
        os.close(pidfd)


def _take(pid: int, start: int, pidfd: int) -> str:
    found = procfs.read(pid)
    if found is None or found.start != start:
        raise _NoStacks("its process has just ended")
    if not _catches(pid, worker.STACKS_SIGNAL):
        program = Path(f"/proc/{pid}/exe").readlink()
        raise _NoStacks(
            f"process {pid} is no Python worker of posthouse but {program}: "
            f"on the host, `py-spy dump --pid {pid}` or `gdb -p {pid}` may tell"
        )
    memory = _memory_of(pid)
    try:
        begin = os.fstat(memory).st_size
        signal.pidfd_send_signal(pidfd, worker.STACKS_SIGNAL)
        text = _collect(memory, begin)
    finally:
        os.close(memory)
    where = procfs.predicament(pid)
    if not text:
        raise _NoStacks(f"process {pid} wrote none in {limits.stacks_s:g} s: it is {where}")
    return f"process {pid}, {where}\n{printable(text)}"[: limits.stacks_bytes_max]


def _catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal, by the kernel's word."""
    status = procfs.slurp(f"/proc/{pid}/status").decode(errors="replace")
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


def _memory_of(pid: int) -> int:
    """The file in memory that the worker's last words and its stacks are written to."""
    for path in Path(f"/proc/{pid}/fd").iterdir():
        if _MEMORY.fullmatch(str(path.readlink())):
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    raise _NoStacks(f"process {pid} has closed what its stacks are written to")


def _collect(memory: int, begin: int) -> bytes:
    """What is appended: complete when nothing has been for a while, because it has no end mark."""
    deadline_s = time.monotonic() + limits.stacks_s
    size, since_s = begin, time.monotonic()
    while (now_s := time.monotonic()) < deadline_s:
        if (grown := os.fstat(memory).st_size) != size:
            size, since_s = grown, now_s
        elif size > begin and now_s - since_s >= limits.stacks_quiet_s:
            break
        time.sleep(_STEP_S)
    data = os.pread(memory, min(size - begin, limits.stacks_bytes_max), begin)
    os.ftruncate(memory, begin)  # it is the worker's memory
    return data
