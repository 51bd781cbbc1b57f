"""The chapter, sentence by sentence: registration as the server starts, and while it runs.

Real processes: a master with a library and a table, a host, workers.
"""

import time
from collections.abc import Callable, Iterator

import pytest

from posthouse import BackgroundWorker, Cluster, EventKind, StaticRegistry, WorkerState
from posthouse.errors import NotPermitted
from posthouse_testing.cluster import LocalCluster

LIBRARY = """
import posthouse
from posthouse import BackgroundWorker, worker

def main(arg):
    worker.unblock_signals()
    while True:
        worker.latch.reset()
        if worker.POSTMASTER_DEATH in worker.latch.wait(timeout=60.0):
            raise SystemExit(1)

def register_another(arg):
    with posthouse.connect() as cluster:
        cluster.register(BackgroundWorker(name="of-a-worker", main="seed_library:main"))
    main(arg)

def posthouse_init(registry):
    registry.register(BackgroundWorker(name="of-library", main=main))
"""
EARLY = """
import posthouse
from posthouse import BackgroundWorker

def posthouse_init(registry):
    with posthouse.connect(timeout=0.2) as cluster:
        cluster.register(BackgroundWorker(name="early", main="seed_library:main"))
"""
FILE = """
preload_libraries = ["seed_library", "seed_nowhere", "seed_early"]

[[worker]]
name = "of-table"
main = "seed_library:main"
"""
PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A cluster whose master was started with a library in its configuration."""
    folder = tmp_path_factory.mktemp("static")
    (folder / "seed_library.py").write_text(LIBRARY)
    (folder / "seed_early.py").write_text(EARLY)
    (folder / "master.toml").write_text(FILE)
    cluster = LocalCluster(hosts=("a",), path=[folder])
    # What workers connect to, as `posthouse up` says it to its hosts.
    cluster.env["POSTHOUSE_MASTER"] = cluster.clients
    cluster.master.argv += ["--config", str(folder / "master.toml"), f"--preload-path={folder}"]
    with cluster:
        yield cluster


@pytest.fixture
def client(started: LocalCluster) -> Iterator[Cluster]:
    with started.connect() as connected:
        yield connected


def eventually(true: Callable[[], object]) -> object:
    end_s = time.monotonic() + PATIENCE_S
    while not (found := true()):
        assert time.monotonic() < end_s
        time.sleep(0.02)
    return found


def test_workers_are_initialized_at_the_start_by_including_a_module(client: Cluster) -> None:
    """`shared_preload_libraries` is `preload_libraries`; a table [[worker]] needs no module."""
    for name in ("of-library", "of-table"):
        status = client.handle(name).wait_for_startup(timeout=PATIENCE_S)
        assert (status.state, status.incarnation) == (WorkerState.STARTED, 1)


def test_a_module_registers_from_its_init_function(client: Cluster) -> None:
    """`_PG_init` is `posthouse_init`."""
    (registered, *_) = client.handle("of-library").events(follow=False)
    assert (registered.kind, registered.by) == (EventKind.REGISTERED, "library:seed_library")


def test_a_module_that_cannot_be_loaded_does_not_stop_the_server(client: Cluster) -> None:
    """PostgreSQL does not start then. Healed: it is told of and skipped."""
    told, _ = client.reports()
    assert told.startswith("skipped: library:seed_nowhere: library seed_nowhere: ModuleNotFound")


def test_static_workers_run_on_over_a_restart_of_the_master(started: LocalCluster) -> None:
    """PostgreSQL's static workers end with the server and are made anew. Healed."""
    names = ("of-library", "of-table")
    with started.connect() as client:
        before = [client.handle(name).wait_for_startup(timeout=PATIENCE_S) for name in names]
    started.master.restart()
    started.wait_for_hosts()
    with started.connect() as client:
        after = [client.handle(name).status() for name in names]
    for old, new in zip(before, after, strict=True):
        assert (new.pid, new.incarnation, new.token) == (old.pid, old.incarnation, old.token)


def test_workers_can_also_be_started_while_the_system_is_running(client: Cluster) -> None:
    handle = client.register(BackgroundWorker(name="dynamic", main="seed_library:main"))
    assert handle.wait_for_startup(timeout=PATIENCE_S).state is WorkerState.STARTED
    handle.terminate()
    assert handle.wait_for_shutdown(timeout=PATIENCE_S).final


def test_dynamic_registration_is_not_for_the_server_itself(client: Cluster) -> None:
    """A library that is loaded as the server starts finds nobody to register with."""
    _, told = client.reports()
    assert told.startswith("skipped: library:seed_early: library seed_early: ")
    assert "early" not in {info.status.name for info in client.workers()}


def test_a_worker_may_register_a_worker(client: Cluster) -> None:
    """A "regular backend" is any client, and any worker."""
    handle = client.register(
        BackgroundWorker(name="registers", main="seed_library:register_another")
    )
    eventually(lambda: "of-a-worker" in {info.status.name for info in client.workers()})
    other = client.handle("of-a-worker")
    assert other.wait_for_startup(timeout=PATIENCE_S).state is WorkerState.STARTED
    for ended in (handle, other):
        ended.terminate()
        assert ended.wait_for_shutdown(timeout=PATIENCE_S).final


def test_static_registration_is_called_from_within_the_start_alone() -> None:
    """RegisterBackgroundWorker "can only be called from within the postmaster"."""
    with pytest.raises(NotPermitted, match="which the master calls as it begins"):
        StaticRegistry().register(BackgroundWorker(name="w", main="m:f"))


def test_a_static_worker_can_be_terminated_and_stays_so(started: LocalCluster) -> None:
    """Nothing can end PostgreSQL's. Healed: and the next master does not bring it back."""
    with started.connect() as client:
        handle = client.handle("of-table")
        handle.terminate()
        assert handle.wait_for_shutdown(timeout=PATIENCE_S).final
    started.master.restart(kill=False)
    started.wait_for_hosts()
    with started.connect() as client:
        assert "of-table" not in {info.status.name for info in client.workers()}
        assert client.handle("of-library").status().state is WorkerState.STARTED
