"""Static registrations in the core: what the configuration and its libraries want at a start."""

from typing import Any

import pytest

from posthouse import limits
from posthouse.messages import (
    Apply,
    Declared,
    Done,
    Failed,
    Hold,
    ListHosts,
    ListWorkers,
    Register,
    Restart,
    Start,
    Started,
    Stop,
)
from posthouse.spec import BackgroundWorker
from posthouse_master.effects import (
    BadEntry,
    Configured,
    Room,
    Space,
    StaticEntry,
    StaticSource,
)


def entry(name: str = "w", replicas: Any = None, **values: Any) -> StaticEntry:
    spec = BackgroundWorker(name=name, **({"main": "acme.jobs:main"} | values))
    declared = Declared(spec=spec.to_wire(), replicas=replicas)
    return StaticEntry(worker=declared, where=f"master.toml:{len(name)}")


def tables(*entries: StaticEntry, bad: tuple[BadEntry, ...] = ()) -> StaticSource:
    return StaticSource(source="config", entries=entries, bad=bad)


def library(name: str, *entries: StaticEntry, failed: str = "") -> StaticSource:
    made = tuple(StaticEntry(worker=e.worker, where=f"library {name}") for e in entries)
    return StaticSource(source=f"library:{name}", entries=made, failed=failed)


def begin(town: Any, *sources: StaticSource, libraries_named: bool = True) -> None:
    """The next master begins with this configuration, as the shell has it begin."""
    town.crash()
    town.handle(Configured(sources=sources, libraries_named=libraries_named))


def run_all(host: Any) -> dict[str, Start]:
    starts = {start.spec["name"]: start for start in host.take(Start)}
    for pid, start in enumerate(starts.values(), 100):
        host.say(Started(worker=host.running(start, pid)))
    return starts


def back(town: Any, *running: tuple[Start, int]) -> Any:
    """The host joins the next master, with the processes that it has had all the time."""
    host = town.agent("b")
    host.open(settle=False)
    host.settle(running=[host.running(start, pid) for start, pid in running])
    return host


def names(client: Any) -> list[str]:
    return [info.spec["name"] for info in client.ask(ListWorkers).workers]


def reports(client: Any) -> list[str]:
    found: list[str] = client.ask(ListHosts).reports
    return found


# --- where it is possible ------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["config", "library:acme.jobs"])
def test_s1_no_client_registers_statically(town, source):
    """PostgreSQL: elsewhere than in the postmaster, while it preloads libraries, a line in the log
    or nothing at all, and the registration is ignored. Healed: refused with the reason."""
    client = town.client()
    spec = BackgroundWorker(name="w", main="acme.jobs:main").to_wire()
    for request in ((Register, {"spec": spec}), (Apply, {"workers": [Declared(spec=spec)]})):
        answer = client.ask(request[0], source=source, **request[1])
        assert isinstance(answer, Failed)
        assert (answer.code, "posthouse_init" in answer.message) == ("not_permitted", True)
    assert names(client) == []


def test_s2_a_static_worker_has_a_handle_like_any_other(town):
    """PostgreSQL: RegisterBackgroundWorker returns nothing, so nobody can ask for a static worker
    or end it. Healed."""
    begin(town, tables(entry("a")), library("acme", entry("b")))
    host, client = town.host(), town.client()
    starts = run_all(host)
    status = client.status("b")
    assert status.pid is not None
    assert client.status(str(status.handle.id)).name == "b"
    assert isinstance(client.ask(Restart, ref="a"), Done)
    assert client.terminate("b").changed
    stops = {stop.token: str(stop.reason) for stop in host.take(Stop)}
    assert stops == {starts["a"].token: "restart", starts["b"].token: "terminate"}


def test_s5_static_registrations_are_made_before_anybody_is_served(town):
    """PostgreSQL: libraries, then slots, then the first start. Kept: one input before all others,
    whose effects are one transaction; the tables' slots come first, then each library's."""
    town.crash()
    before = town.commits
    configured = Configured(
        sources=(
            tables(entry("t1"), entry("t2")),
            library("x", entry("x1")),
            library("y", entry("y1")),
        ),
        libraries_named=True,
    )
    town.handle(configured)
    assert town.commits == before + 1
    client, host = town.client(), town.host()
    slots = [info.status.handle.slot for info in client.ask(ListWorkers).workers]
    assert (names(client), slots) == (["t1", "t2", "x1", "y1"], [0, 1, 2, 3])
    assert [start.spec["name"] for start in host.take(Start)] == ["t1", "t2", "x1", "y1"]


