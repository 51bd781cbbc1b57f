"""What else PostgreSQL's own tests play; rules about databases, runtimes and slots."""

import json
import os
import signal
import socket
import sys
import time
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
    EventKind,
    Handle,
    limits,
)
from posthouse.errors import NoFreeSlot
from posthouse_testing.cluster import LocalCluster

PATIENCE_S = 30.0
BOTH = SHMEM_ACCESS | DATABASE_CONNECTION
SLOTS = 4
WORKERS = '''
import json, os, signal, sys
import posthouse
from posthouse import BackgroundWorker, shmem, worker

def say(**values):
    print(json.dumps(values), flush=True)

def posthouse_init(registry):
    say(initialized=os.getpid())

def wait(arg):
    worker.unblock_signals()
    say(arg=arg, library=__name__, same=worker.entry().main_arg == arg)
    worker.ready()
    while True:
        worker.latch.reset()
        worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH, timeout=60.0)

def dump(arg):
    say(dumped=arg)

def leader(databases):
    """One worker for each database, one after the other; the last word is said at the end."""
    segment, found = shmem.init_struct("leader", 64)
    running = int.from_bytes(segment[0:8], "little")
    if running:
        return say(already=running)
    segment[0:8] = os.getpid().to_bytes(8, "little")
    worker.before_exit(lambda: say(final=databases))
    worker.unblock_signals()
    for database in databases:
        handle = worker.register(BackgroundWorker(
            name=f"dump {database}", main="upstream_workers:dump", main_arg=database,
            restart_time=posthouse.NEVER_RESTART))
        say(ended=handle.wait_for_shutdown(timeout=60).final)
    worker.ready()
    worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH, timeout=60.0)

def in_progress(database):
    """One row is committed, another is not when the end comes."""
    spi = worker.initialize_connection(database)
    with spi.transaction():
        spi.execute("CREATE TABLE IF NOT EXISTS killed (n integer)")
        spi.execute("INSERT INTO killed VALUES (1)")
    with spi.transaction():
        spi.execute("INSERT INTO killed VALUES (2)")
        worker.ready()
        worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH, timeout=60.0)

def fails_at_length(size):
    raise RuntimeError("x" * size + " and the end")

def shows(names):
    worker.initialize_connection(*names)
    with worker.spi.transaction():
        say(found=[worker.spi.execute(f"SHOW {name}").rows[0][0]
                   for name in ("work_mem", "statement_timeout", "search_path")])

def sees_a_role_go(database):
    spi = worker.initialize_connection(database, "leaving")
    worker.unblock_signals()
    worker.ready()
    worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH, timeout=60.0)
    with spi.transaction():
        spi.execute("SELECT current_user")
'''


@pytest.fixture(scope="module")
def urls(served: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    url = served.url
    found = {"app": url, "embedded": f"sqlite://{tmp_path_factory.mktemp('sqlite')}/app.db"}
    found["limited"] = url.replace("postgres@/postgres", "writer@/limited")
    return found


def sql(url: str, *statements: str) -> list[Any]:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        found = [connection.execute(statement.encode()) for statement in statements]
        return found[-1].fetchall() if found[-1].description else []


@pytest.fixture(scope="module")
def cluster(
    urls: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalCluster]:
    sql(urls["app"], "CREATE ROLE writer LOGIN", "CREATE DATABASE limited CONNECTION LIMIT 0")
    folder = tmp_path_factory.mktemp("upstream")
    (folder / "upstream_workers.py").write_text(WORKERS)
    tables = [f'[databases.{name}]\nurl = "{url}"' for name, url in urls.items()]
    tables.append(f'[runtime.other]\npython = "{sys.executable}"\npath = ["{folder}"]')
    (folder / "agent.toml").write_text("\n".join(tables))
    (folder / "master.toml").write_text(f"max_worker_processes = {SLOTS}\n")
    running = LocalCluster(hosts=(), path=[folder])
    running.master.argv += ["--config", str(folder / "master.toml")]
    with running:
        running.start_host("a", "--config", str(folder / "agent.toml"))
        running.wait_for_hosts()
        yield running


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Cluster]:
    with cluster.connect() as connected:
        yield connected
        for info in connected.workers():
            handle = connected.handle(str(info.status.handle and info.status.handle.id))
            handle.terminate()
            handle.wait_until_unregistered(timeout=PATIENCE_S)


