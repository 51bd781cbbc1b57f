"""Leases: how long, since when a host is lost, what is moved then, and what never is."""

from typing import Any

import pytest

from posthouse import limits
from posthouse.messages import Done, Exited, Failed, ForgetHost, Start, Started, Stop
from posthouse.states import EventKind
from posthouse_master.effects import Interrupted, Room, Space
from posthouse_master.leases import LeasePolicy, lost_after_s

L = 10.0
LOST_S = lost_after_s(L)


@pytest.fixture
def fleet(towns: Any) -> Any:
    """A town whose leases have deadlines."""

    def make(**values: Any) -> Any:
        return towns.Town(towns.Policy(lease=LeasePolicy(**({"lease_s": L} | values))))

    return make


def host_of(town: Any, name: str, **values: Any) -> Any:
    return town.host(name, fences=["process"], **values)


def kinds(town: Any) -> list[str]:
    return [str(event.kind) for event in town.log()]


def placed(town: Any) -> tuple[Any, Any, Any]:
    """Two hosts, and a worker that runs on the first one."""
    one, two = host_of(town, "a"), host_of(town, "b")
    town.hold(one, two)
    town.client().register("w", restart_time=0)
    return one, two, one.run()


def silence(town: Any, seconds: float, *alive: Any) -> None:
    town.hold(*alive, seconds=seconds)


def test_a_lost_hosts_workers_run_elsewhere_and_not_a_moment_before(fleet: Any) -> None:
    town = fleet()
    one, two, start = placed(town)
    last_s = town.core.fleet.hosts["a"].granted_s
    while town.boot_s + 0.5 < last_s + LOST_S:
        silence(town, 0.5, two)
        assert not two.take(Start)
    assert town.client().status("w").dead_for_sure_in_s <= 1.0
    silence(town, 1.0, two)
    again = two.one(Start)
    assert (again.slot, again.incarnation) == (start.slot, start.incarnation + 1)
    assert again.token > start.token
    assert town.kinds("0.1")[-3:] == ["started", "exited", "starting"]
    (ended,) = (event for event in town.log("0.1") if event.kind is EventKind.EXITED)
    assert (ended.exit.cause, ended.rule) == ("host_lost", "E3")
    assert not one.take(Stop)


def test_no_time_makes_a_host_lost_that_has_no_deadline(fleet: Any) -> None:
    """Not before its agent has said that its warden's fuse is set."""
    town = fleet()
    one = host_of(town, "a")
    two = host_of(town, "b")
    one.renew()  # granted, and never told to be in force
    town.hold(two)
    town.client().register("w", restart_time=0, host="a")
    one.run()
    silence(town, 5 * LOST_S, two)
    assert "host_lost" not in kinds(town)
    assert town.client().status("w").dead_for_sure_in_s is None


def test_who_may_move_waits_until_the_lease_is_in_force(fleet: Any) -> None:
    """Else a cut at that moment would leave it where it is for good."""
    town = fleet()
    one = host_of(town, "a")
    one.renew()
    town.client().register("w")
    assert not one.take(Start)
    assert "its lease is not in force yet" in town.client().status("w").reason
    town.hold(one)
    one.run()


def test_who_may_move_waits_until_an_end_that_counts_no_more_is_forgotten(fleet: Any) -> None:
    """Seed 80014 with leases: leases had no deadline any more, but the one that counted for the
    host had; a cut before the next grant, and the worker would have been started elsewhere."""
    town = fleet()
    town.hold(host_of(town, "a"))
    town.policy = type(town.policy)(lease=LeasePolicy())
    town.crash()
    one = host_of(town, "a")
    town.client().register("w")
    assert not one.take(Start)
    assert "its lease is not in force yet" in town.client().status("w").reason
    one.renew()
    assert one.grants[-1].lease_s == 0.0
    one.one(Start)
    assert town.disk.hosts["a"].lease_s == 0.0


def test_a_new_master_counts_from_its_own_beginning(fleet: Any) -> None:
    town = fleet()
    placed(town)
    silence(town, L - 1.0)
    town.crash()
    begun_s = town.boot_s
    two = host_of(town, "b")
    while town.boot_s + 0.5 < begun_s + LOST_S:
        silence(town, 0.5, two)
        assert not two.take(Start)
    silence(town, 1.0, two)
    two.one(Start)


