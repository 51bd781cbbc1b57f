"""The oracle notices what it is there for: a check that cannot fail would prove nothing."""

import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from faulting.oracle import Hold, Oracle

from posthouse import Event, EventKind
from posthouse.records import ExitFacts

HOLD = {"name": "w", "incarnation": 1, "token": 7, "pid": 4711, "host": "a"}
STARTING, STARTED, EXITED = EventKind.STARTING, EventKind.STARTED, EventKind.EXITED


@pytest.fixture
def oracle() -> Iterator[Oracle]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        made = Oracle(Path(folder) / "oracle")
        yield made
        made.close()


def hold(oracle: Oracle, **changes: Any) -> socket.socket:
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end.connect(str(oracle.folder / "resource"))
    end.send(json.dumps({**HOLD, **changes}).encode())
    assert end.recv(16) == b"yours"
    return end


def event(kind: EventKind, incarnation: int = 1, **changes: Any) -> Event:
    fields: dict[str, Any] = {
        "timeline": 1, "sequence": 1, "kind": kind, "at_unix_s": 0.0, "name": "w", "host": "a",
        "incarnation": incarnation, "token": 6 + incarnation,
    }  # fmt: skip
    if kind is STARTED:
        fields["pid"] = 4711
    if kind is EXITED:
        fields["exit"] = ExitFacts(signal=9, cause="signaled")
    return Event(**{**fields, **changes})


def test_two_holders_at_once_are_seen(oracle: Oracle) -> None:
    with hold(oracle), hold(oracle, incarnation=2, token=8, pid=4712):
        assert len(oracle.overlaps) == 1
        assert oracle.problems("w", [], ended=False)


def test_holders_one_after_the_other_are_not(oracle: Oracle) -> None:
    for number in range(1, 200):
        hold(oracle, incarnation=number, token=number).close()
    assert not oracle.overlaps
    assert len(oracle.of("w")) == 199


def test_a_hold_lasts_as_long_as_any_process_has_the_socket(oracle: Oracle) -> None:
    first = hold(oracle)
    kept = os.dup(first.fileno())  # as a child of it would
    first.close()
    with hold(oracle, incarnation=2, token=8):
        assert len(oracle.overlaps) == 1
    os.close(kept)


def test_a_life_that_is_told_as_it_was_is_no_problem(oracle: Oracle) -> None:
    oracle.holds.append(Hold(**HOLD, ended=True))
    lines = ["begin w 1 7 4711", "end w 1 7 4711"]
    oracle.file.write_text("\n".join(lines))
    assert oracle.problems("w", [event(STARTING), event(STARTED), event(EXITED)]) == []


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        ([], "is not in the log"),
        ([STARTING, STARTED], "is told to end 0 times"),
        ([STARTING, STARTED, EXITED, EXITED], "is told as"),
        ([STARTING, EXITED, STARTED], "is told to end"),
        ([STARTED, EXITED], "is told as"),
        ([STARTING, EXITED], "is not told to have started"),
        ([STARTING, STARTED, EventKind.START_FAILED], "is told as a start that failed"),
    ],
)
def test_what_is_told_otherwise(oracle: Oracle, told: list[EventKind], problem: str) -> None:
    oracle.holds.append(Hold(**HOLD, ended=True))
    found = oracle.problems("w", [event(kind) for kind in told])
    assert any(problem in one for one in found), found


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda e: [*e[:1], event(STARTED, pid=1), e[2]], "is told with pid 1"),
        (lambda e: [event(STARTING, host="b"), *e[1:]], "is told as"),
        (lambda e: [event(STARTING, token=9), *e[1:]], "is told as"),
        (lambda e: [*e[:2], event(STARTING, 2), e[2], event(EXITED, 2)], "was told to have ended"),
        (lambda e: [event(STARTING, 2), event(EXITED, 2), *e], "starts after incarnation 2"),
    ],
)
def test_details_count(oracle: Oracle, spoil: Callable[[Any], Any], problem: str) -> None:
    oracle.holds.append(Hold(**HOLD, ended=True))
    found = oracle.problems("w", spoil([event(STARTING), event(STARTED), event(EXITED)]))
    assert any(problem in one for one in found), found


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["begin w 1 7 4711", "begin w 1 7 4712"], "token 7 ran twice"),
        (["begin w 1 7 4711", "taken w 2 8 4712"], "found the lock of pid 4711 held"),
        (["begin w 1 7 4711", "begin w 2 8 4712", "end w 1 7 4711"], "after pid 4712 has begun"),
        (["begin w 3 9 4713"], "token 9 never held"),
    ],
)
def test_the_file_counts(oracle: Oracle, lines: list[str], problem: str) -> None:
    oracle.file.write_text("\n".join(lines))
    found = oracle.problems("w", [])
    assert any(problem in one for one in found), found


def test_one_that_still_runs_is_a_problem_at_the_end(oracle: Oracle) -> None:
    with hold(oracle):
        found = oracle.problems("w", [event(STARTING), event(STARTED), event(EXITED)])
        assert any("still runs" in one for one in found), found
