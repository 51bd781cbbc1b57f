"""Every field of a registration can be given on the command line, and both spellings agree."""

import dataclasses
import re

import pytest
from click.testing import CliRunner

from posthouse import BackgroundWorker, StartTime
from posthouse.errors import InvalidField, UsageError
from posthouse_cli import durations
from posthouse_cli.commands.run import _default_name, register
from posthouse_cli.fields import FIELDS, build

EXAMPLES = {
    "name": ("w", "w"),
    "main": ("m:f", "m:f"),
    "library": ("pkg.mod", "pkg.mod"),
    "function": ("run", "run"),
    "main_arg": ('{"a": [1, 2.5, null]}', {"a": [1, 2.5, None]}),
    "extra": ("é", "é".encode()),
    "type": ("kind", "kind"),
    "flags": ("shmem_access,DATABASE_CONNECTION", 3),
    "start_time": ("consistent-state", StartTime.CONSISTENT_STATE),
    "restart_time": ("never", -1),
    "restart_growth": ("1.5", 1.5),
    "restart_time_max": ("2m", 120.0),
    "restart_jitter": ("0.1", 0.1),
    "restart_budget": ("5/1m", (5, 60.0)),
    "notify": ("yes", True),
    "unique": ("no", False),
    "host": ("b", "b"),
    "labels": ("gpu", ("gpu",)),
    "runtime": ("ml", "ml"),
    "fence": ("tree", "tree"),
    "on_partition": ("stop", "stop"),
    "crash_domain": ("d", "d"),
    "unblock_signals": ("true", True),
    "stop_signal": ("INT", "INT"),
    "stop_grace_s": ("1500ms", 1.5),
    "reload_signal": ("USR1", "USR1"),
    "watchdog_s": ("10", 10.0),
    "run_as": ("nobody", "nobody"),
    "env": ("A=x=y", {"A": "x=y"}),
    "cwd": ("/srv", "/srv"),
    "rlimits": ("nofile=unlimited", {"NOFILE": -1}),
    "nice": ("-5", -5),
    "umask": ("027", 0o027),
    "log_bytes": ("1MiB", 2**20),
}
NEEDED = {"library": ["function=f"], "function": ["library=m"]}


def test_the_table_is_complete():
    fields = {field.name for field in dataclasses.fields(BackgroundWorker)}
    assert set(FIELDS) == fields == set(EXAMPLES)
    options = {option.name for option in register.params}
    assert fields <= options


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_each_field_is_read_alike_as_option_and_as_assignment(name):
    text, value = EXAMPLES[name]
    base = NEEDED.get(name, [] if name == "main" else ["main=m:f"])
    base = base if name == "name" else [*base, "name=w"]
    assigned = build([*base, f"{name}={text}"], {})
    given = build(base, {name: (text,)})
    assert getattr(assigned, name) == getattr(given, name) == value


def test_fields_that_may_be_repeated():
    worker = build(
        ["name=w", "main=m:f", "env=A=1", "env=B=2", "labels=x", "labels=y"],
        {"rlimits": ("NOFILE=1", "CPU=2")},
    )
    assert worker.env == {"A": "1", "B": "2"}
    assert worker.labels == ("x", "y")
    assert worker.rlimits == {"NOFILE": 1, "CPU": 2}


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("umask=9", "octal"),
        ("flags=everything", "shmem_access"),
        ("unique=perhaps", "yes or no"),
        ("env=A", "NAME=VALUE"),
        ("restart_budget=5", "STARTS/DURATION"),
        ("start_time=soon", "postmaster_start"),
        ("restart_growth=fast", "number"),
        ("extra=@/no/such/file", "No such file"),
        ("log_bytes=1 furlong", "size"),
    ],
)
def test_what_cannot_be_read_says_what_it_must_be(assignment, words):
    with pytest.raises(UsageError, match=words):
        build(["name=w", "main=m:f", assignment], {})


def test_what_breaks_a_rule_is_left_to_the_record():
    with pytest.raises(InvalidField, match="restart_time"):
        build(["name=w", "main=m:f", "restart_time=99999999999"], {})


@pytest.mark.parametrize(
    ("main", "name"),
    [
        ("beat:main", "beat"),
        ("acme.ingest:main", "ingest"),
        ("acme.jobs:clean", "jobs.clean"),
        ("posthouse.exec", "exec"),
    ],
)
def test_default_names(main, name):
    assert _default_name(main) == name


def test_durations_without_a_unit_are_seconds():
    assert durations.parse("1.5") == 1.5
    with pytest.raises(ValueError, match="unit"):
        durations.parse("-1")


def test_help_shows_each_field_once():
    shown = CliRunner().invoke(register, ["--help"]).output
    for name in FIELDS:
        flag = "--" + name.replace("_", "-")
        assert len(re.findall(rf"^  (--\w+, )?{flag} ", shown, re.MULTILINE)) == 1, name