def test_a_shorter_lease_of_a_new_master_does_not_forget_the_longer_one(fleet: Any) -> None:
    town = fleet(lease_s=60.0)
    placed(town)
    town.policy = type(town.policy)(lease=LeasePolicy(lease_s=L))
    town.crash()
    begun_s = town.boot_s
    two = host_of(town, "b")
    while town.boot_s + 0.5 < begun_s + lost_after_s(60.0):
        silence(town, 0.5, two)
        assert not two.take(Start)
    silence(town, 1.0, two)
    two.one(Start)


def test_a_longer_lease_is_durable_before_it_is_granted(fleet: Any) -> None:
    town = fleet()
    one, *_ = placed(town)
    town.policy = type(town.policy)(lease=LeasePolicy(lease_s=60.0))
    town.crash()
    one = host_of(town, "a")
    assert town.disk.hosts["a"].lease_s == L
    seen = []
    town.on_committed = lambda: seen.append((town.disk.hosts["a"].lease_s, len(one.grants)))
    one.renew()
    assert seen[-1] == (60.0, 0)
    assert one.grants[-1].lease_s == 60.0


def test_a_planned_end_grants_a_longer_lease(fleet: Any) -> None:
    town = fleet()
    one, _, _ = placed(town)
    town.handle(Interrupted("SIGTERM"))
    assert one.grants[-1].lease_s == limits.handover_s
    assert one.grants[-1].stamp == one.grants[-2].stamp
    assert town.disk.hosts["a"].lease_s == limits.handover_s
    town.crash()
    begun_s = town.boot_s
    two = host_of(town, "b")
    town.hold(two)
    assert town.disk.hosts["b"].lease_s == L  # it has said HELLO, and its fuse is set anew
    silence(town, 2 * LOST_S, two)
    assert not two.take(Start)
    silence(town, begun_s + lost_after_s(limits.handover_s) - town.boot_s + 1.0, two)
    two.one(Start)


def test_the_real_end_amends_the_loss_once(fleet: Any) -> None:
    town = fleet()
    _, two, start = placed(town)
    silence(town, LOST_S + 1.0, two)
    two.run()
    one = town.agent("a").open(settle=False, fences=["process"])
    one.settle(exits=[one.exit(start, code=3)])
    one.say(Exited(worker=one.exit(start, code=3)))
    rows = [event for event in town.log("0.1") if event.token == start.token]
    assert [str(row.kind) for row in rows][-2:] == ["exited", "exit_amended"]
    assert rows[-1].exit.code == 3
    assert town.client().status("w").state.value == "started"


@pytest.mark.parametrize("in_inventory", [True, False])
def test_no_other_host_amends_an_end(fleet: Any, in_inventory: bool) -> None:
    """Seed 361 of the first day: it was the word of any host that had a lost worker's token."""
    town = fleet()
    _, two, start = placed(town)
    silence(town, LOST_S + 1.0, two)
    two.run()
    liar = town.agent("c").open(settle=False, fences=["process"])
    word = liar.exit(start, code=3)
    liar.settle(exits=[word] if in_inventory else [])
    liar.say(Exited(worker=word))
    assert "exit_amended" not in kinds(town)
    assert town.client().status("w").state.value == "started"


def test_a_host_that_is_lost_loses_its_session(fleet: Any) -> None:
    """What was sent in it would be obeyed with the next grant, and its place is taken elsewhere."""
    town = fleet()
    _, two, start = placed(town)
    silence(town, LOST_S - 2.5, two)
    one = town.agent("a").open(settle=False, fences=["process"])
    one.settle(exits=[one.exit(start, code=1)])
    lease_s = town.core.fleet.hosts["a"].lease_s
    assert lease_s
    sent = one.take(Start) + two.take(Start)
    assert len(sent) == 1
    while one.link is not None and "host_lost" not in kinds(town):
        town.boot_s += 0.2
        for host in (one, two):
            if host.link is not None:
                host.acknowledge()
        two.renew()
        town.tick()
    assert "host_lost" in kinds(town)
    assert one.link is None
    assert one.refused[-1].code == "stale_session"


@pytest.mark.parametrize("running", [True, False])
def test_a_return_in_time_moves_nothing(fleet: Any, running: bool) -> None:
    town = fleet()
    _, two, start = placed(town)
    silence(town, LOST_S - 2.0, two)
    one = town.agent("a").open(settle=False, fences=["process"])
    one.settle(running=[one.running(start)] if running else [])
    town.hold(one, two, seconds=3 * LOST_S)
    assert "host_lost" not in kinds(town)
    assert len(one.take(Start) + two.take(Start)) == (0 if running else 1)


