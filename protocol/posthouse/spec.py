"""BackgroundWorker: the seed's structure, field by field, and its sanity check.

Owns: the record and its wire form (rules: its checks). Must not know: slots, hosts, processes.
Invariant: client and master run the same `check`; a refusal names field, value and rule; the wire
form leaves out what equals its default, so equal records have equal wire forms.
"""

import re
import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields
from functools import partial
from types import MethodType
from typing import Any, Self

from posthouse import limits
from posthouse.rules import RULES, need, refusal
from posthouse.states import Flags, StartTime
from posthouse.values import SECRETS, copy_value, shorten

__all__ = ["BackgroundWorker", "entry_point_name"]

Main = str | Callable[[Any], Any]


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
    notify: SIGUSR1 to the registering process at start and exit, if it is on a host with an agent
        of its own user and is not ended by that signal [bgw_notify_pid].
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
        match self.restart_budget:
            case [
                starts,
                window_s,
            ]:  # (5, 60) and (5, 60.0) are the same, and so is their wire form
                window_s = float(window_s) if type(window_s) is int else window_s
                object.__setattr__(self, "restart_budget", (starts, window_s))
        if isinstance(self.extra, bytearray | memoryview):
            object.__setattr__(self, "extra", bytes(self.extra))
        object.__setattr__(self, "main_arg", copy_value("main_arg", self.main_arg))

    def __repr__(self) -> str:
        """What differs from the defaults; main_arg, extra and env only as being there.

        >>> BackgroundWorker(name="w", main="m:f", host="b", main_arg={"password": "x"})
        BackgroundWorker(name='w', main='m:f', main_arg=..., host='b')
        """
        shown = []
        for name, default in _DEFAULTS.items():
            value = getattr(self, name)
            if name == "name" or value != default:
                shown.append(f"{name}={'...' if name in SECRETS else repr(value)}")
        return f"BackgroundWorker({', '.join(shown)})"

    def __hash__(self) -> int:
        return hash((self.name, self.main, self.library, self.function))

    @property
    def entry_point(self) -> str:
        """`main` as text, or library:function. Raises InvalidField for a callable without one."""
        if self.main is not None:
            return self.main if isinstance(self.main, str) else entry_point_name(self.main)
        return f"{self.library}:{self.function}"

    @property
    def shown_type(self) -> str:
        """The kind of worker in listings: its type, or its name if it has none (F2)."""
        return self.type or self.name

    @property
    def pinned(self) -> bool:
        """True if nothing but the named host may run it."""
        return self.host is not None

    def check(self, *, static: bool = False) -> Self:
        """Apply every rule; returns itself. Raises InvalidField for the first one that is broken.

        `static` adds the rule for records of a configuration file or a preload library (F16).
        """
        for rule in RULES:
            rule(self)
        need(
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
            if value != default:
                wire[name] = _plain(value)
        return wire

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Self:
        """The inverse of to_wire, checked. Raises InvalidField; an unknown field is refused."""
        return cls.from_checked(wire).check()

    @classmethod
    def from_checked(cls, wire: Mapping[str, Any]) -> Self:
        """from_wire for a record that was checked when it was accepted: a rule that has become
        stricter since does not undo it."""
        if not isinstance(wire, Mapping):
            raise refusal("spec", wire, "a map of fields")
        for name in wire:
            if name not in _DEFAULTS:
                raise refusal(str(name), wire[name], "a field of BackgroundWorker")
        values = dict(wire)
        if "name" not in values:
            raise refusal("name", None, "given")
        start_time = values.get("start_time")
        if isinstance(start_time, str) and start_time in set(StartTime):
            values["start_time"] = StartTime(start_time)
        return cls(**values)


def entry_point_name(main: Callable[[Any], Any]) -> str:
    """ "module:function" of a callable, which must be importable by that name.

    Raises InvalidField, with the way out, for lambdas, closures, nested functions, methods,
    partials, objects and functions of `__main__`.

    >>> import json
    >>> entry_point_name(json.loads)
    'json:loads'
    """
    module = getattr(main, "__module__", "")
    name = getattr(main, "__qualname__", "")
    rule = _nameless(main, name) or _unreachable(main, module, name)
    if rule:
        raise refusal("main", shorten(main), rule)
    return f"{module}:{name}"


def _nameless(main: Any, name: str) -> str:
    """What is to be given instead of something without a name; "" if it has one."""
    if isinstance(main, partial):
        return "a function by name: give what partial binds as main_arg instead"
    if isinstance(main, MethodType):
        if isinstance(main.__self__, type):
            return f'a function, or the text "{main.__module__}:{name}" for this class method'
        return (
            "importable by name; a bound method is not: use def at module level, and make "
            "the object there, of main_arg"
        )
    if callable(main) and not name:
        return "importable by name; an object is not: use def at module level, and call it there"
    if not callable(main) or not isinstance(name, str):
        return 'a function, or "module:function"'
    if "<lambda>" in name:
        return "importable by name; a lambda has none: use def at module level"
    if "<locals>" in name:
        return (
            "importable by name: move the nested function to module level, and give what it "
            "closes over as main_arg"
        )
    return ""


def _unreachable(main: Any, module: Any, name: str) -> str:
    """What is to be given instead of something that its name does not lead to, elsewhere."""
    if not isinstance(module, str) or not module:
        return 'a function, or "module:function"'
    if module == "__main__":
        known = _name_of_main()
        if known:
            return (
                f'importable on the host: say main="{known}:{name}" instead of a function of '
                "__main__"
            )
        return (
            "importable on the host; __main__ is another module there: move the function to a "
            f'module of its own, say main="your_module:{name}"'
        )
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not main:
        return f"what {module}:{name} names; a bound method or a replaced function is not"
    return ""


def _name_of_main() -> str:
    """The name under which others import the program's own module; "" if there is none."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)  # of python -m
    if spec is not None:
        name = str(spec.name)
    else:
        name = re.split(r"[/\\]", str(getattr(main, "__file__", "") or ""))[-1]
        name = re.sub(r"\.pyw?$", "", name)
    good = all(part.isidentifier() and part != "__main__" for part in name.split("."))
    return name if good else ""


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
    if isinstance(value, list | dict):
        return deepcopy(value)  # nothing of the record itself is given away (F18)
    if isinstance(value, StartTime):
        return str(value)
    return int(value) if isinstance(value, Flags) else value


def _default(f: Any) -> Any:
    return f.default_factory() if callable(f.default_factory) else f.default


_DEFAULTS: dict[str, Any] = {f.name: _default(f) for f in fields(BackgroundWorker)}
