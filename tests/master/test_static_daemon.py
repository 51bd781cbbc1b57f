"""A master process that begins with good, bad and hanging static registrations."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posthouse import connect

RUN = """
import sys
from posthouse.config import load_master
from posthouse_master.daemon import run
sys.exit(run(load_master(sys.argv[1], environ={}).settings))
"""


class Begun:
    """A master with its file; its log lines as they come."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[str] | None = None
        self.clients = f"ipc://{folder}/clients"

    def begin(self, text: str, **libraries: str) -> None:
        for name, source in libraries.items():
            (self.folder / f"{name}.py").write_text(source)
        file = self.folder / "master.toml"
        file.write_text(
            f'state_dir = "{self.folder}/state"\n'
            f'listen_agents = "ipc://{self.folder}/agents"\n'
            f'listen_clients = "{self.clients}"\n'
            f'preload_path = ["{self.folder}"]\nlog_format = "json"\n' + text
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(file)], stderr=subprocess.PIPE, text=True
        )

    def until(self, event: str) -> dict[str, dict[str, Any]]:
        """Log lines up to this one, the last of each event."""
        assert self.process is not None and self.process.stderr is not None
        found: dict[str, dict[str, Any]] = {}
        while event not in found:
            line = self.process.stderr.readline()
            assert line, found
            entry = json.loads(line)
            found[entry["event"]] = entry
        return found

    def end(self) -> int:
        assert self.process is not None
        self.process.terminate()
        self.process.communicate(timeout=30)
        return self.process.returncode


@pytest.fixture
def master() -> Iterator[Begun]:
    folder = Path(tempfile.mkdtemp(prefix="ph", dir="/tmp"))
    found = Begun(folder)
    yield found
    if found.process is not None and found.process.poll() is None:
        found.process.kill()
        found.process.communicate()
    shutil.rmtree(folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


GOOD = """
from posthouse import BackgroundWorker
def posthouse_init(registry):
    print("hello from the library")
    registry.register(BackgroundWorker(name="good", main="m:f"))
"""
HANGS = "import time\ndef posthouse_init(registry): time.sleep(1000)\n"


def test_whatever_is_wrong_the_master_begins_and_tells(master: Begun) -> None:
    """In its log, in /readyz, which is 200 all the same, and to clients."""
    port = free_port()
    master.begin(
        f'http = "127.0.0.1:{port}"\npreload_timeout = "5s"\n'
        'preload_libraries = ["good", "hangs", "raises"]\n'
        '[[worker]]\nname = "table"\nmain = "m:f"\n'
        '[[worker]]\nname = "bad"\nmain = "m:f"\nnotify = true\n',
        good=GOOD,
        hangs=HANGS,
        raises="1/0",
    )
    said = master.until("master.ready")
    assert said["library.loaded"]["output"] == "hello from the library\n"
    assert said["library.failed"]["library"] == "raises"
    assert "ZeroDivisionError" in said["library.failed"]["output"]
    assert said["master.ready"]["workers"] == 2
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=20) as reply:
        assert reply.status == 200
        ready = json.loads(reply.read())
    with connect(master.clients) as client:
        assert [info.status.name for info in client.workers()] == ["table", "good"]
        assert client.reports() == ready["reports"]
    bad, hung, raised = ready["reports"]
    assert "'bad'" in bad and "only dynamic ones" in bad
    assert "library hangs: has not answered within 5 s" in hung
    assert "library raises: ZeroDivisionError" in raised
    assert master.end() == 0


def test_what_was_registered_is_durable_before_the_master_is_ready(master: Begun) -> None:
    master.begin('preload_libraries = ["good"]\n', good=GOOD)
    master.until("master.ready")
    assert master.process is not None
    master.process.kill()
    master.process.communicate()
    # The library is broken now; what it registered is there.
    master.begin('preload_libraries = ["good"]\n', good="1/0")
    master.until("master.ready")
    with connect(master.clients) as client:
        assert [info.status.name for info in client.workers()] == ["good"]
        assert "ZeroDivisionError" in client.reports()[0]
        handle = client.handle("good").id
    assert master.end() == 0
    master.begin("")  # the library is no longer named
    master.until("master.ready")
    with connect(master.clients) as client:
        assert client.workers() == []
        assert client.status(handle).final


def test_a_master_that_is_ended_while_a_library_hangs_ends_at_once(master: Begun) -> None:
    """And takes the library along; nothing is registered, and nothing has failed."""
    mark = master.folder / "pid"
    master.begin(
        'preload_timeout = "60s"\npreload_libraries = ["hangs", "good"]\n',
        good=GOOD,
        hangs=f"import os\nopen({str(mark)!r}, 'w').write(str(os.getpid()))\n" + HANGS,
    )
    end_s = time.monotonic() + 30
    while not (mark.exists() and mark.read_text()):
        assert time.monotonic() < end_s
        time.sleep(0.01)
    assert master.process is not None
    master.process.send_signal(signal.SIGTERM)
    _, said = master.process.communicate(timeout=30)
    assert master.process.returncode == 0, said
    events = [json.loads(line)["event"] for line in said.splitlines()]
    assert "library.failed" not in events
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)
    master.begin('preload_libraries = ["good"]\n')
    master.until("master.ready")
    with connect(master.clients) as client:
        assert [info.status.name for info in client.workers()] == ["good"]


def test_a_file_with_an_unknown_key_stops_the_master(master: Begun) -> None:
    master.begin('[[worker]]\nname = "w"\nmian = "m:f"\n')
    assert master.process is not None
    _, said = master.process.communicate(timeout=30)
    assert master.process.returncode != 0
    assert "unknown key 'mian' of a worker; did you mean 'main'?" in said
