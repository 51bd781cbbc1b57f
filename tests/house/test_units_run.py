"""The units' own commands, with the sample configurations, started as systemd starts them.

Only the folders are exchanged: /opt/posthouse/bin, /etc/posthouse, /run, /var/lib, /var/log.
"""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

Service = Callable[[str], "Running"]


class Running:
    """A service that was started, and the socket on which it talks to its manager."""

    def __init__(self, argv: list[str], env: dict[str, str], home: Path, log: Path) -> None:
        self._address = str(home / f"n{len(list(home.glob('n*')))}")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._address)
        self._socket.settimeout(20)
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                argv,
                env={**env, "NOTIFY_SOCKET": self._address},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def told(self, word: str) -> None:
        """Wait until it has said so; other messages may come first."""
        while True:
            try:
                message = self._socket.recv(4096).decode()
            except TimeoutError:
                raise AssertionError(f"no {word}:\n{self.log.read_text()}") from None
            if word in message.split("\n"):
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
            self._socket.close()


@pytest.fixture
def service(root: Path) -> Iterator[Service]:
    home = Path(tempfile.mkdtemp(prefix="ph", dir="/tmp"))
    exchanged = {
        "/opt/posthouse/bin/python": sys.executable,
        "/opt/posthouse/bin/posthouse": f"{sys.executable} -m posthouse_cli",
        **{f"/{name}/": f"{home}/{name}/" for name in ("etc/posthouse", "run")},
        **{f"/var/{name}/": f"{home}/{name}/" for name in ("lib", "log")},
    }

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
            running = Running(argv, env, home, home / f"{unit}.log")
            ending.callback(running.end)
            return running

        yield start


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
