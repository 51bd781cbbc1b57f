"""BackgroundWorker: the seed's structure, field by field, and its sanity check.

Owns: the record, its rules (F1-F20), its wire form. Must not know: slots, hosts, processes.
Invariant: client and master run the same `check`; a refusal names field, value and rule; the wire
form leaves out what equals its default, so equal records have equal wire forms.
"""

import math
import re
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from posthouse import limits
from posthouse.errors import InvalidField
from posthouse.states import NEVER_RESTART, Flags, StartTime
from posthouse.values import copy_value, packed_size, shorten

__all__ = ["BackgroundWorker", "entry_point_name"]

Main = str | Callable[[Any], Any]

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=/+-]*")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RLIMITS = frozenset(
    ("AS", "CORE", "CPU", "DATA", "FSIZE", "MEMLOCK", "MSGQUEUE", "NICE", "NOFILE", "NPROC", "RSS")
    + ("RTPRIO", "RTTIME", "SIGPENDING", "STACK")
)
_FENCES = (None, "process", "tree")
_PARTITIONS = (None, "stop", "keep")


@dataclass(frozen=True, kw_only=True, eq=True)
class BackgroundWorker:
    """A registration as it is asked for. Keyword only and immutable; `check()` applies the rules.

    The names in brackets are those of the seed.

    name: shown in listings and logs; unique among live registrations unless `unique=False`
        [bgw_name].
    main: a callable importable by its qualified name, or "module:function"; called with main_arg
        [bgw_main].
    library, function: used where `main` is not given; loaded in the worker [bgw_library_name,
        bgw_function_name].
    main_arg: any msgpack value up to 64 KiB [bgw_main_arg].  extra: bytes up to 64 KiB, read
        through `worker.entry()` [bgw_extra].
    flags: SHMEM_ACCESS, DATABASE_CONNECTION (needs the former) [bgw_flags].
    start_time: the cluster phase from which it may start [bgw_start_time].
    restart_time: seconds >= 0 between a failure and the next start, or NEVER_RESTART
        [bgw_restart_time]. restart_growth, restart_time_max, restart_jitter: optional growth of
        that delay; restart_budget: (starts, window_s) after which the worker counts as flapping.
    notify: SIGUSR1 to the registering process at start and exit [bgw_notify_pid].
    host | labels: where it may run; neither means any host. runtime: the host's interpreter.
    fence, on_partition: what guards it when its host is cut off (None: the default of its kind).
    crash_domain: the shared memory group it is reset with.
    unblock_signals: enter main with signals open. stop_signal, stop_grace_s, reload_signal: how
        it is ended and reloaded. watchdog_s: it must give a heartbeat this often.
    run_as, env, cwd, rlimits, nice, umask: the process it runs in. log_bytes: output that is kept.

    >>> BackgroundWorker(name="ingest", main="acme.ingest:main").check().entry_point
    'acme.ingest:main'
    >>> BackgroundWorker(name="", main="acme:main").check()
    Traceback (most recent call last):
        ...
    posthouse.errors.InvalidField: name is '': must be 1 to 96 bytes
    """

    name: str
    main: Main | None = None
    library: str = ""
    function: str = ""
    main_arg: Any = None
    extra: bytes = b""
    type: str = ""
    flags: int = 0
    start_time: StartTime = StartTime.RECOVERY_FINISHED
    restart_time: float = 5.0
    restart_growth: float = 1.0
    restart_time_max: float | None = None
    restart_jitter: float = 0.0
    restart_budget: tuple[int, float] | None = None
    notify: bool = False
    unique: bool = True
    host: str | None = None
    labels: tuple[str, ...] = ()
    runtime: str = "default"
    fence: str | None = None
    on_partition: str | None = None
    crash_domain: str = "default"
    unblock_signals: bool = False
    stop_signal: str = "TERM"
    stop_grace_s: float = 5.0
    reload_signal: str = "HUP"
    watchdog_s: float | None = None
    run_as: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    rlimits: Mapping[str, int] = field(default_factory=dict)
    nice: int = 0
    umask: int = 0o077
    log_bytes: int = limits.log_bytes_max

    def __post_init__(self) -> None:
        # F18: the record is copied; what the caller does to his own objects later changes nothing.
        for name in ("env", "rlimits"):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                object.__setattr__(self, name, dict(value))
        if isinstance(self.labels, list):
            object.__setattr__(self, "labels", tuple(self.labels))
        if isinstance(self.restart_budget, list):
            object.__setattr__(self, "restart_budget", tuple(self.restart_budget))
        if isinstance(self.main_arg, list | dict | tuple | bytearray):
            object.__setattr__(self, "main_arg", copy_value("main_arg", self.main_arg))

    def __hash__(self) -> int:
        return hash((self.name, self.entry_point if isinstance(self.main, str) else self.name))

    @property
    def entry_point(self) -> str:
        """`main` as text, or library:function. Raises InvalidField for a callable without one."""
        if self.main is not None:
            return self.main if isinstance(self.main, str) else entry_point_name(self.main)
        return f"{self.library}:{self.function}"

    @property
    def pinned(self) -> bool:
        """True if nothing but the named host may run it."""
        return self.host is not None

    def check(self, *, static: bool = False) -> Self:
        """Apply every rule; returns itself. Raises InvalidField for the first one that is broken.

        `static` adds the rule for records of a configuration file or a preload library (F16).
        """
        for rule in _RULES:
            rule(self)
        _need(
            not (static and self.notify),
            "notify",
            self.notify,
            "False for a static registration: only dynamic ones can request notification",
        )
        return self

    def to_wire(self) -> dict[str, Any]:
        """The record as a msgpack map, without what equals its default.

        >>> BackgroundWorker(name="w", main="m:f", restart_time=1).to_wire()
        {'name': 'w', 'main': 'm:f', 'restart_time': 1.0}
        """
        wire: dict[str, Any] = {}
        for name, default in _DEFAULTS.items():
            value = getattr(self, name)
            if name == "main" and value is not None:
                value = self.entry_point
            elif name in _FLOATS and type(value) is int:
                value = float(value)
            if value != default or type(value) is not type(default):
                wire[name] = _plain(value)
        return wire

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Self:
        """The inverse of to_wire, checked. Raises InvalidField; an unknown field is refused."""
        if not isinstance(wire, Mapping):
            raise _bad("spec", wire, "a map of fields")
        for name in wire:
            if name not in _DEFAULTS:
                raise _bad(str(name), wire[name], "a field of BackgroundWorker")
        values = dict(wire)
        if "name" not in values:
            raise _bad("name", None, "given")
        start_time = values.get("start_time")
        if isinstance(start_time, str) and start_time in set(StartTime):
            values["start_time"] = StartTime(start_time)
        return cls(**values).check()


