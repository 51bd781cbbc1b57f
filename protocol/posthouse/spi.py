"""A worker's database session: transactions that it runs one after the other, as any client.

Owns: the rules of transactions, and who connects to what. Must not know: a driver's calls
(spi_postgresql, spi_sqlite). Invariant: standard library only; a statement runs inside a
transaction or not at all, and one that failed leaves nothing but a rollback.

    worker.initialize_connection("app")
    with worker.spi.transaction():
        worker.spi.execute("UPDATE job SET done = true WHERE id = $1", [7])
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, Protocol

from posthouse import limits
from posthouse.errors import CommitUnknown, DatabaseError, DatabaseLost, UsageError

__all__ = [
    "Asked",
    "Cursor",
    "Engine",
    "Notification",
    "Plan",
    "Result",
    "Rows",
    "Session",
    "application_name",
    "connect",
]

_TRANSACTION_WORD: Final = re.compile(
    r"\s*(abort|begin|commit|end|release|rollback|savepoint|start\s+transaction|"
    r"prepare\s+transaction)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Of whom a connection is asked for, to what. Names are texts, oids integers."""

    database: str | int | None
    role: str | int | None
    flags: int
    name: str  # the worker's
    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a statement gave. `processed`: rows given, or changed."""

    rows: list[tuple[Any, ...]]
    columns: tuple[str, ...]
    processed: int

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """What a NOTIFY said."""

    channel: str
    payload: str
    pid: int


class Rows(Protocol):
    """A driver's open cursor."""

    columns: tuple[str, ...]

    def fetch(self, count: int) -> list[tuple[Any, ...]]: ...

    def close(self) -> None: ...


class Engine(Protocol):
    """What a driver does. Every method raises DatabaseError, and DatabaseLost once it is so."""

    kind: str
    database: str
    lost: bool

    def begin(self, *, read_only: bool) -> None: ...

    def command(self, sql: str) -> None:
        """COMMIT, ROLLBACK and savepoints."""

    def in_transaction(self) -> bool: ...

    def run(self, sql: str, values: Sequence[Any], limit: int, *, prepare: bool) -> Result: ...

    def open(self, sql: str, values: Sequence[Any], name: str) -> Rows: ...

    def fence(self, key: str, token: int) -> None: ...

    def notify(self, channel: str, payload: str) -> None: ...

    def listen(self, channel: str, *, on: bool) -> None: ...

    def notifications(self) -> list[Notification]: ...

    def fileno(self) -> int: ...

    def close(self) -> None: ...


