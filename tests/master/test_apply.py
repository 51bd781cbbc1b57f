"""apply: a declaration against what is registered, and the rollout of new revisions."""

from typing import Any

import pytest

from posthouse import limits
from posthouse.messages import (
    Applied,
    Apply,
    Declared,
    DeclarePart,
    Done,
    Failed,
    Hold,
    Ready,
    Register,
    Start,
    Started,
    Stop,
    StructRequest,
)
from posthouse.spec import BackgroundWorker
from posthouse.states import NEVER_RESTART
from posthouse_master.effects import Room, Space


def entry(name: str = "w", replicas: Any = None, **values: Any) -> Declared:
    spec = BackgroundWorker(name=name, **({"main": "acme.jobs:main"} | values))
    return Declared(spec=spec.to_wire(), replicas=replicas)


def apply(client: Any, *workers: Declared, source: str = "shop", **values: Any) -> Applied:
    answer = client.ask(Apply, source=source, workers=list(workers), **values)
    assert isinstance(answer, Applied), answer
    return answer


def refused(client: Any, *workers: Declared, source: str = "shop", **values: Any) -> Failed:
    answer = client.ask(Apply, source=source, workers=list(workers), **values)
    assert isinstance(answer, Failed), answer
    return answer


def changes(answer: Applied) -> list[tuple[str, str]]:
    return [(change.action, change.name) for change in answer.changes]


def run_all(host: Any) -> dict[str, Start]:
    """Every START that has come is obeyed; by name."""
    starts = {start.spec["name"]: start for start in host.take(Start)}
    for pid, start in enumerate(starts.values(), 100):
        host.say(Started(worker=host.running(start, pid)))
    return starts


def ready(host: Any, start: Start) -> None:
    host.say(
        Ready(
            slot=start.slot,
            generation=start.generation,
            incarnation=start.incarnation,
            token=start.token,
        )
    )


# --- the plan ------------------------------------------------------------------------------------


def test_what_is_declared_is_created_and_the_same_content_is_nothing(town):
    client, host = town.client(), town.host()
    answer = apply(client, entry("a"), entry("b", host="b"))
    assert changes(answer) == [("create", "a"), ("create", "b")]
    assert (answer.created, answer.unchanged) == (2, 0)
    assert set(run_all(host)) == {"a", "b"}
    rows, token = len(town.log()), town.core.registry.token
    answer = apply(client, entry("a"), entry("b", host="b"))
    assert (answer.created, answer.updated, answer.pruned, answer.unchanged) == (0, 0, 0, 2)
    assert not answer.changes
    assert not host.take(Stop) and not host.take(Start)
    assert (len(town.log()), town.core.registry.token) == (rows, token)


def test_other_content_is_the_next_revision_in_the_same_slot(town):
    client, host = town.client(), town.host()
    handle = apply(client, entry("a", nice=1)).changes[0].handle.id
    start = run_all(host)["a"]
    answer = apply(client, entry("a", nice=2, env={"SECRET": "x"}))
    (change,) = answer.changes
    assert (change.action, change.fields, change.handle.id) == ("update", ["env", "nice"], handle)
    # The new process waits for the confirmed end of the old one.
    stop = host.one(Stop)
    assert (stop.token, str(stop.reason)) == (start.token, "apply")
    assert not host.take(Start)
    status = client.status("a")
    assert (status.revision, status.running_revision) == (2, 1)
    host.end(start, stop.reason, code=1)
    again = host.one(Start)
    assert (again.slot, again.generation, again.revision) == (start.slot, start.generation, 2)
    assert again.spec["nice"] == 2
    host.say(Started(worker=host.running(again)))
    assert client.status(str(handle)).running_revision == 2
    kinds = town.kinds("0.1")
    assert kinds.index("revised") < kinds.index("stop_requested") < kinds.index("exited")


