"""The units' own commands, with the sample configurations, started and ended as systemd does it.

Only the folders are exchanged (/opt/posthouse/bin, /opt/acme/lib, /etc/posthouse, /run, /var/lib,
/var/log), and watchdogs are sixty times as fast. The stand-in knows Type=notify, WatchdogSec,
KillMode, Delegate and RuntimeDirectory: what these units rest on.
"""

import contextlib
import os
import queue
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

import posthouse
from posthouse import BackgroundWorker
from posthouse_agent import cgroups

pytestmark = pytest.mark.timeout(180)  # whole services, on a busy machine

Service = Callable[[str], "Running"]
FASTER = 60

JOBS = """
import os
from posthouse import worker

def serve(path):
    worker.before_exit(lambda: open(path, "a").write("ended in order\\n"))
    worker.unblock_signals()
    worker.ready()
    while True:
        worker.latch.wait(worker.EXIT_ON_PM_DEATH, timeout=60)
"""


class Running:
    """A service that was started, and the socket on which it talks to its manager."""

    def __init__(
        self, argv: list[str], env: dict[str, str], home: Path, log: Path, group: Path | None = None
    ) -> None:
        self.group = group
        if group is not None:  # its own cgroup, which Delegate=yes makes its to divide
            group.mkdir()
            into = f'echo $$ > {group}/cgroup.procs; exec "$@"'
            argv = ["sh", "-c", into, "sh", *argv]
        self._address = str(home / f"n{len(list(home.glob('n*')))}")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._address)
        self._messages: queue.Queue[list[str]] = queue.Queue()
        # Read at once, as a manager does: the kernel queues ten, and what is beyond is dropped.
        threading.Thread(target=self._read, daemon=True).start()
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                argv,
                env={**env, "NOTIFY_SOCKET": self._address},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while message := self._socket.recv(4096):
                self._messages.put(message.decode().split("\n"))

    def told(self, word: str) -> None:
        """Wait until it has said so; other messages may come first."""
        deadline_s = time.monotonic() + 20
        while True:
            try:
                message = self._messages.get(timeout=max(0.0, deadline_s - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {word}:\n{self.log.read_text()}") from None
            if word in message:
                return

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            with contextlib.suppress(OSError):  # the second time
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            self.clear()

    def clear(self) -> None:
        """What systemd does once the main process is gone: kill the rest of its cgroup, and remove
        it."""
        if self.group is not None:
            assert not cgroups.sweep(str(self.group), 10.0)
            self.group = None


@pytest.fixture
def service(root: Path) -> Iterator[Service]:
    home = Path(tempfile.mkdtemp(prefix="ph", dir="/tmp"))
    exchanged = {
        "/opt/posthouse/bin/python": sys.executable,
        "/opt/posthouse/bin/posthouse": f"{sys.executable} -m posthouse_cli",
        **{f"/{name}/": f"{home}/{name}/" for name in ("etc/posthouse", "run")},
        **{f"/var/{name}/": f"{home}/{name}/" for name in ("lib", "log")},
        "/opt/acme/lib": f"{home}/acme",
    }
    (home / "acme/acme").mkdir(parents=True)
    (home / "acme/acme/jobs.py").write_text(JOBS)

    def here(text: str) -> str:
        for old, new in exchanged.items():
            text = text.replace(old, new)
        return text

    (home / "etc/posthouse").mkdir(parents=True)
    for sample in root.glob("deploy/*.toml"):
        (home / "etc/posthouse" / sample.name).write_text(here(sample.read_text()))
    env = {k: v for k, v in os.environ.items() if not k.startswith(("POSTHOUSE_", "XDG_"))}

    with contextlib.ExitStack() as ending:
        ending.callback(subprocess.run, ["rm", "-rf", str(home)], check=True)

        def start(unit: str) -> Running:
            parser = ConfigParser(interpolation=None, strict=False, delimiters=("=",))
            parser.optionxform = str  # type: ignore[assignment,method-assign]
            parser.read(root / f"deploy/systemd/{unit}.service")
            settings = parser["Service"]
            for key, base in (
                ("RuntimeDirectory", "run"),
                ("StateDirectory", "lib"),
                ("LogsDirectory", "log"),
            ):
                if key in settings:  # as systemd does, before the start
                    folder = home / base / settings[key]
                    folder.mkdir(parents=True, exist_ok=True)
                    folder.chmod(int(settings[f"{key}Mode"], 8))
            argv = shlex.split(here(settings["ExecStart"]))
            given = dict(env)
            if "WatchdogSec" in settings:
                seconds = float(settings["WatchdogSec"].removesuffix("s"))
                given["WATCHDOG_USEC"] = str(int(seconds * 1e6 / FASTER))
            group = _group(unit) if settings.get("Delegate") == "yes" else None
            running = Running(argv, given, home, home / f"{unit}.log", group)
            ending.callback(running.end)
            return running

        yield start


def _group(unit: str) -> Path | None:
    """A cgroup for a service, where one can be made."""
    own = cgroups.own_folder("")
    if own is None or not os.access(own, os.W_OK) or os.geteuid() != 0:
        return None
    return Path(own, f"posthouse-{unit}-{os.getpid()}-{time.monotonic_ns()}")


def test_a_restart_of_the_agents_unit_touches_no_worker(service: Service) -> None:
    """KillMode=process and RuntimeDirectoryPreserve: the next one finds warden and workers. Its
    watchdog is fed by the loop that does the work."""
    master, warden, agent = (service(f"posthouse-{n}") for n in ("master", "warden", "agent"))
    for running in (master, warden, agent):
        running.told("READY=1")
    home = warden.log.parent
    with posthouse.connect(f"ipc://{home}/run/posthouse/clients.sock") as client:
        handle = client.register(
            BackgroundWorker(
                name="w", main="acme.jobs:serve", main_arg=str(home / "said"), restart_time=0.1
            )
        )
        first = handle.wait_for_ready(timeout=20)
        group = warden.group
        if group is not None:  # Delegate=yes, and the warden alone in there: a cgroup a worker
            (found,) = group.glob("posthouse-*/[0-9]*")
            assert cgroups.members(str(found)) == [first.pid]
        for _ in range(2):
            assert agent.end() == 0
            agent = service("posthouse-agent")
            agent.told("READY=1")
            agent.told("WATCHDOG=1")
        status = handle.status(timeout=20)
        assert (status.pid, status.incarnation) == (first.pid, 1)

        # The warden's unit crashes: what is left of its cgroup is killed, and it begins again.
        warden.process.kill()
        warden.process.wait(20)
        warden.clear()
        warden = service("posthouse-warden")
        warden.told("READY=1")
        deadline_s = time.monotonic() + 20
        while (status := handle.status(timeout=20)).incarnation < 2 or not status.ready:
            assert time.monotonic() < deadline_s, status
            time.sleep(0.02)
        assert status.last_exit is not None
        assert status.last_exit.cause == "warden_died"
        # The kernel closes a dead warden's channels before it kills its workers: one that looks in
        # between may still have ended in order.
        (home / "said").unlink(missing_ok=True)

        # It is stopped: KillMode=mixed sends TERM to the main process only, which ends the workers
        # in their own way; nobody is left for systemd to kill.
        warden.process.send_signal(signal.SIGTERM)
        warden.told("STOPPING=1")
        assert warden.process.wait(20) == 0
        assert (home / "said").read_text() == "ended in order\n"
        while warden.group is not None and cgroups.populated(str(warden.group)):
            # Its zygotes see that it is gone, a moment later.
            assert time.monotonic() < deadline_s + 60, cgroups.members(str(warden.group))
            time.sleep(0.02)


def test_the_services_start_and_end_as_systemd_expects(service: Service) -> None:
    """READY=1 from each, in the order of the units; STOPPING=1 and status 0 at TERM; and the agent
    finds the warden that was there before it."""
    master, warden = service("posthouse-master"), service("posthouse-warden")
    master.told("READY=1")
    warden.told("READY=1")
    agent = service("posthouse-agent")
    agent.told("READY=1")
    folder = warden.log.parent / "run/posthouse-host/fenced"
    assert int((folder / "warden.lock").read_text()) == warden.process.pid
    for running in (agent, master, warden):
        assert running.process.poll() is None, running.log.read_text()
        running.process.send_signal(signal.SIGTERM)
        running.told("STOPPING=1")
        assert running.process.wait(20) == 0, running.log.read_text()


def test_an_agent_that_must_not_start_a_warden_waits_for_it(service: Service) -> None:
    agent = service("posthouse-agent")
    agent.told("READY=1")
    folder = Path(agent.log).parent / "run/posthouse-host/fenced"
    assert not (folder / "warden.sock").exists()
    assert not list(folder.glob("*.lock"))
    assert agent.end() == 0


def test_a_second_warden_is_refused(service: Service) -> None:
    first = service("posthouse-warden")
    first.told("READY=1")
    second = service("posthouse-warden")
    assert second.process.wait(20) != 0
    assert first.process.poll() is None
