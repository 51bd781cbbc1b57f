"""The registry in one SQLite file: the store of a single master.

Owns: the connection, its transactions, its checkpoints, what an error of it means. Must not know:
what the rows mean.

Invariant: what `commit` returned from survives a power cut (WAL, synchronous=FULL), and an empty
registry is never put where one was: a file that is missing, foreign, newer, damaged or has lost
commits is refused with the way out, because an empty registry would mean that everything that runs
is unknown.

A disk that is full is StoreFull, once the reserve is spent: the transaction is undone, and the
store stays usable. After any other error of the disk nobody knows what is durable, so it is a
StoreError and ends the process; the next one reads what is there.
"""

import errno
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from posthouse import limits
from posthouse.errors import StoreError
from posthouse_master.store import schema
from posthouse_master.store.base import (
    EpochLost,
    EventRow,
    GroupRow,
    HostRow,
    Op,
    PutSlot,
    RegistryRefused,
    RequestRow,
    Snapshot,
    SpecRow,
    StateRow,
    StoreFull,
    Term,
)
from posthouse_master.store.folder import Folder, Mark
from posthouse_master.store.reserve import Reserve
from posthouse_master.store.schema import Damaged, Head

__all__ = ["APPLICATION_ID", "SCHEMA_VERSION", "SqliteStore", "put_in_place", "write_anew"]

APPLICATION_ID: Final = 0x506F_7374  # "Post"
SCHEMA_VERSION: Final = schema.VERSION
_CACHE_KIB: Final = 16_384  # pages; the registry is read once, at the start
_FULL: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
_WAY_OUT: Final = (
    "check the disk and the rights, or put a backup of the registry in its place; "
    "nothing was changed"
)


_T = TypeVar("_T")
_PAGE_BYTES: Final = 4096  # SQLite's own


