"""connect() and Cluster: what a program may ask of a cluster, from any machine.

Owns: the public calls that concern no single registration, or make one. Must not know: what they
ask (calls), threads, sockets (engine). Invariant: a call returns what a master said, raises the
error it said, or says that it does not know.
"""

from collections.abc import Iterable
from types import TracebackType
from typing import Self

import posthouse
from posthouse import bulk, calls, waits
from posthouse.bulk import Plan, WorkerGroup
from posthouse.conversation import Connection, drive
from posthouse.engine import Engine
from posthouse.errors import UsageError
from posthouse.handle import EventStream, Explanation, Group, Handle
from posthouse.ids import Cursor, HandleId
from posthouse.messages import Drained
from posthouse.records import (
    ClusterPhase,
    HostInfo,
    HostUsage,
    Status,
    UnclaimedWorker,
    WorkerInfo,
)
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
    chosen = client_settings(master, settings)
    engine = Engine(chosen, version=posthouse.__version__, master_silence_s=master_silence_s)
    engine.start(chosen.timeout_s if timeout is None else timeout)
    return Cluster(Connection(engine))


def client_settings(master: str | None, settings: ClientSettings | None) -> ClientSettings:
    """What connect() is to go by. Raises UsageError, ConfigError."""
    if settings is None:
        from posthouse import config

        return config.load_client(flags={"master": master}).settings
    if master is not None:
        raise UsageError("connect() takes either master or settings")
    return settings


