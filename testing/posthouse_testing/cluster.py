"""A whole cluster of real processes on this machine, for tests, the demo and experiments.

Owns: a private folder, one master, one agent for each host, their logs and their end. Must not
know: how any of them works; it starts the commands that users start. Invariant: no process of the
cluster outlives the `with` block, not even if the block's process is killed (a guard sees to it).

    with LocalCluster(path=["examples"]) as cluster, cluster.connect() as client:
        client.register(...)
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import posthouse
from posthouse import paths
from posthouse.errors import PosthouseError, TimedOut
from posthouse_testing import sweep
from posthouse_testing.sweep import ProcessId

__all__ = ["Daemon", "LocalCluster"]


class Daemon:
    """One `posthouse master` or `posthouse agent` process; may be ended and started again."""

    def __init__(self, name: str, argv: list[str], log: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.argv = argv
        self.log = log
        self._env = dict(env)
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<Daemon {self.name} pid={self.pid if self.alive else None}>"

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it. It must not be running."""
        assert not self.alive, f"{self!r} is running"
        with self.log.open("ab") as log:
            # Its own session: Ctrl-C in the terminal is for the program, not for its daemons.
            self._process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
                start_new_session=True,
            )

    def signal(self, number: int) -> None:
        """Send a signal to it."""
        assert self._process is not None, "not started"
        self._process.send_signal(number)

    def wait(self, timeout: float = 10.0) -> int:
        """Its exit status (negative: the signal). Raises TimedOut."""
        assert self._process is not None, "not started"
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimedOut(f"{self!r} did not end within {timeout} s; log: {self.log}") from None

    def last_words(self, lines: int = 10) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        if self.alive:
            self.signal(signal.SIGKILL)
            self.wait()

    def terminate(self, timeout: float = 10.0) -> int:
        """TERM, and wait for its exit status."""
        if self.alive:
            self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def restart(self, *, kill: bool = True) -> None:
        """End it, by KILL or else by TERM, and start it again."""
        if kill:
            self.kill()
        else:
            self.terminate()
        self.start()

    def close(self) -> None:
        """End it somehow."""
        if self.alive:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            with contextlib.suppress(TimedOut):
                self.wait(3.0)
            self.kill()


