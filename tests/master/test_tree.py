"""Workers whose fence is a tree: under which warden, and what the end of a lease proves."""

from typing import Any

import pytest

from posthouse.messages import Start
from posthouse.states import SHMEM_ACCESS
from posthouse_master.leases import LeasePolicy, lost_after_s

L = 10.0
BOTH = ["process", "tree"]
PROGRAM = {"main": "posthouse.exec", "main_arg": ["/bin/true"]}


@pytest.fixture
def leased(towns: Any) -> Any:
    """A town whose leases have deadlines."""
    return towns.Town(towns.Policy(lease=LeasePolicy(lease_s=L)))


def ready(town: Any, name: str = "a", **offer: Any) -> Any:
    host = town.host(name, allow_exec=True, users=["www"], **offer)
    town.hold(host)
    return host


def wardens(host: Any) -> dict[str, str]:
    return {start.spec["name"]: start.warden for start in host.take(Start)}


def test_what_leaves_its_process_starts_under_the_tree_warden(leased: Any) -> None:
    host, client = ready(leased, fences=BOTH), leased.client()
    client.register("function")
    client.register("program", **PROGRAM)
    client.register("user", run_as="www")
    client.register("asked", fence="tree")
    client.register("loose", fence="process", **PROGRAM)
    client.register("kept", host="a", **PROGRAM)
    client.register("kept-tree", host="a", fence="tree")  # kept: it needs no fence at all
    assert wardens(host) == {
        "function": "fenced",
        "program": "tree",
        "user": "tree",
        "asked": "tree",
        "loose": "fenced",
        "kept": "kept",
        "kept-tree": "kept",
    }


def test_where_no_lease_has_a_deadline_only_who_asks_gets_a_tree(town: Any) -> None:
    host, client = ready(town, fences=BOTH), town.client()
    client.register("program", **PROGRAM)
    client.register("asked", fence="tree", **PROGRAM)
    assert wardens(host) == {"program": "fenced", "asked": "tree"}


def test_a_host_that_cannot_says_why(leased: Any) -> None:
    host, client = ready(leased, fences=["process"], no_tree="no CAP_SYS_ADMIN"), leased.client()
    client.register("program", **PROGRAM)
    client.register("asked", fence="tree")
    assert not host.take(Start)
    why = "it offers no fence 'tree' (no CAP_SYS_ADMIN)"
    assert f"{why}, which programs and run_as need" in client.status("program").reason
    assert why in client.status("asked").reason
    client.register("kept", host="a", fence="tree")
    assert wardens(host) == {"kept": "kept"}


def test_a_domain_under_a_tree_takes_who_asks_for_less(leased: Any) -> None:
    host, client = ready(leased, fences=BOTH), leased.client()
    client.register("first", fence="tree", flags=SHMEM_ACCESS)
    client.register("second", flags=SHMEM_ACCESS)
    client.register("other", crash_domain="other", flags=SHMEM_ACCESS)
    client.register("late", crash_domain="other", fence="tree", flags=SHMEM_ACCESS)
    assert wardens(host) == {"first": "tree", "second": "tree", "other": "fenced"}
    assert "lives under its fenced warden" in client.status("late").reason
    assert "needs the tree one (fence)" in client.status("late").reason


def test_a_lease_s_end_proves_nothing_of_what_no_tree_guards(towns: Any) -> None:
    """Started on a single machine, where nobody needs a fence; then another one joins, and the
    first is cut off. The function has ended with its process; of the program nobody knows what it
    has started, so it runs nowhere else before its host is heard, or said to be dead."""
    town = towns.Town(towns.Policy(lease=LeasePolicy(lease_s=L, local_boot_id="here")))
    host, client = ready(town, fences=BOTH, boot_id="here"), town.client()
    for name, more in (("function", {}), ("program", PROGRAM)):
        client.register(name, restart_time=0, **more)
        host.run()
    other = ready(town, "b", fences=BOTH, boot_id="there")
    town.hold(host, other)
    town.hold(other, seconds=lost_after_s(L) + 1.0)
    assert wardens(other) == {"function": "fenced"}
    status = town.client().status("program")
    assert (status.host, status.dead_for_sure_in_s) == ("a", None)