class SqliteStore:
    """An open registry in `state_dir`, made if there has never been one. Raises RegistryRefused."""

    def __init__(self, state_dir: str | Path) -> None:
        self._path = Path(state_dir)
        self._folder: Folder | None = None
        self._database: sqlite3.Connection | None = None
        self._rows_since = 0  # written since the last checkpoint
        try:
            self._folder = folder = Folder(state_dir)
            self._path = folder.file
            self.reserve = Reserve(folder.path)
            try:
                self._database = _open(folder)
            except (OSError, sqlite3.Error) as error:
                if not (_is_full(error) and self.reserve.spend()):
                    raise
                self._database = _open(folder)
            self._rows_since = self._left_in_wal()
        except RegistryRefused:
            self.close()
            raise
        except (OSError, sqlite3.Error) as error:
            self.close()
            if _is_full(error):
                raise self._full(error) from error
            raise RegistryRefused(
                f"{self._path}: cannot be opened: {error}", hint=_WAY_OUT
            ) from error
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"SqliteStore({str(self._path)!r})"

    # --- the protocol ---

    def begin_term(self) -> Term:
        return self._with_reserve(self._begin_term)

    def _begin_term(self) -> Term:
        with self._transaction() as (folder, database):
            head = schema.read_head(database)
            head = replace(head, epoch=head.epoch + 1, commits=head.commits + 1)
            schema.write(database, head)
        folder.acknowledge(Mark(head.registry, head.commits))
        return head.term

    def load(self) -> Snapshot:
        with self._transaction() as (folder, database):
            try:
                head = schema.read_head(database)
                rows: dict[type[Any], list[Any]] = {
                    row: list(schema.read(database, row)) for row in schema.ROWS
                }
            except (Damaged, ValueError, TypeError, sqlite3.Error) as error:
                folder.damaged(str(error))  # also values that no version ever wrote
        return Snapshot(
            term=head.term,
            counters=head.counters,
            specs=rows[SpecRow],
            states=rows[StateRow],
            slots=[(row.slot, row.generation) for row in rows[PutSlot]],
            events=rows[EventRow],
            hosts=rows[HostRow],
            groups=rows[GroupRow],
            requests=rows[RequestRow],
        )

    def commit(self, epoch: int, ops: Sequence[Op]) -> None:
        self._with_reserve(partial(self._commit, epoch, ops))

    def _commit(self, epoch: int, ops: Sequence[Op]) -> None:
        with self._transaction() as (folder, database):
            head = _led(folder, database, epoch)
            for op in ops:
                head = schema.apply(database, head, op)
            head = replace(head, commits=head.commits + 1)
            schema.write(database, head)
        folder.acknowledge(Mark(head.registry, head.commits))
        self._rows_since += len(ops) + 1
        if self._rows_since >= limits.checkpoint_rows:
            self._checkpoint(database)

    def check(self, epoch: int) -> None:
        with self._transaction() as (folder, database):
            _led(folder, database, epoch)

    def close(self) -> None:
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
            self._database = None
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    # --- errors ---

    def _with_reserve(self, act: Callable[[], _T]) -> _T:
        """Once more, with the room of the reserve, if there was none: nothing of it is durable."""
        try:
            return act()
        except StoreFull:
            if not self.reserve.spend():
                raise
            return act()

    @contextmanager
    def _transaction(self) -> Iterator[tuple[Folder, sqlite3.Connection]]:
        folder, database = self._folder, self._database
        if folder is None or database is None:
            raise StoreError("the registry is closed")
        try:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield folder, database
                database.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    if database.in_transaction:
                        database.execute("ROLLBACK")
                raise
        except Damaged as error:
            folder.damaged(str(error))
        except (sqlite3.Error, sqlite3.Warning, OSError) as error:
            if self._has_no_room(error):
                raise self._full(error) from error
            # COMMIT that failed may or may not be on the disk: only a new opening can tell.
            raise StoreError(f"{self._path}: {error}", hint=_WAY_OUT) from error

    def _has_no_room(self, error: Exception) -> bool:
        """SQLite tells a full disk from others, but not a quota that is used up."""
        if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_IOERR_WRITE:
            return _is_full(error)
        try:
            _write_probe(self._path.with_name("registry.probe"))
        except OSError as found:
            return _is_full(found)
        return False

    def _full(self, error: Exception) -> StoreFull:
        free = self.reserve.free_bytes
        return StoreFull(
            f"{self._path}: {error}: {free:,} bytes are free",
            hint="make room there; nothing that was acknowledged is lost",
            path=str(self._path),
            free_bytes=free,
        )

    def _left_in_wal(self) -> int:
        """What earlier masters have left there counts, or those that are killed again and again,
        none of which writes enough for a checkpoint, would fill the disk. A page for a row."""
        try:
            size = self._path.with_name(f"{self._path.name}-wal").stat().st_size
        except FileNotFoundError:
            return 0
        return size // _PAGE_BYTES

    def _checkpoint(self, database: sqlite3.Connection) -> None:
        """Move the -wal file's pages into the registry, so that it begins anew and does not grow.
        SQLite's own checkpoints would keep an error to themselves; an fsync that failed here ends
        the process as any other does. Without room for it the pages stay where they are."""
        try:
            database.execute("PRAGMA wal_checkpoint").fetchall()
            self._rows_since = 0
        except sqlite3.Error as error:
            if not self._has_no_room(error):
                raise StoreError(f"{self._path}: {error}", hint=_WAY_OUT) from error
            self._rows_since = limits.checkpoint_rows // 2  # tried again, not at every commit


def _led(folder: Folder, database: sqlite3.Connection, epoch: int) -> Head:
    """The head of a registry that is still that of this term. Raises EpochLost, StoreError."""
    folder.still_there()
    head = schema.read_head(database)
    if head.epoch != epoch:
        raise EpochLost(f"this master is of epoch {epoch}, the registry of {head.epoch}")
    return head


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "sqlite_errorcode", 0) in _FULL


