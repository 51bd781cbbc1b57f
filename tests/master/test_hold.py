"""hold, release and restart: stopping and starting without unregistering (U6, U7)."""

from typing import Any

import pytest

from posthouse.messages import Failed, Hold, Release, Restart, Start, Stop
from posthouse.states import NEVER_RESTART, EventKind, StopReason, WorkerState


@pytest.fixture
def host(town: Any) -> Any:
    return town.host("b")


def kinds(town: Any) -> list[EventKind]:
    return [event.kind for event in town.log() if event.name == "w"]


@pytest.mark.parametrize("facts", [{"code": 0}, {"code": 1}, {"signal": 9, "cause": "signaled"}])
@pytest.mark.parametrize("restart_time", [0, 5, NEVER_RESTART])
def test_a_held_worker_stays_registered_whatever_its_end(
    town: Any, host: Any, facts: dict[str, Any], restart_time: float
) -> None:
    client = town.client()
    client.register(restart_time=restart_time)
    start = host.run()
    assert client.ask(Hold, ref="w").changed
    assert not client.ask(Hold, ref="w").changed
    assert host.one(Stop).reason is StopReason.HOLD
    host.end(start, StopReason.HOLD, **facts)
    status = client.status("w")
    assert (status.state, status.final) == (WorkerState.STOPPED, False)
    assert status.reason.startswith("held by client:local")
    town.pass_time(20)
    assert not host.take(Start)
    assert client.ask(Release, ref="w").changed
    assert host.run().incarnation == 2
    assert not client.ask(Release, ref="w").changed
    tail = kinds(town)[-6:]
    assert tail == ["stop_requested", "exited", "held", "released", "starting", "started"]


def test_a_hold_stands_when_the_worker_ended_by_itself_first(town: Any, host: Any) -> None:
    """The hold was recorded before the exit was heard of; whatever its code, it is held."""
    client = town.client()
    client.register(restart_time=0)
    start = host.run()
    client.ask(Hold, ref="w")
    host.end(start, None, code=0)
    assert not host.take(Start)
    assert client.status("w").reason.startswith("held by")


@pytest.mark.parametrize("crash", [False, True])
def test_one_without_a_process_is_held_at_once(town: Any, host: Any, crash: bool) -> None:
    client = town.client()
    client.register("w", labels=("none",))
    client.register("v", restart_time=5, host="b")
    host.end(host.run(), code=1)
    for name in "wv":
        assert client.ask(Hold, ref=name).changed
    if crash:
        town.crash()
        host, client = town.host("b"), town.client()
    host.no_such_process(host.one(Stop))  # "v" is kept: its host might have started it by itself
    town.pass_time(20)
    assert not host.take(Start)
    assert client.status("w").state is WorkerState.NOT_YET_STARTED
    assert client.status("v").state is WorkerState.STOPPED
    assert client.ask(Release, ref="v").changed
    assert host.one(Start).incarnation == 3
    assert client.ask(Release, ref="w").changed
    assert "waiting" in client.status("w").reason


def test_a_held_worker_is_terminated_at_once(town: Any, host: Any) -> None:
    client = town.client()
    client.register()
    start = host.run()
    client.ask(Hold, ref="w")
    host.obey_stop(start)
    assert client.terminate("w").changed
    assert client.status("w").final
    assert kinds(town)[-1] is EventKind.UNREGISTERED


def test_terminate_wins_over_a_hold_that_has_begun(town: Any, host: Any) -> None:
    client = town.client()
    client.register()
    start = host.run()
    client.ask(Hold, ref="w")
    client.terminate("w")
    assert not client.ask(Hold, ref="w").changed
    host.end(start, StopReason.HOLD, code=0)
    assert client.status("w").final


def test_a_release_before_the_end_comes_to_a_restart(town: Any, host: Any) -> None:
    client = town.client()
    client.register(restart_time=60)
    start = host.run()
    client.ask(Hold, ref="w")
    assert client.ask(Release, ref="w").changed
    host.end(start, StopReason.HOLD, code=0)
    assert host.run().incarnation == 2


def test_a_hold_of_an_unreachable_host_is_carried_out_when_it_is_back(town: Any, host: Any) -> None:
    client = town.client()
    client.register(host="b")
    start = host.run()
    running = host.running(start)
    town.pass_time(5, quiet=(host,))
    assert client.ask(Hold, ref="w").changed
    host = town.agent("b", warden=None).open(settle=False)
    host.settle([running])
    assert host.one(Stop).reason is StopReason.HOLD


@pytest.mark.parametrize("restart_time", [60, NEVER_RESTART])
def test_restart_starts_at_once_whatever_restart_time(
    town: Any, host: Any, restart_time: float
) -> None:
    client = town.client()
    client.register(restart_time=restart_time)
    start = host.run()
    assert client.ask(Restart, ref="w").changed
    assert not client.ask(Restart, ref="w").changed
    assert not host.take(Start)  # never two: only when the end is confirmed
    host.obey_stop(start)
    assert host.run().incarnation == 2


def test_restart_cuts_a_delay_short_and_refuses_a_held_one(town: Any, host: Any) -> None:
    client = town.client()
    client.register(restart_time=60)
    host.end(host.run(), code=1)
    assert client.ask(Restart, ref="w").changed
    start = host.run()
    assert [event.by for event in town.log() if event.kind is EventKind.RESTART_REQUESTED]
    client.ask(Hold, ref="w")
    for _ in range(2):
        refused = client.ask(Restart, ref="w")
        assert isinstance(refused, Failed)
        assert "release" in refused.hint
        host.end(start, StopReason.HOLD, code=0)


@pytest.mark.parametrize("verb", [Hold, Release, Restart])
def test_who_is_not_registered_is_said_to_be_so(town: Any, host: Any, verb: Any) -> None:
    client = town.client()
    handle = client.register("w", labels=("none",)).handle
    client.terminate("w")
    for ref in ("w", "nobody", str(handle.id), f"{'0' * 32}:0.1"):
        answer = client.ask(verb, ref=ref)
        assert isinstance(answer, Failed)
        assert answer.code == "no_such_worker"
