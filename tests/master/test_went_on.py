"""What a host did by itself while its master was away: merged by incarnation, never two, never
lost; and what was asked for meanwhile holds."""

from typing import Any

import msgspec
import pytest

from posthouse import limits
from posthouse.messages import (
    Applied,
    Apply,
    Declared,
    Exit,
    Failed,
    ForgetHost,
    Hold,
    Release,
    Restart,
    Running,
    Start,
    Stop,
)
from posthouse.records import ExitFacts
from posthouse.spec import BackgroundWorker
from posthouse.states import NEVER_RESTART, EventKind, StopReason, WorkerState
from posthouse_master.effects import PeerGone


def incarnations(client: Any, ref: str = "w") -> list[tuple[str, int]]:
    """Kind and incarnation of every row of the worker that is about one."""
    client.follow(ref, number=77)
    rows = client.events()
    return [(str(row.kind), row.incarnation) for row in rows if row.incarnation]


def exit_of(host: Any, start: Start, after: int, *, went_on: bool, **facts: Any) -> Exit:
    """The end of the `after`-th incarnation that followed this START."""
    token = [start.token, *start.reserved][after]
    return Exit(
        registry=start.registry,
        slot=start.slot,
        generation=start.generation,
        incarnation=start.incarnation + after,
        token=token,
        facts=ExitFacts(pid=5000 + after, started_unix_s=host.town.unix_s, **facts),
        went_on=went_on,
    )


def onward(start: Start, after: int) -> Start:
    """The START that the host makes of its reserved tokens."""
    token = [start.token, *start.reserved][after]
    incarnation = start.incarnation + after
    return msgspec.structs.replace(start, token=token, incarnation=incarnation)


def cut(town: Any, host: Any) -> None:
    """Its connection is gone, and nobody says HELLO for it."""
    town.handle(PeerGone(host.peer))
    host.link = None


def running(host: Any, start: Start, after: int, **values: Any) -> Running:
    found: Running = host.running(onward(start, after), pid=5000 + after, **values)
    return found


@pytest.fixture
def host(town: Any) -> Any:
    return town.host("a")


@pytest.fixture
def client(town: Any) -> Any:
    return town.client()


def test_only_a_kept_worker_that_may_be_restarted_gets_reserved_tokens(
    client: Any, host: Any
) -> None:
    client.register("kept", host="a")
    client.register("moves")
    client.register("fenced", host="a", on_partition="stop")
    client.register("once", host="a", restart_time=NEVER_RESTART)
    found = {start.spec["name"]: start.reserved for start in host.take(Start)}
    kept = found.pop("kept")
    assert len(kept) == limits.reserved_tokens_max
    assert kept == sorted(set(kept))
    assert found == {"moves": [], "fenced": [], "once": []}


def test_the_master_draws_the_very_tokens_that_its_host_would(town: Any, client: Any) -> None:
    host = town.host("a")
    client.register("w", host="a", restart_time=0)
    first = host.run()
    client.register("other", host="a")
    other = host.run()
    host.end(first, code=1)
    second = host.run()
    assert (second.token, second.incarnation) == (first.reserved[0], 2)
    assert second.reserved[:-1] == first.reserved[1:]
    assert second.reserved[-1] > other.reserved[-1]
    town.crash()
    host, client = town.host("a", settle=False), town.client()
    host.settle([host.running(second), host.running(other)])
    assert not host.take(Start)
    host.end(second, code=1)
    assert host.one(Start).token == second.reserved[0]


@pytest.mark.parametrize("crash", [False, True])
def test_histories_merge_by_incarnation(town: Any, client: Any, host: Any, crash: bool) -> None:
    client.register("w", host="a", restart_time=1)
    start = host.run()
    if crash:
        town.crash()
        client = town.client()
    host = town.host("a", settle=False)
    host.settle(
        [running(host, start, 3, ready=True)],
        [exit_of(host, start, n, went_on=True, code=1) for n in range(3)],
        highest_token=start.reserved[2],
    )
    status = client.status("w")
    assert (status.state, status.incarnation, status.pid) == (WorkerState.STARTED, 4, 5003)
    assert status.ready
    town.pass_time(30)
    assert not host.take(Start)
    assert not host.take(Stop)
    rows = incarnations(client)
    for number in (1, 2, 3):
        of = [kind for kind, incarnation in rows if incarnation == number]
        assert of == ["starting", "started", "exited"], number
    assert [kind for kind, incarnation in rows if incarnation == 4] == [
        "starting", "started", "ready",
    ]  # fmt: skip
    host.end(onward(start, 3), code=1)
    town.pass_time(1.1)
    again = host.one(Start)
    assert (again.token, again.incarnation) == (start.reserved[3], 5)


def ask(client: Any, what: str) -> None:
    asked = client.terminate("w") if what == "terminate" else client.ask(Hold, ref="w")
    assert asked.changed


