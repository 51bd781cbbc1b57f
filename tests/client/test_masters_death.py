"""A real master that is killed in the middle of every request, all at once: before it has seen
them, and after it has done them but before it can say so. Each completes, with one effect."""

import asyncio
import inspect
import os
import selectors
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import posthouse
import posthouse.aio
from posthouse import BackgroundWorker, Cluster, Cursor, EventKind, Handle, WorkerState, calls
from posthouse_testing.cluster import LocalCluster

HERE = Path(__file__).parent
STARTED = WorkerState.STARTED
MANY = [
    BackgroundWorker(name=f"many-{n}", main="clientjobs:idle", labels=("none",)) for n in range(300)
]
"""More than one frame of a declaration carries; they wait for a host that there is not."""


def job(name: str, **fields: Any) -> BackgroundWorker:
    return BackgroundWorker(name=name, main="clientjobs:idle", **{"host": "b", **fields})


class Pair:
    """One client's connection, and what it is to say before answers are kept back."""

    def __init__(self, client: socket.socket, master: socket.socket) -> None:
        self.client, self.master = client, master
        self.said = b""
        self.keeping = False

    def close(self) -> None:
        self.client.close()
        self.master.close()


class Cable:
    """Carries bytes between clients and a master. Once a client has said one of `ids`, its answers
    are kept back."""

    def __init__(self, path: str, to: str) -> None:
        self.ids: list[bytes] = []
        self._to = to
        self._kept = b""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(64)
        self._pairs: dict[socket.socket, Pair] = {}
        self._ready = selectors.DefaultSelector()
        self._ready.register(self._listener, selectors.EVENT_READ)
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def done(self) -> bool:
        """The master has answered each of the ids; and nobody has heard it."""
        return all(identity in self._kept for identity in self.ids)

    def close(self) -> None:
        self._quit.set()
        self._thread.join()
        for pair in set(self._pairs.values()):
            pair.close()
        self._listener.close()
        self._ready.close()

    def _run(self) -> None:
        while not self._quit.is_set():
            for key, _ in self._ready.select(0.05):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj in self._pairs:
                    assert isinstance(key.fileobj, socket.socket)
                    self._carry(key.fileobj, self._pairs[key.fileobj])

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        master = socket.socket(socket.AF_UNIX)
        try:
            master.connect(self._to)
        except OSError:  # there is none now
            client.close()
            master.close()
            return
        pair = Pair(client, master)
        for end in (client, master):
            self._pairs[end] = pair
            self._ready.register(end, selectors.EVENT_READ)

    def _carry(self, end: socket.socket, pair: Pair) -> None:
        data = b""
        with suppress(ConnectionError):
            data = end.recv(1 << 20)
        if not data:
            for each in (pair.client, pair.master):
                self._ready.unregister(each)
                del self._pairs[each]
            pair.close()
        elif end is pair.client:
            pair.said += data
            pair.keeping = pair.keeping or any(each in pair.said for each in self.ids)
            with suppress(ConnectionError):
                pair.master.sendall(data)
        elif pair.keeping:
            self._kept += data
        else:
            with suppress(ConnectionError):
                pair.client.sendall(data)


# --- who calls ---


class Caller:
    """One client for each call, blocking in threads or on a loop."""

    def __init__(self, kind: str, endpoint: str) -> None:
        self.kind = kind
        self.endpoint = endpoint
        self.engines: list[Any] = []

    @asynccontextmanager
    async def cluster(self) -> Any:
        if self.kind == "aio":
            async with posthouse.aio.connect(self.endpoint, timeout=20) as cluster:
                self.engines.append(cluster._connection.engine)
                yield cluster
        else:
            with await asyncio.to_thread(posthouse.connect, self.endpoint, timeout=20) as cluster:
                self.engines.append(cluster._connection.engine)
                yield cluster

    async def call(self, use: Callable[..., Any], cluster: Any, **keywords: Any) -> Any:
        if self.kind == "aio":
            return await use(cluster, timeout=40, **keywords)
        return await asyncio.to_thread(partial(use, cluster, timeout=40, **keywords))


def of(cluster: Any, handle: Handle) -> Any:
    """The same handle, or group of one's members, held by another client."""
    package = posthouse.aio if isinstance(cluster, posthouse.aio.Cluster) else posthouse
    if isinstance(handle, posthouse.Group):
        members = [(each.id, each.name) for each in handle]
        return package.Group(cluster._connection, handle.name, members)
    return package.Handle(cluster._connection, handle.id, handle.name)


def run(body: Coroutine[Any, Any, None]) -> None:
    """On a loop whose pool has a thread for each blocking caller."""

    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(64))
        await asyncio.wait_for(body, 100)

    asyncio.run(main())


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(40):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.01)


