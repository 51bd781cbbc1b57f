"""Workers' output files, for the agent: pages for READ_LOG, and the bounds of files and folder.

Owns: what is read, cut and removed in the log folder; runs only in the I/O thread. Must not know:
who asked. Invariant: never follows a link, never touches anything but regular files that are
named as output; what is removed is the oldest of a file, or a file of a worker that is no more.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from posthouse import limits
from posthouse_agent import output
from posthouse_agent.effects import LogRead, Note, ReadLogFile

__all__ = ["Looked", "look", "read_page", "tidy"]

WorkerKey = tuple[int, int]  # slot and generation


def read_page(log_dir: str, asked: ReadLogFile) -> LogRead:
    """The page, or why there is none. A worker that has written nothing has an empty output."""
    name = output.name(asked.slot, asked.generation)
    try:
        descriptor = output.open_output(str(Path(log_dir, name)))
    except FileNotFoundError:
        return LogRead(asked.read, offset=max(asked.offset, 0))
    except OSError as error:
        return _failed(asked, name, error)
    try:
        return _read(descriptor, asked)
    except OSError as error:
        return _failed(asked, name, error)
    finally:
        os.close(descriptor)


def _read(descriptor: int, asked: ReadLogFile) -> LogRead:
    limit = min(asked.limit, limits.log_read_bytes_max)
    size = os.fstat(descriptor).st_size
    wanted = max(0, size - limit) if asked.offset < 0 else asked.offset
    start = max(wanted, output.first_kept(descriptor))
    data = os.pread(descriptor, limit, start) if limit and start < size else b""
    # More may have been written since the size was asked for.
    size = max(size, start + len(data)) if data else size
    return LogRead(asked.read, offset=start, data=data, size=size, lost=start - wanted)


def _failed(asked: ReadLogFile, name: str, error: OSError) -> LogRead:
    return LogRead(asked.read, offset=max(asked.offset, 0), error=f"{name}: {error.strerror}")


# --- bounds ---


@dataclass(frozen=True, slots=True)
class Looked:
    """What a look at the files led to."""

    busy: bool  # something was cut: look again soon
    troubled: frozenset[WorkerKey] = frozenset()  # whose file could not be cut; new ones are noted
    notes: tuple[Note, ...] = ()


def look(log_dir: str, bounds: Mapping[WorkerKey, int], told: frozenset[WorkerKey]) -> Looked:
    """Cut each of these workers' files to its bound. `told`: whose trouble has been told."""
    busy = False
    notes: list[Note] = []
    troubled: set[WorkerKey] = set()
    for key, bytes_max in bounds.items():
        try:
            busy |= _cut(log_dir, key, bytes_max) > 0
        except FileNotFoundError:
            continue
        except OSError as error:
            troubled.add(key)
            if key not in told:
                why = "its file system punches no holes: bounded when the worker starts next"
                reason = why if output.cannot_punch(error) else str(error.strerror)
                notes.append(_note("log.unbounded", key, reason=reason))
    return Looked(busy, frozenset(troubled), tuple(notes))


def _cut(log_dir: str, key: WorkerKey, bytes_max: int) -> int:
    path = Path(log_dir, output.name(*key))
    if path.lstat().st_size <= bytes_max:
        return 0
    descriptor = output.open_output(str(path), os.O_RDWR)
    try:
        return output.cut(descriptor, bytes_max)
    finally:
        os.close(descriptor)


def _note(name: str, key: WorkerKey, **fields: object) -> Note:
    return Note(name, {"worker": f"{key[0]}.{key[1]}", **fields})


@dataclass(frozen=True, slots=True)
class _File:
    key: WorkerKey
    name: str
    used: int
    changed_s: float


def tidy(
    log_dir: str, running: frozenset[WorkerKey], total_max: int, free_min: int
) -> tuple[Note, ...]:
    """Bring the folder to `total_max` bytes and limits.log_files_max files, and leave `free_min`
    bytes of the disk free, if what it holds is enough for that.

    First go the files of registrations whose slot has another one now, oldest first; then the
    older lines of workers that do not run; then of those that do.
    """
    try:
        files = sorted(_files(log_dir), key=lambda f: f.changed_s)
        disk = os.statvfs(log_dir)
    except OSError:
        return ()  # somebody cleared the folder away; the next start of a worker makes it anew
    excess = max(
        sum(f.used for f in files) - total_max,
        free_min - disk.f_bavail * disk.f_frsize,
    )
    surplus = len(files) - limits.log_files_max
    if excess <= 0 and surplus <= 0:
        return ()
    newest = _newest((f.key for f in files), running)
    removed = shortened = freed = 0
    for file in files:
        if freed >= excess and removed >= surplus:
            break
        if file.key[1] < newest[file.key[0]]:
            Path(log_dir, file.name).unlink(missing_ok=True)
            removed, freed = removed + 1, freed + file.used
    kept = [f for f in files if f.key[1] == newest[f.key[0]]]
    for file in sorted(kept, key=lambda f: (f.key in running, f.changed_s)):
        if freed >= excess:
            break
        try:
            dropped = _cut(log_dir, file.key, limits.log_bytes_min)
        except OSError:
            continue  # told by `look`, if it is a file that matters
        shortened, freed = shortened + (dropped > 0), freed + min(dropped, file.used)
    if not removed and not shortened:
        return ()
    fields = {"removed": removed, "shortened": shortened, "bytes": freed}
    return (Note("logs.tidied", fields),)


def _files(log_dir: str) -> Iterable[_File]:
    with os.scandir(log_dir) as entries:
        for entry in entries:
            key = output.parse_name(entry.name)
            if key is not None and entry.is_file(follow_symlinks=False):
                found = entry.stat(follow_symlinks=False)
                yield _File(key, entry.name, found.st_blocks * 512, found.st_mtime)


def _newest(keys: Iterable[WorkerKey], running: Iterable[WorkerKey]) -> dict[int, int]:
    """The highest generation of each slot that is known here: those before it are retired."""
    newest: dict[int, int] = {}
    for slot, generation in (*keys, *running):
        newest[slot] = max(generation, newest.get(slot, 0))
    return newest