@pytest.mark.parametrize("code", [0, 1, 3])
def test_a_never_restarted_worker_is_replaced_whatever_its_old_process_exits_with(town, code):
    client, host = town.client(), town.host()
    apply(client, entry(restart_time=NEVER_RESTART))
    start = run_all(host)["w"]
    apply(client, entry(restart_time=NEVER_RESTART, nice=1))
    host.obey_stop(start, code=code)
    assert host.one(Start).revision == 2


def test_without_a_process_the_new_content_waits_for_nothing(town):
    client, host = town.client(), town.host()
    apply(client, entry("held"), entry("waits", restart_time=1000))
    starts = run_all(host)
    client.ask(Hold, ref="held")
    host.obey_stop(starts["held"])
    host.end(starts["waits"], code=1)
    assert client.status("waits").restart_in_s > 900
    apply(client, entry("held", nice=1), entry("waits", restart_time=1000, nice=1))
    (start,) = host.take(Start)  # at once: the delay was for what it was
    assert (start.spec["name"], start.revision) == ("waits", 2)
    assert client.status("held").revision == 2


def test_prune_ends_what_the_same_source_no_longer_names(town):
    client, host = town.client(), town.host()
    apply(client, entry("a"), entry("b"))
    apply(client, entry("x"), source="other")
    client.register("by-hand")
    run_all(host)
    assert apply(client, entry("a"), prune=False).pruned == 0
    assert client.status("b").stopping is None
    answer = apply(client, entry("a"))
    assert changes(answer) == [("prune", "b")]
    (stop,) = host.take(Stop)
    assert str(stop.reason) == "terminate"
    assert client.status("x").stopping is None
    assert client.status("by-hand").stopping is None


def test_a_dry_run_tells_the_plan_and_has_no_effect(town):
    client, host = town.client(), town.host()
    apply(client, entry("a"), entry("b"), entry("c"))
    run_all(host)
    rows = len(town.log())
    told = apply(client, entry("a", nice=1), entry("b"), entry("d"), dry_run=True)
    assert changes(told) == [("prune", "c"), ("update", "a"), ("create", "d")]
    assert told.unchanged == 1
    assert len(town.log()) == rows
    assert not host.take(Stop) and not host.take(Start)
    assert changes(apply(client, entry("a", nice=1), entry("b"), entry("d"))) == changes(told)


def test_what_ended_by_itself_is_left_ended(town):
    client, host = town.client(), town.host()
    apply(client, entry("job"))
    host.end(run_all(host)["job"], code=0)
    answer = apply(client, entry("job"))
    assert changes(answer) == [("finished", "job")]
    assert not host.take(Start)
    assert changes(apply(client, entry("job", nice=1))) == [("create", "job")]
    assert host.one(Start).generation == 2


def test_what_somebody_terminated_comes_back_when_it_is_applied_again(town):
    client, host = town.client(), town.host()
    apply(client, entry("w"))
    start = run_all(host)["w"]
    client.terminate("w")
    host.obey_stop(start)
    assert changes(apply(client, entry("w"))) == [("create", "w")]


def test_a_name_whose_process_is_still_ending_is_refused(town):
    """It was answered with "unchanged", and then it was gone."""
    client, host = town.client(), town.host()
    apply(client, entry("w"))
    start = run_all(host)["w"]
    client.terminate("w")
    for values in ({}, {"nice": 1}):
        told = refused(client, entry("w", **values))
        assert told.code == "already_registered"
        assert "has not ended yet" in told.message and "then apply again" in told.hint
    assert apply(client).pruned == 0, "its end is asked for already"
    host.obey_stop(start)
    assert changes(apply(client, entry("w"))) == [("create", "w")]


def test_a_retry_has_one_effect(town):
    client = town.client()
    request = b"r" * 16
    first = apply(client, entry("a"), request=request)
    town.crash()
    client = town.client()
    assert apply(client, entry("a"), request=request) == first
    answer = client.ask(Apply, source="shop", workers=[entry("b")], request=request)
    assert isinstance(answer, Failed) and answer.code == "request_conflict"


