"""After a restore: nothing runs twice, nothing that is not known is ended, claims bring it back."""

from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from posthouse import limits
from posthouse.messages import (
    Applied,
    Apply,
    Claim,
    Declared,
    Done,
    Exited,
    Failed,
    ForgetHost,
    GetRecord,
    Hold,
    ListHosts,
    ListUnclaimed,
    ListWorkers,
    RecordTold,
    Release,
    Start,
    Started,
    Stop,
)
from posthouse.spec import BackgroundWorker
from posthouse.states import NEVER_RESTART, Every, StopReason, WorkerState
from posthouse_master.store.base import first_number
from posthouse_master.store.memory import MemoryDisk

TIMELINE = 1_700_000_000
FIRST = first_number(TIMELINE)


@pytest.fixture
def client(town):
    return town.client()


def copied(disk: MemoryDisk) -> MemoryDisk:
    """The disk as it is now."""
    kept = ("specs", "states", "slots", "events", "hosts", "groups", "requests")
    copies = {name: dict(getattr(disk, name)) for name in kept}
    return replace(disk, held_by=None, **copies)


@pytest.fixture
def restore(town) -> Callable[..., None]:
    """What `posthouse restore` does to the registry, and a new master."""

    def run(disk: MemoryDisk, mode: str = "known") -> None:
        town.store.close()
        town.disk = copied(disk)
        town.disk.timeline, town.disk.epoch = TIMELINE, FIRST
        town.disk.counters = replace(disk.counters, token=FIRST, recovery=mode)
        hosts = {name: replace(row, lease_s=0.0) for name, row in town.disk.hosts.items()}
        town.disk.hosts = hosts
        for peer in town.peers.values():
            peer.link = None
        town.peers.clear()
        town._start()

    return run


def back(town, *running, name="b", **values):
    """The host's agent finds the new master."""
    host = town.agent(name)
    host.open(settle=False)
    host.settle(running=list(running), **values)
    return host


def ran_again(town, host, client, start, name="w"):
    """The worker ends and is started anew: what a backup from before does not know."""
    host.end(start, code=1)
    again = host.run(pid=4712)
    assert again.incarnation == start.incarnation + 1
    return again


# --- what the backup knows ---


def test_what_runs_as_the_backup_has_it_goes_on(town, client, restore):
    host = town.host("b")
    client.register("w")
    start = host.run()
    restore(copied(town.disk))
    host = back(town, host.running(start))
    status = town.client().status("w")
    assert (status.state, status.pid, status.incarnation) == (WorkerState.STARTED, 4711, 1)
    assert not host.inbox


def test_a_newer_process_of_a_known_worker_is_taken_over(town, client, restore):
    host = town.host("b")
    client.register("w", restart_time=0)
    start = host.run()
    backup = copied(town.disk)
    again = ran_again(town, host, client, start)
    restore(backup)
    host = back(town, host.running(again, pid=4712, ready=True))
    client = town.client()
    status = client.status("w")
    assert (status.state, status.pid, status.incarnation) == (WorkerState.STARTED, 4712, 2)
    assert status.token == again.token and status.ready
    kinds = ["registered", "starting", "started", "exited", "starting", "started", "ready"]
    assert town.kinds("0.1") == kinds, "each incarnation has one end, after its start"
    assert not host.inbox
    host.end(again, code=1)
    after = host.run()
    assert (after.incarnation, after.token > FIRST) == (3, True)


@pytest.mark.parametrize("waits", ["held", "never started", "waiting"])
def test_one_that_had_no_process_in_the_backup_is_taken_over_with_the_one_it_has(
    town, client, restore, waits
):
    host = None
    if waits == "never started":
        client.register("w")
        backup = copied(town.disk)
        host = town.host("b")
        start = host.run()
    else:
        host = town.host("b")
        client.register("w", restart_time=60)
        first = host.run()
        if waits == "held":
            client.ask(Hold, ref="w")
            host.obey_stop(first)
            backup = copied(town.disk)
            client.ask(Release, ref="w")
        else:
            host.end(first, code=1)
            backup = copied(town.disk)
            town.pass_time(61)
        start = host.run()
    restore(backup)
    host = back(town, host.running(start))
    status = town.client().status("w")
    assert (status.state, status.token) == (WorkerState.STARTED, start.token)
    town.pass_time(120)
    assert not host.take(Start) and not host.take(Stop)


