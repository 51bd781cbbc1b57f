"""Bugs that the simulator found, each as the shortest script that shows it."""

import pytest

from posthouse.messages import Declared, Hold
from posthouse.spec import BackgroundWorker
from posthouse.states import NEVER_RESTART
from posthouse_master.hosts import Hosts
from posthouse_master.store.base import Life
from posthouse_testing.sim.client import Follower
from posthouse_testing.sim.host import Machine
from posthouse_testing.sim.restore import backup, restore
from posthouse_testing.sim.run import Failure, Simulation, simulate
from posthouse_testing.sim.world import Knobs


def stage(*, hosts: int = 1, length_s: float = 15.0) -> Simulation:
    return Simulation(1, knobs=Knobs.quiet(hosts=hosts, length_s=length_s))


def end(machine: Machine) -> None:
    assert machine.warden is not None
    machine.warden.terminate()


def lives(simulation: Simulation) -> list[Life]:
    return [state.life for state in simulation.ledger.states.values()]


def test_workers_are_started_again_after_the_end_of_their_warden() -> None:
    """Seeds 21, 43, 46, 98: they were kept as if the cluster had been shut down, for ever."""
    simulation = stage()
    (client,), (machine,) = simulation.clients, simulation.machines
    simulation.world.at(2.0, lambda: client.register(name="never", restart_time=NEVER_RESTART))
    simulation.world.at(2.0, lambda: client.register(name="crash", restart_time=2.5))
    seen = []
    simulation.world.at(4.0, lambda: end(machine))
    simulation.world.at(14.0, lambda: seen.append((len(machine.live), lives(simulation))))
    simulation.run()
    assert seen == [(2, [Life.RUNNING] * 2)]


def test_a_slot_that_a_pinned_registration_held_is_given_to_who_waits() -> None:
    """Seed 1417: terminating a registration without a process freed a slot that nobody got."""
    simulation = stage()
    (client,), (machine,) = simulation.clients, simulation.machines
    machine.slots = 1
    simulation.ledger.workers_per_host_max["a"] = 1
    world = simulation.world
    world.at(2.0, lambda: client.register(name="pinned", host="a", restart_time=4.0))
    world.at(6.0, lambda: machine.live[0].kill(9))
    world.at(7.0, lambda: client.register(name="waits", host=None, restart_time=1.0))
    world.at(8.0, lambda: client.terminate(client.handles[0]))
    seen = []
    world.at(12.0, lambda: seen.append([process.spec["name"] for process in machine.live]))
    simulation.run()
    assert seen == [["waits"]]