# --- all or nothing ------------------------------------------------------------------------------


def nothing_changed(town: Any, client: Any, told: Failed, *says: str) -> None:
    for text in says:
        assert text in told.message, told
    assert town.core.registry.live_count == 1, "only what was there before"
    assert not client.events()


@pytest.fixture
def one(town):
    """A client, and a worker that was registered by hand."""
    client = town.client()
    client.register("by-hand")
    return client


def test_one_bad_record_refuses_all_and_names_worker_field_value_rule(town, one):
    bad = Declared(spec=entry("b").spec | {"nice": 1000})
    told = refused(one, entry("a"), bad)
    nothing_changed(town, one, told, "worker 'b'", "nice is 1000", "from -20 to 19")
    assert told.code == "invalid_field"
    assert (told.detail["worker"], told.detail["field"]) == ("b", "nice")


def test_a_name_of_another_source_is_refused(town, one):
    told = refused(one, entry("a"), entry("by-hand"))
    nothing_changed(town, one, told, "'by-hand' is registered already")
    assert told.code == "already_registered"


def test_a_name_declared_twice_is_refused(town, one):
    nothing_changed(town, one, refused(one, entry("a"), entry("a")), "declared once")


def test_unique_false_has_no_place_in_a_declaration(town, one):
    told = refused(one, entry("a", unique=False))
    nothing_changed(town, one, told, "unique is False")


def test_an_unknown_host_is_refused(town, one):
    nothing_changed(town, one, refused(one, entry("a", host="zz")), "no host named 'zz'")


def test_all_slots_must_be_there_before_the_first_is_taken(towns):
    town = towns.Town(towns.Policy(max_worker_processes=3, max_worker_processes_per_host=2))
    client = town.client()
    town.host()
    client.register("by-hand")
    told = refused(client, *(entry(f"w{n}") for n in range(3)))
    nothing_changed(town, client, told, "3 are wanted, and 1 of the 3 slots")
    assert (told.code, told.detail["limit"]) == ("no_free_slot", "max_worker_processes")
    told = refused(client, *(entry(f"w{n}", host="b") for n in range(2)))
    nothing_changed(town, client, told, "2 are wanted, and 1 of the 2 slots of host b")


def test_a_host_must_have_a_slot_for_who_comes_to_name_it(town):
    client, b = town.client(), town.host("b", slots=1)
    town.host("c", slots=1)
    apply(client, entry("a", host="b"), entry("d", host="c"))
    run_all(b)
    told = refused(client, entry("a", host="c"), entry("d", host="c"))
    assert told.code == "no_free_slot" and told.detail["limit"].endswith("host c")
    assert not b.take(Stop)
    assert changes(apply(client, entry("a", host="b", nice=1), entry("d", host="c"))) == [
        ("update", "a")
    ]


def test_who_may_run_anywhere_does_not_take_the_slot_that_another_names(town):
    client, host = town.client(), town.host("b", slots=1)
    apply(client, entry("anywhere"), entry("there", host="b"))
    assert set(run_all(host)) == {"there"}
    assert town.core.registry.load("b") == 1


def test_the_slot_of_an_old_process_is_taken_until_it_has_ended(town):
    client, b = town.client(), town.host("b", slots=1)
    town.host("c", slots=1)
    apply(client, entry("a", host="b"))
    start = run_all(b)["a"]
    apply(client, entry("a", host="c"))
    client.register("waits", host=None)
    assert not b.take(Start), "a process of a still runs there"
    b.obey_stop(start)
    assert b.one(Start).spec["name"] == "waits"


def test_the_sources_of_the_masters_configuration_are_its_own(town, one):
    for source in ("config", "library:acme.jobs"):
        told = refused(one, entry("a"), source=source)
        nothing_changed(town, one, told, "the master's own configuration")


