"""The chapter, sentence by sentence: databases, and the state of the server at the start.

Real workers, a real PostgreSQL and its hot standby, and the embedded database.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posthouse import (
    DATABASE_CONNECTION,
    SHMEM_ACCESS,
    BackgroundWorker,
    Phase,
    StartTime,
    WorkerState,
)
from posthouse_testing.cluster import LocalCluster

PATIENCE_S = 30.0
BOTH = SHMEM_ACCESS | DATABASE_CONNECTION
WORKERS = '''
import json
from posthouse import worker
from posthouse.errors import PosthouseError

def say(**values):
    print(json.dumps(values), flush=True)

def ask(sql, *values, **options):
    with worker.spi.transaction(**options):
        return worker.spi.execute(sql, values).rows

def attempt(call, *given):
    try:
        call(*given)
    except PosthouseError as error:
        return error.message

def connects(database):
    worker.initialize_connection(database)
    say(answer=ask("SELECT $1 + 1", 41)[0][0])

def many_transactions(database):
    spi = worker.initialize_connection(database)
    with spi.transaction():
        spi.execute("CREATE TABLE IF NOT EXISTS seed (n integer)")
        spi.execute("DELETE FROM seed")
    for n in range(3):
        try:
            with spi.transaction():
                spi.execute("INSERT INTO seed VALUES ($1)", [n])
                if n == 1:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            pass
    say(kept=[n for n, in ask("SELECT n FROM seed ORDER BY n")])

def ordinary_client(url):
    """Nothing of posthouse's: its own connection, as any program's."""
    import psycopg
    with psycopg.connect(url) as connection:
        (kind,) = connection.execute(
            "SELECT backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid()").fetchone()
    say(kind=kind, spi=attempt(worker.__getattr__, "spi"))

def no_flag(database):
    say(error=attempt(worker.initialize_connection, database))

def by_names(asked):
    worker.initialize_connection(*asked)
    say(now=ask("SELECT current_database()::text, current_user::text")[0])

def by_oids(oids):
    worker.initialize_connection_by_oid(*oids)
    say(now=ask("SELECT current_database()::text, current_user::text")[0])

def no_database(_):
    worker.initialize_connection(None)
    say(shared=ask("SELECT count(*) > 2 FROM pg_database")[0][0],
        write=attempt(ask, "CREATE TABLE t (n integer)"))

def twice(call):
    """One of the two, once."""
    first = {"names": ("app",), "oids": (0, 0)}
    getattr(worker, "initialize_connection" + ("_by_oid" if call == "oids" else ""))(*first[call])
    before = ask("SELECT current_database()::text")
    say(errors=[attempt(worker.initialize_connection, "postgres"),
                attempt(worker.initialize_connection_by_oid, 0, 0)],
        same=ask("SELECT current_database()::text") == before)

def on_standby(_):
    worker.initialize_connection("app")
    say(recovery=ask("SELECT pg_is_in_recovery()")[0][0],
        write=attempt(ask, "CREATE TABLE standby (n integer)"))
    worker.unblock_signals()
    worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH, timeout=60.0)
    say(recovery=ask("SELECT pg_is_in_recovery()")[0][0])
    worker.latch.reset()
    worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH, timeout=60.0)

def wait(_):
    worker.unblock_signals()
    worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH, timeout=60.0)
'''


def sql(url: str, statement: str) -> list[Any]:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(statement.encode())
        return found.fetchall() if found.description else []


def host_with(databases: dict[str, str], folder: Path, **options: Any) -> LocalCluster:
    (folder / "seed_workers.py").write_text(WORKERS)
    tables = [f'[databases.{name}]\nurl = "{url}"\n' for name, url in databases.items()]
    (folder / "agent.toml").write_text(tables[0] + "maintenance = true\n" + "".join(tables[1:]))
    return LocalCluster(hosts=(), path=[folder], **options)


@pytest.fixture(scope="module")
def urls(served: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    for statement in ("CREATE DATABASE app", "CREATE ROLE writer LOGIN"):
        sql(served.url, statement)
    return {
        "postgres": served.url,
        "app": served.url.replace("/postgres?", "/app?"),
        "embedded": f"sqlite://{tmp_path_factory.mktemp('sqlite')}/app.db",
    }


@pytest.fixture(scope="module")
def cluster(
    urls: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalCluster]:
    folder = tmp_path_factory.mktemp("seed")
    with host_with(urls, folder) as running:
        running.start_host("a", "--config", str(folder / "agent.toml"))
        running.wait_for_hosts()
        yield running


engines = pytest.mark.parametrize("database", ["app", "embedded"])


# --- connections ---------------------------------------------------------------------------------


@engines
def test_a_worker_can_connect_to_a_database(register, said, database: str) -> None:
    assert said(register("connects", database, flags=BOTH)) == {"answer": 42}


@engines
def test_it_runs_transactions_one_after_the_other(register, said, database: str) -> None:
    assert said(register("many_transactions", database, flags=BOTH)) == {"kept": [0, 2]}


def test_it_may_be_an_ordinary_client_of_the_server_instead(register, said, urls) -> None:
    told = said(register("ordinary_client", urls["app"]))
    assert told == {"kind": "client backend", "spi": "no database is connected"}


def test_a_flag_asks_for_the_ability_to_connect(register, said) -> None:
    told = said(register("no_flag", "app", flags=SHMEM_ACCESS))
    assert told == {"error": "database connection requirement not indicated during registration"}
    assert said(register("no_flag", "app", flags=BOTH)) == {"error": None}


def test_it_connects_by_names_or_by_oids(register, said, urls) -> None:
    ((database, role),) = sql(
        urls["app"],
        "SELECT d.oid::int8, r.oid::int8 FROM pg_database d, pg_roles r"
        " WHERE datname = 'app' AND rolname = 'writer'",
    )
    names, oids = (
        register("by_names", ["app", "writer"], flags=BOTH),
        register("by_oids", [database, role], flags=BOTH),
    )
    assert said(names) == said(oids) == {"now": ["app", "writer"]}


def test_without_a_database_there_are_the_shared_catalogs(register, said) -> None:
    """PostgreSQL: connected to no database. A client always is to one: to the maintenance database,
    in which nothing can be written."""
    told = said(register("no_database", flags=BOTH))
    assert told["shared"] is True
    assert "read-only transaction" in told["write"]


def test_without_a_role_it_is_the_role_of_the_configuration(register, said, urls) -> None:
    """PostgreSQL: the superuser of initdb, whom no client becomes for the asking."""
    told = said(register("by_names", ["app", None], flags=BOTH))
    ((role,),) = sql(urls["app"], "SELECT current_user::text")
    assert told == {"now": ["app", role]}


@pytest.mark.parametrize("call", ["names", "oids"])
def test_one_of_the_two_calls_once(register, said, call: str) -> None:
    told = said(register("twice", call, flags=BOTH))
    assert all("it is not possible to switch databases" in error for error in told["errors"])


def test_databases_cannot_be_switched(register, said) -> None:
    told = said(register("twice", "names", flags=BOTH))
    assert told["same"] is True


# --- the example ---------------------------------------------------------------------------------


@engines
def test_the_example_works(urls: dict[str, str], tmp_path: Path, database: str) -> None:
    examples = Path(__file__).parents[2] / "examples"
    with host_with(urls, tmp_path) as running, running.connect() as client:
        running.start_host("a", "--config", str(tmp_path / "agent.toml"), f"--path={examples}")
        running.wait_for_hosts()
        handle = client.register(
            BackgroundWorker(
                name="example",
                main="worker_spi:main",
                main_arg={"number": 1, "database": database, "role": None},
                flags=BOTH,
            )
        )
        assert handle.wait_for_ready(timeout=PATIENCE_S).state is WorkerState.STARTED


# --- the state of the server at the start --------------------------------------------------------


@pytest.fixture(scope="module")
def story(pair_of_module: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A host beside a standby that starts, follows its primary and is promoted: what was seen."""
    primary, standby = pair_of_module
    folder = tmp_path_factory.mktemp("story")
    url = standby.url
    seen: dict[str, Any] = {}
    env = {"POSTHOUSE_CLUSTER__FOLLOW": url}
    with host_with({"app": url}, folder, env=env) as house, house.connect() as client:
        house.start_host("a", "--config", str(folder / "agent.toml"))
        house.wait_for_hosts()
        handles = {
            start_time: client.register(
                BackgroundWorker(
                    name=str(start_time),
                    main="seed_workers:wait"
                    if start_time is StartTime.POSTMASTER_START
                    else "seed_workers:on_standby",
                    flags=0 if start_time is StartTime.POSTMASTER_START else BOTH,
                    start_time=start_time,
                )
            )
            for start_time in StartTime
        }

        def states() -> list[str]:
            return [str(handle.status().state) for handle in handles.values()]

        def until_it_said(start_time: StartTime, lines: int) -> list[Any]:
            end_s = time.monotonic() + PATIENCE_S
            while (text := handles[start_time].output().text).count("\n") < lines:
                assert time.monotonic() < end_s, handles[start_time].status()
                time.sleep(0.02)
            return [json.loads(line) for line in text.splitlines()]

        handles[StartTime.POSTMASTER_START].wait_for_startup(timeout=PATIENCE_S)
        seen["starting"] = states()
        primary.start()
        standby.start()
        handles[StartTime.CONSISTENT_STATE].wait_for_startup(timeout=PATIENCE_S)
        seen["read"] = until_it_said(StartTime.CONSISTENT_STATE, 1)
        seen["hot_standby"] = states(), client.phase().phase
        pids = [handle.status().pid for handle in list(handles.values())[:2]]
        standby.promote()
        handles[StartTime.RECOVERY_FINISHED].wait_for_startup(timeout=PATIENCE_S)
        seen["running"] = states(), client.phase().phase
        seen["written"] = until_it_said(StartTime.RECOVERY_FINISHED, 1)
        handles[StartTime.CONSISTENT_STATE].set_latch()
        seen["reads_on"] = until_it_said(StartTime.CONSISTENT_STATE, 2)[1]
        seen["same"] = pids == [handle.status().pid for handle in list(handles.values())[:2]]
    return seen


STARTED, WAITS = str(WorkerState.STARTED), str(WorkerState.NOT_YET_STARTED)


def test_postmaster_start_is_before_any_consistent_state(story) -> None:
    assert story["starting"] == [STARTED, WAITS, WAITS]


def test_consistent_state_workers_connect_to_a_hot_standby_and_read(story) -> None:
    assert story["hot_standby"] == ([STARTED, STARTED, WAITS], Phase.HOT_STANDBY)
    (told,) = story["read"]
    assert told["recovery"] is True
    assert "cannot execute CREATE TABLE in a read-only transaction" in told["write"]


def test_recovery_finished_workers_start_in_the_read_write_state(story) -> None:
    assert story["running"] == ([STARTED, STARTED, STARTED], Phase.RUNNING)
    assert story["written"] == [{"recovery": False, "write": None}]


def test_a_new_state_stops_nobody(story) -> None:
    """The one that began on the standby goes on, over its connection of then."""
    assert story["same"] is True
    assert story["reads_on"] == {"recovery": False}