def test_an_end_that_only_the_host_remembers_counts_with_its_facts(town, client, restore):
    """Started anew since the backup, and ended for good while no master was there."""
    host = town.host("b")
    client.register("w", restart_time=0)
    start = host.run()
    backup = copied(town.disk)
    again = ran_again(town, host, client, start)
    restore(backup)
    host = back(town, exits=[host.exit(again, code=0)])
    status = town.client().status("w")
    assert status.final, "exit 0 unregisters it, as ever"
    assert not host.take(Start)


def test_a_worker_that_moved_since_the_backup_is_not_started_before_its_host_is_back(
    town, client, restore
):
    a = town.host("a")
    client.register("w", restart_time=0)
    start = a.run()
    backup = copied(town.disk)
    b = town.host("b")
    a.end(start, code=1)
    moved = (b.take(Start) or a.take(Start))[0]
    backup.hosts = dict(town.disk.hosts)
    restore(backup)
    first = back(town, name="a")
    assert not first.take(Start), "host b may run it"
    second = back(town, b.running(moved), name="b")
    status = town.client().status("w")
    assert (status.host, status.token) == ("b", moved.token)
    assert not first.take(Start) and not second.take(Start)


def test_one_that_is_never_restarted_is_not_given_up_before_all_hosts_are_back(
    town, client, restore
):
    a = town.host("a")
    b = town.host("b")
    client.register("w", restart_time=NEVER_RESTART)
    where, host, other = ("a", a, "b") if any(a.inbox) else ("b", b, "a")
    host.run()
    restore(copied(town.disk))
    back(town, name=where)
    assert not town.client().status("w").final
    back(town, name=other)
    assert town.client().status("w").final, "nobody has it"


# --- when starts go on ---


def test_nothing_is_started_before_all_hosts_of_the_backup_are_back(town, client, restore):
    town.host("a")
    town.host("b")
    restore(copied(town.disk))
    a = back(town, name="a")
    client = town.client()
    client.register("new", host="a")
    assert not a.take(Start)
    assert "restored" in client.status("new").reason
    town.crash()  # and the next master does not forget it
    a = back(town, name="a")
    assert not a.take(Start)
    b = back(town, name="b")
    assert not b.take(Start)
    assert [start.spec["name"] for start in a.take(Start)] == ["new"]
    assert town.disk.counters.recovery == ""


def test_where_others_may_have_joined_the_longest_lease_is_waited_for(town, client, restore):
    town.host("b")
    client.register("w", host="b")
    restore(copied(town.disk), "any")
    host = back(town)
    town.pass_time(limits.recovery_s - 1)
    assert not host.take(Start)
    town.pass_time(2)
    assert len(host.take(Start)) == 1
    assert town.disk.counters.recovery == ""


# --- what the backup does not know ---


def lost(town, client, *names, host="b"):
    """Workers that are registered after the backup: the backup, the host, their STARTs."""
    agent = town.host(host)
    backup = copied(town.disk)
    starts = []
    for name in names:
        client.register(name, restart_time=0, stop_grace_s=3.0)
        starts.append(agent.run())
    return backup, agent, starts


def unclaimed_of(town, agent, starts, restore, backup):
    restore(backup)
    running = [agent.running(start, name=start.spec["name"]) for start in starts]
    host = back(town, *running)
    for ask in host.take(GetRecord):
        start = next(start for start in starts if start.token == ask.token)
        host.say(told_of(start))
    return host


def told_of(start):
    """What its host has of a process besides its inventory."""
    kept = ("slot", "generation", "token", "spec", "source", "group")
    return RecordTold(**{name: getattr(start, name) for name in kept})


