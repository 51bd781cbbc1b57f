"""Groups: several registrations of one record."""

from typing import Any

import pytest

from posthouse import limits
from posthouse.messages import (
    Applied,
    Apply,
    Declared,
    Drain,
    Failed,
    GroupRegistered,
    ListWorkers,
    RegisterGroup,
    Start,
    Started,
    Stop,
)
from posthouse.spec import BackgroundWorker


def spec(name: str = "web", **values: Any) -> dict[str, Any]:
    return BackgroundWorker(name=name, **({"main": "acme.jobs:main"} | values)).to_wire()


def group(client: Any, replicas: Any, name: str = "web", **values: Any) -> GroupRegistered:
    answer = client.ask(RegisterGroup, spec=spec(name, **values), replicas=replicas)
    assert isinstance(answer, GroupRegistered), answer
    return answer


def refused(client: Any, replicas: Any, **values: Any) -> Failed:
    answer = client.ask(RegisterGroup, spec=spec(**values), replicas=replicas)
    assert isinstance(answer, Failed), answer
    return answer


def members(client: Any, name: str = "web") -> list[str]:
    return [info.status.name for info in client.ask(ListWorkers, group=name).workers]


def run_all(host: Any) -> dict[str, Start]:
    starts = {start.spec["name"]: start for start in host.take(Start)}
    for start in starts.values():
        host.say(Started(worker=host.running(start)))
    return starts


def apply(client: Any, replicas: Any, **values: Any) -> Applied:
    declared = Declared(spec=spec(**values), replicas=replicas)
    answer = client.ask(Apply, source="shop", workers=[declared])
    assert isinstance(answer, Applied), answer
    return answer


def test_members_are_numbered_and_spread(town):
    client, one, two = town.client(), town.host("b"), town.host("c")
    assert group(client, 4).members == 4
    assert members(client) == ["web:0", "web:1", "web:2", "web:3"]
    assert sorted(len(run_all(host)) for host in (one, two)) == [2, 2]
    info = client.ask(ListWorkers, group="web", slot=1, generation=1).workers
    assert [(each.status.name, each.group) for each in info] == [("web:2", "web"), ("web:3", "web")]


def test_t10_a_member_may_run_many_times_beside_others_of_its_record(town):
    """PostgreSQL: the same name may run many times. posthouse: names of live workers are unique;
    several of one record are a group (or say unique=False)."""
    client = town.client()
    group(client, 2)
    assert client.register_failed("web:1").code == "already_registered"
    client.register("twin", unique=False)
    client.register("twin", unique=False)


def test_all_members_or_none(towns):
    town = towns.Town(towns.Policy(max_worker_processes=3))
    client = town.client()
    client.register("web:2")
    assert refused(client, 3).code == "already_registered"
    assert refused(client, 4, name="x").code == "no_free_slot"
    assert town.core.registry.live_count == 1
    assert not town.disk.groups
    group(client, 2)
    assert refused(client, 1).code == "already_registered"


@pytest.mark.parametrize(
    ("replicas", "values", "says"),
    [
        (3, {"name": "n" * limits.name_bytes_max}, "at most 94 bytes, for a group of 3"),
        ("each-host", {"name": "n" * 40}, "at most 31 bytes, for a group of each-host"),
        ("each-host", {"host": "b"}, "left out where there is a member on each host"),
    ],
)
def test_what_cannot_be_a_group_is_refused(town, replicas, values, says):
    told = refused(town.client(), replicas, **values)
    assert (told.code, says in told.message) == ("invalid_field", True), told


def test_each_host_has_one_also_those_that_join_later(town):
    client, one = town.client(), town.host("b")
    group(client, "each-host", labels=())
    assert set(run_all(one)) == {"web:b"}
    later = town.host("c")
    assert set(run_all(later)) == {"web:c"}
    assert members(client) == ["web:b", "web:c"]
    later.open()  # the same host again
    assert members(client) == ["web:b", "web:c"]


def test_only_hosts_that_fit_are_given_a_member(town):
    client = town.client()
    town.host("b")
    town.host("g", labels=["gpu"])
    group(client, "each-host", labels=("gpu",))
    assert members(client) == ["web:g"]


