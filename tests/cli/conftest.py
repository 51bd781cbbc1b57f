"""One cluster of real processes for all tests of the command line, and ways to run commands."""

import contextlib
import io
import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from posthouse_cli.main import main
from posthouse_testing.cluster import LocalCluster

HERE = Path(__file__).parent
Ran = subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(hosts=("a", "b"), path=[HERE / "workers"]) as running:
        yield running


@pytest.fixture
def posthouse(cluster: LocalCluster) -> Callable[..., Ran]:
    """posthouse("ps", "--json"): runs it against the cluster, in this process, because a hundred
    interpreters take a minute to start. status=None: any exit status."""

    def run(*arguments: str, status: int | None = 0) -> Ran:
        assert cluster.master.alive, cluster.master
        out, err = io.StringIO(), io.StringIO()
        before = os.environ.get("POSTHOUSE_MASTER")
        os.environ["POSTHOUSE_MASTER"] = cluster.clients
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main(arguments)
        finally:
            os.environ.pop("POSTHOUSE_MASTER")
            if before is not None:
                os.environ["POSTHOUSE_MASTER"] = before
        ran = Ran(arguments, code, out.getvalue(), err.getvalue())
        assert status in (None, code), ran
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
def name(posthouse: Callable[..., Ran]) -> Iterator[str]:
    """A worker's name that nothing else has; what has it is terminated afterwards."""
    chosen = f"w-{uuid.uuid4().hex[:8]}"
    yield chosen
    posthouse("terminate", "--no-wait", chosen, status=None)


@pytest.fixture
def idle(posthouse: Callable[..., Ran], name: str) -> str:
    """The name of a worker that runs on host b and idles."""
    posthouse("run", "jobs:idle", "--name", name, "--on", "b", "--detach")
    posthouse("wait", name, "--for", "ready", "--timeout", "20")
    return name


@contextlib.contextmanager
def _only(**variables: str) -> Iterator[None]:
    before = dict(os.environ)
    for variable in before:
        if variable.startswith("POSTHOUSE_"):
            del os.environ[variable]
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def environment() -> Callable[..., contextlib.AbstractContextManager[None]]:
    """The environment with these POSTHOUSE_ variables and no others."""
    return _only


@pytest.fixture
def bare() -> Callable[..., Ran]:
    """A command that needs no cluster, in this process: bare("doctor", POSTHOUSE_HOST="b")."""

    def run(*arguments: Any, status: int | None = 0, **variables: str) -> Ran:
        out, err = io.StringIO(), io.StringIO()
        with _only(**variables), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(each) for each in arguments])
        ran = Ran(arguments, code, out.getvalue(), err.getvalue())
        assert status in (None, code), ran
        return ran

    return run
