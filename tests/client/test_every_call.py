"""Every public call of both clients, from one table: same names, bounded waits, one effect."""

import asyncio
import inspect
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import posthouse
import posthouse.aio
from posthouse import (
    BackgroundWorker,
    ClientSettings,
    Cursor,
    WorkerGroup,
    errors,
    limits,
)
from posthouse.messages import (
    MUTATING,
    Applied,
    Apply,
    Drain,
    Drained,
    GroupRegistered,
    RegisterGroup,
    Request,
)
from posthouse.session import Cancel

WORKER = BackgroundWorker(name="w", main="m:f")
OTHER = BackgroundWorker(name="v", main="m:f")
DECLARED = [OTHER, WorkerGroup(WORKER, 2)]
LONG_S = 3600.0  # the connection's own timeout: whoever falls back on it hangs, and fails

Call = Callable[..., Any]

CALLS: dict[str, Call] = {
    "Cluster.register": lambda c, h, g, **kw: c.register(OTHER, **kw),
    "Cluster.register_group": lambda c, h, g, **kw: c.register_group(OTHER, 2, **kw),
    "Cluster.group": lambda c, h, g, **kw: c.group("g", **kw),
    "Cluster.apply": lambda c, h, g, **kw: c.apply(
        [OTHER, WorkerGroup(WORKER, 2)], source="s", **kw
    ),
    "Cluster.handle": lambda c, h, g, **kw: c.handle("w", **kw),
    "Cluster.status": lambda c, h, g, **kw: c.status("w", **kw),
    "Cluster.workers": lambda c, h, g, **kw: c.workers(**kw),
    "Cluster.hosts": lambda c, h, g, **kw: c.hosts(**kw),
    "Cluster.usage": lambda c, h, g, **kw: c.usage("b", **kw),
    "Cluster.phase": lambda c, h, g, **kw: c.phase(**kw),
    "Cluster.reports": lambda c, h, g, **kw: c.reports(**kw),
    "Cluster.explain": lambda c, h, g, **kw: c.explain("w", **kw),
    "Cluster.cursor": lambda c, h, g, **kw: c.cursor(**kw),
    "Cluster.events": lambda c, h, g, **kw: first(c.events(**kw)),
    "Cluster.drain": lambda c, h, g, **kw: c.drain("b", **kw),
    "Cluster.undrain": lambda c, h, g, **kw: c.undrain("b", **kw),
    "Cluster.unclaimed": lambda c, h, g, **kw: c.unclaimed(**kw),
    "Cluster.claim": lambda c, h, g, **kw: c.claim(7, **kw),
    "Cluster.forget_host": lambda c, h, g, **kw: c.forget_host("b", **kw),
    "Cluster.reload_runtimes": lambda c, h, g, **kw: c.reload_runtimes("b", **kw),
    "Cluster.shutdown": lambda c, h, g, **kw: c.shutdown(**kw),
    "Handle.status": lambda c, h, g, **kw: h.status(**kw),
    "Handle.pid": lambda c, h, g, **kw: h.pid(**kw),
    "Handle.explain": lambda c, h, g, **kw: h.explain(**kw),
    "Handle.output": lambda c, h, g, **kw: h.output(**kw),
    "Handle.stacks": lambda c, h, g, **kw: h.stacks(**kw),
    "Handle.events": lambda c, h, g, **kw: first(h.events(after=Cursor(1, 1), **kw)),
    "Handle.wait_for_startup": lambda c, h, g, **kw: h.wait_for_startup(**kw),
    "Handle.wait_for_ready": lambda c, h, g, **kw: h.wait_for_ready(**kw),
    "Handle.wait_for_shutdown": lambda c, h, g, **kw: h.wait_for_shutdown(**kw),
    "Handle.wait_until_unregistered": lambda c, h, g, **kw: h.wait_until_unregistered(**kw),
    "Handle.terminate": lambda c, h, g, **kw: h.terminate(**kw),
    "Handle.hold": lambda c, h, g, **kw: h.hold(**kw),
    "Handle.release": lambda c, h, g, **kw: h.release(**kw),
    "Handle.restart": lambda c, h, g, **kw: h.restart(**kw),
    "Handle.signal": lambda c, h, g, **kw: h.signal("HUP", **kw),
    "Handle.reload": lambda c, h, g, **kw: h.reload(**kw),
    "Handle.set_latch": lambda c, h, g, **kw: h.set_latch(**kw),
    "Group.wait_for_startup": lambda c, h, g, **kw: g.wait_for_startup(**kw),
    "Group.wait_until_unregistered": lambda c, h, g, **kw: g.wait_until_unregistered(**kw),
    "Group.terminate": lambda c, h, g, **kw: g.terminate(**kw),
    "Group.hold": lambda c, h, g, **kw: g.hold(**kw),
    "Group.release": lambda c, h, g, **kw: g.release(**kw),
    "Group.restart": lambda c, h, g, **kw: g.restart(**kw),
}
"""`(cluster, handle, group, **keywords)`; what each gives is to be awaited, or not."""

