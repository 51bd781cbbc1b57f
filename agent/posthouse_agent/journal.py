"""The warden's memory on disk: what was meant to start, what started, how it ended.

Owns: the journal file, its lines, its space. Must not know: what an entry means (warden_core).
Invariant: append() leaves either the whole line or nothing; a line that was being written when the
warden died is the last one and is dropped. Written to the page cache only: what must be survived
is the warden's death; the host's is seen by its boot id.
"""

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, fields
from errno import ENOSPC, EOPNOTSUPP
from typing import Any

from posthouse import limits
from posthouse_agent import native
from posthouse_agent.warden_effects import (
    Confirmed,
    Entry,
    Exited,
    Intent,
    Mark,
    NotForked,
    ReadyNoted,
    Started,
    Stopping,
)

__all__ = ["Head", "Journal", "read_journal"]

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

_CLASSES: dict[str, type[Any]] = {
    cls.__name__: cls
    for cls in (Intent, NotForked, Started, ReadyNoted, Stopping, Exited, Confirmed, Mark)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """First line: which boot and which warden the entries are of, where its cgroups are, and the
    first process of its namespace (0: it has none)."""

    boot_id: str
    instance: str
    cgroup: str = ""
    pid: int = 0
    pid_start: int = 0


class Journal:
    """An append-only file of JSON lines, rewritten now and then."""

    def __init__(self, path: str, head: Head) -> None:
        self._path = path
        self._head = head
        self._fd = -1
        self._size = 0
        self._reserved = 0  # the file's blocks are ours up to this offset
        self._rewrite_at = 0
        self.behind = False  # an entry could not be written: only a rewrite makes it whole

    @property
    def wants_rewrite(self) -> bool:
        return self.behind or self._size >= self._rewrite_at

    def look_for_it(self) -> bool:
        """Whether its file is gone, or another one in its place: then all of it is missing."""
        ours = os.fstat(self._fd)
        try:
            found = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            self.behind = True
        else:
            self.behind |= (found.st_dev, found.st_ino) != (ours.st_dev, ours.st_ino)
        return self.behind

    def append(self, entry: Entry) -> None:
        """Add a line. Raises OSError, and then the file is as it was."""
        if self.behind:
            raise OSError(ENOSPC, "an earlier entry is still missing")
        data = _line(entry)
        written = 0
        try:
            written = os.write(self._fd, data)
            if written < len(data):
                raise OSError(ENOSPC, os.strerror(ENOSPC))
        except OSError:
            self.behind = True
            if written:
                os.ftruncate(self._fd, self._size)
            raise
        self._size += written

    def make_room(self, length: int) -> bool:
        """Whether the next `length` bytes are sure to fit on the disk."""
        if self.behind:
            return False
        end = self._size + length
        if end <= self._reserved:
            return True
        ahead = max(length, limits.journal_ahead_bytes)
        try:
            native.reserve_space(self._fd, self._size, ahead)
        except OSError as error:
            # A file system without fallocate gets no promise, and the write its chance.
            return error.errno == EOPNOTSUPP
        self._reserved = self._size + ahead
        return True

    def rewrite(self, entries: Iterable[Entry]) -> None:
        """Replace the whole by `entries`, at once or not at all. Raises OSError."""
        new = self._path + ".new"
        fd = os.open(
            new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW, 0o600
        )
        try:
            data = b"".join([_line(self._head), *map(_line, entries)])
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.replace(new, self._path)
        except OSError:
            os.close(fd)
            with suppress(OSError):
                os.unlink(new)
            raise
        if self._fd != -1:
            os.close(self._fd)
        self._fd, self._size, self._reserved, self.behind = fd, len(data), 0, False
        self._rewrite_at = max(2 * self._size, self._size + limits.journal_slack_bytes)


def read_journal(path: str) -> tuple[Head | None, list[Entry], int]:
    """Head, entries, and how many lines made no sense. (None, [], 0) if there is no file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None, [], 0
    with open(fd, "rb") as file:
        lines = file.read().split(b"\n")
    lines.pop()  # what follows the last newline was being written
    head: Head | None = None
    entries: list[Entry] = []
    bad = 0
    for line in lines:
        record = _parse(line)
        if record is None:
            bad += 1
        elif isinstance(record, Head):
            head = record
        else:
            entries.append(record)
    return head, entries, bad


def _line(record: Head | Entry) -> bytes:
    # not asdict(): its deep copies would be most of a warden's work
    values = {name: getattr(record, name) for name in record.__slots__}
    text = _encode({"op": type(record).__name__, **values})
    return text.encode(errors="backslashreplace") + b"\n"


def _parse(line: bytes) -> Any:
    try:
        values = json.loads(line)
        op = values.pop("op")
        if op == "Head":
            return Head(
                boot_id=values["boot_id"],
                instance=values["instance"],
                cgroup=str(values.get("cgroup", "")),
                pid=int(values.get("pid", 0)),
                pid_start=int(values.get("pid_start", 0)),
            )
        cls = _CLASSES[op]
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
