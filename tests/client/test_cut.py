"""Clients that are enrolled late, or whose network is cut: with keys, over TCP, against a real
master."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import posthouse
import posthouse.aio
from posthouse import BackgroundWorker, ClientSettings, errors
from posthouse_testing.cluster import command

Eventually = Callable[..., Any]
PROGRAM = Path(__file__).parent / "workers" / "cut_client.py"
WAITS = BackgroundWorker(name="w", main="m:f", labels=("no",))  # no host has that label

both = pytest.mark.parametrize("kind", ["blocking", "aio"])


class Site:
    """A master's files in a folder, and the process, perhaps in a network namespace."""

    def __init__(self, folder: Path, address: str, prefix: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.prefix = prefix
        self.process: subprocess.Popen[bytes] | None = None
        self.clients = f"tcp://{address}:{free_port()}"
        for principal in ("master:main", "client:me", "agent:b"):
            self.posthouse("keygen", principal)
        (folder / "master.toml").write_text(
            f'state_dir = "{folder}/registry"\n'
            f'listen_agents = "tcp://{address}:{free_port()}"\n'
            f'listen_clients = "{self.clients}"\n'
            f'key_file = "{folder}/master-main.key"\n'
            f'principals_file = "{folder}/principals.toml"\n'
        )

    def posthouse(self, *words: str) -> None:
        subprocess.run([*command(), *words], cwd=self.folder, check=True, capture_output=True)

    def enrol(self, *principals: str) -> None:
        """Let these in, and nobody else."""
        lines = [(self.folder / f"{name}.key.pub").read_text() for name in principals]
        path = self.folder / "principals.toml"
        path.write_text("[principals]\n" + "\n".join(lines))
        path.chmod(0o600)
        if self.process is not None:
            self.process.send_signal(signal.SIGHUP)

    def start(self) -> None:
        argv = [*self.prefix, *command(), "master", "--config", str(self.folder / "master.toml")]
        with (self.folder / "master.log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def listening(self) -> bool:
        host, _, port = self.clients.removeprefix("tcp://").partition(":")
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @property
    def settings(self) -> dict[str, str]:
        public = (self.folder / "master-main.key.pub").read_text()
        return {
            "master": self.clients,
            "key_file": str(self.folder / "client-me.key"),
            "master_key": public.partition("=")[2].strip().strip('"'),
        }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def site(folder: Path) -> Iterator[Site]:
    made = Site(folder, "127.0.0.1")
    yield made
    made.close()


def in_background(kind: str, site: Site, timeout: float) -> Callable[[], str]:
    """Connects and registers; the result is the handle's name, or what was raised."""
    settings = ClientSettings(**site.settings)  # type: ignore[arg-type]
    found: list[Any] = []

    async def on_a_loop() -> str:
        async with posthouse.aio.connect(settings=settings, timeout=timeout) as cluster:
            return (await cluster.register(WAITS)).name

    def in_a_thread() -> str:
        with posthouse.connect(settings=settings, timeout=timeout) as cluster:
            return cluster.register(WAITS).name

    def run() -> None:
        try:
            found.append(asyncio.run(on_a_loop()) if kind == "aio" else in_a_thread())
        except errors.PosthouseError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def result() -> str:
        thread.join(50)
        if isinstance(found[0], Exception):
            raise found[0]
        return str(found[0])

    return result


@both
def test_a_client_may_be_there_before_its_master(site: Site, kind: str) -> None:
    site.enrol("client-me")
    result = in_background(kind, site, 40)
    site.start()
    assert result() == "w"


@both
def test_a_client_may_be_there_before_its_key_is_known(
    site: Site, eventually: Eventually, kind: str
) -> None:
    site.enrol("agent-b")
    site.start()
    eventually(site.listening)
    with pytest.raises(errors.Unreachable, match="does not accept our key"):
        in_background(kind, site, 2)()
    result = in_background(kind, site, 40)
    site.enrol("client-me", "agent-b")
    assert result() == "w"


# --- the network is cut ---


class Program:
    """A client in a process of its own; see cut_client.py."""

    def __init__(self, kind: str, site: Site, prefix: list[str]) -> None:
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [*prefix, sys.executable, str(PROGRAM), kind, json.dumps(site.settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def ask(self, *words: str) -> None:
        assert self._process.stdin is not None
        print(*words, file=self._process.stdin, flush=True)

    def events(self) -> list[int]:
        return [int(line.split()[1]) for line in self.lines if line.startswith("event ")]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.strip())


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def two_networks() -> Iterator[tuple[str, str]]:
    """Namespaces with 10.78.0.1 and 10.78.0.2, and one cable between them."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    here, there = (f"phc{os.getpid()}{side}" for side in "ab")
    try:
        for name in (here, there):
            ip("netns", "add", name)
        ip(
            "link",
            "add",
            here,
            "netns",
            here,
            "type",
            "veth",
            "peer",
            "name",
            there,
            "netns",
            there,
        )
        for number, name in enumerate((here, there), 1):
            ip("-n", name, "addr", "add", f"10.78.0.{number}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield here, there
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    finally:
        for name in (here, there):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.timeout(150)
def test_a_cut_network_costs_a_client_nothing(folder: Path, eventually: Eventually) -> None:
    """While it is cut, calls wait, and waits say that no master answers. When it is whole again
    each call is done once, and all events have come once, those of meanwhile among them."""
    with two_networks() as (here, there):
        site = Site(folder, "10.78.0.1", ("ip", "netns", "exec", here))
        site.enrol("client-me")
        site.start()
        inside = Program("aio", site, ["ip", "netns", "exec", here])
        clients = {
            kind: Program(kind, site, ["ip", "netns", "exec", there])
            for kind in ("blocking", "aio")
        }
        everybody = [inside, *clients.values()]
        try:
            for each in everybody:
                eventually(lambda each=each: "connected" in each.lines)
            for kind, client in clients.items():
                client.ask("register", f"before-{kind}")
                eventually(partial(has, client, f"register before-{kind} before-{kind}"))
            ip("-n", there, "link", "set", there, "down")
            for kind, client in clients.items():
                client.ask("register", f"amid-{kind}")
                client.ask("wait", f"before-{kind}")
                eventually(partial(has, client, f"wait before-{kind} postmaster_died"), 40)
            for name in ("one", "two"):
                inside.ask("register", name)
                eventually(partial(has, inside, f"register {name} {name}"))
            assert not any(line.startswith("register amid") for line in clients["aio"].lines)
            ip("-n", there, "link", "set", there, "up")
            for kind, client in clients.items():
                told = f"register amid-{kind} "
                eventually(partial(answered, client, told), 40)
                assert has(client, f"{told}amid-{kind}"), client.lines
            for each in everybody:
                eventually(lambda each=each: len(each.events()) >= 6)
                assert each.events() == [1, 2, 3, 4, 5, 6]
        finally:
            for each in everybody:
                each.close()
            site.close()


def has(program: Program, line: str) -> bool:
    return line in program.lines


def answered(program: Program, words: str) -> bool:
    return any(line.startswith(words) for line in program.lines)
