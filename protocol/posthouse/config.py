"""TOML, environment and flags -> one settings record, and where each value came from.

Owns: the files, precedence, origins. Must not know: how a single value is read (config_keys), what
the daemons do with it. Invariant: a value is checked the same way wherever it comes from, and a
refusal says where it stands, what it is, and what it must be.

A flag wins over POSTHOUSE_<KEY>, that over the file, that over the default. A table's key is
POSTHOUSE_<TABLE>__<NAME>__<KEY>. Unknown keys of a file are refused; unknown POSTHOUSE_ variables
are only told about (`Loaded.warnings`), because workers and other programs share the environment.
"""

import difflib
import os
import platform
import re
import stat
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from posthouse import limits, paths
from posthouse.config_keys import KEYS, Key, Rule, host_name, parse_duration, parse_size
from posthouse.errors import ConfigError
from posthouse.settings import AgentSettings, ClientSettings, MasterSettings, RuntimeSettings

__all__ = [
    "KEYS",
    "Key",
    "Loaded",
    "Origin",
    "load_agent",
    "load_client",
    "load_master",
    "parse_duration",
    "parse_size",
]

Settings = TypeVar("Settings", MasterSettings, AgentSettings, ClientSettings)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from: `kind` is flag, environment, file or default."""

    kind: str
    where: str = ""

    def __str__(self) -> str:
        return self.where or self.kind


@dataclass(frozen=True, slots=True)
class Loaded(Generic[Settings]):
    """Settings, the origin of each key, and what the reader ought to know."""

    settings: Settings
    origins: Mapping[str, Origin]
    warnings: tuple[str, ...] = ()


_RUNTIMES_MAX = 64
_TABLES = {"master": (), "agent": ("runtime",), "client": ()}
_LATER = {
    "worker": "[[worker]] tables are not supported yet: register the workers from a client",
    "preload_libraries": "preload_libraries is not supported yet",
}
_OTHER_VARIABLES = frozenset(("POSTHOUSE_DIR", "POSTHOUSE_CONFIG"))


# --- files -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Source:
    """A file as read: its values, and the line on which each begins."""

    path: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[tuple[str, ...], int] = field(default_factory=dict)

    def where(self, *key: str) -> str:
        for end in range(len(key), 0, -1):
            if key[:end] in self.lines:
                return f"{self.path}:{self.lines[key[:end]]}"
        return self.path


def _read_file(kind: str, chosen: str | None, environ: Mapping[str, str]) -> _Source:
    named = chosen or environ.get("POSTHOUSE_CONFIG") or None
    path = named or str(paths.config_file(kind))
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise ConfigError(f"{path} is not a file")
        with Path(path).open("rb") as file:
            data = file.read(limits.config_bytes_max + 1)
    except FileNotFoundError:
        if named:
            raise ConfigError(f"{path} does not exist") from None
        return _Source()
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
    return _Source(path, values, _lines(text))


def _not_toml(path: str, message: str) -> ConfigError:
    found = re.search(r" \(at line (\d+), column (\d+)\)$", message)
    where = f"{path}:{found[1]}" if found else path
    return ConfigError(f"{where}: {message[: found.start()] if found else message}")


_HEADER = re.compile(r"\s*\[\[?([^\[\]]+)\]\]?\s*(?:#.*)?$")
_ASSIGNMENT = re.compile(
    r"\s*((?:[\w-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[\w-]+|\"[^\"]*\"))*)\s*="
)


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """On which line each key begins. Only for messages: tomllib does not tell."""
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    inside = ""  # the quotes of a string over several lines
    for number, line in enumerate(text.splitlines(), 1):
        if not inside:
            if header := _HEADER.match(line):
                table = _parts(header[1])
                found.setdefault(table, number)
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


# --- loading -----------------------------------------------------------------------------------


class _Loader:
    """Finds the value of each key in flags, environment and file, in this order."""

    def __init__(
        self,
        kind: str,
        file: str | None,
        flags: Mapping[str, Any] | None,
        environ: Mapping[str, str] | None,
    ) -> None:
        self.kind = kind
        self.flags = {k: v for k, v in (flags or {}).items() if v is not None and v != ()}
        self.environ = os.environ if environ is None else environ
        self.file = _read_file(kind, file, self.environ)
        self.origins: dict[str, Origin] = {}
        unknown = self.flags.keys() - {key.name for key in KEYS[kind]}
        assert not unknown, f"flags that are no keys: {unknown}"
        self._refuse_unknown((), self.file.values, [k.name for k in KEYS[kind]], _TABLES[kind])

    def values(self) -> dict[str, Any]:
        """The attributes that somebody has given a value."""
        return self._table(KEYS[self.kind], (), self.file.values)

    def runtimes(self) -> tuple[RuntimeSettings, ...]:
        tables = self.file.values.get("runtime", {})
        if not isinstance(tables, dict) or len(tables) > _RUNTIMES_MAX:
            raise self._wrong(
                ("runtime",), tables, f"at most {_RUNTIMES_MAX} tables [runtime.NAME]"
            )
        names = dict.fromkeys(["default", *tables])
        for variable in self.environ:
            if variable.startswith("POSTHOUSE_RUNTIME__") and variable.count("__") == 2:
                names[variable.split("__")[1].lower()] = None
        found = []
        for name in names:
            try:
                host_name(name, False)
            except Rule as rule:
                raise self._wrong(("runtime", name), name, str(rule)) from None
            table = tables.get(name, {})
            if not isinstance(table, dict):
                raise self._wrong(("runtime", name), table, "a table [runtime.NAME]")
            keys = KEYS["runtime"]
            self._refuse_unknown(("runtime", name), table, [k.name for k in keys], ())
            found.append(RuntimeSettings(name=name, **self._table(keys, ("runtime", name), table)))
        return tuple(found)

    def warnings(self) -> tuple[str, ...]:
        """One sentence for each POSTHOUSE_ variable that is no key of any file."""
        known = {key.environment for keys in KEYS.values() for key in keys} | _OTHER_VARIABLES
        return tuple(
            f"{variable} is unknown{_nearest(variable, sorted(known))}"
            for variable in sorted(self.environ)
            if variable.startswith("POSTHOUSE_") and "__" not in variable and variable not in known
        )

    def _table(
        self, keys: Sequence[Key], path: tuple[str, ...], table: Mapping[str, Any]
    ) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key in keys:
            full = (*path, key.name)
            dotted = ".".join(full)
            variable = key.environment if not path else "POSTHOUSE_" + "__".join(full).upper()
            if not path and key.name in self.flags:
                value, origin = self.flags[key.name], Origin("flag", _flag(key.name))
            elif variable in self.environ:
                value, origin = self.environ[variable], Origin("environment", variable)
            elif key.name in table:
                value, origin = table[key.name], Origin("file", self.file.where(*full))
            else:
                self.origins[dotted] = Origin("default")
                continue
            try:
                values[key.target] = key.read(value, origin.kind == "environment")
            except Rule as rule:
                raise _refusal(origin.where, dotted, value, str(rule)) from None
            self.origins[dotted] = origin
        return values

    def _refuse_unknown(
        self,
        path: tuple[str, ...],
        table: Mapping[str, Any],
        keys: Sequence[str],
        tables: Sequence[str],
    ) -> None:
        for name in table:
            if name in keys or name in tables:
                continue
            where = self.file.where(*path, name)
            if not path and name in _LATER:
                raise ConfigError(f"{where}: {_LATER[name]}", file=self.file.path, field=name)
            dotted = ".".join((*path, name))
            raise ConfigError(
                f"{where}: unknown key {dotted!r}{_nearest(name, [*keys, *tables])}",
                file=self.file.path,
                field=dotted,
            )

    def _wrong(self, key: tuple[str, ...], value: Any, rule: str) -> ConfigError:
        return _refusal(self.file.where(*key) or "environment", ".".join(key), value, rule)


def _refusal(where: str, name: str, value: Any, rule: str) -> ConfigError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:60]}..."
    return ConfigError(
        f"{where}: {name} is {shown}: must be {rule}", field=name, value=shown, rule=rule
    )


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def load_master(
    file: str | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Loaded[MasterSettings]:
    """Settings of `posthouse master`. A flag of None or () was not given. Raises ConfigError."""
    loader = _Loader("master", file, flags, environ)
    values = loader.values()
    values.setdefault("state_dir", str(paths.state_dir()))
    if "listen_agents" not in values:
        values["listen_agents"] = paths.agents_endpoint()
    if "listen_clients" not in values:
        values["listen_clients"] = paths.clients_endpoint()
    return Loaded(MasterSettings(**values), loader.origins, loader.warnings())


def load_agent(
    file: str | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Loaded[AgentSettings]:
    """Settings of `posthouse agent`. A flag of None or () was not given. Raises ConfigError."""
    loader = _Loader("agent", file, flags, environ)
    values = loader.values()
    values["runtimes"] = loader.runtimes()
    if "host" not in values:
        values["host"] = _this_host()
    if "master" not in values:
        values["master"] = paths.agents_endpoint()
    values.setdefault("runtime_dir", str(paths.host_runtime_dir(values["host"])))
    values.setdefault("log_dir", str(paths.host_log_dir(values["host"])))
    return Loaded(AgentSettings(**values), loader.origins, loader.warnings())


def load_client(
    file: str | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Loaded[ClientSettings]:
    """Settings of `posthouse.connect()`. A flag of None was not given. Raises ConfigError."""
    loader = _Loader("client", file, flags, environ)
    values = loader.values()
    if "master" not in values:
        values["master"] = paths.clients_endpoint()
    return Loaded(ClientSettings(**values), loader.origins, loader.warnings())


def _this_host() -> str:
    name = platform.node().split(".", 1)[0]
    try:
        return str(host_name(name, False))
    except Rule as rule:
        raise ConfigError(
            f"this machine calls itself {name!r}, which is not {rule}",
            hint="say host = ... in agent.toml, or --host",
        ) from None
