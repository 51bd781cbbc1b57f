"""Cut cables, killed and stopped processes, no room, set clocks: with real processes, row by row.

The rows are in faulting/table.py. A dozen of them run by default, all of them by `make faults`.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from faulting.field import Field
from faulting.network import CannotHere
from faulting.play import Play, Row
from faulting.table import ROWS

DEFAULT = [row for row in ROWS if not row.slow]
SLOW = [row for row in ROWS if row.slow]


class Fields:
    """The field that rows are played on: made when first asked for, and anew after a failure."""

    def __init__(self) -> None:
        self._field: Field | None = None

    def get(self) -> Field:
        if self._field is None:
            try:
                self._field = Field({"a": "wire", "b": "proxy"})
            except CannotHere as reason:
                pytest.skip(str(reason))
            self._field.__enter__()
        return self._field

    def drop(self, *, failed: bool = False) -> list[str]:
        """What is left of it."""
        field, self._field = self._field, None
        if field is None:
            return []
        if failed:
            field.print_logs()
        field.close()
        return field.left()


@pytest.fixture(scope="module")
def fields() -> Iterator[Fields]:
    made = Fields()
    yield made
    assert not made.drop(), "left behind"


def play(fields: Fields, row: Row, number: int) -> None:
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
def test_row(fields: Fields, row: Row) -> None:
    play(fields, row, ROWS.index(row))


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("row", SLOW, ids=lambda row: row.name)
def test_further_row(fields: Fields, row: Row) -> None:
    play(fields, row, ROWS.index(row))
