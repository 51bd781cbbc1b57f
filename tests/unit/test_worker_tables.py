"""[[worker]] tables: every field of a record in TOML's own spelling, and what a bad one costs."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from posthouse import BackgroundWorker, StartTime
from posthouse.errors import ConfigError, InvalidField
from posthouse.toml_file import read_toml
from posthouse.worker_tables import (
    BadWorker,
    DeclaredWorker,
    read_replicas,
    read_worker_tables,
)

SPELLED: dict[str, tuple[str, Any]] = {
    "name": ('"w"', "w"),
    "main": ('"m:f"', "m:f"),
    "library": ('"pkg.mod"', "pkg.mod"),
    "function": ('"run"', "run"),
    "main_arg": ('{ topic = "orders", sizes = [1, 2.5] }', {"topic": "orders", "sizes": [1, 2.5]}),
    "extra": ('"é"', "é".encode()),
    "type": ('"kind"', "kind"),
    "flags": ('["shmem_access", "DATABASE_CONNECTION"]', 3),
    "start_time": ('"consistent_state"', StartTime.CONSISTENT_STATE),
    "restart_time": ('"never"', -1),
    "restart_growth": ("1.5", 1.5),
    "restart_time_max": ('"2m"', 120.0),
    "restart_jitter": ("0.1", 0.1),
    "restart_budget": ('"5/1m"', (5, 60.0)),
    "notify": ("true", True),
    "unique": ("false", False),
    "host": ('"b"', "b"),
    "labels": ('["gpu"]', ("gpu",)),
    "runtime": ('"ml"', "ml"),
    "fence": ('"tree"', "tree"),
    "on_partition": ('"stop"', "stop"),
    "crash_domain": ('"d"', "d"),
    "unblock_signals": ("true", True),
    "stop_signal": ('"INT"', "INT"),
    "stop_grace_s": ('"1500ms"', 1.5),
    "reload_signal": ('"USR1"', "USR1"),
    "watchdog_s": ("10", 10.0),
    "run_as": ('"nobody"', "nobody"),
    "env": ('{ A = "x=y" }', {"A": "x=y"}),
    "cwd": ('"/srv"', "/srv"),
    "rlimits": ('{ nofile = "unlimited", CORE = 0 }', {"NOFILE": -1, "CORE": 0}),
    "nice": ("-5", -5),
    "umask": ('"027"', 0o027),
    "log_bytes": ('"1MiB"', 2**20),
}


def read(tmp_path: Path, text: str) -> list[DeclaredWorker | BadWorker]:
    path = tmp_path / "w.toml"
    path.write_text(text)
    return read_worker_tables(read_toml(str(path)))


def bad(tmp_path: Path, text: str) -> str:
    """The only record of the text is refused, with this message."""
    (found,) = read(tmp_path, text)
    assert isinstance(found, BadWorker), found
    return found.error.message.replace(str(tmp_path / "w.toml"), "FILE")


def test_the_table_of_spellings_is_complete() -> None:
    assert set(SPELLED) == {field.name for field in dataclasses.fields(BackgroundWorker)}


@pytest.mark.parametrize("field", SPELLED)
def test_each_field_is_read(tmp_path: Path, field: str) -> None:
    spelled, value = SPELLED[field]
    entry = {"name": '"w"'} | ({} if field in ("library", "function") else {"main": '"m:f"'})
    entry |= {"library": '"m"', "function": '"f"'} if "main" not in entry else {}
    lines = [f"{name} = {text}" for name, text in (entry | {field: spelled}).items()]
    (found,) = read(tmp_path, "\n".join(["[[worker]]", *lines]))
    assert isinstance(found, DeclaredWorker), found
    assert getattr(found.worker, field) == value
    assert found.replicas is None


def test_numbers_are_seconds_and_lists_are_budgets(tmp_path: Path) -> None:
    text = '[[worker]]\nname="w"\nmain="m:f"\nrestart_time=2\nrestart_budget=[3, "1m"]\numask=0o27'
    (found,) = read(tmp_path, text)
    assert isinstance(found, DeclaredWorker)
    worker = found.worker
    assert (worker.restart_time, worker.restart_budget, worker.umask) == (2, (3, 60.0), 0o27)


def test_records_come_in_order_with_their_place(tmp_path: Path) -> None:
    text = (
        '\n[[worker]]\nname = "a"\nmain = "m:f"\nreplicas = "each-host"\n[worker.env]\nA = "1"\n'
        '# c\n[[worker]]\nname = "b"\nmain = "m:f"\nreplicas = 3\n'
    )
    one, two = read(tmp_path, text)
    assert isinstance(one, DeclaredWorker) and isinstance(two, DeclaredWorker)
    assert (one.worker.name, one.where, one.replicas) == ("a", f"{tmp_path}/w.toml:2", "each-host")
    assert one.worker.env == {"A": "1"}
    assert (two.worker.name, two.where, two.replicas) == ("b", f"{tmp_path}/w.toml:9", 3)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("nice = 1000", "FILE:4: worker 'w': nice is 1000: must be an integer from -20 to 19"),
        (
            'restart_time = "5 parsecs"',
            ("FILE:4: worker 'w': restart_time is '5 parsecs': must be a duration with its unit"),
        ),
        (
            "main_arg = 1979-05-27",
            ("FILE:4: worker 'w': main_arg is datetime.date(1979, 5, 27): must be None, bool, int"),
        ),
        (
            'flags = ["shmem"]',
            (
                "FILE:4: worker 'w': flags is ['shmem']: must be some of shmem_access, "
                "database_connection"
            ),
        ),
        ("replicas = -1", "FILE:4: worker 'w': replicas is -1: must be a whole number from 0 to"),
        ("replicas = true", "FILE:4: worker 'w': replicas is True: must be a whole number from 0"),
        ('umask = "9"', "FILE:4: worker 'w': umask is '9': must be an octal number, as \"077\""),
        ('[worker.env]\nA = "a"\n\n"B=" = "b"', "FILE:4: worker 'w': env"),
        ("[worker.rlimits]\nnofile = 1.5", "FILE:4: worker 'w': rlimits"),
        ("env = 7", "FILE:4: worker 'w': env is"),
        ("rlimits = 7", "FILE:4: worker 'w': rlimits is"),
        ("log_bytes = []", "FILE:4: worker 'w': log_bytes is"),
        ("restart_budget = [[]]", "FILE:4: worker 'w': restart_budget"),
    ],
)
def test_a_value_that_breaks_a_rule_is_told_with_its_line(
    tmp_path: Path, lines: str, told: str
) -> None:
    assert bad(tmp_path, f'[[worker]]\nname = "w"\nmain = "m:f"\n{lines}').startswith(told)


def test_a_record_without_a_name_is_told(tmp_path: Path) -> None:
    told = bad(tmp_path, '\n[[worker]]\nmain = "m:f"\n')
    assert told.startswith("FILE:2: worker: name is")


def test_a_bad_record_leaves_the_others(tmp_path: Path) -> None:
    text = '[[worker]]\nname="a"\nmain=7\n[[worker]]\nname="b"\nmain="m:f"\n'
    one, two = read(tmp_path, text)
    assert isinstance(one, BadWorker) and one.name == "a"
    assert one.where.endswith(":3")
    assert isinstance(two, DeclaredWorker)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            '[[worker]]\nname="a"\n\nmian="m:f"',
            "FILE:4: unknown key 'mian' of a worker; did you mean 'main'?",
        ),
        ('[[worker]]\n[[worker]]\nnam="x"', "FILE:3: unknown key 'nam' of a worker"),
        ('[worker]\nname="x"', "FILE:1: worker must be tables [[worker]]"),
        ("\nworker = 7", "FILE:2: worker must be tables [[worker]]"),
        ("worker = [1]", "FILE:1: worker must be tables [[worker]]"),
    ],
)
def test_an_unknown_key_is_an_error_of_the_file(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert caught.value.message.replace(str(tmp_path / "w.toml"), "FILE").startswith(told)


def test_no_table_is_no_worker(tmp_path: Path) -> None:
    assert read(tmp_path, 'host = "b"\n') == []


def test_replicas_are_bounded() -> None:
    with pytest.raises(InvalidField, match="replicas is 10001: must be a whole number"):
        read_replicas(10001)
