"""The thread that asks a server for its phase: real PostgreSQL, and sockets that are none."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from posthouse import limits
from posthouse.errors import ConfigError
from posthouse.settings import MasterSettings
from posthouse.states import Phase
from posthouse_master.effects import PhaseChanged
from posthouse_master.phase_source import PostgresqlSource, open_source


class Follower:
    """A source, and all it has said so far."""

    def __init__(self, url: str) -> None:
        self.source = PostgresqlSource(url)
        self.said: list[PhaseChanged] = [self.source.first]

    def until(self, phase: Phase, text: str = "", seconds: float = 30.0) -> PhaseChanged:
        deadline_s = time.monotonic() + seconds
        while True:
            for word in self.source.taken():
                self.said.append(word)
                if word.phase is phase and text in word.detail:
                    return word
            left_s = deadline_s - time.monotonic()
            assert left_s > 0, self.said
            select.select([self.source.descriptor], [], [], left_s)


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "phase_look_s", 0.05)


@pytest.fixture
def follow() -> Iterator[Callable[[str], Follower]]:
    made: list[Follower] = []

    def begin(url: str) -> Follower:
        made.append(Follower(url))
        return made[-1]

    yield begin
    for follower in made:
        follower.source.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "phase"]


def test_g1_g2_g3_a_standby_from_its_start_to_its_promotion(
    pair: Any, follow: Any, eventually: Any
) -> None:
    """PostgreSQL's own phases, seen from outside: away, hot standby, open for writing."""
    primary, standby = pair
    follower = follow(standby.url)
    away = follower.until(Phase.STARTING, "is not reachable")
    assert away.detail.startswith(f"PostgreSQL at {standby.folder}:5433 is not reachable: ")
    primary.start()
    standby.start()
    word = follower.until(Phase.HOT_STANDBY)
    assert word.detail == f"PostgreSQL at {standby.folder}:5433 is in recovery"
    standby.promote()
    follower.until(Phase.RUNNING, "can be written to")
    standby.stop(signal.SIGINT)
    follower.until(Phase.STARTING, "is not reachable")


def test_g6_a_standby_that_takes_no_connections_counts_as_starting(
    pair: Any, follow: Any, eventually: Any
) -> None:
    """With hot_standby off PostgreSQL's consistent-state workers wait for promotion. Kept."""
    primary, standby = pair
    with (standby.data / "postgresql.auto.conf").open("a") as config:
        config.write("hot_standby = off\n")
    follower = follow(standby.url)
    primary.start()
    standby.start()
    follower.until(Phase.STARTING, "accepting connections (Hot standby mode is disabled)")
    standby.promote()
    follower.until(Phase.RUNNING)
    assert Phase.HOT_STANDBY not in [word.phase for word in follower.said]


def test_a_restarted_server_is_not_told_as_gone_if_it_is_back_at_the_next_look(
    primary: Any, follow: Any, eventually: Any
) -> None:
    import psycopg

    primary.start()
    follower = follow(primary.url)
    follower.until(Phase.RUNNING)
    with psycopg.connect(primary.url, autocommit=True) as other:
        ended = other.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE application_name = 'posthouse'"
        ).fetchone()
        assert ended == (1,)
        eventually(
            lambda: (
                other.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'posthouse'"
                ).fetchone()
                == (1,)
            )
        )
    assert follower.source.taken() == []


def test_a_server_that_hangs_is_not_reachable_and_comes_back(
    primary: Any, follow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "phase_answer_s", 0.5)
    primary.start()
    follower = follow(primary.url)
    follower.until(Phase.RUNNING)
    hung = _backends_of(primary.process.pid)
    for pid in (primary.process.pid, *hung):
        _signal(pid, signal.SIGSTOP)
    follower.until(Phase.STARTING, "no answer within 0.5 s")
    for pid in (primary.process.pid, *hung):
        _signal(pid, signal.SIGCONT)
    follower.until(Phase.RUNNING)


def _backends_of(postmaster: int) -> list[int]:
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text()
    return [int(pid) for pid in children.split()]


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _listener() -> tuple[socket.socket, str]:
    listening = socket.create_server(("127.0.0.1", 0))
    return listening, f"postgresql://u:topsecret@127.0.0.1:{listening.getsockname()[1]}/x"


def test_a_socket_that_never_answers_costs_the_loop_nothing(
    follow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "phase_answer_s", 0.2)
    listening, url = _listener()
    with listening:
        follower = follow(url)
        assert follower.source.taken() == []  # no wait
        follower.until(Phase.STARTING, "no answer within 0.2 s")


def test_closing_does_not_wait_for_a_server_that_hangs(follow: Any) -> None:
    listening, url = _listener()
    with listening:
        follower = follow(url)
        accepted, _ = listening.accept()  # the thread is waiting for its answer
        with accepted:
            follower.source.close()
            assert not follower.source._thread.is_alive()


def test_what_is_no_postgresql_is_told_and_no_password_with_it(follow: Any) -> None:
    listening, url = _listener()

    def nonsense() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.recv(1024)
                connection.sendall(b"HTTP/1.0 400 no topsecret here\r\n\r\n")

    thread = threading.Thread(target=nonsense)
    thread.start()
    try:
        follower = follow(url)
        word = follower.until(Phase.STARTING, "is not reachable")
        assert "topsecret" not in word.detail
        assert len(word.detail) <= limits.phase_detail_chars_max
        assert "topsecret" not in repr(follower.source)
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


def test_a_refused_password_and_a_missing_database_are_told(primary: Any, follow: Any) -> None:
    primary.start()
    follower = follow(primary.url.replace("/postgres?", "/nowhere?"))
    word = follower.until(Phase.STARTING, "does not exist")
    assert word.detail.endswith('is not reachable: database "nowhere" does not exist')


@pytest.mark.parametrize("url", ["postgresql://u:topsecret@[h/x", "postgresql://u:top secret@h"])
def test_a_url_that_cannot_be_read_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(
        ConfigError, match=r"cluster\.follow is no URL that libpq can read"
    ) as caught:
        PostgresqlSource(url)
    assert "secret" not in str(caught.value)


def test_several_servers_are_named(follow: Any) -> None:
    follower = follow("postgresql://127.0.0.1:1,127.0.0.1:2/x")
    word = follower.until(Phase.STARTING, "is not reachable")
    assert word.detail.startswith("PostgreSQL at 127.0.0.1:1,127.0.0.1:2 ")


def test_a_defect_in_the_thread_reaches_the_loop(
    follow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PostgresqlSource, "_look", lambda _self: 1 / 0)
    follower = follow("postgresql://127.0.0.1:1/x")
    with pytest.raises(ZeroDivisionError):
        follower.until(Phase.RUNNING)


def test_the_embedded_database_is_no_source() -> None:
    settings = MasterSettings(state_dir="/x", listen_agents="", listen_clients="")
    assert open_source(settings) is None


def test_without_psycopg_the_extra_is_named() -> None:
    """Nor is psycopg loaded by a master that follows nobody."""
    code = """
import sys
import posthouse_master.daemon
assert not [name for name in sys.modules if name.partition(".")[0] == "psycopg"]
sys.modules["psycopg"] = None
from posthouse.errors import ConfigError
from posthouse_master.phase_source import PostgresqlSource
try:
    PostgresqlSource("postgresql://h/x")
except ConfigError as error:
    print(error.message, "|", error.hint)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "psycopg cannot be loaded" in done.stdout
    assert "pip install 'posthouse[postgres]'" in done.stdout
