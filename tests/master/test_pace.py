"""T1-T4 and storms: when the master starts a failed worker again."""

from collections import Counter
from typing import Any

import pytest

from posthouse import limits
from posthouse.messages import Start, Started


@pytest.fixture
def host(town: Any) -> Any:
    return town.host("b", slots=500)


def fail_as_started(host: Any, *clients: Any) -> Counter[str]:
    """End each worker with code 1 at once, until no START comes. How many starts each got."""
    starts: Counter[str] = Counter()
    while found := host.take(Start):
        for start in found:
            host.say(Started(worker=host.running(start)))
            host.end(start, code=1, runtime_s=0.0)
            starts[start.spec["name"]] += 1
        for peer in (host, *clients):
            peer.acknowledge()
    return starts


def test_t1_the_delay_counts_from_the_reaped_exit(town: Any, host: Any) -> None:
    """PostgreSQL counts from the moment it reaps; posthouse from the moment it hears of it."""
    client = town.client()
    client.register(restart_time=5)
    host.end(host.run(), code=1)
    town.pass_time(4.9)
    assert not host.take(Start)
    assert client.status("w").restart_in_s == pytest.approx(0.1)
    town.pass_time(0.2)
    assert host.one(Start).incarnation == 2


def test_t2_growth_and_its_end_after_a_healthy_run(town: Any, host: Any) -> None:
    """PostgreSQL: a constant delay. posthouse: the same, unless growth is asked for."""
    client = town.client()
    client.register(restart_time=1, restart_growth=2.0)
    waited = []
    for ran_s in (0.0, 0.0, 0.0, limits.healthy_s, 0.0):
        host.end(host.run(), code=1, runtime_s=ran_s)
        waited.append(client.status("w").restart_in_s)
        town.pass_time(waited[-1])
    assert waited == [1.0, 2.0, 4.0, 1.0, 2.0]


def test_t3_a_storm_is_held_to_its_budget_and_told_so(town: Any, host: Any) -> None:
    """PostgreSQL starts a worker with restart_time 0 that exits at once as fast as it can fork
    (1137 times in 3 s). posthouse holds it to a budget, says flapping, and never gives up."""
    client = town.client()
    client.register(restart_time=0)
    assert fail_as_started(host, client)["w"] == limits.restart_budget_starts
    status = client.status("w")
    assert status.flapping
    assert "flapping: 50 starts in 10 s" in status.reason
    assert status.restart_in_s == pytest.approx(limits.restart_budget_window_s)
    assert town.log()[-1].rule == "T3"
    town.pass_time(limits.restart_budget_window_s + 0.5)
    assert fail_as_started(host, client)["w"] >= limits.restart_budget_starts - 1
    assert client.status("w").flapping
    town.pass_time(limits.restart_budget_window_s)
    host.run()
    town.pass_time(limits.restart_budget_window_s + 0.5)
    assert not client.status("w").flapping


def test_t3_the_budget_is_the_workers_own_choice(town: Any, host: Any) -> None:
    client = town.client()
    client.register(restart_time=0, restart_budget=(3, 60.0))
    assert fail_as_started(host)["w"] == 3
    assert client.status("w").restart_in_s == pytest.approx(60.0)


def test_t3_100_failing_loops_leave_the_restart_of_another_on_time(town: Any, host: Any) -> None:
    client = town.client()
    client.register("calm", restart_time=2)
    for index in range(100):
        client.register(f"storm{index}", restart_time=0, restart_budget=(5, 1.0))
    calm = next(start for start in host.inbox if getattr(start, "spec", {}).get("name") == "calm")
    host.inbox.remove(calm)
    host.say(Started(worker=host.running(calm)))
    host.end(calm, code=1, runtime_s=20.0)
    for _ in range(3):
        starts = fail_as_started(host, client)
        assert "calm" not in starts
        town.pass_time(0.5)
    fail_as_started(host, client)
    town.pass_time(0.5)
    assert [s for s in host.inbox if isinstance(s, Start) and s.spec["name"] == "calm"]


