"""What a master, an agent and a client may be told: typed, frozen, with defaults.

Owns: the settings records. Must not know: where a value came from (config).
Invariant: a daemon is given exactly one of these records and reads no environment itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from posthouse import limits

if TYPE_CHECKING:
    from posthouse.worker_tables import BadWorker, DeclaredWorker

__all__ = [
    "AgentSettings",
    "ClientSettings",
    "DatabaseSettings",
    "MasterSettings",
    "RuntimeSettings",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterSettings:
    """`posthouse master`. Endpoints are ipc:///absolute/path or tcp://address:port."""

    state_dir: str
    listen_agents: str
    listen_clients: str
    key_file: str | None = None  # this master's secret CURVE key; TCP refuses to start without
    principals_file: str | None = None  # public keys, and who they are: "agent:b", "client:deploy"
    insecure: bool = False  # TCP without keys, on loopback only
    lease_s: float | None = None  # None: limits.lease_s as soon as there is a second machine
    handover_s: float = limits.handover_s
    mass_loss_wait_s: float = limits.mass_loss_wait_s
    max_worker_processes: int = limits.workers_per_cluster_max
    max_worker_processes_per_host: int = limits.workers_per_host_max
    # The server whose phase is the cluster's; None: the master's own. It may hold a password.
    follow: str | None = field(default=None, repr=False)
    http: str | None = None  # address:port on loopback of /livez, /readyz and /metrics
    log_format: str = "auto"  # auto | console | json
    # Static registrations. None: nobody has said which there are, so none that is there is ended.
    workers: "tuple[DeclaredWorker | BadWorker, ...] | None" = None
    preload_libraries: tuple[str, ...] | None = None
    preload_path: tuple[str, ...] = ()  # before the master's own import path
    preload_timeout_s: float = 10.0  # for all libraries together


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSettings:
    """One `[runtime.NAME]`: an interpreter, import path, environment and preloaded modules."""

    name: str
    python: str | None = None  # None: posthouse's own
    path: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    preload: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseSettings:
    """One `[databases.NAME]`."""

    name: str
    url: str = field(repr=False)  # may hold a password
    maintenance: bool = False  # what a worker is connected to that names none


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """`posthouse agent`."""

    host: str
    master: str  # endpoint for agents
    runtime_dir: str  # sockets, locks, journals: one per host name, mode 0700
    log_dir: str
    log_total_bytes: int = limits.log_total_bytes_max  # of all workers' output together
    key_file: str | None = None
    master_key: str | None = None  # the master's public CURVE key (Z85)
    insecure: bool = False
    labels: tuple[str, ...] = ()
    max_worker_processes: int = limits.workers_per_host_max
    modules: tuple[str, ...] = ()  # what may be run: "acme.jobs", "acme.*", "*"
    allow_exec: bool = False
    users: tuple[str, ...] = ()  # run_as; empty: the agent's own only
    cgroups: str = "auto"  # one for each worker: auto (where delegated to the warden) | on | off
    runtimes: tuple[RuntimeSettings, ...] = (RuntimeSettings(name="default"),)
    # What workers with DATABASE_CONNECTION may connect to.
    databases: "tuple[DatabaseSettings, ...]" = ()
    http: str | None = None  # address:port on loopback of /livez, /readyz and /metrics
    start_wardens: bool = True  # False: a missing warden is waited for; systemd starts it
    log_format: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """`posthouse.connect()` and the command line."""

    master: str
    key_file: str | None = None
    master_key: str | None = None
    insecure: bool = False
    timeout_s: float = 10.0
    agent_dir: str | None = None  # runtime_dir of this host's agent, for notify=True