def entry_point_name(main: Callable[[Any], Any]) -> str:
    """ "module:function" of a callable, which must be importable by that name.

    Raises InvalidField, with the way out, for lambdas, closures, nested functions, bound methods
    and functions of `__main__`.

    >>> import json
    >>> entry_point_name(json.loads)
    'json:loads'
    """
    module = getattr(main, "__module__", None)
    name = getattr(main, "__qualname__", None)
    shown = shorten(main)
    if not callable(main) or not isinstance(module, str) or not isinstance(name, str):
        raise _bad("main", shown, 'a function, or "module:function"')
    if name == "<lambda>" or "<lambda>" in name:
        raise _bad("main", shown, "importable by name; a lambda has none: use def at module level")
    if "<locals>" in name:
        raise _bad("main", shown, "importable by name: move the nested function to module level")
    if module == "__main__":
        file = getattr(sys.modules.get("__main__"), "__file__", None)
        stem = re.sub(r"\.py$", "", str(file).rsplit("/", 1)[-1]) if file else "your_module"
        raise _bad(
            "main",
            shown,
            f'importable on the host: say main="{stem}:{name}" instead of a function of __main__',
        )
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not main:
        raise _bad(
            "main",
            shown,
            f"what {module}:{name} names; a bound method or a replaced function is not",
        )
    return f"{module}:{name}"


def _need(holds: bool, name: str, value: Any, rule: str) -> None:
    if not holds:
        raise _bad(name, value, rule)


def _bad(name: str, value: Any, rule: str) -> InvalidField:
    shown = shorten(value) if not isinstance(value, str) or len(value) > 80 else repr(value)
    return InvalidField(
        f"{name} is {shown}: must be {rule}", field=name, value=shown, rule=f"must be {rule}"
    )


def _is_text(name: str, value: Any, bytes_max: int, *, empty: bool = False) -> None:
    _need(isinstance(value, str), name, value, "text")
    low = 0 if empty else 1
    size = len(value.encode(errors="replace"))
    _need(low <= size <= bytes_max, name, value, f"{low} to {bytes_max} bytes")
    _need(
        "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value),
        name,
        value,
        "text without NUL that UTF-8 can carry",
    )


def _is_shown(name: str, value: Any, bytes_max: int, *, empty: bool = False) -> None:
    _is_text(name, value, bytes_max, empty=empty)
    _need(
        all(" " <= c <= "~" for c in value),
        name,
        value,
        "printable ASCII (PostgreSQL turns the rest into ?)",
    )
    _need(value == value.strip(), name, value, "without spaces at its ends")
    _need("/" not in value and "\\" not in value, name, value, "without / and \\")