def test_many_at_once_are_not_moved_until_somebody_says_so(fleet: Any) -> None:
    town = fleet(mass_loss_wait_s=100.0)
    hosts = [host_of(town, name) for name in "abcde"]
    town.hold(*hosts)
    client = town.client()
    for number in range(5):
        client.register(f"w{number}", restart_time=0)
    for host in hosts:
        host.run()
    alive = hosts[2:]
    silence(town, LOST_S + 5.0, *alive)
    assert not any(host.take(Start) for host in alive)
    assert kinds(town).count("host_braked") == 2
    assert "host_lost" not in kinds(town)
    silence(town, 100.0, *alive)
    assert sum(len(host.take(Start)) for host in alive) == 2
    assert kinds(town).count("host_lost") == 2


def test_whoever_knows_that_a_host_is_dead_says_so(fleet: Any) -> None:
    """Also where leases have no deadline, and of a worker that is pinned to it."""
    town = fleet(local_boot_id="boot-1")
    one, two = host_of(town, "a"), host_of(town, "b")
    town.hold(one, two)
    client = town.client()
    client.register("w", restart_time=0)
    client.register("pinned", host="a", restart_time=0)
    for host in (one, two):
        for start in host.take(Start):
            host.say(Started(worker=host.running(start)))
    (home,) = {row.host for row in town.log() if row.name == "w" and row.kind == "starting"}
    lost, alive = (one, two) if home == "a" else (two, one)
    refused = client.ask(ForgetHost, host=home, confirm_dead=True)
    assert "is heard" in refused.message
    silence(town, 5.0, alive)
    client = town.client()
    refused = client.ask(ForgetHost, host=home)
    assert "may still run" in refused.message
    assert "confirm-dead" in refused.hint
    done = client.ask(ForgetHost, host=home, confirm_dead=True)
    assert isinstance(done, Done), done
    assert home not in town.disk.hosts
    assert [start.spec["name"] for start in alive.take(Start)] == ["w"]
    assert kinds(town)[-4:].count("host_forgotten") == 1
    back = town.agent(home).open(settle=False, fences=["process"])
    assert not back.refused
    assert not lost.take(Start)


def test_one_of_three_is_no_mass(fleet: Any) -> None:
    town = fleet()
    hosts = [host_of(town, name) for name in "abc"]
    town.hold(*hosts)
    town.client().register("w", restart_time=0)
    hosts[0].run()
    silence(town, LOST_S + 1.0, *hosts[1:])
    assert sum(len(host.take(Start)) for host in hosts[1:]) == 1


def test_on_one_machine_leases_have_no_deadline_until_another_joins(fleet: Any) -> None:
    town = fleet(local_boot_id="here")
    one = host_of(town, "a", boot_id="here")
    town.hold(one)
    assert (one.welcome.lease_s, one.grants[-1].lease_s) == (0.0, 0.0)
    two = host_of(town, "b", boot_id="there")
    town.hold(one, two)
    assert (two.welcome.lease_s, one.grants[-1].lease_s) == (L, L)
    assert {row.name: row.lease_s for row in town.disk.hosts.values()} == {"a": L, "b": L}


def test_who_may_move_needs_a_fence_where_leases_have_deadlines(fleet: Any) -> None:
    town = fleet()
    bare = town.host("a")
    town.hold(bare)
    client = town.client()
    client.register("w")
    assert not bare.take(Start)
    assert "offers no fence 'process'" in client.status("w").reason
    client.register("pinned", host="a")
    bare.run()
    guarded = host_of(town, "b", allow_exec=True)
    town.hold(guarded)
    guarded.run()
    client.register("program", main="posthouse.exec", main_arg=["/bin/true"])
    assert "no fence 'tree', which programs" in client.status("program").reason
    client.register("loose", main="posthouse.exec", main_arg=["/bin/true"], fence="process")
    guarded.run()


def test_a_full_disk_neither_lengthens_leases_nor_loses_hosts(fleet: Any) -> None:
    town = fleet()
    _, two, _ = placed(town)
    town.handle(Space(Room.NONE))
    silence(town, 3 * LOST_S, two)
    assert "host_lost" not in kinds(town)
    town.handle(Space(Room.AMPLE))
    silence(town, 2.0, two)
    assert "host_lost" in kinds(town)
    two.one(Start)


def test_a_grace_that_is_no_lease(fleet: Any) -> None:
    town = fleet()
    host_of(town, "a")
    answer = town.client().register_failed("w", stop_grace_s=L)
    assert isinstance(answer, Failed)
    assert "half the lease" in answer.message
    town.client().register("pinned", stop_grace_s=L, host="a")