@pytest.mark.parametrize("planted", [False, True])
def test_another_machine_of_the_same_name_does_not_free_its_workers(
    planted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a new boot of the very machine that ran them proves that they are gone. A second one
    with the same name and key would have made the master start them twice."""
    simulation = stage(hosts=2, length_s=30.0)
    (client,), (machine, _) = simulation.clients, simulation.machines
    world = simulation.world
    twin = Machine(world, simulation.network, simulation.checker, "a", 50)
    twin.cable = "twin"
    world.at(2.0, lambda: client.register(name="w", host="a", restart_time=0.0))
    world.at(4.0, lambda: simulation.network.cut("a", up=True, down=True))
    world.at(9.0, twin.boot)
    seen = []
    world.at(15.0, lambda: seen.append((len(machine.live), len(twin.live))))
    world.at(16.0, lambda: twin.reboot("none", 1000.0))
    world.at(20.0, lambda: simulation.network.heal("a"))
    world.at(28.0, lambda: seen.append((len(machine.live), len(twin.live))))
    if planted:  # a second HELLO with the same key takes over what the first one holds
        monkeypatch.setattr(Hosts, "_another_machine", lambda *_: False)
        with pytest.raises(Failure) as caught:
            simulation.run()
        assert caught.value.number in (1, 7, 17)
        return
    simulation.run()
    assert seen == [(1, 0), (1, 0)]
    assert max(process.incarnation for process in machine.processes.values()) == 1


def test_a_wall_clock_that_jumps_does_not_make_a_retry_a_second_request() -> None:
    """Answers were forgotten by the wall clock: after a jump of days a retry had a new effect."""
    simulation = stage()
    (client,) = simulation.clients
    world = simulation.world

    def jump() -> None:
        simulation.seat.clock.wall_skew_s += 10 * 86_400.0

    world.at(2.0, lambda: client.register(name="w", restart_time=0.0))
    world.at(3.0, jump)
    world.at(4.0, lambda: client.register(name="another", restart_time=0.0))
    world.at(5.0, lambda: [client.doubt(question) for question in client.questions.values()])
    simulation.run()
    assert sorted(wire["name"] for wire in simulation.ledger.wires.values()) == ["another", "w"]


def declare(simulation: Simulation, **fields: object) -> None:
    """Have the one declared worker of a source be so."""
    spec = {"name": "d", "main": "acme.jobs:main", "restart_time": 0.0} | fields
    simulation.clients[0].deployer._begin(
        "shop", [Declared(spec=BackgroundWorker(**spec).to_wire())]
    )


def small(*, hosts: int) -> Simulation:
    """Hosts with a single slot each."""
    simulation = stage(hosts=hosts, length_s=20.0)
    for machine in simulation.machines:
        machine.slots = 1
        simulation.ledger.workers_per_host_max[machine.name] = 1
    return simulation


def names(simulation: Simulation) -> list[str]:
    return sorted(process.spec["name"] for process in simulation.checker.living.values())


def test_the_slot_of_a_host_that_was_named_meanwhile_is_given_to_who_waits() -> None:
    """Seed 192 of the worlds with leases: a worker that ran on one host and was revised to name
    another had a slot on both; when it was unregistered the other one's was offered to nobody."""
    simulation = small(hosts=2)
    (client,), world = simulation.clients, simulation.world

    def resist() -> None:
        for process in simulation.checker.living.values():
            process.stubborn = True

    world.at(2.0, lambda: declare(simulation, stop_grace_s=4.0))
    world.at(6.0, resist)
    world.at(7.0, lambda: declare(simulation, stop_grace_s=4.0, host="b"))
    world.at(7.5, lambda: client.register(name="one", host=None, restart_time=0.0))
    world.at(7.5, lambda: client.register(name="two", host=None, restart_time=0.0))
    world.at(8.0, lambda: client.terminate("d"))
    seen: list[str] = []
    world.at(19.0, lambda: seen.extend(names(simulation)))
    simulation.run()
    assert seen == ["one", "two"]


def test_the_slot_of_a_host_that_is_no_longer_named_is_given_to_who_waits() -> None:
    """The same, of one that is held while it is revised."""
    simulation = small(hosts=1)
    (client,), world = simulation.clients, simulation.world
    world.at(2.0, lambda: declare(simulation, host="a"))
    world.at(7.0, lambda: client.ask(Hold(request=world.entropy(16), ref="d")))
    world.at(10.0, lambda: client.register(name="waits", host=None, restart_time=0.0))
    world.at(12.0, lambda: declare(simulation, host=None))
    seen: list[str] = []
    world.at(19.0, lambda: seen.extend(names(simulation)))
    simulation.run()
    assert seen == ["waits"]


def test_a_rollout_forgets_who_is_no_longer_listed() -> None:
    """Seed 113, and 23 of `--only "registry restored,worker killed,connection reset"`: one that was
    unregistered and, as there were too many such, dropped from the list in the same turn, was
    still to be replaced, and ended the master."""
    simulation = stage(length_s=20.0)
    simulation._squeeze = {"retired_max": 0}
    (client,), world = simulation.clients, simulation.world
    wire = {"main": "acme.jobs:main", "restart_time": 0.0, "stop_grace_s": 6.0}

    def deploy(nice: int) -> None:
        specs = [BackgroundWorker(name=f"d{n}", nice=nice, **wire).to_wire() for n in range(5)]
        client.deployer._begin("shop", [Declared(spec=spec) for spec in specs], last=True)

    def resist() -> None:
        for process in simulation.checker.living.values():
            process.stubborn = True

    def finish() -> None:
        """Four are being replaced, as many as may be; the fifth ends by itself."""
        (last,) = (p for p in simulation.checker.living.values() if p.spec["name"] == "d4")
        last.end("exited", 0, None)

    world.at(2.0, lambda: deploy(0))
    world.at(6.0, resist)
    world.at(7.0, lambda: deploy(1))
    world.at(8.0, finish)
    simulation.run()
    assert simulation.ledger.epoch == 1


def test_what_was_terminated_before_its_newer_process_was_found_is_terminated() -> None:
    """Seed 11 of restores: a worker of a restored registry was terminated, and only then its host
    said that it runs a newer process of it. That one was taken over, and the wish forgotten."""
    simulation = stage(length_s=30.0)
    (client,), (machine,), world = simulation.clients, simulation.machines, simulation.world
    copies = []
    world.at(2.0, lambda: client.register(name="w", restart_time=0.0))
    world.at(6.0, lambda: copies.append(backup(simulation.stage)))
    world.at(7.0, lambda: machine.live[0].kill(9))
    world.at(11.0, lambda: simulation.network.cut("a", up=True, down=True))
    world.at(12.0, lambda: restore(simulation.stage, copies[0]))
    world.at(20.0, lambda: client.terminate("w"))
    world.at(22.0, lambda: simulation.network.heal("a"))
    seen = []
    world.at(10.9, lambda: seen.append([process.incarnation for process in machine.live]))
    world.at(29.0, lambda: seen.append(machine.live or lives(simulation)))
    simulation.run()
    assert seen == [[2], [Life.RETIRED]]


def test_a_reboot_that_was_told_during_a_recovery_is_known_to_the_next_master() -> None:
    """Seed 0 of restores and reboots: a START of the backup had run, its host rebooted, and told
    so while the restored master waited for others. The next master knew the new boot, and took the
    START for one that had never arrived: what must not be started again was started again."""
    simulation = stage(hosts=2, length_s=40.0)
    (client,), world = simulation.clients, simulation.world
    one = simulation.machines[0]
    copies = []

    def copy_at_start() -> None:
        if simulation.ledger.states and not simulation.checker.living:
            copies.append(backup(simulation.stage))

    def crash() -> None:
        assert simulation.seat.node is not None
        simulation.seat.node.crash()

    world.at(2.0, lambda: client.register(name="w", host="a", restart_time=NEVER_RESTART))
    for moment in range(100):
        world.at(2.0 + moment / 1e4, copy_at_start)
    world.at(7.0, lambda: simulation.network.cut("b", up=True, down=True))
    world.at(8.0, lambda: one.reboot("none", 1.0))
    world.at(8.5, lambda: restore(simulation.stage, copies[0]))
    world.at(20.0, crash)
    world.at(30.0, lambda: simulation.network.heal("b"))
    simulation.run()
    assert len(one.processes) == 1
    assert copies[0].disk.states[0, 1].life is Life.STARTING


def test_no_row_is_told_before_all_that_is_missing_before_it() -> None:
    """Seed 100152: where more was missing than one page tells, rows after it came with the first
    page; who lost the session then was never told of the rest."""
    simulation = stage(length_s=20.0)
    simulation._squeeze = {"events_per_registration_max": 8, "page_items_max": 2}
    (client,), (machine,), world = simulation.clients, simulation.machines, simulation.world

    def fail() -> None:
        for process in machine.live:
            process.end("exited", 1, None)

    for number in range(5):
        world.at(2.0, lambda name=f"w{number}": client.register(name=name, restart_time=0.0))
    for moment in range(40):
        world.at(5.0 + moment / 4, fail)

    def follow() -> None:
        follower = Follower(0, "", "", 5)
        client.followers.append(follower)
        client._watch(follower)

    world.at(15.0, follow)
    simulation.run()
    assert len(simulation.ledger.events) > len(simulation.ledger.bodies) + 10


@pytest.mark.parametrize("seed", [301867, 306881])
def test_a_claim_sets_no_slot_back(seed: int) -> None:
    """An unclaimed process was claimed in a slot that a newer registration had been given and had
    left: the older generation was written down, and the next master would have given out the newer
    one, and so its handle, once more."""
    simulate(seed)
