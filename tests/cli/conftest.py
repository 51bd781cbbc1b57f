"""One cluster of real processes for all tests of the command line, and ways to run commands."""

import json
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from posthouse_testing.cluster import LocalCluster

HERE = Path(__file__).parent
Ran = subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(hosts=("a", "b"), path=[HERE / "workers"]) as running:
        yield running


@pytest.fixture
def posthouse(cluster: LocalCluster) -> Callable[..., Ran]:
    """posthouse("ps", "--json"): runs it against the cluster. status=None: any exit status."""

    def run(*arguments: str, status: int | None = 0, **options: Any) -> Ran:
        ran = cluster.run(*arguments, **options)
        if status is not None:
            assert ran.returncode == status, (arguments, ran)
        return ran

    return run


@pytest.fixture
def objects(posthouse: Callable[..., Ran]) -> Callable[..., list[dict[str, Any]]]:
    """The JSON objects that a command prints."""

    def read(*arguments: str, **options: Any) -> list[dict[str, Any]]:
        ran = posthouse(*arguments, "--json", **options)
        return [json.loads(line) for line in ran.stdout.splitlines()]

    return read


@pytest.fixture
def name(cluster: LocalCluster) -> Iterator[str]:
    """A worker's name that nothing else has; what has it is terminated afterwards."""
    chosen = f"w-{uuid.uuid4().hex[:8]}"
    yield chosen
    cluster.run("terminate", chosen)


@pytest.fixture
def idle(posthouse: Callable[..., Ran], name: str) -> str:
    """The name of a worker that runs on host b and idles."""
    posthouse("run", "jobs:idle", "--name", name, "--on", "b", "--detach")
    posthouse("wait", name, "--for", "ready", "--timeout", "20")
    return name
