"""F1-F20 of the contract: what PostgreSQL does with each field, and what posthouse decided."""

import dataclasses
import math
import os.path
from collections.abc import Callable
from enum import IntEnum, StrEnum
from functools import partial
from typing import Any

import pytest

from posthouse import limits
from posthouse.errors import InvalidField
from posthouse.records import ExitFacts
from posthouse.restart import decide
from posthouse.spec import BackgroundWorker
from posthouse.states import (
    DATABASE_CONNECTION,
    NEVER_RESTART,
    SHMEM_ACCESS,
    Flags,
    StartTime,
)


def worker(**fields: Any) -> BackgroundWorker:
    return BackgroundWorker(**{"name": "w", "main": "acme.jobs:main", **fields})


def accepted(**fields: Any) -> BackgroundWorker:
    """Checked on the client's side and again from the wire, as the master does."""
    made = worker(**fields).check()
    assert BackgroundWorker.from_wire(made.to_wire()) == made
    return made


def refused(field: str, rule: str, *, static: bool = False, **fields: Any) -> InvalidField:
    """Refused with an error that names field, value and rule."""
    with pytest.raises(InvalidField) as caught:
        worker(**fields).check(static=static)
    error = caught.value
    assert error.detail["field"] == field
    assert rule in error.detail["rule"], error
    assert error.detail["rule"].startswith("must ")
    assert str(error) == f"{field} is {error.detail['value']}: {error.detail['rule']}"
    assert error.code == "invalid_field"
    return error


# --- F1, F2, F19: texts ------------------------------------------------------------------------


def test_f1_name_is_1_to_96_bytes() -> None:
    """PostgreSQL: 96 bytes with the NUL; an empty name is legal. posthouse: 1 to 96 bytes, because
    a name is how people ask for a worker. (That live names are unique is the registry's rule.)"""
    accepted(name="x" * 96)
    assert refused("name", "1 to 96 bytes", name="x" * 97).detail["value"].startswith("'xxx")
    refused("name", "1 to 96 bytes", name="")


def test_f1_name_is_no_path_and_no_option() -> None:
    """posthouse's own: names stand in commands, tables and URLs."""
    for name in ("../etc", "a/b", "a\\b"):
        refused("name", "without / and \\", name=name)
    refused("name", "not a command-line option", name="-x")
    for name in (" a", "a ", " "):
        refused("name", "without spaces at its ends", name=name)
    accepted(name="ingest orders (eu-west) #3")


@pytest.mark.parametrize("name", [None, 7, b"w", ["w"], True])
def test_f1_name_is_text(name: Any) -> None:
    refused("name", "text", name=name)


def test_f2_an_empty_type_shows_as_the_name() -> None:
    """PostgreSQL: copies bgw_name into the caller's own struct. posthouse: shows the name, and
    leaves the record as it was made."""
    plain = accepted()
    assert (plain.type, plain.shown_type) == ("", "w")
    assert accepted(type="ingest worker").shown_type == "ingest worker"
    assert "type" not in plain.to_wire()
    accepted(type="t" * 96)
    refused("type", "0 to 96 bytes", type="t" * 97)


@pytest.mark.parametrize("text", ["na\nme", "tab\there", "na\0me", "ingést", "\u202egnp", "\ud800"])
@pytest.mark.parametrize("field", ["name", "type", "host", "crash_domain", "runtime"])
def test_f19_what_cannot_be_shown_is_refused(field: str, text: str) -> None:
    """PostgreSQL: dynamic registrations are silently cleaned, each such byte becomes '?'.
    posthouse: says so at registration; a worker never runs under another name than was asked."""
    with pytest.raises(InvalidField) as caught:
        worker(**{field: text}).check()
    assert caught.value.detail["field"] == field


# --- F3-F8: flags ------------------------------------------------------------------------------


def test_f3_shared_memory_is_not_mandatory() -> None:
    """PostgreSQL: since 15 a worker without SHMEM_ACCESS is refused. posthouse: most workers attach
    nothing, as the seed allows."""
    assert accepted().flags == 0
    accepted(flags=SHMEM_ACCESS)