def test_what_is_not_known_is_listed_and_never_ended(town, client, restore):
    backup, agent, starts = lost(town, client, "x", "y")
    host = unclaimed_of(town, agent, starts, restore, backup)
    client = town.client()
    page = client.ask(ListUnclaimed)
    assert [(p.name, p.host, p.pid, p.main) for p in page.processes] == [
        ("x", "b", 4711, "acme.jobs:main"),
        ("y", "b", 4711, "acme.jobs:main"),
    ]
    assert client.ask(ListHosts).hosts[0].unclaimed == 2
    town.pass_time(700)
    assert not host.take(Stop) and not host.take(Start)
    page = client.ask(ListUnclaimed, limit=1)
    assert page.more
    rest = client.ask(ListUnclaimed, after=page.processes[-1].token)
    assert ([p.name for p in rest.processes], rest.more) == (["y"], False)


def test_a_claim_brings_the_registration_back_under_its_old_handle(town, client, restore):
    backup, agent, starts = lost(town, client, "x")
    handle = client.status("x").handle
    host = unclaimed_of(town, agent, starts, restore, backup)
    client = town.client()
    assert isinstance(client.ask(Claim, token=starts[0].token), Done)
    status = client.status("x")
    assert (status.state, status.handle, status.pid) == (WorkerState.STARTED, handle, 4711)
    assert not client.ask(ListUnclaimed).processes
    assert not host.inbox, "its process does not notice"
    town.crash()
    host = back(town, host.running(starts[0], name="x"))
    assert town.client().status("x").pid == 4711, "and it is durable"
    host.end(starts[0], code=1)
    assert host.run().incarnation == 2


def declare(client, *specs, source="shop"):
    """`posthouse apply`: each is (record, replicas)."""
    workers = [Declared(spec=spec.to_wire(), replicas=replicas) for spec, replicas in specs]
    applied = client.ask(Apply, source=source, workers=workers)
    assert isinstance(applied, Applied), applied
    return applied


def test_a_claim_gives_back_who_declared_it_and_its_group(town, client, restore):
    """Its host was told with the START. Else the next apply is refused: another source has the
    name."""
    agent = town.host("b")
    backup = copied(town.disk)
    web = (BackgroundWorker(name="web", main="acme.jobs:main"), 2)
    declare(client, web)
    starts = agent.take(Start)
    for start in starts:
        agent.say(Started(worker=agent.running(start)))
    assert len(starts) == 2
    unclaimed_of(town, agent, starts, restore, backup)
    client = town.client()
    for start in starts:
        assert isinstance(client.ask(Claim, token=start.token), Done)
    workers = client.ask(ListWorkers, group="web").workers
    assert [(w.spec["name"], w.source) for w in workers] == [("web:0", "shop"), ("web:1", "shop")]
    applied = declare(client, web)
    assert (applied.unchanged, applied.changes) == (2, [])
    assert declare(client).pruned == 2, "they are its own: it ends what it no longer names"


def test_a_host_that_names_a_group_which_a_worker_cannot_be_of_is_not_believed(
    town, client, restore
):
    backup, agent, starts = lost(town, client, "x")
    wrong = msgspec.structs.replace(starts[0], group="web", source="")
    unclaimed_of(town, agent, [wrong], restore, backup)
    client = town.client()
    assert isinstance(client.ask(Claim, token=starts[0].token), Done)
    assert not client.ask(ListWorkers, group="web").workers


def test_a_host_is_not_given_a_member_of_a_group_that_it_runs_unclaimed(town, client, restore):
    a = town.host("a")
    probe = (BackgroundWorker(name="probe", main="acme.jobs:main"), Every.HOST)
    declare(client, probe)
    first = a.run()
    backup = copied(town.disk)
    b = town.host("b")
    start = b.run()
    assert start.spec["name"] == "probe:b"
    restore(backup)
    back(town, a.running(first, name="probe:a"), name="a")
    b = back(town, b.running(start, name="probe:b"), name="b")
    for ask in b.take(GetRecord):
        assert ask.token == start.token
        b.say(told_of(start))
    client = town.client()
    assert isinstance(client.ask(Claim, token=start.token), Done), "nobody has taken the name"
    assert len(client.ask(ListWorkers, group="probe").workers) == 2
    declare(client, probe)
    town.pass_time(60)
    assert not b.take(Start) and not b.take(Stop)


