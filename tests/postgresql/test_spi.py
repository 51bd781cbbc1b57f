"""Database connections of workers: a real PostgreSQL server, and the embedded database."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from posthouse import (
    DATABASE_CONNECTION,
    NEVER_RESTART,
    SHMEM_ACCESS,
    BackgroundWorker,
    Cluster,
    Handle,
)
from posthouse_testing.cluster import LocalCluster

PATIENCE_S = 30.0
BOTH = SHMEM_ACCESS | DATABASE_CONNECTION
SETUP = """
CREATE ROLE writer LOGIN; CREATE ROLE sleeper NOLOGIN; CREATE ROLE outsider LOGIN;
CREATE DATABASE app; CREATE DATABASE closed; CREATE DATABASE private;
REVOKE CONNECT ON DATABASE private FROM PUBLIC;
ALTER DATABASE closed ALLOW_CONNECTIONS false
"""


def sql(url: str, *statements: str) -> list[Any]:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        found = [connection.execute(statement.encode()) for statement in statements]
        return found[-1].fetchall() if found[-1].description else []


@pytest.fixture(scope="module")
def urls(served: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    sql(served.url, *SETUP.split(";"))

    def url(name: str) -> str:
        return served.url.replace("postgres@/postgres", f"postgres:s3cr3t@/{name}")

    found = {name: url(name) for name in ("postgres", "app", "closed", "private", "missing")}
    sql(found["app"], "CREATE TABLE kept (n integer)")
    found["absent"] = served.url.replace("5432", "5999")
    found["embedded"] = f"sqlite://{tmp_path_factory.mktemp('sqlite')}/app.db"
    return found


@pytest.fixture(scope="module")
def cluster(urls: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("spi")
    shutil.copy(Path(__file__).parent / "spi_workers.py", folder)
    lines = [f'[databases.{name}]\nurl = "{url}"' for name, url in urls.items()]
    lines[0] += "\nmaintenance = true"
    (folder / "agent.toml").write_text("\n".join(lines))
    house = LocalCluster(hosts=(), path=[folder])
    with house:
        house.start_host("a", "--config", str(folder / "agent.toml"))
        house.wait_for_hosts()
        yield house


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Cluster]:
    with cluster.connect() as connected:
        yield connected
        for info in connected.workers():
            handle = connected.handle(str(info.status.handle and info.status.handle.id))
            handle.terminate()
            handle.wait_until_unregistered(timeout=PATIENCE_S)


@pytest.fixture
def run(client: Cluster) -> Callable[..., Handle]:
    def made(called: str, main_arg: Any = None, /, **values: Any) -> Handle:
        name = f"{called}-{uuid.uuid4().hex[:6]}"
        given = {"name": name, "main": f"spi_workers:{called}", "main_arg": main_arg, "flags": BOTH}
        return client.register(BackgroundWorker(**(given | values)))  # type: ignore[arg-type]

    return made


def said(handle: Handle, number: int = 0) -> Any:
    """The line of this number that it printed."""
    end_s = time.monotonic() + PATIENCE_S
    while (text := handle.output().text).count("\n") <= number:
        assert time.monotonic() < end_s, (handle.status(), text)
        time.sleep(0.02)
    return json.loads(text.splitlines()[number])


def test_w9_a_worker_without_the_flag_gets_no_database(run: Any) -> None:
    found = said(run("asks", [["app"], {}], flags=SHMEM_ACCESS))
    assert found["error"] == "database connection requirement not indicated during registration"
    assert "DATABASE_CONNECTION" in found["hint"]


@pytest.mark.parametrize("name", ["app", "embedded"])
def test_w9_a_worker_connects_once(run: Any, name: str) -> None:
    """And until then it has loaded nothing for it."""
    handle = run("before_and_twice", name)
    assert said(handle) == {"before": "no database is connected", "loaded": []}
    assert "it is not possible to switch databases" in said(handle, 1)["error"]


def test_w10_which_database_and_which_role(run: Any) -> None:
    assert said(run("asks", [["app"], {}]))["who"] == [["postgres", "postgres"]]
    assert said(run("asks", [["app", "writer"], {}]))["who"] == [["writer", "writer"]]
    found = said(run("asks", [["nowhere"], {}]))
    assert found["error"] == "no database 'nowhere' is configured on this host"
    assert "app" in found["hint"]
    assert 'database "missing" does not exist' in said(run("asks", [["missing"], {}]))["error"]
    found = said(run("asks", [["app", "nobody"], {}]))
    assert (found["error"], found["state"]) == ('role "nobody" does not exist', "28000")
    found = said(run("asks", [["private", "outsider"], {}]))
    assert found["state"] == "42501"
    found = said(run("asks", [["absent"], {}]))
    assert found["error"].startswith("no connection: ")


def test_w11_bypass_flags(run: Any) -> None:
    """Differs: a database that allows no connections takes none of a client, bypass or not."""
    assert said(run("asks", [["app", "sleeper"], {}]))["error"] == (
        'role "sleeper" is not permitted to log in'
    )
    assert said(run("asks", [["app", "sleeper"], {"flags": 2}]))["who"][0][0] == "sleeper"
    assert said(run("asks", [["private", "outsider"], {"flags": 1}]))["who"][0][0] == "outsider"
    for flags in (0, 1):
        found = said(run("asks", [["closed"], {"flags": flags}]))
        assert "is not currently accepting connections" in found["error"]
    assert "flags is 4" in said(run("asks", [["app"], {"flags": 4}]))["error"]


def test_w9_w10_by_oid(run: Any, urls: dict[str, str]) -> None:
    question = "SELECT oid::int8 FROM pg_database WHERE datname = 'app'"
    app = sql(urls["postgres"], question)[0][0]
    writer = sql(urls["postgres"], "SELECT oid::int8 FROM pg_roles WHERE rolname = 'writer'")[0][0]
    assert said(run("by_oid", [app, writer])) == {"db": "app", "who": "writer", "read_only": False}
    assert said(run("by_oid", [0, 0])) == {"db": "postgres", "who": "postgres", "read_only": True}
    assert said(run("by_oid", [4_000_000_000, 0]))["state"] == "3D000"
    assert "an oid is -1" in said(run("by_oid", [-1, 0]))["error"]


def test_w10_no_database_is_the_maintenance_database_read_only(run: Any) -> None:
    assert said(run("asks", [[None], {}]))["who"] == [["postgres", "postgres"]]


def test_sqlite_has_no_roles(run: Any) -> None:
    found = said(run("asks", [["embedded", "writer"], {}]))
    assert found["error"] == "SQLite has no roles, so nobody can be 'writer'"


@pytest.mark.parametrize("name", ["app", "embedded"])
def test_spi_runs_transactions_like_a_regular_client(run: Any, name: str) -> None:
    found = said(run("statements", name))
    lite = name == "embedded"
    assert found.pop("engine") == ("sqlite" if lite else "postgresql")
    assert found.pop("duplicate") == ("SQLITE_CONSTRAINT_PRIMARYKEY" if lite else "23505")
    refused = found.pop("refused")
    assert refused.pop("DELETE FROM t") == ("SQLITE_READONLY" if lite else "25006")
    assert refused == {
        "COMMIT": "COMMIT is not a statement for spi",
        "DELETE FROM t;SELECT swallow FROM t": "25P02",
        "outside": "not inside a transaction",
    }
    assert found == {
        "inserted": [1] * 10,
        "twice": [["row 3"], ["row 4"]],
        "limit": 4,
        "cursor": [[[4], [5], [6], [7]], [[8], [9]], []],
        "left": [[1], [2]],
        "after": 9,
    }


def test_the_activity_view_shows_the_name_and_nothing_shows_the_url(
    run: Any, cluster: LocalCluster
) -> None:
    handle = run("named", "app", name="short")
    assert said(handle) == {"shown": "short", "in_environment": []}
    shown = said(run("named", "app", name="long-" + "x" * 90))["shown"]
    assert shown.startswith("long-xx")
    assert len(shown) == 63
    logs = [*cluster.dir.glob("*.log"), *cluster.dir.glob("hosts/*/**/*")]
    assert len(logs) > 3
    assert not [path for path in logs if path.is_file() and b"s3cr3t" in path.read_bytes()]


def test_w13_healed_a_worker_waits_for_notifications_on_its_latch(
    run: Any, urls: dict[str, str]
) -> None:
    handle = run("listens", "app")
    assert said(handle) == {"listening": True}
    assert said(handle, 1) == {"channel": "news", "payload": "of my own"}
    sql(urls["app"], "NOTIFY news, 'of another'", "NOTIFY news, 'end'")
    assert said(handle, 2)["payload"] == "of another"
    assert handle.wait_until_unregistered(timeout=PATIENCE_S).last_exit.code == 0


def waits_in_a_statement(handle: Handle, urls: dict[str, str], line: int = 0) -> dict[str, int]:
    found = said(handle, line)
    end_s = time.monotonic() + PATIENCE_S
    question = f"SELECT query FROM pg_stat_activity WHERE pid = {found['server']}"
    while not (row := sql(urls["app"], question)) or "pg_sleep" not in row[0][0]:
        assert time.monotonic() < end_s
        time.sleep(0.02)
    return dict(found)


def test_w2_int_cancels_the_statement_of_a_worker_with_a_database(
    run: Any, urls: dict[str, str]
) -> None:
    handle = run("sleeps", "app")
    os.kill(waits_in_a_statement(handle, urls)["pid"], signal.SIGINT)
    assert said(handle, 1) == {"error": "DatabaseError", "state": "57014"}
    assert said(handle, 2) == {"answers": 7, "int": True}


def test_w2_term_ends_a_worker_inside_a_statement(run: Any, urls: dict[str, str]) -> None:
    handle = run("sleeps", "app", stop_grace_s=20.0)
    found = waits_in_a_statement(handle, urls)
    os.kill(found["pid"], signal.SIGTERM)
    status = handle.wait_for_shutdown(timeout=10)
    assert status.last_exit is not None
    assert status.last_exit.code == 1
    sql(urls["app"], f"SELECT pg_terminate_backend({found['server']})")
    assert sql(urls["app"], "SELECT count(*) FROM kept") == [(0,)]


def test_a_lost_connection_is_an_error_and_the_restart_connects_anew(
    run: Any, urls: dict[str, str]
) -> None:
    """The server ends the connection in the middle of a transaction."""
    handle = run("sleeps", "app", restart_time=0)
    found = waits_in_a_statement(handle, urls)
    sql(urls["app"], f"SELECT pg_terminate_backend({found['server']})")
    assert said(handle, 1)["error"] == "DatabaseLost"
    end_s = time.monotonic() + PATIENCE_S
    while (status := handle.status()).incarnation < 2:
        assert time.monotonic() < end_s, status
        time.sleep(0.02)
    assert "DatabaseLost" in str(status.last_exit)
    assert sql(urls["app"], "SELECT count(*) FROM kept") == [(0,)]


@pytest.mark.parametrize("name", ["app", "embedded"])
def test_a_stale_token_is_refused_inside_the_database(
    run: Any, urls: dict[str, str], cluster: LocalCluster, name: str
) -> None:
    lite = name == "embedded"
    key = uuid.uuid4().hex

    def do(*statements: str) -> list[Any]:
        if not lite:
            return sql(urls[name], *statements)
        with sqlite3.connect(urls[name].removeprefix("sqlite://")) as database:
            for statement in statements:
                found = database.execute(statement).fetchall()
        database.close()
        return list(found)

    do("DROP TABLE IF EXISTS kept", "CREATE TABLE kept (n integer)")
    old = run("fenced", [name, key], restart_time=NEVER_RESTART)
    token = said(old)["token"]
    found = said(old, 1)
    assert "posthouse fence-sql" in found["hint"]

    printed: subprocess.CompletedProcess[str] = cluster.run(
        "fence-sql", *(["--sqlite"] if lite else [])
    )
    assert printed.returncode == 0
    do(printed.stdout)
    old.set_latch()
    assert said(old, 2) == {"wrote": token}
    new = run("fenced", [name, key])
    later = said(new)["token"]
    assert said(new, 1) == {"wrote": later}
    assert later > token
    old.set_latch()
    assert said(old, 3) == {"fenced_off": f'a later start of "{key}" than {token} has been here'}
    new.set_latch()
    assert said(new, 2) == {"wrote": later}
    assert do("SELECT n FROM kept") == [(token,), (later,), (later,)]