def test_f4_a_database_connection_needs_shared_memory() -> None:
    """PostgreSQL to 14, and the seed: start-up fails. posthouse: refused at registration."""
    refused("flags", "SHMEM_ACCESS as well", flags=DATABASE_CONNECTION)
    accepted(flags=SHMEM_ACCESS | DATABASE_CONNECTION)


def test_f5_no_database_at_postmaster_start() -> None:
    """PostgreSQL: "cannot request database access if starting at postmaster start". So here."""
    both = SHMEM_ACCESS | DATABASE_CONNECTION
    refused(
        "start_time",
        "cannot request database access if starting at postmaster start",
        flags=both,
        start_time=StartTime.POSTMASTER_START,
    )
    for start_time in (StartTime.CONSISTENT_STATE, StartTime.RECOVERY_FINISHED):
        accepted(flags=both, start_time=start_time)
    accepted(flags=SHMEM_ACCESS, start_time=StartTime.POSTMASTER_START)


def test_f6_there_is_no_class_of_parallel_workers() -> None:
    """PostgreSQL: 0x10 marks its own parallel workers, which must never restart. posthouse: has no
    such class; the bit is refused, whatever restart_time is."""
    refused("flags", "no other bit", flags=0x1 | 0x10)
    refused("flags", "no other bit", flags=0x1 | 0x10, restart_time=NEVER_RESTART)


def test_f7_interruptible_is_not_a_flag() -> None:
    """PostgreSQL 19: 0x4 needs 0x1 and 0x2. posthouse: the seed does not have it; refused."""
    refused("flags", "no other bit", flags=0x1 | 0x2 | 0x4)


@pytest.mark.parametrize("flags", [0x8, 0x80, 1 << 30, 1 << 31, 1 << 40, -1])
def test_f8_unknown_bits_are_refused(flags: int) -> None:
    """PostgreSQL: accepts them silently. posthouse: what nobody understands is not accepted."""
    with pytest.raises(InvalidField) as caught:
        worker(flags=flags).check()
    assert caught.value.detail["field"] == "flags"


@pytest.mark.parametrize("flags", [True, 1.0, "1", None])
def test_f8_flags_are_an_integer(flags: Any) -> None:
    refused("flags", "an integer", flags=flags)


# --- F9-F11: when ------------------------------------------------------------------------------


@pytest.mark.parametrize("start_time", ["recovery_finished", "later", 2, None, ""])
def test_f9_start_time_is_validated(start_time: Any) -> None:
    """PostgreSQL: does not look; an unknown value leaves the worker not yet started for ever.
    posthouse: refused (a healed trap)."""
    refused(
        "start_time",
        "one of postmaster_start, consistent_state, recovery_finished",
        start_time=start_time,
    )


def test_f9_an_unknown_start_time_from_the_wire_is_refused() -> None:
    wire = {"name": "w", "main": "m:f", "start_time": "never"}
    with pytest.raises(InvalidField, match="start_time is 'never'"):
        BackgroundWorker.from_wire(wire)


@pytest.mark.parametrize(
    "restart_time", [-1, -1.0, 0, 0.25, 5, 86_399_999.5, 86_400_000, NEVER_RESTART]
)
def test_f10_restart_time_is_never_or_up_to_1000_days(restart_time: float) -> None:
    """PostgreSQL: -1 or 0 to 86 400 000 s; the docs say "positive", the code allows 0. So here, and
    fractions of a second too."""
    assert accepted(restart_time=restart_time).restart_time == restart_time


@pytest.mark.parametrize(
    "restart_time",
    [-2, -0.5, 86_400_000.5, 86_400_001, math.nan, math.inf, -math.inf, 10**400, True, "5", None],
)
def test_f10_restart_time_out_of_range_is_refused(restart_time: Any) -> None:
    """PostgreSQL: "invalid restart interval". So here, with the interval."""
    refused("restart_time", "0 to 86400000 seconds, or NEVER_RESTART", restart_time=restart_time)


