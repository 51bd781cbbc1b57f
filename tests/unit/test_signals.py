"""Signals by name or number, the same on every platform."""

import signal

import pytest

from posthouse.errors import InvalidField
from posthouse.signals import signal_number


@pytest.mark.parametrize(
    ("given", "number"),
    [("TERM", 15), ("sigusr1", 10), ("9", 9), (64, 64), (signal.SIGHUP, 1)],
)
def test_a_signal_is_a_name_or_a_number(given: "int | str", number: int) -> None:
    assert signal_number(given) == number


@pytest.mark.parametrize("given", ["NOPE", "", "²", "0", 0, 65, True, -1])
def test_a_refusal_names_what_was_given(given: "int | str") -> None:
    with pytest.raises(InvalidField) as caught:
        signal_number(given)
    assert caught.value.detail["value"] == repr(given)
    assert repr(given) in str(caught.value)