def in_flight(engine: Any) -> bool:
    """It waits for a master, to which all has been said."""
    calls_, watches = list(engine._core._calls.values()), list(engine._core._watches._all.values())
    said = [call.in_flight for call in calls_] + [bool(watch.asked) for watch in watches]
    return bool(said) and all(said)


# --- what is called ---


def changes(targets: dict[str, Any]) -> dict[str, Callable[..., Any]]:
    def on(name: str, method: str, *given: Any) -> Callable[..., Any]:
        return lambda c, **kw: getattr(of(c, targets[name]), method)(*given, **kw)

    return {
        "Cluster.register": lambda c, **kw: c.register(job("register"), **kw),
        "Cluster.register_group": lambda c, **kw: c.register_group(job("group"), 2, **kw),
        "Cluster.apply": lambda c, **kw: c.apply(MANY, source="many", **kw),
        "Cluster.drain": lambda c, **kw: c.drain("b", **kw),
        "Cluster.undrain": lambda c, **kw: c.undrain("c", **kw),
        "Cluster.reload_runtimes": lambda c, **kw: c.reload_runtimes("c", **kw),
        "Handle.terminate": on("terminate", "terminate"),
        "Handle.hold": on("hold", "hold"),
        "Handle.release": on("release", "release"),
        "Handle.restart": on("restart", "restart"),
        "Handle.signal": on("signal", "signal", "HUP"),
        "Handle.reload": on("reload", "reload"),
        "Handle.set_latch": on("set_latch", "set_latch"),
        "Group.terminate": on("g-terminate", "terminate"),
        "Group.hold": on("g-hold", "hold"),
        "Group.release": on("g-release", "release"),
        "Group.restart": on("g-restart", "restart"),
    }


NEED_A_HOST = {
    "Cluster.reload_runtimes", "Cluster.usage", "Handle.signal", "Handle.reload",
    "Handle.set_latch", "Handle.output", "Handle.stacks",
}  # fmt: skip
"""What is refused while the host is not reachable, with no effect, and asked again."""

SHOWN: dict[str, tuple[EventKind, ...]] = {
    "register": (EventKind.REGISTERED,),
    "terminate": (EventKind.STOP_REQUESTED, EventKind.UNREGISTERED),
    "hold": (EventKind.HELD,),
    "release": (EventKind.RELEASED,),
    "restart": (EventKind.STOP_REQUESTED,),
}
"""The events of each change: one of each kind, however often it was said."""


def looks(targets: dict[str, Any]) -> dict[str, Callable[..., Any]]:
    def on(method: str, name: str = "idle") -> Callable[..., Any]:
        return lambda c, **kw: getattr(of(c, targets[name]), method)(**kw)

    async def first_of(stream: Any) -> Any:
        return await anext(stream)

    def first(stream: Any) -> Any:
        return first_of(stream) if hasattr(stream, "__anext__") else next(stream)

    return {
        "Cluster.group": lambda c, **kw: c.group("g-hold", **kw),
        "Cluster.handle": lambda c, **kw: c.handle("idle", **kw),
        "Cluster.status": lambda c, **kw: c.status("idle", **kw),
        "Cluster.workers": lambda c, **kw: c.workers(**kw),
        "Cluster.hosts": lambda c, **kw: c.hosts(**kw),
        "Cluster.phase": lambda c, **kw: c.phase(**kw),
        "Cluster.reports": lambda c, **kw: c.reports(**kw),
        "Cluster.explain": lambda c, **kw: c.explain("idle", **kw),
        "Cluster.cursor": lambda c, **kw: c.cursor(**kw),
        "Cluster.usage": lambda c, **kw: c.usage("b", **kw),
        "Cluster.unclaimed": lambda c, **kw: c.unclaimed(**kw),
        "Handle.output": on("output"),
        "Handle.stacks": on("stacks"),
        "Cluster.events": lambda c, **kw: first(c.events(follow=False, after=Cursor(0, 0), **kw)),
        "Handle.status": on("status"),
        "Handle.pid": on("pid"),
        "Handle.explain": on("explain"),
        "Handle.events": lambda c, **kw: first(of(c, targets["idle"]).events(**kw)),
        "Handle.wait_for_startup": on("wait_for_startup"),
        "Handle.wait_for_ready": on("wait_for_ready"),
        "Handle.wait_for_shutdown": on("wait_for_shutdown", "ends"),
        "Handle.wait_until_unregistered": on("wait_until_unregistered", "ends"),
        "Group.wait_for_startup": on("wait_for_startup", "g-hold"),
        "Group.wait_until_unregistered": on("wait_until_unregistered", "g-ends"),
    }


# --- the tests ---


@pytest.fixture
def house() -> Iterator[LocalCluster]:
    with LocalCluster(hosts=("b", "c"), path=[HERE / "workers"]) as running:
        yield running


