"""Structures that a library requests as the master begins (K1, K2, C5): all of it is real."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posthouse import SHMEM_ACCESS, BackgroundWorker, Cluster, Handle
from posthouse_testing.cluster import LocalCluster

HERE = Path(__file__).parent
LIBRARY = """
def posthouse_init(registry):
    registry.request_struct("counters", 12_288)
    registry.request_struct("others", 64, crash_domain="other")
"""
TOO_BIG = """
def posthouse_init(registry):
    registry.request_struct("counters", 64)
"""
FILE = 'preload_libraries = ["memory_library", "memory_rival"]\n'
PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    folder = tmp_path_factory.mktemp("preloaded")
    (folder / "memory_library.py").write_text(LIBRARY)
    (folder / "memory_rival.py").write_text(TOO_BIG)
    (folder / "master.toml").write_text(FILE)
    running = LocalCluster(hosts=("a", "b"), path=[HERE / "workers", folder])
    running.master.argv += ["--config", str(folder / "master.toml"), f"--preload-path={folder}"]
    with running:
        yield running


@pytest.fixture
def cluster(house: LocalCluster) -> Iterator[Cluster]:
    with house.connect() as made:
        yield made


class Looks:
    """Workers that look at what there is, and write it down in a file for each life."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster = cluster
        self._folder = folder
        self.handles: list[Handle] = []

    def begin(self, name: str, size: int = 12_288, **spec: Any) -> Handle:
        record = BackgroundWorker(
            name=name,
            main="preloadedjobs:look",
            main_arg={"folder": str(self._folder), "name": "counters", "size": size},
            **{"flags": SHMEM_ACCESS, "host": "a", **spec},
        )
        self.handles.append(self._cluster.register(record))
        return self.handles[-1]

    def found(self, name: str, incarnation: int = 1) -> dict[str, Any]:
        path = self._folder / f"{name}.{incarnation}"
        end_s = time.monotonic() + PATIENCE_S
        while not path.exists():
            assert time.monotonic() < end_s, f"{path.name} has said nothing"
            time.sleep(0.01)
        found: dict[str, Any] = json.loads(path.read_text())
        return found


@pytest.fixture
def looks(cluster: Cluster, tmp_path: Path) -> Iterator[Looks]:
    made = Looks(cluster, tmp_path)
    yield made
    for handle in made.handles:
        handle.terminate()
    for handle in made.handles:
        handle.wait_until_unregistered(timeout=PATIENCE_S)


def test_k1_k2_c5_requested_memory_is_there_before_workers_on_each_host_in_each_epoch(
    looks: Looks,
) -> None:
    looks.begin("first")
    first = looks.found("first")
    assert first["there"] == [12_288], "before the worker has asked, and of its domain alone"
    assert (first["found"], first["before"], first["epoch"]) == (False, 0, 1)
    crasher = looks.begin("second")
    second = looks.found("second")
    assert (second["found"], second["before"]) == (True, 7)
    looks.begin("on-b", host="b")
    elsewhere = looks.found("on-b")
    assert (elsewhere["there"], elsewhere["found"]) == ([12_288], False)

    pid = crasher.pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    again = [looks.found("first", 2), looks.found("second", 2)]
    for one in again:
        assert (one["there"], one["epoch"]) == ([12_288], 2)
    maker, other = sorted(again, key=lambda one: bool(one["found"]))
    assert (maker["found"], maker["before"], other["found"]) == (False, 0, True)


def test_k1_another_size_than_requested_names_the_library(looks: Looks) -> None:
    looks.begin("wrong", size=64)
    assert looks.found("wrong")["error"] == (
        "SizeMismatch: 'struct:counters' exists with 12288 bytes, requested by library "
        "memory_library, not 64"
    )


def test_k1_a_library_that_requests_what_another_has_is_refused_by_name(
    house: LocalCluster,
) -> None:
    log = house.master.log.read_text()
    assert "library memory_rival: structure 'counters' of crash domain 'default' (64 bytes)" in log
    assert "requested by library memory_library already (12288 bytes)" in log


def test_k1_workers_without_the_flag_are_told_of_nothing(looks: Looks) -> None:
    looks.begin("plain", flags=0)
    assert looks.found("plain")["error"].startswith("UsageError: this worker has no shared memory")
