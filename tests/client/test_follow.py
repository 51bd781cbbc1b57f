"""The fold of events over a snapshot, and when a wait is over."""

from typing import Any

import msgspec
import pytest

from posthouse.follow import Goal, Wait, status_after
from posthouse.records import Event, ExitFacts, Status
from posthouse.states import EventKind, StopReason, WorkerState

NOT_YET, STARTED, STOPPED = (
    WorkerState.NOT_YET_STARTED,
    WorkerState.STARTED,
    WorkerState.STOPPED,
)


def event(kind: str, sequence: int = 1, **fields: Any) -> Event:
    return Event(timeline=1, sequence=sequence, kind=EventKind(kind), at_unix_s=5.0, **fields)


def fold(status: Status, *events: Event) -> Status:
    for each in events:
        status = status_after(status, each)
    return status


def test_a_whole_life() -> None:
    now = Status(state=NOT_YET, name="w", reason="waiting for host b")
    now = fold(now, event("registered"), event("starting", host="b", incarnation=1, token=7))
    assert (now.state, now.host, now.incarnation, now.token) == (NOT_YET, "b", 1, 7)
    now = fold(now, event("started", pid=42, host="b", incarnation=1, token=7), event("ready"))
    assert (now.state, now.pid, now.ready, now.started_unix_s) == (STARTED, 42, True, 5.0)
    now = fold(now, event("stop_requested", stop="terminate", reason="terminate by x"))
    assert (now.state, now.stopping, now.pid) == (STARTED, StopReason.TERMINATE, 42)
    facts = ExitFacts(code=1)
    now = fold(now, event("exited", exit=facts, reason="terminated by x", final=True))
    assert (now.state, now.pid, now.ready, now.stopping) == (STOPPED, None, False, None)
    assert (now.last_exit, now.final, now.reason) == (facts, True, "terminated by x")
    now = fold(now, event("unregistered", 9, reason="gone"))
    assert (now.final, now.reason, now.cursor.sequence) == (True, "terminated by x", 9)


def test_a_restart_forgets_what_was() -> None:
    stopped = Status(
        state=STOPPED, restart_in_s=5.0, restart_at_unix_s=9.0, last_exit=ExitFacts(code=1)
    )
    starting = fold(stopped, event("starting", host="a", incarnation=2, token=8))
    assert (starting.state, starting.restart_in_s) == (STOPPED, None)  # H3
    now = fold(starting, event("started", pid=43, incarnation=2, token=8))
    assert (now.state, now.host, now.ready) == (STARTED, "a", False)  # H4
    assert now.last_exit == ExitFacts(code=1)


@pytest.mark.parametrize("before", [NOT_YET, STOPPED])
def test_a_failed_start_changes_no_state(before: WorkerState) -> None:  # M6
    failed = event("start_failed", reason="no such module", restart_in_s=5.0)
    now = fold(Status(state=before), failed)
    assert (now.state, now.reason, now.restart_in_s) == (before, "no such module", 5.0)


def test_a_failed_start_may_be_the_end() -> None:
    now = fold(Status(state=NOT_YET), event("start_failed", final=True), event("unregistered"))
    assert (now.state, now.final) == (STOPPED, True)


def test_a_cancelled_registration_is_stopped() -> None:  # H5
    now = fold(Status(state=NOT_YET), event("unregistered", reason="terminated by x"))
    assert (now.state, now.final, now.reason) == (STOPPED, True, "terminated by x")


def test_what_does_not_concern_it() -> None:
    before = Status(state=STARTED, pid=3)
    for kind in ("registered", "host_up", "host_down", "shutdown"):
        now = fold(before, event(kind, 4))
        assert now == msgspec.structs.replace(before, timeline=1, sequence=4)
    assert fold(before, event("revised", revision=3)).revision == 3
    assert fold(before, event("held", reason="held by x")).reason == "held by x"


def waited(goal: Goal, *seen: Status | Event) -> Status | None:
    wait = Wait(goal)
    for each in seen:
        assert wait.outcome is None
        wait.snapshot(each) if isinstance(each, Status) else wait.event(each)
    return wait.outcome


def test_goals_that_a_snapshot_reaches() -> None:
    started, stopped = Status(state=STARTED), Status(state=STOPPED)
    ready, gone = Status(state=STARTED, ready=True), Status(state=STOPPED, final=True)
    reached = {
        goal: [waited(goal, status) is not None for status in (started, ready, stopped, gone)]
        for goal in Goal
    }
    assert reached == {
        Goal.STARTUP: [True, True, True, True],
        Goal.READY: [False, True, True, True],
        Goal.SHUTDOWN: [False, False, True, True],
        Goal.UNREGISTERED: [False, False, False, True],
    }
    assert all(waited(goal, Status(state=NOT_YET)) is None for goal in Goal)


def test_a_final_exit_is_not_yet_the_end() -> None:
    seen = (Status(state=STARTED), event("exited", exit=ExitFacts(code=0), final=True))
    assert waited(Goal.UNREGISTERED, *seen) is None
    outcome = waited(Goal.UNREGISTERED, *seen, event("unregistered"))
    assert outcome is not None
    assert outcome.last_exit == ExitFacts(code=0)


@pytest.mark.parametrize("goal", [Goal.READY, Goal.SHUTDOWN])
def test_a_stop_between_two_snapshots_is_not_overlooked(goal: Goal) -> None:
    before = Status(state=STARTED, incarnation=1)
    after = Status(state=STARTED, incarnation=2, pid=4, last_exit=ExitFacts(cause="x", signal=9))
    outcome = waited(goal, before, after)
    assert outcome is not None
    assert (outcome.state, outcome.pid) == (STOPPED, None)
    assert outcome.reason == "killed by SIGKILL; started again since"
    assert waited(goal, before, before) is None
    failed_start = Status(state=NOT_YET)
    assert waited(goal, failed_start, failed_start) is None


def test_where_it_starts_and_runs_is_said_as_the_master_says_it():
    """`posthouse wait` prints the reason; whether it had to wait must make no difference."""
    now = fold(Status(state=NOT_YET, name="w"), event("starting", host="b", token=1))
    assert now.reason == "starting on b"
    assert fold(now, event("started", host="b", pid=7)).reason == "running on b"
