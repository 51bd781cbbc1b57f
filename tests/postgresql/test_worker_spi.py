"""PostgreSQL's tests of worker_spi, by examples/worker_spi (Q1-Q15), and on SQLite what it has."""

import shutil
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from posthouse import BackgroundWorker, Cluster, Handle, Status, WorkerState
from posthouse.errors import NoFreeSlot, RefusedError, Unreachable, UsageError
from posthouse_testing.cluster import LocalCluster

EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE_S = 30.0
pytestmark = pytest.mark.timeout(180)  # whole servers, on a busy machine
CLOSED = 'database "noconn" is not currently accepting connections'
SETUP = (
    "CREATE ROLE regress LOGIN SUPERUSER",
    "CREATE ROLE nologrole NOLOGIN",
    "CREATE DATABASE mydb",
    "CREATE DATABASE noconn ALLOW_CONNECTIONS false",
    "CREATE DATABASE private",
    "CREATE ROLE outsider LOGIN",
    "REVOKE CONNECT ON DATABASE private FROM PUBLIC",
    "GRANT CREATE ON DATABASE private TO outsider",
    "GRANT CREATE ON DATABASE mydb TO nologrole",
    "CREATE DATABASE shape",
)
engines = pytest.mark.parametrize("database", ["mydb", "embedded"])