def test_a_claim_is_refused_where_it_cannot_be(town, client, restore):
    backup, agent, starts = lost(town, client, "x")
    restore(backup)
    host = back(town, agent.running(starts[0], name="x"))
    client = town.client()
    token = starts[0].token
    refused = client.ask(Claim, token=token)
    assert isinstance(refused, Failed) and "has not told the record" in refused.message
    assert "no unclaimed process" in client.ask(Claim, token=token + 1).message
    host.say(told_of(starts[0]))
    client.register("x")
    refused = client.ask(Claim, token=token)
    assert (refused.code, "'x'" in refused.message) == ("already_registered", True)
    client.terminate("x")
    assert isinstance(client.ask(Claim, token=token), Done)


def test_a_name_that_runs_unclaimed_is_not_started_a_second_time(town, client, restore):
    """Who restores applies his configuration again, and it has what the backup has not."""
    backup, agent, starts = lost(town, client, "x")
    host = unclaimed_of(town, agent, starts, restore, backup)
    client = town.client()
    client.register("x")
    assert not host.take(Start)
    assert "unclaimed" in client.status("x").reason
    assert client.status("x").handle.slot != starts[0].slot, "nor is its slot given away"
    assert isinstance(client.ask(Claim, token=starts[0].token, stop=True), Done)
    stop = host.one(Stop)
    assert (stop.token, stop.reason, stop.grace_s) == (starts[0].token, StopReason.UNKNOWN, 3.0)
    assert not host.take(Start), "it is not gone yet"
    host.say(Exited(worker=host.exit(starts[0], StopReason.UNKNOWN, code=0)))
    assert [start.spec["name"] for start in host.take(Start)] == ["x"]


def test_one_that_ends_by_itself_is_no_longer_listed(town, client, restore):
    backup, agent, starts = lost(town, client, "x", "y")
    host = unclaimed_of(town, agent, starts, restore, backup)
    host.say(Exited(worker=host.exit(starts[0], code=0)))
    client = town.client()
    assert [p.name for p in client.ask(ListUnclaimed).processes] == ["y"]
    host.link = None
    back(town)  # and the other ended while no session was open
    assert not client.ask(ListUnclaimed).processes


def test_without_a_restore_what_is_not_known_is_ended_as_ever(town, client):
    host = town.host("b")
    client.register("w")
    start = host.run()
    wild = host.running(start, name="wild")
    wild = msgspec.structs.replace(wild, slot=3, generation=9, token=start.token)
    host.link = None
    host.open(settle=False)
    host.settle(running=[wild])
    assert host.one(Stop).reason is StopReason.UNKNOWN


def test_another_host_cannot_tell_the_record_of_an_unclaimed_process(town, client, restore):
    backup, agent, starts = lost(town, client, "x")
    restore(backup)
    back(town, agent.running(starts[0], name="x"))
    other = back(town, name="other")
    evil = BackgroundWorker(name="x", main="evil:main").to_wire()
    other.say(RecordTold(slot=0, generation=1, token=starts[0].token, spec=evil))
    refused = town.client().ask(Claim, token=starts[0].token)
    assert isinstance(refused, Failed) and "has not told the record" in refused.message


def test_a_host_that_is_forgotten_is_waited_for_no_longer(town, client, restore):
    host = town.host("b")
    town.host("c")
    client.register("w", host="b")
    start = host.run()
    restore(copied(town.disk))
    client = town.client()
    b = back(town, host.running(start))
    client.register("new", host="b")
    assert not b.inbox, "c may still tell what it runs"
    assert isinstance(client.ask(ForgetHost, host="c"), Done)
    assert b.one(Start).spec["name"] == "new"
