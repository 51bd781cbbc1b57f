"""Workers that go on while their host is cut off: under which warden, and never elsewhere."""

from typing import Any

import pytest

from posthouse import limits
from posthouse.messages import Start
from posthouse.spec import BackgroundWorker
from posthouse.states import SHMEM_ACCESS, StopReason
from posthouse_master.leases import LeasePolicy, lost_after_s
from posthouse_master.placement import keeps

L = 10.0


@pytest.mark.parametrize(
    ("record", "kept"),
    [
        ({}, False),
        ({"host": "a"}, True),
        ({"host": "a", "on_partition": "stop"}, False),
        ({"host": "a", "on_partition": "keep"}, True),
        ({"labels": ("x",)}, False),
    ],
)
def test_who_is_kept(record: dict[str, Any], kept: bool) -> None:
    assert keeps(BackgroundWorker(name="w", main="m:f", **record)) is kept


def test_a_pinned_worker_is_started_by_the_kept_warden(town: Any) -> None:
    host, client = town.host("a"), town.client()
    client.register("moves")
    client.register("pinned", host="a")
    client.register("stops", host="a", on_partition="stop")
    assert {s.spec["name"]: s.warden for s in host.take(Start)} == {
        "moves": "fenced",
        "pinned": "kept",
        "stops": "fenced",
    }


def test_a_crash_domain_lives_under_one_warden_and_who_says_nothing_yields(town: Any) -> None:
    host, client = town.host("a"), town.client()
    shmem = {"flags": SHMEM_ACCESS}
    client.register("first", **shmem)
    client.register("goes-along", host="a", **shmem)
    client.register("other", host="a", crash_domain="other", **shmem)
    found = {s.spec["name"]: s.warden for s in host.take(Start)}
    assert found == {"first": "fenced", "goes-along": "fenced", "other": "kept"}
    # Without deadlines nothing could run elsewhere: it may be kept with its domain.
    client.register("too", crash_domain="other", **shmem)
    assert [s.warden for s in host.take(Start)] == ["kept"]
    # Who says what he wants does not yield, and waits until the domain is empty.
    client.register("firm", host="a", on_partition="keep", **shmem)
    assert not host.take(Start)
    status = client.status("firm")
    assert "crash domain 'default' lives under its fenced warden" in status.reason
    assert "on_partition" in status.reason


def test_who_may_move_is_not_kept_with_its_domain_where_leases_have_deadlines(towns: Any) -> None:
    town = towns.Town(towns.Policy(lease=LeasePolicy(lease_s=L)))
    host, client = town.host("a", fences=["process"]), town.client()
    town.hold(host)
    client.register("pinned", host="a", flags=SHMEM_ACCESS)
    host.run()
    client.register("moves", flags=SHMEM_ACCESS)
    assert not host.take(Start)
    assert "lives under its kept warden" in client.status("moves").reason


def test_what_is_kept_outlives_its_hosts_lease(towns: Any) -> None:
    town = towns.Town(towns.Policy(lease=LeasePolicy(lease_s=L)))
    host, client = town.host("a", fences=["process"]), town.client()
    town.host("b", fences=["process"])
    town.hold(host)
    client.register("pinned", host="a")
    start = host.run()
    town.hold(seconds=lost_after_s(L) + limits.silence_s + 1)
    status = town.client().status("pinned")
    assert (str(status.state), status.host, status.reachable) == ("started", "a", False)
    assert status.dead_for_sure_in_s is None
    host.open(settle=False)
    host.settle(running=[host.running(start)])
    status = town.client().status("pinned")
    assert (status.incarnation, status.reachable) == (1, True)
    assert StopReason.UNKNOWN not in {event.stop for event in town.log()}