@pytest.fixture(scope="module")
def launch() -> Iterator[ModuleType]:
    sys.path.insert(0, str(EXAMPLES))
    try:
        import worker_spi.launch

        yield worker_spi.launch
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def urls(served: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    import psycopg

    with psycopg.connect(served.url, autocommit=True) as connection:
        for statement in SETUP:
            connection.execute(statement.encode())
    names = ("postgres", "mydb", "noconn", "private", "shape")
    found = {name: served.url.replace("/postgres?", f"/{name}?") for name in names}
    return found | {"embedded": f"sqlite://{tmp_path_factory.mktemp('sqlite')}/app.db"}


def start(urls: dict[str, str], folder: Path, master: str = "", **env: str) -> LocalCluster:
    tables = [f'[databases.{name}]\nurl = "{url}"' for name, url in urls.items()]
    (folder / "agent.toml").write_text("\n".join(tables))
    (folder / "master.toml").write_text(master)
    running = LocalCluster(hosts=(), path=[EXAMPLES], modules=["worker_spi"], env=env)
    running.master.argv += ["--config", str(folder / "master.toml"), f"--preload-path={EXAMPLES}"]
    return running


@pytest.fixture(scope="module")
def cluster(
    urls: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalCluster]:
    folder = tmp_path_factory.mktemp("dynamic")
    with start(urls, folder) as running:
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


@pytest.fixture(scope="module")
def ask(urls: dict[str, str]) -> Callable[..., list[Any]]:
    """ask(database, statement): its rows, by a client that is none of ours."""
    import psycopg

    def on(database: str, statement: str) -> list[Any]:
        if database == "embedded":
            with sqlite3.connect(urls[database].removeprefix("sqlite://")) as opened:
                found = opened.execute(statement).fetchall()
            opened.close()
            return found
        with psycopg.connect(urls[database], autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    return on


def table(database: str, number: int) -> str:
    return f"schema{number}_counted" if database == "embedded" else f"schema{number}.counted"


def dynamic(client: Cluster, number: int) -> Handle:
    return client.handle(f"worker_spi dynamic worker {number}")


def why_it_failed(launch: Any, client: Cluster, number: int, *given: Any) -> str:
    """The traceback of a launch that fails. The launcher may see it stopped: then it is told so."""
    try:
        launch.launch(client, number, *given)
    except RefusedError as error:
        assert "could not start background process" in error.message
    last = ended(dynamic(client, number)).last_exit
    assert last is not None
    assert last.code == 1
    return last.traceback + str(last.output_tail)


def made_by(ask: Any, database: str, number: int) -> str:
    """The owner of its schema."""
    ((owner,),) = ask(
        database,
        f"SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'schema{number}'",
    )
    return str(owner)


def ended(handle: Handle) -> Status:
    return handle.wait_until_unregistered(timeout=PATIENCE_S)


ACTIVITY = (
    "SELECT application_name, datname FROM pg_stat_activity"
    " WHERE application_name LIKE 'worker_spi%'"
)


@engines
def test_q1_a_dynamic_worker_without_preloading(
    launch: Any, client: Cluster, ask: Any, database: str
) -> None:
    assert launch.launch(client, 4, database) > 0
    dynamic(client, 4).wait_for_ready(timeout=PATIENCE_S)
    assert ask(database, f"SELECT count(*) FROM {table(database, 4)}") == [(0,)]


@engines
def test_q2_a_reload_wakes_it_before_its_nap_ends(
    launch: Any, client: Cluster, ask: Any, eventually: Any, database: str
) -> None:
    launch.launch(client, 5, database, nap_s=3600.0)
    worker = dynamic(client, 5)
    worker.wait_for_ready(timeout=PATIENCE_S)
    counted = table(database, 5)
    ask(database, f"INSERT INTO {counted} VALUES ('total', 0), ('delta', 1)")
    worker.reload()
    eventually(lambda: ask(database, f"SELECT type, value FROM {counted}") == [("total", 1)])
    eventually(lambda: f"count in {counted} is now 1" in worker.output().text)


def test_q3_where_it_waits_can_be_seen(
    launch: Any, client: Cluster, cluster: LocalCluster, eventually: Any
) -> None:
    """PostgreSQL: a wait event that the module names itself. Healed: without the module's doing."""
    launch.launch(client, 6, "mydb")
    dynamic(client, 6).wait_for_ready(timeout=PATIENCE_S)
    eventually(lambda: "in nap" in cluster.run("stacks", "worker_spi dynamic worker 6").stdout)


@engines
def test_q4_static_workers_of_a_preloaded_library(
    urls: dict[str, str], ask: Any, tmp_path: Path, database: str
) -> None:
    """32 slots, three workers: exactly three, in the named database, all waiting."""
    master = 'preload_libraries = ["worker_spi"]\nmax_worker_processes = 32\n'
    env = {"WORKER_SPI_TOTAL_WORKERS": "3", "WORKER_SPI_DATABASE": database}
    with start(urls, tmp_path, master, **env) as running, running.connect() as client:
        running.start_host("a", "--config", str(tmp_path / "agent.toml"))
        running.wait_for_hosts()
        names = [f"worker_spi worker {number}" for number in (1, 2, 3)]
        for name in names:
            client.handle(name).wait_for_ready(timeout=PATIENCE_S)
        found = client.workers()
        assert [(one.status.name, one.spec["type"]) for one in found] == [
            (name, "worker_spi") for name in names
        ]
        assert {str(info.status.state) for info in found} == {WorkerState.STARTED}
        if database == "mydb":
            shown = [(name, state) for name, _, state in ask(database, STATES)]
            assert shown == [(name, "idle") for name in names]
        for number in (1, 2, 3):
            assert ask(database, f"SELECT count(*) FROM {table(database, number)}") == [(0,)]


STATES = (
    "SELECT application_name, datname, state FROM pg_stat_activity"
    " WHERE application_name LIKE 'worker_spi worker%' ORDER BY 1"
)


def test_q5_dynamic_workers_as_a_role_in_two_databases(
    launch: Any, client: Cluster, ask: Any
) -> None:
    """It acts as the role; the server's view shows whom the URL let in."""
    for number, database in ((10, "mydb"), (11, "postgres")):
        launch.launch(client, number, database, "regress")
        dynamic(client, number).wait_for_ready(timeout=PATIENCE_S)
    assert {one.spec["type"] for one in client.workers()} == {"worker_spi dynamic"}
    for number, database in ((10, "mydb"), (11, "postgres")):
        assert made_by(ask, database, number) == "regress"
        assert (f"worker_spi dynamic worker {number}", database) in ask("postgres", ACTIVITY)


def test_q6_a_database_that_allows_no_connections(launch: Any, client: Cluster) -> None:
    assert CLOSED in why_it_failed(launch, client, 12, "noconn", "regress")


def test_q7_healed_the_bypass_flag_reaches_as_far_as_a_client_can(
    launch: Any, client: Cluster, ask: Any
) -> None:
    """PostgreSQL lets it in. No client is let into such a database, and the worker says
    so; where the role lacks CONNECT alone, the flag is enough."""
    assert CLOSED in why_it_failed(launch, client, 13, "noconn", "regress", ["ALLOWCONN"])
    assert "no privilege CONNECT" in why_it_failed(launch, client, 14, "private", "outsider")
    launch.launch(client, 15, "private", "outsider", ["ALLOWCONN"])
    dynamic(client, 15).wait_for_ready(timeout=PATIENCE_S)
    assert made_by(ask, "private", 15) == "outsider"


def test_q8_a_role_that_may_not_log_in(launch: Any, client: Cluster) -> None:
    told = why_it_failed(launch, client, 16, "mydb", "nologrole")
    assert 'role "nologrole" is not permitted to log in' in told


def test_q9_unless_the_other_flag_is_given(launch: Any, client: Cluster, ask: Any) -> None:
    launch.launch(client, 16, "mydb", "nologrole", ["ROLELOGINCHECK"])
    dynamic(client, 16).wait_for_ready(timeout=PATIENCE_S)
    assert made_by(ask, "mydb", 16) == "nologrole"


@pytest.mark.parametrize("flags", [[["ALLOWCONN"]], ["ALLOWCONN", None], ["NOWORD"], "ALLOWCONN"])
def test_q10_bad_flags(launch: Any, client: Cluster, flags: Any) -> None:
    with pytest.raises(UsageError, match=r"^flags must be|^incorrect flag value 'NOWORD'"):
        launch.launch(client, 17, "mydb", None, flags)
    assert client.workers() == []


def test_q10_what_a_launcher_is_told(
    launch: Any, urls: dict[str, str], tmp_path: Path, client: Cluster
) -> None:
    """No slot: PostgreSQL gives NULL. Healed: an error that says who has them."""
    with start(urls, tmp_path, "max_worker_processes = 1\n") as running:
        running.start_host("a", "--config", str(tmp_path / "agent.toml"))
        running.wait_for_hosts()
        with running.connect() as other:
            launch.launch(other, 1, "mydb")
            with pytest.raises(NoFreeSlot, match="max_worker_processes"):
                launch.launch(other, 2, "mydb")
            dynamic(other, 1).terminate()
            ended(dynamic(other, 1))
            other.drain("a")
        with running.connect() as witness, running.connect(master_silence_s=0.5) as other:

            def kill_once_it_is_registered() -> None:
                while not witness.workers():
                    time.sleep(0.02)
                running.master.kill()

            killer = threading.Thread(target=kill_once_it_is_registered)
            killer.start()
            with pytest.raises(Unreachable, match="without postmaster"):
                launch.launch(other, 3, "mydb")
            killer.join(PATIENCE_S)
        running.master.start()


# --- commands on a database that workers are connected to ------------------------------------


def test_q11_w14_a_connected_worker_keeps_its_database_from_being_a_template(
    launch: Any, client: Cluster, ask: Any
) -> None:
    import psycopg

    launch.launch(client, 20, "shape")
    worker = dynamic(client, 20)
    worker.wait_for_ready(timeout=PATIENCE_S)
    pid = worker.pid()
    with pytest.raises(psycopg.errors.ObjectInUse, match="is being accessed by other users"):
        ask("postgres", "CREATE DATABASE copy TEMPLATE shape")
    assert worker.pid() == pid


COMMANDS = {
    "q12": ["CREATE DATABASE copy TEMPLATE shape"],
    "q13": ["ALTER DATABASE shape RENAME TO form", "ALTER DATABASE form RENAME TO shape"],
    "q14": [
        "ALTER DATABASE shape SET TABLESPACE moved",
        "ALTER DATABASE shape SET TABLESPACE pg_default",
    ],
    "q15": ["DROP DATABASE shape", "CREATE DATABASE shape"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_q12_q13_q14_q15_w14_healed_a_worker_is_held_for_such_a_command(
    launch: Any, client: Cluster, ask: Any, served: Any, command: str
) -> None:
    """PostgreSQL 19: the command ends workers that allow it, for good. Here they are held and
    released, by whoever runs the command, and none is lost."""
    if command == "q14" and not ask("postgres", "SELECT FROM pg_tablespace WHERE spcname='moved'"):
        place = served.folder / "moved"
        place.mkdir()
        shutil.chown(place, served.data.stat().st_uid)
        ask("postgres", f"CREATE TABLESPACE moved LOCATION '{place}'")
    launch.launch(client, 21, "shape")
    worker = dynamic(client, 21)
    first = worker.wait_for_ready(timeout=PATIENCE_S)
    assert first.state is WorkerState.STARTED, first
    worker.hold()
    assert not worker.wait_for_shutdown(timeout=PATIENCE_S).final
    for statement in COMMANDS[command]:
        ask("postgres", statement)
    worker.release()
    second = worker.wait_for_ready(timeout=PATIENCE_S)
    assert (second.incarnation, second.name) == (first.incarnation + 1, first.name)


def test_q15_w14_a_database_that_is_dropped_by_force(
    launch: Any, client: Cluster, ask: Any, eventually: Any
) -> None:
    """The worker's connection is lost, which is an error, and its registration decides."""
    ask("postgres", "CREATE DATABASE force_me")
    ask("postgres", "ALTER DATABASE shape RENAME TO spared")
    ask("postgres", "ALTER DATABASE force_me RENAME TO shape")
    try:
        launch.launch(client, 22, "shape")
        worker = dynamic(client, 22)
        worker.wait_for_ready(timeout=PATIENCE_S)
        ask("postgres", "DROP DATABASE shape WITH (FORCE)")
        worker.reload()
        last = ended(worker).last_exit
        assert last is not None
        assert last.code == 1
        assert "DatabaseLost" in last.traceback
    finally:
        ask("postgres", "DROP DATABASE IF EXISTS shape")
        ask("postgres", "ALTER DATABASE spared RENAME TO shape")


def test_the_table_of_another_module_is_not_run(client: Cluster) -> None:
    """The host lists worker_spi, and nothing else."""
    handle = client.register(BackgroundWorker(name="other", main="os:getpid"))
    assert "os" in handle.status().reason
