"""TOML, environment and flags -> one settings record, and where each value came from.

Owns: the files, precedence, origins. Must not know: how a single value is read (config_keys), what
the daemons do with it. Invariant: a value is checked the same way wherever it comes from, and a
refusal says where it stands, what it is, and what it must be.

A flag wins over POSTHOUSE_<KEY>, that over the file, that over the default. A table's key is
POSTHOUSE_<TABLE>__<NAME>__<KEY>. Unknown keys of a file are refused; unknown POSTHOUSE_ variables
are only told about (`Loaded.warnings`), because workers and other programs share the environment.
"""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from posthouse import limits, paths
from posthouse.config_keys import KEYS, Key, Rule, host_name, parse_duration, parse_size
from posthouse.errors import ConfigError
from posthouse.settings import (
    AgentSettings,
    ClientSettings,
    DatabaseSettings,
    MasterSettings,
    RuntimeSettings,
)
from posthouse.toml_file import TomlFile, nearest, read_toml, refusal
from posthouse.worker_tables import read_worker_tables

__all__ = [
    "KEYS",
    "OTHER_VARIABLES",
    "Key",
    "Loaded",
    "Origin",
    "load_agent",
    "load_client",
    "load_databases",
    "load_master",
    "parse_duration",
    "parse_size",
    "usual_file",
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
_TABLES = {
    "master": ("cluster", "worker", "databases"),
    "agent": ("runtime", "databases"),
    "client": (),
}
OTHER_VARIABLES = frozenset(("POSTHOUSE_DIR", "POSTHOUSE_CONFIG"))


def usual_file(kind: str, environ: Mapping[str, str] | None = None) -> str:
    """The file that is read, if it is there, where none is named: KIND.toml in the folder that
    $POSTHOUSE_CONFIG names, else in the usual one. A folder, because whoever starts a master, an
    agent or a client may have the variable for another of them. Raises ConfigError."""
    folder = (os.environ if environ is None else environ).get("POSTHOUSE_CONFIG")
    if not folder:
        return str(paths.config_file(kind))
    if not Path(folder).is_dir():
        raise ConfigError(
            f"POSTHOUSE_CONFIG is {folder!r}: must be a folder, in which master.toml, agent.toml "
            "and client.toml are looked for",
            hint="a single file is named by --config",
        )
    return str(Path(folder, f"{kind}.toml"))


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
        self.file = read_toml(file or usual_file(kind, self.environ), missing_ok=not file)
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

    def databases(self) -> tuple[DatabaseSettings, ...]:
        """Of the file alone: their URLs hold passwords, and workers inherit the environment."""
        return _read_databases(self.file, self.origins)

    def cluster(self) -> dict[str, Any]:
        """The attributes that [cluster] gives values."""
        table = self.file.values.get("cluster", {})
        if not isinstance(table, dict):
            raise self._wrong(("cluster",), table, "a table [cluster]")
        self._refuse_unknown(("cluster",), table, [key.name for key in KEYS["cluster"]], ())
        return self._table(KEYS["cluster"], ("cluster",), table)

    def warnings(self) -> tuple[str, ...]:
        """One sentence for each POSTHOUSE_ variable that is no key of any file."""
        known = {key.environment for keys in KEYS.values() for key in keys} | OTHER_VARIABLES
        return tuple(
            f"{variable} is unknown{nearest(variable, sorted(known))}"
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
                shown = "(not shown)" if key.secret else value
                raise refusal(origin.where, dotted, shown, str(rule)) from None
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
            dotted = ".".join((*path, name))
            raise ConfigError(
                f"{where}: unknown key {dotted!r}{nearest(name, [*keys, *tables])}",
                file=self.file.path,
                field=dotted,
            )

    def _wrong(self, key: tuple[str, ...], value: Any, rule: str) -> ConfigError:
        return refusal(self.file.where(*key) or "environment", ".".join(key), value, rule)


def _read_databases(
    file: TomlFile, origins: dict[str, Origin] | None = None
) -> tuple[DatabaseSettings, ...]:
    """The tables [databases.NAME] of a file. Raises ConfigError, which shows no URL."""
    tables = file.values.get("databases", {})
    if not isinstance(tables, dict) or len(tables) > limits.databases_max:
        rule = f"at most {limits.databases_max} tables [databases.NAME]"
        raise refusal(file.where("databases"), "databases", _Hidden(), rule)
    found = []
    for name, table in tables.items():
        dotted = f"databases.{name}"
        where = file.where("databases", name)
        try:
            host_name(name, False)
        except Rule as broken:
            raise refusal(where, dotted, name, str(broken)) from None
        if not isinstance(table, dict):
            raise refusal(where, dotted, _Hidden(), f"a table [{dotted}] with a url")
        found.append(_database(file, name, table, {} if origins is None else origins))
    main = [database.name for database in found if database.maintenance]
    if len(main) > 1:
        raise ConfigError(
            f"{file.where('databases', main[1])}: databases.{main[1]} is the maintenance database, "
            f"and so is databases.{main[0]}: there is one at most",
            field=f"databases.{main[1]}.maintenance",
        )
    size = sum(len(database.name.encode()) + len(database.url.encode()) + 16 for database in found)
    if size > limits.databases_bytes_max:
        rule = f"names and URLs of at most {limits.databases_bytes_max} bytes"
        raise refusal(file.where("databases"), "databases", _Hidden(), rule)
    return tuple(found)


def _database(
    file: TomlFile, name: str, table: Mapping[str, Any], origins: dict[str, Origin]
) -> DatabaseSettings:
    known = {key.name: key for key in KEYS["databases"]}
    values: dict[str, Any] = {}
    origins |= {f"databases.{name}.{key}": Origin("default") for key in known}
    for key, value in table.items():
        dotted, where = f"databases.{name}.{key}", file.where("databases", name, key)
        if key not in known:
            text = f"{where}: unknown key {dotted!r}{nearest(key, list(known))}"
            raise ConfigError(text, file=file.path, field=dotted)
        try:
            values[key] = known[key].read(value, False)
        except Rule as rule:
            shown = _Hidden() if known[key].secret else value
            raise refusal(where, dotted, shown, str(rule)) from None
        origins[dotted] = Origin("file", where)
    if "url" not in values:
        raise ConfigError(
            f"{file.where('databases', name)}: databases.{name} has no url",
            hint='url = "postgresql://user@host:port/dbname" or "sqlite:///absolute/path"',
            field=f"databases.{name}.url",
        )
    return DatabaseSettings(name=name, **values)


class _Hidden:
    """Stands for a value that may hold a password."""

    def __repr__(self) -> str:
        return "(not shown)"


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
    values = loader.values() | loader.cluster()
    values.setdefault("state_dir", str(paths.state_dir()))
    if "listen_agents" not in values:
        values["listen_agents"] = paths.agents_endpoint()
    if "listen_clients" not in values:
        values["listen_clients"] = paths.clients_endpoint()
    if loader.file.path:
        # An absent file is no empty one: it does not say that there are no workers.
        values["workers"] = tuple(read_worker_tables(loader.file))
        values.setdefault("preload_libraries", ())
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
    values["databases"] = loader.databases()
    if "host" not in values:
        values["host"] = _this_host()
    if "master" not in values:
        values["master"] = paths.agents_endpoint()
    values.setdefault("runtime_dir", str(paths.host_runtime_dir(values["host"])))
    values.setdefault("log_dir", str(paths.host_log_dir(values["host"])))
    return Loaded(AgentSettings(**values), loader.origins, loader.warnings())


def load_databases(file: str) -> tuple[DatabaseSettings, ...]:
    """The tables [databases.NAME] of any file: `posthouse up` hands its own on to its hosts.
    Raises ConfigError."""
    return _read_databases(read_toml(file))


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
