"""Programs for the type checkers: what users write, and what each of it is.

Never run. mypy --strict and pyright read it in `make check`; both complain of an `ignore` that
nothing needs, so what is to be refused is tested, too.
"""

import asyncio
from typing import assert_type

import posthouse
from posthouse import (
    DATABASE_CONNECTION,
    NEVER_RESTART,
    SHMEM_ACCESS,
    BackgroundWorker,
    Cluster,
    Cursor,
    Event,
    EventKind,
    EventStream,
    ExitFacts,
    Flags,
    Group,
    Handle,
    HandleId,
    HostInfo,
    Plan,
    Status,
    WorkerGroup,
    WorkerInfo,
    WorkerState,
    aio,
    worker,
)

# --- what a worker may be ---


def with_a_dict(arg: dict[str, int]) -> None:
    assert_type(worker.entry().name, str)


def with_a_text(arg: str | None) -> int:
    return len(arg or "")


def without_arguments() -> None: ...


def records() -> None:
    BackgroundWorker(name="a", main=with_a_dict, main_arg={"size": 3}, restart_time=1)
    BackgroundWorker(name="b", main=with_a_text, main_arg="x", restart_time=NEVER_RESTART)
    BackgroundWorker(name="c", main="acme.jobs:main", labels=("gpu",), env={"A": "b"})
    BackgroundWorker(name="d", library="acme.jobs", function="main", host="b")
    BackgroundWorker(name="e", main="m:f", flags=SHMEM_ACCESS | DATABASE_CONNECTION)
    BackgroundWorker("f", main="m:f")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    BackgroundWorker(name="g", main=without_arguments)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    BackgroundWorker(name="h", main=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    BackgroundWorker(name="i", restart_tim=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    assert_type(SHMEM_ACCESS | DATABASE_CONNECTION, Flags)


# --- the blocking client ---


def blocking() -> None:
    with posthouse.connect("ipc:///run/posthouse/clients.sock", timeout=3) as cluster:
        assert_type(cluster, Cluster)
        handle = cluster.register(BackgroundWorker(name="w", main=with_a_text), timeout=5)
        assert_type(handle, Handle)
        assert_type(handle.id, HandleId)
        status = handle.wait_for_startup(timeout=10)
        assert_type(status, Status)
        assert_type(status.state, WorkerState)
        assert_type(status.pid, int | None)
        assert_type(status.last_exit, ExitFacts | None)
        assert_type(handle.pid(), int | None)
        assert_type(handle.terminate(), bool)
        assert_type(handle.output().text, str)
        stream = cluster.events(after=Cursor(1, 7), follow=False)
        assert_type(stream, EventStream)
        assert_type(stream.cursor, Cursor)
        for event in stream:
            assert_type(event, Event)
            assert_type(event.kind, EventKind)
            assert_type(event.exit.describe() if event.exit else "", str)
        group = cluster.register_group(BackgroundWorker(name="g", main="m:f"), 3)
        assert_type(group, Group)
        assert_type([member.name for member in group], list[str])
        assert_type(group.wait_for_startup(timeout=3), list[Status])
        one = BackgroundWorker(name="one", main="m:f")
        assert_type(cluster.apply([one, WorkerGroup(one, "each-host")], source="shop"), Plan)
        assert_type(cluster.workers(), list[WorkerInfo])
        assert_type(cluster.hosts(), list[HostInfo])
        cluster.shutdown("smart")
        handle.signal("HUP", request_id=b"0" * 16)
        cluster.register("acme:main")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        handle.wait_for_startup(10)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        handle.regsiter()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


# --- asyncio ---


async def awaited() -> None:
    async with posthouse.aio.connect() as cluster:
        assert_type(cluster, aio.Cluster)
        handle = await cluster.register(BackgroundWorker(name="w", main=with_a_text))
        assert_type(handle, aio.Handle)
        startup, gone = await asyncio.gather(
            handle.wait_for_startup(timeout=10), handle.wait_until_unregistered()
        )
        assert_type(startup, Status)
        assert_type(gone.final, bool)
        assert_type(await handle.terminate(), bool)
        async for event in handle.events():
            assert_type(event, Event)
        async with cluster.events(after=await cluster.cursor()) as stream:
            assert_type(stream, aio.EventStream)
            assert_type(await anext(stream), Event)
        group = await cluster.group("g")
        assert_type(group, aio.Group)
        assert_type(await group.restart(), int)
        assert_type([await each.status() for each in group], list[Status])
    again = await posthouse.aio.connect("tcp://127.0.0.1:7401", timeout=1)
    assert_type(again, aio.Cluster)
    await again.close()
    iter(again.events())  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


# --- errors ---


def errors(cluster: Cluster) -> None:
    try:
        cluster.register(BackgroundWorker(name="w", main="m:f"))
    except posthouse.AlreadyRegistered as error:
        assert_type(error.hint, str)
        cluster.handle(str(error.detail["handle"])).terminate()
    except (posthouse.TimedOut, posthouse.Unreachable) as error:
        assert_type(error.exit_status, int)
