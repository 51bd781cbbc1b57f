"""A PID namespace: whatever is started in it, and however, ends with its first process.

Owns: the making of one, what may be done in it without rights on the host, the way back from its
pids to the host's. Must not know: wardens, leases. Invariant: the process that makes the namespace
stays outside of it, and every pid that leaves it is the host's.

Without CAP_SYS_ADMIN a user namespace gives the right to the PID namespace. It knows one user, so
nothing in it can become another one (identity.missing_capabilities says so).
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from errno import EPERM
from typing import Final

from posthouse_agent import native, procfs

__all__ = ["Outside", "divide", "keep_to_ourselves", "lacking", "settle"]

_CAP_SYS_ADMIN: Final = 21

_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWPID: Final = 0x20000000
_MS_NOSUID: Final = 0x2
_MS_NODEV: Final = 0x4
_MS_NOEXEC: Final = 0x8
_MS_REC: Final = 0x4000
_MS_SLAVE: Final = 0x80000


@dataclass(frozen=True, slots=True)
class Outside:
    """The host's view of the processes in here: its /proc, which this namespace's own covers."""

    proc_fd: int

    @classmethod
    def open(cls) -> "Outside":
        """Before `settle`."""
        return cls(os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))

    def own_pid(self) -> int:
        """Of this process, as the host numbers it."""
        return int(os.readlink("self", dir_fd=self.proc_fd))

    def pid_of(self, pidfd: int) -> int:
        """Of the process behind `pidfd`, which is not reaped. Raises OSError."""
        path = f"self/fdinfo/{pidfd}"
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc_fd)
        try:
            lines = os.read(fd, 4096).decode().splitlines()
        finally:
            os.close(fd)
        return next(int(line[4:]) for line in lines if line.startswith("Pid:"))


def keep_to_ourselves() -> None:
    """The right to make namespaces is a warden's, where its unit gives it (AmbientCapabilities),
    and not its workers'."""
    with suppress(OSError):  # a kernel without ambient capabilities gives none
        native.keep_from_programs(_CAP_SYS_ADMIN)


def divide() -> None:
    """The next child of this process is the first one of a new namespace. Raises OSError, whose
    strerror says what this host would have to allow."""
    try:
        native.unshare(_CLONE_NEWPID)
    except OSError as error:
        if error.errno != EPERM:
            raise
    else:
        return
    user, group = os.geteuid(), os.getegid()
    try:
        native.unshare(_CLONE_NEWUSER | _CLONE_NEWPID)
        _map("setgroups", "deny")  # the kernel's condition for the last one
        _map("uid_map", f"{user} {user} 1")
        _map("gid_map", f"{group} {group} 1")
    except OSError as error:
        text = f"no CAP_SYS_ADMIN, and no user namespace either: {error.strerror}"
        raise OSError(error.errno, text) from None


def _map(name: str, text: str) -> None:
    fd = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def settle() -> None:
    """In the first process: have /proc show this namespace, here alone; what the host mounts goes
    on to be seen. Raises OSError."""
    native.unshare(_CLONE_NEWNS)
    native.mount("none", "/", "", _MS_REC | _MS_SLAVE)
    native.mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def lacking() -> str:
    """Why this process cannot have a namespace; empty if it can. Tried out, in a child: which
    rights, limits and filters have a say differs from host to host."""
    reads, writes = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
        if pid == 0:
            try:
                _try_out(writes)
            finally:
                os._exit(1)
        os.close(writes)
        writes = -1
        text = os.read(reads, 512).decode(errors="replace")
        _, status = os.waitpid(pid, 0)
    except OSError as error:
        return f"it could not be tried out: {error.strerror}"
    finally:
        os.close(reads)
        if writes != -1:
            os.close(writes)
    return text if text or status == 0 else "it could not be tried out"


def _try_out(writes: int) -> None:
    step = ""
    try:
        divide()
        first = os.fork()
        if first == 0:
            step = "no /proc of its own: "
            settle()
            assert procfs.read(1) is not None
            os._exit(0)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]))
    except OSError as error:
        with suppress(OSError):
            os.write(writes, f"{step}{error.strerror}".encode())
        os._exit(1)
