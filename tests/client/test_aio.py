"""posthouse.aio against a scripted master: what it is for, and that cancelling leaves nothing."""

import asyncio
import gc
import inspect
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest
import zmq

import posthouse.aio
from posthouse import BackgroundWorker, Cursor, EventKind, ExitFacts, WorkerState, errors
from posthouse.messages import GetStatus, Goodbye, Register, Request, Subscribe, Unsubscribe

WORKER = BackgroundWorker(name="w", main="m:f")


def loop_test(body: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """The test's own loop, in debug mode; it may leave no task, and no thread."""

    def test(**fixtures: Any) -> None:
        async def run() -> None:
            await asyncio.wait_for(body(**fixtures), 50)
            assert asyncio.all_tasks() == {asyncio.current_task()}

        threads = threading.active_count()
        asyncio.run(run(), debug=True)
        assert threading.active_count() == threads

    test.__name__, test.__doc__ = body.__name__, body.__doc__
    test.__signature__ = inspect.signature(body)  # type: ignore[attr-defined]
    return test


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def registered(master: Any, **more: Any) -> AsyncIterator[tuple[Any, Any]]:
    async with posthouse.aio.connect(master.endpoint, **more) as cluster:
        yield cluster, await cluster.register(WORKER)


def open_fds() -> int:
    """The scripted master has its descriptors here, too: it may close the other end a moment
    later."""
    return len(os.listdir("/proc/self/fd"))


# --- connect ---


@loop_test
async def test_it_may_be_entered_or_awaited(master: Any) -> None:
    before = threading.active_count()
    cluster = await posthouse.aio.connect(master.endpoint)
    assert threading.active_count() == before
    assert repr(cluster) == f"<Cluster {master.endpoint} abababab as client:local: connected>"
    async with cluster:
        assert await cluster.workers() == []
    assert repr(cluster).endswith(": closed>")
    await until(lambda: master.seen(Goodbye) == 1)
    with pytest.raises(errors.Unreachable, match="closed"):
        await cluster.workers()
    async with posthouse.aio.connect(master.endpoint) as other:
        assert other.principal == "client:local"
    await other.close()  # again


@loop_test
async def test_the_example_of_connect_runs(
    master: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """That of its docstring, against a master whose workers are started and end at once."""

    def registered_and_ended(request: Register) -> Any:
        reply = script._answer(request)
        script.add(EventKind.STARTED, pid=7)
        script.add(EventKind.UNREGISTERED)
        return reply

    with master.scripting() as script:
        script._answer = script.answer
        script.answers[Register] = registered_and_ended
    monkeypatch.setenv("POSTHOUSE_MASTER", master.endpoint)
    assert posthouse.aio.connect.__doc__
    lines = inspect.cleandoc(posthouse.aio.connect.__doc__).splitlines()
    code = ["async def example():", *(line for line in lines if line.startswith("    "))]
    scope: dict[str, Any] = {"posthouse": posthouse, "BackgroundWorker": BackgroundWorker}
    exec("\n".join(code), scope)
    await scope["example"]()
    assert capsys.readouterr().out.splitlines() == ["registered", "started", "unregistered"]


@loop_test
async def test_no_master_is_unreachable_and_leaves_nothing(folder: Any) -> None:
    await asyncio.sleep(0)
    before = open_fds()
    with pytest.raises(errors.Unreachable, match=r"within 0.2 s"):
        await posthouse.aio.connect(f"ipc://{folder}/nobody.sock", timeout=0.2)
    await until(lambda: open_fds() == before)
    folder.chmod(0o777)
    with pytest.raises(errors.ConfigError, match="must have mode"):
        await posthouse.aio.connect(f"ipc://{folder}/nobody.sock", timeout=5)
    await until(lambda: open_fds() == before)


@loop_test
async def test_it_waits_for_a_master_that_comes_late(master: Any) -> None:
    await asyncio.to_thread(master.stop)
    connecting = asyncio.create_task(posthouse.aio.connect(master.endpoint, timeout=20)._connect())
    await asyncio.sleep(0.05)
    await asyncio.to_thread(master.start)
    await (await connecting).close()


def test_another_loop_is_refused(master: Any) -> None:
    async def make() -> Any:
        return await posthouse.aio.connect(master.endpoint)

    with asyncio.Runner() as one, asyncio.Runner() as other:
        cluster = one.run(make())
        with pytest.raises(errors.UsageError, match="another event loop"):
            other.run(cluster.workers())
        one.run(cluster.close())


def test_a_loop_that_cannot_watch_sockets_is_refused(
    master: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows' default loop."""

    class Proactor(asyncio.SelectorEventLoop):
        def add_reader(self, *args: Any) -> None:
            raise NotImplementedError

    async def make() -> Any:
        await posthouse.aio.connect(master.endpoint)

    loop = Proactor()
    with pytest.raises(errors.UsageError, match="SelectorEventLoop"):
        loop.run_until_complete(make())
    loop.close()


@loop_test
async def test_a_forgotten_cluster_ends_its_session(master: Any) -> None:
    before = open_fds()
    cluster: Any = await posthouse.aio.connect(master.endpoint)
    handle: Any = await cluster.register(WORKER)
    del cluster
    gc.collect()
    assert (await handle.status()).name == "w"  # a handle keeps the connection
    del handle
    gc.collect()
    await until(lambda: master.seen(Goodbye) == 1)
    await until(lambda: open_fds() == before)


def test_a_program_may_end_without_closing(master: Any) -> None:
    code = """
import asyncio, posthouse
async def main():
    cluster = await posthouse.aio.connect()
    handle = await cluster.register(posthouse.BackgroundWorker(name="w", main="m:f"))
    await anext(handle.events())
    waiting = asyncio.create_task(handle.wait_until_unregistered())
    await asyncio.sleep(0.05)
    print((await cluster.status("w")).name)
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "POSTHOUSE_MASTER": master.endpoint},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "w\n", "")


# --- calls and waits ---


@loop_test
async def test_many_tasks_share_one_cluster(master: Any) -> None:
    async def work(number: int) -> list[str]:
        names = []
        for each in range(20):
            handle = await cluster.register(BackgroundWorker(name=f"w{number}.{each}", main="m:f"))
            names.append((await handle.status()).name)
        return names

    async with posthouse.aio.connect(master.endpoint) as cluster:
        found = await asyncio.gather(*(work(number) for number in range(20)))
    assert found == [[f"w{number}.{each}" for each in range(20)] for number in range(20)]


@loop_test
async def test_two_tasks_may_wait_for_the_same_request(master: Any) -> None:
    async with posthouse.aio.connect(master.endpoint) as cluster:
        with master.scripting() as script:
            script.silent_to = {Register}
        identity = os.urandom(16)
        calls = [cluster.register(WORKER, request_id=identity, timeout=t) for t in (0.05, 0.1)]
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, errors.TimedOut)
        with master.scripting() as script:
            script.silent_to = set()
        one, two = await asyncio.gather(
            *(cluster.register(WORKER, request_id=identity) for _ in range(2))
        )
        assert one == two
        with pytest.raises(errors.RequestConflict):
            await asyncio.gather(
                cluster.register(BackgroundWorker(name="x", main="m:f"), request_id=b"a" * 16),
                cluster.register(BackgroundWorker(name="y", main="m:f"), request_id=b"a" * 16),
            )


@loop_test
async def test_waits_and_their_cause(master: Any) -> None:
    async with registered(master) as (_, handle):
        waits = asyncio.gather(
            handle.wait_for_startup(timeout=20),
            handle.wait_for_ready(timeout=20),
            handle.wait_for_shutdown(timeout=20),
            handle.wait_until_unregistered(timeout=20),
        )
        await until(lambda: master.seen(Subscribe) == 4)
        master.add(EventKind.STARTED, pid=7, host="b")
        master.add(EventKind.READY)
        facts = ExitFacts(cause="signaled", signal=9)
        master.add(EventKind.EXITED, exit=facts, restart_in_s=5.0, reason="killed by SIGKILL")
        master.add(EventKind.UNREGISTERED, reason="terminated")
        started, ready, stopped, gone = await waits
        assert (started.state, started.pid) == (WorkerState.STARTED, 7)
        assert ready.ready
        assert (stopped.last_exit, stopped.reason) == (facts, "killed by SIGKILL")
        assert gone.final


@loop_test
async def test_h7_the_masters_death_is_told_by_waits_after_the_silence(master: Any) -> None:
    async with registered(master, master_silence_s=1.0) as (cluster, handle):
        await asyncio.to_thread(master.stop)
        with pytest.raises(errors.TimedOut, match="no master answers now"):
            await handle.wait_for_shutdown(timeout=0.3)
        status = await handle.wait_for_shutdown(timeout=20)
        assert status.state is WorkerState.POSTMASTER_DIED
        assert "may well be running" in status.reason
        with pytest.raises(errors.Unreachable):
            await handle.status(timeout=0.05)  # H7: never from the poll
        await asyncio.to_thread(master.start)
        await until(lambda: "connected" in repr(cluster))
        with pytest.raises(errors.TimedOut):
            await handle.wait_for_shutdown(timeout=0.05)


@loop_test
async def test_closing_ends_what_waits(master: Any) -> None:
    async with registered(master) as (cluster, handle):
        stream = cluster.events()
        waits = [
            asyncio.create_task(handle.wait_for_startup()),
            asyncio.create_task(anext(stream)),
        ]
        await until(lambda: master.seen(Subscribe) == 2)
        await cluster.close()
        for wait in waits:
            with pytest.raises(errors.Unreachable, match="closed"):
                await wait


@loop_test
async def test_a_defect_reaches_everybody(master: Any) -> None:
    async with registered(master) as (cluster, handle):
        wait = asyncio.create_task(handle.wait_for_startup())
        await until(lambda: master.seen(Subscribe) == 1)
        cluster._connection.engine._core.handle = None
        with pytest.raises(errors.InternalError, match="session failed"):
            await wait
        with pytest.raises(errors.InternalError, match="session failed"):
            await cluster.workers()


# --- events ---


@loop_test
async def test_events_of_a_handle_from_its_first_to_its_last(master: Any) -> None:
    async with registered(master) as (cluster, handle):
        kinds = []
        master.add(EventKind.STARTED, pid=7)
        async for event in handle.events(timeout=20):
            kinds.append(event.kind)
            if event.kind is EventKind.STARTED:
                master.add(EventKind.EXITED)
                master.add(EventKind.UNREGISTERED)
        assert kinds[-2:] == [EventKind.EXITED, EventKind.UNREGISTERED]
        assert [event.kind async for event in handle.events(timeout=20)] == kinds  # a late one
        assert [event.kind async for event in handle.events(follow=False, timeout=20)] == kinds
        assert not cluster._connection.engine.board.inboxes


@loop_test
async def test_from_now_on_begins_where_it_is_entered(master: Any) -> None:
    async with registered(master) as (cluster, _):
        stream = cluster.events(timeout=20)
        assert stream.cursor is None
        async with stream:
            assert stream.cursor == Cursor(1, 1)
            master.add(EventKind.STARTED)
            assert (await anext(stream)).kind is EventKind.STARTED
            stream.timeout = 0.05
            with pytest.raises(errors.TimedOut):
                await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert repr(stream) == "<EventStream 1/2 closed>"


@loop_test
async def test_events_come_once_to_the_slow_the_late_and_the_reconnected(master: Any) -> None:
    """One reads as they come, one much later than the window is long, one from a cursor again and
    again; meanwhile the master is restarted."""
    count = 1200

    async def quick() -> list[int]:
        return [(await anext(stream)).sequence for _ in range(count)]

    async def in_pieces(cluster: Any) -> list[int]:
        found: list[int] = []
        after = Cursor(0, 0)
        while len(found) < count:
            async with cluster.events(after=after, timeout=20) as piece:
                wanted = min(97, count - len(found))
                found += [(await anext(piece)).sequence for _ in range(wanted)]
                after = piece.cursor
        return found

    async with posthouse.aio.connect(master.endpoint) as cluster:
        stream = cluster.events(after=Cursor(0, 0), timeout=20)
        slow = cluster.events(after=Cursor(0, 0), timeout=20)
        reading = asyncio.create_task(quick())
        pieces = asyncio.create_task(in_pieces(cluster))
        for number in range(count):
            master.add(EventKind.EXITED)
            if number % 300 == 299:
                await asyncio.to_thread(master.restart)
        wanted = list(range(1, count + 1))
        assert await reading == wanted
        assert await pieces == wanted
        assert [(await anext(slow)).sequence for _ in range(count)] == wanted
        await asyncio.to_thread(master.restart)
        late = [e.sequence async for e in cluster.events(after=Cursor(0, 0), follow=False)]
        assert late == wanted


@loop_test
async def test_a_trimmed_log_is_never_silent(master: Any) -> None:
    async with posthouse.aio.connect(master.endpoint) as cluster:
        with master.scripting() as script:
            for _ in range(9):
                script.add(EventKind.EXITED)
            script.trimmed_to = 5
        with pytest.raises(errors.CursorTooOld) as caught:
            await anext(cluster.events(after=Cursor(1, 3), timeout=20))
        after = caught.value.detail["cursor"]
        found = [e.sequence async for e in cluster.events(after=after, follow=False, timeout=20)]
        assert found == [6, 7, 8, 9]


@loop_test
async def test_a_stream_that_is_dropped_unsubscribes(master: Any) -> None:
    async with registered(master) as (_, handle):
        stream = handle.events(timeout=20)
        await anext(stream)
        del stream
        gc.collect()
        await until(lambda: master.seen(Unsubscribe) == 1)


@loop_test
async def test_one_task_may_close_what_another_reads(master: Any) -> None:
    async with registered(master) as (cluster, _):
        stream = cluster.events()
        reader = asyncio.create_task(anext(stream))
        await until(lambda: master.seen(Subscribe) == 1)
        await stream.close()
        with pytest.raises(errors.UsageError, match="closed"):
            await reader


# --- the socket ---


@loop_test
async def test_an_edge_that_a_send_has_swallowed_is_looked_for(master: Any) -> None:
    """1. A turn has read all there was; 2. an event arrives; 3. the turn sends its renewal, which
    takes the edge: the descriptor will not become readable for this event."""
    async with posthouse.aio.connect(master.endpoint) as cluster:
        engine: Any = cluster._connection.engine
        transmit, turns_due, once = engine._line.transmit, [], [True]

        def late(frame: bytes) -> None:
            if once:
                once.clear()
                master.add(EventKind.EXITED)
                while not engine._line.socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                    pass
                engine._loop.call_soon(lambda: turns_due.append(engine._turn_due))
            transmit(frame)

        async with cluster.events(timeout=20) as stream:
            await until(lambda: not engine._turn_due)
            engine._line.transmit = late
            assert (await anext(stream)).kind is EventKind.EXITED
        assert turns_due == [True]


# --- cancelling ---


CANCELLED: dict[str, Callable[[Any, Any], Any]] = {
    "a call": lambda cluster, handle: cluster.workers(),
    "a change": lambda cluster, handle: handle.terminate(),
    "a group": lambda cluster, handle: cluster.register_group(WORKER, 2),
    "a declaration": lambda cluster, handle: cluster.apply(MANY, source="s"),
    "a wait": lambda cluster, handle: handle.wait_for_startup(),
    "an end": lambda cluster, handle: handle.wait_until_unregistered(),
    "reload": lambda cluster, handle: handle.reload(),
    "events of a handle": lambda cluster, handle: drain(handle.events(after=Cursor(1, 1))),
    "events of all": lambda cluster, handle: drain(cluster.events()),
    "events to now": lambda cluster, handle: drain(cluster.events(follow=False)),
}
MANY = [BackgroundWorker(name=f"w{number}", main="m:f") for number in range(300)]


@pytest.fixture
def only_new_garbage() -> Iterator[None]:
    """What was there before is not looked through, which is most of a collection's time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def drain(stream: Any) -> None:
    async for _ in stream:
        pass


@pytest.mark.parametrize("what", CANCELLED)
@pytest.mark.parametrize("mute", [False, True])
@pytest.mark.usefixtures("only_new_garbage")
@loop_test
async def test_cancelling_at_any_await_leaves_nothing(master: Any, what: str, mute: bool) -> None:
    """Cancelled after each number of turns of the loop, until it is through or waits for ever: no
    call or watch is open, the master has no subscription left, and no descriptor or task is."""
    async with registered(master) as (cluster, handle):
        engine: Any = cluster._connection.engine
        with master.scripting() as script:
            script.silent_to = set(kinds_of(Request)) if mute else set()
        await asyncio.sleep(0.05)
        before = open_fds()
        for turns in range(30):
            task = asyncio.ensure_future(CANCELLED[what](cluster, handle))
            for _ in range(turns):
                await asyncio.sleep(0 if turns < 15 else 0.002)
            task.cancel()
            with suppress(asyncio.CancelledError, errors.PosthouseError):
                await task
            del task
            gc.collect()
            assert not engine.board.waiters
            await until(lambda: not engine.board.inboxes)  # a dropped stream is noticed next turn
            assert not engine._core._calls
            assert len(engine._core._watches) == 0
        assert asyncio.all_tasks() == {asyncio.current_task(), *others()}
        await until(lambda: open_fds() == before)
        with master.scripting() as script:
            script.silent_to = set()
        await cluster.workers()  # all that was said before has arrived
        with master.scripting() as script:
            assert [len(each.subscriptions) for each in script.sessions.values()] == [0]


def kinds_of(of: type) -> list[type]:
    return [of, *(each for sub in of.__subclasses__() for each in kinds_of(sub))]


def others() -> set[Any]:
    """The task that loop_test waits in."""
    return {task for task in asyncio.all_tasks() if "loop_test" in repr(task.get_coro())}


@loop_test
async def test_cancelling_connect_leaves_nothing(master: Any, folder: Any) -> None:
    before = open_fds()
    for endpoint in (master.endpoint, f"ipc://{folder}/nobody.sock"):
        for turns in range(12):
            connecting = asyncio.ensure_future(posthouse.aio.connect(endpoint)._connect())
            for _ in range(turns):
                await asyncio.sleep(0.001)
            connecting.cancel()
            with suppress(asyncio.CancelledError):
                await (await connecting).close()
            await until(lambda: open_fds() == before)


@loop_test
async def test_a_cancelled_wait_for_an_event_loses_none(master: Any) -> None:
    async with posthouse.aio.connect(master.endpoint) as cluster:
        found: list[int] = []
        stream = cluster.events(after=Cursor(0, 0))
        for number in range(300):
            master.add(EventKind.EXITED)
            with suppress(TimeoutError):
                async with asyncio.timeout(0.001 * (number % 3)):
                    found.append((await anext(stream)).sequence)
        while len(found) < 300:
            found.append((await anext(stream)).sequence)
        assert found == list(range(1, 301))


@loop_test
async def test_a_cancelled_call_is_not_answered_to_the_next_one(master: Any) -> None:
    """Its late answer finds nobody, and the id may be asked again."""
    async with posthouse.aio.connect(master.endpoint) as cluster:
        with master.scripting() as script:
            script.silent_to = {Register}
        identity = os.urandom(16)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await cluster.register(WORKER, request_id=identity)
        with master.scripting() as script:
            script.silent_to = set()
        handle = await cluster.register(WORKER, request_id=identity)
        assert (await handle.status()).name == "w"
        with master.scripting() as script:
            assert script.effects == [identity]


@loop_test
async def test_what_happens_between_snapshot_and_subscription_is_not_missed(master: Any) -> None:
    async with registered(master) as (_, handle):
        with master.scripting() as script:
            answer, told = script.answer, []

            def answered(request: Any) -> Any:
                reply = answer(request)
                if isinstance(request, GetStatus) and not told:
                    told.append(request)
                    script.add(EventKind.STARTED, pid=7)
                    script.add(EventKind.EXITED, exit=ExitFacts(code=3), restart_in_s=0.0)
                    script.add(EventKind.STARTED, pid=8)
                return reply

            script.answer = answered
        status = await handle.wait_for_shutdown(timeout=20)
        assert status.state is WorkerState.STOPPED
        assert status.last_exit == ExitFacts(code=3)


@loop_test
async def test_groups_are_awaited_like_others(master: Any) -> None:
    async with registered(master) as (cluster, handle):
        other = await cluster.register(BackgroundWorker(name="v", main="m:f"))
        members = [(each.id, each.name) for each in (handle, other)]
        group = posthouse.aio.Group(cluster._connection, "g", members)
        assert (repr(group), list(group), len(group)) == (
            "<Group g: 2 members>",
            [handle, other],
            2,
        )
        assert await group.hold() == 2
        with master.scripting() as script:
            for slot in (0, 1):
                script.status[slot] = msgspec.structs.replace(
                    script.status[slot], state=WorkerState.STARTED
                )
        assert [s.name for s in await group.wait_for_startup(timeout=20)] == ["w", "v"]
        assert await group.terminate() == 2


def test_pyzmqs_own_asyncio_is_not_loaded(master: Any) -> None:
    code = """
import sys, asyncio, posthouse
async def main():
    async with posthouse.aio.connect():
        print("zmq.asyncio" in sys.modules)
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "POSTHOUSE_MASTER": master.endpoint},
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert done.stdout == "False\n"
