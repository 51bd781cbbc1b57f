"""The simulator over the real store: what a new master reads is what was committed."""

from pathlib import Path

import pytest

from posthouse_master.store.sqlite import SqliteStore
from posthouse_testing.sim.faults import KINDS
from posthouse_testing.sim.run import Simulation

# A second master cannot open the file while the first one holds its lock; the copies of a registry
# that the simulator puts back are in memory (tests/stores/test_copies.py has real ones).
MEMORY_ONLY = ("master deposed", "registry restored", "disk of the master lied")
FAULTS = tuple(kind for kind in KINDS if kind not in MEMORY_ONLY)


@pytest.mark.parametrize("seed", range(10))
def test_a_seed_over_sqlite(seed: int, tmp_path: Path) -> None:
    simulation = Simulation(seed, only=FAULTS)
    simulation.seat.open_store = lambda: SqliteStore(str(tmp_path))
    simulation.run()
    assert simulation.ledger.epoch > 1