def prepare(control: Cluster) -> dict[str, Any]:
    """A worker, or a group of two, for each change; and those that are looked at."""
    control.drain("c")
    names = ("idle", "ends", "terminate", "hold", "release", "restart", "signal", "reload")
    targets: dict[str, Any] = {n: control.register(job(n)) for n in (*names, "set_latch")}
    for name in ("g-terminate", "g-hold", "g-release", "g-restart", "g-ends"):
        targets[name] = control.register_group(job(name), 2)
    for name in ("release", "g-release"):
        targets[name].hold()
    for name, target in targets.items():
        if "release" not in name:
            for each in target if isinstance(target, posthouse.Group) else [target]:
                assert each.wait_for_ready(timeout=40).state is STARTED, name
    return targets


both = pytest.mark.parametrize("kind", ["blocking", "aio"])


def test_the_tables_have_every_call() -> None:
    """All that takes a timeout asks a master."""
    found = {
        f"{twin.__name__}.{name}"
        for twin in (Cluster, Handle, posthouse.Group)
        for name, method in vars(twin).items()
        if not name.startswith("_")
        and callable(method)
        and "timeout" in inspect.signature(method).parameters
    }
    # Where there is something to claim or forget: cli/test_copies.py, master/test_leases.py.
    elsewhere = {"Cluster.shutdown", "Cluster.claim", "Cluster.forget_host"}
    assert found == {*changes({}), *looks({}), *elsewhere}


@both
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.timeout(180)
def test_a_master_that_is_killed_in_the_middle_of_each_change(
    house: LocalCluster, kind: str, when: str
) -> None:
    cable = Cable(f"{house.dir}/cable.sock", f"{house.dir}/clients.sock")
    caller = Caller(kind, f"ipc://{house.dir}/cable.sock")
    try:
        with house.connect(timeout=20) as control:
            targets = prepare(control)
            begin = control.cursor()
            run(kill_amid(house, cable, caller, targets, when))
            check(control, targets, begin)
    except BaseException:
        house.print_logs()
        raise
    finally:
        cable.close()


async def unrefused(name: str, ask: Callable[[], Any]) -> Any:
    """Asked until the new master has heard the host."""
    for _ in range(200):
        try:
            return await ask()
        except posthouse.RefusedError as refused:
            assert name in NEED_A_HOST, refused
            await asyncio.sleep(0.05)
    raise AssertionError(f"{name} is refused for ever")


async def kill_amid(
    house: LocalCluster,
    cable: Cable,
    caller: Caller,
    targets: dict[str, Any],
    when: str,
) -> None:
    table = changes(targets)
    ids = {name: os.urandom(16) for name in table}
    go = asyncio.Event()

    async def one(name: str) -> tuple[Any, Any]:
        async with caller.cluster() as cluster:
            await go.wait()
            identity = ids[name]

            async def twice() -> tuple[Any, Any]:
                nonlocal identity
                said = partial(caller.call, table[name], cluster, request_id=identity)
                identity = os.urandom(16)  # where it is refused, that is remembered, too
                return await said(), await said()  # the second time it is only told again

            return await unrefused(name, twice)

    asking = [asyncio.create_task(one(name)) for name in table]
    await until(lambda: len(caller.engines) == len(table))
    if when == "after":
        cable.ids = [first_id(name, ids[name], targets) for name in table]
        go.set()
        await until(cable.done)
    else:
        house.master.signal(signal.SIGSTOP)
        go.set()
        await until(lambda: all(in_flight(engine) for engine in caller.engines))
    await asyncio.to_thread(house.master.kill)
    cable.ids = []
    await asyncio.to_thread(house.master.start)
    answers = dict(zip(table, await asyncio.gather(*asking), strict=True))
    for name, (answer, again) in answers.items():
        made = name.endswith((".register", ".register_group"))
        assert (repr(answer) == repr(again)) if made else (answer == again), name
    for name in ("terminate", "hold", "release", "restart"):
        assert answers[f"Handle.{name}"][0] is True
        assert answers[f"Group.{name}"][0] == 2
    assert answers["Cluster.undrain"][0] is True
    assert answers["Cluster.apply"][0].created == len(MANY)


def first_id(name: str, identity: bytes, targets: dict[str, Any]) -> bytes:
    """The id under which it is said first: a group's members have their own."""
    if not name.startswith("Group."):
        return identity
    first = targets["g-" + name.removeprefix("Group.")].handles[0]
    return calls._member_id(identity, first.id)


