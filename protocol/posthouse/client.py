"""connect() and Cluster: what a program may ask of a cluster, from any machine.

Owns: the public calls that concern no single registration, or make one. Must not know: threads,
sockets, sessions (engine). Invariant: a call returns what a master said, raises the error it said,
or says that it does not know.
"""

from types import TracebackType
from typing import Self

import posthouse
from posthouse.engine import Engine
from posthouse.errors import InternalError, NoSuchWorker, UsageError
from posthouse.handle import Connection, EventStream, Explanation, Handle, new_request_id
from posthouse.ids import Cursor, HandleId
from posthouse.messages import (
    Done,
    Drain,
    Drained,
    HostsPage,
    ListHosts,
    ListWorkers,
    Register,
    Registered,
    Shutdown,
    WorkersPage,
)
from posthouse.records import ClusterPhase, HostInfo, Status, WorkerInfo
from posthouse.settings import ClientSettings
from posthouse.spec import BackgroundWorker
from posthouse.states import ShutdownMode

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

    def workers(self, *, retired: bool = False, timeout: float | None = None) -> list[WorkerInfo]:
        """All registrations in the order of their slots; with `retired`, ended ones as well."""
        deadline = self._connection.deadline(timeout)
        found: list[WorkerInfo] = []
        slot, generation, more = -1, 0, True
        while more:
            request = ListWorkers(
                request=new_request_id(), slot=slot, generation=generation, retired=retired
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

    def phase(self, *, timeout: float | None = None) -> ClusterPhase:
        """Where the cluster is: which start times are reached, and why."""
        page = self._connection.ask(
            ListHosts(request=new_request_id(), limit=1),
            HostsPage,
            self._connection.deadline(timeout),
        )
        return ClusterPhase(phase=page.phase, reason=page.phase_detail)

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
        running unless `force`. Returns once that is recorded. Raises UnknownHost."""
        request = Drain(request=new_request_id(request_id), host=host, force=force, grace_s=grace_s)
        return self._connection.ask(request, Drained, timeout)

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
