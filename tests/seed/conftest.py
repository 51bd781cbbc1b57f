"""One cluster for each module: its workers are the module's WORKERS, its master's file MASTER."""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from posthouse import BackgroundWorker, Cluster, Handle, Status
from posthouse_testing.cluster import LocalCluster

PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalCluster]:
    folder = tmp_path_factory.mktemp("seed")
    (folder / "seed_workers.py").write_text(request.module.WORKERS)
    running = LocalCluster(hosts=("a",), path=[folder])
    if master := getattr(request.module, "MASTER", ""):
        (folder / "master.toml").write_text(master)
        running.master.argv += ["--config", str(folder / "master.toml")]
    with running:
        yield running


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Cluster]:
    """A client; what was registered meanwhile is gone afterwards."""
    with cluster.connect() as connected:
        yield connected
        for info in connected.workers():
            handle = connected.handle(str(info.status.handle and info.status.handle.id))
            handle.terminate()
            handle.wait_until_unregistered(timeout=PATIENCE_S)


@pytest.fixture
def register(client: Cluster) -> Callable[..., Handle]:
    def made(called: str | None, main_arg: Any = None, /, **values: Any) -> Handle:
        main = None if called is None else f"seed_workers:{called}"
        name = f"{called}-{uuid.uuid4().hex[:6]}"
        return client.register(
            BackgroundWorker(**({"name": name, "main": main, "main_arg": main_arg} | values))  # type: ignore[arg-type]
        )

    return made


@pytest.fixture
def said() -> Callable[..., Any]:
    """said(handle, number): the line of this number that it printed, as JSON."""

    def line(handle: Handle, number: int = 0) -> Any:
        end_s = time.monotonic() + PATIENCE_S
        while (text := handle.output().text).count("\n") <= number:
            assert time.monotonic() < end_s, (handle.status(), text)
            time.sleep(0.02)
        return json.loads(text.splitlines()[number])

    return line


@pytest.fixture
def until() -> Callable[..., Status]:
    """until(handle, true): its status, once `true` of it."""

    def wait(handle: Handle, true: Callable[[Status], bool]) -> Status:
        end_s = time.monotonic() + PATIENCE_S
        while not true(status := handle.status()):
            assert time.monotonic() < end_s, status
            time.sleep(0.02)
        return status

    return wait