@pytest.mark.parametrize("restart_time", [2_147_483, 2_147_484, 86_400_000])
def test_f11_long_restart_times_do_not_overflow(restart_time: int) -> None:
    """PostgreSQL: compares milliseconds in 32 bits, so 2 147 484 s means at once, and the maximum
    some 5.8 days (a defect). posthouse: waits as long as asked."""
    spec = accepted(restart_time=restart_time)
    decision = decide(spec, ExitFacts(code=1), None)
    assert (decision.kind, decision.delay_s) == ("restart", restart_time)


# --- F12-F15: what runs ------------------------------------------------------------------------


def test_f12_library_is_a_module_name_of_up_to_1024_bytes() -> None:
    """PostgreSQL: MAXPGPATH; existence is not checked at registration. So here: the module may be
    on the host only. A path is no module name."""
    accepted(main=None, library="no.such.module", function="main")
    accepted(main=None, library="m" * 1024, function="main")
    refused("library", "1 to 1024 bytes", main=None, library="m" * 1025, function="main")
    for library in ("acme/ingest.py", "acme-ingest", ".acme", "acme.", "a b", "1st"):
        refused("library", "a dotted module name", main=None, library=library, function="main")
    refused("library", "the host can import", main=None, library="__main__", function="main")


def test_f12_postgres_is_no_special_library() -> None:
    """PostgreSQL: "postgres" means its built-in list. posthouse: a module like any other."""
    assert accepted(main=None, library="postgres", function="main").entry_point == "postgres:main"


def test_f12_main_or_library_and_function() -> None:
    """The seed: library and function count only if main is not given."""
    for fields in ({}, {"library": "m"}, {"function": "f"}):
        refused("main", "given, or library and function in its place", main=None, **fields)
    both = accepted(main="acme.jobs:main", library="other", function="thing")
    assert both.entry_point == "acme.jobs:main"


def test_f12_what_is_ignored_is_still_looked_at() -> None:
    refused("library", "text", library=12345)
    refused("library", "0 to 1024 bytes", library="m" * 1025)
    refused("function", "0 to 96 bytes", function="f" * 97)


def test_f13_function_is_public_and_up_to_96_bytes() -> None:
    """PostgreSQL: 96 bytes, exported and non-static, resolved in the child. So here: no name that
    begins with an underscore; whether it exists shows in the worker."""
    accepted(main=None, library="m", function="f" * 96)
    refused("function", "1 to 96 bytes", main=None, library="m", function="f" * 97)
    for function in ("_hidden", "a.b", "1st", "f()"):
        refused("function", "a public function", main=None, library="m", function=function)
    for main in ("m:_hidden", "m:Class._hidden", "m:_Class.run"):
        refused("main", "a public function", main=main)
    accepted(main="m:Class.run")
    accepted(main="_private.module:run")


@pytest.mark.parametrize("main", ["m", "m:", ":f", "m:f:g", "m:f()", "a b:f", "m:f\n"])
def test_f13_main_as_text_is_module_and_function(main: str) -> None:
    refused("main", '"module:function"', main=main)


def test_f13_main_as_text_keeps_both_bounds() -> None:
    accepted(main="m" * 1024 + ":" + "f" * 96)
    refused("main", "at most 1024 bytes", main="m" * 1025 + ":f")
    refused("main", "at most 96", main="m:" + "f" * 97)
    refused("main", "the host can import", main="__main__:main")


def module_level(arg: Any) -> None:
    """A function that can be imported by its name."""


class Holder:
    @staticmethod
    def run(arg: Any) -> None:
        """Importable as Holder.run."""

    @classmethod
    def made(cls, arg: Any) -> None:
        """Another object at each look; its text leads to it."""

    def method(self, arg: Any) -> None:
        """Bound methods are not importable by name."""

    def __call__(self, arg: Any) -> None:
        """Nor are objects."""


def test_f13_a_callable_becomes_its_name() -> None:
    """PostgreSQL: a pointer. posthouse: never pickled; the name under which it is imported."""
    assert worker(main=os.path.basename).check().entry_point == "posixpath:basename"
    assert worker(main=os.path.basename).to_wire()["main"] == "posixpath:basename"


