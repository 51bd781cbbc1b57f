"""A real warden in a folder of its own, and an agent's end of its socket."""

import array
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from posthouse_agent import orders, procfs

DEADLINE_S = 20.0
REGISTRY = "9f" * 16


def eventually(check: Callable[[], Any], what: str = "") -> Any:
    """What `check` returns once it is true."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not (result := check()):
        assert time.monotonic() < deadline_s, what or "it did not become true in time"
        time.sleep(0.005)
    return result


class Agent:
    """One connection to a warden."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(DEADLINE_S)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 600_000)
        try:
            self.socket.connect(path)
        except OSError:
            self.socket.close()
            raise
        self.descriptors: dict[int, tuple[int, int]] = {}
        self.unread: list[Any] = []

    def give(self, order: orders.Order) -> None:
        self.socket.send(orders.pack(order))

    def receive(self) -> Any:
        """The next report. Raises EOFError."""
        fds = array.array("i")
        data, ancillary, flags, _ = self.socket.recvmsg(300_000, socket.CMSG_SPACE(64))
        for _, _, values in ancillary:
            fds.frombytes(values)
        if not data:
            raise EOFError
        assert not flags & socket.MSG_TRUNC
        report = orders.unpack(data)
        if fds:
            assert isinstance(report, orders.Forked)
            assert len(fds) == 2
            self.descriptors[report.token] = (fds[0], fds[1])
        return report

    def expect(self, kind: type, token: int | None = None) -> Any:
        """The next report of this kind (about this token); others are kept for later."""
        for report in self.unread:
            if isinstance(report, kind) and token in (None, getattr(report, "token", None)):
                self.unread.remove(report)
                return report
        while True:
            report = self.receive()
            if isinstance(report, kind) and token in (None, getattr(report, "token", None)):
                return report
            self.unread.append(report)

    def attach(self) -> list[Any]:
        """Everything of the snapshot, first to last."""
        self.give(orders.Attach(agent="test"))
        reports = [self.receive()]
        while not isinstance(reports[-1], orders.SnapshotEnd):
            reports.append(self.receive())
        assert isinstance(reports[0], orders.Attached)
        return reports

    def set_latch(self, token: int) -> None:
        os.eventfd_write(self.descriptors[token][1], 1)

    def channel(self, token: int) -> socket.socket:
        end = socket.socket(fileno=os.dup(self.descriptors[token][0]))
        end.settimeout(DEADLINE_S)
        return end

    def close(self) -> None:
        self.socket.close()
        for pair in self.descriptors.values():
            for fd in pair:
                os.close(fd)
        self.descriptors.clear()


