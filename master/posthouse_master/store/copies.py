"""A copy of the registry while its master runs, and a copy put back as a new timeline.

Owns: the backup's file and what a restore changes in it. Must not know: what the rows mean, how a
master goes on after a restore (recovery).

Invariant: a file that carries the name of a backup was read whole and found good, and has every
commit that was acknowledged before it was begun. What a restore replaces is kept beside it.
"""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Final

from posthouse_master.store import schema
from posthouse_master.store.base import HostRow, RegistryRefused, SpecRow, first_number
from posthouse_master.store.folder import Folder, marked
from posthouse_master.store.schema import Damaged, Head
from posthouse_master.store.sqlite import (
    APPLICATION_ID,
    SCHEMA_VERSION,
    put_in_place,
    write_anew,
)

__all__ = ["Copy", "backup", "restore"]

_FILE: Final = "registry.sqlite"
_BUSY_S: Final = 5.0  # for a master that is just beginning or ending


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """What is in a registry: which one, how far, how much."""

    registry: str
    timeline: int
    epoch: int
    commits: int
    registrations: int
    kept: Path | None = None  # what a restore replaced


def backup(state_dir: str | Path, file: str | Path, *, overwrite: bool = False) -> Copy:
    """Copy the registry of `state_dir` into `file` (mode 0600), whether its master runs or not.
    The file is there when this returns, checked and durable, or as it was before. Raises
    RegistryRefused."""
    source, target = Path(state_dir).absolute() / _FILE, Path(file).absolute()
    if target == source:
        raise RegistryRefused(f"{target}: is the registry itself", hint="choose another file")
    if target.exists() and not (overwrite and target.is_file()):
        raise _exists(target)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    mark = marked(source.parent)  # before the copy: what is acknowledged then, has to be in it
    try:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        _copy(source, part)
        head, count = _check(part)
        if mark is not None and (head.registry != mark.registry or head.commits < mark.commits):
            raise RegistryRefused(
                f"{source}: ends with commit {head.commits} of registry {head.registry}, but "
                f"commit {mark.commits} of {mark.registry} was acknowledged",
                hint="its -wal file is missing or damaged",
            )
        _put(part, target, overwrite=overwrite)
    except (OSError, sqlite3.Error) as error:
        raise RegistryRefused(f"{source}: cannot be copied to {target}: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    return _told(head, count)


def restore(state_dir: str | Path, file: str | Path, *, complete: bool = False) -> Copy:
    """Put the registry in `file` in the place of that of `state_dir`, whose master must be down,
    as a new timeline. `complete`: no host has joined since the copy was made. Raises
    RegistryRefused, and then nothing has changed."""
    source = Path(file).absolute()
    try:
        with closing(Folder(state_dir)) as folder:
            with closing(_open(source)) as database:
                head, rows = _rows(database, source)
                head = _begun_anew(folder, head, complete=complete)
                fresh, head = write_anew(folder, chain([head], map(_doubted, rows)))
            _, count = _check(fresh)
            kept = _keep(folder, head.timeline)
            put_in_place(folder, fresh, head)
    except (OSError, sqlite3.Error) as error:
        raise RegistryRefused(f"{source}: cannot be restored: {error}") from error
    return _told(head, count, kept)


# --- the copy ---


def _copy(source: Path, part: Path) -> None:
    with closing(_open(source)) as found, closing(sqlite3.connect(part)) as copy:
        found.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # raises where locked
        found.backup(copy)  # all pages of one moment: a master that writes meanwhile adds none
        copy.execute("PRAGMA journal_mode = DELETE").fetchall()  # one file, without a -wal
    descriptor = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open(file: Path) -> sqlite3.Connection:
    if not file.is_file():
        raise RegistryRefused(f"{file}: is no file", hint="name the registry's folder or a backup")
    uri = f"{file.as_uri()}?mode=ro"
    database = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=_BUSY_S)
    try:
        (found,) = database.execute("PRAGMA application_id").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
    except sqlite3.Error as error:
        database.close()
        raise RegistryRefused(f"{file}: is no registry of posthouse: {error}") from error
    if found != APPLICATION_ID or version > SCHEMA_VERSION:
        database.close()
        what = "is no registry of posthouse"
        if found == APPLICATION_ID:
            what = f"has schema version {version}, this posthouse knows up to {SCHEMA_VERSION}"
        raise RegistryRefused(f"{file}: {what}", hint="choose another file")
    return database


