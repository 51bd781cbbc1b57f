"""A master of our own in a process, and a liar that stands between it and the kit."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

DEADLINE_S = 20.0
MASTER = (
    "import sys, json; from posthouse.settings import MasterSettings;"
    "from posthouse_master.daemon import run;"
    "sys.exit(run(MasterSettings(**json.loads(sys.argv[1]))))"
)
Fault = Callable[[bool, list[Any]], list[Any] | None]


class Master:
    """A real one; `clients` and `agents` are where it serves."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        (folder / "state").mkdir(mode=0o700)
        given = {
            "state_dir": str(folder / "state"),
            "listen_agents": f"ipc://{folder}/agents.sock",
            "listen_clients": f"ipc://{folder}/clients.sock",
            "log_format": "json",
            **settings,
        }
        self.log = folder / "log"
        with self.log.open("wb") as log:
            argv = [sys.executable, "-c", MASTER, json.dumps(given)]
            self.process = subprocess.Popen(argv, stderr=log)
        ready = self._ready()
        self.agents, self.clients = ready["agents"], ready["clients"]

    def _ready(self) -> dict[str, Any]:
        end_s = time.monotonic() + DEADLINE_S
        while True:
            for line in self.log.read_text().splitlines(keepends=True):
                if '"master.ready"' in line and line.endswith("\n"):
                    return json.loads(line)
            assert self.process.poll() is None and time.monotonic() < end_s, self.log.read_text()
            time.sleep(0.02)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_S)


class Liar:
    """A ROUTER for the kit and a DEALER to the master for each peer of it. `fault(down, frame)`
    changes frames, decoded; None: the frame is lost. What is no frame goes through as it is."""

    def __init__(self, front: str, back: str, fault: Fault) -> None:
        self._back, self._fault = back, fault
        self._context: Any = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.bind(front)
        self._dealers: dict[bytes, Any] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._ending.set()
        self._thread.join(DEADLINE_S)
        for socket in (self._router, *self._dealers.values()):
            socket.close(0)
        self._context.term()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        while not self._ending.is_set():
            ready = dict(poller.poll(20))
            if self._router in ready:
                peer, *parts = self._router.recv_multipart()
                if peer not in self._dealers:
                    self._dealers[peer] = self._context.socket(zmq.DEALER)
                    self._dealers[peer].connect(self._back)
                    poller.register(self._dealers[peer], zmq.POLLIN)
                if (sent := self._changed(False, parts)) is not None:
                    self._dealers[peer].send_multipart(sent)
            for peer, dealer in self._dealers.items():
                if dealer in ready and (sent := self._changed(True, dealer.recv_multipart())):
                    self._router.send_multipart([peer, *sent])

    def _changed(self, down: bool, parts: list[bytes]) -> list[bytes] | None:
        try:
            frame = msgpack.unpackb(parts[-1])
            assert len(parts) == 1 and len(frame) == 6 and isinstance(frame[5], dict)
        except Exception:  # noqa: BLE001 - what the master will refuse is not ours to judge
            return parts
        changed = self._fault(down, frame)
        return None if changed is None else [msgpack.packb(changed)]


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="ph", dir="/tmp"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Master]]:
    """Starts masters with settings of their own."""
    made: list[Master] = []

    def begin(**settings: Any) -> Master:
        home = folder / str(len(made))
        home.mkdir(mode=0o700)
        made.append(Master(home, **settings))
        return made[-1]

    yield begin
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def master() -> Iterator[Master]:
    """One for a whole file."""
    home = Path(tempfile.mkdtemp(prefix="ph", dir="/tmp"))
    made = Master(home)
    yield made
    made.close()
    shutil.rmtree(home)


@pytest.fixture
def lying(folder: Path, master: Master) -> Iterator[Callable[[Fault], tuple[str, str]]]:
    """Puts a liar before the master: its endpoints for clients and for agents."""
    made: list[Liar] = []

    def stand(fault: Fault) -> tuple[str, str]:
        fronts = [f"ipc://{folder}/{name}-{os.urandom(2).hex()}.sock" for name in ("c", "a")]
        for front, back in zip(fronts, (master.clients, master.agents), strict=True):
            made.append(Liar(front, back, fault))
        return fronts[0], fronts[1]

    yield stand
    for liar in made:
        liar.close()