class LocalCluster:
    """A master and some hosts, ready to be used.

    hosts: their names. dir: an empty or missing folder with a short path; by default a new one in
    the temporary folder, removed at the end. modules, allow_exec: what hosts may run. path: import
    folders of the workers. env: added to the environment of every process. start=False leaves the
    hosts to `start_host`.
    """

    def __init__(
        self,
        hosts: Iterable[str] = ("a", "b"),
        dir: str | Path | None = None,  # noqa: A002 - the word users know from tempfile
        *,
        modules: Iterable[str] = ("*",),
        path: Iterable[str | Path] = (),
        allow_exec: bool = True,
        env: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> None:
        self.hosts = tuple(hosts)
        self.modules = tuple(modules)
        self.path = tuple(os.path.abspath(folder) for folder in path)  # noqa: PTH100
        self.allow_exec = allow_exec
        self.timeout = timeout
        self.keep = False
        """Set it to leave the processes running and the folder in place."""
        self._own_dir = dir is None
        self.dir = Path(dir or tempfile.mkdtemp(prefix="ph", dir=sweep.short_tmp())).absolute()
        self._config = self.dir / "empty.toml"  # so that none of the machine's is read
        self.clients = paths.ipc_endpoint(self.dir / "clients.sock")
        self.agents = paths.ipc_endpoint(self.dir / "agents.sock")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("POSTHOUSE_")}
        self.env = {**inherited, "PYTHONUNBUFFERED": "1", **(env or {})}
        self.master = self._daemon("master", "master")
        self._agents: dict[str, Daemon] = {}
        self._guard: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<LocalCluster {self.dir} hosts={','.join(self.hosts)}>"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.print_logs()
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.print_logs()
        self.close()

    def start(self) -> None:
        """Start everything, and wait until every host is up."""
        self.dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._config.write_text("# LocalCluster says everything by flags.\n")
        self._start_guard()
        self.master.start()
        for host in self.hosts:
            self.start_host(host)
        self.wait_for_hosts()

    def start_host(self, host: str, *options: str) -> Daemon:
        """Start the agent of a further host, or of one whose agent is gone."""
        if host not in self._agents:
            self._agents[host] = self._daemon(f"agent-{host}", *self._agent_argv(host), *options)
        self._agents[host].start()
        return self._agents[host]

    def agent(self, host: str) -> Daemon:
        """The agent process of a host."""
        return self._agents[host]

    def warden_pid(self, host: str, kind: str = "fenced") -> int:
        """The process id of a host's warden. Raises LookupError if none runs."""
        found = sweep.holders(self.host_dir(host) / kind / "warden.lock")
        if not found:
            raise LookupError(f"host {host} has no {kind} warden")
        return found[0].pid

    def host_dir(self, host: str) -> Path:
        """The runtime folder of a host."""
        return self.dir / "hosts" / host

    def log_dir(self, host: str) -> Path:
        """The folder of the output of a host's workers."""
        return self.dir / "logs" / host

    def connect(self, **options: Any) -> "posthouse.Cluster":
        """A client."""
        return posthouse.connect(self.clients, **options)

    def run(self, *arguments: str, timeout: float = 30.0) -> "subprocess.CompletedProcess[str]":
        """Run `posthouse ARGUMENTS` against this cluster; output is text, captured."""
        return subprocess.run(  # noqa: PLW1510 - the status is the caller's to judge
            [*command(), *arguments],
            env=self.command_env(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def command_env(self) -> dict[str, str]:
        """An environment in which `posthouse` commands reach this cluster."""
        return {**self.env, "POSTHOUSE_MASTER": self.clients}

    def wait_for_hosts(self, hosts: Iterable[str] | None = None) -> None:
        """Wait until the master hears these hosts (default: all). Raises TimedOut."""
        wanted = set(self._agents if hosts is None else hosts)
        deadline_s = time.monotonic() + self.timeout
        up: set[str] = set()
        last: Exception | None = None
        while not wanted <= up:
            for daemon in (self.master, *(self._agents[host] for host in wanted)):
                if not daemon.alive:
                    raise PosthouseError(
                        f"{daemon!r} ended with status {daemon.wait()}; its last words:\n"
                        f"{daemon.last_words()}"
                    )
            if time.monotonic() > deadline_s:
                missing = ", ".join(sorted(wanted - up))
                raise TimedOut(f"not up after {self.timeout} s: {missing}; last: {last}")
            try:
                # Short, so that a daemon which fails at its start is noticed at once.
                with self.connect(timeout=1.0) as client:
                    while not wanted <= up and all(self._agents[h].alive for h in wanted):
                        up = {host.name for host in client.hosts() if host.reachable}
                        time.sleep(0.01)
            except PosthouseError as error:
                last = error

    def print_logs(self, lines: int = 40) -> None:
        """The ends of all daemons' logs, on standard error."""
        for log in sorted(self.dir.glob("*.log")) + sorted(self.dir.glob("hosts/*/**/*.log")):
            text = log.read_text(errors="replace").splitlines()[-lines:]
            print(f"--- {log}", *text, sep="\n", file=sys.stderr)

    def processes(self) -> list[ProcessId]:
        """Every process, but us, that has a file of this cluster open for writing."""
        return sweep.writers(self.dir)

    def close(self) -> None:
        """End all processes, wardens after agents and the master last; remove the folder."""
        if self._guard is None:
            return
        assert self._guard.stdin is not None
        if self.keep:
            self._guard.stdin.write(b"keep")
        else:
            for daemon in self._agents.values():
                daemon.close()
            sweep.sweep(self.dir, term_s=1.0)
            self.master.close()
            if self._own_dir:
                shutil.rmtree(self.dir, ignore_errors=True)
        with contextlib.suppress(BrokenPipeError):
            self._guard.stdin.close()
        self._guard.wait()
        self._guard = None

    def _start_guard(self) -> None:
        """If we are killed, the pipe closes, and the guard ends what we started."""
        self._guard = sweep.start_guard(self.dir)

    def _agent_argv(self, host: str) -> list[str]:
        argv = ["agent", "--host", host]
        argv += [f"--module={pattern}" for pattern in self.modules]
        argv += [f"--path={folder}" for folder in self.path]
        return [*argv, "--allow-exec"] if self.allow_exec else argv

    def _daemon(self, name: str, verb: str, *options: str) -> Daemon:
        argv = [*command(), verb, "--config", str(self._config), "--dir", str(self.dir), *options]
        return Daemon(name, argv, self.dir / f"{name}.log", self.env)


def command() -> list[str]:
    """How `posthouse` is started with this very interpreter."""
    return [sys.executable, "-P", "-m", "posthouse_cli"]
