"""connect() and Cluster: what a program may ask of a cluster, from any machine.

Owns: the public calls that concern no single registration, or make one. Must not know: threads,
sockets, sessions (engine). Invariant: a call returns what a master said, raises the error it said,
or says that it does not know.
"""

from collections.abc import Iterable
from types import TracebackType
from typing import Self

import posthouse
from posthouse import limits
from posthouse.bulk import Group, Plan, WorkerGroup, declare
from posthouse.engine import Engine
from posthouse.errors import InternalError, NoSuchWorker, UsageError
from posthouse.handle import Connection, EventStream, Explanation, Handle, new_request_id
from posthouse.ids import Cursor, HandleId
from posthouse.messages import (
    Done,
    Drain,
    Drained,
    GetUsage,
    GroupRegistered,
    HostsPage,
    ListHosts,
    ListWorkers,
    Register,
    Registered,
    RegisterGroup,
    ReloadRuntimes,
    Shutdown,
    Usage,
    WorkersPage,
)
from posthouse.records import ClusterPhase, HostInfo, HostUsage, Status, WorkerInfo, WorkerUse
from posthouse.settings import ClientSettings
from posthouse.spec import BackgroundWorker
from posthouse.states import Every, ShutdownMode
from posthouse.worker_tables import read_replicas

__all__ = ["Cluster", "connect"]


def connect(
    master: str | None = None,
    *,
    timeout: float | None = None,
    settings: ClientSettings | None = None,
    master_silence_s: float | None = None,
) -> "Cluster":
    """A connection to a master, which mends itself from then on.

    master: its endpoint for clients; else $POSTHOUSE_MASTER, the client's configuration file, or
        the local default.  settings: all of these at once.
    timeout: how long to wait for the master's welcome (default 10 s).
    master_silence_s: after how long without any word of a master a waiter is told POSTMASTER_DIED
        (default: the lease, and at least 30 s).

    Raises Unreachable, ConfigError, or what the master refused with.

        with posthouse.connect() as cluster:
            handle = cluster.register(BackgroundWorker(name="ingest", main="acme.ingest:main"))
    """
    if settings is None:
        from posthouse import config

        settings = config.load_client(flags={"master": master}).settings
    elif master is not None:
        raise UsageError("connect() takes either master or settings")
    engine = Engine(settings, version=posthouse.__version__, master_silence_s=master_silence_s)
    engine.start(settings.timeout_s if timeout is None else timeout)
    return Cluster(Connection(engine))


_LAST_TOKEN = 2**63 - 1  # no worker has a higher one


