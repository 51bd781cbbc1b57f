"""What systemd is told, over a real socket."""

import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from posthouse import systemd


@pytest.fixture(params=["path", "abstract"])
def listener(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[socket.socket]:
    name = str(tmp_path / "n") if request.param == "path" else f"@posthouse-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0"))
        receiver.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield receiver


def test_what_is_sent(listener: socket.socket) -> None:
    assert systemd.ready("serves 2 hosts")
    assert listener.recv(4096) == b"READY=1\nSTATUS=serves 2 hosts"
    assert systemd.ready()
    assert listener.recv(4096) == b"READY=1"
    assert systemd.status("two\nlines")
    assert listener.recv(4096) == b"STATUS=two lines"
    assert systemd.stopping()
    assert listener.recv(4096) == b"STOPPING=1"
    assert systemd.watchdog()
    assert listener.recv(4096) == b"WATCHDOG=1"


def test_a_reader_that_does_not_read_blocks_nobody(listener: socket.socket) -> None:
    sent = 0
    while systemd.watchdog():
        sent += 1
        assert sent < 1_000_000
    assert sent > 0


@pytest.mark.parametrize("address", [None, "", "tcp:1", "/nobody/listens", "@nobody-listens"])
def test_without_systemd_nothing_happens(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if address is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not systemd.ready()


def test_the_watchdog_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    for given, expected in (("3000000", 3.0), ("", None), ("0", None), ("-1", None), ("x", None)):
        monkeypatch.setenv("WATCHDOG_USEC", given)
        assert systemd.watchdog_interval_s() == expected
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert systemd.watchdog_interval_s() == 3.0
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    assert systemd.watchdog_interval_s() is None