@pytest.fixture
def run(client: Cluster, request: pytest.FixtureRequest) -> Callable[..., Handle]:
    def run(called: str, main_arg: Any = None, /, **values: Any) -> Handle:
        given = {"name": f"{called} {os.urandom(3).hex()}", "restart_time": NEVER_RESTART}
        given |= {"main": f"upstream_workers:{called}", "main_arg": main_arg}
        return client.register(BackgroundWorker(**(given | values)))  # type: ignore[arg-type]

    return run


def said(handle: Handle, number: int = 0) -> Any:
    end_s = time.monotonic() + PATIENCE_S
    while (text := handle.output().text).count("\n") <= number:
        assert time.monotonic() < end_s, (handle.status(), text)
        time.sleep(0.02)
    return json.loads(text.splitlines()[number])


# --- autoprewarm: a leader and its workers -----------------------------------------------------


def test_q26_a_leader_runs_workers_one_after_the_other_and_has_the_last_word(
    run: Any, client: Cluster
) -> None:
    cursor = client.cursor()
    leader = run("leader", ["one", "two", "three"], flags=SHMEM_ACCESS, crash_domain="q26")
    leader.wait_for_ready(timeout=PATIENCE_S)
    assert [said(leader, number) for number in range(3)] == [{"ended": True}] * 3
    leader.terminate()
    leader.wait_until_unregistered(timeout=PATIENCE_S)
    assert leader.output().text.endswith('{"final": ["one", "two", "three"]}\n')
    with client.events(after=cursor, follow=False) as stream:
        seen = [
            (event.kind, event.name)
            for event in stream
            if event.name.startswith("dump") and event.kind in (EventKind.STARTED, EventKind.EXITED)
        ]
    assert seen == [
        (kind, f"dump {name}")
        for name in ("one", "two", "three")
        for kind in (EventKind.STARTED, EventKind.EXITED)
    ]


def test_q27_a_second_leader_sees_the_first_and_leaves(run: Any) -> None:
    first = run("leader", [], flags=SHMEM_ACCESS, crash_domain="q27")
    first.wait_for_ready(timeout=PATIENCE_S)
    second = run("leader", [], flags=SHMEM_ACCESS, crash_domain="q27")
    assert second.wait_until_unregistered(timeout=PATIENCE_S).last_exit.code == 0
    assert said(second) == {"already": first.pid()}


# --- recovery ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGKILL])
@pytest.mark.parametrize("database", ["app", "embedded"])
def test_q28_healed_what_was_committed_is_kept_and_the_rest_gone(
    run: Any, urls: dict[str, str], database: str, number: int
) -> None:
    """PostgreSQL cuts all sessions for the crash of one. Here it is that worker's alone."""
    import sqlite3

    other = run("wait", "goes on")
    said(other)
    handle = run("in_progress", database, flags=BOTH)
    os.kill(handle.wait_for_ready(timeout=PATIENCE_S).pid, number)
    handle.wait_until_unregistered(timeout=PATIENCE_S)
    question = "SELECT n FROM killed"
    if database == "app":
        assert sql(urls[database], question, "DROP TABLE killed", "SELECT 1") == [(1,)]
    with sqlite3.connect(urls["embedded"].removeprefix("sqlite://")) as opened:
        if database == "embedded":
            assert opened.execute(question).fetchall() == [(1,)]
            opened.execute("DROP TABLE killed")
    opened.close()
    assert other.status().incarnation == 1
    assert other.pid() is not None