def _is_number(name: str, value: Any, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    _need(
        number and math.isfinite(value) and low <= value <= high,
        name,
        value,
        f"a number from {low:g} to {high:g}",
    )


def _is_int(name: str, value: Any, low: int, high: int) -> None:
    _need(
        isinstance(value, int) and not isinstance(value, bool) and low <= value <= high,
        name,
        value,
        f"an integer from {low} to {high}",
    )


def _is_bool(name: str, value: Any) -> None:
    _need(isinstance(value, bool), name, value, "True or False")


def _is_signal(name: str, value: Any) -> None:
    known = isinstance(value, str) and f"SIG{value}" in signal.Signals.__members__
    _need(
        known and value not in ("KILL", "STOP"),
        name,
        value,
        "a signal name without SIG that a process can handle, as TERM or INT",
    )


def _check_names(w: BackgroundWorker) -> None:
    _is_shown("name", w.name, limits.name_bytes_max)
    _need(not w.name.startswith("-"), "name", w.name, "not a command-line option")
    _is_shown("type", w.type, limits.type_bytes_max, empty=True)
    _is_shown("crash_domain", w.crash_domain, limits.label_bytes_max)
    _is_shown("runtime", w.runtime, limits.label_bytes_max)


def _check_entry_point(w: BackgroundWorker) -> None:
    if w.main is not None:
        text = w.entry_point
        _is_text("main", text, limits.library_bytes_max + limits.function_bytes_max)
        if text == "posthouse.exec":
            _check_argv(w.main_arg)
            return
        module, colon, function = text.partition(":")
        good = colon and _DOTTED.fullmatch(module) and _DOTTED.fullmatch(function)
        _need(bool(good), "main", text, '"module:function" of dotted Python names')
        _need(
            not any(p.startswith("_") for p in function.split(".")),
            "main",
            text,
            "a public function: no part of its name may begin with _",
        )
        _is_text("main", function, limits.function_bytes_max)
        return
    _need(
        bool(w.library) and bool(w.function),
        "main",
        w.main,
        "given, or library and function in its place",
    )
    _is_text("library", w.library, limits.library_bytes_max)
    _need(bool(_DOTTED.fullmatch(w.library)), "library", w.library, "a dotted module name")
    _is_text("function", w.function, limits.function_bytes_max)
    _need(
        bool(_IDENTIFIER.fullmatch(w.function)) and not w.function.startswith("_"),
        "function",
        w.function,
        "the name of a public function",
    )


def _check_argv(argv: Any) -> None:
    good = isinstance(argv, list) and 0 < len(argv) <= limits.argv_items_max
    _need(
        good and all(isinstance(a, str) and "\0" not in a for a in argv) and bool(argv[0]),
        "main_arg",
        argv,
        "for posthouse.exec: the argv, a list of strings without NUL",
    )


def _check_payload(w: BackgroundWorker) -> None:
    size = packed_size(copy_value("main_arg", w.main_arg))
    _need(
        size <= limits.main_arg_bytes_max,
        "main_arg",
        f"{size} bytes of msgpack",
        f"at most {limits.main_arg_bytes_max} bytes of msgpack",
    )
    _need(isinstance(w.extra, bytes), "extra", w.extra, "bytes")
    _need(
        len(w.extra) <= limits.extra_bytes_max,
        "extra",
        f"{len(w.extra)} bytes",
        f"at most {limits.extra_bytes_max} bytes",
    )


def _check_flags(w: BackgroundWorker) -> None:
    _is_int("flags", w.flags, 0, 2**31)
    unknown = int(w.flags) & ~int(Flags.SHMEM_ACCESS | Flags.DATABASE_CONNECTION)
    _need(
        not unknown,
        "flags",
        int(w.flags),
        "SHMEM_ACCESS (1) and DATABASE_CONNECTION (2), and no other bit",
    )
    _need(
        isinstance(w.start_time, StartTime),
        "start_time",
        w.start_time,
        "one of " + ", ".join(StartTime),
    )
    if w.flags & Flags.DATABASE_CONNECTION:
        _need(
            bool(w.flags & Flags.SHMEM_ACCESS),
            "flags",
            int(w.flags),
            "SHMEM_ACCESS as well, if it is DATABASE_CONNECTION",
        )
        _need(
            w.start_time != StartTime.POSTMASTER_START,
            "start_time",
            str(w.start_time),
            "later than postmaster_start for a worker with DATABASE_CONNECTION: it cannot "
            "request database access if starting at postmaster start",
        )


def _check_restart(w: BackgroundWorker) -> None:
    if w.restart_time != NEVER_RESTART or isinstance(w.restart_time, bool):
        number = isinstance(w.restart_time, int | float) and not isinstance(w.restart_time, bool)
        _need(
            number
            and math.isfinite(w.restart_time)
            and 0 <= w.restart_time <= limits.restart_time_s_max,
            "restart_time",
            w.restart_time,
            f"0 to {limits.restart_time_s_max} seconds, or NEVER_RESTART (-1)",
        )
    _is_number("restart_growth", w.restart_growth, 1, 10)
    if w.restart_time_max is not None:
        _is_number(
            "restart_time_max",
            w.restart_time_max,
            max(0, w.restart_time),
            limits.restart_time_s_max,
        )
    _is_number("restart_jitter", w.restart_jitter, 0, 1)
    if w.restart_budget is not None:
        _need(
            isinstance(w.restart_budget, tuple) and len(w.restart_budget) == 2,
            "restart_budget",
            w.restart_budget,
            "(starts, window_s)",
        )
        _is_int("restart_budget", w.restart_budget[0], 1, 1_000_000)
        _is_number("restart_budget", w.restart_budget[1], 0.001, limits.restart_time_s_max)
    _is_bool("notify", w.notify)
    _is_bool("unique", w.unique)


def _check_placement(w: BackgroundWorker) -> None:
    if w.host is not None:
        _is_shown("host", w.host, limits.label_bytes_max)
    _need(
        isinstance(w.labels, tuple) and len(w.labels) <= limits.labels_max,
        "labels",
        w.labels,
        f"a tuple of at most {limits.labels_max} labels",
    )
    for label in w.labels:
        _is_text("labels", label, limits.label_bytes_max)
        _need(bool(_LABEL.fullmatch(label)), "labels", label, "letters, digits and . _ : = / + -")
    _need(w.fence in _FENCES, "fence", w.fence, 'None, "process" or "tree"')
    _need(w.on_partition in _PARTITIONS, "on_partition", w.on_partition, 'None, "stop" or "keep"')
    _need(
        not (w.on_partition == "keep" and w.host is None),
        "on_partition",
        w.on_partition,
        '"stop" for a worker that may move: "keep" is for one pinned to a host',
    )


def _check_process(w: BackgroundWorker) -> None:
    _is_bool("unblock_signals", w.unblock_signals)
    _is_signal("stop_signal", w.stop_signal)
    _is_signal("reload_signal", w.reload_signal)
    _is_number("stop_grace_s", w.stop_grace_s, 0, limits.stop_grace_s_max)
    if w.watchdog_s is not None:
        _is_number("watchdog_s", w.watchdog_s, 0.1, limits.restart_time_s_max)
    if w.run_as is not None:
        _is_shown("run_as", w.run_as, limits.label_bytes_max)
    if w.cwd is not None:
        _is_text("cwd", w.cwd, limits.path_bytes_max)
        _need(w.cwd.startswith("/"), "cwd", w.cwd, "an absolute path")
    _is_int("nice", w.nice, -20, 19)
    _is_int("umask", w.umask, 0, 0o777)
    _is_int("log_bytes", w.log_bytes, 65_536, 2**40)


def _check_env(w: BackgroundWorker) -> None:
    _need(
        isinstance(w.env, dict) and len(w.env) <= limits.env_items_max,
        "env",
        w.env,
        f"a map of at most {limits.env_items_max} names",
    )
    total = 0
    for key, value in w.env.items():
        _need(
            isinstance(key, str) and bool(_ENV_NAME.fullmatch(key)),
            "env",
            key,
            "names of letters, digits and _",
        )
        _is_text(f"env.{key}", value, limits.env_bytes_max, empty=True)
        total += len(key) + len(value.encode())
    _need(
        total <= limits.env_bytes_max,
        "env",
        f"{total} bytes",
        f"at most {limits.env_bytes_max} bytes",
    )
    _need(
        isinstance(w.rlimits, dict) and len(w.rlimits) <= limits.rlimits_max,
        "rlimits",
        w.rlimits,
        "a map of resource name to limit",
    )
    for key, limit in w.rlimits.items():
        _need(key in _RLIMITS, "rlimits", key, "one of " + ", ".join(sorted(_RLIMITS)))
        _is_int(f"rlimits.{key}", limit, -1, limits.int_max)


_RULES = (
    _check_names,
    _check_entry_point,
    _check_payload,
    _check_flags,
    _check_restart,
    _check_placement,
    _check_process,
    _check_env,
)

_FLOATS = frozenset(
    (
        "restart_time",
        "restart_growth",
        "restart_time_max",
        "restart_jitter",
        "stop_grace_s",
        "watchdog_s",
    )
)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, StartTime):
        return str(value)
    return int(value) if isinstance(value, Flags) else value


def _default(f: Any) -> Any:
    return f.default_factory() if callable(f.default_factory) else f.default


_DEFAULTS: dict[str, Any] = {f.name: _default(f) for f in fields(BackgroundWorker)}
