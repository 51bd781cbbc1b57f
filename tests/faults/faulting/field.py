"""A cluster of real processes whose hosts are network namespaces, and everything that can be done
to it.

Owns: the processes, cgroups, small disks and clocks of one master and some hosts. Must not know:
what any scenario expects. Invariant: `close` leaves nothing, and `left` says so.
"""

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import posthouse
from faulting.network import PORT, CannotHere, Network
from faulting.oracle import Oracle
from posthouse import Cluster, keys
from posthouse.settings import ClientSettings
from posthouse_agent import cgroups
from posthouse_testing import sweep
from posthouse_testing.cluster import Daemon, LocalCluster
from posthouse_testing.proxy import Proxy

HERE = Path(__file__).parent
WORKERS = HERE.parent / "workers"
DISKS_MIB = {"runtime": 4, "registry": 64}
PATIENCE_S = 40.0


def alive(pid: int) -> bool:
    return sweep.identify(pid) is not None


def eventually(check: Callable[[], Any], what: Callable[[], Any] = lambda: "") -> Any:
    deadline_s = time.monotonic() + PATIENCE_S
    while not (found := check()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"it did not become true in time: {what()}")
        time.sleep(0.01)
    return found


class Field(LocalCluster):
    """hosts: name -> "wire" (a cable to the master) or "proxy" (a proxy of ours between)."""

    def __init__(self, hosts: Mapping[str, str]) -> None:
        self.network = Network(hosts)
        self.proxies: dict[str, Proxy] = {}
        self._links = dict(hosts)
        self._spaces: dict[str, Path] = {}  # cgroup folders, by "controller host"
        self._mounts: list[Path] = []
        self._sockets: list[socket.socket] = []
        super().__init__(hosts=hosts, path=[WORKERS], env={"LC_ALL": "C.UTF-8"})
        self.oracle: Oracle
        self._clocks: dict[str, Path] = {}

    # --- made ---

    def start(self) -> None:
        self.dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.oracle = Oracle(self.dir / "oracle")
        self._make_keys()
        self._make_clocks()
        for host, link in self._links.items():
            if link == "proxy":
                self._make_proxy(host)
            for controller in ("memory", "pids"):
                self._make_space(controller, host)
        with contextlib.suppress(CannotHere):
            self._mount(self.dir / "master", DISKS_MIB["registry"])
            for host in self._links:
                self._mount(self.host_dir(host), DISKS_MIB["runtime"])
        super().start()

    def _make_keys(self) -> None:
        folder = self.dir / "keys"
        folder.mkdir(mode=0o700)
        pairs = {"master:main": keys.generate()}
        pairs["client:test"] = keys.generate()
        pairs |= {f"agent:{host}": keys.generate() for host in self._links}
        for principal, pair in pairs.items():
            keys.write_pair(str(folder / principal.replace(":", "-")), pair, principal)
        lines = [
            f'"{name}" = "{pair.public}"' for name, pair in pairs.items() if name[:6] != "master"
        ]
        (folder / "principals.toml").write_text("\n".join(["[principals]", *lines, ""]))
        self.master_key = pairs["master:main"].public
        self.config_of("master").write_text(
            f'key_file = "{folder}/master-main"\nprincipals_file = "{folder}/principals.toml"\n'
        )
        for host in self._links:
            self.config_of(f"agent-{host}").write_text(
                f'key_file = "{folder}/agent-{host}"\nmaster_key = "{self.master_key}"\n'
            )

    def connect(self, **options: Any) -> Cluster:
        settings = ClientSettings(
            master=self.clients,
            key_file=str(self.dir / "keys" / "client-test"),
            master_key=self.master_key,
        )
        return posthouse.connect(settings=settings, **options)

    def config_of(self, daemon: str) -> Path:
        return self.dir / f"{daemon}.toml"

    def _make_proxy(self, host: str) -> None:
        address = (self.network.master_of(host), PORT)
        within = self.network.within
        listener = within(host, lambda: socket.create_server(("127.0.0.1", PORT), backlog=64))
        self.proxies[host] = Proxy(
            listener, lambda: within(host, lambda: socket.create_connection(address, timeout=2))
        )

    def _make_clocks(self) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        library = self.dir / "clock.so"
        if compiler is None:
            return
        made = subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "clock.c"],
            capture_output=True,
            text=True,
        )
        if made.returncode:
            return
        for name in ("master", *(f"agent-{host}" for host in self._links)):
            self._clocks[name] = self.dir / f"{name}.clock"
            self._clocks[name].write_bytes(struct.pack("@l", 0))

    def _daemon(self, name: str, verb: str, *options: str) -> Daemon:
        host = name.removeprefix("agent-") if verb == "agent" else ""
        argv = [*options, "--config", str(self.dir / f"{name}.toml"), "--dir", str(self.dir)]
        if host:
            at = "127.0.0.1" if self._links[host] == "proxy" else self.network.master_of(host)
            argv += ["--master", f"tcp://{at}:{PORT}"]
        else:
            argv += ["--listen-agents", f"tcp://0.0.0.0:{PORT}"]
        plain = super()._daemon(name, verb, *argv)
        plain.argv = self._enter(host, name, [*plain.argv[:4], verb, *argv])
        return plain

    def _enter(self, host: str, name: str, argv: list[str]) -> list[str]:
        """In its network, its cgroups, and with its clock; found when it is started."""
        script = 'for at in $SPACES; do [ -d $at ] && echo $$ > $at/cgroup.procs; done; exec "$@"'
        spaces = [f"{cgroups.own_folder(controller) or ''}/{self._space_name(host)}"
                  for controller in ("memory", "pids") if host]  # fmt: skip
        library, clock = self.dir / "clock.so", self.dir / f"{name}.clock"
        preload = f"[ -e {library} ] && export LD_PRELOAD={library} FAULTS_CLOCK={clock}"
        env = ["env", f"SPACES={' '.join(spaces)}"]
        return [*self.network.enter(host), *env, "sh", "-c", f"{preload}; {script}", "sh", *argv]

    # --- processes ---

    def wardens(self, host: str) -> list[int]:
        found = [who.pid for lock in self.host_dir(host).glob("*/warden.lock")
                 for who in sweep.holders(lock)]  # fmt: skip
        return sorted(set(found))

    def zygotes(self, host: str) -> list[int]:
        """With the spares that they have forked."""
        found = []
        for warden in self.wardens(host):
            for pid in _children(warden):
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{pid}/comm").read_text().startswith("posthouse zygo"):
                        found.append(pid)
        return found

    def pids_of(self, target: str) -> list[int]:
        """master, agent:a, warden:a, zygote:a."""
        role, _, host = target.partition(":")
        match role:
            case "master":
                return [self.master.pid] if self.master.alive else []
            case "agent":
                return [self.agent(host).pid] if self.agent(host).alive else []
            case "warden":
                return self.wardens(host)
            case "zygote":
                return self.zygotes(host)
        raise AssertionError(target)

    def daemon(self, target: str) -> Daemon:
        return self.master if target == "master" else self.agent(target.partition(":")[2])

    # --- room ---

    def _space_name(self, host: str) -> str:
        return f"posthouse-faults-{os.getpid()}-{host}"

    def _make_space(self, controller: str, host: str) -> None:
        own = cgroups.own_folder(controller)
        if own is not None:
            folder = Path(own, self._space_name(host))
            with contextlib.suppress(OSError):
                folder.mkdir()
                self._spaces[f"{controller} {host}"] = folder

    def space(self, controller: str, host: str) -> Path:
        found = self._spaces.get(f"{controller} {host}")
        if found is None:
            raise CannotHere(f"no cgroup with the controller {controller} may be made here")
        return found

    def limit_processes(self, host: str) -> None:
        """No more processes: fewer than there are already."""
        (self.space("pids", host) / "pids.max").write_text("1")

    def limit_memory(self, host: str, more_mib: int) -> None:
        """So much more than now, for all of the host."""
        folder = self.space("memory", host)
        limit = folder / "memory.limit_in_bytes"
        used = folder / "memory.usage_in_bytes"
        if not limit.exists():
            limit, used = folder / "memory.max", folder / "memory.current"
        limit.write_text(str(int(used.read_text()) + (more_mib << 20)))

    def unlimit(self, host: str) -> None:
        for controller, name, text in (
            ("pids", "pids.max", "max"),
            ("memory", "memory.limit_in_bytes", "-1"),
            ("memory", "memory.max", "max"),
        ):
            folder = self._spaces.get(f"{controller} {host}")
            if folder is not None and (folder / name).exists():
                (folder / name).write_text(text)

    def limit_files(self, target: str, more: int) -> None:
        for pid in self.pids_of(target):
            highest = max(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
            hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1 + more, hard))

    def unlimit_files(self, target: str) -> None:
        for pid in self.pids_of(target):
            hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(hard, 65536), hard))

    def _mount(self, folder: Path, mib: int) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"size={mib}m,mode=0700".encode()
        if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options):
            raise CannotHere(f"mount: {os.strerror(ctypes.get_errno())}")
        self._mounts.append(folder)

    def disk(self, target: str) -> Path:
        role, _, host = target.partition(":")
        folder = self.host_dir(host) if role == "runtime" else self.dir / "master"
        if folder not in self._mounts:
            raise CannotHere("no small disk can be mounted here")
        return folder

    def fill(self, target: str) -> None:
        """Take what is free of a disk, to the last byte."""
        with (self.disk(target) / "filler").open("ab", buffering=0) as file:
            for size in (65_536, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"x" * size)

    def empty(self, target: str) -> None:
        (self.disk(target) / "filler").unlink(missing_ok=True)

    def set_clock(self, target: str, offset_s: int) -> None:
        clock = self._clocks.get(target.replace(":", "-"))
        if clock is None:
            raise CannotHere("no C compiler here to make a wall clock of our own")
        with clock.open("r+b") as file:  # in place: they have mapped it
            file.write(struct.pack("@l", offset_s))

    # --- the end ---

    def make_whole(self) -> None:
        """Whatever was done to it: undone."""
        for host in self._links:
            self.network.heal(host)
            self.unlimit(host)
            with contextlib.suppress(CannotHere):
                self.empty(f"runtime:{host}")
        for proxy in self.proxies.values():
            proxy.set("pass")
        with contextlib.suppress(CannotHere):
            self.empty("registry")
        for name in self._clocks:
            self.set_clock(name, 0)
        roles = ("agent", "warden", "zygote")
        targets = ["master", *(f"{role}:{host}" for role in roles for host in self._links)]
        for target in targets:
            for pid in self.pids_of(target):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            self.unlimit_files(target)
        for target in ("master", *(f"agent:{host}" for host in self._links)):
            if not self.daemon(target).alive:
                self.daemon(target).start()
        self.wait_for_hosts()

    def close(self) -> None:
        for host in self._links:
            self.unlimit(host)
        super().close()
        for folder in self._mounts:
            ctypes.CDLL(None).umount2(os.fsencode(folder), 2)
        for proxy in self.proxies.values():
            proxy.close()
        if hasattr(self, "oracle"):
            self.oracle.close()
        for folder in self._spaces.values():
            with contextlib.suppress(OSError):
                folder.rmdir()
        self.network.close()
        if not self.keep:
            shutil.rmtree(self.dir, ignore_errors=True)

    def left(self) -> list[str]:
        """What is there after `close` and should not be."""
        found = [f"process {who.pid}" for who in sweep.writers(self.dir)]
        found += [f"namespace {name}" for name in self.network.left()]
        mounts = Path("/proc/self/mountinfo").read_text()
        found += [f"mount {line}" for line in mounts.splitlines() if str(self.dir) in line]
        found += [f"cgroup {path}" for path in self._spaces.values() if path.exists()]
        return found


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]