class Host:
    """A runtime folder, a log folder, and the warden that serves them."""

    registry = REGISTRY

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.runtime = self.folder / "r"
        self.logs = self.folder / "l"
        self.process: subprocess.Popen[bytes] | None = None
        self.agents: list[Agent] = []
        self.env: dict[str, str] = {}
        self.options: list[str] = []
        self.user: int | None = None
        self.python = [sys.executable, "-P"]
        self.code = str(Path(__file__).parent / "code")
        self.runtime_name = "default"
        self.interpreter = ""  # the warden's own
        self.kind = "fenced"
        self.runtime_env: dict[str, str] = {}
        self.preload: list[str] = []
        self._token = 0

    @property
    def home(self) -> Path:
        return self.runtime / self.kind

    @property
    def socket_path(self) -> str:
        return str(self.home / "warden.sock")

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start a warden and do not wait for it."""
        argv = [*self.python, "-m", "posthouse_agent.warden", "--runtime-dir", str(self.runtime)]
        argv += ["--log-dir", str(self.logs), "--kind", self.kind, "--name", "testhost"]
        argv += self.options
        with open(self.folder / "warden.log", "ab") as log:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.env},
                user=self.user,
                start_new_session=True,
            )

    def start(self) -> "Host":
        self.process = self.spawn()
        self.connect().close()
        return self

    def connect(self) -> Agent:
        """A connection that has not said anything."""

        def attempt() -> Agent | None:
            assert self.process is None or self.process.poll() is None, self.warden_log()
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError, BlockingIOError):
                return Agent(self.socket_path)
            return None

        agent: Agent = eventually(attempt, "the warden does not listen")
        self.agents.append(agent)
        return agent

    def agent(self) -> Agent:
        """A connection that is attached; its snapshot is thrown away."""
        agent = self.connect()
        agent.attach()
        return agent

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """kill -9 of the warden."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def warden_log(self) -> str:
        return (self.folder / "warden.log").read_text()

    def order(self, main: str, arg: Any = None, *, slot: int | None = None, **spec: Any) -> Any:
        """A StartWorker with the next token."""
        self._token += 1
        fields = {"name": f"w{self._token}", "main": main, "main_arg": arg, **spec}
        if ":" not in main and main != "posthouse.exec":
            fields["main"] = f"jobs:{main}"
        return orders.StartWorker(
            token=self._token,
            registry=REGISTRY,
            slot=self._token if slot is None else slot,
            generation=1,
            incarnation=1,
            revision=1,
            host="testhost",
            spec=fields,
            runtime=self.runtime_name,
            python=self.interpreter,
            path=[self.code],
            env={"RUNTIME_SAYS": "yes", **self.runtime_env},
            preload=self.preload,
        )

    def run(self, agent: Agent, main: str, arg: Any = None, **spec: Any) -> Any:
        """Start it and wait for its end: the Ended."""
        order = self.order(main, arg, **spec)
        agent.give(order)
        agent.expect(orders.Forked, order.token)
        return agent.expect(orders.Ended, order.token)

    def begin(self, agent: Agent, main: str, arg: Any = None, **spec: Any) -> Any:
        """Start it and wait until it has said something: the Forked."""
        order = self.order(main, arg, **spec)
        agent.give(order)
        forked = agent.expect(orders.Forked, order.token)
        if main != "posthouse.exec":
            eventually(lambda: self.said(forked.slot), f"{main} says nothing")
        return forked

    def log_path(self, slot: int) -> Path:
        return self.logs / f"{slot}.1.log"

    def said(self, slot: int) -> list[Any]:
        """The JSON lines that a worker has printed."""
        lines = self.log_path(slot).read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def zygotes(self) -> list[int]:
        """Pids of the living zygotes and spares of this host."""
        found = []
        for pid in procfs.pids():
            process = procfs.read(pid)
            if process is not None and not process.dead and process.parent == self.pid:
                with contextlib.suppress(OSError):
                    title = Path(f"/proc/{pid}/cmdline").read_bytes()
                    if title.startswith(b"posthouse zygote") or b"/boot.py" in title:
                        found.append(pid)
        return found

    def strays(self) -> list[int]:
        """Pids of the warden's children, dead ones included, that are no zygotes and no spares."""
        known = self.zygotes()
        found = [(pid, procfs.read(pid)) for pid in procfs.pids()]
        return [
            pid
            for pid, process in found
            if process is not None and process.parent == self.pid and pid not in known
        ]

    def _writes_here(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            return os.readlink(f"/proc/{pid}/fd/1").startswith(f"{self.logs}/")
        return False

    def _is_ours(self, pid: int) -> bool:
        return self._writes_here(pid) or self._serves_here(pid)

    def _serves_here(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            found = os.stat(self.home / "warden.lock")
            return procfs.holds_lock(pid, found.st_dev, found.st_ino)
        return False

    def close(self) -> None:
        for agent in self.agents:
            agent.close()
        if self.process is not None and self.process.poll() is None:
            self.kill()
        # A warden under strace lives on without it; and what has left its warden on purpose.
        for pid in procfs.pids():
            if (pidfd := procfs.kill_if(pid, self._is_ours)) is not None:
                os.close(pidfd)
        shutil.rmtree(self.folder, ignore_errors=True)


def alive(pid: int, start: int | None = None) -> bool:
    """Whether a process, not a zombie, has this pid (and began then)."""
    process = procfs.read(pid)
    return process is not None and not process.dead and start in (None, process.start)


@pytest.fixture(scope="module")
def shared_host() -> Iterator[Host]:
    """One for all tests of a file: for those that look at a worker only."""
    host = Host(tempfile.mkdtemp(prefix="ph", dir="/tmp"))
    try:
        yield host.start()
    finally:
        host.close()


@pytest.fixture(scope="module")
def shared_agent(shared_host: Host) -> Agent:
    return shared_host.agent()


@pytest.fixture
def make_host() -> Iterator[Callable[[], Host]]:
    """Hosts with folders, and no warden yet."""
    made: list[Host] = []

    def make() -> Host:
        made.append(Host(tempfile.mkdtemp(prefix="ph", dir="/tmp")))
        return made[-1]

    yield make
    for host in made:
        host.close()


@pytest.fixture
def empty_host(make_host: Callable[[], Host]) -> Host:
    return make_host()


@pytest.fixture
def host(empty_host: Host) -> Host:
    return empty_host.start()


@pytest.fixture
def agent(host: Host) -> Agent:
    return host.agent()


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., Any]:
    return eventually


@pytest.fixture(name="alive")
def _alive() -> Callable[..., bool]:
    return alive
