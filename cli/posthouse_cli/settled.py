"""What configuration is in force on this machine, value by value, and where each came from.

Owns: the list of values of one file's kind, in the spelling that the file itself would use. Must
not know: how it is printed. Invariant: what `text` gives is TOML that reads back as the same value;
a secret is never given.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from posthouse import config
from posthouse.config import KEYS, Key, Loaded
from posthouse.errors import ConfigError

__all__ = ["KINDS", "Value", "file_of", "load", "spelt", "values"]

KINDS: Final = ("master", "agent", "client", "up")
_HIDDEN: Final = "(not shown)"


@dataclass(frozen=True, slots=True)
class Value:
    """One value in force; `text` is empty where there is none, `origin` says where it is from."""

    kind: str
    key: str
    text: str
    origin: str
    where: str


def load(kind: str, file: str | None = None, flags: Mapping[str, Any] | None = None) -> Loaded[Any]:
    """The settings of a kind as its program would read them here. Raises ConfigError."""
    if kind == "up":
        # `posthouse up` reads no environment: it is not this user's clients that it starts.
        found = file or ("posthouse.toml" if Path("posthouse.toml").exists() else None)
        if found is None:
            raise ConfigError(
                "there is no posthouse.toml in this folder",
                hint="`posthouse up` then declares no workers; or say --config FILE",
            )
        return config.load_master(found, environ={})
    read: Mapping[str, Any] = {
        "master": config.load_master,
        "agent": config.load_agent,
        "client": config.load_client,
    }
    loaded: Loaded[Any] = read[kind](file, flags=flags)
    return loaded


def file_of(kind: str) -> str:
    """The file that the kind reads where none is named."""
    return "posthouse.toml" if kind == "up" else config.usual_file(kind)


def values(kind: str, loaded: Loaded[Any]) -> list[Value]:
    """All values of a kind, in the order of its keys."""
    base = "master" if kind == "up" else kind
    found = [_value(kind, key, (), loaded, loaded.settings) for key in KEYS[base]]
    if base == "master":
        found += [
            _value(kind, key, ("cluster",), loaded, loaded.settings) for key in KEYS["cluster"]
        ]
    for runtime in getattr(loaded.settings, "runtimes", ()):
        path = ("runtime", runtime.name)
        found += [_value(kind, key, path, loaded, runtime) for key in KEYS["runtime"]]
    for database in getattr(loaded.settings, "databases", ()):
        path = ("databases", database.name)
        found += [_value(kind, key, path, loaded, database) for key in KEYS["databases"]]
    return found


def _value(kind: str, key: Key, path: tuple[str, ...], loaded: Loaded[Any], settings: Any) -> Value:
    dotted = ".".join((*path, key.name))
    origin = loaded.origins[dotted]
    value = getattr(settings, key.target)
    shown = json.dumps(_HIDDEN) if key.secret and value is not None else spelt(key.target, value)
    return Value(kind, dotted, shown, origin.kind, origin.where)


def spelt(target: str, value: Any) -> str:
    """The value as the file spells it: durations and sizes have their units."""
    if value is None:
        return ""
    if target.endswith("_s"):
        return f'"{value:.12g}s"'
    if target.endswith("_bytes"):
        return f'"{value}B"'
    if isinstance(value, tuple | list):
        return "[" + ", ".join(spelt("", item) for item in value) + "]"
    if isinstance(value, Mapping):
        pairs = (f"{name} = {spelt('', item)}" for name, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    return json.dumps(value, ensure_ascii=False)
