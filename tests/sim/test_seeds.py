"""Seeds of the simulator: no invariant breaks, whatever goes wrong."""

import os

import pytest

from posthouse_testing.sim.run import Failure, simulate

pytestmark = pytest.mark.timeout(300)  # seconds of a processor, on a busy machine

CHUNK = 20
SEEDS = 200
SEEDS_SLOW = int(os.environ.get("POSTHOUSE_SIM_SEEDS", "5000"))


def run(first: int, count: int) -> None:
    for seed in range(first, first + count):
        try:
            simulate(seed)
        except Failure as failure:
            lines = "\n".join(failure.trace[-40:])
            pytest.fail(
                f"{failure}\n{lines}\n"
                f"replay: python -m posthouse_testing.sim --seed {seed} --trace",
                pytrace=False,
            )


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_no_seed_breaks_an_invariant(first: int) -> None:
    run(first, CHUNK)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_many_seeds() -> None:
    run(SEEDS, SEEDS_SLOW)
