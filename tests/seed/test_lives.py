"""The chapter, sentence by sentence: what a worker is given, how it lives, what a handle tells.

Real workers on one host; one test for each sentence, named after its topic.
"""

import os
import signal

import pytest

from posthouse import (
    NEVER_RESTART,
    EventKind,
    StartTime,
    WorkerState,
)
from posthouse.errors import NoFreeSlot, TimedOut

WORKERS = '''
import json, os, signal, sys, time
from posthouse import worker

def say(**values):
    print(json.dumps(values), flush=True)

def blocked():
    return int(signal.SIGTERM) in {int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, ())}

def tell(*given):
    """Everything that main is given, and then nothing but waiting."""
    me = worker.entry()
    before = blocked()
    worker.unblock_signals()
    between = blocked()
    worker.block_signals()
    say(given=given, name=me.name, arg=me.main_arg, extra=me.extra.hex(),
        restart_time=me.spec.restart_time, masks=[before, between, blocked()], pid=os.getpid())
    wait(None)

def wait(arg):
    worker.unblock_signals()
    while True:
        worker.latch.reset()
        if worker.POSTMASTER_DEATH in worker.latch.wait(timeout=60.0):
            sys.exit(1)

def leave(code):
    sys.exit(code)

def handles_term(path):
    """Ends by itself when it is asked to, in its own way."""
    def on_term(number, frame):
        print("asked to end", flush=True)
        sys.exit(7)
    signal.signal(signal.SIGTERM, on_term)
    worker.unblock_signals()
    say(up=True)
    while True:
        time.sleep(60)
'''
SLOTS = 6
MASTER = f"max_worker_processes = {SLOTS}\n"
PATIENCE_S = 30.0


# --- what a worker is given ----------------------------------------------------------------------


def test_main_takes_a_single_argument_and_the_entry_is_a_copy_of_the_structure(
    register, said
) -> None:
    handle = register("tell", {"topic": "orders"}, extra=b"\0x", restart_time=7)
    told = said(handle)
    assert told["given"] == [{"topic": "orders"}]
    assert (told["arg"], told["extra"]) == ({"topic": "orders"}, "0078")
    assert told["restart_time"] == 7
    assert told["name"] == handle.name


def test_a_named_library_is_loaded_by_the_worker_and_its_function_called(register, said) -> None:
    """`main` is not given: library and function determine the entry point."""
    handle = register(None, 5, library="seed_workers", function="tell")
    assert said(handle)["given"] == [5]


def test_signals_are_blocked_when_main_is_entered_and_can_be_unblocked_and_blocked(
    register, said
) -> None:
    assert said(register("tell"))["masks"] == [True, False, True]


def test_the_pid_is_that_of_the_process(register, said) -> None:
    handle = register("tell")
    pid = said(handle)["pid"]
    status = handle.status()
    assert (status.state, status.pid) == (WorkerState.STARTED, pid)


# --- when it is unregistered, and when it is restarted --------------------------------------------


def test_exit_0_unregisters(register) -> None:
    handle = register("leave", 0, restart_time=0)
    status = handle.wait_until_unregistered(timeout=PATIENCE_S)
    assert (status.state, status.final) == (WorkerState.STOPPED, True)
    assert status.incarnation == 1


def test_never_restart_unregisters_whatever_the_exit(register) -> None:
    for code in (1, 3):
        status = register("leave", code, restart_time=NEVER_RESTART).wait_until_unregistered(
            timeout=PATIENCE_S
        )
        assert (status.final, status.incarnation) == (True, 1)
        assert status.last_exit is not None and status.last_exit.code == code


def test_otherwise_it_is_restarted_after_its_restart_time(register) -> None:
    handle = register("leave", 1, restart_time=0.3)
    starts, exits = [], []
    for event in handle.events(timeout=PATIENCE_S):
        if event.kind is EventKind.STARTED:
            starts.append(event.at_unix_s)
        elif event.kind is EventKind.EXITED:
            exits.append(event.at_unix_s)
        if len(starts) == 3:
            break
    # Never earlier than asked (the clocks are one machine's).
    assert all(start - end >= 0.29 for end, start in zip(exits, starts[1:], strict=False))


