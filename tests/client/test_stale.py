"""Handles of what has ended, with real workers: STOPPED and why, whatever came after, also from a
master that was not there. From both clients."""

import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import posthouse
import posthouse.aio
from posthouse import (
    NEVER_RESTART,
    BackgroundWorker,
    EventKind,
    Handle,
    HandleId,
    WorkerState,
    errors,
)
from posthouse_testing.cluster import LocalCluster

HERE = Path(__file__).parent
WAITS = ("wait_for_startup", "wait_for_ready", "wait_for_shutdown", "wait_until_unregistered")
STARTED, STOPPED = WorkerState.STARTED, WorkerState.STOPPED

both = pytest.mark.parametrize("kind", ["blocking", "aio"])


@pytest.fixture(scope="module")
def house() -> Iterator[LocalCluster]:
    with LocalCluster(hosts=("b",), path=[HERE / "workers"]) as running:
        yield running


async def settle(given: Any) -> Any:
    return await given if inspect.isawaitable(given) else given


def looked_at(house: LocalCluster, kind: str, handles: dict[str, Handle], body: Any) -> None:
    """Runs the body with a function that calls a method of one of these handles."""

    async def main() -> None:
        if kind == "aio":
            async with posthouse.aio.connect(house.clients, timeout=20) as cluster:
                await body(caller(cluster, posthouse.aio.Handle))
        else:
            with posthouse.connect(house.clients, timeout=20) as cluster:
                await body(caller(cluster, Handle))

    def caller(cluster: Any, handle: Any) -> Any:
        own = {n: handle(cluster._connection, h.id, h.name) for n, h in handles.items()}
        return lambda name, method, *args: settle(getattr(own[name], method)(*args, timeout=30))

    asyncio.run(main())


@both
def test_a_stale_handle_says_stopped_also_after_a_restart_of_the_master(
    house: LocalCluster, kind: str
) -> None:
    """Its name belongs to another registration, which has been started twice; a
    handle of a registration that never was says the same."""
    worker = BackgroundWorker(name=f"stale-{kind}", main="clientjobs:idle")
    with house.connect(timeout=20) as cluster:
        old = cluster.register(worker)
        assert old.wait_for_ready(timeout=30).state is STARTED
        old.terminate()
        old.wait_until_unregistered(timeout=30)
        new = cluster.register(worker)
        assert new.wait_for_ready(timeout=30).state is STARTED
        new.restart()
        for event in new.events(timeout=30):
            if event.kind is EventKind.READY and event.incarnation == 2:
                break
        never = Handle(cluster._connection, HandleId("0" * 32, 0, 1), "never")
        house.master.restart()

        async def body(call: Any) -> None:
            for wait in WAITS:
                status = await call("old", wait)
                assert (status.state, status.final, status.pid) == (STOPPED, True, None), wait
                assert "terminated by client:local" in status.reason, wait
            for name in ("old", "never"):
                assert (await call(name, "status")).state is STOPPED
                assert await call(name, "pid") is None
                assert await call(name, "terminate") is False
                with pytest.raises(errors.PosthouseError):
                    await call(name, "set_latch")
            now = await call("new", "status")
            assert (now.state, now.incarnation) == (STARTED, 2)

        looked_at(house, kind, {"old": old, "new": new, "never": never}, body)
        new.terminate(timeout=30)


CAUSES = [
    ("clientjobs:end", 0, "exited with code 0"),
    ("clientjobs:end", 3, "exited with code 3"),
    ("clientjobs:fail", "no luck", "exited with code 1"),
]


@both
@pytest.mark.parametrize(("main", "arg", "cause"), CAUSES, ids=[cause for *_, cause in CAUSES])
def test_every_wait_tells_the_cause(
    house: LocalCluster, kind: str, main: str, arg: Any, cause: str
) -> None:
    worker = BackgroundWorker(
        name=f"{kind} {cause}", main=main, main_arg=arg, restart_time=NEVER_RESTART
    )
    with house.connect(timeout=20) as cluster:
        handle = cluster.register(worker)
        end = handle.wait_until_unregistered(timeout=30)

        async def body(call: Any) -> None:
            for wait in WAITS:
                status = await call("it", wait)
                assert (status.state, status.final) == (STOPPED, True), wait
                assert cause in status.reason, wait
                assert status.last_exit == end.last_exit

        looked_at(house, kind, {"it": handle}, body)