def test_the_rows_say_by_which_rule(town: Any, client: Any, host: Any) -> None:
    client.register("w", host="a", restart_time=1)
    start = host.run()
    host = town.host("a", settle=False)
    host.settle([running(host, start, 1)], [exit_of(host, start, 0, went_on=True, signal=9,
                                                   cause="signaled")])  # fmt: skip
    client.follow("w")
    rows = [row for row in client.events() if row.rule == "E-ALONE"]
    assert [row.kind for row in rows] == [EventKind.EXITED, EventKind.STARTING]
    assert rows[0].reason == "killed by SIGKILL; its host went on by itself"
    assert rows[0].exit.signal == 9


def test_one_that_its_host_could_not_start_is_told_as_such(
    town: Any, client: Any, host: Any
) -> None:
    client.register("w", host="a", restart_time=1)
    start = host.run()
    host = town.host("a", settle=False)
    host.settle([running(host, start, 2)], [exit_of(host, start, 0, went_on=True, code=1)])
    rows = incarnations(client)
    assert [kind for kind, number in rows if number == 2] == ["starting", "start_failed"]
    assert client.status("w").incarnation == 3


def test_an_end_that_was_heard_before_the_cut_is_told_once(
    town: Any, client: Any, host: Any
) -> None:
    client.register("w", host="a", restart_time=60)
    start = host.run()
    host.end(start, code=1)  # the acknowledgement of this is lost
    host = town.host("a", settle=False)
    host.settle([running(host, start, 1)], [exit_of(host, start, 0, went_on=True, code=1)])
    rows = incarnations(client)
    assert rows == [
        ("starting", 1), ("started", 1), ("exited", 1), ("starting", 2), ("started", 2),
    ]  # fmt: skip
    town.pass_time(120)
    assert not host.take(Start), "its delay is over, and it runs"


def lose_a_start(town: Any, client: Any, host: Any) -> tuple[Start, Start]:
    """The first START of a worker, whose end is known, and the second, which never arrives."""
    client.register("w", host="a", restart_time=1)
    start = host.run()
    host.end(start, code=1)
    town.pass_time(1.1)
    return start, host.one(Start)


def test_a_start_that_was_lost_is_the_one_that_its_host_has_made(
    town: Any, client: Any, host: Any
) -> None:
    """Both drew the same incarnation, each without the other: it is one."""
    start, lost = lose_a_start(town, client, host)
    host = town.host("a", settle=False)
    host.settle([running(host, start, 1)], [exit_of(host, start, 0, went_on=True, code=1)])
    assert not host.take(Start)
    assert not host.take(Stop)
    status = client.status("w")
    assert (status.state, status.incarnation) == (WorkerState.STARTED, lost.incarnation)


def test_a_start_that_was_lost_is_said_again_under_its_token(
    town: Any, client: Any, host: Any
) -> None:
    """The host has yet to hear that the end before it is known, so it may come to it by itself."""
    start, lost = lose_a_start(town, client, host)
    host = town.host("a", settle=False)
    host.settle([], [exit_of(host, start, 0, went_on=False, code=1)])
    again = host.run()
    assert (again.token, again.reserved) == (lost.token, lost.reserved)
    assert [kind for kind, number in incarnations(client) if number == 2] == [
        "starting", "started",
    ]  # fmt: skip


@pytest.mark.parametrize("what", ["terminate", "hold"])
def test_a_stop_that_was_asked_for_meanwhile_wins(
    town: Any, client: Any, host: Any, what: str
) -> None:
    client.register("w", host="a", restart_time=1)
    start = host.run()
    cut(town, host)
    ask(client, what)
    host = town.host("a", settle=False)
    host.settle([running(host, start, 1)], [exit_of(host, start, 0, went_on=True, code=1)])
    assert client.status("w").state is WorkerState.STARTED, "as long as its process is there"
    stop = host.one(Stop)
    assert (stop.token, stop.reason) == (start.reserved[0], StopReason(what))
    host.end(onward(start, 1), stop.reason, code=0)
    status = client.status("w")
    assert status.final is (what == "terminate")
    town.pass_time(60)
    assert not host.take(Start)


@pytest.mark.parametrize("what", ["terminate", "hold"])
def test_who_waits_may_be_running_there_and_is_asked_for(
    town: Any, client: Any, host: Any, what: str
) -> None:
    """Its end is known, and its host, cut off since, may have gone on: it is not gone before the
    host has said so."""
    client.register("w", host="a", restart_time=60)
    start = host.run()
    host.end(start, code=1)
    cut(town, host)
    ask(client, what)
    assert not client.status("w").final
    host = town.host("a", settle=False)
    host.settle([running(host, start, 1)], [exit_of(host, start, 0, went_on=True, code=1)])
    host.obey_stop(onward(start, 1))
    assert client.status("w").final is (what == "terminate")
    if what == "hold":
        assert client.ask(Release, ref="w").changed
        again = host.one(Start)
        assert again.token > start.reserved[-1], "what was given back is used by nobody"


