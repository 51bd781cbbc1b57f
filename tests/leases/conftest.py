"""A master and two hosts, each in a network namespace of its own, with keys and cables to cut."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import posthouse
from posthouse.settings import ClientSettings
from posthouse_testing import sweep

WORKERS = Path(__file__).parents[1] / "faults" / "workers"
SWITCH = "10.78.0.1"
DEADLINE_S = 30.0


def eventually(check: Callable[[], Any], site: "Site") -> Any:
    """What `check` returns once it is true."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not (result := check()):
        if time.monotonic() > deadline_s:
            pytest.fail(f"it did not become true in time: {site.logs()}")
        time.sleep(0.02)
    return result


def ip(*words: str) -> None:
    ran = subprocess.run(["ip", *words], capture_output=True, text=True)
    if ran.returncode:
        pytest.skip(f"no network namespaces here: ip {' '.join(words)}: {ran.stderr.strip()}")


class Site:
    """The master is in the namespace of the switch; its clients are on a Unix socket, as file
    systems are shared. `lease`: of the master."""

    def __init__(self, folder: Path, hosts: tuple[str, ...], lease: str) -> None:
        self.folder = folder
        self.hosts = hosts
        self.lease = lease
        self.spaces = {name: f"ph{os.getpid()}{name}" for name in ("m", *hosts)}
        self.made: list[str] = []
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("POSTHOUSE_")}
        self.env |= {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
        self.clients = f"ipc://{folder}/clients.sock"
        self.oracle = folder / "oracle"

    def build(self) -> None:
        for space in self.spaces.values():
            ip("netns", "add", space)
            self.made.append(space)
        master = self.spaces["m"]
        ip("-n", master, "link", "add", "switch", "type", "bridge")
        ip("-n", master, "addr", "add", f"{SWITCH}/24", "dev", "switch")
        for number, host in enumerate(self.hosts, 2):
            space = self.spaces[host]
            near, far = f"to-{host}", ("peer", "name", "cable", "netns", space)
            ip("-n", master, "link", "add", near, "type", "veth", *far)
            ip("-n", master, "link", "set", near, "master", "switch")
            ip("-n", master, "link", "set", near, "up")
            ip("-n", space, "addr", "add", f"10.78.0.{number}/24", "dev", "cable")
            ip("-n", space, "link", "set", "cable", "up")
        ip("-n", master, "link", "set", "switch", "up")
        ip("-n", master, "link", "set", "lo", "up")
        self._keys()

    def _keys(self) -> None:
        names = {"master": "master:main", **{host: f"agent:{host}" for host in self.hosts}}
        for principal in (*names.values(), "client:me"):
            self.command("keygen", principal, at=self.folder)
        public = [f"agent-{host}.key.pub" for host in self.hosts] + ["client-me.key.pub"]
        text = "".join((self.folder / name).read_text() for name in public)
        (self.folder / "principals.toml").write_text(f"[principals]\n{text}")
        (self.folder / "master.toml").write_text(
            f'state_dir = "{self.folder}/registry"\n'
            f'listen_agents = "tcp://{SWITCH}:7420"\n'
            f'listen_clients = "{self.clients}"\n'
            f'key_file = "{self.folder}/master-main.key"\n'
            f'principals_file = "{self.folder}/principals.toml"\n'
            f'lease = "{self.lease}"\n'
        )
        master_key = (self.folder / "master-main.key.pub").read_text()
        (self.folder / "client.toml").write_text(
            f'master = "{self.clients}"\nkey_file = "{self.folder}/client-me.key"\n{master_key}'
        )
        for host in self.hosts:
            (self.folder / f"{host}.toml").write_text(
                f'host = "{host}"\nmaster = "tcp://{SWITCH}:7420"\n'
                f'key_file = "{self.folder}/agent-{host}.key"\n'
                f'runtime_dir = "{self.folder}/{host}"\nlog_dir = "{self.folder}/{host}-log"\n'
                f'modules = ["*"]\nallow_exec = true\n{master_key}\n'
                f'[runtime.default]\npath = ["{WORKERS}"]\n'
            )

    def command(self, *words: str, at: Path | None = None) -> str:
        ran = subprocess.run(
            [sys.executable, "-P", "-m", "posthouse_cli", *words],
            env=self.env,
            cwd=at,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert ran.returncode == 0, f"{words}: {ran.stderr}"
        return ran.stdout

    def begin(self, name: str) -> None:
        """Start the master ("m") or the agent of a host, in its namespace."""
        verb = "master" if name == "m" else "agent"
        config = self.folder / ("master.toml" if name == "m" else f"{name}.toml")
        argv = ["ip", "netns", "exec", self.spaces[name], sys.executable, "-P", "-m"]
        argv += ["posthouse_cli", verb, "--config", str(config)]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env,
                start_new_session=True,
            )

    def up(self) -> None:
        for name in ("m", *self.hosts):
            self.begin(name)
        eventually(lambda: self.heard() == set(self.hosts), self)

    def heard(self) -> set[str]:
        try:
            with self.connect() as cluster:
                return {host.name for host in cluster.hosts(timeout=2.0) if host.reachable}
        except posthouse.PosthouseError:
            return set()

    def connect(self) -> posthouse.Cluster:
        settings = ClientSettings(
            master=self.clients,
            key_file=str(self.folder / "client-me.key"),
            master_key=(self.folder / "master-main.key.pub").read_text().split('"')[1],
        )
        return posthouse.connect(settings=settings, timeout=5.0)

    def cut(self, host: str) -> None:
        ip("-n", self.spaces["m"], "link", "set", f"to-{host}", "down")

    def heal(self, host: str) -> None:
        ip("-n", self.spaces["m"], "link", "set", f"to-{host}", "up")

    def beats(self) -> list[tuple[str, int, str, float]]:
        """What the oracle has been told: word, token, host, when."""
        found = []
        for line in self.oracle.read_text().splitlines() if self.oracle.exists() else []:
            word, token, host, at_s = line.split()
            found.append((word, int(token), host, float(at_s)))
        return found

    def warden_pid(self, host: str, kind: str = "fenced") -> int:
        holders = sweep.holders(self.folder / host / kind / "warden.lock")
        return holders[0].pid if holders else 0

    def logs(self) -> str:
        return "\n".join(
            f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            for log in sorted(self.folder.glob("*.log"))
        )

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        assert sweep.sweep(self.folder, term_s=0.5)
        for space in self.made:
            subprocess.run(["ip", "netns", "del", space], check=True)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def site() -> Iterator[Callable[..., Site]]:
    """Makes sites, and ends them. Skips where there can be no network namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    made: list[Site] = []

    def make(hosts: tuple[str, ...] = ("a", "b"), lease: str = "5s") -> Site:
        made.append(Site(Path(tempfile.mkdtemp(prefix="ph", dir="/tmp")), hosts, lease))
        made[-1].build()
        made[-1].up()
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., Any]:
    return eventually