class Cluster:
    """All calls may be made from any thread. `timeout` is in seconds; where it is not given, calls
    wait as long as connect() did and waits wait for ever. After a TimedOut it is unknown whether
    the call took effect; the same call with the error's `detail["request_id"]` settles it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __repr__(self) -> str:
        engine = self._connection.engine
        state = "closed" if engine.closed else "connected" if engine.open else "reconnecting"
        return (
            f"<Cluster {engine.settings.master} {self.registry[:8]} as {self.principal}: {state}>"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def registry(self) -> str:
        """The registry's id."""
        return self._connection.engine.welcome.registry

    @property
    def principal(self) -> str:
        """Who the master takes us for."""
        return self._connection.engine.welcome.principal

    @property
    def timeline(self) -> int:
        """The registry's history: one more after each restore."""
        return self._connection.engine.welcome.timeline

    @property
    def master_version(self) -> str:
        return self._connection.engine.welcome.version

    def close(self) -> None:
        """End the session. Calls that wait elsewhere raise Unreachable. Workers do not notice."""
        self._connection.close()

    # --- workers ---

    def register(
        self,
        worker: BackgroundWorker,
        *,
        timeout: float | None = None,
        request_id: bytes | None = None,
    ) -> "Handle":
        """Register a worker; durable when it returns [RegisterDynamicBackgroundWorker].

        Raises InvalidField, AlreadyRegistered (`detail["handle"]` is the other one), NoFreeSlot,
        UnknownHost, NotPermitted, ShuttingDown, TimedOut, Unreachable.
        """
        spec = worker.check().to_wire()
        request = Register(request=new_request_id(request_id), spec=spec)
        answer = self._connection.ask(request, Registered, timeout)
        return Handle(self._connection, answer.handle.id, answer.name)

    def register_group(
        self,
        worker: BackgroundWorker,
        replicas: int | str,
        *,
        timeout: float | None = None,
        request_id: bytes | None = None,
    ) -> Group:
        """Register several workers from one record, all or none: NAME:0, NAME:1, ..., or with
        "each-host" NAME:HOST on every host that fits, and later on those that join.

        Raises what register() does.
        """
        given = read_replicas(replicas)
        if given is None:
            raise UsageError('replicas is None: must be a number or "each-host"')
        request = RegisterGroup(
            request=new_request_id(request_id),
            spec=worker.check().to_wire(),
            replicas=Every(given) if isinstance(given, str) else given,
        )
        answer = self._connection.ask(request, GroupRegistered, timeout)
        return self.group(answer.name, timeout=timeout)

    def group(self, name: str, *, timeout: float | None = None) -> Group:
        """The live members of a group; none if there is no such group."""
        found = self.workers(group=name, timeout=timeout)
        handles = [
            Handle(self._connection, info.status.handle.id, info.status.name)
            for info in found
            if info.status.handle is not None
        ]
        return Group(name, handles)

    def apply(
        self,
        workers: Iterable[BackgroundWorker | WorkerGroup],
        *,
        source: str,
        prune: bool = True,
        max_unavailable: int = 1,
        dry_run: bool = False,
        timeout: float | None = None,
        request_id: bytes | None = None,
    ) -> Plan:
        """Make the registrations of `source` what `workers` says, in one step that is durable when
        it returns, or refused as a whole.

        New names are registered. Other content of a known name is the next revision in the same
        slot, and its process is replaced: at most `max_unavailable` of the source are missing at a
        time because of that, each until the new process has said ready() (or, where the old one
        never did, has run for 10 s). What the source registered and no longer names is terminated,
        unless `prune` is False. The same content is nothing. With `dry_run` only the plan is made.

            cluster.apply([BackgroundWorker(name="ingest", main="acme.ingest:main")], source="shop")

        Raises InvalidField (`detail["worker"]`), AlreadyRegistered for a name of another source,
        NoFreeSlot, UnknownHost, NotPermitted, ShuttingDown, TimedOut, Unreachable.
        """
        if not isinstance(source, str) or not 0 < len(source) <= limits.name_bytes_max:
            raise UsageError(
                f"source is {source!r}: must be a text of 1 to {limits.name_bytes_max} characters"
            )
        if not 0 < max_unavailable <= limits.workers_per_cluster_max:
            raise UsageError(
                f"max_unavailable is {max_unavailable!r}: must be a number from 1 to "
                f"{limits.workers_per_cluster_max}"
            )
        return declare(
            self._connection,
            workers,
            source=source,
            prune=prune,
            max_unavailable=max_unavailable,
            dry_run=dry_run,
            timeout=timeout,
            request_id=request_id,
        )

    def handle(self, ref: "str | HandleId", *, timeout: float | None = None) -> "Handle":
        """The handle of a worker by name, or by a handle's text, also of one that ended.

        Raises NoSuchWorker.
        """
        status = self.status(ref, timeout=timeout)
        if status.handle is None:
            raise NoSuchWorker(f"no worker {str(ref)!r}", ref=str(ref))
        return Handle(self._connection, status.handle.id, status.name)

    def status(self, ref: "str | HandleId | Handle", *, timeout: float | None = None) -> Status:
        """What a handle of it sees now. Raises NoSuchWorker for an unknown name."""
        return self._connection.status(_ref(ref), timeout)

    def workers(
        self, *, retired: bool = False, group: str = "", timeout: float | None = None
    ) -> list[WorkerInfo]:
        """All registrations in the order of their slots; with `retired`, ended ones as well; with
        `group`, the live members of one."""
        deadline = self._connection.deadline(timeout)
        found: list[WorkerInfo] = []
        slot, generation, more = -1, 0, True
        while more:
            request = ListWorkers(
                request=new_request_id(),
                slot=slot,
                generation=generation,
                retired=retired,
                group=group,
            )
            page = self._connection.ask(request, WorkersPage, deadline)
            found += page.workers
            more = page.more and bool(page.workers)
            if more:
                last = page.workers[-1].status.handle
                if last is None:
                    raise InternalError("the master listed a worker without a handle")
                slot, generation = last.slot, last.generation
        return found

    def hosts(self, *, timeout: float | None = None) -> list[HostInfo]:
        """All hosts that ever joined, by name."""
        deadline = self._connection.deadline(timeout)
        found: list[HostInfo] = []
        after, more = "", True
        while more:
            page = self._connection.ask(
                ListHosts(request=new_request_id(), after=after), HostsPage, deadline
            )
            found += page.hosts
            more = page.more and bool(page.hosts)
            after = page.hosts[-1].name if page.hosts else after
        return found

    def usage(self, host: str, *, workers: bool = True, timeout: float | None = None) -> HostUsage:
        """What a host and the workers on it use now; workers=False: only the host. Raises
        RefusedError if it is not reachable."""
        deadline = self._connection.deadline(timeout)
        found: list[WorkerUse] = []
        after, more = 0 if workers else _LAST_TOKEN, True
        while more:
            request = GetUsage(request=new_request_id(), host=host, after=after)
            page = self._connection.ask(request, Usage, deadline)
            found += page.workers
            more = page.more and bool(page.workers)
            after = page.workers[-1].token if page.workers else after
        return HostUsage(page.host, page.use, tuple(found))

    def phase(self, *, timeout: float | None = None) -> ClusterPhase:
        """Where the cluster is: which start times are reached, and why."""
        page = self._connection.ask(
            ListHosts(request=new_request_id(), limit=1),
            HostsPage,
            self._connection.deadline(timeout),
        )
        return ClusterPhase(phase=page.phase, reason=page.phase_detail)

    def reports(self, *, timeout: float | None = None) -> list[str]:
        """What of the master's own configuration was skipped when it began, and why."""
        page = self._connection.ask(
            ListHosts(request=new_request_id(), limit=1),
            HostsPage,
            self._connection.deadline(timeout),
        )
        return page.reports

    def explain(
        self, ref: "str | HandleId | Handle", *, timeout: float | None = None
    ) -> Explanation:
        """Why it is where it is, or nowhere."""
        return self._connection.explain(_ref(ref), timeout)

    def cursor(self, *, timeout: float | None = None) -> Cursor:
        """The present end of the event log."""
        return self._connection.cursor(timeout)

    def events(
        self, *, after: Cursor | None = None, follow: bool = True, timeout: float | None = None
    ) -> EventStream:
        """The events of all registrations and hosts after a cursor, in order, each once; for ever.

        Without `after`: from now on. `Cursor(0, 0)`: from the first. With follow=False it ends with
        what there is now. The iterator raises TimedOut if none comes for `timeout` seconds (it may
        then be asked again), and CursorTooOld if events after `after` are no longer kept: then
        workers() tells the state, and `error.detail["cursor"]` where following may begin again.
        """
        if after is None:
            after = self.cursor()
        return EventStream(self._connection, "", after, timeout, follow=follow)

    def drain(
        self,
        host: str,
        *,
        force: bool = False,
        grace_s: float | None = None,
        timeout: float | None = None,
        request_id: bytes | None = None,
    ) -> Drained:
        """Give a host no more starts and move its workers elsewhere. Those pinned to it are left
        running unless `force`. `grace_s` after the host has heard of it, what is being stopped is
        killed, if its own stop grace is longer. Returns once that is recorded. Raises
        UnknownHost."""
        request = Drain(request=new_request_id(request_id), host=host, force=force, grace_s=grace_s)
        return self._connection.ask(request, Drained, timeout)

    def reload_runtimes(
        self,
        host: str,
        runtime: str = "",
        *,
        timeout: float | None = None,
        request_id: bytes | None = None,
    ) -> None:
        """Have a host load the code of a runtime (without a name: of all) anew, for workers that
        are started from now on; running ones go on. Returns once the host is being told. Raises
        UnknownHost, and RefusedError where it is not reachable or has no such runtime."""
        request = ReloadRuntimes(request=new_request_id(request_id), host=host, runtime=runtime)
        self._connection.ask(request, Done, timeout)

    def undrain(
        self, host: str, *, timeout: float | None = None, request_id: bytes | None = None
    ) -> bool:
        """Let a host have starts again. False if it was not being drained."""
        request = Drain(request=new_request_id(request_id), host=host, on=False)
        return self._connection.ask(request, Drained, timeout).changed

    def shutdown(
        self,
        mode: ShutdownMode | str = ShutdownMode.FAST,
        *,
        grace_s: float | None = None,
        timeout: float | None = None,
        request_id: bytes | None = None,
    ) -> str:
        """Shut the cluster down: "smart", "fast" or "immediate". Registrations stay. Returns what
        the master says about it, before it is done."""
        if mode not in set(ShutdownMode):
            raise UsageError(f"mode is {mode!r}: must be one of {', '.join(ShutdownMode)}")
        request = Shutdown(
            request=new_request_id(request_id), mode=ShutdownMode(mode), grace_s=grace_s
        )
        return self._connection.ask(request, Done, timeout).message


def _ref(ref: str | HandleId | Handle) -> str:
    text = str(ref.id if isinstance(ref, Handle) else ref)
    if not 0 < len(text) <= 160:
        raise UsageError(f"{text[:40]!r}: a worker's name or handle has 1 to 160 characters")
    return text
