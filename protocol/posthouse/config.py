"""TOML, environment and flags -> one settings record, and where each value came from.

Owns: the keys of the configuration files and how their values are read. Must not know: what the
daemons do with them. Invariant: a value is checked the same way wherever it comes from, and a
refusal says where it stands, what it is, and what it must be.

A flag wins over POSTHOUSE_<KEY>, that over the file, that over the default. A table's key is
POSTHOUSE_<TABLE>__<NAME>__<KEY>. Unknown keys of a file are refused; unknown POSTHOUSE_ variables
are only told about (`Loaded.warnings`), because workers and other programs share the environment.
"""

import difflib
import math
import os
import platform
import re
import stat
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from posthouse import limits, paths
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


class _Rule(Exception):  # noqa: N818 - it never leaves this module
    """A value breaks a rule; says what it must be."""


# --- values ------------------------------------------------------------------------------------

_DURATION_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_BYTES = {"B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3}
_SIZE_BYTES |= {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_NUMBER_UNIT = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) *([A-Za-z]+)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=/+-]*")
_MODULES = re.compile(r"\*|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(\.\*)?", re.ASCII)
_Z85 = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_TCP = re.compile(r"tcp://(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9.*_-]+):(\d{1,5})")


def parse_duration(text: str) -> float:
    """Seconds of a number with a unit. Raises ValueError.

    >>> parse_duration("250ms"), parse_duration("2m"), parse_duration("1.5 h")
    (0.25, 120.0, 5400.0)
    """
    return _with_unit(text, _DURATION_S, 'a duration with its unit, as "5s", "250ms" or "2m"')


def parse_size(text: str) -> int:
    """Bytes of a number with a unit. Raises ValueError.

    >>> parse_size("16MiB"), parse_size("64 kB")
    (16777216, 64000)
    """
    size = _with_unit(text, _SIZE_BYTES, 'a size with its unit, as "16MiB" or "64kB"')
    if size != int(size):
        raise ValueError("must be a whole number of bytes")
    return int(size)


def _with_unit(text: str, units: Mapping[str, float], rule: str) -> float:
    match = _NUMBER_UNIT.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None or match[2] not in units:
        raise ValueError(f"must be {rule}")
    return float(match[1]) * units[match[2]]


Read = Callable[[Any, bool], Any]
"""Gives the typed value; True: it came as text (environment). Raises _Rule."""


def _text(value: Any, _from_text: bool) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise _Rule("text")
    return value


def _boolean(value: Any, from_text: bool) -> bool:
    if from_text:
        value = {"true": True, "false": False, "1": True, "0": False}.get(value.lower(), value)
    if not isinstance(value, bool):
        raise _Rule("true or false")
    return value


def _integer(low: int, high: int) -> Read:
    def read(value: Any, from_text: bool) -> int:
        if from_text and re.fullmatch(r"\d{1,18}", value, re.ASCII):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise _Rule(f"a whole number from {low} to {high}")
        return value

    return read


def _duration(low_s: float, high_s: float) -> Read:
    def read(value: Any, _from_text: bool) -> float:
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            raise _Rule(str(error).removeprefix("must be ")) from None
        if not math.isfinite(seconds) or not low_s <= seconds <= high_s:
            raise _Rule(f"from {low_s:g}s to {high_s:g}s")
        return seconds

    return read


def _choice(*choices: str) -> Read:
    def read(value: Any, _from_text: bool) -> str:
        if value not in choices:
            raise _Rule("one of " + ", ".join(choices))
        return str(value)

    return read


def _matching(pattern: re.Pattern[str], rule: str, bytes_max: int = limits.label_bytes_max) -> Read:
    def read(value: Any, from_text: bool) -> str:
        text = _text(value, from_text)
        if len(text.encode(errors="replace")) > bytes_max or not pattern.fullmatch(text):
            raise _Rule(f"{rule}, at most {bytes_max} bytes")
        return text

    return read


def _file(value: Any, from_text: bool) -> str:
    text = _text(value, from_text)
    path = str(Path.home()) + text[1:] if text.startswith("~/") else text
    if not Path(path).is_absolute() or len(os.fsencode(path)) > limits.path_bytes_max:
        raise _Rule("an absolute path, or one that begins with ~/")
    return os.path.normpath(path)


