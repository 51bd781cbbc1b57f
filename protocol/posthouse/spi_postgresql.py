"""A worker's connection to a PostgreSQL server, by psycopg.

Owns: how it is made, who it acts as, its statements and errors. Must not know: transactions' rules
(spi), workers. Invariant: psycopg is loaded here and nowhere before; no message shows the URL's
password; a server that is gone or cut off is DatabaseLost after a bounded time.
"""

import atexit
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from posthouse import limits
from posthouse.errors import DatabaseError, DatabaseLost, FencedOff, UsageError
from posthouse.spi import Asked, Notification, Result, application_name

if TYPE_CHECKING:
    import psycopg

__all__ = ["FENCE_SQL", "Postgresql", "open_engine"]

FENCED: Final = "PH001"  # the SQLSTATE of who is fenced off
_BYPASS_ALLOWCONN: Final = 0x1
_BYPASS_ROLELOGINCHECK: Final = 0x2
_ROWS: Final = re.compile(r"\s*\(*\s*(select|values|table)\b", re.IGNORECASE)

_TRANSACTION_TAGS: Final = frozenset({"COMMIT", "ROLLBACK", "PREPARE TRANSACTION"})

FENCE_SQL: Final = """\
CREATE SCHEMA IF NOT EXISTS posthouse;
CREATE TABLE IF NOT EXISTS posthouse.fence (
    key text PRIMARY KEY,
    token bigint NOT NULL
);
-- The row stays locked until the caller's transaction ends: who comes later waits for it.
CREATE OR REPLACE FUNCTION posthouse.check_fence(wanted text, given bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    INSERT INTO posthouse.fence AS f (key, token) VALUES (wanted, given)
    ON CONFLICT (key) DO UPDATE SET token = excluded.token WHERE f.token <= excluded.token;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'a later start of "%" than % has been here', wanted, given
            USING ERRCODE = 'PH001';
    END IF;
END
$body$;
REVOKE ALL ON FUNCTION posthouse.check_fence(text, bigint) FROM PUBLIC;
"""


def open_engine(url: str, asked: Asked) -> "Postgresql":
    """Raises UsageError, DatabaseError."""
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"psycopg cannot be loaded: {error}",
            hint="pip install 'psycopg[binary]' in the environment of this worker's runtime",
        ) from None
    engine = Postgresql(url, asked.name)
    try:
        if isinstance(asked.database, int) and asked.database:
            dbname = engine.name_of("database", asked.database)
            engine.close()
            engine = Postgresql(url, asked.name, dbname)
        role = asked.role
        if isinstance(role, int):
            role = engine.name_of("role", role) if role else None
        if role is not None:
            engine.become(role, asked.flags)
    except BaseException:
        engine.close()
        raise
    engine.cancel_on_int()
    atexit.register(engine.close)
    return engine


