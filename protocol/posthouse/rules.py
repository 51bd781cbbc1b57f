"""The rules of a registration record: F1-F20, and what posthouse's own fields must be.

Owns: every check of a BackgroundWorker, in the order in which they are made. Must not know: the
record's wire form, slots, hosts. Invariant: a rule only looks; what it does not like it refuses
with field, value and rule, and it never raises anything but InvalidField.
"""

import re
from typing import TYPE_CHECKING, Any

from posthouse import limits
from posthouse.errors import InvalidField
from posthouse.signals import SIGNALS
from posthouse.states import NEVER_RESTART, Flags, StartTime
from posthouse.values import Shown, copy_value, packed_size, shorten, sized

if TYPE_CHECKING:
    from posthouse.spec import BackgroundWorker

__all__ = ["RULES", "need", "refusal"]

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=/+-]*")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SURROGATE = re.compile("[\ud800-\udfff]")
_RLIMITS = frozenset(
    ("AS", "CORE", "CPU", "DATA", "FSIZE", "MEMLOCK", "MSGQUEUE", "NICE", "NOFILE", "NPROC")
) | frozenset(("RSS", "RTPRIO", "RTTIME", "SIGPENDING", "STACK"))
_FENCES = (None, "process", "tree")
_PARTITIONS = (None, "stop", "keep")


def need(holds: bool, name: str, value: Any, rule: str) -> None:
    if not holds:
        raise refusal(name, value, rule)


def refusal(name: str, value: Any, rule: str) -> InvalidField:
    shown = shorten(value)
    return InvalidField(
        f"{name} is {shown}: must be {rule}", field=name, value=shown, rule=f"must be {rule}"
    )


def _is_text(name: str, value: Any, bytes_max: int, *, empty: bool = False) -> None:
    need(isinstance(value, str), name, value, "text")
    low = 0 if empty else 1
    size = len(value.encode(errors="replace"))
    need(low <= size <= bytes_max, name, value, f"{low} to {bytes_max} bytes")
    need(
        "\0" not in value and not _SURROGATE.search(value),
        name,
        value,
        "text without NUL that UTF-8 can carry",
    )


def _is_shown(name: str, value: Any, bytes_max: int, *, empty: bool = False) -> None:
    _is_text(name, value, bytes_max, empty=empty)
    need(
        all(" " <= c <= "~" for c in value),
        name,
        value,
        "printable ASCII (PostgreSQL turns the rest into ?)",
    )
    need(value == value.strip(), name, value, "without spaces at its ends")
    need("/" not in value and "\\" not in value, name, value, "without / and \\")


