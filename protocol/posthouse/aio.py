"""The client for asyncio: the names of `posthouse`, to be awaited; without a thread.

Owns: the classes and their places of `await`. Must not know: what is asked and how it is waited for
(calls, waits, bulk: the same as for `posthouse.connect`), sockets (aio_engine). Invariant: every
public name and parameter is that of the blocking class; what is not documented here is as there.

A cluster and all that comes from it belong to the event loop that connected. A call that is
cancelled leaves nothing behind: no request, no subscription, no task. As after a TimedOut it is
unknown whether it took effect; the same call with the same `request_id` settles it.
"""

import signal as platform
from collections.abc import AsyncIterator, Generator, Iterable, Iterator
from types import TracebackType
from typing import Self

import posthouse
from posthouse import bulk, calls, client, handle, limits, waits
from posthouse.aio_engine import Engine
from posthouse.bulk import Plan, WorkerGroup
from posthouse.calls import Explanation, Output
from posthouse.conversation import Connection
from posthouse.follow import Goal
from posthouse.ids import Cursor, HandleId
from posthouse.messages import Drained, Hold, LatchWorker, Release, Restart, Terminate
from posthouse.records import (
    ClusterPhase,
    Event,
    HostInfo,
    HostUsage,
    Status,
    UnclaimedWorker,
    WorkerInfo,
)
from posthouse.settings import ClientSettings
from posthouse.spec import BackgroundWorker
from posthouse.states import ShutdownMode

__all__ = ["Cluster", "Connecting", "EventStream", "Group", "Handle", "connect"]

Talk = Connection[Engine]


def connect(
    master: str | None = None,
    *,
    timeout: float | None = None,
    settings: ClientSettings | None = None,
    master_silence_s: float | None = None,
) -> "Connecting":
    """A connection to a master, as posthouse.connect() makes it; to be entered, or awaited:

        async with posthouse.aio.connect() as cluster:
            handle = await cluster.register(BackgroundWorker(name="w", main="acme.w:main"))
            status = await handle.wait_for_startup(timeout=10)
            async for event in handle.events():
                print(event.kind)

        cluster = await posthouse.aio.connect()
        await cluster.close()

    Raises Unreachable, ConfigError, or what the master refused with; UsageError on a loop without
    add_reader (Windows' own: choose asyncio.SelectorEventLoop there).
    """
    return Connecting(client.client_settings(master, settings), timeout, master_silence_s)


class Connecting:
    """What connect() gives. Nothing happens until it is entered or awaited."""

    def __init__(
        self, settings: ClientSettings, timeout: float | None, master_silence_s: float | None
    ) -> None:
        self._settings = settings
        self._timeout = timeout
        self._silence_s = master_silence_s
        self._cluster: Cluster | None = None

    def __await__(self) -> Generator[object, None, "Cluster"]:
        return self._connect().__await__()

    async def __aenter__(self) -> "Cluster":
        self._cluster = await self._connect()
        return self._cluster

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._cluster is not None:
            await self._cluster.close()

    async def _connect(self) -> "Cluster":
        settings = self._settings
        engine = Engine(settings, version=posthouse.__version__, master_silence_s=self._silence_s)
        await engine.start(settings.timeout_s if self._timeout is None else self._timeout)
        return Cluster(Connection(engine))


class EventStream(AsyncIterator[Event]):
    """An asynchronous iterator of events; made by `events()` of Cluster and Handle. One task at a
    time. It begins, and what "from now on" means is settled, at `async with` or at its first event.
    Cancelling a wait for an event loses none: the next one gives it. A stream that is closed, or
    that nobody holds any more, ends its subscription."""

    def __init__(self, tail: waits.Tail) -> None:
        self._tail = tail

    def __repr__(self) -> str:
        return f"<EventStream{self._tail!r}>"

    @property
    def cursor(self) -> Cursor | None:
        """The place of the last event that was given; None if it is to begin at the end of the log
        and has not begun."""
        return self._tail.cursor

    @property
    def timeout(self) -> float | None:
        """How long the next event is waited for; may be changed between two events."""
        return self._tail.timeout

    @timeout.setter
    def timeout(self, timeout: float | None) -> None:
        self._tail.timeout = timeout

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event = await self._tail.next()
        if event is None:
            raise StopAsyncIteration
        return event

    async def __aenter__(self) -> Self:
        await self._tail.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        self._tail.close()


