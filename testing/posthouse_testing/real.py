"""RealCluster: a master and hosts as real processes on this machine, with faults on demand.

Owns: the proxies between agents and master, the oracle, who is hit by a fault, what is left at the
end. Must not know: pytest, what the workers do. Invariant: a signal goes only to a process of this
cluster, and `end` says what of it is still there.

Each host's agent reaches the master through a proxy of its own over Unix sockets: so cables are cut
without root, without keys and without a network.
"""

import contextlib
import os
import signal
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from posthouse import limits, paths
from posthouse.client import Cluster
from posthouse.errors import NotRunning, UsageError
from posthouse.handle import Handle
from posthouse_testing import sweep
from posthouse_testing.cluster import Daemon, LocalCluster
from posthouse_testing.inside import ORACLE
from posthouse_testing.oracle import Exclusive
from posthouse_testing.proxy import Proxy
from posthouse_testing.real_oracle import OracleServer
from posthouse_testing.sweep import ProcessId

__all__ = ["RealCluster"]

LOG_LINES = 60  # of each log that a report shows

Target = str | Handle


class RealCluster(LocalCluster):
    """hosts: their names; each is an agent with a folder of its own. lease_s: how long a host that
    is cut off keeps workers that may move; None: for ever, as on any single machine. path: where
    workers are imported from. modules, env, timeout: as of LocalCluster. The hosts are up when
    posthouse_real_cluster() returns.
    """

    def __init__(
        self,
        hosts: Iterable[str] = ("a", "b"),
        *,
        lease_s: float | None = None,
        modules: Iterable[str] = ("*",),
        path: Iterable[str | Path] = (),
        env: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> None:
        if lease_s is not None and not limits.lease_s_min <= lease_s <= limits.lease_s_max:
            rule = f"must be None, or {limits.lease_s_min:g} to {limits.lease_s_max:g}"
            raise UsageError(f"lease_s is {lease_s}: {rule}")
        self._lease_s = lease_s
        self._proxies: dict[str, Proxy] = {}
        self._oracle: OracleServer | None = None
        self._client: Cluster | None = None
        super().__init__(hosts, modules=modules, path=path, env=env, timeout=timeout)
        self.env[ORACLE] = str(self.dir / "oracle.sock")

    def __repr__(self) -> str:
        return f"<RealCluster {self.dir} hosts={','.join(self.hosts)}>"

    # --- made ---

    def start(self) -> None:
        """Start everything, and wait until every host is up."""
        self.dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lease = "" if self._lease_s is None else f'lease = "{self._lease_s:g}s"\n'
        self._master_config.write_text(lease)
        self._oracle = OracleServer(Path(self.env[ORACLE]))
        for host in self.hosts:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(str(self._cable(host)))
            listener.listen(64)
            self._proxies[host] = Proxy(listener, self._dial)
        super().start()

    @property
    def _master_config(self) -> Path:
        return self.dir / "master.toml"

    def _cable(self, host: str) -> Path:
        return self.dir / f"to-{host}.sock"

    def _dial(self) -> socket.socket:
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            end.connect(self.agents.removeprefix("ipc://"))
        except OSError:
            end.close()
            raise
        return end

    def _daemon(self, name: str, verb: str, *options: str) -> Daemon:
        daemon = super()._daemon(name, verb, *options)
        if verb == "agent":
            daemon.argv += ["--master", paths.ipc_endpoint(self._cable(name[len("agent-") :]))]
        else:
            daemon.argv[daemon.argv.index(str(self._config))] = str(self._master_config)
        return daemon

    @property
    def client(self) -> Cluster:
        """A posthouse.Cluster that is connected; closed at the end."""
        if self._client is None:
            self._client = self.connect()
        return self._client

    # --- faults ---

    def cut(self, host: str, *, to_master: bool = True, from_master: bool = True) -> None:
        """Nothing passes between the host's agent and the master, or one way only, until `heal`;
        connections stay, and nobody is told."""
        modes = {(True, True): "stall", (True, False): "stall from", (False, True): "stall to"}
        self._proxy(host).set(modes.get((to_master, from_master), "pass"))

    def slow(self, host: str) -> None:
        """Each byte between them takes 150 ms longer, until `heal`."""
        self._proxy(host).set("delay")

    def reset(self, host: str) -> None:
        """The connections break, and both ends are told; the agent connects again."""
        self._proxy(host).break_all()

    def heal(self, host: str | None = None) -> None:
        """The cable is whole again; without a name, all are."""
        for name in self.hosts if host is None else (host,):
            self._proxy(name).set("pass")

    def kill(self, target: Target) -> None:
        """kill -9 of "master", "agent:HOST", "warden:HOST" (all of the host) or of a worker's
        process. Master and agents stay away until `restart`; the agent starts another warden."""
        daemon = self._daemon_of(target)
        self._signal(target, signal.SIGKILL)
        if daemon is not None:
            daemon.wait()

    def stop(self, target: Target) -> None:
        """SIGSTOP to one of those, until `cont`."""
        self._signal(target, signal.SIGSTOP)

    def cont(self, target: Target) -> None:
        """SIGCONT."""
        self._signal(target, signal.SIGCONT)

    @contextmanager
    def stopped(self, target: Target) -> Iterator[None]:
        """`with cluster.stopped("agent:a"):` stop and cont."""
        self.stop(target)
        try:
            yield
        finally:
            with contextlib.suppress(NotRunning):
                self.cont(target)

    def restart(self, target: str, *, kill: bool = True) -> None:
        """End "master" or "agent:HOST" if it runs, by KILL or else by TERM; start it again."""
        daemon = self._daemon_of(target)
        if daemon is None:
            raise UsageError(f'target is {target!r}: must be "master" or "agent:HOST"')
        if daemon.alive:
            daemon.restart(kill=kill)
        else:
            daemon.start()

    def _proxy(self, host: str) -> Proxy:
        if host not in self._proxies:
            raise UsageError(f"host is {host!r}: must be one of {', '.join(self.hosts)}")
        return self._proxies[host]

    def _daemon_of(self, target: Target) -> Daemon | None:
        if target == "master":
            return self.master
        if isinstance(target, str) and target.startswith("agent:"):
            self._proxy(host := target.partition(":")[2])
            return self.agent(host)
        return None

    def _signal(self, target: Target, number: signal.Signals) -> None:
        pidfds = [pidfd for who in self._processes_of(target)
                  if (pidfd := sweep.open_process(who)) is not None]  # fmt: skip
        for pidfd in pidfds:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)
            os.close(pidfd)
        if not pidfds:
            raise NotRunning(f"{target} does not run now")

    def _processes_of(self, target: Target) -> list[ProcessId]:
        daemon = self._daemon_of(target)
        if daemon is not None:
            found = [sweep.identify(daemon.pid)] if daemon.alive else []
            return [who for who in found if who is not None]
        if isinstance(target, Handle):
            # The number is the master's word: it must be that of a process of ours.
            pid = target.pid()
            return [who for who in self.processes() if who.pid == pid]
        role, _, host = target.partition(":")
        if role != "warden":
            raise UsageError(
                f'target is {target!r}: must be "master", "agent:HOST", "warden:HOST" or a Handle'
            )
        self._proxy(host)
        locks = self.host_dir(host).glob("*/warden.lock")
        return [who for lock in locks for who in sweep.holders(lock)]

    # --- what must not happen ---

    def exclusive(self, name: str) -> Exclusive:
        """What only one process may hold at a time, as posthouse_testing.inside.exclusive(name) in
        workers; here it can be asked for its holders and its history."""
        assert self._oracle is not None, "not started"
        return self._oracle.exclusive(name)

    def check(self) -> None:
        """Raises DoubleRun if one was found."""
        if self._oracle is not None and (broken := self._oracle.broken()):
            raise broken[0]

    # --- the end ---

    def report(self) -> str:
        """The ends of the logs of master and agents, and of the workers' output."""
        parts: list[str] = []
        logs = [*self.dir.glob("*.log"), *self.dir.glob("hosts/*/**/*.log")]
        logs += [path for path in self.dir.glob("logs/*/*") if path.is_file()]
        for log in sorted(logs):
            lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            parts += [f"--- {log.relative_to(self.dir)}", *lines]
        return "\n".join(parts)

    def end(self) -> list[str]:
        """End everything that this cluster has started; what is left all the same."""
        if self._client is not None:
            self._client.close()
        for proxy in self._proxies.values():
            proxy.set("pass")
        for who in self.processes():  # nothing that is stopped can be asked to end
            if (pidfd := sweep.open_process(who)) is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGCONT)
                os.close(pidfd)
        self.close()
        left = [f"process {who.pid}" for who in self.processes()]
        left += [repr(d) for d in (self.master, *self._agents.values()) if d.alive]
        for proxy in self._proxies.values():
            proxy.close()
        if self._oracle is not None:
            self._oracle.close()
        return left
