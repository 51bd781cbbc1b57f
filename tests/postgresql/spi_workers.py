"""What the workers of test_spi.py do: each prints JSON lines, which the tests read."""

import json
import os
import signal
import sys
from typing import Any

from posthouse import worker
from posthouse.errors import DatabaseError, FencedOff, PosthouseError


def say(**values: Any) -> None:
    print(json.dumps(values, default=str), flush=True)


def refused(*asked: Any, **flags: Any) -> None:
    try:
        worker.initialize_connection(*asked, **flags)
    except PosthouseError as error:
        say(
            error=error.message,
            hint=error.hint,
            code=error.code,
            state=error.detail.get("sqlstate"),
        )
    else:
        say(error=None, who=rows("SELECT current_user, session_user"))


def rows(sql: str, *values: Any, **options: Any) -> list[Any]:
    with worker.spi.transaction():
        return worker.spi.execute(sql, values, **options).rows


def asks(arg: list[Any]) -> None:
    """Connect as asked, say what came of it."""
    worker.unblock_signals()
    refused(*arg[0], **arg[1])


def by_oid(arg: list[int]) -> None:
    worker.unblock_signals()
    try:
        db = worker.initialize_connection_by_oid(*arg)
    except PosthouseError as error:
        say(error=error.message, state=error.detail.get("sqlstate"))
        return
    say(db=db.database, who=rows("SELECT current_user")[0][0], read_only=db.read_only)


def before_and_twice(name: str) -> None:
    loaded = sorted({"psycopg", "sqlite3", "posthouse.spi", "zmq", "msgpack"} & set(sys.modules))
    try:
        worker.spi  # noqa: B018
    except PosthouseError as error:
        say(before=error.message, loaded=loaded)
    worker.initialize_connection(name)
    refused(name)


def statements(name: str) -> None:
    """The whole of spi that both engines have."""
    db = worker.initialize_connection(name)
    found: dict[str, Any] = {"engine": db.engine}
    with db.transaction():
        db.execute("DROP TABLE IF EXISTS t")
        db.execute("CREATE TABLE t (n integer PRIMARY KEY, s text)")
        plan = db.prepare("INSERT INTO t VALUES ($1, $2)")
        found["inserted"] = [plan.execute([n, f"row {n}"]).processed for n in range(10)]
    with db.transaction():
        found["twice"] = db.execute("SELECT s FROM t WHERE n = $1 OR n = $2 OR n = $1", [3, 4]).rows
        found["limit"] = len(db.execute("SELECT * FROM t ORDER BY n", limit=4))
        cursor = db.cursor("SELECT n FROM t WHERE n >= $1 ORDER BY n", [4])
        found["cursor"] = [cursor.fetch(4), cursor.fetch(4), cursor.fetch(4)]
        cursor.close()
        try:
            with db.subtransaction():
                db.execute("DELETE FROM t WHERE n = $1", [1])
                db.execute("INSERT INTO t VALUES (2, 'again')")
        except DatabaseError as error:
            found["duplicate"] = error.detail["sqlstate"]
        with db.subtransaction():
            db.execute("DELETE FROM t WHERE n = $1", [0])
    found["left"] = rows("SELECT n FROM t WHERE n < 3 ORDER BY n")
    found["refused"] = refusals(db)
    found["after"] = rows("SELECT count(*) FROM t")[0][0]
    say(**found)


def refusals(db: Any) -> dict[str, str]:
    found = {}

    def attempt(what: str, **options: Any) -> None:
        try:
            with db.transaction(**options):
                for sql in what.split(";"):
                    try:
                        db.execute(sql)
                    except DatabaseError:
                        if "swallow" not in what:
                            raise
        except PosthouseError as error:
            found[what] = str(error.detail.get("sqlstate") or error.message)

    attempt("DELETE FROM t", read_only=True)
    attempt("COMMIT")
    attempt("DELETE FROM t;SELECT swallow FROM t")
    try:
        db.execute("SELECT 1")
    except PosthouseError as error:
        found["outside"] = error.message
    return found


def named(name: str) -> None:
    worker.initialize_connection(name)
    shown = rows("SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()")
    say(shown=shown[0][0], in_environment=in_process(b"s3cr3t"))


def in_process(secret: bytes) -> list[str]:
    found = []
    for name in ("environ", "cmdline"):
        with open(f"/proc/{os.getpid()}/{name}", "rb") as file:
            if secret in file.read():
                found.append(name)
    return found


def listens(name: str) -> None:
    worker.unblock_signals()
    db = worker.initialize_connection(name)
    db.listen("news")
    with db.transaction():
        db.notify("news", "of my own")
    say(listening=True)
    while True:
        worker.latch.reset()
        for found in db.notifications():
            say(channel=found.channel, payload=found.payload)
            if found.payload == "end":
                return
        worker.latch.wait(
            worker.LATCH_SET,
            worker.SOCKET_READABLE,
            worker.EXIT_ON_PM_DEATH,
            timeout=30,
            sockets=db,
        )


def sleeps(name: str) -> None:
    """A long statement: INT cancels it, TERM ends the worker, a lost server is an error."""
    worker.unblock_signals()
    db = worker.initialize_connection(name)
    say(pid=os.getpid(), server=rows("SELECT pg_backend_pid()")[0][0])
    try:
        with db.transaction():
            db.execute("INSERT INTO kept VALUES ($1)", [worker.entry().incarnation])
            db.execute("SELECT pg_sleep(60)")
    except DatabaseError as error:
        say(error=type(error).__name__, state=error.detail.get("sqlstate"))
        if error.detail.get("sqlstate") != "57014":
            raise
    say(answers=rows("SELECT 7")[0][0], int=signal.getsignal(signal.SIGINT) is not signal.SIG_IGN)


def fenced(arg: list[str]) -> None:
    """Says its token, and writes whenever it is woken."""
    name, key = arg
    worker.unblock_signals()
    db = worker.initialize_connection(name)
    say(token=worker.entry().token)
    while True:
        worker.latch.reset()
        try:
            with db.transaction(fenced=key or True):
                db.execute("INSERT INTO kept VALUES ($1)", [worker.entry().token])
            say(wrote=worker.entry().token)
        except FencedOff as error:
            say(fenced_off=error.message)
        except DatabaseError as error:
            say(error=error.message, hint=error.hint)
        worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH, timeout=30)
