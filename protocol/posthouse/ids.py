"""Identities: which registration, which process, which place in the log.

Invariant: a handle names one registration for ever; a stale one answers STOPPED, never another
registration (D11).
"""

from dataclasses import dataclass
from typing import NamedTuple

from posthouse.errors import InvalidField

__all__ = ["Cursor", "HandleId", "Instant"]


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
        registry, _, rest = text.partition(":")
        slot, _, generation = rest.partition(".")
        if not (registry and slot.isdecimal() and generation.isdecimal()):
            raise InvalidField(
                f"handle {text!r} is not registry:slot.generation",
                field="handle",
                value=text,
                rule="registry:slot.generation",
            )
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
        timeline, slash, sequence = text.partition("/")
        if not (slash and timeline.isdecimal() and sequence.isdecimal()):
            raise InvalidField(
                f"cursor {text!r} is not timeline/sequence",
                field="cursor",
                value=text,
                rule="timeline/sequence",
            )
        return cls(int(timeline), int(sequence))