def check(control: Cluster, targets: dict[str, Any], begin: Cursor) -> None:
    """Each change is in the log once, and its worker is where it belongs."""
    assert {host.name: host.draining for host in control.hosts()} == {"b": True, "c": False}
    control.undrain("b")  # it is started there again
    for name in ("restart", "g-restart:0", "g-restart:1"):
        handle = control.handle(name)
        for event in handle.events(timeout=40):
            if event.kind is EventKind.READY and event.incarnation == 2:
                break
        assert handle.status().incarnation == 2
    for name in ("terminate", "g-terminate:0", "g-terminate:1"):
        assert control.handle(name).wait_until_unregistered(timeout=40).final
    counts: Counter[tuple[str, EventKind]] = Counter()
    names = {info.status.handle_id: info.status.name for info in control.workers(retired=True)}
    for event in control.events(after=begin, follow=False, timeout=40):
        if event.handle_id in names:
            counts[names[event.handle_id], event.kind] += 1
    for change, kinds in SHOWN.items():
        members = [change] if change == "register" else [change, f"g-{change}:0", f"g-{change}:1"]
        for member in members:
            for kind in kinds:
                assert counts[member, kind] == 1, (member, kind)
    for made in ("group:0", "group:1", *(worker.name for worker in MANY)):
        assert counts[made, EventKind.REGISTERED] == 1, made
    for name in ("signal", "reload"):
        said_once(targets[name], "got HUP")
    # A latch is not remembered: to set it twice is to set it.
    run(until(lambda: "latch set" in targets["set_latch"].output(timeout=40).text))


def said_once(handle: Handle, text: str) -> None:
    """It has come, and once; all that it wrote is there when it has ended."""
    run(until(lambda: text in handle.output(timeout=40).text))
    pid = handle.pid()
    assert pid is not None
    handle.terminate()
    handle.wait_until_unregistered(timeout=40)
    assert handle.output(timeout=40).text.count(text) == 1


@both
@pytest.mark.timeout(180)
def test_a_master_that_is_killed_in_the_middle_of_each_look(house: LocalCluster, kind: str) -> None:
    caller = Caller(kind, house.clients)

    async def body(targets: dict[str, Any]) -> None:
        table = looks(targets)
        go = asyncio.Event()

        async def one(name: str) -> Any:
            async with caller.cluster() as cluster:
                await go.wait()
                return await unrefused(name, lambda: caller.call(table[name], cluster))

        asking = {name: asyncio.create_task(one(name)) for name in table}
        await until(lambda: len(caller.engines) == len(table))
        house.master.signal(signal.SIGSTOP)
        go.set()
        await until(lambda: all(in_flight(engine) for engine in caller.engines))
        await asyncio.to_thread(house.master.kill)
        await asyncio.to_thread(house.master.start)
        await until(lambda: targets["ends"].terminate(timeout=40) is not None)
        await until(lambda: targets["g-ends"].terminate(timeout=40) is not None)
        found = {name: await task for name, task in asking.items()}
        assert found["Handle.pid"] == found["Handle.status"].pid == found["Cluster.status"].pid
        assert found["Handle.wait_for_startup"].state is STARTED
        assert found["Handle.wait_for_ready"].ready
        assert "arg None" in found["Handle.output"].text
        assert "latch" in found["Handle.stacks"]
        assert found["Cluster.usage"].host == "b"
        assert found["Handle.wait_for_shutdown"].reason.startswith("terminated by")
        assert found["Handle.wait_until_unregistered"].final
        assert [status.state for status in found["Group.wait_for_startup"]] == [STARTED] * 2
        assert all(status.final for status in found["Group.wait_until_unregistered"])
        assert found["Handle.events"].kind is EventKind.REGISTERED
        assert found["Cluster.events"].sequence == 1
        assert {host.name for host in found["Cluster.hosts"]} == {"b", "c"}
        assert "idle" in {info.status.name for info in found["Cluster.workers"]}

    with house.connect(timeout=20) as control:
        run(body(prepare(control)))


@both
def test_a_master_that_is_killed_in_the_middle_of_a_shutdown(kind: str) -> None:
    """The answer does not come from the master that ends, but from the next one."""

    async def body(house: LocalCluster, cable: Cable) -> None:
        caller = Caller(kind, f"ipc://{house.dir}/cable.sock")
        cable.ids = [os.urandom(16)]
        async with caller.cluster() as cluster:
            call = partial(cluster.shutdown, "immediate", request_id=cable.ids[0])
            asked = asyncio.create_task(caller.call(lambda _, **kw: call(**kw), cluster))
            await until(cable.done)
            await asyncio.to_thread(house.master.kill)
            cable.ids = []
            await asyncio.to_thread(house.master.start)
            assert isinstance(await asked, str)

    with LocalCluster(hosts=()) as house:
        cable = Cable(f"{house.dir}/cable.sock", f"{house.dir}/clients.sock")
        try:
            run(body(house, cable))
        finally:
            cable.close()
