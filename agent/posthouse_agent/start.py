"""Before a warden may serve: its folder, its locks, and the certainty that no worker of an earlier
warden still lives.

Owns: folder checks, warden.lock, host.lock, the killing of leftovers. Must not know: orders,
reports. Invariant: whoever holds host.lock knows that no process which inherited it is alive.
"""

import fcntl
import os
import select
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from posthouse_agent import cgroups, procfs
from posthouse_agent.warden_effects import Orphan

__all__ = [
    "CannotStart",
    "check_log_folder",
    "end_namespace",
    "lock_warden",
    "open_folder",
    "open_log_folder",
    "sweep_cgroup",
    "take_host_lock",
]

_STEP_S = 0.01


class CannotStart(Exception):
    """Why this warden cannot serve, and what to do. `busy`: because another one does."""

    def __init__(self, reason: str, *, busy: bool = False) -> None:
        super().__init__(reason)
        self.busy = busy


def open_folder(path: str) -> None:
    """Make the folder if it is missing; it must be ours alone. Raises CannotStart."""
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
        found = os.lstat(path)
    except OSError as error:
        raise CannotStart(f"{path}: {error.strerror}") from None
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISDIR(found.st_mode):
        raise CannotStart(f"{path} is not a folder: remove it")
    if found.st_uid != os.geteuid():
        raise CannotStart(f"{path} belongs to user {found.st_uid}: choose another folder")
    if mode & 0o077:
        raise CannotStart(f"{path} is open to others (mode {mode:04o}): chmod 0700 {path}")


def open_log_folder(path: str) -> None:
    """Make the folder of the workers' output if it is missing: readable by its group. Raises
    CannotStart; an existing one stays as its owner made it."""
    try:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        with suppress(FileExistsError):
            os.mkdir(path)
            os.chmod(path, 0o750)  # noqa: S103 - its group may read; the umask has cut that
        if not stat.S_ISDIR(os.stat(path).st_mode):
            raise CannotStart(f"{path} is not a folder: remove it")
    except OSError as error:
        raise CannotStart(f"{path}: {error.strerror}") from None


def check_log_folder(path: str) -> None:
    """For a warden whose workers are of other users: nobody else may put files, or further names
    of files, in the place of their output. Raises CannotStart."""
    found = os.stat(path)
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        raise CannotStart(
            f"{path} belongs to user {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o}: with "
            f"workers of other users it must be the warden's alone: chown it, chmod 0750 {path}"
        )


def lock_warden(path: str, timeout_s: float) -> int:
    """One warden a folder. Returns the descriptor to keep. Raises CannotStart."""
    fd = _open(path)
    if not _try_lock(fd, timeout_s, lambda: None):
        pid = os.pread(fd, 32, 0).decode(errors="replace").strip()
        os.close(fd)
        raise CannotStart(f"another warden serves this folder (pid {pid or 'unknown'})", busy=True)
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def take_host_lock(
    path: str, orphans: Iterable[Orphan], instance: str | None, timeout_s: float
) -> int:
    """Kill what an earlier warden `instance` of this boot left, and wait until it is gone.

    Returns the descriptor that every worker inherits. Raises CannotStart if something does not
    die (uninterruptible sleep): then nobody may say that it is dead.
    """
    fd = _open(path)
    found = os.fstat(fd)
    for orphan in orphans:
        if orphan.pid:
            _kill(orphan.pid, lambda pid, start=orphan.pid_start: _is(pid, start))  # type: ignore[misc]

    def kill_holders() -> None:
        for pid in procfs.pids():
            if pid != os.getpid():
                _kill(pid, lambda p: procfs.holds_lock(p, found.st_dev, found.st_ino))

    if not _try_lock(fd, timeout_s, kill_holders):
        holders = [
            p
            for p in procfs.pids()
            if p != os.getpid() and procfs.holds_lock(p, found.st_dev, found.st_ino)
        ]
        os.close(fd)
        raise CannotStart(f"{_undead(holders)} and hold {path}")
    if instance is not None:
        _kill_marked(instance, timeout_s)
    return fd


def end_namespace(pid: int, pid_start: int, timeout_s: float) -> None:
    """What an earlier tree warden, the first process of a namespace, had in it. The kernel lets
    it become a zombie only when all the others are gone, whatever they have closed or hidden; its
    locks are free before that. Raises CannotStart."""
    pidfd = procfs.kill_if(pid, lambda p: _is(p, pid_start))
    if pidfd is None:
        return
    try:
        if not select.select([pidfd], [], [], timeout_s)[0]:
            raise CannotStart(_undead([pid]))
    finally:
        os.close(pidfd)


def sweep_cgroup(folder: str, timeout_s: float) -> None:
    """What an earlier warden of this boot had in its cgroups. Raises CannotStart."""
    if left := cgroups.sweep(folder, timeout_s):
        raise CannotStart(f"{_undead(left)}, in {folder}")


def _kill_marked(instance: str, timeout_s: float) -> None:
    """Programs that workers started have closed the lock, but carry the cookie."""
    deadline_s = time.monotonic() + timeout_s

    def is_marked(pid: int) -> bool:
        process = procfs.read(pid)
        return (
            process is not None and not process.dead and procfs.marked_by(pid, instance) is not None
        )

    while marked := [p for p in procfs.pids() if p != os.getpid() and is_marked(p)]:
        if time.monotonic() >= deadline_s:
            raise CannotStart(_undead(marked))
        for pid in marked:
            _kill(pid, is_marked)
        time.sleep(_STEP_S)


def _undead(pids: list[int]) -> str:
    """For whoever has to free the host: which they are, and where the kernel holds them."""
    shown = ", ".join(f"pid {pid} {procfs.predicament(pid)}".rstrip() for pid in pids)
    return f"processes of an earlier warden do not die: {shown or 'unknown ones'}"


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotStart(f"{path}: {error.strerror}") from None


def _try_lock(fd: int, timeout_s: float, meanwhile: Callable[[], None]) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline_s:
                return False
            meanwhile()
            time.sleep(_STEP_S)
        else:
            return True


def _is(pid: int, start: int) -> bool:
    process = procfs.read(pid)
    return process is not None and process.start == start and not process.dead


def _kill(pid: int, condemned: Callable[[int], bool]) -> None:
    pidfd = procfs.kill_if(pid, condemned)
    if pidfd is not None:
        os.close(pidfd)
