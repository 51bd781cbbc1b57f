"""What a session says of servers, connections and files that fail."""

import contextlib
import os
import select
import signal
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from posthouse import limits, spi
from posthouse.errors import CommitUnknown, DatabaseError, DatabaseLost

Open = Callable[..., spi.Session]
PATIENCE_S = 30.0
pytestmark = pytest.mark.timeout(180)  # whole servers, on a busy machine

# --- servers that fail ---------------------------------------------------------------------------


def everybody_of(server: Any) -> list[int]:
    """The postmaster and its children."""
    pid = server.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def while_it_waits(session: spi.Session, happens: Callable[[], object]) -> None:
    """A statement without an end; `happens` is called once the server works on it."""
    waits = threading.Timer(0.5, happens)
    waits.start()
    try:
        with session.transaction():
            session.execute("SELECT pg_sleep(600)")
    finally:
        waits.join()


def test_a_server_that_is_killed_is_a_lost_connection(
    connect: Open, primary: Any, eventually: Any
) -> None:
    primary.start()
    eventually(primary.answers)
    session = connect("postgresql", url=primary.url)
    with pytest.raises(DatabaseLost):
        while_it_waits(session, lambda: signal_all(everybody_of(primary), signal.SIGKILL))
    with pytest.raises(DatabaseLost, match="is over"), session.transaction():
        pass
    primary.process.wait(PATIENCE_S)
    primary.process = None


def test_a_server_that_is_stopped_is_noticed(connect: Open, primary: Any, eventually: Any) -> None:
    """Its kernel goes on answering for it: it is asked at its door."""
    primary.start()
    eventually(primary.answers)
    url = f"{primary.url}&tcp_user_timeout=1000&connect_timeout=2"
    session = connect("postgresql", url=url)
    pids: list[int] = []

    def stop() -> None:
        pids.extend(everybody_of(primary))
        signal_all(pids, signal.SIGSTOP)

    try:
        with pytest.raises(DatabaseLost, match="no answer within 1 s, nor at its door"):
            while_it_waits(session, stop)
        with pytest.raises(DatabaseError, match=r"no connection: .*timeout"):
            connect("postgresql", url=url)
    finally:
        signal_all(pids, signal.SIGCONT)


def test_a_statement_may_take_longer_than_the_silence(
    connect: Open, session_urls: dict[str, str]
) -> None:
    url = f"{session_urls['postgresql']}&tcp_user_timeout=200&connect_timeout=2"
    session = connect("postgresql", url=url)
    with session.transaction():
        assert session.execute("SELECT pg_sleep(1.2), 7").rows[0][1] == 7


class Between:
    """A socket between client and server that passes everything on, until it is told not to."""

    def __init__(self, server: Any, folder: Path) -> None:
        self.url = f"postgresql://postgres@/postgres?host={folder}&port=5555"
        self.cut_after = b""
        """What the client says before its connection is cut; the server's answer is waited for."""
        self._target = f"{server.folder}/.s.PGSQL.{server.port}"
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(f"{folder}/.s.PGSQL.5555")
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            with client, socket.socket(socket.AF_UNIX) as server:
                server.connect(self._target)
                self._pass_on(client, server)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        while True:
            readable, _, _ = select.select([client, server], [], [], PATIENCE_S)
            for one in readable:
                if not (data := one.recv(65536)):
                    return
                if one is client:
                    server.sendall(data)
                    if self.cut_after and self.cut_after in data:
                        server.recv(65536)  # done, and nobody is told
                        return
                else:
                    client.sendall(data)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(PATIENCE_S)


@pytest.fixture
def between(served: Any, tmp_path: Path) -> Iterator[Between]:
    made = Between(served, tmp_path)
    yield made
    made.close()


