"""E1-E8: what an exit comes to. The request judges what was asked for, the code all else."""

import pytest

from posthouse.messages import Restart, Shutdown, Start, Started, Stop, Terminate
from posthouse.states import NEVER_RESTART, SHMEM_ACCESS, ShutdownMode, StopReason

DELAY_S = 5


@pytest.fixture
def host(town):
    return town.host("b")


@pytest.fixture
def client(town):
    return town.client()


def exited(town, ref="0.1"):
    return next(event for event in reversed(town.log(ref)) if event.kind == "exited")


def comes_back_after(town, host, seconds):
    """Not before, and then once."""
    town.pass_time(seconds - 0.5)
    assert not host.take(Start)
    town.pass_time(1)
    again = host.run()
    town.pass_time(seconds + 1)
    assert not host.take(Start)
    return again


@pytest.mark.parametrize("restart_time", [0, DELAY_S, NEVER_RESTART])
def test_e1_exit_0_unregisters_for_good(town, host, client, restart_time):
    """PostgreSQL forgets a worker that exits with 0, whatever its restart time. Kept."""
    client.register("w", restart_time=restart_time)
    host.end(host.run(), code=0)
    assert (exited(town).rule, exited(town).final) == ("E1", True)
    assert client.status("w").final
    town.pass_time(DELAY_S + 1)
    town.crash()
    town.client()
    assert not town.host("b").take(Start)


def test_e2_exit_1_restarts_after_restart_time(town, host, client):
    """Exit 1 is a failure that waits for restart_time, or the end of one never restarted. Kept."""
    client.register("w", restart_time=DELAY_S)
    host.end(host.run(), code=1)
    assert (exited(town).rule, exited(town).restart_in_s) == ("E2", DELAY_S)
    assert comes_back_after(town, host, DELAY_S).incarnation == 2
    client.register("once", restart_time=NEVER_RESTART)
    host.end(host.run(), code=1)
    assert client.status("once").final


@pytest.mark.parametrize(
    "facts",
    [
        {"code": 2},
        {"code": 255},
        {"cause": "signaled", "signal": 9},
        {"cause": "signaled", "signal": 6},
    ],
)
def test_e3_healed_any_other_exit_is_a_crash_of_that_worker_alone(town, host, client, facts):
    """PostgreSQL resets every process of the cluster, and the restart ignores restart_time. Healed:
    the worker waits for its restart_time, the others are left alone."""
    client.register("w", restart_time=DELAY_S)
    crashing = host.run()
    client.register("other")
    other = host.run()
    host.end(crashing, **facts)
    assert (exited(town).rule, exited(town).final) == ("E3", False)
    assert "a crash of its own" in exited(town).reason
    assert comes_back_after(town, host, DELAY_S).incarnation == 2
    assert not host.take(Stop)
    assert client.status("other").token == other.token


def test_e4_healed_an_exit_0_or_1_is_judged_by_its_code_and_resets_nobody(town, host, client):
    """An exit 0 or 1 without detaching from shared memory resets the others in PostgreSQL. Healed:
    what a worker leaves behind is its host's to clear away; the code alone is judged."""
    for name in ("w", "other"):
        client.register(name, flags=SHMEM_ACCESS, restart_time=DELAY_S)
    starts = host.take(Start)
    for start in starts:
        host.say(Started(worker=host.running(start)))
    host.end(starts[0], code=1)
    town.pass_time(1)
    assert not host.take(Stop)
    assert client.status("other").token == starts[1].token
    assert client.status("w").restart_in_s == DELAY_S - 1


def test_e5_a_crash_without_shared_memory_is_just_a_restart(town, host, client):
    """Before 15 a worker without shared memory could crash alone. Kept, for every worker."""
    client.register("w", restart_time=DELAY_S)
    start = host.run()
    assert "flags" not in start.spec
    host.end(start, cause="signaled", signal=11)
    assert comes_back_after(town, host, DELAY_S).incarnation == 2


def test_e6_sigterm_from_outside_counts_as_exit_1_and_says_so(town, host, client):
    """pg_terminate_backend, or kill by hand, comes to exit 1: the worker comes back. Kept."""
    client.register("w", restart_time=DELAY_S)
    host.end(host.run(), cause="signaled", signal=15)
    assert (exited(town).rule, exited(town).final) == ("E6", False)
    assert "from outside; counts as exit code 1" in exited(town).reason
    assert comes_back_after(town, host, DELAY_S).incarnation == 2


def test_e7_a_sigterm_handler_that_exits_0_unregisters_unless_the_end_was_asked_for(
    town, host, client
):
    """In PostgreSQL exit 0 after any SIGTERM unregisters (pg_cron met it). Kept for a signal from
    outside; where posthouse asked for the end, the request judges."""
    client.register("outside", restart_time=0)
    host.end(host.run(), None, code=0)
    assert client.status("outside").final
    client.register("asked", restart_time=0)
    start = host.run()
    assert client.ask(Restart, ref="asked").changed
    host.obey_stop(start, code=0)
    assert not client.status("asked").final
    assert host.one(Start).incarnation == 2


@pytest.mark.parametrize(
    "facts", [{"code": 0}, {"code": 1}, {"code": 9}, {"cause": "signaled", "signal": 9}]
)
def test_e8_healed_no_code_counts_in_a_stop_that_was_asked_for(town, host, client, facts):
    """During a crash cycle or immediate shutdown an exit 0 still unregisters in PostgreSQL. Healed:
    the registration stays, whatever the code; one that is terminated goes, whatever the code."""
    client.register("kept", restart_time=NEVER_RESTART)
    client.register("gone")
    kept, gone = host.take(Start)
    for start in (kept, gone):
        host.say(Started(worker=host.running(start)))
    client.ask(Terminate, ref="gone")
    client.say(Shutdown(request=b"s" * 16, mode=ShutdownMode.IMMEDIATE))
    host.end(kept, StopReason.SHUTDOWN, **facts)
    host.end(gone, StopReason.TERMINATE, **facts)
    assert town.halted
    town.crash()
    client, host = town.client(), town.host("b")
    assert [start.spec["name"] for start in host.take(Start)] == ["kept"]
    assert client.status("gone").final
