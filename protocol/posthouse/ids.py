"""Identities: which registration, which process, which place in the log.

Invariant: a handle names one registration for ever; a stale one answers STOPPED, never another
registration (D11).
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

from posthouse import limits
from posthouse.errors import InvalidField

__all__ = ["Cursor", "HandleId", "Instant"]

_HANDLE = re.compile(r"([0-9a-f]{32}):([0-9]{1,19})\.([0-9]{1,19})")
_CURSOR = re.compile(r"([0-9]{1,19})/([0-9]{1,19})")


class Instant(NamedTuple):
    """The `now` of a core: `boot_s` from CLOCK_BOOTTIME decides, `unix_s` is for people."""

    boot_s: float
    unix_s: float


@dataclass(frozen=True, slots=True, order=True)
class HandleId:
    """(registry id, slot, generation) of a registration.

    >>> HandleId("9f" * 16, 3, 1)
    HandleId('9f9f9f9f9f9f9f9f9f9f9f9f9f9f9f9f:3.1')
    >>> HandleId.parse('9f9f9f9f9f9f9f9f9f9f9f9f9f9f9f9f:3.1').slot
    3
    """

    registry: str
    slot: int
    generation: int

    def __str__(self) -> str:
        return f"{self.registry}:{self.slot}.{self.generation}"

    def __repr__(self) -> str:
        return f"HandleId({str(self)!r})"

    @property
    def short(self) -> str:
        """slot.generation, for people within one cluster."""
        return f"{self.slot}.{self.generation}"

    @classmethod
    def parse(cls, text: str) -> "HandleId":
        """The inverse of str(). Raises InvalidField."""
        rule = "registry:slot.generation, as 32 hex digits:number.number"
        registry, slot, generation = _parse(_HANDLE, "handle", text, rule)
        return cls(registry, int(slot), int(generation))


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """(timeline, sequence): everything up to and including `sequence` has been seen.

    >>> Cursor(1, 42), Cursor.parse('1/42') == Cursor(1, 42)
    (Cursor('1/42'), True)
    """

    timeline: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.timeline}/{self.sequence}"

    def __repr__(self) -> str:
        return f"Cursor({str(self)!r})"

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """The inverse of str(). Raises InvalidField."""
        timeline, sequence = _parse(_CURSOR, "cursor", text, "timeline/sequence, as 1/42")
        return cls(int(timeline), int(sequence))


def _parse(pattern: re.Pattern[str], field: str, text: str, rule: str) -> tuple[str, ...]:
    match = pattern.fullmatch(text) if isinstance(text, str) else None
    parts: tuple[str, ...] = match.groups() if match else ()
    numbers = parts[-2:]
    if not parts or any(int(number) > limits.int_max for number in numbers):
        shown = repr(text) if len(text) <= 80 else f"{text[:60]!r}..."
        raise InvalidField(
            f"{field} is {shown}: must be {rule}",
            field=field,
            value=shown,
            rule=f"must be {rule}",
        )
    return parts