class Session:
    """The one connection of a worker, for one thread. With `worker.latch.wait(sockets=worker.spi)`
    a worker waits for notifications; take them by `notifications()` before each such wait."""

    def __init__(self, engine: Engine, asked: Asked, *, read_only: bool) -> None:
        self._engine = engine
        self._name, self._token = asked.name, asked.token
        self._level = 0  # 1: in a transaction; more: in that many subtransactions less one
        self._failed = False
        self._cursors = 0
        self._open: list[Rows] = []  # the transaction's cursors
        self.read_only = read_only
        """True: connected to no database in particular, and every transaction is read-only."""

    def __repr__(self) -> str:
        return f"<Session {self._engine.kind} {self.database!r}>"

    @property
    def database(self) -> str:
        """The name of the database on its server, or the file's path."""
        return self._engine.database

    @property
    def engine(self) -> str:
        """postgresql | sqlite"""
        return self._engine.kind

    # --- transactions ---

    @contextmanager
    def transaction(
        self, *, read_only: bool = False, fenced: bool | str = False
    ) -> Iterator["Session"]:
        """A transaction: committed at the end of the block, undone by an error.

        `fenced`: refused with FencedOff, by the database, if a later start of this worker has
        been there: a worker that was cut off cannot overwrite its successor. A text instead of
        True is a key of its own in the place of the worker's name. It needs what
        `posthouse fence-sql` prints.
        """
        self._need_connection()
        if self._level:
            raise UsageError("there is a transaction already", hint="spi.subtransaction()")
        read_only = read_only or self.read_only
        if fenced and read_only:
            raise UsageError("a fenced transaction writes, so it cannot be read-only")
        self._engine.begin(read_only=read_only)
        self._level, self._failed = 1, False
        try:
            if fenced:
                self._engine.fence(self._name if fenced is True else fenced, self._token)
            yield self
            if self._failed:
                raise _aborted()
            self._close_cursors()
        except Exception:
            self._undo("ROLLBACK")
            self._close_cursors()
            raise
        except BaseException:  # a signal's: the statement may still run, so nothing can be said
            self._engine.close()
            raise
        finally:
            self._level = 0
        self._commit()

    def _commit(self) -> None:
        try:
            self._engine.command("COMMIT")
        except DatabaseLost as lost:
            raise CommitUnknown(
                f"whether the transaction was committed is not known: {lost.message}",
                hint="look for its effect in the database before you do it again",
            ) from lost
        except DatabaseError:
            self._undo("ROLLBACK")
            raise

    @contextmanager
    def subtransaction(self) -> Iterator["Session"]:
        """A part of the transaction that an error undoes alone, if you catch it outside."""
        self._need_transaction()
        name = f"posthouse_{self._level}"
        self._engine.command(f"SAVEPOINT {name}")
        self._level += 1
        try:
            yield self
            if self._failed:
                raise _aborted()
            self._engine.command(f"RELEASE SAVEPOINT {name}")
        except Exception:
            self._failed = not self._undo(f"ROLLBACK TO SAVEPOINT {name}")
            raise
        finally:
            self._level -= 1

    def _close_cursors(self) -> None:
        """They end with their transaction, with both engines."""
        while self._open:
            with suppress(DatabaseError):
                self._open.pop().close()

    def _undo(self, sql: str) -> bool:
        with suppress(DatabaseError):  # what led here is what is told
            if self._engine.in_transaction():
                self._engine.command(sql)
                return True
        return False

    # --- statements ---

    def execute(self, sql: str, values: Sequence[Any] = (), *, limit: int = 0) -> Result:
        """Run a statement, with $1, $2 ... for `values`. `limit`: at most so many rows; 0: all."""
        return self._run(sql, values, limit, prepare=False)

    def prepare(self, sql: str) -> "Plan":
        """A statement for many executions. It is looked at by the server at the first of them."""
        _check_statement(sql)
        return Plan(self, sql)

    def cursor(self, sql: str, values: Sequence[Any] = ()) -> "Cursor":
        """A query whose rows are fetched a few at a time; it ends with its transaction."""
        self._need_transaction()
        _check_statement(sql)
        self._cursors += 1
        _check_values(values)
        with self._watched():
            rows = self._engine.open(sql, values, f"posthouse_{self._cursors}")
        self._open.append(rows)
        return Cursor(self, rows)

    def _run(self, sql: str, values: Sequence[Any], limit: int, *, prepare: bool) -> Result:
        self._need_transaction()
        _check_statement(sql)
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
            raise UsageError(f"limit is {limit!r}: must be a number of rows, or 0 for all")
        _check_values(values)
        with self._watched():
            return self._engine.run(sql, values, limit, prepare=prepare)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """After an error the transaction is good for a rollback only, with both engines."""
        try:
            yield
            if not self._engine.in_transaction():
                raise DatabaseError(
                    "a statement ended the transaction",
                    hint="leave the block of spi.transaction() instead",
                )
        except DatabaseError:
            self._failed = True
            raise
        except (OverflowError, TypeError, ValueError) as error:  # a driver's, of a value
            self._failed = True
            raise DatabaseError(f"a value cannot be sent or read: {error}") from error

    # --- notifications ---

    def notify(self, channel: str, payload: str = "") -> None:
        """Sent when the transaction is committed [NOTIFY]."""
        self._need_transaction()
        with self._watched():
            self._engine.notify(channel, payload)

    def listen(self, channel: str) -> None:
        """Be told of notifications, from now on. Not inside a transaction."""
        self._need_no_transaction()
        self._engine.listen(channel, on=True)

    def unlisten(self, channel: str) -> None:
        """No longer."""
        self._need_no_transaction()
        self._engine.listen(channel, on=False)

    def notifications(self) -> list[Notification]:
        """Those that have come, without waiting; none inside a transaction."""
        self._need_no_transaction()
        return self._engine.notifications()

    def fileno(self) -> int:
        """Of the connection's socket, readable when the server has said something. For latches."""
        self._need_connection()
        return self._engine.fileno()

    # --- inside ---

    def _need_connection(self) -> None:
        if self._engine.lost:
            raise DatabaseLost(
                f"the connection to {self.database!r} is over",
                hint="a worker has but one: let it end, and its restart connects anew",
            )

    def _need_no_transaction(self) -> None:
        self._need_connection()
        if self._level:
            raise UsageError("not inside a transaction")

    def _need_transaction(self) -> None:
        self._need_connection()
        if not self._level:
            raise UsageError("not inside a transaction", hint="with worker.spi.transaction(): ...")
        if self._failed:
            raise _aborted()


