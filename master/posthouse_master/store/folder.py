"""The folder of a registry: its lock, the mark of what was acknowledged, which files may be opened.

Owns: registry.lock and what is written in it, the look at a file before SQLite has it. Must not
know: tables, rows, SQL.

Invariant: one process owns the folder (flock), and the mark never says more than is durable: it is
written when a commit has returned. So a registry that has fewer commits than its mark has lost
acknowledged ones: its -wal file was removed or damaged, or an old copy was put in its place.
"""

import fcntl
import os
import re
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from posthouse.errors import StoreError
from posthouse_master.store.base import RegistryRefused

__all__ = ["Folder", "Mark", "marked"]

_FILE: Final = "registry.sqlite"
_LOCK: Final = "registry.lock"
_MAGIC: Final = b"SQLite format 3\0"
_MARK: Final = re.compile(rb"(registry ([0-9a-f]{32}) commit ([0-9]{20})) ([0-9a-f]{8})\n")
_OLD_MARK: Final = re.compile(rb"registry ([0-9a-f]{32})\n")
_WITH_A_BACKUP: Final = "put a backup in its place with `posthouse restore FILE`"


@dataclass(frozen=True, slots=True)
class Mark:
    """What is known to have been acknowledged."""

    registry: str
    commits: int

    def line(self) -> bytes:
        text = f"registry {self.registry} commit {self.commits:020}".encode()
        return b"%s %08x\n" % (text, zlib.crc32(text))