def test_s6_a_later_registration_in_a_static_slot_has_another_generation(town):
    """PostgreSQL: static slots carry generation 0. Healed: they rise like all others, so the handle
    of a static worker never reaches what takes its slot afterwards."""
    begin(town, tables(entry("a")))
    handle = town.client().status("a").handle
    begin(town, tables(entry("b")))
    client = town.client()
    assert client.status("b").handle.slot == handle.slot
    assert client.status("b").handle.generation == handle.generation + 1
    assert client.status(str(handle.id)).name == "a"


# --- too many, and wrong ones --------------------------------------------------------------------


def test_s3_the_surplus_is_reported_by_name_and_the_rest_is_registered(towns):
    """PostgreSQL: a running count of the records that passed; beyond max_worker_processes a line in
    the log, and the server starts. Kept, and told where people look."""
    town = towns.Town(towns.Policy(max_worker_processes=3))
    begin(
        town,
        tables(entry("a"), entry("bad", notify=True), entry("b")),
        library("x", entry("c"), entry("d"), entry("e")),
    )
    client = town.client()
    assert names(client) == ["a", "b", "c"]  # what did not pass does not count
    told = reports(client)
    for name in ("d", "e"):
        (line,) = (line for line in told if f"'{name}'" in line)
        assert line.startswith(
            f"skipped: library:x, worker '{name}': library x: all 3 slots of max_"
        )
        assert "taken, by a, b and by 1 that are declared before it" in line
    skipped = [note.fields["worker"] for note in town.notes if note.name == "static.skipped"]
    assert skipped == ["bad", "d", "e"]


def test_s3_a_full_host_refuses_only_what_is_pinned_to_it(towns):
    """posthouse has a limit for each host besides; one that has not joined yet has room."""
    town = towns.Town(towns.Policy(max_worker_processes_per_host=1))
    town.host()
    begin(
        town,
        tables(entry("a", host="b"), entry("b", host="b"), entry("c"), entry("d", host="new")),
    )
    client = town.client()
    assert names(client) == ["a", "c", "d"]
    (told,) = reports(client)
    assert "'b'" in told and "host b" in told


def test_f16_a_static_worker_may_not_ask_for_notification(town):
    """PostgreSQL: LOG, and the record is dropped. Kept, and told where people look."""
    begin(town, tables(entry("bad", notify=True), entry("good")))
    client = town.client()
    assert names(client) == ["good"]
    (told,) = reports(client)
    assert "only dynamic ones can request notification" in told
    assert "master.toml:3" in told


def test_whatever_is_wrong_with_a_record_costs_that_record_alone(town):
    town.client().register("taken")
    begin(
        town,
        tables(
            entry("many", unique=False),
            entry("taken"),
            StaticEntry(worker=Declared(spec={"name": "x", "colour": 1}), where="master.toml:9"),
            StaticEntry(worker=Declared(spec={}), where="master.toml:10"),
            entry("twice"),
            entry("twice", nice=1),
            entry("web:1"),
            entry("web", replicas=2),
            entry("good"),
        ),
    )
    client = town.client()
    assert names(client) == ["taken", "twice", "web:1", "good"]
    told = reports(client)
    for words in ("'many'", "already: 0.1", "colour", "master.toml:10", "'twice'", "'web:1'"):
        assert any(words in line for line in told), words
    assert len(told) == 7  # one more: who has no name could be any
    assert client.status("twice").revision == 1


def test_far_too_many_records_of_one_source_cost_that_source_alone(town):
    flood = StaticEntry(worker=Declared(spec={"name": "x", "main": "m:f"}), where="library x")
    flooded = StaticSource(source="library:x", entries=(flood,) * 10_001)
    begin(town, flooded, library("y", entry("good")))
    client = town.client()
    assert names(client) == ["good"]
    assert "10001 workers are declared" in reports(client)[0]


def test_reports_are_bounded_and_the_log_has_all(town):
    begin(town, tables(*(entry(f"w{number}", notify=True) for number in range(100))))
    told = reports(town.client())
    assert len(told) == limits.reports_max + 1
    assert told[-1] == "and 68 more, which are in the master's log"
    assert all(len(line) <= limits.report_chars_max for line in told)
    assert [note.name for note in town.notes].count("static.skipped") == 100