def test_q31_connections_that_say_nothing_and_full_slots_do_not_block_a_fast_stop(
    tmp_path: Path,
) -> None:
    (tmp_path / "upstream_workers.py").write_text(WORKERS)
    (tmp_path / "master.toml").write_text("max_worker_processes = 1\n")
    running = LocalCluster(hosts=("a",), path=[tmp_path])
    running.master.argv += ["--config", str(tmp_path / "master.toml")]
    with running, running.connect() as client:
        spec = BackgroundWorker(name="w", main="upstream_workers:wait")
        client.register(spec).wait_for_ready(timeout=PATIENCE_S)
        silent = []
        for _ in range(8):
            silent.append(socket.socket(socket.AF_UNIX))
            silent[-1].connect(running.clients.removeprefix("ipc://"))
        assert running.run("shutdown", "-m", "fast").returncode == 0
        assert running.master.wait() == 0
        for one in silent:
            one.close()


def test_q33_an_error_of_any_length_is_told_whole(run: Any) -> None:
    """Within a bound, of which the end is left."""
    for size in (10, 10_000, limits.traceback_bytes_max):
        last = run("fails_at_length", size).wait_until_unregistered(timeout=PATIENCE_S).last_exit
        assert last.traceback.endswith("x and the end\n")
        assert ("RuntimeError: " + "x" * size in last.traceback) is (size <= 10_000)


def test_q33_a_role_that_is_dropped_meanwhile_crashes_nobody(
    run: Any, urls: dict[str, str]
) -> None:
    sql(urls["app"], "CREATE ROLE leaving LOGIN")
    handle = run("sees_a_role_go", "app", flags=BOTH)
    handle.wait_for_ready(timeout=PATIENCE_S)
    sql(urls["app"], "DROP ROLE leaving")
    handle.set_latch()
    last = handle.wait_until_unregistered(timeout=PATIENCE_S).last_exit
    assert last.signal is None
    assert last.code in (0, 1)


# --- rules of databases, runtimes and slots ----------------------------------------------------


def test_w12_settings_of_database_and_role_are_those_of_the_worker(
    run: Any, urls: dict[str, str]
) -> None:
    sql(
        urls["app"],
        "CREATE ROLE tuned LOGIN",
        "ALTER ROLE tuned SET work_mem = '3MB'",
        "ALTER ROLE tuned SET search_path = \"$user\", 'it''s'",
        "ALTER ROLE tuned IN DATABASE postgres SET statement_timeout = '77s'",
        "ALTER DATABASE postgres SET statement_timeout = '55s'",
    )
    try:
        plain = said(run("shows", ["app", None], flags=BOTH))["found"]
        tuned = said(run("shows", ["app", "tuned"], flags=BOTH))["found"]
    finally:
        sql(urls["app"], "ALTER DATABASE postgres RESET statement_timeout")
    assert plain[1] == "55s"
    assert tuned == ["3MB", "77s", '"$user", "it\'s"']


def test_w12_healed_a_databases_limit_of_connections_is_for_workers_too(run: Any) -> None:
    """PostgreSQL lets workers pass limits and reserved slots. Here a storm of them cannot take what
    is kept for the superuser."""
    handle = run("shows", ["limited"], flags=BOTH)
    last = handle.wait_until_unregistered(timeout=PATIENCE_S).last_exit
    assert last.code == 1
    assert 'too many connections for database "limited"' in last.traceback


def test_w15_an_executed_child_gets_the_record_as_bytes_and_names(run: Any) -> None:
    """In another interpreter: no pointer of the registrant's could be good there. It does not run
    the library's static registration again."""
    handle = run("wait", {"deep": [1, "text", None]}, runtime="other")
    handle.wait_for_ready(timeout=PATIENCE_S)
    text = handle.output().text
    assert '"library": "upstream_workers"' in text
    assert "initialized" not in text


def test_w16_workers_and_connections_are_counted_apart(
    run: Any, client: Cluster, cluster: LocalCluster
) -> None:
    """Full slots keep no client out, and clients take no slot."""
    for _ in range(SLOTS):
        run("wait", "a slot")
    with pytest.raises(NoFreeSlot):
        run("wait", "one too many")
    clients = [cluster.connect() for _ in range(3 * SLOTS)]
    assert {len(one.workers()) for one in clients} == {SLOTS}
    client.workers()[0]
    for one in clients:
        one.close()