def test_terminate_unregisters_whatever_restart_time_says(register) -> None:
    handle = register("wait", restart_time=0)
    handle.wait_for_startup(timeout=PATIENCE_S)
    handle.terminate()
    assert handle.wait_until_unregistered(timeout=PATIENCE_S).incarnation == 1


def test_a_crash_restarts_it_after_its_restart_time_too(register, until) -> None:
    """PostgreSQL restarts it at once, with everybody else, as it reinitializes the cluster. Healed:
    a crash is that worker's own, unless it shares a crash domain."""
    other = register("wait")
    handle = register("wait", restart_time=0.1)
    first = handle.wait_for_startup(timeout=PATIENCE_S)
    before = other.wait_for_startup(timeout=PATIENCE_S)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    again = until(handle, lambda status: status.incarnation == 2 and status.pid is not None)
    assert again.pid != first.pid
    assert other.status().pid == before.pid


# --- what a handle tells -------------------------------------------------------------------------


def test_not_yet_started_until_it_has_been_started(register) -> None:
    handle = register("wait", labels=("nowhere",))
    status = handle.status()
    assert (status.state, status.pid) == (WorkerState.NOT_YET_STARTED, None)
    assert status.reason


def test_stopped_has_been_started_and_runs_no_longer(register, until) -> None:
    handle = register("leave", 1, restart_time=1000)
    status = until(handle, lambda now: now.state is WorkerState.STOPPED)
    assert (status.pid, status.final) == (None, False)


def test_the_handle_is_opaque_and_good_for_as_long_as_anybody_has_it(register, client) -> None:
    handle = register("leave", 0)
    handle.wait_until_unregistered(timeout=PATIENCE_S)
    # The name is free, and taken by another registration; the handle does not reach it.
    other = register("wait", name=handle.name)
    other.wait_for_startup(timeout=PATIENCE_S)
    assert client.status(str(handle.id)).state is WorkerState.STOPPED
    assert client.handle(handle.name) == other


def test_waiting_for_startup_blocks_until_it_was_attempted_and_gives_the_pid(register) -> None:
    status = register("wait").wait_for_startup(timeout=PATIENCE_S)
    assert status.state is WorkerState.STARTED
    assert status.pid is not None
    os.kill(status.pid, 0)
    with pytest.raises(TimedOut):  # PostgreSQL waits for ever; healed: every wait takes a timeout
        register("wait", labels=("nowhere",)).wait_for_startup(timeout=0.05)


def test_waiting_for_startup_may_find_it_stopped(register) -> None:
    handle = register("leave", 0)
    handle.wait_until_unregistered(timeout=PATIENCE_S)
    assert handle.wait_for_startup(timeout=PATIENCE_S).state is WorkerState.STOPPED


def test_terminate_sends_sigterm_and_unregisters_as_soon_as_it_has_ended(register, said) -> None:
    handle = register("handles_term", restart_time=0)
    said(handle)
    handle.terminate()
    status = handle.wait_until_unregistered(timeout=PATIENCE_S)
    assert status.last_exit is not None
    assert status.last_exit.code == 7  # its own handler's: the request judges, not the code
    assert "asked to end" in handle.output().text


def test_terminate_of_one_that_has_not_started_unregisters_at_once(register) -> None:
    handle = register("wait", labels=("nowhere",))
    handle.terminate()
    status = handle.status()
    assert (status.state, status.final, status.incarnation) == (WorkerState.STOPPED, True, 0)


# --- start times, the limit ----------------------------------------------------------------------


def test_each_start_time_is_reached_in_a_server_that_runs(register) -> None:
    handles = [register("wait", start_time=start_time) for start_time in StartTime]
    for handle in handles:
        assert handle.wait_for_startup(timeout=PATIENCE_S).state is WorkerState.STARTED


def test_max_worker_processes_limits_the_registered_workers(register) -> None:
    """PostgreSQL: false, without a reason. Healed: which limit, its value, who has the slots."""
    handles = [register("wait", labels=("nowhere",)) for _ in range(SLOTS)]
    with pytest.raises(NoFreeSlot) as caught:
        register("wait")
    assert caught.value.detail["limit"] == "max_worker_processes"
    assert caught.value.detail["value"] == SLOTS
    assert set(caught.value.detail["holders"]) <= {handle.name for handle in handles}
    handles[0].terminate()
    assert register("wait").wait_for_startup(timeout=PATIENCE_S).pid
