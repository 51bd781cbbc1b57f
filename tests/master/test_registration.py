"""Registering: D1-D15, what is refused and why, what is listed."""

from posthouse import limits
from posthouse.messages import (
    Failed,
    GetStatus,
    Goodbye,
    HostsPage,
    ListHosts,
    ListWorkers,
    Register,
    Start,
    Stop,
    Terminate,
)


def test_d1_and_the_seed_a_registration_is_answered_with_its_handle(town):
    client = town.client()
    answer = client.register("w")
    assert answer.handle.id.registry == town.core.term.registry
    assert (answer.handle.slot, answer.handle.generation, answer.name) == (0, 1, "w")
    [event] = town.log("0.1")
    assert (event.kind, event.sequence) == ("registered", answer.sequence)
    assert event.by == "client:local"


def test_d2_every_refusal_says_why(town):
    client = town.client()
    answer = client.ask(Register, spec={"name": "w", "main": "m:f", "restart_time": -2.0})
    assert isinstance(answer, Failed)
    assert (answer.code, answer.detail["field"]) == ("invalid_field", "restart_time")
    assert answer.detail["value"] == "-2.0"
    assert "NEVER_RESTART" in answer.detail["rule"]
    answer = client.ask(Register, spec={"name": "w", "main": "m:f", "colour": 1})
    assert (answer.code, answer.detail["field"]) == ("invalid_field", "colour")
    assert not town.log()
    assert not town.disk.specs


def test_d3_the_pool_is_of_registrations_and_the_refusal_names_the_holders(towns):
    town = towns.Town(towns.Policy(max_worker_processes=2))
    client = town.client()
    client.register("one")
    client.register("two")
    answer = client.register_failed("three")
    assert answer.code == "no_free_slot"
    assert answer.detail == {
        "limit": "max_worker_processes",
        "value": 2,
        "holders": ["one", "two"],
    }
    client.terminate("one")
    assert client.register("three").handle.id.short == "0.2"


def test_d4_generations_survive_the_master_and_the_registration(town, monkeypatch):
    monkeypatch.setattr(limits, "retired_max", 1)
    client = town.client()
    for _ in range(3):
        client.register("w")
        client.terminate("w")
    assert sorted(town.disk.specs) == [(0, 3)]
    town.crash()
    assert town.client().register("w").handle.id.short == "0.4"


def test_d5_row_slot_and_first_event_are_one_commit_before_the_answer(town):
    """PostgreSQL fills the record, then marks the slot as used, then wakes the postmaster. Kept:
    all of it is one transaction, and neither the registrant nor a watcher hears of less."""
    client, watcher = town.client(), town.client()
    watcher.follow(sequence=-1)
    commits = []
    town.on_commit = commits.append
    heard = []
    town.on_committed = lambda: heard.append((list(client.inbox), watcher.events()))
    client.register("w")
    [ops] = commits
    assert {"PutSlot", "PutRegistration", "PutState", "PutEvent"} <= {
        type(op).__name__ for op in ops
    }
    assert heard == [([], [])]  # nothing before it was durable
    assert [str(event.kind) for event in watcher.events()] == ["registered"]


def test_d10_healed_a_handle_is_a_text_that_may_be_handed_to_anybody(town):
    """In PostgreSQL a handle is good in the process that registered. Healed: another client, with
    another key, after the registrant has gone and the master has been restarted."""
    registrant = town.client("client:deploy")
    text = str(registrant.register("w").handle.id)
    registrant.say(Goodbye(reason="exits"))
    other = town.client("client:night")
    assert other.status(text).name == "w"
    town.crash()
    assert town.client("client:night").terminate(text).changed
    assert town.client("client:deploy").status(text).final


def test_d9_a_registration_outlives_its_registrant_and_the_master(town):
    town.client().register("w")
    town.crash()
    host = town.host("b")
    assert host.run().spec == {"name": "w", "main": "acme.jobs:main"}


def test_c9_dynamic_registrations_survive_a_restart_of_the_master(town):
    """PostgreSQL forgets them with the postmaster, and its workers die; healed on purpose: they are
    durable, with their handle, what became of them, and a restart that is due."""
    client, host = town.client(), town.host("b")
    handle = str(client.register("w", restart_time=2).handle.id)
    start = host.run()
    other = str(client.register("due", restart_time=2).handle.id)
    host.end(host.run(), code=1)
    town.crash()
    client, host = town.client(), town.host("b", settle=False)
    host.settle(running=[host.running(start)], highest_token=2)
    assert str(client.status(handle).state) == "started"
    assert "restarts in" in client.status(other).reason
    town.pass_time(2.5)
    assert [(start.slot, start.incarnation) for start in host.take(Start)] == [(1, 2)]


def test_d11_a_stale_handle_is_stopped_never_an_error(town, monkeypatch):
    monkeypatch.setattr(limits, "retired_max", 0)
    client = town.client()
    handle = str(client.register("w").handle.id)
    client.terminate("w")
    client.register("w")
    status = client.status(handle)
    assert (str(status.state), status.final, status.reason) == (
        "stopped",
        True,
        "no longer registered",
    )
    other = "cd" * 16 + ":0.1"
    assert client.status(other).reason == "a handle of another registry"


def test_d12_terminating_a_stale_handle_is_a_no_op(town, monkeypatch):
    monkeypatch.setattr(limits, "retired_max", 0)
    client = town.client()
    handle = str(client.register("w").handle.id)
    client.terminate("w")
    client.register("w")
    answer = client.terminate(handle)
    assert (answer.changed, answer.message) == (False, "no longer registered")
    assert not client.status("w").final


