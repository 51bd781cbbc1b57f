"""Which processes there are: what the warden reads in /proc, and killing what it found there.

Owns: the parsing of /proc. Must not know: wardens' tables. Invariant: a process is killed only
through a pidfd that was open *before* the fact which condemns it was read, so that a pid which
another process has got in between is never hit.
"""

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

__all__ = [
    "Process",
    "boot_id",
    "environment",
    "holds_lock",
    "is_process",
    "kill_if",
    "marked_by",
    "minds",
    "newest_pid",
    "pids",
    "predicament",
    "read",
    "slurp",
    "threads",
]


_STATES: Final = {"D": "in uninterruptible sleep", "R": "running", "T": "stopped", "t": "traced"}
_LAST_WORDS: Final = re.compile(r"/memfd:posthouse-([0-9a-f]+)-(\d+) \(deleted\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A line of /proc/PID/stat."""

    pid: int
    state: str
    parent: int
    session: int
    start: int  # clock ticks after boot: with the boot id and the pid it names the process

    @property
    def dead(self) -> bool:
        return self.state in "ZX"


def boot_id() -> str:
    """Of this boot of this kernel; another one has killed every process we may remember."""
    return slurp("/proc/sys/kernel/random/boot_id").decode().strip()


def read(pid: int) -> Process | None:
    """The process that has this pid now, if any."""
    try:
        text = slurp(f"/proc/{pid}/stat")
    except OSError:
        return None
    # The command may contain spaces and brackets; the last bracket ends it.
    rest = text[text.rfind(b")") + 2 :].split()
    return Process(
        pid=pid,
        state=rest[0].decode(),
        parent=int(rest[1]),
        session=int(rest[3]),
        start=int(rest[19]),
    )


def pids() -> Iterator[int]:
    """All processes, in no order that means anything."""
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def newest_pid() -> int:
    """The pid that was given out last in this pid namespace."""
    return int(slurp("/proc/loadavg").split()[4])


def is_process(pid: int) -> bool:
    """Whether this is a process; the kernel numbers threads in the same way."""
    try:
        os.close(os.pidfd_open(pid))
    except OSError:
        return False
    return True


def predicament(pid: int) -> str:
    """In words, where the kernel holds a process; empty if it is gone, or a zombie."""
    process = read(pid)
    if process is None or process.dead:
        return ""
    name = _STATES.get(process.state, "in state")
    where = ""
    with suppress(OSError):
        where = slurp(f"/proc/{pid}/wchan").decode(errors="replace").strip("\0\n0")
    return f"{name} ({process.state})" + (f" in {where}" if where else "")


def threads() -> int:
    """How many threads this process has, native ones included."""
    return len(os.listdir("/proc/self/task"))


def environment(pid: int) -> bytes:
    """The environment a program was started with; empty if it cannot be read."""
    try:
        return slurp(f"/proc/{pid}/environ")
    except OSError:
        return b""


def holds_lock(pid: int, device: int, inode: int) -> bool:
    """Whether the process has this file open through a descriptor that carries an flock. One that
    merely reads the file (a backup) does not count."""
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return False
    for name in names:
        with suppress(OSError):
            found = os.stat(f"{folder}/{name}")
            if (found.st_dev, found.st_ino) == (device, inode):
                return b"\nlock:" in slurp(f"/proc/{pid}/fdinfo/{name}")
    return False


def kill_if(pid: int, condemned: Callable[[int], bool]) -> int | None:
    """SIGKILL the process of `pid` if `condemned(pid)` says so once its pidfd is open.

    1. the pidfd opens on some process A; 2. A may end and B get its pid; 3. `condemned` may then
    judge B, but the signal goes to A, which is dead. Returns the pidfd, to wait on and to close;
    None if there was nothing to kill.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        if condemned(pid):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            return pidfd
    except OSError:
        pass
    os.close(pidfd)
    return None


def slurp(path: str) -> bytes:
    """The whole of a small file. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while chunk := os.read(fd, 65_536):
            data += chunk
        return data
    finally:
        os.close(fd)


def marked_by(pid: int, instance: str) -> int | None:
    """The token of the worker of this warden that a process comes from: by the cookie in its
    environment (what was exec'd), or by the memfd it still has (what was only forked)."""
    mark = f"POSTHOUSE_COOKIE={instance}:".encode()
    for variable in environment(pid).split(b"\0"):
        if variable.startswith(mark) and variable[len(mark) :].isdigit():
            return int(variable[len(mark) :])
    folder = f"/proc/{pid}/fd"
    with suppress(OSError):
        for name in os.listdir(folder):
            with suppress(OSError):
                target = os.readlink(f"{folder}/{name}")
                found = _LAST_WORDS.fullmatch(target)
                if found and found[1] == instance:
                    return int(found[2])
    return None


def minds(pid: int, number: int) -> bool:
    """Whether the process catches, ignores or blocks this signal, by the kernel's word."""
    try:
        status = slurp(f"/proc/{pid}/status").decode(errors="replace")
    except OSError:
        return False
    masks = re.findall(r"^Sig(?:Cgt|Ign|Blk):\s*([0-9a-f]+)$", status, re.MULTILINE)
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)
