"""The registry in one SQLite file: the store of a single master.

Owns: the file, its lock, its schema. Must not know: what the rows mean.

Invariant: what `commit` returned from survives a power cut (WAL, synchronous=FULL), one process
owns the file (flock), and an empty registry is never put where one was: a file that is missing,
foreign, newer or damaged is refused with the way out, because an empty registry would mean that
everything that runs is unknown.

After an error of the disk nobody knows what is durable, so every such error is a StoreError and
ends the process; the next one reads what is there.
"""

import fcntl
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NoReturn

from posthouse.errors import StoreError
from posthouse.states import StopReason
from posthouse_master.store.base import (
    Counters,
    DropRegistration,
    DropRequests,
    EpochLost,
    EventRow,
    HostRow,
    Life,
    Op,
    PutCounters,
    PutEvent,
    PutHost,
    PutRegistration,
    PutRequest,
    PutSlot,
    PutState,
    RegistryRefused,
    RequestRow,
    Snapshot,
    SpecRow,
    StateRow,
    Term,
    TrimEvents,
)

__all__ = ["APPLICATION_ID", "SCHEMA_VERSION", "SqliteStore"]

APPLICATION_ID: Final = 0x506F_7374  # "Post"
SCHEMA_VERSION: Final = 1
_FILE: Final = "registry.sqlite"
_LOCK: Final = "registry.lock"
_CACHE_KIB: Final = 16_384  # pages; the registry is read once, at the start

_SCHEMA: Final = """
CREATE TABLE term (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    registry TEXT NOT NULL,
    timeline INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    token INTEGER NOT NULL DEFAULT 0,
    sequence INTEGER NOT NULL DEFAULT 0,
    trimmed_to INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE specs (
    slot INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    name TEXT NOT NULL,
    spec BLOB NOT NULL,
    registered_unix_s REAL NOT NULL,
    "by" TEXT NOT NULL,
    source TEXT NOT NULL,
    "order" INTEGER NOT NULL,
    PRIMARY KEY (slot, generation)
) STRICT;
CREATE TABLE states (
    slot INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    life TEXT NOT NULL,
    host TEXT NOT NULL,
    warden TEXT NOT NULL,
    incarnation INTEGER NOT NULL,
    token INTEGER NOT NULL,
    pid INTEGER,
    pid_start INTEGER,
    started_unix_s REAL,
    ready INTEGER NOT NULL,
    stopping TEXT,
    stop_by TEXT NOT NULL,
    reason TEXT NOT NULL,
    rule TEXT NOT NULL,
    restart_delay_s REAL,
    starts INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    streak INTEGER NOT NULL,
    trimmed_to INTEGER NOT NULL,
    last_exit BLOB NOT NULL,
    PRIMARY KEY (slot, generation),
    FOREIGN KEY (slot, generation) REFERENCES specs ON DELETE CASCADE
) STRICT;
CREATE TABLE slots (slot INTEGER PRIMARY KEY, generation INTEGER NOT NULL) STRICT;
CREATE TABLE events (
    sequence INTEGER PRIMARY KEY,
    stream TEXT NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE TABLE hosts (
    name TEXT PRIMARY KEY,
    machine_id TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    offer BLOB NOT NULL,
    heard_unix_s REAL NOT NULL,
    up INTEGER NOT NULL,
    draining INTEGER NOT NULL
) STRICT;
CREATE TABLE requests (
    place INTEGER PRIMARY KEY,
    principal TEXT NOT NULL,
    request BLOB NOT NULL,
    digest BLOB NOT NULL,
    kind INTEGER NOT NULL,
    result BLOB NOT NULL,
    at_unix_s REAL NOT NULL,
    UNIQUE (principal, request)
) STRICT;
"""

# Every row class with its table and the columns that are its key.
_TABLES: Final[dict[type[Any], tuple[str, tuple[str, ...]]]] = {
    SpecRow: ("specs", ("slot", "generation")),
    StateRow: ("states", ("slot", "generation")),
    EventRow: ("events", ("sequence",)),
    HostRow: ("hosts", ("name",)),
    RequestRow: ("requests", ("principal", "request")),
}


def _columns(row: type[Any]) -> tuple[str, ...]:
    return tuple(row.__dataclass_fields__)


def _upsert(row: type[Any]) -> str:
    table, key = _TABLES[row]
    columns = _columns(row)
    names = ", ".join(f'"{name}"' for name in columns)
    marks = ", ".join("?" * len(columns))
    if row is EventRow:  # an event is written once; a second one would be a defect
        return f"INSERT INTO {table} ({names}) VALUES ({marks})"  # noqa: S608 - our own names
    changed = ", ".join(f'"{n}" = excluded."{n}"' for n in columns if n not in key)
    return (
        f"INSERT INTO {table} ({names}) VALUES ({marks}) "  # noqa: S608 - our own names
        f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {changed}"
    )


