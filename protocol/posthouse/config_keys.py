"""The keys of the configuration files, and how the value of each is read.

Owns: one reader for each kind of value, and the table of keys. Must not know: where a value came
from, files, precedence (config). Invariant: a reader gives back the typed value or raises Rule.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posthouse import limits

__all__ = ["KEYS", "Key", "Rule", "host_name", "parse_duration", "parse_size"]


class Rule(Exception):
    """A value breaks a rule; says what it must be."""


_DURATION_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_BYTES = {"B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3}
_SIZE_BYTES |= {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_NUMBER_UNIT = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) *([A-Za-z]+)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=/+-]*")
_MODULES = re.compile(r"\*|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(\.\*)?", re.ASCII)
_LIBRARY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_LOOPBACK = re.compile(r"(?:127(?:\.\d{1,3}){3}|\[::1\]|localhost):(\d{1,5})")
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
"""Gives the typed value; True: it came as text (environment). Raises Rule."""


def _text(value: Any, _from_text: bool) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise Rule("text")
    return value


def _boolean(value: Any, from_text: bool) -> bool:
    if from_text:
        value = {"true": True, "false": False, "1": True, "0": False}.get(value.lower(), value)
    if not isinstance(value, bool):
        raise Rule("true or false")
    return value


def _integer(low: int, high: int) -> Read:
    def read(value: Any, from_text: bool) -> int:
        if from_text and re.fullmatch(r"\d{1,18}", value, re.ASCII):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise Rule(f"a whole number from {low} to {high}")
        return value

    return read


def _duration(low_s: float, high_s: float) -> Read:
    def read(value: Any, _from_text: bool) -> float:
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            raise Rule(str(error).removeprefix("must be ")) from None
        if not low_s <= seconds <= high_s:
            raise Rule(f"from {low_s:g}s to {high_s:g}s")
        return seconds

    return read


def _size(low: int, high: int) -> Read:
    def read(value: Any, _from_text: bool) -> int:
        try:
            size = parse_size(value)
        except ValueError as error:
            raise Rule(str(error).removeprefix("must be ")) from None
        if not low <= size <= high:
            raise Rule(f"from {low}B to {high}B")
        return size

    return read


def _choice(*choices: str) -> Read:
    def read(value: Any, _from_text: bool) -> str:
        if value not in choices:
            raise Rule("one of " + ", ".join(choices))
        return str(value)

    return read


def _matching(pattern: re.Pattern[str], rule: str, bytes_max: int = limits.label_bytes_max) -> Read:
    def read(value: Any, from_text: bool) -> str:
        text = _text(value, from_text)
        if len(text.encode(errors="replace")) > bytes_max or not pattern.fullmatch(text):
            raise Rule(f"{rule}, at most {bytes_max} bytes")
        return text

    return read


def _file(value: Any, from_text: bool) -> str:
    text = _text(value, from_text)
    path = str(Path.home()) + text[1:] if text.startswith("~/") else text
    if not Path(path).is_absolute() or len(os.fsencode(path)) > limits.path_bytes_max:
        raise Rule("an absolute path, or one that begins with ~/")
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
        raise Rule(f"a socket path of at most {limits.socket_path_bytes_max} bytes")
    raise Rule("ipc:///absolute/path or tcp://address:port")


def _loopback(value: Any, from_text: bool) -> str:
    text = _text(value, from_text)
    match = _LOOPBACK.fullmatch(text)
    if not match or not 0 <= int(match[1]) <= 65535:
        raise Rule("127.0.0.1:port, [::1]:port or localhost:port: it has no keys, so only loopback")
    return text


def _postgresql_url(value: Any, from_text: bool) -> str:
    text = _text(value, from_text)
    if not text.startswith(("postgresql://", "postgres://")):
        raise Rule("postgresql://user@host:port/dbname")
    if len(text.encode(errors="replace")) > limits.path_bytes_max:
        raise Rule(f"a URL of at most {limits.path_bytes_max} bytes")
    return text


def _database_url(value: Any, from_text: bool) -> str:
    text = _text(value, from_text)
    if len(text.encode(errors="replace")) > limits.database_url_bytes_max:
        raise Rule(f"a URL of at most {limits.database_url_bytes_max} bytes")
    if text.startswith(("postgresql://", "postgres://")):
        return text
    path = text.removeprefix("sqlite://")
    if path == text or not path.strip("/") or not path.startswith("/") or path.endswith("/"):
        raise Rule("postgresql://user@host:port/dbname or sqlite:///absolute/path")
    return text


def _z85_key(value: Any, from_text: bool) -> str:
    text = _text(value, from_text)
    if not _Z85.fullmatch(text):
        raise Rule("a public key of 40 characters (Z85)")
    return text


def _list_of(item: Read, items_max: int) -> Read:
    def read(value: Any, from_text: bool) -> tuple[Any, ...]:
        if from_text:
            value = [part.strip() for part in value.split(",")] if value.strip() else []
        if not isinstance(value, list | tuple):
            raise Rule("a list")
        if len(value) > items_max:
            raise Rule(f"a list of at most {items_max}")
        try:
            return tuple(item(part, False) for part in value)
        except Rule as rule:
            raise Rule(f"a list, each entry {rule}") from None

    return read


def _once(read: Read) -> Read:
    def read_once(value: Any, from_text: bool) -> tuple[Any, ...]:
        found: tuple[Any, ...] = read(value, from_text)
        if len(set(found)) != len(found):
            raise Rule("a list without repetitions")
        return found

    return read_once


def _environment(value: Any, from_text: bool) -> dict[str, str]:
    if from_text:  # NAME=VALUE,NAME=VALUE; a value with a comma needs the file
        pairs = [part.partition("=") for part in value.split(",")] if value.strip() else []
        good = all(equals for _, equals, _ in pairs)
        value = {name.strip(): text for name, _, text in pairs} if good else None
    good = isinstance(value, dict) and len(value) <= limits.env_items_max
    if not good or not all(
        re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) and isinstance(text, str) and "\0" not in text
        for name, text in value.items()
    ):
        raise Rule(
            f"a table of at most {limits.env_items_max} variable names and texts "
            "(in the environment NAME=VALUE,NAME=VALUE)"
        )
    return dict(value)


# --- keys --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Key:
    """One key: how its value is read, and which field of the settings it becomes."""

    name: str
    read: Read
    attribute: str = ""
    variable: str = ""  # of the environment, where it is not POSTHOUSE_<NAME>
    secret: bool = False  # not shown where it is refused

    @property
    def target(self) -> str:
        return self.attribute or self.name

    @property
    def environment(self) -> str:
        return self.variable or f"POSTHOUSE_{self.name.upper()}"


_workers = _integer(0, limits.workers_per_cluster_max)
# Shorter than `library` may be: it is part of the name of a source.
_library = _matching(_LIBRARY, 'a module, as "pkg.mod"', limits.name_bytes_max)
_module = _matching(_MODULES, '"pkg.mod", "pkg.*" or "*"', limits.library_bytes_max)
_log_format = Key("log_format", _choice("auto", "console", "json"), variable="POSTHOUSE_LOG")
host_name = _matching(_NAME, "a name of letters, digits and . _ -")

KEYS: Mapping[str, tuple[Key, ...]] = {
    "master": (
        Key("state_dir", _file),
        Key("listen_agents", _endpoint),
        Key("listen_clients", _endpoint),
        Key("key_file", _file),
        Key("principals_file", _file),
        Key("insecure", _boolean),
        Key("lease", _duration(limits.lease_s_min, limits.lease_s_max), "lease_s"),
        Key("handover", _duration(limits.lease_s_min, limits.lease_s_max), "handover_s"),
        Key("mass_loss_wait", _duration(0.0, 86400.0), "mass_loss_wait_s"),
        Key("max_worker_processes", _workers),
        Key("max_worker_processes_per_host", _workers),
        Key("http", _loopback),
        Key("preload_libraries", _once(_list_of(_library, limits.preload_libraries_max))),
        Key("preload_path", _list_of(_file, 64)),
        Key("preload_timeout", _duration(0.1, limits.preload_timeout_s_max), "preload_timeout_s"),
        _log_format,
    ),
    "cluster": (Key("follow", _postgresql_url, secret=True),),
    "agent": (
        Key("host", host_name),
        Key("master", _endpoint),
        Key("runtime_dir", _file),
        Key("log_dir", _file),
        Key("log_total", _size(1024 * 1024, 2**50), "log_total_bytes"),
        Key("key_file", _file),
        Key("master_key", _z85_key),
        Key("insecure", _boolean),
        Key("labels", _list_of(_matching(_LABEL, "a label"), limits.labels_max)),
        Key("max_worker_processes", _workers),
        Key("modules", _list_of(_module, 256)),
        Key("allow_exec", _boolean),
        Key("users", _list_of(_matching(_NAME, "a user name"), 64)),
        Key("cgroups", _choice("auto", "on", "off")),
        Key("http", _loopback, variable="POSTHOUSE_HOST_HTTP"),
        Key("start_wardens", _boolean),
        _log_format,
    ),
    "databases": (
        Key("url", _database_url, secret=True),
        Key("maintenance", _boolean),
    ),
    "client": (
        Key("master", _endpoint),
        Key("key_file", _file),
        Key("master_key", _z85_key),
        Key("insecure", _boolean),
        Key("timeout", _duration(0.001, 86400.0), "timeout_s"),
        Key("agent_dir", _file),
    ),
    "runtime": (
        Key("python", _file),
        Key("path", _list_of(_file, 64)),
        Key("env", _environment),
        Key("preload", _list_of(_module, 256)),
    ),
}
"""The keys of each file, of the master's [cluster], and of the agent's tables [runtime.NAME] and
[databases.NAME]."""