class Plan:
    """A prepared statement [SPI_prepare]."""

    def __init__(self, session: Session, sql: str) -> None:
        self._session = session
        self.sql = sql

    def execute(self, values: Sequence[Any] = (), *, limit: int = 0) -> Result:
        """As Session.execute."""
        return self._session._run(self.sql, values, limit, prepare=True)  # noqa: SLF001 - its own


class Cursor:
    """A query in progress [SPI_cursor_open]."""

    def __init__(self, session: Session, rows: Rows) -> None:
        self._session = session
        self._rows = rows

    @property
    def columns(self) -> tuple[str, ...]:
        return self._rows.columns

    def fetch(self, count: int) -> list[tuple[Any, ...]]:
        """The next rows, at most `count`; an empty list at the end."""
        self._session._need_transaction()  # noqa: SLF001
        if self._rows not in self._session._open:  # noqa: SLF001
            raise UsageError("the cursor is closed", hint="it ends with its transaction")
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise UsageError(f"count is {count!r}: must be 1 or more rows")
        with self._session._watched():  # noqa: SLF001
            return self._rows.fetch(count)

    def close(self) -> None:
        """Give it up before its transaction ends."""
        if self._rows in self._session._open:  # noqa: SLF001
            self._session._open.remove(self._rows)  # noqa: SLF001
            self._rows.close()


def _check_statement(sql: str) -> None:
    if not isinstance(sql, str):
        raise UsageError(f"a statement is text, not {type(sql).__name__}")
    if "\0" in sql or (not sql.isascii() and not _is_unicode(sql)):
        raise UsageError("a statement is text without NUL and lone surrogates")
    if found := _TRANSACTION_WORD.match(sql):
        raise UsageError(
            f"{found[1].upper()} is not a statement for spi",
            hint="spi.transaction() and spi.subtransaction()",
        )


def _check_values(values: Sequence[Any]) -> None:
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise UsageError("values must be a list or tuple, with one entry for each $n")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _aborted() -> DatabaseError:
    return DatabaseError(
        "current transaction is aborted, commands ignored until end of transaction block",
        hint="catch errors outside of spi.subtransaction(), which undoes its part",
        sqlstate="25P02",
    )


def application_name(name: str) -> str:
    """A worker's name as a server shows it: in ASCII, at most 63 bytes, else cut, with a hash.

    >>> application_name("ingest")
    'ingest'
    >>> len(application_name("i" * 96)), application_name("büro")
    (63, 'b?ro~a033f5c2')
    """
    shown = "".join(c if " " <= c <= "~" else "?" for c in name)
    if shown == name and len(shown) <= limits.application_name_bytes_max:
        return shown
    digest = blake2b(name.encode(errors="surrogatepass"), digest_size=4).hexdigest()
    return f"{shown[: limits.application_name_bytes_max - len(digest) - 1]}~{digest}"


def connect(databases: dict[str, str], asked: Asked) -> Session:
    """The session that is asked for. `databases`: URLs by name, and under "" the name of the
    maintenance database. Raises UsageError, DatabaseError."""
    main = databases.get("")
    named = isinstance(asked.database, str)
    name = asked.database if isinstance(asked.database, str) else main
    known = sorted(name for name in databases if name)
    if name is None:
        raise UsageError(
            "there is no maintenance database on this host",
            hint="say `maintenance = true` in one of the tables [databases.NAME] of agent.toml",
        )
    if name not in databases or not name:
        raise UsageError(
            f"no database {name!r} is configured on this host",
            hint=f"there are: {', '.join(known) or 'none'}; agent.toml: [databases.NAME] url = ...",
        )
    for value in (asked.database, asked.role):
        if isinstance(value, bool) or (isinstance(value, int) and not 0 <= value < 2**32):
            raise UsageError(f"an oid is {value!r}: must be a number from 0 to {2**32 - 1}")
    url = databases[name]
    read_only = not named and not asked.database
    engine: Engine
    if url.startswith("sqlite:"):
        from posthouse import spi_sqlite

        engine = spi_sqlite.open_engine(url, asked, read_only=read_only)
    else:
        from posthouse import spi_postgresql

        engine = spi_postgresql.open_engine(url, asked)
    return Session(engine, asked, read_only=read_only)