def test_too_many_are_refused(town, one, monkeypatch):
    monkeypatch.setattr(limits, "declaration_workers_max", 2)
    told = refused(one, *(entry(f"w{n}") for n in range(3)))
    nothing_changed(town, one, told, "must be at most 2")
    nothing_changed(town, one, refused(one, entry("g", replicas=3)), "comes to 3 workers")


# --- parts ---------------------------------------------------------------------------------------

UPLOAD = b"u" * 16


def part(client: Any, number: int, *workers: Declared, upload: bytes = UPLOAD) -> Any:
    return client.ask(DeclarePart, upload=upload, part=number, workers=list(workers))


def test_a_long_declaration_comes_in_parts(town):
    client = town.client()
    assert part(client, 0, entry("a")).changed
    assert part(client, 1, entry("b")).changed
    assert not part(client, 1, entry("b")).changed  # a retry
    told = apply(client, entry("c"), upload=UPLOAD, dry_run=True)
    assert told.created == 3
    assert apply(client, entry("c"), upload=UPLOAD).created == 3
    assert refused(client, upload=UPLOAD).code == "upload_lost"  # it has been used


def test_k1_a_client_cannot_request_structures(town):
    client = town.client()
    structs = [StructRequest(name="s", size=8, library="none")]
    told = client.ask(DeclarePart, upload=UPLOAD, part=0, workers=[], structs=structs)
    assert (told.code, "posthouse_init" in told.message) == ("refused", True)


def test_parts_are_lost_with_their_session_and_in_disorder(town):
    client = town.client()
    assert part(client, 1, entry("b")).code == "upload_lost"
    part(client, 0, entry("a"))
    assert part(client, 2, entry("c")).code == "upload_lost"
    other = town.client()
    assert refused(other, upload=UPLOAD).code == "upload_lost"
    assert isinstance(part(client, 0, entry("z"), upload=b"v" * 16), Done)  # drops the former
    assert refused(client, upload=UPLOAD).code == "upload_lost"
    client.open()
    assert refused(client, upload=b"v" * 16).code == "upload_lost"
    assert not town.core._applies._uploads


def test_what_is_held_before_an_apply_is_bounded(town, monkeypatch):
    client, other = town.client(), town.client()
    monkeypatch.setattr(limits, "declaration_workers_max", 2)
    part(client, 0, entry("a"), entry("b"))
    assert "more than 2 workers" in part(client, 1, entry("c")).message
    assert refused(client, upload=UPLOAD).code == "upload_lost"
    monkeypatch.setattr(limits, "declarations_held_max", 1)
    part(client, 0, entry("a"))
    assert "try again" in part(other, 0, entry("a")).hint


def test_a_long_plan_is_told_from_a_place_on(town, monkeypatch):
    monkeypatch.setattr(limits, "page_items_max", 2)
    client = town.client()
    workers = [entry(f"w{n}") for n in range(5)]
    seen: list[str] = []
    more = True
    while more:
        told = apply(client, *workers, dry_run=True, skip=len(seen))
        assert told.created == 5
        seen += [change.name for change in told.changes]
        more = told.more
    assert seen == [f"w{n}" for n in range(5)]


# --- the rollout ---------------------------------------------------------------------------------

NAMES = ("a", "b", "c", "d")


def rolling(town: Any, max_unavailable: int = 1) -> tuple[Any, Any, dict[str, Start]]:
    """Four workers of one source that are to be replaced."""
    client, host = town.client(), town.host()
    apply(client, *(entry(name) for name in NAMES))
    starts = run_all(host)
    town.pass_time(limits.healthy_s + 1)
    apply(client, *(entry(name, nice=1) for name in NAMES), max_unavailable=max_unavailable)
    return client, host, starts


