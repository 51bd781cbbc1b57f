"""One agent a folder: agent.lock.

Owns: the lock's descriptor; makes the folder. Must not know: the loop. Invariant: as long as the
agent runs it holds a lock on the file that is at this path now, but for the seconds between the
folder's deletion and the next `renew`.
"""

import fcntl
import os
from pathlib import Path

from posthouse import paths
from posthouse.errors import ConfigError, PosthouseError, RefusedError

__all__ = ["FolderLock"]


class FolderLock:
    """Taken by the constructor, which raises ConfigError or RefusedError."""

    def __init__(self, runtime_dir: str) -> None:
        self._path = Path(runtime_dir, "agent.lock")
        self._descriptor = self._take()

    def renew(self) -> str:
        """Take the lock again if its file is gone, with its folder if need be. Returns what
        happened, or nothing. For the I/O thread."""
        try:
            there = self._path.stat()
            ours = os.fstat(self._descriptor)
            if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                return ""
        except FileNotFoundError:
            pass
        except OSError as error:
            return f"{self._path}: {error.strerror}"
        try:
            new = self._take()
        except PosthouseError as error:
            return f"{self._path} was deleted: {error}"
        os.close(self._descriptor)
        self._descriptor = new
        return f"{self._path} was deleted, and is made anew"

    def close(self) -> None:
        os.close(self._descriptor)

    def _take(self) -> int:
        paths.private_dir(self._path.parent)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            lock = os.open(self._path, flags, 0o600)
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be locked: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            other = os.read(lock, 32).decode(errors="replace").strip()
            os.close(lock)
            raise RefusedError(
                f"{self._path.parent}: another agent runs here (pid {other or 'unknown'})",
                hint="one agent a host: end that one, or give this one another runtime_dir",
            ) from None
        # Our pid, for people.
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        return lock
