"""The chapter, sentence by sentence: workers and the server that they belong to.

Real processes on one host: what a worker is to the system, memory, names, notification, the end
of the server.
"""

import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from posthouse import (
    NEVER_RESTART,
    SHMEM_ACCESS,
    BackgroundWorker,
    EventKind,
    WorkerState,
)
from posthouse.errors import TimedOut
from posthouse_testing.cluster import LocalCluster

PATIENCE_S = 30.0
WORKERS = '''
import ctypes, json, os, signal, sys, time
import posthouse
from posthouse import BackgroundWorker, shmem, worker
from posthouse.errors import PosthouseError

def say(**values):
    print(json.dumps(values), flush=True)

def wait(arg):
    worker.unblock_signals()
    say(pid=os.getpid(), parent=os.getppid())
    while True:
        worker.latch.reset()
        worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH, timeout=60.0)

def returns(value):
    return value

def wild(arg):
    """What a C pointer may do."""
    ctypes.string_at(0)

def adds(number):
    """Adds to what is shared, and says what was there."""
    try:
        segment, found = shmem.init_struct("sum", 64)
    except PosthouseError as error:
        return say(refused=error.message)
    before = segment[8]
    segment[8] = before + number
    say(found=found, before=before)
    wait(None)

def early(arg):
    """A handler that is installed while signals are blocked sees what came meanwhile."""
    seen = []
    say(pid=os.getpid())
    while signal.SIGTERM not in signal.sigpending():
        time.sleep(0.01)
    signal.signal(signal.SIGTERM, lambda *_: seen.append("TERM"))
    worker.unblock_signals()
    say(seen=seen)

def sleeps_interruptibly(arg):
    """A wait that others can end, instead of an exit."""
    worker.unblock_signals()
    say(waits=True)
    happened = worker.latch.wait(worker.LATCH_SET, worker.POSTMASTER_DEATH, timeout=60.0)
    say(happened=[event.name for event in happened])

def watches_the_server(arg):
    """Exits at once when the server is gone."""
    worker.unblock_signals()
    ctypes.CDLL(None).prctl(1, 0)  # PR_SET_PDEATHSIG: nobody kills it
    worker.ready()
    if worker.POSTMASTER_DEATH in worker.latch.wait(timeout=60.0):
        say(dead=True)
        sys.exit(1)

def asks_for_signals(notify):
    """Registers a worker, and counts the SIGUSR1 that it gets."""
    counted = []
    signal.signal(signal.SIGUSR1, lambda *_: (counted.append(1), worker.latch.set()))
    worker.unblock_signals()
    name = worker.entry().name + "-child"
    handle = worker.register(BackgroundWorker(
        name=name, main="seed_workers:wait", notify=notify, restart_time=1000))
    handle.wait_for_startup(timeout=30)
    while notify and not counted:
        worker.latch.wait(timeout=60.0)
        worker.latch.reset()
    started = len(counted)
    handle.terminate()
    handle.wait_for_shutdown(timeout=30)
    while notify and len(counted) == started:
        worker.latch.wait(timeout=60.0)
        worker.latch.reset()
    say(at_start=started, at_exit=len(counted) - started)
'''


# --- processes of the server ---------------------------------------------------------------------


def test_user_code_runs_in_a_process_of_its_own(register, said) -> None:
    told = [said(register("wait")) for _ in range(2)]
    pids = {one["pid"] for one in told}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_they_are_started_stopped_and_monitored_by_the_server(
    register, said, until, cluster
) -> None:
    handle = register("wait", restart_time=0)
    told = said(handle)
    assert told["parent"] == cluster.warden_pid("a")
    os.kill(told["pid"], signal.SIGKILL)
    status = until(handle, lambda now: now.incarnation == 2)
    assert (status.last_exit.signal, status.last_exit.pid) == (signal.SIGKILL, told["pid"])
    handle.terminate()
    status = handle.wait_until_unregistered(timeout=PATIENCE_S)
    assert status.last_exit.signal is None  # its own way out, of TERM


def test_their_life_is_bound_to_the_servers(register, said, until, cluster) -> None:
    """PostgreSQL: an idle worker notices that the postmaster is gone, a busy one never does (N13).
    Healed: on each host a warden is the parent, and the kernel ends them with it."""
    handle = register("wait", restart_time=0)
    first = psutil.Process(said(handle)["pid"])
    os.kill(cluster.warden_pid("a"), signal.SIGKILL)
    first.wait(PATIENCE_S)
    status = until(handle, lambda now: now.incarnation == 2 and now.pid is not None)
    assert psutil.Process(status.pid).ppid() == cluster.warden_pid("a")


def test_a_wild_pointer_is_that_workers_own_end(register, said, until) -> None:
    """PostgreSQL: C code in the server's memory, so the whole server goes down with it. Healed."""
    other = register("wait")
    told = said(other)
    handle = register("wild", restart_time=NEVER_RESTART)
    status = handle.wait_until_unregistered(timeout=PATIENCE_S)
    assert status.last_exit.signal == signal.SIGSEGV
    now = other.status()
    assert (now.state, now.pid, now.incarnation) == (WorkerState.STARTED, told["pid"], 1)


def test_a_host_runs_only_the_modules_that_it_lists(tmp_path: Path) -> None:
    (tmp_path / "audited.py").write_text("def main(arg): pass\n")
    (tmp_path / "unknown.py").write_text("def main(arg): pass\n")
    with (
        LocalCluster(hosts=("a",), modules=["audited"], path=[tmp_path]) as running,
        running.connect() as client,
    ):
        good = client.register(BackgroundWorker(name="good", main="audited:main"))
        bad = client.register(BackgroundWorker(name="bad", main="unknown:main"))
        assert good.wait_until_unregistered(timeout=PATIENCE_S).last_exit.code == 0
        with pytest.raises(TimedOut):
            bad.wait_for_startup(timeout=0.3)
        status = bad.status()
        assert (status.state, status.incarnation) == (WorkerState.NOT_YET_STARTED, 0)
        assert "unknown" in status.reason