def _nested() -> Callable[[Any], None]:
    def inner(arg: Any) -> None:
        """Has no importable name."""

    return inner


@pytest.mark.parametrize(
    ("main", "way_out"),
    [
        (lambda arg: None, "use def at module level"),
        (_nested(), "move the nested function to module level"),
        (Holder().method, "make the object there, of main_arg"),
        (Holder.made, 'the text "'),
        (partial(Holder.run, 7), "give what partial binds as main_arg"),
        (Holder(), "an object is not: use def at module level"),
        (len.__call__, '"module:function"'),
        (7, '"module:function"'),
        (object(), '"module:function"'),
    ],
)
def test_f13_a_callable_without_a_name_is_refused_with_the_way_out(main: Any, way_out: str) -> None:
    refused("main", way_out, main=main)


@pytest.mark.parametrize(
    ("spec", "file", "known"),
    [
        (None, "/somewhere/jobs.py", "jobs"),
        (None, "jobs.py", "jobs"),
        (None, r"C:\Users\me\jobs.py", "jobs"),
        (None, r"C:\Users\me\jobs.pyw", "jobs"),
        ("acme.jobs", "/somewhere/acme/jobs.py", "acme.jobs"),  # python -m
        (None, "/somewhere/acme/__main__.py", "your_module"),  # python acme
        ("acme.__main__", "/somewhere/acme/__main__.py", "your_module"),  # python -m acme
        (None, "/usr/local/bin/run-jobs", "your_module"),
        (None, "/somewhere/2jobs.py", "your_module"),
        (None, None, "your_module"),  # python -c
    ],
)
def test_f13_a_function_of_main_is_refused_with_the_name_to_use(
    monkeypatch: pytest.MonkeyPatch, spec: str | None, file: str | None, known: str
) -> None:
    """The name that it says is one that is accepted."""
    import sys
    from importlib.machinery import ModuleSpec

    main = sys.modules["__main__"]
    monkeypatch.setattr(module_level, "__module__", "__main__")
    monkeypatch.setattr(main, "__spec__", spec and ModuleSpec(spec, None), raising=False)
    monkeypatch.setattr(main, "__file__", file, raising=False)
    error = refused("main", f'say main="{known}:module_level"', main=module_level)
    said = error.message.partition('main="')[2].partition('"')[0]
    accepted(main=said)


def test_f14_main_arg_is_any_value_of_up_to_64_kib() -> None:
    """PostgreSQL: one 8-byte datum; a pointer is invalid in the child. posthouse: a msgpack value,
    which means the same on every host."""
    value = {"topic": "orders", "n": [1, -2, 2**63 - 1, -(2**63)], "x": 1.5, "b": b"\0", "t": None}
    assert accepted(main_arg=value).main_arg == value
    accepted(main_arg=b"x" * (65_536 - 3))
    error = refused("main_arg", "at most 65536 bytes of msgpack", main_arg=b"x" * (65_536 - 2))
    assert error.detail["value"] == "65537 bytes of msgpack"


@pytest.mark.parametrize(
    ("value", "path", "rule"),
    [
        (object(), "main_arg", "None, bool, int, float, str, bytes, list or dict"),
        ({"a": [1, {2, 3}]}, "main_arg.a[1]", "None, bool"),
        ({"a": {1: 2}}, "main_arg.a key", "strings"),
        ([2**63], "main_arg[0]", "64 bits"),
        ([-(2**63) - 1], "main_arg[0]", "64 bits"),
        ("\ud800", "main_arg", "UTF-8"),
        ({"\ud800": 1}, "main_arg key", "UTF-8"),
        ([0] * 4097, "main_arg", "4096 items"),
        ({str(i): i for i in range(257)}, "main_arg", "256 keys"),
        (module_level, "main_arg", "None, bool"),
    ],
)
def test_f14_what_cannot_travel_is_refused_with_its_path(value: Any, path: str, rule: str) -> None:
    refused(path, rule, main_arg=value)