def test_d15_the_slot_is_free_before_anyone_is_told_of_the_exit(towns):
    town = towns.Town(towns.Policy(max_worker_processes=1))
    host, client = town.host("b"), town.client()
    client.register("w")
    start = host.run()
    batches = []
    town.on_commit = batches.append
    host.end(start, code=0)
    town.on_commit = None
    [ops] = [ops for ops in batches if ops]
    kinds = [type(op).__name__ for op in ops]
    assert kinds.count("PutEvent") == 2  # exited, unregistered
    assert kinds.count("PutState") == 1
    assert client.register("next").handle.id.short == "0.2"


def test_a_live_name_is_taken_and_the_refusal_has_its_handle(town):
    client = town.client()
    first = client.register("w")
    answer = client.register_failed("w")
    assert answer.code == "already_registered"
    assert answer.detail["handle"] == str(first.handle.id)
    client.register("w", unique=False)
    client.terminate(str(first.handle.id))
    assert client.register_failed("w").code == "already_registered"


def test_an_unknown_host_is_refused_with_those_that_are_known(town):
    client = town.client()
    assert client.register_failed("w", host="b").hint == "none has joined yet"
    town.host("b")
    town.host("a")
    answer = client.register_failed("w", host="c")
    assert (answer.code, answer.detail) == ("unknown_host", {"hosts": ["a", "b"], "host": "c"})
    town.crash()
    client = town.client()
    client.register("w", host="b")  # known for ever, heard or not


def test_a_full_host_is_refused_with_its_limit(town):
    town.host("b", slots=1)
    client = town.client()
    client.register("one", host="b")
    answer = client.register_failed("two", host="b")
    assert answer.code == "no_free_slot"
    assert answer.detail["limit"] == "max_worker_processes of host b"
    assert (answer.detail["value"], answer.detail["holders"]) == (1, ["one"])
    client.register("anywhere")
    assert "all 1 slots of its max_worker_processes are taken" in client.status("anywhere").reason


def test_the_clusters_bound_per_host_counts_as_well(towns):
    town = towns.Town(towns.Policy(max_worker_processes_per_host=1))
    town.host("b", slots=50)
    client = town.client()
    client.register("one", host="b")
    assert client.register_failed("two", host="b").detail["value"] == 1


def test_a_viewer_may_read_and_nothing_else(town):
    town.client("client:deploy").register("w", env={"TOKEN": "s"}, main_arg="s", extra=b"s")
    viewer = town.client("viewer:grafana")
    assert viewer.status("w").name == "w"
    for answer in (
        viewer.register_failed("other"),
        viewer.ask(Terminate, ref="w"),
    ):
        assert (answer.code, answer.hint) == ("not_permitted", "use the key of a client")
    assert viewer.ask(GetStatus, ref="w").spec == {"name": "w", "main": "acme.jobs:main"}
    full = town.client("client:deploy").ask(GetStatus, ref="w").spec
    assert (full["env"], full["main_arg"], full["extra"]) == ({"TOKEN": "s"}, "s", b"s")


def test_lists_carry_nothing_that_may_be_secret(town):
    client = town.client()
    client.register("w", env={"TOKEN": "secret"}, main_arg="secret", extra=b"secret")
    page = client.ask(ListWorkers)
    assert "secret" not in repr(page)
    assert "secret" not in repr(town.log())
    assert "secret" not in repr(town.notes)


def test_workers_are_listed_in_pages_with_the_retired_if_asked(town):
    client = town.client()
    for number in range(7):
        client.register(f"w{number}")
    client.terminate("w3")
    client.register("again")
    seen, place, more = [], (-1, 0), True
    while more:
        page = client.ask(ListWorkers, slot=place[0], generation=place[1], limit=3, retired=True)
        seen += [info.status.name for info in page.workers]
        last = page.workers[-1].status.handle
        place, more = (last.slot, last.generation), page.more
    assert seen == ["w0", "w1", "w2", "w3", "again", "w4", "w5", "w6"]
    live = client.ask(ListWorkers)
    assert [info.status.name for info in live.workers] == [n for n in seen if n != "w3"]
    assert not live.more
    assert not any(info.retired for info in live.workers)


def test_a_page_of_workers_is_bounded_in_bytes(town):
    client = town.client()
    for number in range(60):
        client.register(f"w{number}", labels=tuple(f"{n:02}" + "x" * 60 for n in range(32)))
    page = client.ask(ListWorkers)
    assert page.more
    assert 10 < len(page.workers) < 60


def test_hosts_are_listed_by_name_in_pages(town):
    for name in ("c", "a", "b"):
        town.host(name, labels=["gpu"], slots=7)
    client = town.client()
    first = client.ask(ListHosts, limit=2)
    assert isinstance(first, HostsPage)
    assert ([host.name for host in first.hosts], first.more) == (["a", "b"], True)
    rest = client.ask(ListHosts, after="b")
    assert ([host.name for host in rest.hosts], rest.more) == (["c"], False)
    found = first.hosts[0]
    assert (found.reachable, found.labels, found.slots, found.boot_id) == (
        True,
        ["gpu"],
        7,
        "boot-1",
    )


def test_terminate_before_start_frees_the_slot_and_starts_nothing(town):
    client = town.client()
    client.register("w")
    assert client.terminate("w").changed
    assert not client.terminate("w").changed
    host = town.host("b")
    assert not host.take(Start)
    assert not host.take(Stop)
    assert town.kinds("0.1") == ["registered", "unregistered"]