MORE: dict[str, Call] = {
    "Cluster.events, to now": lambda c, h, g, **kw: first(c.events(follow=False, **kw)),
    "Cluster.events, after": lambda c, h, g, **kw: first(c.events(after=Cursor(1, 1), **kw)),
    "Handle.events": lambda c, h, g, **kw: first(h.events(**kw)),
    "Handle.events, to now": lambda c, h, g, **kw: first(h.events(follow=False, **kw)),
}
"""Other ways through the calls that wait."""

AT_ONCE = {
    "Cluster.close", "Cluster.registry", "Cluster.principal", "Cluster.timeline",
    "Cluster.master_version", "EventStream.close", "EventStream.cursor", "EventStream.timeout",
}  # fmt: skip
"""What asks no master, and has no timeout."""

TWINS = ("Cluster", "EventStream", "Group", "Handle")

both = pytest.mark.parametrize("kind", ["blocking", "aio"])


def first(stream: Any) -> Any:
    """Its first event, or None at its end."""
    if hasattr(stream, "__anext__"):
        return anext(stream, None)
    return next(stream, None)


async def settle(given: Any) -> Any:
    return await given if inspect.isawaitable(given) else given


@asynccontextmanager
async def connected(kind: str, endpoint: str, **more: Any) -> AsyncIterator[Any]:
    settings = ClientSettings(master=endpoint, timeout_s=LONG_S)
    if kind == "aio":
        async with posthouse.aio.connect(settings=settings, timeout=20, **more) as cluster:
            yield cluster
    else:
        with posthouse.connect(settings=settings, timeout=20, **more) as cluster:
            yield cluster


async def made(cluster: Any) -> tuple[Any, Any]:
    """A handle and a group of two."""
    handle = await settle(cluster.register(WORKER))
    other = await settle(cluster.register(BackgroundWorker(name="u", main="m:f")))
    package = posthouse.aio if isinstance(cluster, posthouse.aio.Cluster) else posthouse
    members = [(each.id, each.name) for each in (handle, other)]
    return handle, package.Group(cluster._connection, "g", members)


def descendants(of: type) -> set[type]:
    return {of, *(each for sub in of.__subclasses__() for each in descendants(sub))}


def parameters(of: Any) -> list[inspect.Parameter]:
    return [each.replace(annotation=None) for each in inspect.signature(of).parameters.values()]


# --- the table is complete, and both clients are alike ---


def test_the_table_has_every_public_call() -> None:
    found = {
        f"{twin}.{name}"
        for twin in TWINS
        for name in vars(getattr(posthouse, twin))
        if not name.startswith("_")
    }
    assert found == {
        *CALLS,
        *(AT_ONCE - {"Handle.id", "Handle.name", "Group.name", "Group.handles"}),
    }


@pytest.mark.parametrize("twin", TWINS)
def test_the_names_and_parameters_of_aio_are_those_of_the_blocking_client(twin: str) -> None:
    theirs, ours = getattr(posthouse, twin), getattr(posthouse.aio, twin)
    public = {name for name in vars(theirs) if not name.startswith("_")}
    assert {name for name in vars(ours) if not name.startswith("_")} == public
    for name in public:
        mine, other = vars(ours)[name], vars(theirs)[name]
        assert type(mine) is type(other), name
        assert mine.__doc__ or twin == "Cluster", name
        if callable(mine):
            assert parameters(mine) == parameters(other), name
            assert inspect.iscoroutinefunction(mine) == (name != "events"), name


def test_the_names_of_the_modules_are_alike() -> None:
    assert set(posthouse.aio.__all__) == {*TWINS, "connect", "Connecting"}
    assert parameters(posthouse.aio.connect) == parameters(posthouse.connect)
    for name in posthouse.aio.__all__:
        assert getattr(posthouse.aio, name).__doc__


@pytest.mark.parametrize("name", CALLS)
def test_every_call_has_a_timeout_and_every_change_an_id(name: str) -> None:
    of, _, method = name.partition(".")
    names = {each.name for each in parameters(getattr(getattr(posthouse, of), method))}
    assert "timeout" in names
    assert ("request_id" in names) == (name in CHANGES)