def _write_probe(path: Path) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.pwrite(descriptor, b"\0" * 65_536, 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
        with suppress(OSError):
            path.unlink()


# --- opening ---


def _open(folder: Folder) -> sqlite3.Connection:
    if not folder.look():
        _make(folder, [Head(registry=os.urandom(16).hex(), timeline=1, epoch=0)])
    version = folder.version(APPLICATION_ID, SCHEMA_VERSION)
    folder.hold()
    older = _look_through(folder)
    if older:
        _upgrade(folder, version, older)
        folder.hold()
    database = _connect(folder)
    folder.opened()
    return database


def _make(folder: Folder, rows: Iterable[Any]) -> None:
    """Make the whole file under another name first: a crash leaves all of it or nothing."""
    fresh, head = write_anew(folder, rows)
    put_in_place(folder, fresh, head)


def write_anew(folder: Folder, rows: Iterable[Any]) -> tuple[Path, Head]:
    """A whole registry of these rows, the head among them, beside the one that is there."""
    fresh = folder.file.with_name(folder.file.name + ".new")
    fresh.unlink(missing_ok=True)
    os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    database = sqlite3.connect(fresh, isolation_level=None)
    head: Head | None = None
    try:
        database.execute("PRAGMA synchronous = FULL")
        database.execute("BEGIN")
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        schema.create(database)
        for row in rows:
            schema.write(database, row)
            head = row if isinstance(row, Head) else head
        database.execute("COMMIT")
    finally:
        database.close()
    assert head is not None
    return fresh, head


def put_in_place(folder: Folder, fresh: Path, head: Head) -> None:
    """The file that `write_anew` wrote is the registry from now on."""
    fresh.rename(folder.file)
    folder.sync()
    folder.engrave(Mark(head.registry, head.commits))


def _upgrade(folder: Folder, version: int, rows: Iterable[Any]) -> None:
    """Write the registry anew in this version's schema, and keep the old one beside it."""
    database = sqlite3.connect(folder.file, isolation_level=None)
    try:
        # All of it into the one file: SQLite would take a -wal file that is left for the new one's.
        database.execute("PRAGMA journal_mode = DELETE").fetchall()
    finally:
        database.close()
    kept = folder.file.with_name(f"{folder.file.name}.schema{version}")
    kept.unlink(missing_ok=True)
    os.link(folder.file, kept)
    _make(folder, rows)


def _look_through(folder: Folder) -> list[Any]:
    """Whether the registry is whole and has everything that was acknowledged; the rows of one with
    older tables. Nothing is written: a connection that may write would move what it can read
    of the -wal file into the registry and remove that file, in which the rest may be."""
    there = folder.asides()
    database = sqlite3.connect(f"{folder.file.as_uri()}?mode=ro", uri=True, isolation_level=None)
    try:
        # Not quick_check: it does not look whether an index is that of its table.
        found = [str(row[0]) for row in database.execute("PRAGMA integrity_check(5)")]
        if found != ["ok"]:
            folder.damaged("; ".join(found)[:500])
        if database.execute("PRAGMA foreign_key_check").fetchone() is not None:
            folder.damaged("states without registrations")
        older: list[Any] = []
        if schema.is_current(database):
            head = schema.read_head(database)
        else:
            older = list(schema.read_older(database))
            head = schema.one_head(older)
        folder.check(head.registry, head.commits)
        return older
    except (sqlite3.Error, Damaged, ValueError, TypeError) as error:
        if _is_full(error):
            raise
        if getattr(error, "sqlite_errorcode", 0) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            folder.refuse("another program has it open", "end the other master, or that program")
        folder.damaged(str(error))
    finally:
        database.close()
        for aside in folder.asides() - there:
            aside.unlink()


def _connect(folder: Folder) -> sqlite3.Connection:
    database = sqlite3.connect(folder.file, isolation_level=None)
    try:
        for pragma in (
            "journal_mode = WAL",  # with locks of each transaction: a backup may read beside it
            "synchronous = FULL",
            "wal_autocheckpoint = 0",  # by `_checkpoint`
            f"journal_size_limit = {limits.wal_kept_bytes}",
            "foreign_keys = ON",
            "trusted_schema = OFF",
            f"cache_size = -{_CACHE_KIB}",
        ):
            database.execute(f"PRAGMA {pragma}")
    except BaseException:
        database.close()
        raise
    return database