# --- memory --------------------------------------------------------------------------------------


def test_workers_may_attach_to_shared_memory(register, said) -> None:
    """And they alone who asked for it."""
    domain = {"flags": SHMEM_ACCESS, "crash_domain": "sums"}
    first = register("adds", 5, **domain)
    assert said(first) == {"found": False, "before": 0}
    assert said(register("adds", 5, **domain)) == {"found": True, "before": 5}
    assert said(register("adds", 5)) == {"refused": "this worker has no shared memory"}


def test_a_crash_restarts_at_once_whom_it_took_down(register, said, until) -> None:
    """The server reinitializes: restart_time is not waited for."""
    fields = {"flags": SHMEM_ACCESS, "crash_domain": "reset", "restart_time": 1000}
    crashed, other = (register("adds", 1, **fields) for _ in range(2))
    said(crashed, 1), said(other, 1)  # both of its lines: what follows is of the next one
    os.kill(crashed.status().pid, signal.SIGKILL)
    for handle in (crashed, other):
        status = until(handle, lambda now: now.incarnation == 2 and now.pid is not None)
        assert status.last_exit.crash_domain == "reset"
    assert sorted(said(handle, 2)["before"] for handle in (crashed, other)) == [0, 1]  # zeros again


# --- names, what main gives, signals -------------------------------------------------------------


def test_the_name_is_in_messages_and_process_listings(register, said, cluster) -> None:
    handle = register("wait", name="orders of acme")
    pid = said(handle)["pid"]
    assert "orders of acme" in " ".join(psutil.Process(pid).cmdline())
    assert "orders of acme" in cluster.run("ps").stdout
    assert "orders of acme" in cluster.run("events").stdout
    other = register("leave_nothing", name="nobody of acme", restart_time=NEVER_RESTART)
    exited = other.wait_until_unregistered(timeout=PATIENCE_S).last_exit
    assert exited.code == 1
    assert "nobody of acme" in cluster.master.log.read_text()


def test_main_returns_nothing_that_counts(register) -> None:
    for value in (None, 3, "text"):
        status = register("returns", value, restart_time=0).wait_until_unregistered(
            timeout=PATIENCE_S
        )
        assert (status.last_exit.code, status.incarnation) == (0, 1)


def test_handlers_can_be_installed_before_any_signal_comes_in(register, said) -> None:
    handle = register("early")
    os.kill(said(handle)["pid"], signal.SIGTERM)
    assert said(handle, 1) == {"seen": ["TERM"]}


def test_a_wait_is_interruptible_by_the_latch(register, said) -> None:
    handle = register("sleeps_interruptibly")
    said(handle)
    handle.set_latch()
    assert said(handle, 1) == {"happened": ["LATCH_SET"]}


# --- notification --------------------------------------------------------------------------------


def test_the_registrant_gets_sigusr1_at_start_and_exit(register, said) -> None:
    """PostgreSQL takes any pid. Healed: the one who asks is the one who is meant."""
    told = said(register("asks_for_signals", True))
    assert told["at_start"] >= 1
    assert told["at_exit"] >= 1


def test_who_does_not_wish_to_wait_gets_no_signal(register, said) -> None:
    assert said(register("asks_for_signals", False)) == {"at_start": 0, "at_exit": 0}


# --- status --------------------------------------------------------------------------------------


def test_registration_gives_a_handle_by_which_it_can_be_asked_for(register) -> None:
    handle = register("wait")
    assert str(handle.id) == str(handle.status().handle.id)
    assert handle.wait_for_startup(timeout=PATIENCE_S).pid == handle.pid()
    kinds = [event.kind for event in handle.events(follow=False)]
    assert kinds[0] is EventKind.REGISTERED


def test_waiting_ends_when_the_postmaster_dies(tmp_path: Path) -> None:
    """It says nothing about the worker, which PostgreSQL's would be dead by then: here it is told
    so, and runs on until its host's lease ends."""
    (tmp_path / "seed_workers.py").write_text(WORKERS)
    with LocalCluster(hosts=("a",), path=[tmp_path]) as running:
        # Long enough for a busy master to be heard in, while it lives.
        with running.connect(master_silence_s=3.0) as client:
            handle = client.register(BackgroundWorker(name="w", main="seed_workers:wait"))
            started = handle.wait_for_startup(timeout=PATIENCE_S)
            running.master.kill()
            found = handle.wait_for_shutdown(timeout=PATIENCE_S)
            assert found.state is WorkerState.POSTMASTER_DIED
            os.kill(started.pid, 0)
        running.master.start()


def test_a_worker_that_watches_its_latch_leaves_when_the_server_is_gone(tmp_path: Path) -> None:
    """Here the kernel ends workers with their warden; this one has told the kernel not to."""
    (tmp_path / "seed_workers.py").write_text(WORKERS)
    with LocalCluster(hosts=("a",), path=[tmp_path]) as running, running.connect() as client:
        handle = client.register(BackgroundWorker(name="w", main="seed_workers:watches_the_server"))
        handle.wait_for_ready(timeout=PATIENCE_S)
        process = psutil.Process(handle.pid())
        running.agent("a").kill()
        os.kill(running.warden_pid("a"), signal.SIGKILL)
        process.wait(PATIENCE_S)
        (log,) = running.log_dir("a").glob("**/*.log")
        assert json.loads(log.read_text().splitlines()[-1]) == {"dead": True}