def test_an_end_just_before_its_stop_leaves_the_host_to_be_asked(
    town: Any, client: Any, host: Any
) -> None:
    client.register("w", host="a", restart_time=1)
    start = host.run()
    assert client.terminate("w").changed
    host.take(Stop)
    host.end(start, code=1)  # by itself: STOP is on its way
    assert not client.status("w").final
    stop = host.one(Stop)
    assert stop.token == start.reserved[0]
    host.no_such_process(stop)
    assert client.status("w").final


def test_exit_0_is_the_end_here_and_there(town: Any, client: Any, host: Any) -> None:
    client.register("w", host="a", restart_time=1)
    start = host.run()
    host = town.host("a", settle=False)
    host.settle([], [
        exit_of(host, start, 0, went_on=True, code=1),
        exit_of(host, start, 1, went_on=False, code=0),
    ])  # fmt: skip
    assert client.status("w").final
    assert not host.take(Stop)


def test_a_boot_or_a_lost_warden_ends_what_was_reserved(town: Any, client: Any, host: Any) -> None:
    client.register("w", host="a", restart_time=0)
    start = host.run()
    host = town.host("a", boot_id="boot-2")
    again = host.run()
    assert again.token > start.reserved[-1]
    assert again.incarnation == 2


def declare(client: Any, host: str, **values: Any) -> None:
    spec = BackgroundWorker(name="w", main="acme.jobs:main", host=host, **values)
    worker = Declared(spec=spec.to_wire())
    assert isinstance(client.ask(Apply, source="shop", workers=[worker]), Applied)


@pytest.mark.parametrize("cause", ["warden_died", "host_rebooted"])
def test_an_end_that_its_warden_did_not_see_ends_what_was_reserved(
    town: Any, client: Any, host: Any, cause: str
) -> None:
    """The host may have used those tokens, and have lost every trace of that with its power."""
    client.register("w", host="a", restart_time=0)
    start = host.run()
    host = town.host("a", settle=False, boot_id="boot-2")
    host.settle([], [exit_of(host, start, 0, went_on=False, cause=cause)])
    again = host.run()
    assert again.incarnation == 2
    assert again.token > start.reserved[-1]


def test_nothing_is_started_elsewhere_that_its_host_may_start(town: Any, client: Any) -> None:
    """The worker is to move while it waits, and the host that had it is cut off."""
    a, b = town.host("a"), town.host("b")
    declare(client, "a", restart_time=60)
    start = a.run()
    a.end(start, code=1)
    cut(town, a)
    declare(client, "b", restart_time=60)
    town.pass_time(120)
    assert not b.take(Start)
    a = town.host("a", settle=False)
    a.settle([running(a, start, 1)], [exit_of(a, start, 0, went_on=True, code=1)])
    assert not b.take(Start), "as long as it runs there"
    a.obey_stop(onward(start, 1))
    moved = b.one(Start)
    assert (moved.incarnation, moved.revision) == (3, 2)
    assert moved.token > start.reserved[-1]


def test_one_that_is_to_be_kept_no_more_is_asked_for_first(town: Any, client: Any) -> None:
    """Else it could run under both wardens of its host, each of which has its own tokens."""
    a = town.host("a")
    declare(client, "a", restart_time=60)
    start = a.run()
    a.end(start, code=1)
    declare(client, "a", restart_time=60, on_partition="stop")
    assert not a.take(Start)
    a.no_such_process(a.one(Stop))
    again = a.one(Start)
    assert (again.warden, again.reserved) == ("fenced", [])


def test_a_forgotten_host_starts_nothing_any_more(town: Any, client: Any) -> None:
    a, b = town.host("a"), town.host("b")
    declare(client, "a", restart_time=60)
    start = a.run()
    a.end(start, code=1)
    cut(town, a)
    town.pass_time(70)
    refused = client.ask(ForgetHost, host="a")
    assert isinstance(refused, Failed), "it may run there"
    assert "1 workers may still run" in refused.message
    client.ask(ForgetHost, host="a", confirm_dead=True)
    declare(client, "b", restart_time=60)
    assert b.one(Start).incarnation == 2


def test_a_restart_is_asked_for_while_it_waits(town: Any, client: Any, host: Any) -> None:
    client.register("w", host="a", restart_time=60)
    start = host.run()
    host.end(start, code=1)
    assert client.ask(Restart, ref="w").changed
    assert host.one(Start).token == start.reserved[0]


@pytest.mark.parametrize(
    "lie", [{"incarnation": 7}, {"incarnation": 1}], ids=["one of later", "one of before"]
)
def test_a_reserved_token_is_of_one_incarnation(
    town: Any, client: Any, lie: dict[str, Any]
) -> None:
    host = town.host("a")
    client.register("w", host="a")
    start = host.run()
    host = town.host("a", settle=False)
    bad = running(host, start, 1)
    host.settle([msgspec.structs.replace(bad, **lie)])
    assert host.link is None, "its session is over"
    assert client.status("w").incarnation == 1


def test_a_reserved_token_is_of_one_host(town: Any, client: Any, host: Any) -> None:
    client.register("w", host="a")
    start = host.run()
    liar = town.host("b", settle=False)
    liar.settle([running(liar, start, 1)])
    assert liar.link is None
    assert client.status("w").host == "a"