def test_f14_nesting_is_bounded() -> None:
    def nested(depth: int) -> Any:
        return [nested(depth - 1)] if depth else 1

    accepted(main_arg=nested(limits.value_depth_max))
    with pytest.raises(InvalidField, match="nested at most"):
        worker(main_arg=nested(limits.value_depth_max + 1))
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(InvalidField, match="nested at most"):
        worker(main_arg=circle)


def test_f14_a_huge_value_is_refused_before_it_is_copied() -> None:
    row = [0] * 4096
    with pytest.raises(InvalidField, match="more than 65536 parts"):
        worker(main_arg=[row] * 4096)


def test_f15_extra_is_opaque_bytes_of_up_to_64_kib() -> None:
    """PostgreSQL: 128 bytes, copied verbatim. posthouse: up to 64 KiB, verbatim."""
    every = bytes(range(256))
    assert accepted(extra=every).extra == every
    accepted(extra=b"x" * 65_536)
    error = refused("extra", "at most 65536 bytes", extra=b"x" * 65_537)
    assert error.detail["value"] == "65537 bytes"
    assert refused("extra", "bytes", extra="secret").detail["value"] == "str of 6"


# --- F16-F18, F20: the record ------------------------------------------------------------------


def test_f16_a_static_registration_cannot_ask_for_notification() -> None:
    """PostgreSQL: "only dynamic background workers can request notification", and drops it."""
    refused("notify", "only dynamic ones can request notification", static=True, notify=True)
    worker(notify=False).check(static=True)


def test_f17_notification_goes_to_the_registrant() -> None:
    """PostgreSQL: any pid, silently dropped unless it is a live child of the postmaster. posthouse:
    yes or no; who the registrant is, the kernel says (SO_PEERCRED), never the record."""
    assert accepted(notify=True).notify is True
    for notify in (4711, 0, 1, None, "yes"):
        refused("notify", "True or False", notify=notify)


def test_f18_the_record_is_a_copy() -> None:
    """PostgreSQL: the struct is copied; later edits by the caller have no effect. So here."""
    argument: dict[str, Any] = {"topics": ["a"]}
    env, labels, limits_, extra = {"A": "1"}, ["ssd"], {"NOFILE": 10}, bytearray(b"x")
    made = worker(main_arg=argument, env=env, labels=labels, rlimits=limits_, extra=extra).check()
    argument["topics"].append("b")
    argument["new"] = 1
    env["B"] = "2"
    labels.append("hdd")
    limits_["CPU"] = 1
    extra[0] = 0
    assert made.main_arg == {"topics": ["a"]}
    assert (made.env, made.labels, made.rlimits) == ({"A": "1"}, ("ssd",), {"NOFILE": 10})
    assert made.extra == b"x"


def test_f18_the_wire_form_gives_nothing_of_the_record_away() -> None:
    made = worker(main_arg=[[1]], env={"A": "1"})
    wire = made.to_wire()
    wire["main_arg"][0].append(2)
    wire["env"]["B"] = "2"
    assert (made.main_arg, made.env) == ([[1]], {"A": "1"})
    again = BackgroundWorker.from_wire(wire)
    wire["main_arg"].clear()
    assert again.main_arg == [[1, 2]]


def test_f18_the_record_is_immutable() -> None:
    made = worker()
    for name in ("name", "main_arg", "restart_time", "new"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, name, 1)
    changed = dataclasses.replace(made, restart_time=1.0)
    assert (made.restart_time, changed.restart_time) == (5.0, 1.0)


class Colour(StrEnum):
    RED = "red"


class Mixed(str):
    __slots__ = ("secret",)

    def __str__(self) -> str:
        return "something else"


class Size(IntEnum):
    BIG = 3


class Real(float):
    pass