def test_reports_are_one_line_that_no_terminal_obeys(town):
    begin(town, library("x", failed="library x: \x1b[2J\x07wipe\nout"))
    assert reports(town.client()) == ["skipped: library:x: library x:  [2J wipe out"]


def test_a_library_with_the_longest_name_is_listed_like_any_other(town):
    begin(town, library("a" * limits.name_bytes_max, entry("w", labels=("x",))))
    client = town.client()
    (info,) = client.ask(ListWorkers).workers
    assert info.source == info.by == "library:" + "a" * limits.name_bytes_max
    client.follow(sequence=0)
    assert {event.by for event in client.events()} == {info.by}


def test_a_master_that_begins_well_has_nothing_to_report(town):
    begin(town, tables(entry("bad", notify=True)))
    assert reports(town.client())
    begin(town, tables(entry("good")))
    assert reports(town.client()) == []


# --- the next start ------------------------------------------------------------------------------


def test_d9_c9_the_same_content_is_nothing_at_the_next_start(town):
    """PostgreSQL: static workers are made again at every start of the postmaster, and run anew.
    Healed: their registrations are there already, and their processes do not notice."""
    wanted = (tables(entry("a"), entry("web", replicas=2)), library("x", entry("c")))
    begin(town, *wanted)
    starts = run_all(town.host())
    rows, token = len(town.log()), town.core.registry.token
    begin(town, *wanted)
    assert len(town.log()) == rows
    host = back(town, *((start, pid) for pid, start in enumerate(starts.values(), 100)))
    assert not host.take(Stop) and not host.take(Start)
    assert town.core.registry.token == token
    client = town.client()
    assert {name: client.status(name).revision for name in names(client)} == dict.fromkeys(
        ("a", "web:0", "web:1", "c"), 1
    )


def test_other_content_is_a_revision_and_restarts_after_the_confirmed_exit(town):
    begin(town, tables(entry("a"), entry("same")))
    starts = run_all(town.host())
    begin(town, tables(entry("a", nice=3), entry("same")))
    host = back(town, (starts["a"], 100), (starts["same"], 101))
    (stop,) = host.take(Stop)
    assert (stop.token, str(stop.reason)) == (starts["a"].token, "apply")
    assert not host.take(Start)  # not beside the old one
    host.end(starts["a"], stop.reason, code=1)
    again = host.one(Start)
    assert (again.slot, again.generation, again.revision) == (0, 1, 2)
    assert again.spec["nice"] == 3


def test_what_is_removed_is_terminated_and_comes_back_with_being_named_again(town):
    begin(town, tables(entry("a"), entry("b")), library("x", entry("c")))
    starts = run_all(town.host())
    begin(town, tables(entry("a")))
    host = back(town, *((start, pid) for pid, start in enumerate(starts.values(), 100)))
    stops = {stop.token: stop for stop in host.take(Stop)}
    assert set(stops) == {starts["b"].token, starts["c"].token}
    for name in ("b", "c"):
        host.end(starts[name], stops[starts[name].token].reason, code=0)
    assert names(town.client()) == ["a"]
    begin(town, tables(entry("a"), entry("b")), library("x", entry("c")))
    assert names(town.client()) == ["a", "b", "c"]


def test_a_library_that_fails_loses_nothing_that_it_registered_before(town):
    """Nothing is ended because something failed: today's mistake does not undo yesterday's word."""
    begin(town, library("x", entry("a"), entry("b")), library("y", entry("c")))
    starts = run_all(town.host())
    begin(town, library("x", failed="library x: ZeroDivisionError"), library("y"))
    host = back(town, *((start, pid) for pid, start in enumerate(starts.values(), 100)))
    (stop,) = host.take(Stop)
    assert stop.token == starts["c"].token  # y has answered: it wants nothing any more
    client = town.client()
    assert reports(client) == ["skipped: library:x: library x: ZeroDivisionError"]
    assert client.status("a").pid == 100