class Handle:
    """posthouse.Handle, to be awaited."""

    def __init__(self, connection: Talk, id: HandleId, name: str) -> None:  # noqa: A002
        self._connection = connection
        self.id = id
        self.name = name

    def __repr__(self) -> str:
        return f"<Handle {self.name} {self.id.short}>"

    def __eq__(self, other: object) -> bool:
        return self.id == other.id if isinstance(other, Handle) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    # --- what it is ---

    async def status(self, *, timeout: float | None = None) -> Status:
        return await calls.status(self._connection, self.id, timeout)

    async def pid(self, *, timeout: float | None = None) -> int | None:
        return (await self.status(timeout=timeout)).pid

    async def explain(self, *, timeout: float | None = None) -> Explanation:
        return await calls.explain(self._connection, self.id, timeout)

    async def output(
        self,
        *,
        offset: int = -1,
        limit: int = limits.log_read_bytes_max,
        host: str = "",
        timeout: float | None = None,
    ) -> Output:
        return await calls.output(self._connection, self.id, offset, limit, host, timeout)

    async def stacks(self, *, timeout: float | None = None) -> str:
        return await calls.stacks(self._connection, self.id, timeout)

    def events(
        self, *, after: Cursor | None = None, follow: bool = True, timeout: float | None = None
    ) -> EventStream:
        tail = waits.Tail(self._connection, str(self.id), after, timeout, follow=follow)
        return EventStream(tail)

    # --- waits ---

    async def wait_for_startup(self, *, timeout: float | None = None) -> Status:
        return await self._wait(Goal.STARTUP, timeout)

    async def wait_for_ready(self, *, timeout: float | None = None) -> Status:
        return await self._wait(Goal.READY, timeout)

    async def wait_for_shutdown(self, *, timeout: float | None = None) -> Status:
        return await self._wait(Goal.SHUTDOWN, timeout)

    async def wait_until_unregistered(self, *, timeout: float | None = None) -> Status:
        return await self._wait(Goal.UNREGISTERED, timeout)

    async def _wait(self, goal: Goal, timeout: float | None) -> Status:
        return await waits.wait(self._connection, self.id, self.name, goal, timeout)

    # --- what to do with it ---

    async def terminate(
        self, *, timeout: float | None = None, request_id: bytes | None = None
    ) -> bool:
        return await calls.change(self._connection, Terminate, self.id, timeout, request_id)

    async def hold(self, *, timeout: float | None = None, request_id: bytes | None = None) -> bool:
        return await calls.change(self._connection, Hold, self.id, timeout, request_id)

    async def release(
        self, *, timeout: float | None = None, request_id: bytes | None = None
    ) -> bool:
        return await calls.change(self._connection, Release, self.id, timeout, request_id)

    async def restart(
        self, *, timeout: float | None = None, request_id: bytes | None = None
    ) -> bool:
        return await calls.change(self._connection, Restart, self.id, timeout, request_id)

    async def signal(
        self,
        signal: "int | str | platform.Signals",
        *,
        timeout: float | None = None,
        request_id: bytes | None = None,
    ) -> None:
        await calls.signal(self._connection, self.id, signal, timeout, request_id)

    async def reload(
        self, *, timeout: float | None = None, request_id: bytes | None = None
    ) -> None:
        await calls.reload(self._connection, self.id, timeout, request_id)

    async def set_latch(
        self, *, timeout: float | None = None, request_id: bytes | None = None
    ) -> None:
        await calls.change(self._connection, LatchWorker, self.id, timeout, request_id)


