"""One cgroup for each worker, where the kernel and the host's owner let the warden have them.

Owns: finding this process's own cgroup, the folders below it. Must not know: tokens' meaning,
when a worker is ended. Invariant: nothing outside `posthouse-INSTANCE` is killed or removed, and
an instance is a random number that no other warden has.

Only version 2 has cgroup.kill, which ends all processes of a group at once, forks included. Where
there is none (version 1, a read-only mount, no delegation) the session and the cookie tell what a
worker has left (docs/decisions/0006, 0016).
"""

import os
import time
from contextlib import suppress
from typing import Final

from posthouse_agent import procfs

__all__ = [
    "MODES",
    "Cgroups",
    "NoCgroups",
    "find",
    "kill",
    "members",
    "own_folder",
    "populated",
    "sweep",
    "write",
]

MODES: Final = ("auto", "on", "off")
_PREFIX: Final = "posthouse-"
_LEAF: Final = "warden"
_STEP_S: Final = 0.005


class NoCgroups(Exception):
    """Why this process has none to divide."""


class Cgroups:
    """The folder of one warden, with one of each worker in it."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._lingering: list[str] = []  # not empty when their worker was buried

    def make(self, token: int) -> str:
        """A worker's folder, empty. Raises OSError."""
        folder = f"{self.folder}/{token}"
        with suppress(FileExistsError):
            os.mkdir(folder)
        return folder

    def remove(self, folder: str) -> None:
        """Of a worker that has ended, with all that it started."""
        self._lingering.append(folder)
        self._lingering = [path for path in self._lingering if not _removed(path)]


def find(mode: str, instance: str) -> Cgroups:
    """The cgroups of this warden, as its configuration wants them. Raises NoCgroups.

    auto: if it is alone in its own cgroup, which is what a service manager's delegation looks
    like; what else lives in a cgroup that is shared is not ours to rearrange.
    """
    if mode == "off":
        raise NoCgroups('cgroups = "off"')
    own = own_folder("")
    if own is None:
        raise NoCgroups("no cgroup of version 2 is mounted here that this process is in")
    alone = _members(own) == [os.getpid()]
    if mode == "auto" and not alone:
        raise NoCgroups(f"{own} is shared with other processes: it is not delegated to this warden")
    folder = f"{own}/{_PREFIX}{instance}"
    try:
        os.mkdir(folder)
        if not os.path.exists(f"{folder}/cgroup.kill"):
            os.rmdir(folder)
            raise NoCgroups("this kernel has no cgroup.kill (Linux 5.14)")
        if alone:
            _settle(own, folder)
    except OSError as error:
        raise NoCgroups(f"{error.filename or folder}: {error.strerror}") from None
    return Cgroups(folder)


def _settle(own: str, folder: str) -> None:
    """Move out of the way: only a cgroup without processes of its own may count the memory of
    each of its children, and that count says which worker ran out of it."""
    leaf = f"{folder}/{_LEAF}"
    os.mkdir(leaf)
    write(f"{leaf}/cgroup.procs", "0")
    for path in (own, folder):
        with suppress(OSError):  # not every host counts memory
            write(f"{path}/cgroup.subtree_control", "+memory")


def own_folder(controller: str) -> str | None:
    """The folder of this process's own cgroup: in the hierarchy of version 2 (""), or in the one
    of version 1 that has this controller. None if there is none, or it is not mounted here."""
    path = None
    for line in procfs.slurp("/proc/self/cgroup").decode().splitlines():
        _, controllers, found = line.split(":", 2)
        if controller in controllers.split(","):
            path = found
    if path is None:
        return None
    for line in procfs.slurp("/proc/self/mountinfo").decode().splitlines():
        mount, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        if kind != ("cgroup" if controller else "cgroup2"):
            continue
        if controller and controller not in options.split(","):
            continue
        root, point = mount.split(" ")[3:5]
        if path == root or path.startswith(root.rstrip("/") + "/"):
            return (point + "/" + path[len(root) :].strip("/")).rstrip("/")
    return None


def populated(folder: str) -> bool:
    """Whether a process, not counting zombies, is in this cgroup or below it."""
    try:
        return b"populated 1" in procfs.slurp(f"{folder}/cgroup.events")
    except OSError:
        return False


def members(folder: str) -> list[int]:
    """The processes in it and below it."""
    found = _members(folder)
    with suppress(OSError):
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                found += members(entry.path)
    return found


def kill(folder: str) -> None:
    """All of them, at once."""
    with suppress(OSError):
        write(f"{folder}/cgroup.kill", "1")


def sweep(folder: str, timeout_s: float) -> list[int]:
    """End what an earlier warden left in its folder, and remove it. Returns what does not die."""
    if not os.path.basename(folder).startswith(_PREFIX):
        return []
    deadline_s = time.monotonic() + timeout_s
    kill(folder)
    while populated(folder):
        if time.monotonic() >= deadline_s:
            return members(folder)
        time.sleep(_STEP_S)
    _removed(folder)
    return []


def write(path: str, text: str) -> None:
    """Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _members(folder: str) -> list[int]:
    try:
        return [int(pid) for pid in procfs.slurp(f"{folder}/cgroup.procs").split()]
    except OSError:
        return []


def _removed(folder: str) -> bool:
    """Whether it is gone, with the groups that the worker made below it."""
    with suppress(OSError):
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                _removed(entry.path)
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
