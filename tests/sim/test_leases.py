"""Hosts that are cut off for longer than their lease: seeds, and what the simulator found there."""

import pytest

from posthouse_testing.sim.run import Simulation, simulate
from posthouse_testing.sim.world import Knobs

pytestmark = pytest.mark.timeout(300)  # seconds of a processor, on a busy machine

SEEDS = 30


def test_seeds_with_leases_that_end() -> None:
    lost = 0
    for seed in range(SEEDS):
        lost += simulate(seed, leases=True).figures["event host_lost"]
    assert lost


def test_seeds_in_which_the_kernel_ends_wardens() -> None:
    fenced = lost = 0
    for seed in range(10):
        figures = simulate(seed, only=("cable cut", "warden paused"), leases=True).figures
        fenced += figures["wardens that the kernel ended"]
        lost += figures["event host_lost"]
    assert fenced
    assert lost


def test_a_cut_hosts_worker_runs_elsewhere_within_the_bound() -> None:
    """Lease, drift, margin, one tick of the master: not later, and the first one is dead by then
    (the checker sees to that)."""
    knobs = Knobs.quiet(hosts=2, length_s=40.0)
    simulation = Simulation(1, knobs=knobs, lease_s=5.0)
    (client,), world = simulation.clients, simulation.world
    world.at(3.0, lambda: client.register(name="w", host=None, restart_time=0.0))
    moved: list[tuple[str, float]] = []

    def cut() -> None:
        (process,) = simulation.checker.living.values()
        simulation.network.cut(process.host, up=True, down=True)
        moved.append((process.host, world.now_s))

    def look() -> None:
        for process in simulation.checker.living.values():
            if process.host != moved[0][0] and len(moved) == 1:
                moved.append((process.host, process.born_s))

    world.at(10.0, cut)
    for tenth in range(1, 300):
        world.at(10.0 + tenth / 10, look)
    world.at(38.0, lambda: simulation.network.heal(moved[0][0]))
    simulation.run()
    (one, cut_s), (other, born_s) = moved
    assert one != other
    assert born_s - cut_s < 5.0 * 1.002 + 2.0 + 1.0
