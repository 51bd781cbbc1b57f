"""An agent that is pointed at something that is no master says so, lives, and joins one later."""

import os
import shutil
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import zmq

from posthouse_testing.cluster import Daemon, command
from posthouse_testing.sweep import sweep

PATIENCE_S = 60.0


def http(peer: socket.socket) -> None:
    peer.recv(100)
    peer.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    peer.close()


def silent(peer: socket.socket) -> None:
    while peer.recv(4096):
        pass


def tls(peer: socket.socket) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with suppress(ssl.SSLError, OSError):
        context.wrap_socket(peer, server_side=True)
    peer.close()


@contextmanager
def serving(path: Path, act) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listening, ExitStack() as peers:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            while True:
                try:
                    peer, _ = listening.accept()
                except OSError:
                    return
                peers.enter_context(peer)
                threading.Thread(target=suppressed, args=(act, peer), daemon=True).start()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def suppressed(act, peer) -> None:
    with suppress(OSError):
        act(peer)


@contextmanager
def speaking(path: Path, kind: int) -> Iterator[None]:
    """Another kind of socket of ZeroMQ."""
    context = zmq.Context()
    made = context.socket(kind)
    made.bind(f"ipc://{path}")
    try:
        yield
    finally:
        made.close(0)
        context.term()


WRONG = {
    "an HTTP server": lambda path: serving(path, http),
    "a sink that says nothing": lambda path: serving(path, silent),
    "a TLS server": lambda path: serving(path, tls),
    "a publisher": lambda path: speaking(path, zmq.PUB),
    "another agent": lambda path: speaking(path, zmq.DEALER),
    "a router that never answers": lambda path: speaking(path, zmq.ROUTER),
}


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="ph", dir="/tmp"))
    yield path
    assert sweep(path)
    shutil.rmtree(path)


def agent(folder: Path) -> Daemon:
    argv = [
        *command(), "agent", "--host", "b", "--master", f"ipc://{folder}/agents.sock",
        "--runtime-dir", f"{folder}/hosts/b", "--log-dir", f"{folder}/log", "--log-format", "json",
    ]  # fmt: skip
    return Daemon("agent", argv, folder / "agent.log", os.environ)


def told(daemon: Daemon, words: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while words not in daemon.log.read_text():
        assert daemon.alive and time.monotonic() < deadline_s, daemon.last_words()
        time.sleep(0.02)


@pytest.mark.parametrize("what", WRONG)
def test_it_says_that_no_master_answers_and_goes_on(folder: Path, what: str) -> None:
    started = agent(folder)
    with WRONG[what](folder / "agents.sock"):
        started.start()
        try:
            told(started, "session.none")
            assert started.alive
            assert "Traceback" not in started.log.read_text()
        finally:
            assert started.terminate() == 0


def test_once_a_reason_and_it_joins_when_there_is_a_master(folder: Path) -> None:
    started = agent(folder)
    with serving(folder / "agents.sock", http):
        started.start()
        told(started, "session.none")
    (folder / "agents.sock").unlink()
    master = Daemon(
        "master", [*command(), "master", "--dir", str(folder)], folder / "m.log", os.environ
    )
    try:
        told(started, "nobody listens there")
        master.start()
        told(started, "session.opened")
        lines = [line for line in started.log.read_text().splitlines() if "session.none" in line]
        assert len(lines) == len({line.partition('"reason"')[2] for line in lines})
    finally:
        started.close()
        master.close()
