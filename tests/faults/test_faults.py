"""Cut cables, killed and stopped processes, no room, set clocks: with real processes, row by row.

The rows are in faulting/table.py. A dozen of them run by default, all of them by `make faults`.
"""

import pytest
from faulting.network import CannotHere
from faulting.play import Play, Row
from faulting.table import ROWS

DEFAULT = [row for row in ROWS if not row.slow]
SLOW = [row for row in ROWS if row.slow]


def play(fields, row: Row, number: int) -> None:
    field = fields.get()
    good = False
    try:
        with field.connect() as client:
            played = Play(field, client, row, f"r{number}.")
            try:
                played.run()
            except CannotHere as reason:
                field.make_whole()
                played.close()
                good = True
                pytest.skip(str(reason))
        good = True
    finally:
        if not good:
            fields.drop(failed=True)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("row", DEFAULT, ids=lambda row: row.name)
def test_row(fields, row: Row) -> None:
    play(fields, row, ROWS.index(row))


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("row", SLOW, ids=lambda row: row.name)
def test_further_row(fields, row: Row) -> None:
    play(fields, row, ROWS.index(row))