class Cluster:
    """All calls may be made from any thread. `timeout` is in seconds; where it is not given, calls
    wait as long as connect() did and waits wait for ever. After a TimedOut it is unknown whether
    the call took effect; the same call with the error's `detail["request_id"]` settles it.
    """

    def __init__(self, connection: Connection[Engine]) -> None:
        self._connection = connection

    def __repr__(self) -> str:
        return f"<Cluster {self._connection!r}>"

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
        return self._connection.engine.board.welcome.registry

    @property
    def principal(self) -> str:
        """Who the master takes us for."""
        return self._connection.engine.board.welcome.principal

    @property
    def timeline(self) -> int:
        """The registry's history: one more after each restore."""
        return self._connection.engine.board.welcome.timeline

    @property
    def master_version(self) -> str:
        return self._connection.engine.board.welcome.version

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
        made = drive(calls.register(self._connection, worker, timeout, request_id))
        return Handle(self._connection, *made)

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
        made = drive(calls.register_group(self._connection, worker, replicas, timeout, request_id))
        return Group(self._connection, *made)

    def group(self, name: str, *, timeout: float | None = None) -> Group:
        """The live members of a group; none if there is no such group."""
        found = drive(calls.members(self._connection, name, timeout))
        return Group(self._connection, name, found)

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
        return drive(
            bulk.declare(
                self._connection,
                workers,
                source=source,
                prune=prune,
                max_unavailable=max_unavailable,
                dry_run=dry_run,
                timeout=timeout,
                request_id=request_id,
            )
        )

    def handle(self, ref: "str | HandleId", *, timeout: float | None = None) -> "Handle":
        """The handle of a worker by name, or by a handle's text, also of one that ended.

        Raises NoSuchWorker.
        """
        return Handle(self._connection, *drive(calls.find(self._connection, ref, timeout)))

    def status(self, ref: "str | HandleId | Handle", *, timeout: float | None = None) -> Status:
        """What a handle of it sees now. Raises NoSuchWorker for an unknown name."""
        return drive(calls.status(self._connection, _ref(ref), timeout))

    def workers(
        self, *, retired: bool = False, group: str = "", timeout: float | None = None
    ) -> list[WorkerInfo]:
        """All registrations in the order of their slots; with `retired`, ended ones as well; with
        `group`, the live members of one."""
        return drive(calls.workers(self._connection, retired=retired, group=group, timeout=timeout))

    def hosts(self, *, timeout: float | None = None) -> list[HostInfo]:
        """All hosts that ever joined, by name."""
        return drive(calls.hosts(self._connection, timeout))

    def unclaimed(self, *, timeout: float | None = None) -> list[UnclaimedWorker]:
        """Processes that run and that the registry does not know since it was restored, by token.
        Nothing of their names is started before each is claimed or gone."""
        return drive(calls.unclaimed(self._connection, timeout))

    def claim(
        self,
        token: int,
        *,
        stop: bool = False,
        timeout: float | None = None,
        request_id: bytes | None = None,
    ) -> None:
        """Make an unclaimed process a registration again, under its old handle, with the record
        that it was started with; it goes on running. `stop`: have it ended instead. Raises
        RefusedError, AlreadyRegistered, NoFreeSlot."""
        drive(calls.claim(self._connection, token, stop, timeout, request_id))

    def usage(self, host: str, *, workers: bool = True, timeout: float | None = None) -> HostUsage:
        """What a host and the workers on it use now; workers=False: only the host. Raises
        RefusedError if it is not reachable."""
        return drive(calls.usage(self._connection, host, workers, timeout))

    def phase(self, *, timeout: float | None = None) -> ClusterPhase:
        """Where the cluster is: which start times are reached, and why."""
        return drive(calls.phase(self._connection, timeout))

    def reports(self, *, timeout: float | None = None) -> list[str]:
        """What of the master's own configuration was skipped when it began, and why."""
        return drive(calls.reports(self._connection, timeout))

    def explain(
        self, ref: "str | HandleId | Handle", *, timeout: float | None = None
    ) -> Explanation:
        """Why it is where it is, or nowhere."""
        return drive(calls.explain(self._connection, _ref(ref), timeout))

    def cursor(self, *, timeout: float | None = None) -> Cursor:
        """The present end of the event log."""
        return drive(waits.cursor(self._connection, timeout))

    def events(
        self, *, after: Cursor | None = None, follow: bool = True, timeout: float | None = None
    ) -> EventStream:
        """The events of all registrations and hosts after a cursor, in order, each once; for ever.

        Without `after`: from now on. `Cursor(0, 0)`: from the first. With follow=False it ends with
        what there is now. The iterator raises TimedOut if none comes for `timeout` seconds (it may
        then be asked again), and CursorTooOld if events after `after` are no longer kept: then
        workers() tells the state, and `error.detail["cursor"]` where following may begin again.
        """
        return EventStream(waits.Tail(self._connection, "", after, timeout, follow=follow))

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
        return drive(
            calls.drain(
                self._connection,
                host,
                on=True,
                force=force,
                grace_s=grace_s,
                timeout=timeout,
                request_id=request_id,
            )
        )

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
        drive(calls.reload_runtimes(self._connection, host, runtime, timeout, request_id))

    def undrain(
        self, host: str, *, timeout: float | None = None, request_id: bytes | None = None
    ) -> bool:
        """Let a host have starts again. False if it was not being drained."""
        done = drive(
            calls.drain(self._connection, host, on=False, timeout=timeout, request_id=request_id)
        )
        return done.changed

    def forget_host(
        self,
        host: str,
        *,
        confirm_dead: bool = False,
        timeout: float | None = None,
        request_id: bytes | None = None,
    ) -> str:
        """Say that a host is gone for good: what was placed there may run elsewhere, and it is
        listed no more. Returns how many workers that were, in words. Raises RefusedError while it
        is heard, and while workers may run there unless `confirm_dead`: then you know that the
        machine is off. If it is not, they run twice."""
        return drive(
            calls.forget_host(
                self._connection,
                host,
                confirm_dead=confirm_dead,
                timeout=timeout,
                request_id=request_id,
            )
        )

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
        return drive(calls.shutdown(self._connection, mode, grace_s, timeout, request_id))


def _ref(ref: str | HandleId | Handle) -> str | HandleId:
    return ref.id if isinstance(ref, Handle) else ref