def test_a_record_that_has_become_wrong_keeps_what_it_was(town):
    wanted = (entry("a"), entry("web", replicas=2), entry("gone"))
    begin(town, tables(*wanted))
    starts = run_all(town.host())
    bad = BadEntry(name="a", reason="master.toml:3: nice is 99")
    begin(town, tables(entry("web", replicas=2, notify=True), bad=(bad,)))
    processes = [(start, pid) for pid, start in enumerate(starts.values(), 100)]
    host = back(town, *processes)
    (stop,) = host.take(Stop)
    assert stop.token == starts["gone"].token
    client = town.client()
    assert {client.status(name).revision for name in ("a", "web:0", "web:1")} == {1}
    # The group itself is still there for the next start.
    assert town.core.groups.get("web") is not None


def test_a_record_without_a_name_could_be_any_so_nothing_is_ended(town):
    begin(town, tables(entry("a"), entry("b")))
    starts = run_all(town.host())
    nameless = StaticEntry(worker=Declared(spec={"main": "m:f"}), where="library x")
    begin(town, StaticSource(source="config", entries=(entry("b"), nameless)))
    assert "nothing of it is ended" in reports(town.client())[1]
    begin(town, tables(entry("b"), bad=(BadEntry(name="", reason="name is 7"),)))
    host = back(town, (starts["a"], 100), (starts["b"], 101))
    assert not host.take(Stop)
    told = reports(town.client())
    assert told == [
        "skipped: config: name is 7",
        "skipped: config: nothing of it is ended, as one of it has no name",
    ]


def test_without_a_configuration_nothing_is_ended(town):
    """An absent file is no empty one."""
    begin(town, tables(entry("a")), library("x", entry("b")))
    begin(town, libraries_named=False)
    assert names(town.client()) == ["a", "b"]
    begin(town, tables())
    assert names(town.client()) == []  # a file was read, and names neither


def test_static_workers_of_one_source_are_no_concern_of_another(town):
    client = town.client()
    client.register("by-hand")
    client.ask(Apply, source="shop", workers=[entry("applied").worker])
    begin(town, tables(entry("a")))
    assert names(town.client()) == ["by-hand", "applied", "a"]
    begin(town, tables())
    assert names(town.client()) == ["by-hand", "applied"]


# --- what has ended ------------------------------------------------------------------------------


def test_c9_what_exited_0_is_not_started_by_the_next_master(town):
    """PostgreSQL: static workers that have unregistered are made again at the next start of the
    postmaster. Healed, as for `apply`: the same content has done what was asked for; other content
    is another wish."""
    begin(town, tables(entry("once")))
    host = town.host()
    host.end(run_all(host)["once"], code=0)
    begin(town, tables(entry("once")))
    assert names(town.client()) == []
    begin(town, tables(entry("once", main_arg=2)))
    assert names(town.client()) == ["once"]


def test_what_somebody_terminated_is_not_brought_back_by_a_start(town):
    begin(town, tables(entry("a")))
    assert town.client().terminate("a").changed
    begin(town, tables(entry("a")))
    assert names(town.client()) == []
    begin(town, tables(entry("a", nice=1)))
    assert names(town.client()) == ["a"]


def test_a_held_static_worker_stays_held(town):
    begin(town, tables(entry("a")))
    assert isinstance(town.client().ask(Hold, ref="a"), Done)
    begin(town, tables(entry("a", nice=1)))
    host, client = town.host(), town.client()
    assert not host.take(Start)
    assert client.status("a").revision == 2


# --- the disk, and one on each host --------------------------------------------------------------


def test_on_a_full_disk_nothing_is_registered_and_nothing_ended(town):
    begin(town, tables(entry("a")))
    town.crash()
    town.handle(Space(Room.LOW, "/", 0))
    town.handle(Configured(sources=(tables(entry("b")),), libraries_named=True))
    client = town.client()
    assert names(client) == ["a"]
    assert "the disk is full" in reports(client)[0]


def test_one_on_each_host_comes_with_the_hosts(town):
    begin(town, tables(entry("probe", replicas="each-host")))
    town.host("b")
    town.host("c")
    assert names(town.client()) == ["probe:b", "probe:c"]
    begin(town, tables(entry("probe", replicas="each-host")))
    assert names(town.client()) == ["probe:b", "probe:c"]
    begin(town, tables())
    client = town.client()
    assert {str(client.status(name).stopping) for name in names(client)} == {"terminate"}
    assert town.core.groups.get("probe") is None