class Postgresql:
    """One connection."""

    kind = "postgresql"

    def __init__(self, url: str, name: str, dbname: str = "") -> None:
        import psycopg

        self.lost = True
        self.database = dbname
        self._password = ""
        self._kept: deque[Notification] = deque(maxlen=limits.notifications_kept_max)
        with self._errors():
            given = _parameters(url)
            self._password = str(given.get("password") or "")
            parameters = _DEFAULTS | given | {"application_name": application_name(name)}
            if dbname:
                parameters["dbname"] = dbname
            connection = _watching().connect(
                "", autocommit=True, cursor_factory=psycopg.RawCursor, **parameters
            )
            self._connection: psycopg.Connection[Any] = connection
            self.lost = False
            self.database = self._connection.info.dbname
            connection.watch(parameters)
        self._connection.add_notify_handler(self._keep)

    # --- who it acts as ---

    def name_of(self, kind: str, oid: int) -> str:
        """Of a database or role, by its oid."""
        question = {
            "database": "SELECT datname FROM pg_catalog.pg_database WHERE oid = $1::oid",
            "role": "SELECT rolname FROM pg_catalog.pg_roles WHERE oid = $1::oid",
        }[kind]
        with self._errors():
            row = self._connection.execute(question, [str(oid)]).fetchone()
        if row is None:
            state = "3D000" if kind == "database" else "28000"
            raise DatabaseError(f"{kind} {oid} does not exist", sqlstate=state)
        return str(row[0])

    def become(self, role: str, flags: int) -> None:
        """Act as the role from here on, if it might have connected itself (W10, W11)."""
        with self._errors():
            row = self._connection.execute(
                "SELECT r.rolcanlogin, pg_catalog.has_database_privilege(r.oid, d.oid, 'CONNECT'),"
                " me.rolsuper FROM pg_catalog.pg_roles r, pg_catalog.pg_database d,"
                " pg_catalog.pg_roles me WHERE r.rolname = $1"
                " AND d.datname = pg_catalog.current_database() AND me.rolname = session_user",
                [role],
            ).fetchone()
        if row is None:
            raise DatabaseError(f'role "{role}" does not exist', sqlstate="28000")
        may_login, may_connect, superuser = row
        if not may_login and not flags & _BYPASS_ROLELOGINCHECK:
            raise DatabaseError(f'role "{role}" is not permitted to log in', sqlstate="28000")
        if not may_connect and not flags & _BYPASS_ALLOWCONN:
            raise DatabaseError(
                f'permission denied for database "{self.database}"',
                hint=f"{role} has no privilege CONNECT",
                sqlstate="42501",
            )
        self._take_settings(role)
        self._set("session_authorization" if superuser else "role", role)

    def _take_settings(self, role: str) -> None:
        """The role's own, as if it had connected: those for this database go before (W12)."""
        with self._errors():
            rows = self._connection.execute(
                "SELECT s.setconfig FROM pg_catalog.pg_db_role_setting s"
                " JOIN pg_catalog.pg_roles r ON r.oid = s.setrole"
                " LEFT JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase"
                " WHERE r.rolname = $1"
                " AND (s.setdatabase = 0 OR d.datname = pg_catalog.current_database())"
                " ORDER BY s.setdatabase",
                [role],
            ).fetchall()
        for (settings,) in rows:
            for setting in settings:
                name, _, value = setting.partition("=")
                self._set(name, value)

    def _set(self, name: str, value: str) -> None:
        with self._errors():
            self._connection.execute(
                "SELECT pg_catalog.set_config($1, $2, false)", [name, value]
            ).fetchall()

    def cancel_on_int(self) -> None:
        """INT cancels the statement that runs (W2), unless the worker has a handler of its own."""
        ours = threading.current_thread() is threading.main_thread()
        if ours and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._on_int)

    def _on_int(self, _number: int, _frame: FrameType | None) -> None:
        from psycopg.pq import TransactionStatus

        if self._connection.info.transaction_status == TransactionStatus.ACTIVE:
            with suppress(Exception):  # it was not taken: the statement goes on
                self._connection.cancel_safe(timeout=limits.database_cancel_s)

    # --- statements ---

    def begin(self, *, read_only: bool) -> None:
        # Plain: a standby's transactions read only, and so may a role's setting have it.
        self.command("BEGIN READ ONLY" if read_only else "BEGIN")

    def command(self, sql: str) -> None:
        with self._errors():
            self._connection.execute(sql.encode())

    def in_transaction(self) -> bool:
        from psycopg.pq import TransactionStatus

        found = self._connection.info.transaction_status
        return found in (TransactionStatus.INTRANS, TransactionStatus.INERROR)

    def run(self, sql: str, values: Sequence[Any], limit: int, *, prepare: bool) -> Result:
        if limit and not prepare and _ROWS.match(sql):
            rows = self.open(sql, values, "posthouse_limit")
            found = rows.fetch(limit)
            rows.close()
            return Result(rows=found, columns=rows.columns, processed=len(found))
        with self._errors():
            cursor = self._connection.execute(
                sql.encode(), list(values) or None, prepare=prepare or None
            )
            self._look_for_transactions(cursor)
            columns = _columns(cursor)
            # Not by its columns: "SELECT FROM t" gives rows that have none.
            given = cursor.pgresult is not None and cursor.pgresult.status == _tuples()
            found = (cursor.fetchmany(limit) if limit else cursor.fetchall()) if given else []
        processed = len(found) if given else max(0, cursor.rowcount)
        return Result(rows=found, columns=columns, processed=processed)

    def _look_for_transactions(self, cursor: Any) -> None:
        """A text of several statements, as SPI takes them: its result is the last one's, and none
        of them may be COMMIT, even if the next one is BEGIN."""
        while True:
            if cursor.statusmessage in _TRANSACTION_TAGS:
                raise DatabaseError(
                    f"{cursor.statusmessage} among the statements has ended the transaction",
                    hint="leave the block of spi.transaction() instead",
                )
            if not cursor.nextset():
                return

    def open(self, sql: str, values: Sequence[Any], name: str) -> "_Rows":
        import psycopg

        with self._errors():
            cursor = psycopg.RawServerCursor(self._connection, name)
            cursor.execute(sql.encode(), list(values) or None)
        return _Rows(self, cursor)

    def fence(self, key: str, token: int) -> None:
        try:
            with self._errors():
                self._connection.execute(
                    "SELECT posthouse.check_fence($1::text, $2::bigint)", [key, token]
                ).fetchall()
        except DatabaseError as error:
            if error.detail.get("sqlstate") in ("42883", "3F000", "42501"):
                error.hint = "`posthouse fence-sql` prints what a DBA installs, and grants"
            raise

    # --- notifications ---

    def notify(self, channel: str, payload: str) -> None:
        with self._errors():
            self._connection.execute(
                "SELECT pg_catalog.pg_notify($1::text, $2::text)", [channel, payload]
            ).fetchall()

    def listen(self, channel: str, *, on: bool) -> None:
        if not channel or "\0" in channel:
            raise UsageError(f"channel is {channel!r}: must be a name")
        name = '"' + channel.replace('"', '""') + '"'
        self.command(f"{'LISTEN' if on else 'UNLISTEN'} {name}")

    def notifications(self) -> list[Notification]:
        server = self._connection.pgconn
        with self._errors():
            server.consume_input()
            while (found := server.notifies()) is not None:
                self._add(found.relname.decode(), found.extra.decode(), found.be_pid)
        taken = list(self._kept)
        self._kept.clear()
        return taken

    def _keep(self, found: "psycopg.Notify") -> None:
        self._add(found.channel, found.payload, found.pid)

    def _add(self, channel: str, payload: str, pid: int) -> None:
        self._kept.append(Notification(channel=channel, payload=payload, pid=pid))

    def fileno(self) -> int:
        return self._connection.fileno()

    def close(self) -> None:
        self.lost = True
        self._connection.close()

    # --- errors ---

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import psycopg

        try:
            yield
        except psycopg.Error as error:
            raise self._translated(error) from error

    def _translated(self, error: "psycopg.Error") -> DatabaseError:
        text = str(error).strip() or type(error).__name__
        if self._password:  # no message of libpq holds it; one that did would reach logs
            text = text.replace(self._password, "...")
        state = error.sqlstate or ""
        if state == FENCED:
            return FencedOff(error.diag.message_primary or text, sqlstate=state)
        if self.lost:
            return DatabaseError(f"no connection: {text}", sqlstate=state)
        if self._connection.closed or self._connection.broken:
            self.lost = True
            return DatabaseLost(f"the connection to {self.database!r} is lost: {text}")
        return DatabaseError(text, sqlstate=state)


