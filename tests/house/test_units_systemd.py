"""The units as they are, under systemd itself: as pid 1 of a small system in namespaces of its own,
with the users, the folders and the sandboxes that the units ask for."""

import contextlib
import json
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

from posthouse_agent import cgroups

SYSTEMD = "/lib/systemd/systemd"
UNITS = ("master", "warden", "agent")
JOBS = """
from posthouse import worker

def serve(path):
    worker.before_exit(lambda: open(path, "a").write("ended in order\\n"))
    worker.unblock_signals()
    worker.ready()
    while True:
        worker.latch.wait(worker.EXIT_ON_PM_DEATH, timeout=60)
"""
PATIENCE_S = 60.0
MASTER, HOST = 901, 902  # users


class System:
    """The small system. `run` runs a command in it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def run(self, *argv: str, status: int | None = 0, user: int = 0) -> str:
        done = subprocess.run(
            [
                "nsenter",
                "-t",
                str(self.pid),
                "-m",
                "-p",
                "-C",
                "-S",
                str(user),
                "-G",
                str(user),
                *argv,
            ],
            env={
                "PATH": os.environ["PATH"],
                "POSTHOUSE_MASTER": "ipc:///run/posthouse/clients.sock",
            },
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert status in (None, done.returncode), f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def posthouse(self, *argv: str, status: int | None = 0) -> str:
        return self.run("/opt/posthouse/bin/posthouse", *argv, status=status, user=MASTER)

    def worker(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.posthouse("status", "w", "--json", status=None))
        return found

    def main_pid(self, unit: str) -> int:
        shown = self.run("systemctl", "show", "-P", "MainPID", f"posthouse-{unit}")
        return int(shown)

    def until(self, check: Callable[[], Any]) -> Any:
        deadline_s = time.monotonic() + PATIENCE_S
        while not (found := check()):
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        return found


def _furnish(root: Path, home: Path) -> None:
    """The parts: units, configuration, users, an environment with posthouse in /opt."""
    (home / "units").mkdir()
    for unit in UNITS:
        shutil.copy(root / f"deploy/systemd/posthouse-{unit}.service", home / "units")
    for target in ("sysinit", "basic", "shutdown", "posthouse-test"):
        (home / f"units/{target}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    (home / "etc/posthouse").mkdir(parents=True)
    for sample in root.glob("deploy/*.toml"):
        shutil.copy(sample, home / "etc/posthouse")
    names = ("posthouse", "posthouse-host")
    (home / "etc/passwd").write_text(
        "root:x:0:0::/:/bin/sh\n"
        + "".join(f"{name}:x:{n}:{n}::/:/bin/false\n" for n, name in enumerate(names, MASTER))
    )
    # As posthouse.sysusers has it: the agent is a client of the folder of the master's sockets.
    (home / "etc/group").write_text(
        f"root:x:0:\nposthouse:x:{MASTER}:posthouse-host\nposthouse-host:x:{HOST}:\n"
    )
    (home / "opt/acme/lib/acme").mkdir(parents=True)
    (home / "opt/acme/lib/acme/jobs.py").write_text(JOBS)
    (home / "opt/parts").mkdir()
    parts = [sys.base_prefix, *(path for path in sys.path if path and Path(path).is_dir())]
    parts = [
        path for path in dict.fromkeys(parts) if path == parts[0] or not path.startswith(parts[0])
    ]
    (home / "parts").write_text("".join(f"{path}\n" for path in parts))
    place = home / "opt/posthouse"
    minor = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    packages = place / "lib" / minor / "site-packages"
    packages.mkdir(parents=True)
    (packages / "here.pth").write_text(
        "".join(f"/opt/parts/{number}\n" for number in range(1, len(parts)))
    )
    (place / "pyvenv.cfg").write_text("home = /opt/parts/0/bin\n")
    (place / "bin").mkdir()
    (place / "bin/python").symlink_to(f"/opt/parts/0/bin/{minor}")
    script = place / "bin/posthouse"
    script.write_text('#!/bin/sh\nexec /opt/posthouse/bin/python -m posthouse_cli "$@"\n')
    script.chmod(0o755)
    subprocess.run(["chmod", "-R", "a+rX", str(home)], check=True)


@pytest.fixture
def system(root: Path) -> Iterator[System]:
    own = cgroups.own_folder("")
    tools = ("unshare", "nsenter", "systemctl")
    if os.geteuid() != 0 or not Path(SYSTEMD).exists() or not all(map(shutil.which, tools)):
        pytest.skip("needs root, systemd, unshare and nsenter")
    if own is None or not os.access(own, os.W_OK):
        pytest.skip("no cgroup of version 2 can be made here")
    home = Path(tempfile.mkdtemp(prefix="ph", dir="/tmp"))
    group = Path(own, f"posthouse-systemd-{os.getpid()}")
    with contextlib.ExitStack() as ending:
        ending.callback(shutil.rmtree, home)
        _furnish(root, home)
        group.mkdir()
        ending.callback(lambda: cgroups.sweep(str(group), 20.0))
        log = ending.enter_context((home / "log").open("wb"))
        inside = Path(__file__).with_name("under_systemd.sh")
        spaces = "--cgroup --mount --pid --fork --kill-child --uts --ipc"
        into = f'echo $$ > {group}/cgroup.procs; exec unshare {spaces} sh {inside} "$0"'
        outer = subprocess.Popen(["sh", "-c", into, str(home)], stdout=log, stderr=log)
        ending.callback(outer.wait)
        ending.callback(outer.kill)
        running = System(_child(outer, home))
        deadline_s = time.monotonic() + PATIENCE_S
        while "active" not in running.run(
            "systemctl", "is-active", "posthouse-test.target", status=None
        ):
            said = (home / "log").read_text()
            if outer.poll() is not None and ("not permitted" in said or "denied" in said):
                pytest.skip(f"no system can be started here: {said[-300:]}")
            assert outer.poll() is None and time.monotonic() < deadline_s, said
        yield running


def _child(outer: "subprocess.Popen[bytes]", home: Path) -> int:
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        text = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text()
        if text:
            return int(text)
        assert outer.poll() is None and time.monotonic() < deadline_s, (home / "log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_units_under_systemd(system: System) -> None:
    system.run("systemctl", "start", *(f"posthouse-{unit}" for unit in UNITS))
    system.posthouse(
        *("register", "--name", "w", "--main", "acme.jobs:serve", "--restart-time", "0.1s"),
        *("--main-arg", '"/run/posthouse-host/said"'),
    )
    system.posthouse("wait", "w", "--for", "ready")
    first = system.worker()
    cgroup = system.run("cat", f"/proc/{first['pid']}/cgroup")
    assert "0::/system.slice/posthouse-warden.service/" in cgroup
    owner = system.run("stat", "-c", "%u", f"/proc/{first['pid']}")
    assert owner == f"{HOST}\n"

    # Neither a restart of the agent's unit nor its crash, nor a reload, touches a worker.
    system.run("systemctl", "restart", "posthouse-agent")
    system.run("systemctl", "reload", "posthouse-agent")
    agent = system.main_pid("agent")
    system.run("kill", "-KILL", str(agent))
    system.until(lambda: system.main_pid("agent") not in (0, agent))
    system.run("systemctl", "restart", "posthouse-master")
    system.until(lambda: system.worker()["reachable"])
    now = system.worker()
    assert (now["pid"], now["incarnation"]) == (first["pid"], 1)

    # A warden that is killed takes its workers along; systemd starts it again, and they return.
    warden = system.main_pid("warden")
    system.run("kill", "-KILL", str(warden))
    system.until(lambda: system.main_pid("warden") not in (0, warden))
    system.until(lambda: (w := system.worker())["incarnation"] == 2 and w["ready"])
    assert system.worker()["last_exit"]["cause"] == "warden_died"

    # One that is stopped lets them end in their own way, and leaves nothing.
    system.run("rm", "-f", "/run/posthouse-host/said")
    system.run("systemctl", "stop", "posthouse-warden")
    assert system.run("cat", "/run/posthouse-host/said") == "ended in order\n"
    for unit in ("agent", "warden"):
        state = system.run("systemctl", "show", "-P", "Result", f"posthouse-{unit}")
        assert state == "success\n"
    system.run("ls", "/sys/fs/cgroup/system.slice/posthouse-warden.service", status=2)
    system.run("systemctl", "stop", "posthouse-master")