def _check(file: Path) -> tuple[Head, int]:
    """Read all of it, each row with its sum. Its head, and how many registrations there are."""
    with closing(_open(file)) as database:
        head, rows = _rows(database, file)
        return head, sum(isinstance(row, SpecRow) for row in rows)


def _rows(database: sqlite3.Connection, file: Path) -> tuple[Head, Iterator[Any]]:
    """The head, and then all other rows. Raises RegistryRefused, the iterator too."""
    found = [str(row[0]) for row in database.execute("PRAGMA integrity_check(5)")]
    if found != ["ok"]:
        raise _damaged(file, "; ".join(found)[:500])
    if database.execute("PRAGMA foreign_key_check").fetchone() is not None:
        raise _damaged(file, "states without registrations")
    try:
        if not schema.is_current(database):
            older = list(schema.read_older(database))
            head = schema.one_head(older)
            return head, (row for row in older if row is not head)
        head = schema.read_head(database)
    except (Damaged, ValueError, TypeError, sqlite3.Error) as error:
        raise _damaged(file, str(error)) from error
    return head, _others(database, file)


def _others(database: sqlite3.Connection, file: Path) -> Iterator[Any]:
    try:
        for row in schema.ROWS:
            yield from schema.read(database, row)
    except (Damaged, ValueError, TypeError, sqlite3.Error) as error:
        raise _damaged(file, str(error)) from error


def _put(part: Path, target: Path, *, overwrite: bool) -> None:
    if overwrite:
        part.replace(target)
    else:
        try:
            os.link(part, target)  # unlike a rename, it never takes another's place
        except FileExistsError:
            raise _exists(target) from None
    descriptor = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- the new timeline ---


def _begun_anew(folder: Folder, head: Head, *, complete: bool) -> Head:
    """Above all that the hosts can have seen: what is known of it, and what is not, because the
    registry that was lost may have gone on for long and may have been a restored one itself."""
    mark = folder.mark()
    if mark is not None and mark.registry != head.registry:
        raise RegistryRefused(
            f"the backup is of registry {head.registry}, {folder.path} is of {mark.registry}",
            hint="the hosts of one refuse the other; choose another state_dir",
        )
    heads = [head]
    with suppress(RegistryRefused, sqlite3.Error, Damaged), closing(_open(folder.file)) as old:
        heads.append(schema.read_head(old))
    timeline = max(*(each.timeline + 1 for each in heads), int(time.time()))
    first = first_number(timeline)
    return replace(
        head,
        timeline=timeline,
        epoch=max(first, *(each.epoch for each in heads)),
        token=max(first, *(each.token for each in heads)),
        commits=max(mark.commits if mark else 0, *(each.commits for each in heads)) + 1,
        recovery="known" if complete else "any",
    )


def _doubted(row: Any) -> Any:
    """Nobody knows what a host was granted after the backup: a lease that never ends, until the
    host says which one is in force. It must outlive masters, so it is written here."""
    return replace(row, lease_s=0.0) if isinstance(row, HostRow) else row


def _keep(folder: Folder, timeline: int) -> Path | None:
    """Set what is replaced aside, with its -wal file. The name of the registry always means a
    whole one: until the new one takes it, the old one, which says so if its -wal file is gone."""
    if not folder.file.exists():
        return None
    kept = folder.file.with_name(f"{_FILE}.before-{timeline}")
    for aside in folder.asides():
        if aside.name.endswith("-shm"):
            aside.unlink()
        else:
            aside.rename(kept.with_name(aside.name.replace(_FILE, kept.name)))
    os.link(folder.file, kept)
    return kept


def _told(head: Head, registrations: int, kept: Path | None = None) -> Copy:
    return Copy(
        registry=head.registry,
        timeline=head.timeline,
        epoch=head.epoch,
        commits=head.commits,
        registrations=registrations,
        kept=kept,
    )


def _exists(target: Path) -> RegistryRefused:
    return RegistryRefused(f"{target}: is there already", hint="--force writes over a file")


def _damaged(file: Path, what: str) -> RegistryRefused:
    return RegistryRefused(f"{file}: is damaged: {what}", hint="use an older backup")