def test_t3_all_flapping_workers_of_a_host_share_its_budget(towns: Any) -> None:
    from posthouse.pacing import Budget
    from posthouse_master.pace import PacePolicy

    pace = PacePolicy(host=Budget(10, 10.0))
    town = towns.Town(towns.Policy(pace=pace))
    host, client = town.host("b", slots=500), town.client()
    for index in range(50):
        client.register(f"w{index}", restart_time=0, restart_budget=(2, 1.0))
    first = fail_as_started(host, client)
    assert sum(first.values()) == 100  # to use up one's own budget needs nobody's leave
    starts: Counter[str] = Counter()
    for _ in range(20):
        town.pass_time(0.5)
        starts += fail_as_started(host, client)
    assert sum(starts.values()) <= 2 * 10 + 1 < 50
    assert len(town.core.starter.pace) == 50
    for index in range(50):
        client.terminate(f"w{index}")
    fail_as_started(host, client)
    assert len(town.core.starter.pace) == 0


def test_t4_no_restart_is_ever_forgotten(town: Any, host: Any) -> None:
    """PostgreSQL: with restart_time 0, 2 of 25 restarts stalled for 60 s. posthouse: none does."""
    client = town.client()
    client.register(restart_time=0, restart_budget=(1000, 0.001))
    for incarnation in range(1, 101):
        start = host.run()
        assert start.incarnation == incarnation
        host.end(start, code=1)
        host.acknowledge()
        client.acknowledge()


def test_a_due_restart_and_its_growth_survive_the_master(town: Any, host: Any) -> None:
    client = town.client()
    client.register(restart_time=4, restart_growth=2.0)
    host.end(host.run(), code=1, runtime_s=0.0)
    town.pass_time(4.0)
    host.end(host.run(), code=1, runtime_s=0.0)
    town.pass_time(7.0)
    town.crash()
    host, client = town.host("b"), town.client()
    assert client.status("w").restart_in_s == pytest.approx(8.0)  # in full: never too early
    town.pass_time(8.0)
    host.end(host.run(), code=1, runtime_s=0.0)
    assert client.status("w").restart_in_s == pytest.approx(16.0)


@pytest.mark.parametrize("jump_s", [-50 * 365 * 86400.0, -3600.0, 3600.0, 50 * 365 * 86400.0])
def test_t1_a_jump_of_the_wall_clock_moves_no_restart(town: Any, host: Any, jump_s: float) -> None:
    """PostgreSQL reckons with the wall clock. posthouse: with the time since boot, which counts
    suspended time and does not jump."""
    client = town.client()
    client.register(restart_time=10)
    host.end(host.run(), code=1)
    town.pass_time(5.0)
    town.unix_s += jump_s
    town.pass_time(4.5)
    assert not [message for message in host.inbox if isinstance(message, Start)]
    status = client.status("w")
    assert status.restart_in_s == pytest.approx(0.5)
    assert status.restart_at_unix_s == pytest.approx(town.unix_s + 0.5)
    town.pass_time(0.5)
    assert host.run().incarnation == 2


def test_t1_the_delay_runs_in_full_after_a_jump_and_a_new_master(town: Any, host: Any) -> None:
    """What has passed of a delay is not known to the next master, least of all from wall clocks."""
    client = town.client()
    client.register(restart_time=10)
    host.end(host.run(), code=1)
    town.pass_time(5.0)
    town.unix_s += 86400.0
    town.boot_s = 3.0  # the master's machine was rebooted
    town.crash()
    host, client = town.host("b"), town.client()
    assert client.status("w").restart_in_s == pytest.approx(10.0)
    town.pass_time(9.5)
    assert not host.take(Start)
    town.pass_time(0.5)
    assert len(host.take(Start)) == 1


def test_t3_the_flapping_members_of_a_group_share_its_budget(towns: Any) -> None:
    from posthouse.messages import RegisterGroup
    from posthouse.pacing import Budget
    from posthouse.spec import BackgroundWorker
    from posthouse_master.pace import PacePolicy

    town = towns.Town(towns.Policy(pace=PacePolicy(group=Budget(5, 10.0))))
    host, client = town.host("b", slots=500), town.client()
    record = BackgroundWorker(
        name="web", main="acme.jobs:main", restart_time=0, restart_budget=(2, 1.0)
    )
    client.ask(RegisterGroup, spec=record.to_wire(), replicas=20)
    client.register("alone", restart_time=0, restart_budget=(2, 1.0))
    fail_as_started(host, client)
    starts: Counter[str] = Counter()
    for _ in range(20):
        town.pass_time(0.5)
        starts += fail_as_started(host, client)
    alone = starts.pop("alone")
    assert sum(starts.values()) <= 5 + 1, "of all members together"
    assert alone > 5, "who is not of the group does not pay for it"
