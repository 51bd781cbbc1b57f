"""The embedded database of a worker: a file, by the standard library's sqlite3.

Owns: its statements and errors. Must not know: transactions' rules (spi), workers. Invariant:
what SQLite does not have is refused with the reason, never imitated.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import quote, unquote

from posthouse import limits
from posthouse.errors import DatabaseError, FencedOff, UsageError
from posthouse.spi import Asked, Notification, Result

__all__ = ["FENCE_SQL", "Sqlite", "open_engine"]

FENCE_SQL: Final = """\
CREATE TABLE IF NOT EXISTS posthouse_fence (
    key text PRIMARY KEY,
    token integer NOT NULL
) STRICT;
"""
_FENCE: Final = """\
INSERT INTO posthouse_fence (key, token) VALUES (?1, ?2)
ON CONFLICT (key) DO UPDATE SET token = excluded.token WHERE token <= excluded.token
"""


def open_engine(url: str, asked: Asked, *, read_only: bool) -> "Sqlite":
    """Raises UsageError, DatabaseError."""
    path = "/" + unquote(url.removeprefix("sqlite://")).lstrip("/")
    if isinstance(asked.database, int) or isinstance(asked.role, int):
        raise UsageError(
            "SQLite has no oids", hint="initialize_connection(name) instead of ..._by_oid"
        )
    if asked.role is not None:
        raise UsageError(f"SQLite has no roles, so nobody can be {asked.role!r}")
    new = not Path(path).exists()
    mode = "ro" if read_only else "rwc"
    with _errors(path):
        database = sqlite3.connect(
            f"file:{quote(path)}?mode={mode}",
            uri=True,
            isolation_level=None,
            timeout=limits.database_busy_s,
        )
        database.execute("PRAGMA foreign_keys = ON")
        if new and not read_only:
            database.execute("PRAGMA journal_mode = WAL").fetchall()
        database.execute("SELECT count(*) FROM sqlite_schema").fetchall()  # is it one at all?
    return Sqlite(database, path)


class Sqlite:
    """One connection."""

    kind = "sqlite"

    def __init__(self, database: sqlite3.Connection, path: str) -> None:
        self._database = database
        self._read_only = False
        self.database = path
        self.lost = False

    def begin(self, *, read_only: bool) -> None:
        with _errors(self.database):
            self._only_read(on=read_only)
            # A transaction that reads first and then writes can fail for the lock at any statement.
            self._database.execute("BEGIN" if read_only else "BEGIN IMMEDIATE")

    def command(self, sql: str) -> None:
        with _errors(self.database):
            self._database.execute(sql)

    def in_transaction(self) -> bool:
        return self._database.in_transaction

    def run(
        self,
        sql: str,
        values: Sequence[Any],
        limit: int,
        *,
        prepare: bool,  # noqa: ARG002 - sqlite3 keeps its statements by itself
    ) -> Result:
        given = _Numbered(values)
        with _errors(self.database):
            cursor = self._database.execute(sql, given)
            given.check()
            columns = _columns(cursor)
            rows = (cursor.fetchmany(limit) if limit else cursor.fetchall()) if columns else []
            changed = cursor.rowcount
            cursor.close()
        return Result(
            rows=rows, columns=columns, processed=len(rows) if columns else max(0, changed)
        )

    def open(self, sql: str, values: Sequence[Any], name: str) -> "_Rows":  # noqa: ARG002
        given = _Numbered(values)
        with _errors(self.database):
            cursor = self._database.execute(sql, given)
            given.check()
        if not (columns := _columns(cursor)):
            raise UsageError("a cursor is for a query, which gives rows")
        return _Rows(cursor, columns, self.database)

    def fence(self, key: str, token: int) -> None:
        try:
            with _errors(self.database):
                done = self._database.execute(_FENCE, (key, token))
        except DatabaseError as error:
            if "posthouse_fence" in error.message:
                error.hint = "`posthouse fence-sql --sqlite` prints what is missing"
            raise
        if not done.rowcount:
            raise FencedOff(f'a later start of "{key}" than {token} has been here', sqlstate="")

    def notify(self, channel: str, payload: str) -> None:  # noqa: ARG002
        _no_notify()

    def listen(self, channel: str, *, on: bool) -> None:  # noqa: ARG002
        _no_notify()

    def notifications(self) -> list[Notification]:
        _no_notify()

    def fileno(self) -> int:
        raise UsageError("SQLite has no connection that could be waited for")

    def close(self) -> None:
        self.lost = True
        self._database.close()

    def _only_read(self, *, on: bool) -> None:
        if on != self._read_only:
            self._database.execute(f"PRAGMA query_only = {int(on)}")
            self._read_only = on


class _Rows:
    def __init__(self, cursor: sqlite3.Cursor, columns: tuple[str, ...], path: str) -> None:
        self._cursor = cursor
        self._path = path
        self.columns = columns

    def fetch(self, count: int) -> list[tuple[Any, ...]]:
        with _errors(self._path):
            return self._cursor.fetchmany(count)

    def close(self) -> None:
        self._cursor.close()


def _columns(cursor: sqlite3.Cursor) -> tuple[str, ...]:
    return tuple(str(column[0]) for column in cursor.description or ())


class _Numbered(dict[str, Any]):  # sqlite3 takes any other mapping for a sequence
    """Values by the names that "$1", "$2" are to SQLite. It does not mind one that no name takes;
    a server does."""

    def __init__(self, values: Sequence[Any]) -> None:
        super().__init__((str(number), value) for number, value in enumerate(values, 1))
        self._taken: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self._taken.add(name)
        return super().__getitem__(name)

    def check(self) -> None:
        if left := sorted(self.keys() - self._taken, key=int):
            raise sqlite3.ProgrammingError(f"no ${left[0]} in the statement for its value")


def _no_notify() -> NoReturn:
    raise UsageError(
        "SQLite has no NOTIFY", hint="look at the table, and let who fills it set the latch"
    )


@contextmanager
def _errors(path: str) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, sqlite3.Warning) as error:  # a warning: two statements, until 3.12
        state = getattr(error, "sqlite_errorname", "") or ""
        raise DatabaseError(f"{path}: {error}", sqlstate=state) from error