def _endpoint(value: Any, from_text: bool) -> str:
    text = _text(value, from_text)
    tcp = _TCP.fullmatch(text)
    if tcp and 1 <= int(tcp[2]) <= 65535:
        return text
    path = text.removeprefix("ipc://")
    if path != text and path.startswith("/") and not path.endswith("/"):
        if len(os.fsencode(path)) <= limits.socket_path_bytes_max:
            return text
        raise _Rule(f"a socket path of at most {limits.socket_path_bytes_max} bytes")
    raise _Rule("ipc:///absolute/path or tcp://address:port")


def _z85_key(value: Any, from_text: bool) -> str:
    text = _text(value, from_text)
    if not _Z85.fullmatch(text):
        raise _Rule("a public key of 40 characters (Z85)")
    return text


def _list_of(item: Read, items_max: int) -> Read:
    def read(value: Any, from_text: bool) -> tuple[Any, ...]:
        if from_text:
            value = [part.strip() for part in value.split(",")] if value.strip() else []
        if not isinstance(value, list | tuple):
            raise _Rule("a list")
        if len(value) > items_max:
            raise _Rule(f"a list of at most {items_max}")
        try:
            return tuple(item(part, False) for part in value)
        except _Rule as rule:
            raise _Rule(f"a list, each entry {rule}") from None

    return read


def _environment(value: Any, from_text: bool) -> dict[str, str]:
    good = not from_text and isinstance(value, dict) and len(value) <= limits.env_items_max
    if not good or not all(
        re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) and isinstance(text, str) and "\0" not in text
        for name, text in value.items()
    ):
        raise _Rule(f"a table of at most {limits.env_items_max} variable names and texts")
    return dict(value)


# --- keys --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Key:
    """One key: how its value is read, and which field of the settings it becomes."""

    name: str
    read: Read
    attribute: str = ""
    variable: str = ""  # of the environment, where it is not POSTHOUSE_<NAME>

    @property
    def target(self) -> str:
        return self.attribute or self.name

    @property
    def environment(self) -> str:
        return self.variable or f"POSTHOUSE_{self.name.upper()}"


_workers = _integer(0, limits.workers_per_cluster_max)
_module = _matching(_MODULES, '"pkg.mod", "pkg.*" or "*"', limits.library_bytes_max)
_log_format = Key("log_format", _choice("auto", "console", "json"), variable="POSTHOUSE_LOG")
_host_name = _matching(_NAME, "a name of letters, digits and . _ -")

KEYS: Mapping[str, tuple[Key, ...]] = {
    "master": (
        Key("state_dir", _file),
        Key("listen_agents", _endpoint),
        Key("listen_clients", _endpoint),
        Key("key_file", _file),
        Key("principals_file", _file),
        Key("insecure", _boolean),
        Key("lease", _duration(limits.lease_s_min, limits.lease_s_max), "lease_s"),
        Key("max_worker_processes", _workers),
        Key("max_worker_processes_per_host", _workers),
        _log_format,
    ),
    "agent": (
        Key("host", _host_name),
        Key("master", _endpoint),
        Key("runtime_dir", _file),
        Key("log_dir", _file),
        Key("key_file", _file),
        Key("master_key", _z85_key),
        Key("insecure", _boolean),
        Key("labels", _list_of(_matching(_LABEL, "a label"), limits.labels_max)),
        Key("max_worker_processes", _workers),
        Key("modules", _list_of(_module, 256)),
        Key("allow_exec", _boolean),
        Key("users", _list_of(_matching(_NAME, "a user name"), 64)),
        Key("start_wardens", _boolean),
        _log_format,
    ),
    "client": (
        Key("master", _endpoint),
        Key("key_file", _file),
        Key("master_key", _z85_key),
        Key("insecure", _boolean),
        Key("timeout", _duration(0.001, 86400.0), "timeout_s"),
    ),
    "runtime": (
        Key("python", _file),
        Key("path", _list_of(_file, 64)),
        Key("env", _environment),
        Key("preload", _list_of(_module, 256)),
    ),
}
"""The keys of each file, and of a [runtime.NAME] table of the agent's."""

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
                _host_name(name, False)
            except _Rule as rule:
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
            except _Rule as rule:
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
        return str(_host_name(name, False))
    except _Rule as rule:
        raise ConfigError(
            f"this machine calls itself {name!r}, which is not {rule}",
            hint="say host = ... in agent.toml, or --host",
        ) from None
