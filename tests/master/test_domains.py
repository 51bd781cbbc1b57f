"""In which crash domain a process is: in that of the record with which it was started."""

from dataclasses import replace

import pytest

from posthouse.messages import Apply, Declared, Start, Stop
from posthouse.spec import BackgroundWorker
from posthouse.states import SHMEM_ACCESS

OLD = BackgroundWorker(
    name="w",
    main="acme.jobs:main",
    host="a",
    on_partition="keep",
    flags=SHMEM_ACCESS,
    crash_domain="old",
)


def declare(client, spec):
    applied = client.ask(Apply, source="shop", workers=[Declared(spec=spec.to_wire())])
    assert applied.created + applied.updated == 1


@pytest.mark.parametrize("new", [replace(OLD, crash_domain="new"), replace(OLD, flags=0)])
@pytest.mark.parametrize("masters", [1, 2])
def test_a_revised_worker_is_of_its_old_domain_until_its_process_has_ended(town, new, masters):
    """Else one that asks for another warden is let into a domain that lives under this one."""
    host, client = town.host("a"), town.client()
    declare(client, OLD)
    start = host.run()
    assert start.warden == "kept"
    declare(client, new)
    assert host.take(Stop), "the rollout has begun"
    if masters == 2:
        town.crash()
        host, client = town.agent("a"), town.client()
        host.open(settle=False)
        host.settle(running=[host.running(start)])
        host.take(Stop)
    firm = {"flags": SHMEM_ACCESS, "on_partition": "stop"}
    client.register("late", crash_domain="old", **firm)
    assert not host.take(Start)
    assert "'old' lives under its kept warden" in client.status("late").reason
    host.end(start, code=0)
    found = {s.spec["name"]: s.warden for s in host.take(Start)}
    assert found == {"w": "kept", "late": "fenced"}


def test_a_revised_worker_does_not_hold_the_domain_that_it_will_be_of(town):
    host, client = town.host("a"), town.client()
    declare(client, OLD)
    start = host.run()
    declare(client, replace(OLD, crash_domain="new"))
    client.register("first", crash_domain="new", flags=SHMEM_ACCESS, on_partition="stop")
    first = host.one(Start)
    assert (first.spec["name"], first.warden) == ("first", "fenced"), "nobody is there yet"
    host.obey_stop(start)
    assert not host.take(Start)
    assert "'new' lives under its fenced warden" in client.status("w").reason
    host.end(first, code=0)
    assert host.one(Start).warden == "kept"


def test_of_a_registry_from_before_the_record_tells_the_domain(town):
    host, client = town.host("a"), town.client()
    declare(client, OLD)
    start = host.run()
    states = town.disk.states
    states.update({key: replace(row, domain=None) for key, row in states.items()})
    town.crash()
    host, client = town.agent("a"), town.client()
    host.open(settle=False)
    host.settle(running=[host.running(start)])
    client.register("late", crash_domain="old", flags=SHMEM_ACCESS, on_partition="stop")
    assert not host.take(Start)