def test_f18_values_are_copied_down_to_plain_types() -> None:
    """A subclass could carry more than arrives; what comes back is what was stored."""
    value = {Colour.RED: [Size.BIG, Real(1.5), Mixed("m"), (1, bytearray(b"x"), memoryview(b"y"))]}
    copied = accepted(main_arg=value).main_arg
    assert copied == {"red": [3, 1.5, "m", [1, b"x", b"y"]]}
    kinds = [type(part) for part in (*copied, *copied["red"], *copied["red"][3])]
    assert kinds == [str, int, float, str, list, int, bytes, bytes]


def test_f20_a_record_has_no_uninitialised_parts() -> None:
    """PostgreSQL: no size or version in the struct; garbage in it was a common bug. posthouse:
    fields by name only, each with its default, and unknown ones refused."""
    with pytest.raises(TypeError):
        BackgroundWorker("w", "m:f")  # type: ignore[call-arg,misc]
    with pytest.raises(TypeError):
        BackgroundWorker()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        BackgroundWorker(name="w", bgw_name="w")  # type: ignore[call-arg]
    assert BackgroundWorker(name="w", main="m:f").to_wire() == {"name": "w", "main": "m:f"}


def test_f20_an_unknown_field_from_the_wire_is_refused() -> None:
    with pytest.raises(InvalidField, match="garbage is 1: must be a field of BackgroundWorker"):
        BackgroundWorker.from_wire({"name": "w", "main": "m:f", "garbage": 1})
    with pytest.raises(InvalidField, match="name is None: must be given"):
        BackgroundWorker.from_wire({"main": "m:f"})


# --- posthouse's own fields --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field", "rule"),
    [
        ({"restart_growth": 0.5}, "restart_growth", "a number from 1 to 10"),
        ({"restart_time": 9, "restart_time_max": 8}, "restart_time_max", "from 9 to"),
        ({"restart_jitter": 1.1}, "restart_jitter", "from 0 to 1"),
        ({"restart_budget": (0, 60)}, "restart_budget", "an integer from 1"),
        ({"restart_budget": (3, 0)}, "restart_budget", "a number from 0.001"),
        ({"restart_budget": (3,)}, "restart_budget", "(starts, window_s)"),
        ({"restart_budget": 3}, "restart_budget", "(starts, window_s)"),
        ({"unique": 1}, "unique", "True or False"),
        ({"host": ""}, "host", "1 to 64 bytes"),
        ({"labels": "ssd"}, "labels", "a tuple"),
        ({"labels": ["a b"]}, "labels", "letters, digits"),
        ({"labels": ["x"] * 33}, "labels", "at most 32"),
        ({"fence": "moat"}, "fence", 'None, "process" or "tree"'),
        ({"on_partition": "run"}, "on_partition", 'None, "stop" or "keep"'),
        ({"on_partition": "keep"}, "on_partition", "pinned to a host"),
        ({"unblock_signals": 0}, "unblock_signals", "True or False"),
        ({"stop_signal": "KILL"}, "stop_signal", "a process can handle"),
        ({"stop_signal": "SIGTERM"}, "stop_signal", "without SIG"),
        ({"reload_signal": 1}, "reload_signal", "a signal name"),
        ({"stop_grace_s": -1}, "stop_grace_s", "from 0 to 3600"),
        ({"stop_grace_s": math.inf}, "stop_grace_s", "from 0 to 3600"),
        ({"watchdog_s": 0}, "watchdog_s", "a number from 0.1"),
        ({"run_as": ""}, "run_as", "1 to 64 bytes"),
        ({"cwd": "here"}, "cwd", "an absolute path"),
        ({"cwd": "/a\0b"}, "cwd", "without NUL"),
        ({"nice": 20}, "nice", "from -20 to 19"),
        ({"umask": 0o1000}, "umask", "from 0 to 511"),
        ({"log_bytes": 1}, "log_bytes", "from 65536"),
        ({"env": ["A=1"]}, "env", "a map"),
        ({"env": {"A-B": "1"}}, "env", "names of letters, digits and _"),
        ({"env": {"A": 1}}, "env.A", "text without NUL"),
        ({"env": {"A": "x\0"}}, "env.A", "text without NUL"),
        ({"env": {"A": "x" * 32_768}}, "env", "at most 32768 bytes"),
        ({"env": {f"A{i}": "" for i in range(129)}}, "env", "at most 128 names"),
        ({"rlimits": {"OPENFILES": 1}}, "rlimits", "one of AS, CORE"),
        ({"rlimits": {"NOFILE": -2}}, "rlimits.NOFILE", "from -1"),
        ({"rlimits": []}, "rlimits", "a map"),
    ],
)
def test_own_fields_are_refused_with_field_value_and_rule(
    fields: dict[str, Any], field: str, rule: str
) -> None:
    refused(field, rule, **fields)


