"""A TOML file as it was read: its values, and the line on which each of them begins.

Owns: the reading, its bound, how a refusal names the place. Must not know: which keys there are.
Invariant: whatever is in the file leads to values or to a ConfigError that says file and line.
"""

import difflib
import re
import stat
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posthouse import limits
from posthouse.errors import ConfigError

__all__ = ["TomlFile", "nearest", "read_toml", "refusal"]


@dataclass(frozen=True, slots=True)
class TomlFile:
    """`lines` has the path of each key; the tables of an array are numbered: ("worker", "0")."""

    path: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[tuple[str, ...], int] = field(default_factory=dict)

    def where(self, *key: str) -> str:
        """file:line of a key, or of what holds it."""
        for end in range(len(key), 0, -1):
            if key[:end] in self.lines:
                return f"{self.path}:{self.lines[key[:end]]}"
        return self.path


def read_toml(path: str, *, missing_ok: bool = False) -> TomlFile:
    """Read a file. Raises ConfigError; one that does not exist is empty if it may be missing."""
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise ConfigError(f"{path} is not a file")
        with Path(path).open("rb") as file:
            data = file.read(limits.config_bytes_max + 1)
    except FileNotFoundError:
        if not missing_ok:
            raise ConfigError(f"{path} does not exist") from None
        return TomlFile()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > limits.config_bytes_max:
        raise ConfigError(f"{path} has more than {limits.config_bytes_max} bytes")
    try:
        text = data.decode()
        values = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise _not_toml(path, str(error)) from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deep") from None
    return TomlFile(path, values, _lines(text))


def refusal(where: str, name: str, value: Any, rule: str) -> ConfigError:
    """An error that says where the value stands, what it is, and what it must be."""
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:60]}..."
    return ConfigError(
        f"{where}: {name} is {shown}: must be {rule}", field=name, value=shown, rule=rule
    )


def nearest(name: str, known: Sequence[str]) -> str:
    """A question about the known name that is most like this one; "" if none is."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _not_toml(path: str, message: str) -> ConfigError:
    found = re.search(r" \(at line (\d+), column (\d+)\)$", message)
    where = f"{path}:{found[1]}" if found else path
    return ConfigError(f"{where}: {message[: found.start()] if found else message}")


_HEADER = re.compile(r"\s*(\[\[?)([^\[\]]+)\]\]?\s*(?:#.*)?$")
_ASSIGNMENT = re.compile(
    r"\s*((?:[\w-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[\w-]+|\"[^\"]*\"))*)\s*="
)


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """On which line each key begins. Only for messages: tomllib does not tell."""
    found: dict[tuple[str, ...], int] = {}
    arrays: dict[tuple[str, ...], int] = {}  # how many tables of each array there are so far
    table: tuple[str, ...] = ()
    inside = ""  # the quotes of a string over several lines
    for number, line in enumerate(text.splitlines(), 1):
        if not inside:
            if header := _HEADER.match(line):
                table = _numbered(_parts(header[2]), arrays, new=header[1] == "[[")
                for end in range(1, len(table) + 1):
                    found.setdefault(table[:end], number)
            elif assignment := _ASSIGNMENT.match(line):
                key = (*table, *_parts(assignment[1]))
                for end in range(1, len(key) + 1):
                    found.setdefault(key[:end], number)
        for quotes in ('"""', "'''"):
            if inside in ("", quotes) and line.count(quotes) % 2:
                inside = "" if inside else quotes
    return found


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _numbered(
    parts: tuple[str, ...], arrays: dict[tuple[str, ...], int], *, new: bool
) -> tuple[str, ...]:
    """The path of a table: after the name of an array comes the number of its newest table."""
    path: tuple[str, ...] = ()
    for at, part in enumerate(parts):
        path = (*path, part)
        if new and at == len(parts) - 1:
            arrays[path] = arrays.get(path, -1) + 1
        if path in arrays:
            path = (*path, str(arrays[path]))
    return path