_UPSERT: Final = {row: _upsert(row) for row in _TABLES}
_PUTS: Final = (PutRegistration, PutState, PutEvent, PutHost, PutRequest)


class SqliteStore:
    """An open registry in `state_dir`, made if there has never been one. Raises RegistryRefused."""

    def __init__(self, state_dir: str | Path) -> None:
        self._folder = Path(state_dir)
        self._path = self._folder / _FILE
        self._lock = -1
        self._database: sqlite3.Connection | None = None
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _take_lock(self._folder / _LOCK)
            self._refuse_or_create()
            self._database = self._connect()
            found = self._path.stat()
            self._identity = (found.st_dev, found.st_ino)
        except RegistryRefused:
            self.close()
            raise
        except (OSError, sqlite3.Error) as error:
            self.close()
            raise RegistryRefused(
                f"{self._path}: cannot be opened: {error}", hint=self._way_out
            ) from error

    def __repr__(self) -> str:
        return f"SqliteStore({str(self._path)!r})"

    @property
    def _way_out(self) -> str:
        return (
            "check the disk and the rights, or put a backup of the registry in its place; "
            "nothing was changed"
        )

    # --- the protocol ---

    def begin_term(self) -> Term:
        with self._transaction() as database:
            database.execute("UPDATE term SET epoch = epoch + 1")
            return _term(database)

    def load(self) -> Snapshot:
        try:
            return self._load()
        except (ValueError, TypeError) as error:  # a value that no version ever wrote
            self._damaged(str(error))

    def _load(self) -> Snapshot:
        with self._transaction() as database:
            token, sequence, trimmed_to = database.execute(
                "SELECT token, sequence, trimmed_to FROM term"
            ).fetchone()
            return Snapshot(
                term=_term(database),
                counters=Counters(token=token, sequence=sequence, trimmed_to=trimmed_to),
                specs=list(_rows(database, SpecRow)),
                states=[_state(values) for values in _select(database, StateRow)],
                slots=list(database.execute("SELECT slot, generation FROM slots ORDER BY slot")),
                events=list(_rows(database, EventRow)),
                hosts=[_host(values) for values in _select(database, HostRow)],
                requests=list(_rows(database, RequestRow)),
            )

    def commit(self, epoch: int, ops: Sequence[Op]) -> None:
        self._still_there()
        with self._transaction() as database:
            found = _term(database).epoch
            if found != epoch:
                raise EpochLost(f"this master is of epoch {epoch}, the registry of {found}")
            for op in ops:
                _apply(database, op)

    def close(self) -> None:
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
            self._database = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _still_there(self) -> None:
        """SQLite goes on writing to a file that somebody removed, and nothing of it would be found
        again: what is acknowledged has to be in the file that the next master opens (N15)."""
        try:
            found = self._path.stat()
        except OSError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != self._identity:
            raise StoreError(
                f"{self._path}: the registry was removed or replaced while it was open",
                hint="put it back; workers go on, and the hosts tell a new master what runs",
            )

    # --- opening ---

    def _refuse_or_create(self) -> None:
        known = _registry_in_lock(self._lock)
        if self._path.exists():
            return
        left = [name for name in (f"{_FILE}-wal", f"{_FILE}-shm") if (self._folder / name).exists()]
        if known or left:
            raise RegistryRefused(
                f"{self._path} is gone, but there was a registry here"
                + (f" ({known})" if known else ""),
                hint="put a backup in its place; to begin an empty one, in which nothing that "
                f"runs is known, remove {_LOCK}{''.join(f', {name}' for name in left)}",
            )
        self._create()

    def _create(self) -> None:
        """Make the whole file under another name first: a crash leaves all of it or nothing."""
        fresh = self._folder / f"{_FILE}.new"
        fresh.unlink(missing_ok=True)
        registry = os.urandom(16).hex()
        os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        database = sqlite3.connect(fresh, isolation_level=None)
        try:
            database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            database.execute("PRAGMA synchronous = FULL")
            database.executescript(_SCHEMA)
            database.execute(
                "INSERT INTO term (one, registry, timeline, epoch) VALUES (1, ?, 1, 0)", (registry,)
            )
        finally:
            database.close()
        fresh.rename(self._path)
        _sync_folder(self._folder)
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"registry {registry}\n".encode(), 0)
        os.fsync(self._lock)

    def _connect(self) -> sqlite3.Connection:
        if not os.access(self._path, os.R_OK | os.W_OK):
            raise RegistryRefused(
                f"{self._path}: may not be written by this user", hint="check owner and mode"
            )
        self._check_header()
        database = sqlite3.connect(self._path, isolation_level=None)
        try:
            for pragma in (
                "locking_mode = EXCLUSIVE",  # no other process has business here
                "journal_mode = WAL",
                "synchronous = FULL",
                "foreign_keys = ON",
                "trusted_schema = OFF",
                f"cache_size = -{_CACHE_KIB}",
            ):
                database.execute(f"PRAGMA {pragma}")
            self._check(database)
        except sqlite3.Error as error:
            database.close()
            self._damaged(str(error))
        except RegistryRefused:
            database.close()
            raise
        return database

    def _check_header(self) -> None:
        """Of the file itself, before SQLite may change anything in it."""
        # Closed before SQLite opens the file: closing it later would drop SQLite's own locks.
        with self._path.open("rb") as file:
            header = file.read(100)
        if header[:16] != b"SQLite format 3\0" or len(header) < 100:
            if header[:16] and not b"SQLite format 3\0".startswith(header[:16]):
                raise RegistryRefused(
                    f"{self._path}: is no registry of posthouse", hint="choose another state_dir"
                )
            self._damaged("the file is cut off")
        if int.from_bytes(header[68:72]) != APPLICATION_ID:
            raise RegistryRefused(
                f"{self._path}: is a database of another program", hint="choose another state_dir"
            )
        version = int.from_bytes(header[60:64])
        if version > SCHEMA_VERSION:
            raise RegistryRefused(
                f"{self._path}: has schema version {version}, this posthouse knows up to "
                f"{SCHEMA_VERSION}",
                hint="start the newer posthouse that wrote it",
            )

    def _check(self, database: sqlite3.Connection) -> None:
        found = [str(row[0]) for row in database.execute("PRAGMA quick_check(5)")]
        if found != ["ok"]:
            self._damaged("; ".join(found)[:500])
        broken = database.execute("PRAGMA foreign_key_check").fetchone()
        if broken is not None:
            self._damaged("states without registrations")
        if database.execute("SELECT count(*) FROM term").fetchone()[0] != 1:
            self._damaged("it has no term")

    def _damaged(self, what: str) -> NoReturn:
        raise RegistryRefused(
            f"{self._path}: is damaged: {what}",
            hint="put a backup in its place; nothing was changed, and no empty registry was made",
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        database = self._database
        if database is None:
            raise StoreError("the registry is closed")
        try:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                with suppress(sqlite3.Error):
                    database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")
        except (sqlite3.Error, sqlite3.Warning, OSError) as error:
            # COMMIT that failed may or may not be on the disk: only a new opening can tell.
            raise StoreError(f"{self._path}: {error}", hint=self._way_out) from error


# --- operations ---


def _apply(database: sqlite3.Connection, op: Op) -> None:
    if isinstance(op, _PUTS):
        row = op.row
        database.execute(
            _UPSERT[type(row)], [getattr(row, name) for name in row.__dataclass_fields__]
        )
        return
    match op:
        case DropRegistration(slot, generation):
            database.execute(
                "DELETE FROM specs WHERE slot = ? AND generation = ?", (slot, generation)
            )
        case PutSlot(slot, generation):
            database.execute(
                "INSERT INTO slots VALUES (?, ?) "
                "ON CONFLICT (slot) DO UPDATE SET generation = excluded.generation",
                (slot, generation),
            )
        case TrimEvents(sequences):
            database.executemany(
                "DELETE FROM events WHERE sequence = ?", [(sequence,) for sequence in sequences]
            )
        case DropRequests(keys):
            database.executemany("DELETE FROM requests WHERE principal = ? AND request = ?", keys)
        case PutCounters(counters):
            database.execute(
                "UPDATE term SET token = ?, sequence = ?, trimmed_to = ?",
                (counters.token, counters.sequence, counters.trimmed_to),
            )


def _term(database: sqlite3.Connection) -> Term:
    registry, timeline, epoch = database.execute(
        "SELECT registry, timeline, epoch FROM term"
    ).fetchone()
    return Term(registry=registry, timeline=timeline, epoch=epoch)


def _select(database: sqlite3.Connection, row: type[Any]) -> Iterable[dict[str, Any]]:
    table, key = _TABLES[row]
    columns = _columns(row)
    names = ", ".join(f'"{name}"' for name in columns)
    order = "place" if row is RequestRow else ", ".join(key)
    query = f"SELECT {names} FROM {table} ORDER BY {order}"  # noqa: S608 - our own names
    for values in database.execute(query):
        yield dict(zip(columns, values, strict=True))


def _rows(database: sqlite3.Connection, row: type[Any]) -> Iterable[Any]:
    return (row(**values) for values in _select(database, row))


def _state(values: dict[str, Any]) -> StateRow:
    stopping = values["stopping"]
    values["life"] = Life(values["life"])
    values["ready"] = bool(values["ready"])
    values["stopping"] = StopReason(stopping) if stopping is not None else None
    return StateRow(**values)


def _host(values: dict[str, Any]) -> HostRow:
    for name in ("up", "draining"):
        values[name] = bool(values[name])
    return HostRow(**values)


# --- files ---


def _take_lock(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
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


def _registry_in_lock(descriptor: int) -> str:
    found = re.fullmatch(rb"registry ([0-9a-f]{32})\n", os.pread(descriptor, 64, 0))
    return found[1].decode() if found else ""


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
