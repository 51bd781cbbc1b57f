"""The fields of a BackgroundWorker as options of the command line.

Owns: how the text of each field is read. Must not know: the fields' rules (spec checks them).
Invariant: every field of BackgroundWorker is in the table; `--field` and `-o field=` read alike.
"""

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from posthouse import BackgroundWorker, Flags, StartTime
from posthouse.config import parse_size
from posthouse.errors import UsageError
from posthouse_cli import durations

__all__ = ["FIELDS", "build", "field_options"]

Read = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class _Field:
    metavar: str
    help: str
    read: Read = str
    many: Callable[[Sequence[Any]], Any] | None = None  # how repeated values are put together


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"is not JSON ({error}); text needs its quotes, as in '\"orders\"'"
        ) from None


def _bytes(text: str) -> bytes:
    return Path(text[1:]).read_bytes() if text.startswith("@") else text.encode()


def _flags(text: str) -> int:
    try:
        return sum({Flags[name.strip().upper()] for name in text.split(",")})
    except KeyError:
        names = ",".join(flag.name.lower() for flag in Flags if flag.name)
        raise ValueError(f"must be some of {names}") from None


def _start_time(text: str) -> StartTime:
    try:
        return StartTime(text.replace("-", "_"))
    except ValueError:
        raise ValueError("must be one of " + ", ".join(StartTime)) from None


def _restart_time(text: str) -> float:
    try:
        return -1 if text == "never" else durations.parse(text)
    except ValueError as error:
        raise ValueError(f"{error}, or never") from None


def _budget(text: str) -> tuple[int, float]:
    starts, _, window = text.partition("/")
    if not (starts.isdecimal() and window):
        raise ValueError("must be STARTS/DURATION, as 5/1m")
    return int(starts), durations.parse(window)


def _yes(text: str) -> bool:
    known = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
    if text.lower() not in known:
        raise ValueError("must be yes or no")
    return known[text.lower()]


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError("must be NAME=VALUE")
    return name, value


def _limit(text: str) -> tuple[str, int]:
    name, value = _pair(text)
    return name.upper(), -1 if value == "unlimited" else _whole(value)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("must be a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("must be a number") from None


def _octal(text: str) -> int:
    try:
        return int(text, 8)
    except ValueError:
        raise ValueError("must be an octal number, as 077") from None


def _size(text: str) -> int:
    return int(text) if text.isdecimal() else parse_size(text)


_S: Final = "DURATION"

FIELDS: Final[Mapping[str, _Field]] = {
    "name": _Field("TEXT", "shown in listings and logs; unique unless --unique no"),
    "main": _Field("MODULE:FUNC", "the function to run, or posthouse.exec for a program"),
    "library": _Field("MODULE", "used with --function where --main is not given"),
    "function": _Field("NAME", "see --library"),
    "main_arg": _Field("JSON", "the function's only argument", _json),
    "extra": _Field("TEXT|@FILE", "bytes that worker.entry().extra gives", _bytes),
    "type": _Field("TEXT", "kind of worker, shown in listings"),
    "flags": _Field("NAMES", "some of shmem_access,database_connection", _flags),
    "start_time": _Field(
        "PHASE", "one of postmaster_start, consistent_state, recovery_finished", _start_time
    ),
    "restart_time": _Field(f"{_S}|never", "from a failure to the next start", _restart_time),
    "restart_growth": _Field("NUMBER", "factor by which that delay grows", _number),
    "restart_time_max": _Field(_S, "up to this", durations.parse),
    "restart_jitter": _Field("NUMBER", "random part of it, 0 to 1", _number),
    "restart_budget": _Field(f"N/{_S}", "starts in a window before it counts as flapping", _budget),
    "notify": _Field("YES|NO", "SIGUSR1 to the registering process", _yes),
    "unique": _Field("YES|NO", "no other live registration has the name", _yes),
    "host": _Field("NAME", "where it runs"),
    "labels": _Field("LABEL", "labels its host must have; may be repeated", str, tuple),
    "runtime": _Field("NAME", "the host's interpreter"),
    "fence": _Field("KIND", "how it is guarded: process or tree"),
    "on_partition": _Field("WHAT", "what becomes of it, stop or keep, when its host is cut off"),
    "crash_domain": _Field("NAME", "the shared memory group it is reset with"),
    "unblock_signals": _Field("YES|NO", "enter main with signals open", _yes),
    "stop_signal": _Field("SIGNAL", "how it is asked to end"),
    "stop_grace_s": _Field(_S, "from that to KILL", durations.parse),
    "reload_signal": _Field("SIGNAL", "how it is asked to reload"),
    "watchdog_s": _Field(_S, "it must give a heartbeat this often", durations.parse),
    "run_as": _Field("USER", "whose process it is"),
    "env": _Field("NAME=VALUE", "a variable of its environment; may be repeated", _pair, dict),
    "cwd": _Field("DIR", "its working directory"),
    "rlimits": _Field("NAME=N", "a resource limit, as NOFILE=1024; may be repeated", _limit, dict),
    "nice": _Field("N", "its niceness, -20 to 19", _whole),
    "umask": _Field("OCTAL", "its file mode mask", _octal),
    "log_bytes": _Field("SIZE", "output that is kept, as 16MiB", _size),
}


def field_options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An option `--field` for each name, and `-o field=value` for any field."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        function = click.option(
            "-o",
            "assignments",
            multiple=True,
            metavar="FIELD=VALUE",
            help="Any field of BackgroundWorker; may be repeated.",
        )(function)
        for name in reversed(names):
            spec = FIELDS[name]
            flag = f"--{name.replace('_', '-')}"
            function = click.option(
                # Given once for each: so the singular reads better, and is what help shows first.
                *([flag.removesuffix("s")] if flag in ("--labels", "--rlimits") else []),
                flag,
                name,
                multiple=True,
                metavar=spec.metavar,
                help=f"{spec.help[0].upper()}{spec.help[1:]}.",
            )(function)
        return function

    return decorate


def build(assignments: Sequence[str], options: Mapping[str, Sequence[str]]) -> BackgroundWorker:
    """The record. Raises UsageError for what cannot be read, InvalidField for a broken rule."""
    given: dict[str, list[str]] = {name: list(texts) for name, texts in options.items() if texts}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name = name.replace("-", "_")
        if not equals:
            raise UsageError(f"-o {assignment!r} is not FIELD=VALUE", hint="as in -o nice=5")
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, 1)
            hint = f"did you mean {near[0]}?" if near else "the fields: " + ", ".join(FIELDS)
            raise UsageError(f"{name!r} is no field of BackgroundWorker", hint=hint)
        given.setdefault(name, []).append(text)
    if "name" not in given:
        raise UsageError("the worker has no name", hint="say --name NAME")
    return BackgroundWorker(**{name: _read(name, texts) for name, texts in given.items()}).check()


def _read(name: str, texts: list[str]) -> Any:
    spec = FIELDS[name]
    values = []
    for text in texts:
        try:
            values.append(spec.read(text))
        except (ValueError, OSError) as error:
            raise UsageError(f"{name} is {text!r}: {error}") from None
    if spec.many is not None:
        return spec.many(values)
    if len(values) > 1:
        raise UsageError(f"{name} is given {len(values)} times", hint="once is enough")
    return values[0]