def test_own_fields_at_their_bounds_are_accepted() -> None:
    accepted(
        restart_growth=10,
        restart_time=NEVER_RESTART,
        restart_time_max=0,
        restart_jitter=1,
        restart_budget=[limits.restart_budget_starts_max, 60],
        host="b",
        on_partition="keep",
        fence="tree",
        labels=["disk=ssd", "zone:a/b"],
        stop_signal="INT",
        reload_signal="USR2",
        stop_grace_s=3600,
        watchdog_s=0.1,
        run_as="www-data",
        cwd="/",
        nice=-20,
        umask=0o777,
        log_bytes=65_536,
        env={f"A{i}": "" for i in range(128)},
        rlimits={"NOFILE": -1, "CORE": 2**63 - 1},
    )


@pytest.mark.parametrize(
    ("argv", "good"),
    [
        (["/bin/true"], True),
        (["a", ""], True),
        ([], False),
        ([""], False),
        (None, False),
        ("true", False),
        (["a", 1], False),
        (["a\0"], False),
        (["a"] * 1025, False),
    ],
)
def test_exec_takes_an_argv(argv: Any, good: bool) -> None:
    if good:
        accepted(main="posthouse.exec", main_arg=argv)
    else:
        refused("main_arg", "the argv", main="posthouse.exec", main_arg=argv)


# --- what is shown -----------------------------------------------------------------------------


def test_secrets_are_never_shown() -> None:
    """main_arg, extra and env are in no repr, and in no refusal of their own rules."""
    secret = "hunter2" * 3
    made = worker(main_arg={"password": secret}, extra=secret.encode(), env={"TOKEN": secret})
    assert repr(made) == (
        "BackgroundWorker(name='w', main='acme.jobs:main', main_arg=..., extra=..., env=...)"
    )
    wrong: list[dict[str, Any]] = [
        {"extra": secret},
        {"env": {"TOKEN": secret + "\0"}},
        {"env": {"TOKEN": secret * 2000}},
        {"env": secret},
        {"main": "posthouse.exec", "main_arg": ["login", secret, 1]},
        {"main_arg": secret * 5000},
        {"main_arg": [secret] * 5000},
    ]
    for fields in wrong:
        with pytest.raises(InvalidField) as caught:
            worker(**fields).check()
        assert "hunter2" not in str(caught.value)
        assert "hunter2" not in repr(caught.value.detail)


def test_a_value_with_a_broken_repr_is_still_refused() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert refused("host", "text", host=Broken()).detail["value"] == "<Broken>"
    assert refused("main_arg", "None, bool", main_arg=Broken()).detail["value"] == "<Broken>"


def test_equal_records_have_equal_wire_forms() -> None:
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"flags": 0}, {"flags": Flags(0)}),
        ({"flags": 1}, {"flags": SHMEM_ACCESS}),
        ({"restart_time": 5}, {"restart_time": 5.0}),
        ({"restart_budget": (3, 60)}, {"restart_budget": [3, 60.0]}),
        ({"labels": ["a"]}, {"labels": ("a",)}),
        ({"main_arg": (1, 2)}, {"main_arg": [1, 2]}),
        ({"extra": bytearray(b"x")}, {"extra": b"x"}),
    ]
    for one, other in pairs:
        first, second = worker(**one), worker(**other)
        assert first == second
        assert hash(first) == hash(second)
        assert repr(first.to_wire()) == repr(second.to_wire())