CHANGES = [
    "Cluster.register", "Cluster.register_group", "Cluster.apply", "Cluster.drain",
    "Cluster.claim", "Cluster.undrain", "Cluster.forget_host", "Cluster.reload_runtimes",
    "Cluster.shutdown",
    "Handle.terminate",
    "Handle.hold", "Handle.release", "Handle.restart", "Handle.signal", "Handle.reload",
    "Handle.set_latch", "Group.terminate", "Group.hold", "Group.release", "Group.restart",
]  # fmt: skip


# --- timeouts ---


@both
@pytest.mark.parametrize("name", [*CALLS, *MORE])
def test_every_call_gives_up_in_time_if_the_master_is_mute(
    master: Any, kind: str, name: str
) -> None:
    async def body() -> None:
        async with connected(kind, master.endpoint) as cluster:
            handle, group = await made(cluster)
            with master.scripting() as script:
                script.silent_to = descendants(Request)
            with pytest.raises(errors.TimedOut):
                await settle((CALLS | MORE)[name](cluster, handle, group, timeout=0.05))
            board = cluster._connection.engine.board
            assert not board.waiters

    asyncio.run(body())


@both
@pytest.mark.parametrize("name", [*CALLS, *MORE])
def test_every_call_gives_up_in_time_if_there_is_no_master(
    master: Any, eventually: Any, kind: str, name: str
) -> None:
    async def body() -> None:
        async with connected(kind, master.endpoint) as cluster:
            handle, group = await made(cluster)
            master.stop()
            with pytest.raises((errors.TimedOut, errors.Unreachable)):
                await settle((CALLS | MORE)[name](cluster, handle, group, timeout=0.05))

    asyncio.run(body())


@both
@pytest.mark.parametrize("name", ["Cluster.events", "Handle.events", "Cluster.events, to now"])
def test_a_stream_takes_no_bad_timeout(master: Any, kind: str, name: str) -> None:
    async def body() -> None:
        async with connected(kind, master.endpoint) as cluster:
            handle, group = await made(cluster)
            for bad in (-1, float("nan")):
                with pytest.raises(errors.UsageError, match="timeout is"):
                    await settle((CALLS | MORE)[name](cluster, handle, group, timeout=bad))

    asyncio.run(body())


def test_a_call_whose_thread_is_stuck_gives_up(
    master: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that would say what became of the request does not come back; others that ask
    with the same id wait no longer than they said."""
    monkeypatch.setattr(limits, "client_thread_s", 0.05)
    gate = threading.Event()
    cluster = posthouse.connect(master.endpoint)
    engine: Any = cluster._connection.engine
    handle = engine._core.handle

    def stuck(event: Any, now_s: float) -> Any:
        if isinstance(event, Cancel):
            gate.wait(20)
        return handle(event, now_s)

    engine._core.handle = stuck
    with master.scripting() as script:
        script.silent_to = descendants(Request)
    identity = os.urandom(16)
    try:
        with pytest.raises(errors.TimedOut, match="stuck") as caught:
            cluster.register(WORKER, timeout=0.05, request_id=identity)
        assert caught.value.detail["request_id"] == identity
        with pytest.raises(errors.TimedOut):
            cluster.register(WORKER, timeout=0.05, request_id=identity)
    finally:
        gate.set()
        cluster.close()


# --- one effect ---

ANSWERS: dict[Any, Callable[[Any], Any]] = {
    Apply: lambda r: Applied(request=r.request),
    RegisterGroup: lambda r: GroupRegistered(request=r.request, name=r.spec["name"], members=0),
    Drain: lambda r: Drained(request=r.request, changed=True),
}
"""What the scripted master does not answer by itself."""


@both
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_is_asked_twice_with_one_id_is_one_request(
    master: Any, kind: str, name: str
) -> None:
    """The first time the answer does not come; what is asked again is the same request."""

    async def body() -> None:
        async with connected(kind, master.endpoint) as cluster:
            handle, group = await made(cluster)
            call, identity = CALLS[name], os.urandom(16)
            with master.scripting() as script:
                script.answers |= ANSWERS
                script.silent_to = set(MUTATING)
                script.seen.clear()
            with pytest.raises(errors.TimedOut) as caught:
                await settle(call(cluster, handle, group, timeout=0.05, request_id=identity))
            assert caught.value.detail["request_id"] == identity
            with master.scripting() as script:
                script.silent_to = set()
            await settle(call(cluster, handle, group, timeout=20, request_id=identity))
            with master.scripting() as script:
                sent = [each for each in script.seen if type(each) in MUTATING]
            assert sent[0] == sent[1]
            if not name.startswith("Group."):
                assert [each.request for each in sent] == [identity] * 2
            else:
                first_again, second = sent[1:]
                assert first_again.request != second.request  # each member has its own
            with pytest.raises(errors.UsageError, match="request_id"):
                await settle(call(cluster, handle, group, request_id=b"short"))

    asyncio.run(body())