class Folder:
    """A locked state folder. Raises RegistryRefused, OSError."""

    def __init__(self, state_dir: str | Path) -> None:
        self.path = Path(state_dir).absolute()
        self.file = self.path / _FILE
        self._lock = -1
        self._held = -1
        self._identity: tuple[int, int] | None = None
        self._locked: tuple[int, int] | None = None
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(self.path, os.R_OK | os.W_OK | os.X_OK):
            raise RegistryRefused(
                f"{self.path}: may not be written by this user",
                hint="check its owner and mode, and that its file system is not read-only",
            )
        self._lock = _take_lock(self.path / _LOCK, os.O_CREAT)

    def close(self) -> None:
        """After SQLite's own closing: until then its locks would go with ours."""
        for descriptor in (self._held, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._held = self._lock = -1

    # --- before SQLite opens the file ---

    def look(self) -> bool:
        """Whether the registry is there; False: there never was one, so it may be made."""
        try:
            found = self.file.lstat()
        except FileNotFoundError:
            self._never_was()
            return False
        if stat.S_ISLNK(found.st_mode):
            self.refuse("is a symbolic link", "put the file itself there, or link its folder")
        if not stat.S_ISREG(found.st_mode):
            self.refuse("is not a file", "choose another state_dir")
        if not os.access(self.file, os.R_OK | os.W_OK):
            self.refuse("may not be written by this user", "check its owner and mode")
        return True

    def _never_was(self) -> None:
        mark = self.mark()
        left = sorted(path.name for path in self.asides())
        if mark is None and not left:
            return
        raise RegistryRefused(
            f"{self.file} is gone, but there was a registry here"
            + (f" ({mark.registry})" if mark else ""),
            hint=f"{_WITH_A_BACKUP}; to begin an empty one, in which nothing that runs is known, "
            f"remove {_LOCK}{''.join(f', {name}' for name in left)}",
        )

    def hold(self) -> None:
        """Lock the registry itself, too: whoever removes the lock file has not ended its master
        (N14). Others may read it, for a backup. Raises RegistryRefused."""
        if self._held >= 0:
            os.close(self._held)  # of a file that was just written anew
        self._held = _take_lock(self.file, 0)

    def version(self, application_id: int, newest: int) -> int:
        """The schema version in the header of the file."""
        # Closed before SQLite opens the file: closing it later would drop SQLite's own locks.
        with self.file.open("rb") as file:
            header = file.read(100)
        if header[:16] != _MAGIC or len(header) < 100:
            if header[:16] and not _MAGIC.startswith(header[:16]):
                self.refuse("is no registry of posthouse", "choose another state_dir")
            self.damaged("the file is cut off")
        if int.from_bytes(header[68:72]) != application_id:
            self.refuse("is a database of another program", "choose another state_dir")
        version = int.from_bytes(header[60:64])
        if version > newest:
            self.refuse(
                f"has schema version {version}, this posthouse knows up to {newest}",
                "start the newer posthouse that wrote it",
            )
        return version

    def asides(self) -> set[Path]:
        """The files that SQLite keeps beside the registry and that are there now."""
        names = (self.file.with_name(f"{_FILE}-{kind}") for kind in ("wal", "shm", "journal"))
        return {path for path in names if path.exists()}

    def refuse(self, what: str, hint: str) -> NoReturn:
        raise RegistryRefused(f"{self.file}: {what}", hint=hint)

    def damaged(self, what: str) -> NoReturn:
        self.refuse(
            f"is damaged: {what}",
            f"{_WITH_A_BACKUP}; nothing was changed, and no empty registry was made",
        )

    # --- the mark ---

    def mark(self) -> Mark | None:
        """What the lock file says; None if nothing that can be relied on."""
        return _mark_of(os.pread(self._lock, 256, 0))

    def check(self, registry: str, commits: int) -> None:
        """Whether everything that was acknowledged is in the registry that is open."""
        mark = self.mark()
        if mark is None:
            return
        if mark.registry != registry:
            self.refuse(
                f"is registry {registry}, here was {mark.registry}",
                f"put the right one in its place; to go on with this one, remove {_LOCK}",
            )
        if commits < mark.commits:
            self.refuse(
                f"ends with commit {commits}, but commit {mark.commits} was acknowledged",
                f"its file {_FILE}-wal was removed or damaged, or an old copy was put in its "
                "place: put back the newest copy with its own -wal file; to go on without what is "
                f"missing, use `posthouse restore {self.file}`",
            )

    def acknowledge(self, mark: Mark) -> None:
        """A commit has returned. Not synced: after a power cut an older mark is as true."""
        os.pwrite(self._lock, mark.line(), 0)

    def engrave(self, mark: Mark) -> None:
        """The mark of a registry that was made just now, durably."""
        os.ftruncate(self._lock, 0)
        self.acknowledge(mark)
        os.fsync(self._lock)

    # --- while it is open ---

    def opened(self) -> None:
        """Remember which file it is."""
        self._identity = _identity(self.file)
        self._locked = _identity(self._lock)

    def still_there(self) -> None:
        """SQLite goes on writing to a file that somebody removed, and nothing of it would be found
        again: what is acknowledged has to be in the file that the next master opens, and so has
        the word that it was (N15)."""
        for path, identity in ((self.file, self._identity), (self.path / _LOCK, self._locked)):
            if _identity(path) != identity:
                raise StoreError(
                    f"{path}: was removed or replaced while it was open",
                    hint="put it back; workers go on, and the hosts tell a new master what runs",
                )

    def sync(self) -> None:
        """Make durable which files there are."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def marked(state_dir: Path) -> Mark | None:
    """What the lock file of a registry says, whoever has it locked."""
    try:
        return _mark_of((state_dir / _LOCK).read_bytes())
    except FileNotFoundError:
        return None


def _mark_of(said: bytes) -> Mark | None:
    found = _MARK.fullmatch(said)
    if found is not None and int(found[4], 16) == zlib.crc32(found[1]):
        return Mark(found[2].decode(), int(found[3]))
    old = _OLD_MARK.fullmatch(said)
    return Mark(old[1].decode(), 0) if old is not None else None


def _identity(file: Path | int) -> tuple[int, int] | None:
    try:
        found = os.stat(file)  # noqa: PTH116 - of a descriptor too
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _take_lock(path: Path, flags: int) -> int:
    flags |= os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RegistryRefused(
            f"{path}: another master has this registry open",
            hint="one master owns a registry; end the other, or choose another state_dir",
        ) from None
    return descriptor
