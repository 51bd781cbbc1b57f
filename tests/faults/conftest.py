"""The fields that rows are played on, made when first asked for and made anew after a failure."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from faulting.field import Field
from faulting.network import CannotHere


class Fields:
    """The one that is in use."""

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