def _is_number(name: str, value: Any, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    need(number and low <= value <= high, name, value, f"a number from {low:g} to {high:g}")


def _is_int(name: str, value: Any, low: int, high: int) -> None:
    need(
        isinstance(value, int) and not isinstance(value, bool) and low <= value <= high,
        name,
        value,
        f"an integer from {low} to {high}",
    )


def _is_bool(name: str, value: Any) -> None:
    need(isinstance(value, bool), name, value, "True or False")


def _is_signal(name: str, value: Any) -> None:
    need(
        isinstance(value, str) and value in SIGNALS and value not in ("KILL", "STOP"),
        name,
        value,
        "a signal name without SIG that a process can handle, as TERM or INT",
    )


def _check_names(w: "BackgroundWorker") -> None:
    _is_shown("name", w.name, limits.name_bytes_max)
    need(not w.name.startswith("-"), "name", w.name, "not a command-line option")
    _is_shown("type", w.type, limits.type_bytes_max, empty=True)
    _is_shown("crash_domain", w.crash_domain, limits.label_bytes_max)
    _is_shown("runtime", w.runtime, limits.label_bytes_max)


def _check_entry_point(w: "BackgroundWorker") -> None:
    if w.main is not None:
        _check_main(w)
        # Ignored then, as in PostgreSQL; but no field carries what nobody has looked at.
        _is_text("library", w.library, limits.library_bytes_max, empty=True)
        _is_text("function", w.function, limits.function_bytes_max, empty=True)
        return
    need(
        bool(w.library) and bool(w.function),
        "main",
        w.main,
        "given, or library and function in its place",
    )
    _is_text("library", w.library, limits.library_bytes_max)
    need(bool(_DOTTED.fullmatch(w.library)), "library", w.library, "a dotted module name")
    need(w.library != "__main__", "library", w.library, "a module that the host can import")
    _is_text("function", w.function, limits.function_bytes_max)
    need(
        bool(_IDENTIFIER.fullmatch(w.function)) and not w.function.startswith("_"),
        "function",
        w.function,
        "the name of a public function",
    )


def _check_main(w: "BackgroundWorker") -> None:
    text = w.entry_point
    _is_text("main", text, limits.library_bytes_max + 1 + limits.function_bytes_max)
    if text == "posthouse.exec":
        _check_argv(w.main_arg)
        return
    module, colon, function = text.partition(":")
    good = colon and _DOTTED.fullmatch(module) and _DOTTED.fullmatch(function)
    need(bool(good), "main", text, '"module:function" of dotted Python names')
    need(
        not any(p.startswith("_") for p in function.split(".")),
        "main",
        text,
        "a public function: no part of its name may begin with _",
    )
    need(module != "__main__", "main", text, "in a module that the host can import")
    fits = len(module) <= limits.library_bytes_max and len(function) <= limits.function_bytes_max
    need(
        fits,
        "main",
        text,
        f"a module name of at most {limits.library_bytes_max} bytes and a function name of at "
        f"most {limits.function_bytes_max}",
    )


def _check_argv(argv: Any) -> None:
    good = isinstance(argv, list) and 0 < len(argv) <= limits.argv_items_max
    need(
        good and all(isinstance(a, str) and "\0" not in a for a in argv) and bool(argv[0]),
        "main_arg",
        sized(argv),
        "for posthouse.exec: the argv, a list of strings without NUL",
    )


def _check_payload(w: "BackgroundWorker") -> None:
    size = packed_size(copy_value("main_arg", w.main_arg))
    need(
        size <= limits.main_arg_bytes_max,
        "main_arg",
        Shown(f"{size} bytes of msgpack"),
        f"at most {limits.main_arg_bytes_max} bytes of msgpack",
    )
    need(isinstance(w.extra, bytes), "extra", sized(w.extra), "bytes")
    need(
        len(w.extra) <= limits.extra_bytes_max,
        "extra",
        Shown(f"{len(w.extra)} bytes"),
        f"at most {limits.extra_bytes_max} bytes",
    )


def _check_flags(w: "BackgroundWorker") -> None:
    _is_int("flags", w.flags, 0, 2**31)
    unknown = int(w.flags) & ~int(Flags.SHMEM_ACCESS | Flags.DATABASE_CONNECTION)
    need(
        not unknown,
        "flags",
        int(w.flags),
        "SHMEM_ACCESS (1) and DATABASE_CONNECTION (2), and no other bit",
    )
    need(
        isinstance(w.start_time, StartTime),
        "start_time",
        w.start_time,
        "one of " + ", ".join(StartTime),
    )
    if w.flags & Flags.DATABASE_CONNECTION:
        need(
            bool(w.flags & Flags.SHMEM_ACCESS),
            "flags",
            int(w.flags),
            "SHMEM_ACCESS as well, if it is DATABASE_CONNECTION",
        )
        need(
            w.start_time != StartTime.POSTMASTER_START,
            "start_time",
            str(w.start_time),
            "later than postmaster_start for a worker with DATABASE_CONNECTION: it cannot "
            "request database access if starting at postmaster start",
        )


def _check_restart(w: "BackgroundWorker") -> None:
    if w.restart_time != NEVER_RESTART or isinstance(w.restart_time, bool):
        number = isinstance(w.restart_time, int | float) and not isinstance(w.restart_time, bool)
        need(
            number and 0 <= w.restart_time <= limits.restart_time_s_max,
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
        need(
            isinstance(w.restart_budget, tuple) and len(w.restart_budget) == 2,
            "restart_budget",
            w.restart_budget,
            "(starts, window_s)",
        )
        _is_int("restart_budget", w.restart_budget[0], 1, limits.restart_budget_starts_max)
        _is_number("restart_budget", w.restart_budget[1], 0.001, limits.restart_time_s_max)
    _is_bool("notify", w.notify)
    _is_bool("unique", w.unique)


def _check_placement(w: "BackgroundWorker") -> None:
    if w.host is not None:
        _is_shown("host", w.host, limits.label_bytes_max)
    need(
        isinstance(w.labels, tuple) and len(w.labels) <= limits.labels_max,
        "labels",
        w.labels,
        f"a tuple of at most {limits.labels_max} labels",
    )
    for label in w.labels:
        _is_text("labels", label, limits.label_bytes_max)
        need(bool(_LABEL.fullmatch(label)), "labels", label, "letters, digits and . _ : = / + -")
    need(w.fence in _FENCES, "fence", w.fence, 'None, "process" or "tree"')
    need(w.on_partition in _PARTITIONS, "on_partition", w.on_partition, 'None, "stop" or "keep"')
    need(
        not (w.on_partition == "keep" and w.host is None),
        "on_partition",
        w.on_partition,
        '"stop" for a worker that may move: "keep" is for one pinned to a host',
    )


def _check_process(w: "BackgroundWorker") -> None:
    _is_bool("unblock_signals", w.unblock_signals)
    _is_signal("stop_signal", w.stop_signal)
    _is_signal("reload_signal", w.reload_signal)
    _is_number("stop_grace_s", w.stop_grace_s, 0, limits.stop_grace_s_max)
    if w.watchdog_s is not None:
        _is_number("watchdog_s", w.watchdog_s, 0.1, limits.restart_time_s_max)
        rule = "absent: a program that is no Python function has no heartbeat"
        need(w.main != "posthouse.exec", "watchdog_s", w.watchdog_s, rule)
    if w.run_as is not None:
        _is_shown("run_as", w.run_as, limits.label_bytes_max)
    if w.cwd is not None:
        _is_text("cwd", w.cwd, limits.path_bytes_max)
        need(w.cwd.startswith("/"), "cwd", w.cwd, "an absolute path")
    _is_int("nice", w.nice, -20, 19)
    _is_int("umask", w.umask, 0, 0o777)
    _is_int("log_bytes", w.log_bytes, 65_536, 2**40)


def _check_env(w: "BackgroundWorker") -> None:
    need(
        isinstance(w.env, dict) and len(w.env) <= limits.env_items_max,
        "env",
        sized(w.env),
        f"a map of at most {limits.env_items_max} names",
    )
    total = 0
    for key, value in w.env.items():
        need(
            isinstance(key, str) and bool(_ENV_NAME.fullmatch(key)),
            "env",
            key,
            "names of letters, digits and _",
        )
        need(
            isinstance(value, str) and "\0" not in value and not _SURROGATE.search(value),
            f"env.{key}",
            sized(value),
            "text without NUL that UTF-8 can carry",
        )
        total += len(key) + len(value.encode())
    need(
        total <= limits.env_bytes_max,
        "env",
        Shown(f"{total} bytes"),
        f"at most {limits.env_bytes_max} bytes",
    )
    need(
        isinstance(w.rlimits, dict) and len(w.rlimits) <= limits.rlimits_max,
        "rlimits",
        w.rlimits,
        "a map of resource name to limit",
    )
    for key, limit in w.rlimits.items():
        need(key in _RLIMITS, "rlimits", key, "one of " + ", ".join(sorted(_RLIMITS)))
        _is_int(f"rlimits.{key}", limit, -1, limits.int_max)


RULES = (
    _check_names,
    _check_entry_point,
    _check_payload,
    _check_flags,
    _check_restart,
    _check_placement,
    _check_process,
    _check_env,
)