def stopped(host: Any, starts: dict[str, Start]) -> list[str]:
    """The names of those whose STOP has come; they end."""
    by_token = {start.token: name for name, start in starts.items()}
    found = []
    for stop in host.take(Stop):
        name = by_token[stop.token]
        host.end(starts[name], stop.reason, code=0)
        found.append(name)
    return found


@pytest.mark.parametrize(("width", "rounds"), [(1, 4), (2, 2), (3, 2), (9, 1)])
def test_at_most_max_unavailable_are_replaced_at_a_time(town, width, rounds):
    client, host, starts = rolling(town, width)
    for n in range(rounds):
        names = stopped(host, starts)
        assert len(names) == min(width, len(NAMES) - n * width)
        assert set(run_all(host)) == set(names)
        assert not host.take(Stop), "before the new ones have proved themselves"
        town.pass_time(limits.healthy_s + 1)
    assert not host.take(Stop)
    assert all(client.status(name).running_revision == 2 for name in NAMES)


def test_ready_is_sooner_than_time(town):
    _, host, starts = rolling(town)
    (first,) = stopped(host, starts)
    ready(host, run_all(host)[first])
    assert len(stopped(host, starts)) == 1


def test_who_used_to_say_ready_is_waited_for_until_it_does(town):
    client, host = town.client(), town.host()
    apply(client, entry("a"), entry("b"))
    starts = run_all(host)
    for start in starts.values():
        ready(host, start)
    apply(client, entry("a", nice=1), entry("b", nice=1))
    (first,) = stopped(host, starts)
    again = run_all(host)[first]
    town.pass_time(10 * limits.healthy_s)
    assert not host.take(Stop)
    other = ({"a", "b"} - {first}).pop()
    assert f"{first} must be ready first" in client.status(other).reason
    ready(host, again)
    assert stopped(host, starts) == [other]


def test_a_bad_revision_stops_its_rollout_by_itself(town):
    client, host, starts = rolling(town)
    (first,) = stopped(host, starts)
    for _ in range(3):
        town.pass_time(6)
        (again,) = run_all(host).values()
        host.end(again, code=1)
    town.pass_time(3)
    assert not host.take(Stop)
    running = [name for name in NAMES if name != first]
    assert all(client.status(name).running_revision == 1 for name in running)
    # The way out is another declaration; the one that fails is started at once.
    apply(client, *(entry(name, nice=2) for name in NAMES))
    again = run_all(host)[first]
    assert again.revision == 3
    ready(host, again)
    assert len(stopped(host, starts)) == 1


def test_one_bad_revision_after_another_takes_no_more_away(town):
    """Who was on the way to the last one is so to the next: with its process or without."""
    client, host, starts = rolling(town)
    (first,) = stopped(host, starts)
    for nice in (2, 3):
        host.end(run_all(host)[first], code=1)  # it waits for its restart
        apply(client, *(entry(name, nice=nice) for name in NAMES))
        assert not host.take(Stop)
    running = run_all(host)[first]
    apply(client, *(entry(name, nice=4) for name in NAMES))
    (stop,) = host.take(Stop)
    assert stop.token == running.token, "who has proved nothing is not missed"
    host.end(running, stop.reason, code=0)
    assert run_all(host)[first].revision == 5
    assert not host.take(Stop)
    town.pass_time(limits.healthy_s + 1)
    assert len(stopped(host, starts)) == 1


def test_who_said_ready_is_waited_for_over_several_revisions(town):
    client, host = town.client(), town.host()
    apply(client, entry("a"), entry("b"))
    starts = run_all(host)
    for start in starts.values():
        ready(host, start)
    apply(client, entry("a", nice=1), entry("b", nice=1))
    (first,) = stopped(host, starts)
    second = run_all(host)
    apply(client, entry("a", nice=2), entry("b", nice=2))
    assert stopped(host, second) == [first]
    again = run_all(host)[first]
    town.pass_time(10 * limits.healthy_s)
    assert not host.take(Stop)
    ready(host, again)
    assert len(stopped(host, starts)) == 1


