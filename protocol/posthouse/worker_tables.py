"""`[[worker]]` tables of a TOML file -> records, each with its place in the file.

Owns: how TOML spells each field of BackgroundWorker, and `replicas`. Must not know: what is done
with the records (apply registers all or nothing, a master skips the bad ones and reports them).
Invariant: every field of BackgroundWorker may be given; a key that is none is an error of the file,
a value that breaks a rule is an error of its record alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from posthouse import limits
from posthouse.config_keys import parse_duration, parse_size
from posthouse.errors import ConfigError, InvalidField
from posthouse.spec import BackgroundWorker
from posthouse.states import NEVER_RESTART, Every, Flags, StartTime
from posthouse.toml_file import TomlFile, nearest
from posthouse.values import shorten

__all__ = ["BadWorker", "DeclaredWorker", "read_replicas", "read_worker_tables"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredWorker:
    """A record that keeps every rule. `where` is file:line; `replicas` None: no group."""

    worker: BackgroundWorker
    where: str
    replicas: int | str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BadWorker:
    """A record that breaks a rule. `name` is what the table calls it, "" if that is no text."""

    name: str
    where: str
    error: ConfigError


def read_worker_tables(file: TomlFile) -> list[DeclaredWorker | BadWorker]:
    """The tables in the order of the file. Raises ConfigError where the file itself is wrong: no
    array of tables, too many of them, or a key that no worker has."""
    tables = file.values.get("worker", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(
            f"{file.where('worker')}: worker must be tables [[worker]]", field="worker"
        )
    if len(tables) > limits.workers_per_cluster_max:
        raise ConfigError(
            f"{file.where('worker')}: {len(tables)} tables [[worker]]: "
            f"must be at most {limits.workers_per_cluster_max}",
            field="worker",
        )
    for number, table in enumerate(tables):
        for key in table:
            if key not in _KNOWN:
                raise ConfigError(
                    f"{file.where('worker', str(number), key)}: unknown key {key!r} of a worker"
                    f"{nearest(key, _KNOWN)}",
                    file=file.path,
                    field=f"worker.{key}",
                )
    return [_read_table(file, str(number), table) for number, table in enumerate(tables)]


def read_replicas(value: Any) -> int | str | None:
    """How many members a group has. Raises InvalidField.

    >>> read_replicas(3), read_replicas("each-host"), read_replicas(None)
    (3, 'each-host', None)
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value is None or value == Every.HOST or (whole and 0 <= value <= limits.group_members_max):
        return value  # type: ignore[no-any-return]
    rule = f'must be a whole number from 0 to {limits.group_members_max}, or "{Every.HOST}"'
    shown = shorten(value)
    raise InvalidField(f"replicas is {shown}: {rule}", field="replicas", value=shown, rule=rule)


def _read_table(
    file: TomlFile, number: str, table: Mapping[str, Any]
) -> DeclaredWorker | BadWorker:
    name = table.get("name")
    shown = name if isinstance(name, str) else ""
    values: dict[str, Any] = {}
    for key, value in table.items():
        try:
            values[key] = _READERS[key](value) if key in _READERS else value
        except ValueError as error:
            told = f"{key} is {shorten(value)}: {error}"
            return _bad(file, number, shown, key, told, str(error), value)
    try:
        replicas = read_replicas(values.pop("replicas", None))
        worker = BackgroundWorker(**{"name": None, **values}).check()
    except InvalidField as error:
        key = str(error.detail.get("field", "")).partition(".")[0].partition("[")[0]
        return _bad(
            file, number, shown, key, error.message, str(error.detail.get("rule", "")), None
        )
    return DeclaredWorker(worker=worker, where=file.where("worker", number), replicas=replicas)


def _bad(
    file: TomlFile, number: str, name: str, key: str, message: str, rule: str, value: Any
) -> BadWorker:
    where = file.where("worker", number, key)
    of = f"worker {name!r}: " if name else "worker: "
    detail = {} if value is None else {"value": str(value)[:80]}
    error = ConfigError(f"{where}: {of}{message}", field=key, rule=rule, file=file.path, **detail)
    return BadWorker(name=name, where=where, error=error)


# --- fields that TOML spells in a way of its own --------------------------------------------------


def _seconds(value: Any) -> Any:
    """ "5s"; a number is seconds."""
    return parse_duration(value) if isinstance(value, str) else value


def _restart_time(value: Any) -> Any:
    if value == "never":
        return NEVER_RESTART
    try:
        return _seconds(value)
    except ValueError as error:
        raise ValueError(f"{error}, or never") from None


def _bytes(value: Any) -> Any:
    return parse_size(value) if isinstance(value, str) else value


def _extra(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value


def _flags(value: Any) -> Any:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return value
    flags = Flags(0)
    for name in names:
        if name.strip().upper() not in Flags.__members__:
            known = ", ".join(flag.lower() for flag in Flags.__members__)
            raise ValueError(f"must be some of {known}")
        flags |= Flags[name.strip().upper()]
    return flags


def _start_time(value: Any) -> Any:
    return StartTime(value) if isinstance(value, str) and value in set(StartTime) else value


def _budget(value: Any) -> Any:
    """ "5/1m", or [5, "1m"]."""
    if isinstance(value, str):
        starts, slash, window = value.partition("/")
        if not (slash and starts.isascii() and starts.isdecimal()):
            raise ValueError('must be STARTS/DURATION, as "5/1m"')
        return (int(starts[:9]), parse_duration(window))
    if isinstance(value, list):
        return tuple(_seconds(part) for part in value)
    return value


def _umask(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if not 1 <= len(value) <= 5 or any(digit not in "01234567" for digit in value):
        raise ValueError('must be an octal number, as "077"')
    return int(value, 8)


def _rlimits(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name.upper(): -1 if n == "unlimited" else n for name, n in value.items()}


_READERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "extra": _extra,
    "flags": _flags,
    "start_time": _start_time,
    "restart_time": _restart_time,
    "restart_time_max": _seconds,
    "restart_budget": _budget,
    "stop_grace_s": _seconds,
    "watchdog_s": _seconds,
    "umask": _umask,
    "rlimits": _rlimits,
    "log_bytes": _bytes,
}
_KNOWN: Final = (*(f.name for f in fields(BackgroundWorker)), "replicas")
