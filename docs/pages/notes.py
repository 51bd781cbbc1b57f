"""What every generated page is made of: tables in Markdown, and the notes beside what is told.

Owns: how a row is written, and which notes were used. Must not know: any page. Invariant: a note
that is missing, or left over, is an error; so nothing can be added to the code without a word
about it.
"""

import inspect
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = [
    "REFERENCE",
    "ROOT",
    "Notes",
    "Tables",
    "Unfit",
    "prose",
    "read_notes",
    "row",
    "shown",
    "table",
]

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"


class Unfit(Exception):
    """Code and notes do not go together."""


def row(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join((row(*head), row(*("---" for _ in head)), *(row(*cells) for cells in rows)))


def prose(cls: type[Any]) -> str:
    """The docstring as running text."""
    return " ".join((inspect.getdoc(cls) or "").split())


def shown(value: Any) -> str:
    """A default as it would be on the wire."""
    match value:
        case None:
            return "nil"
        case bool():
            return str(value).lower()
        case bytes():
            return "no bytes" if not value else value.hex()
        case str():
            return f'"{value}"'
        case tuple() | list():
            return "[]"
        case dict():
            return "{}"
        case float():
            return f"{value:g}" if value != int(value) else f"{value:.1f}"
    return str(value)


class Notes:
    """Hands out notes, and knows at the end which were never asked for."""

    def __init__(self, notes: dict[str, dict[str, str]]) -> None:
        self._notes = notes
        self._used: set[tuple[str, str]] = set()

    def field(self, cls: type[Any], name: str) -> str:
        for section in (cls.__name__, "any"):
            if name in self._notes.get(section, {}):
                return self.of(section, name)
        raise Unfit(f"no note for {cls.__name__}.{name}")

    def of(self, section: str, name: str) -> str:
        if name not in self._notes[section]:
            raise Unfit(f"no note for {name} in [{section}]")
        self._used.add((section, name))
        return self._notes[section][name]

    def all(self, section: str) -> Iterator[tuple[str, str]]:
        for name in self._notes[section]:
            yield name, self.of(section, name)

    def check(self) -> None:
        every = {(section, name) for section, notes in self._notes.items() for name in notes}
        left = every - self._used
        if left:
            raise Unfit(f"notes about nothing: {sorted(left)}")


def read_notes() -> Notes:
    """Those of reference/notes.toml."""
    return Notes(tomllib.loads((REFERENCE / "notes.toml").read_text()))


Tables = dict[str, Callable[[Notes], str]]
