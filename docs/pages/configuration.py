"""The tables of configuration.md, from the keys that the code reads.

Owns: a row for each key. Must not know: how files are read. Invariant:
what a value must be is the very rule that refuses a wrong one, and no key is without a note.
"""

import tomllib
from dataclasses import MISSING

from pages.notes import REFERENCE, Tables, table
from posthouse import config
from posthouse.config import KEYS, Key
from posthouse.config_keys import Rule
from posthouse.settings import (
    AgentSettings,
    ClientSettings,
    DatabaseSettings,
    MasterSettings,
    RuntimeSettings,
)
from posthouse_cli import settled

__all__ = ["TABLES"]

_NOTES = REFERENCE / "configuration.toml"
_RECORDS = {
    "master": MasterSettings,
    "cluster": MasterSettings,
    "agent": AgentSettings,
    "client": ClientSettings,
    "runtime": RuntimeSettings,
    "databases": DatabaseSettings,
}


_WRONG = (object(), "\x01", ["\x01"], "0us", "0.5B")


def _must_be(key: Key) -> str:
    """The rules, in the words of the refusals of values that break one after the other."""
    found: list[str] = []
    for value in _WRONG:
        try:
            key.read(value, False)
        except Rule as rule:
            found.append(str(rule))
    assert found, f"{key.name} may be anything"
    told = [one for one in dict.fromkeys(found) if not _said_better(one, found)]
    return ", ".join(told)


def _said_better(rule: str, rules: list[str]) -> bool:
    """Whether another of the rules says the same and more."""
    general = rule == "text" or rule.endswith("entry text")
    return (
        any(other != rule and (general or other.startswith(f"{rule},")) for other in rules)
        or rule == "must be a whole number of bytes"
    )


def _default(kind: str, key: Key, notes: dict[str, str]) -> str:
    """The default of the settings record; the notes tell those that follow from the machine."""
    found = _RECORDS[kind].__dataclass_fields__[key.target]
    told = notes.get(f"{key.name}.default")
    if told is not None:
        return told
    factory, value = found.default_factory, found.default
    if value is MISSING and factory is MISSING:
        return "required"
    value = factory() if callable(factory) else value
    text = settled.spelt(key.target, value)
    return f"`{text}`" if text else "none"


def _variable(kind: str, key: Key) -> str:
    if kind == "cluster":
        return f"POSTHOUSE_CLUSTER__{key.name.upper()}"
    if kind == "runtime":
        return f"POSTHOUSE_RUNTIME__NAME__{key.name.upper()}"
    if kind == "databases":
        return ""  # it would be inherited by workers
    return key.environment


def keys(kind: str) -> str:
    """A row for each key of a kind. Raises AssertionError where notes and keys differ."""
    notes: dict[str, str] = tomllib.loads(_NOTES.read_text())[kind]
    names = {key.name for key in KEYS[kind]}
    noted = {name.removesuffix(".default") for name in notes}
    assert names == noted, f"configuration.toml, [{kind}]: {sorted(names ^ noted)}"
    rows = [
        (
            f"`{key.name}`",
            _must_be(key),
            _default(kind, key, notes),
            f"`{variable}`" if (variable := _variable(kind, key)) else "none",
            notes[key.name],
        )
        for key in KEYS[kind]
    ]
    return table(("key", "must be", "default", "variable", ""), rows)


def variables() -> str:
    """The variables that are no key of a file."""
    rows = [
        ("POSTHOUSE_DIR", "folder of this user's sockets, and of `posthouse up`"),
        (
            "POSTHOUSE_CONFIG",
            "the folder of master.toml, agent.toml and client.toml, instead of the usual ones",
        ),
        ("NO_COLOR", "no colours, whatever its value"),
        ("FORCE_COLOR", "colours also in a pipe"),
    ]
    assert {name for name, _ in rows} >= config.OTHER_VARIABLES
    return table(("variable", ""), [(f"`{name}`", text) for name, text in rows])


TABLES: Tables = {
    "config_master": lambda _: keys("master"),
    "config_cluster": lambda _: keys("cluster"),
    "config_agent": lambda _: keys("agent"),
    "config_runtime": lambda _: keys("runtime"),
    "config_databases": lambda _: keys("databases"),
    "config_client": lambda _: keys("client"),
    "config_variables": lambda _: variables(),
}