class Group:
    """posthouse.Group, to be awaited."""

    def __init__(
        self, connection: Talk, name: str, members: Iterable[tuple[HandleId, str]]
    ) -> None:
        self._connection = connection
        self.name = name
        self.handles = tuple(Handle(connection, *member) for member in members)

    def __repr__(self) -> str:
        return f"<Group {self.name}: {len(self.handles)} members>"

    def __iter__(self) -> Iterator[Handle]:
        return iter(self.handles)

    def __len__(self) -> int:
        return len(self.handles)

    async def wait_for_startup(self, *, timeout: float | None = None) -> list[Status]:
        return await self._wait(Goal.STARTUP, timeout)

    async def wait_until_unregistered(self, *, timeout: float | None = None) -> list[Status]:
        return await self._wait(Goal.UNREGISTERED, timeout)

    async def terminate(
        self, *, timeout: float | None = None, request_id: bytes | None = None
    ) -> int:
        return await self._change(Terminate, timeout, request_id)

    async def hold(self, *, timeout: float | None = None, request_id: bytes | None = None) -> int:
        return await self._change(Hold, timeout, request_id)

    async def release(
        self, *, timeout: float | None = None, request_id: bytes | None = None
    ) -> int:
        return await self._change(Release, timeout, request_id)

    async def restart(
        self, *, timeout: float | None = None, request_id: bytes | None = None
    ) -> int:
        return await self._change(Restart, timeout, request_id)

    async def _wait(self, goal: Goal, timeout: float | None) -> list[Status]:
        members = [(each.id, each.name) for each in self.handles]
        return await waits.wait_each(self._connection, members, goal, timeout)

    async def _change(
        self, kind: calls.Change, timeout: float | None, request_id: bytes | None
    ) -> int:
        refs = [each.id for each in self.handles]
        return await calls.change_each(self._connection, kind, refs, timeout, request_id)


