"""Handles and cursors as text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posthouse.errors import InvalidField
from posthouse.ids import Cursor, HandleId

numbers = st.integers(0, 2**63 - 1)
registries = st.binary(min_size=16, max_size=16).map(bytes.hex)


@settings(deadline=None, database=None)
@given(st.builds(HandleId, registries, numbers, numbers))
def test_a_handle_is_its_text(handle: HandleId) -> None:
    assert HandleId.parse(str(handle)) == handle
    assert eval(repr(handle).replace("HandleId(", "HandleId.parse(")) == handle
    assert str(handle).endswith(":" + handle.short)


@settings(deadline=None, database=None)
@given(st.builds(Cursor, numbers, numbers))
def test_a_cursor_is_its_text(cursor: Cursor) -> None:
    assert Cursor.parse(str(cursor)) == cursor


@settings(deadline=None, database=None, max_examples=150)
@given(st.text() | st.from_regex(r"[0-9a-f]{30,33}:[0-9]{1,25}\.[0-9]{1,25}"))
def test_other_text_is_refused_or_means_itself(text: str) -> None:
    for cls in (HandleId, Cursor):
        try:
            parsed = cls.parse(text)
        except InvalidField as error:
            assert {"field", "value", "rule"} <= set(error.detail)
        else:
            assert cls.parse(str(parsed)) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3.1",
        ":3.1",
        "9f:3.1",
        "9F" * 16 + ":3.1",
        "9f" * 16 + ":3",
        "9f" * 16 + ":-3.1",
        "9f" * 16 + ":٣.1",
        "9f" * 16 + f":{2**63}.1",
        "9f" * 16 + ":" + "1" * 5000 + ".1",
        "9f" * 16 + ":3.1\n",
        " " + "9f" * 16 + ":3.1",
    ],
)
def test_no_handle(text: str) -> None:
    with pytest.raises(InvalidField, match=r"handle is .*: must be registry:slot\.generation"):
        HandleId.parse(text)


@pytest.mark.parametrize(
    "text", ["", "1", "1/", "/1", "1/2/3", "-1/2", "1/٢", f"1/{2**63}", "1/2 "]
)
def test_no_cursor(text: str) -> None:
    with pytest.raises(InvalidField, match=r"cursor is .*: must be timeline/sequence"):
        Cursor.parse(text)


def test_cursors_order_by_timeline_first() -> None:
    """A restore begins a new timeline; its events are later than all of the old one."""
    assert Cursor(1, 99) < Cursor(2, 0) < Cursor(2, 1)


def test_handles_of_one_slot_differ_by_generation() -> None:
    """D11: a stale handle is another handle."""
    first, second = HandleId("9f" * 16, 3, 1), HandleId("9f" * 16, 3, 2)
    assert first != second
    assert len({first, second, HandleId("9f" * 16, 3, 1)}) == 2