def test_a_commit_whose_answer_is_lost_is_neither_done_nor_failed(
    connect: Open, between: Between, table: str
) -> None:
    """Here it was done; the worker cannot know, and is told so."""
    other = connect("postgresql")
    with other.transaction():
        other.execute(f"CREATE TABLE {table} (n integer)")
    session = connect("postgresql", url=between.url)
    between.cut_after = b"COMMIT"
    with pytest.raises(CommitUnknown, match="is not known"), session.transaction():
        session.execute(f"INSERT INTO {table} VALUES (1)")
    with other.transaction():
        assert other.execute(f"SELECT n FROM {table}").rows == [(1,)]


def test_a_connection_that_is_cut_in_the_middle_is_lost(
    connect: Open, between: Between, table: str
) -> None:
    session = connect("postgresql", url=between.url)
    between.cut_after = b"INSERT"
    with pytest.raises(DatabaseLost) as caught, session.transaction():
        session.execute(f"CREATE TABLE {table} (n integer)")
        session.execute(f"INSERT INTO {table} VALUES (1)")
    assert not isinstance(caught.value, CommitUnknown)
    other = connect("postgresql")
    with pytest.raises(DatabaseError, match="does not exist"), other.transaction():
        other.execute(f"SELECT n FROM {table}")


def test_a_commit_that_the_server_refuses_has_failed(connect: Open, table: str) -> None:
    session = connect("postgresql")
    with pytest.raises(DatabaseError) as caught, session.transaction():
        session.execute(f"CREATE TABLE {table} (n integer UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        session.execute(f"INSERT INTO {table} VALUES (1), (1)")
    assert caught.value.detail["sqlstate"] == "23505"
    with session.transaction():
        assert session.execute("SELECT 1").rows == [(1,)]


# --- files that fail -----------------------------------------------------------------------------


def test_a_file_that_is_no_database(connect: Open, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing of SQLite's\n" * 100)
    with pytest.raises(DatabaseError, match="file is not a database"):
        connect("sqlite", url=f"sqlite://{tmp_path}/notes.txt")


@pytest.mark.parametrize("path", ["nowhere/app.db", ""])
def test_a_file_that_cannot_be_opened(connect: Open, tmp_path: Path, path: str) -> None:
    with pytest.raises(DatabaseError, match="unable to open database file"):
        connect("sqlite", url=f"sqlite://{tmp_path}/{path}")


def test_a_database_that_somebody_else_has_locked(
    connect: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "database_busy_s", 0.1)
    url = f"sqlite://{tmp_path}/app.db"
    session = connect("sqlite", url=url)
    other = sqlite3.connect(tmp_path / "app.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(DatabaseError) as caught, session.transaction():
        pass
    assert caught.value.detail["sqlstate"] == "SQLITE_BUSY"
    other.execute("ROLLBACK")
    other.close()
    with session.transaction():
        session.execute("CREATE TABLE t (n integer)")


def test_a_full_disk_undoes_the_transaction(connect: Open, tmp_path: Path) -> None:
    session = connect("sqlite", url=f"sqlite://{tmp_path}/app.db")
    with session.transaction():
        session.execute("CREATE TABLE t (n blob)")
        session.execute("PRAGMA max_page_count = 20")
    with pytest.raises(DatabaseError) as caught, session.transaction():
        for _ in range(100):
            session.execute("INSERT INTO t VALUES (randomblob(4000))")
    assert caught.value.detail["sqlstate"] == "SQLITE_FULL"
    with session.transaction():
        assert session.execute("SELECT count(*) FROM t").rows == [(0,)]


def test_a_cursor_left_open_does_not_keep_the_lock(connect: Open, tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/app.db"
    one, two = connect("sqlite", url=url), connect("sqlite", url=url)
    with one.transaction():
        one.execute("CREATE TABLE t (n integer)")
        one.execute("INSERT INTO t VALUES (1), (2)")
    with one.transaction(read_only=True):
        one.cursor("SELECT n FROM t").fetch(1)
    with two.transaction():
        two.execute("DROP TABLE t")