class Cluster:
    """posthouse.Cluster, to be awaited. Belongs to the event loop that connected."""

    def __init__(self, connection: Talk) -> None:
        self._connection = connection

    def __repr__(self) -> str:
        return f"<Cluster {self._connection!r}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def registry(self) -> str:
        return self._connection.engine.board.welcome.registry

    @property
    def principal(self) -> str:
        return self._connection.engine.board.welcome.principal

    @property
    def timeline(self) -> int:
        return self._connection.engine.board.welcome.timeline

    @property
    def master_version(self) -> str:
        return self._connection.engine.board.welcome.version

    async def close(self) -> None:
        self._connection.close()

    # --- workers ---

    async def register(
        self,
        worker: BackgroundWorker,
        *,
        timeout: float | None = None,
        request_id: bytes | None = None,
    ) -> Handle:
        made = await calls.register(self._connection, worker, timeout, request_id)
        return Handle(self._connection, *made)

    async def register_group(
        self,
        worker: BackgroundWorker,
        replicas: int | str,
        *,
        timeout: float | None = None,
        request_id: bytes | None = None,
    ) -> Group:
        made = await calls.register_group(self._connection, worker, replicas, timeout, request_id)
        return Group(self._connection, *made)

    async def group(self, name: str, *, timeout: float | None = None) -> Group:
        found = await calls.members(self._connection, name, timeout)
        return Group(self._connection, name, found)

    async def apply(
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
        return await bulk.declare(
            self._connection,
            workers,
            source=source,
            prune=prune,
            max_unavailable=max_unavailable,
            dry_run=dry_run,
            timeout=timeout,
            request_id=request_id,
        )

    async def handle(self, ref: str | HandleId, *, timeout: float | None = None) -> Handle:
        return Handle(self._connection, *await calls.find(self._connection, ref, timeout))

    async def status(self, ref: str | HandleId | Handle, *, timeout: float | None = None) -> Status:
        return await calls.status(self._connection, _ref(ref), timeout)

    async def workers(
        self, *, retired: bool = False, group: str = "", timeout: float | None = None
    ) -> list[WorkerInfo]:
        return await calls.workers(self._connection, retired=retired, group=group, timeout=timeout)

    async def explain(
        self, ref: str | HandleId | Handle, *, timeout: float | None = None
    ) -> Explanation:
        return await calls.explain(self._connection, _ref(ref), timeout)

    # --- the cluster ---

    async def hosts(self, *, timeout: float | None = None) -> list[HostInfo]:
        return await calls.hosts(self._connection, timeout)

    async def unclaimed(self, *, timeout: float | None = None) -> list[UnclaimedWorker]:
        """Processes that run and that the registry does not know since it was restored, by token.
        Nothing of their names is started before each is claimed or gone."""
        return await calls.unclaimed(self._connection, timeout)

    async def claim(
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
        await calls.claim(self._connection, token, stop, timeout, request_id)

    async def usage(
        self, host: str, *, workers: bool = True, timeout: float | None = None
    ) -> HostUsage:
        return await calls.usage(self._connection, host, workers, timeout)

    async def phase(self, *, timeout: float | None = None) -> ClusterPhase:
        return await calls.phase(self._connection, timeout)

    async def reports(self, *, timeout: float | None = None) -> list[str]:
        return await calls.reports(self._connection, timeout)

    async def cursor(self, *, timeout: float | None = None) -> Cursor:
        return await waits.cursor(self._connection, timeout)

    def events(
        self, *, after: Cursor | None = None, follow: bool = True, timeout: float | None = None
    ) -> EventStream:
        return EventStream(waits.Tail(self._connection, "", after, timeout, follow=follow))

    async def drain(
        self,
        host: str,
        *,
        force: bool = False,
        grace_s: float | None = None,
        timeout: float | None = None,
        request_id: bytes | None = None,
    ) -> Drained:
        return await calls.drain(
            self._connection,
            host,
            on=True,
            force=force,
            grace_s=grace_s,
            timeout=timeout,
            request_id=request_id,
        )

    async def undrain(
        self, host: str, *, timeout: float | None = None, request_id: bytes | None = None
    ) -> bool:
        done = await calls.drain(
            self._connection, host, on=False, timeout=timeout, request_id=request_id
        )
        return done.changed

    async def reload_runtimes(
        self,
        host: str,
        runtime: str = "",
        *,
        timeout: float | None = None,
        request_id: bytes | None = None,
    ) -> None:
        await calls.reload_runtimes(self._connection, host, runtime, timeout, request_id)

    async def forget_host(
        self,
        host: str,
        *,
        confirm_dead: bool = False,
        timeout: float | None = None,
        request_id: bytes | None = None,
    ) -> str:
        return await calls.forget_host(
            self._connection,
            host,
            confirm_dead=confirm_dead,
            timeout=timeout,
            request_id=request_id,
        )

    async def shutdown(
        self,
        mode: ShutdownMode | str = ShutdownMode.FAST,
        *,
        grace_s: float | None = None,
        timeout: float | None = None,
        request_id: bytes | None = None,
    ) -> str:
        return await calls.shutdown(self._connection, mode, grace_s, timeout, request_id)


def _ref(ref: str | HandleId | Handle) -> str | HandleId:
    return ref.id if isinstance(ref, Handle) else ref


def _document(ours: type, theirs: type) -> None:
    """One text for both: what is said of the blocking method holds for ours."""
    for name, method in vars(ours).items():
        if not name.startswith("_") and not method.__doc__:
            method.__doc__ = getattr(theirs, name).__doc__


_document(Cluster, client.Cluster)
_document(Handle, handle.Handle)
_document(Group, handle.Group)
_document(EventStream, handle.EventStream)