def test_the_pace_of_a_rollout_can_be_changed(town):
    client, host, starts = rolling(town)
    assert len(stopped(host, starts)) == 1
    same = apply(client, *(entry(name, nice=1) for name in NAMES), max_unavailable=3)
    assert same.unchanged == len(NAMES) and not same.changes
    assert len(stopped(host, starts)) == 2
    town.crash()
    rows = {row.name: row.max_unavailable for row in town.disk.specs.values()}
    assert set(rows.values()) == {3}


def test_a_new_master_goes_on_with_the_rollout(town):
    _, host, starts = rolling(town)
    (first,) = stopped(host, starts)
    again = host.one(Start)
    host.say(Started(worker=host.running(again)))
    town.crash()
    client, host = town.client(), town.host(settle=False)
    live = [start for name, start in starts.items() if name != first] + [again]
    host.settle([host.running(start) for start in live], highest_token=again.token)
    assert not host.take(Stop), "the first has to prove itself again"
    town.pass_time(limits.healthy_s + 1)
    assert len(stopped(host, starts)) == 1
    assert client.status(first).running_revision == 2


def test_a_killed_rollout_stops_nobody_twice(town):
    _, host, starts = rolling(town)
    stop = host.one(Stop)
    town.crash()
    host = town.host(settle=False)
    host.settle([host.running(start) for start in starts.values()], highest_token=4)
    (again,) = host.take(Stop)
    assert (again.token, again.reason) == (stop.token, stop.reason)


def test_whoever_ends_meanwhile_takes_the_new_revision_along(town):
    client, host, starts = rolling(town)
    host.take(Stop)
    host.end(starts["d"], code=1)  # by itself: it comes back after its restart_time
    town.pass_time(6)
    assert run_all(host)["d"].revision == 2
    assert client.status("d").running_revision == 2


def test_terminated_and_held_ones_do_not_hold_up_the_others(town):
    client, host, starts = rolling(town)
    stop = host.one(Stop)
    first = next(name for name in NAMES if starts[name].token == stop.token)
    client.terminate(first)
    host.end(starts[first], stop.reason, code=0)
    second = host.one(Stop)
    name = next(name for name in NAMES if starts[name].token == second.token)
    client.ask(Hold, ref=name)
    host.end(starts[name], second.reason, code=0)
    assert len(stopped(host, starts)) == 1


def test_a_worker_that_is_moved_leaves_its_old_host(town):
    client, old = town.client(), town.host("b")
    new = town.host("c")
    apply(client, entry("a", host="b"))
    start = run_all(old)["a"]
    apply(client, entry("a", host="c"))
    assert town.core.registry.load("c") == 1
    assert not new.take(Start), "not before its end on b is confirmed"
    old.obey_stop(start)
    assert new.one(Start).revision == 2
    assert town.core.registry.load("b") == 0


def test_d8_a_registration_is_durable_at_once_and_not_withdrawn_by_its_registrant(town):
    """PostgreSQL: a registration does not belong to the transaction that made it. posthouse: what
    is acknowledged is durable by itself, whatever becomes of the client that asked for it."""
    client = town.client()
    committed: list[int] = []
    town.on_committed = lambda: committed.append(len(town.disk.specs))
    answer = client.ask(Register, spec=entry("w").spec)
    assert committed[-1] == 1
    client.link = None  # it is gone without a word
    town.crash()
    assert town.client().status(str(answer.handle.id)).name == "w"


def test_a_full_disk_puts_a_rollout_off(town):
    """Nobody is stopped who could not be started again."""
    _, host, starts = rolling(town)
    (first,) = stopped(host, starts)
    again = run_all(host)[first]
    town.handle(Space(Room.LOW, "disk", 1))
    ready(host, again)
    assert not host.take(Stop)
    town.handle(Space(Room.AMPLE, "disk", 1))
    assert len(stopped(host, starts)) == 1
