"""The chapter on background workers, sentence by sentence: the structure and what it decides.

One test for each sentence that the vocabulary and the decisions alone can keep; those that need
processes stand beside them in other files. Tests are named after the topic of the sentence.
"""

from dataclasses import fields

import pytest

from posthouse import worker as inside
from posthouse.errors import InvalidField
from posthouse.records import ExitFacts
from posthouse.restart import decide
from posthouse.spec import BackgroundWorker
from posthouse.states import (
    DATABASE_CONNECTION,
    NEVER_RESTART,
    SHMEM_ACCESS,
    Flags,
    Phase,
    StartTime,
    StopReason,
    WorkerState,
)
from posthouse_master.phases import may_start

COUNTERPART = {
    "bgw_name": "name",
    "bgw_flags": "flags",
    "bgw_start_time": "start_time",
    "bgw_restart_time": "restart_time",
    "bgw_main": "main",
    "bgw_library_name": "library",
    "bgw_function_name": "function",
    "bgw_main_arg": "main_arg",
    "bgw_extra": "extra",
    "bgw_notify_pid": "notify",
}


def made(**given: object) -> BackgroundWorker:
    return BackgroundWorker(**{"name": "w", "main": "acme.jobs:main", **given}).check()  # type: ignore[arg-type]


def test_the_structure_has_every_field() -> None:
    ours = {field.name for field in fields(BackgroundWorker)}
    assert set(COUNTERPART.values()) <= ours
    for c_name in COUNTERPART:
        assert c_name in (BackgroundWorker.__doc__ or ""), c_name


def test_the_name_is_for_messages_and_listings() -> None:
    assert made(name="worker 1 of acme").name == "worker 1 of acme"
    with pytest.raises(InvalidField):
        made(name="not\nfor a listing")


def test_flags_are_a_bit_mask() -> None:
    assert Flags(3) == SHMEM_ACCESS | DATABASE_CONNECTION
    assert made(flags=SHMEM_ACCESS | DATABASE_CONNECTION).flags & SHMEM_ACCESS


def test_a_database_connection_needs_shared_memory() -> None:
    """The seed lets the start-up fail; here the registration is refused."""
    with pytest.raises(InvalidField, match="SHMEM_ACCESS as well"):
        made(flags=DATABASE_CONNECTION)


def test_start_time_is_one_of_three() -> None:
    assert [str(start_time) for start_time in StartTime] == [
        "postmaster_start",
        "consistent_state",
        "recovery_finished",
    ]


def test_at_postmaster_start_there_are_no_database_connections() -> None:
    with pytest.raises(InvalidField, match="cannot request database access"):
        made(flags=3, start_time=StartTime.POSTMASTER_START)
    assert may_start(Phase.STARTING, StartTime.POSTMASTER_START)
    assert not may_start(Phase.STARTING, StartTime.CONSISTENT_STATE)


def test_consistent_state_starts_on_a_hot_standby() -> None:
    assert may_start(Phase.HOT_STANDBY, StartTime.CONSISTENT_STATE)
    assert not may_start(Phase.HOT_STANDBY, StartTime.RECOVERY_FINISHED)


def test_recovery_finished_starts_when_read_write() -> None:
    assert may_start(Phase.RUNNING, StartTime.RECOVERY_FINISHED)


def test_the_last_two_start_times_are_one_without_a_standby() -> None:
    for phase in (Phase.STARTING, Phase.RUNNING, Phase.STOPPING):
        assert may_start(phase, StartTime.CONSISTENT_STATE) == may_start(
            phase, StartTime.RECOVERY_FINISHED
        )


def test_restart_time_is_positive_or_never() -> None:
    for restart_time in (0.5, 1, 3600, NEVER_RESTART):
        assert made(restart_time=restart_time).restart_time == restart_time
    with pytest.raises(InvalidField):
        made(restart_time=-2)


def test_restart_time_is_waited_for_after_a_crash() -> None:
    spec = made(restart_time=7)
    for facts in (
        ExitFacts(code=1),
        ExitFacts(code=2),
        ExitFacts(cause="signaled", signal=11),
        ExitFacts(cause="signaled", signal=9),
        ExitFacts(cause="signaled", signal=15),
    ):
        decision = decide(spec, facts, None)
        assert (decision.kind, decision.delay_s) == ("restart", 7.0)


def test_the_argument_is_one_value() -> None:
    assert made(main_arg={"any": ["value"]}).main_arg == {"any": ["value"]}
    assert made().main_arg is None


def test_library_and_function_determine_the_entry_point_if_main_does_not() -> None:
    assert made(main=None, library="acme.jobs", function="run").entry_point == "acme.jobs:run"


def test_library_and_function_are_ignored_beside_main() -> None:
    spec = made(main="acme.jobs:main", library="other", function="run")
    assert spec.entry_point == "acme.jobs:main"


def test_a_library_need_not_be_loaded_where_it_is_registered() -> None:
    assert made(main=None, library="only.on.the.host", function="run")
    assert made(main="only.on.the.host:run")


def test_extra_is_carried_beside_the_argument() -> None:
    spec = made(extra=b"\x00opaque", main_arg=1)
    assert (spec.extra, spec.main_arg) == (b"\x00opaque", 1)


def test_no_notification_for_static_registrations() -> None:
    with pytest.raises(InvalidField, match="only dynamic ones can request notification"):
        made(notify=True).check(static=True)
    assert made(notify=True).check().notify


def test_never_restart_exit_0_and_terminate_unregister() -> None:
    failed, done = ExitFacts(code=1), ExitFacts(code=0)
    killed = ExitFacts(cause="signaled", signal=9)
    for facts in (failed, done, killed):
        assert decide(made(restart_time=NEVER_RESTART), facts, None).kind == "unregister"
        assert decide(made(), facts, StopReason.TERMINATE).kind == "unregister"
    assert decide(made(), done, None).kind == "unregister"


def test_statuses_of_a_handle() -> None:
    assert {str(state) for state in WorkerState} == {
        "not_yet_started",
        "started",
        "stopped",
        "postmaster_died",
    }


def test_the_calls_of_a_worker_have_their_counterparts() -> None:
    for name in ("entry", "block_signals", "unblock_signals", "latch", "POSTMASTER_DEATH"):
        assert name in inside.__all__
        assert hasattr(inside, name)