class _Rows:
    def __init__(self, engine: Postgresql, cursor: Any) -> None:
        self._engine = engine
        self._cursor = cursor
        self.columns = _columns(cursor)

    def fetch(self, count: int) -> list[tuple[Any, ...]]:
        with self._engine._errors():  # noqa: SLF001 - a part of it
            found: list[tuple[Any, ...]] = self._cursor.fetchmany(count)
            return found

    def close(self) -> None:
        with self._engine._errors():  # noqa: SLF001
            self._cursor.close()


# What the URL does not say. A cut-off server is noticed by the kernel: idle connections by
# keepalives, those that wait for an acknowledgement by the user timeout.
_DEFAULTS: Final[dict[str, Any]] = {
    "connect_timeout": int(limits.database_connect_s),
    "keepalives": 1,
    "keepalives_idle": int(limits.database_silence_s / 3),
    "keepalives_interval": int(limits.database_silence_s / 6),
    "keepalives_count": 4,
    "tcp_user_timeout": int(limits.database_silence_s * 1000),
}


@cache
def _watching() -> Any:
    """The class of connections that notice a server which is there and says nothing.

    The kernel of a stopped server goes on answering keepalives. So whoever waits for an answer
    longer than the silence asks the server at its door, by a connection of its own; a server that
    works on a long statement says there that it is well.
    """
    import psycopg
    from psycopg.conninfo import make_conninfo
    from psycopg.pq import PGconn, Ping
    from psycopg.waiting import Ready

    class Watching(psycopg.Connection[Any]):
        _door = b""
        _silence_s = 0.0

        def watch(self, parameters: dict[str, Any]) -> None:
            """From now on. Of several servers in a URL it is the one that took us in."""
            there = {"host": self.info.host, "port": self.info.port, "hostaddr": self.info.hostaddr}
            said = parameters | {name: value for name, value in there.items() if value}
            self._door = make_conninfo("", **said).encode()
            self._silence_s = int(parameters["tcp_user_timeout"]) / 1000

        def wait(self, gen: Any, *more: Any, **options: Any) -> Any:
            return super().wait(self._watched(gen) if self._silence_s else gen, *more, **options)

        def _watched(self, gen: Any) -> Any:
            heard_s = time.monotonic()
            ready = None
            while True:
                try:
                    state = gen.send(ready)
                except StopIteration as end:
                    return end.value
                ready = yield state
                if ready != Ready.NONE:
                    heard_s = time.monotonic()
                elif time.monotonic() - heard_s > self._silence_s:
                    if PGconn.ping(self._door) == Ping.NO_RESPONSE:
                        self.close()
                        raise psycopg.OperationalError(
                            f"no answer within {self._silence_s:g} s, nor at its door"
                        )
                    heard_s = time.monotonic()

    return Watching


def _parameters(url: str) -> dict[str, Any]:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        return conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise UsageError(
            "the database's URL is none that libpq can read (it is not shown: it may hold a "
            "password)",
            hint="postgresql://user@host:port/dbname; other characters have to be %-encoded",
        ) from None


def _tuples() -> Any:
    from psycopg.pq import ExecStatus

    return ExecStatus.TUPLES_OK


def _columns(cursor: Any) -> tuple[str, ...]:
    return tuple(str(column.name) for column in cursor.description or ())