def test_a_member_that_has_ended_is_not_given_to_its_host_again(town):
    client, host, other = town.client(), town.host("b"), town.host("c")
    group(client, "each-host")
    run_all(other)
    host.end(run_all(host)["web:b"], code=0)
    host.open()
    assert not host.take(Start)
    town.crash()
    client, host = town.client(), town.host("b")
    assert not host.take(Start)
    assert members(client) == ["web:c"]


def test_a_master_that_begins_knows_its_groups(town):
    client = town.client()
    town.host("b")
    group(client, "each-host")
    town.crash()
    client, later = town.client(), town.host("c")
    assert set(run_all(later)) == {"web:c"}
    assert members(client) == ["web:b", "web:c"]


def test_a_drained_host_is_given_its_member_when_it_may_work_again(town):
    client, host = town.client(), town.host("b")
    client.ask(Drain, host="b")
    group(client, "each-host")
    assert members(client) == []
    client.ask(Drain, host="b", on=False)
    assert set(run_all(host)) == {"web:b"}


def test_a_group_ends_with_its_last_member(town):
    client, host = town.client(), town.host("b")
    group(client, 2)
    starts = run_all(host)
    client.terminate("web:0")
    host.obey_stop(starts["web:0"])
    assert set(town.disk.groups) == {"web"}
    client.terminate("web:1")
    host.obey_stop(starts["web:1"])
    assert not town.disk.groups
    group(client, 1)


def test_a_full_host_is_told_and_asked_again(towns):
    town = towns.Town(towns.Policy(max_worker_processes_per_host=1))
    client, host = town.client(), town.host("b")
    client.register("x", host="b")
    start = run_all(host)["x"]
    group_made = client.ask(RegisterGroup, spec=spec(), replicas="each-host")
    assert isinstance(group_made, Failed) and group_made.code == "no_free_slot"
    later = town.host("c")
    group(client, "each-host", name="y", labels=("c",))
    assert members(client, "y") == []
    later.open(labels=["c"])
    assert members(client, "y") == ["y:c"]
    host.open(labels=["c"])
    assert members(client, "y") == ["y:c"]
    assert any(note.name == "group.no_slot" for note in town.notes)
    client.terminate("x")
    host.end(start, "terminate", code=0)
    host.open(labels=["c"])
    assert set(members(client, "y")) == {"y:b", "y:c"}


# --- in declarations -----------------------------------------------------------------------------


def test_apply_scales_a_group(town):
    client, host = town.client(), town.host("b")
    assert apply(client, 2).created == 2
    starts = run_all(host)
    answer = apply(client, 3)
    assert [(c.action, c.name) for c in answer.changes] == [("create", "web:2")]
    assert answer.unchanged == 2
    starts |= run_all(host)
    answer = apply(client, 1)
    assert [(c.action, c.name) for c in answer.changes] == [("prune", "web:1"), ("prune", "web:2")]
    for stop in host.take(Stop):
        start = next(s for s in starts.values() if s.token == stop.token)
        host.end(start, stop.reason, code=0)
    assert members(client) == ["web:0"]


def test_apply_revises_all_members_of_each_host(town):
    client = town.client()
    town.host("b")
    town.host("c")
    assert apply(client, "each-host").created == 2
    assert apply(client, "each-host").unchanged == 2
    answer = apply(client, "each-host", nice=1)
    changed = [(c.action, c.name) for c in answer.changes]
    assert changed == [("update", "web:b"), ("update", "web:c")]
    town.host("d")
    assert members(client) == ["web:b", "web:c", "web:d"]
    assert client.status("web:d").revision == 1
    assert apply(client, "each-host", nice=1).unchanged == 3


def test_a_group_that_is_no_longer_declared_is_pruned_and_grows_no_more(town):
    client = town.client()
    town.host("b")
    apply(client, "each-host")
    answer = client.ask(Apply, source="shop", workers=[])
    assert answer.pruned == 1
    assert not town.disk.groups
    town.host("c")
    assert client.ask(ListWorkers, group="web").workers[0].status.name == "web:b"
    assert "web:c" not in members(client)


def test_from_one_to_several(town):
    client = town.client()
    answer = client.ask(Apply, source="shop", workers=[Declared(spec=spec())])
    assert answer.created == 1
    answer = apply(client, 2)
    assert [(c.action, c.name) for c in answer.changes] == [
        ("prune", "web"),
        ("create", "web:0"),
        ("create", "web:1"),
    ]
