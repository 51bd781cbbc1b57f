"""connect(), Cluster and Handle against a scripted master behind a real socket."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

import posthouse
from posthouse import (
    BackgroundWorker,
    ClientSettings,
    Cluster,
    Cursor,
    EventKind,
    ExitFacts,
    Handle,
    WorkerState,
    errors,
)
from posthouse.messages import (
    Done,
    Failed,
    GetStatus,
    Goodbye,
    HostsPage,
    Register,
    SignalWorker,
    Subscribe,
    Terminate,
    Unsubscribe,
    WorkersPage,
)
from posthouse.records import HostInfo, WorkerInfo
from posthouse.session import Cancel

Eventually = Callable[..., Any]
WORKER = BackgroundWorker(name="w", main="m:f")


@pytest.fixture
def cluster(master: Any) -> Iterator[Cluster]:
    with posthouse.connect(master.endpoint) as made:
        yield made


@pytest.fixture
def handle(cluster: Cluster) -> Handle:
    return cluster.register(WORKER)


def later(delay_s: float, action: Callable[[], Any]) -> threading.Timer:
    timer = threading.Timer(delay_s, action)
    timer.start()
    return timer


def in_thread(call: Callable[[], Any]) -> Callable[[], Any]:
    """Run it in a thread; the result gives what it returned or raises what it raised."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((call(), None))
        except BaseException as error:  # noqa: BLE001 - handed to the test
            outcome.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()

    def result() -> Any:
        thread.join(20)
        assert outcome, "still running"
        value, error = outcome[0]
        if error is not None:
            raise error
        return value

    return result


def set_status(master: Any, slot: int = 0, **fields: Any) -> None:
    with master.scripting() as script:
        script.status[slot] = msgspec.structs.replace(script.status[slot], **fields)


# --- connect ---


def test_what_a_cluster_tells_of_itself(cluster: Cluster, master: Any) -> None:
    assert cluster.registry == "ab" * 16
    assert cluster.principal == "client:local"
    assert cluster.timeline == 1
    assert repr(cluster) == f"<Cluster {master.endpoint} abababab as client:local: connected>"
    cluster.close()
    assert repr(cluster).endswith(": closed>")


def test_the_environment_names_the_master(master: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTHOUSE_MASTER", master.endpoint)
    with posthouse.connect() as cluster:
        assert cluster.workers() == []


def test_settings_say_it_all(master: Any) -> None:
    settings = ClientSettings(master=master.endpoint)
    with posthouse.connect(settings=settings) as cluster:
        assert cluster.workers() == []
    with pytest.raises(errors.UsageError):
        posthouse.connect(master.endpoint, settings=settings)


def test_no_master_is_unreachable_with_a_hint(folder: Any) -> None:
    before = threading.active_count()
    with pytest.raises(errors.Unreachable) as caught:
        posthouse.connect(f"ipc://{folder}/nobody.sock", timeout=0.2)
    assert "nobody.sock within 0.2 s" in str(caught.value)
    assert "posthouse up" in caught.value.hint
    assert threading.active_count() == before


def test_connect_waits_for_a_master_that_comes_late(master: Any) -> None:
    master.stop()
    later(0.3, master.start)
    with posthouse.connect(master.endpoint, timeout=10) as cluster:
        assert cluster.workers() == []


def test_a_refusal_for_good_is_raised_at_once(master: Any) -> None:
    from posthouse.messages import Refused

    with master.scripting() as script:
        script.refuse = Refused(code="not_permitted", message="agents only", hint="other port")
    with pytest.raises(errors.NotPermitted, match="agents only"):
        posthouse.connect(master.endpoint, timeout=20)


def test_a_refusal_for_now_is_waited_out_and_named(master: Any) -> None:
    from posthouse.messages import Refused

    with master.scripting() as script:
        script.refuse = Refused(code="busy", message="come again", retry_after_s=0.05)
    with pytest.raises(errors.Unreachable, match="come again"):
        posthouse.connect(master.endpoint, timeout=0.5)
    with master.scripting() as script:
        script.refuse = None
    posthouse.connect(master.endpoint).close()


def test_a_folder_open_to_all_is_refused(folder: Any) -> None:
    folder.chmod(0o777)
    with pytest.raises(errors.ConfigError, match="must have mode"):
        posthouse.connect(f"ipc://{folder}/clients.sock", timeout=5)


def test_close_says_goodbye_and_ends_the_thread(master: Any, eventually: Eventually) -> None:
    before = threading.active_count()
    cluster = posthouse.connect(master.endpoint)
    assert threading.active_count() == before + 1
    cluster.close()
    cluster.close()
    assert threading.active_count() == before
    eventually(lambda: master.seen(Goodbye) == 1)
    with pytest.raises(errors.Unreachable, match="closed"):
        cluster.workers()


def test_a_forgotten_cluster_ends_its_thread(master: Any, eventually: Eventually) -> None:
    before = threading.active_count()
    cluster: Any = posthouse.connect(master.endpoint)
    handle: Any = cluster.register(WORKER)
    connection = weakref.ref(cluster._connection)
    del cluster
    gc.collect()
    assert handle.status().name == "w"  # a handle keeps the connection
    del handle
    gc.collect()
    assert connection() is None
    eventually(lambda: threading.active_count() == before)


def test_a_program_may_end_without_closing(master: Any) -> None:
    code = """
import posthouse, threading
cluster = posthouse.connect()
handle = cluster.register(posthouse.BackgroundWorker(name="w", main="m:f"))
next(iter(handle.events()))
threading.Thread(target=handle.wait_until_unregistered, daemon=True).start()
print(cluster.status("w").name)
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code],
        env={**os.environ, "POSTHOUSE_MASTER": master.endpoint},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "w\n", "")


def test_signals_are_left_to_the_programs_own_threads(cluster: Cluster) -> None:
    thread = cluster._connection.engine._thread
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD):
        assert blocked >> (number - 1) & 1
    assert not blocked >> (signal.SIGSEGV - 1) & 1


def test_a_forked_child_is_told(cluster: Cluster, handle: Handle) -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = []
        for call in (cluster.workers, handle.status, handle.events, lambda: next(handle.events())):
            try:
                call()
            except errors.UsageError as error:
                said.append("fork" in str(error))
        cluster.close()  # harmless
        os.write(writing, repr(said).encode())
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert os.read(reading, 1000) == b"[True, True, True, True]"
    os.close(reading)
    os.close(writing)
    assert cluster.workers() == []


# --- calls ---


def test_register_gives_a_handle(handle: Handle, cluster: Cluster) -> None:
    assert (handle.name, str(handle.id)) == ("w", f"{cluster.registry}:0.1")
    assert repr(handle) == "<Handle w 0.1>"
    assert handle == cluster.handle("w") == cluster.handle(str(handle.id))
    assert handle == cluster.handle(handle.id)
    assert handle != "w"
    assert len({handle, cluster.handle("w")}) == 1
    with pytest.raises(errors.NoSuchWorker):
        cluster.handle("v")
    with pytest.raises(errors.UsageError):
        cluster.handle("")


def test_a_bad_record_never_leaves(cluster: Cluster, master: Any) -> None:
    with pytest.raises(errors.InvalidField):
        cluster.register(BackgroundWorker(name="", main="m:f"))
    assert master.seen(Register) == 0


def test_a_refusal_carries_its_detail(cluster: Cluster, master: Any) -> None:
    with master.scripting() as script:
        script.answer = lambda request: Failed(
            request=request.request,
            code="already_registered",
            message="'w' is registered",
            hint="terminate it",
            detail={"handle": "x:1.2"},
        )
    for _ in range(2):
        with pytest.raises(errors.AlreadyRegistered, match="is registered") as caught:
            cluster.register(WORKER)
        assert caught.value.detail == {"handle": "x:1.2"}
        assert caught.value.hint == "terminate it"


def test_a_timeout_is_unknown_and_the_same_id_settles_it(cluster: Cluster, master: Any) -> None:
    with master.scripting() as script:
        script.silent_to = {Register}
    with pytest.raises(errors.TimedOut, match="unknown") as caught:
        cluster.register(WORKER, timeout=0.1)
    with master.scripting() as script:
        script.silent_to = set()
    handle = cluster.register(WORKER, request_id=caught.value.detail["request_id"])
    assert handle.id.slot == 0
    with pytest.raises(errors.UsageError):
        cluster.register(WORKER, request_id=b"short")


def test_two_threads_may_wait_for_the_same_request(cluster: Cluster, master: Any) -> None:
    with master.scripting() as script:
        script.silent_to = {Register}
    identity = os.urandom(16)
    calls = [
        in_thread(partial(cluster.register, WORKER, request_id=identity, timeout=timeout))
        for timeout in (0.1, 0.2)
    ]
    for call in calls:
        with pytest.raises(errors.TimedOut):
            call()
    with master.scripting() as script:
        script.silent_to = set()
    again = [in_thread(lambda: cluster.register(WORKER, request_id=identity)) for _ in range(2)]
    first, second = (call() for call in again)
    assert first == second
    with master.scripting() as script:
        assert len(script.effects) == 1


def test_asking_again_while_giving_up_asks_anew(
    cluster: Cluster, master: Any, eventually: Eventually
) -> None:
    """1. A's wait ends and it posts Cancel; 2. B asks with the same id; 3. Cancel is answered."""
    engine: Any = cluster._connection.engine
    handle, gate = engine._core.handle, threading.Event()

    def held_back(event: Any, now_s: float) -> Any:
        if isinstance(event, Cancel):
            gate.wait(20)
        return handle(event, now_s)

    engine._core.handle = held_back
    with master.scripting() as script:
        script.silent_to = {Register}
    identity = os.urandom(16)
    first = in_thread(partial(cluster.register, WORKER, request_id=identity, timeout=0.05))
    eventually(lambda: any(waiter.given_up for waiter in engine.board.waiters.values()))
    second = in_thread(partial(cluster.register, WORKER, request_id=identity, timeout=20))
    time.sleep(0.05)  # B may now wait for the first to be over
    with master.scripting() as script:
        script.silent_to = set()
    gate.set()
    with pytest.raises(errors.TimedOut):
        first()
    assert second().name == "w"


def test_a_request_that_was_never_sent_is_unreachable(
    cluster: Cluster, master: Any, eventually: Eventually
) -> None:
    master.stop()
    eventually(lambda: "reconnecting" in repr(cluster))
    with pytest.raises(errors.Unreachable, match="not sent"):
        cluster.register(WORKER, timeout=0.1)


def test_a_call_survives_a_restart_of_the_master(cluster: Cluster, master: Any) -> None:
    with master.scripting() as script:
        script.silent_to = {Terminate}
    handle = cluster.register(WORKER)
    call = in_thread(handle.terminate)
    while not master.seen(Terminate):
        time.sleep(0.01)
    master.stop()
    master.script.silent_to = set()
    master.start()
    assert call() is True


def test_lists_are_followed_over_pages(cluster: Cluster, master: Any) -> None:
    from posthouse.records import HandleRef, Status

    def worker(slot: int) -> WorkerInfo:
        ref = HandleRef(registry="ab" * 16, slot=slot, generation=1)
        status = Status(state=WorkerState.STARTED, handle=ref, name=f"w{slot}")
        return WorkerInfo(status=status, spec={})

    def answer(request: Any) -> Any:
        if hasattr(request, "retired"):
            pages = {-1: [0, 1], 1: [2, 3], 3: [4]}
            found = [worker(slot) for slot in pages[request.slot]]
            return WorkersPage(request=request.request, workers=found, more=request.slot != 3)
        pages_of_hosts = {"": ["a", "b"], "b": ["c"]}
        hosts = [HostInfo(name=name, reachable=True) for name in pages_of_hosts[request.after]]
        return HostsPage(request=request.request, hosts=hosts, more=request.after == "")

    with master.scripting() as script:
        script.answer = answer
    assert [found.status.name for found in cluster.workers()] == ["w0", "w1", "w2", "w3", "w4"]
    assert [host.name for host in cluster.hosts()] == ["a", "b", "c"]


def test_signals_travel_as_linux_numbers(handle: Handle, master: Any) -> None:
    for given in ("HUP", "SIGHUP", signal.SIGHUP, 1, "1"):
        handle.signal(given)
    with master.scripting() as script:
        sent = [message.signal for message in script.seen if isinstance(message, SignalWorker)]
    assert sent == [1] * 5
    for bad in ("NOPE", 0, 65, -1, True):
        with pytest.raises(errors.InvalidField):
            handle.signal(bad)


def test_terminate_tells_whether_there_was_something_to_do(handle: Handle, master: Any) -> None:
    assert handle.terminate() is True
    with master.scripting() as script:
        script.answer = lambda request: Done(request=request.request, changed=False)
    assert handle.terminate() is False
    handle.set_latch()


def test_shutdown_modes(cluster: Cluster, master: Any) -> None:
    with master.scripting() as script:
        script.answer = lambda request: Done(request=request.request, message="2 hosts")
    assert cluster.shutdown("smart") == "2 hosts"
    with pytest.raises(errors.UsageError, match="smart, fast, immediate"):
        cluster.shutdown("slow")


def test_a_wrong_answer_is_a_defect_of_the_master(cluster: Cluster, master: Any) -> None:
    with master.scripting() as script:
        script.answer = lambda request: Done(request=request.request)
    with pytest.raises(errors.InternalError, match="GetStatus with Done"):
        cluster.status("w")


def test_many_threads_share_one_cluster(cluster: Cluster) -> None:
    def work(number: int) -> list[str]:
        names = []
        for each in range(20):
            made = cluster.register(BackgroundWorker(name=f"w{number}.{each}", main="m:f"))
            names.append(made.status().name)
        return names

    calls = [in_thread(partial(work, number)) for number in range(8)]
    for number, call in enumerate(calls):
        assert call() == [f"w{number}.{each}" for each in range(20)]


# --- events ---


def test_events_of_a_handle_from_its_first_to_its_last(
    handle: Handle, master: Any, eventually: Eventually
) -> None:
    master.add(EventKind.STARTED, pid=7, host="b")
    master.add(EventKind.STARTED, slot=5)
    kinds = []
    for event in handle.events(timeout=10):
        kinds.append(event.kind)
        if event.kind is EventKind.STARTED:
            master.add(EventKind.EXITED)
            later(0.05, lambda: master.add(EventKind.UNREGISTERED))
    assert kinds == [
        EventKind.REGISTERED,
        EventKind.STARTED,
        EventKind.EXITED,
        EventKind.UNREGISTERED,
    ]
    late = list(handle.events(timeout=10))  # a late watcher is told the same
    assert [event.kind for event in late] == kinds
    eventually(lambda: not handle._connection.engine.board.inboxes)


def test_events_of_all_from_now_and_from_a_cursor(cluster: Cluster, master: Any) -> None:
    for slot in range(3):
        master.add(EventKind.STARTED, slot)
    with cluster.events(timeout=10) as stream:
        master.add(EventKind.EXITED, 9)
        event = next(stream)
        assert (event.slot, stream.cursor) == (9, Cursor(1, 4))
    assert list(stream) == []
    rest = cluster.events(after=Cursor(1, 2), timeout=10)
    assert [next(rest).sequence for _ in range(2)] == [3, 4]
    rest.close()


def test_events_over_a_restart_of_the_master_come_once(cluster: Cluster, master: Any) -> None:
    stream = cluster.events(after=Cursor(0, 0), timeout=20)
    seen = []
    for number in range(1, 31):
        master.add(EventKind.EXITED)
        if number % 10 == 0:
            master.stop()
            master.script.add(EventKind.STARTED)
            master.start()
        while len(seen) < len(master.script.log):
            seen.append(next(stream).sequence)
    assert seen == list(range(1, 34))


def test_many_events_through_a_small_window(cluster: Cluster, master: Any) -> None:
    with master.scripting() as script:
        for _ in range(3000):
            script.add(EventKind.EXITED)
    found = [event.sequence for event in cluster.events(after=Cursor(0, 0), follow=False)]
    assert found == list(range(1, 3001))


def test_what_there_is_now(cluster: Cluster, handle: Handle, master: Any) -> None:
    master.add(EventKind.STARTED)
    master.add(EventKind.STARTED, slot=7)
    assert [event.sequence for event in handle.events(follow=False, timeout=10)] == [1, 2]
    assert list(cluster.events(after=cluster.cursor(), follow=False, timeout=10)) == []


def test_no_event_in_time_is_said_and_the_stream_goes_on(cluster: Cluster, master: Any) -> None:
    stream = cluster.events(timeout=0.05)
    with pytest.raises(errors.TimedOut):
        next(stream)
    master.add(EventKind.EXITED)
    stream.timeout = 10
    assert next(stream).kind is EventKind.EXITED


def test_a_trimmed_log_is_never_silent(cluster: Cluster, master: Any) -> None:
    with master.scripting() as script:
        for _ in range(9):
            script.add(EventKind.EXITED)
        script.trimmed_to = 5
    stream = cluster.events(after=Cursor(1, 3), timeout=10)
    with pytest.raises(errors.CursorTooOld) as caught:
        next(stream)
    again = cluster.events(after=caught.value.detail["cursor"], follow=False, timeout=10)
    assert [event.sequence for event in again] == [6, 7, 8, 9]


def test_a_stream_that_is_dropped_unsubscribes(
    handle: Handle, master: Any, eventually: Eventually
) -> None:
    stream: Any = handle.events(timeout=10)
    next(stream)
    assert master.seen(Subscribe) == 1
    del stream
    gc.collect()
    eventually(lambda: master.seen(Unsubscribe) == 1)


def test_closing_wakes_a_reader(cluster: Cluster, master: Any, eventually: Eventually) -> None:
    streams = [cluster.events(), cluster.events()]
    readers = [in_thread(partial(next, stream)) for stream in streams]
    eventually(lambda: master.seen(Subscribe) == 2)
    streams[0].close()
    with pytest.raises(errors.UsageError, match="closed"):
        readers[0]()
    cluster.close()
    with pytest.raises(errors.Unreachable, match="closed"):
        readers[1]()


# --- waits ---


def test_h8_wait_for_startup(handle: Handle, master: Any) -> None:
    call = in_thread(lambda: handle.wait_for_startup(timeout=10))
    master.add(EventKind.STARTING, incarnation=1, token=4, host="b")
    later(0.1, lambda: master.add(EventKind.STARTED, pid=7, incarnation=1, token=4, host="b"))
    status = call()
    assert (status.state, status.pid, status.host) == (WorkerState.STARTED, 7, "b")
    assert (status.incarnation, status.token, status.name) == (1, 4, "w")


@pytest.mark.parametrize("goal", ["startup", "shutdown"])
def test_what_happens_between_snapshot_and_subscription_is_not_missed(
    handle: Handle, master: Any, goal: str
) -> None:
    """The whole life passes after the snapshot was answered and before SUBSCRIBE arrives."""
    with master.scripting() as script:
        answer, told = script.answer, []

        def answered(request: Any) -> Any:
            reply = answer(request)
            if isinstance(request, GetStatus) and not told:
                told.append(request)
                script.add(EventKind.STARTED, pid=7)
                script.add(EventKind.EXITED, exit=ExitFacts(code=3), restart_in_s=0.0)
                script.add(EventKind.STARTED, pid=8)
            return reply

        script.answer = answered
    wait = handle.wait_for_startup if goal == "startup" else handle.wait_for_shutdown
    status = wait(timeout=10)
    if goal == "startup":
        assert (status.state, status.pid) == (WorkerState.STARTED, 7)
        return
    assert status.state is WorkerState.STOPPED
    assert status.last_exit is not None
    assert status.last_exit.code == 3
    assert not status.final


def test_h8_a_short_worker_may_be_stopped_already(handle: Handle, master: Any) -> None:
    set_status(master, state=WorkerState.STOPPED, reason="exited with code 0", final=True)
    for wait in (handle.wait_for_startup, handle.wait_for_shutdown, handle.wait_for_ready):
        assert wait(timeout=10).state is WorkerState.STOPPED
    assert handle.wait_until_unregistered(timeout=10).final


def test_wait_for_ready(handle: Handle, master: Any) -> None:
    master.add(EventKind.STARTED, pid=7)
    call = in_thread(lambda: handle.wait_for_ready(timeout=10))
    later(0.1, lambda: master.add(EventKind.READY))
    status = call()
    assert (status.ready, status.pid) == (True, 7)


def test_h9_the_first_stop_is_waited_for_through_the_start(
    handle: Handle, master: Any, eventually: Eventually
) -> None:
    call = in_thread(lambda: handle.wait_for_shutdown(timeout=10))
    eventually(lambda: master.seen(Subscribe))
    master.add(EventKind.STARTED, pid=7)
    exit_facts = ExitFacts(cause="signaled", signal=9)
    master.add(EventKind.EXITED, exit=exit_facts, restart_in_s=5.0, reason="killed by SIGKILL")
    status = call()
    assert status.state is WorkerState.STOPPED
    assert (status.final, status.restart_in_s, status.pid) == (False, 5.0, None)
    assert status.last_exit == exit_facts
    assert status.reason == "killed by SIGKILL"


def test_h9_healed_the_last_stop_is_waited_for_through_restarts(
    handle: Handle, master: Any, eventually: Eventually
) -> None:
    call = in_thread(lambda: handle.wait_until_unregistered(timeout=20))
    eventually(lambda: master.seen(Subscribe))
    for pid in (7, 8):
        master.add(EventKind.STARTED, pid=pid)
        master.add(EventKind.EXITED, exit=ExitFacts(code=1), restart_in_s=0.0)
    master.restart()
    master.add(EventKind.STARTED, pid=9)
    master.add(EventKind.EXITED, exit=ExitFacts(code=0), final=True, reason="exited with code 0")
    master.add(EventKind.UNREGISTERED, reason="forgotten")
    status = call()
    assert (status.state, status.final) == (WorkerState.STOPPED, True)
    assert status.reason == "exited with code 0"


def test_h8_h9_healed_a_wait_that_times_out_tells_what_is_known(
    handle: Handle, master: Any
) -> None:
    set_status(master, reason="waiting for host b: never heard")
    with pytest.raises(errors.TimedOut) as caught:
        handle.wait_for_startup(timeout=0.1)
    assert str(caught.value) == (
        "waited 0.1 s for its start: worker w, last known not_yet_started: "
        "waiting for host b: never heard"
    )
    assert caught.value.detail["status"].state is WorkerState.NOT_YET_STARTED
    with pytest.raises(errors.UsageError):
        handle.wait_for_startup(timeout=-1)


def test_a_wait_survives_a_trim_and_a_new_snapshot(
    handle: Handle, master: Any, eventually: Eventually
) -> None:
    set_status(master, state=WorkerState.STARTED, pid=7, incarnation=1)
    call = in_thread(lambda: handle.wait_for_shutdown(timeout=10))
    eventually(lambda: master.seen(Subscribe))
    with master.scripting() as script:  # it exited and was started again; its rows are gone
        for kind in (EventKind.EXITED, EventKind.STARTED):
            script.add(kind)
        script.trimmed_to = len(script.log)
        script.status[0] = msgspec.structs.replace(
            script.status[0], pid=8, incarnation=2, last_exit=ExitFacts(code=4)
        )
    status = call()
    assert status.state is WorkerState.STOPPED
    assert status.last_exit == ExitFacts(code=4)
    assert status.reason == "exited with code 4; started again since"


def test_waits_survive_restarts_of_the_master(
    handle: Handle, master: Any, eventually: Eventually
) -> None:
    calls = [
        in_thread(lambda: handle.wait_for_startup(timeout=20)),
        in_thread(lambda: handle.wait_for_shutdown(timeout=20)),
    ]
    eventually(lambda: master.seen(Subscribe) == 2)
    for _ in range(3):
        master.restart()
    master.stop()
    master.script.add(EventKind.STARTED, pid=7)
    master.script.add(EventKind.EXITED, exit=ExitFacts(code=1))
    master.start()
    assert calls[0]().pid == 7
    assert calls[1]().last_exit == ExitFacts(code=1)


def test_h7_the_masters_death_is_told_by_waits_after_the_silence(
    master: Any, eventually: Eventually
) -> None:
    with posthouse.connect(master.endpoint, master_silence_s=1.0) as cluster:
        handle = cluster.register(WORKER)
        set_status(master, state=WorkerState.STARTED, pid=7, host="b")
        master.stop()
        with pytest.raises(errors.TimedOut, match="no master answers now"):
            handle.wait_for_shutdown(timeout=0.3)
        status = handle.wait_for_shutdown(timeout=20)
        assert status.state is WorkerState.POSTMASTER_DIED
        assert "may well be running" in status.reason
        with pytest.raises(errors.Unreachable):
            handle.status(timeout=0.05)  # H7: never from the poll
        master.start()
        eventually(lambda: "connected" in repr(cluster))
        with pytest.raises(errors.TimedOut):
            handle.wait_for_shutdown(timeout=0.05)


def test_n4_healed_a_wait_needs_no_signal(handle: Handle, master: Any) -> None:
    """Workers without a database start with SIGUSR1 ignored in PostgreSQL, so their waits never
    end. Healed: a wait in a process that ignores it ends as any other."""
    old = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        call = in_thread(lambda: handle.wait_for_startup(timeout=10))
        later(0.05, lambda: master.add(EventKind.STARTED, pid=7, incarnation=1, host="b"))
        assert call().pid == 7
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, old)


def test_closing_ends_a_wait(
    handle: Handle, cluster: Cluster, master: Any, eventually: Eventually
) -> None:
    call = in_thread(handle.wait_for_startup)
    eventually(lambda: master.seen(Subscribe))
    cluster.close()
    with pytest.raises(errors.Unreachable, match="closed"):
        call()


def test_a_wait_can_be_interrupted(handle: Handle, cluster: Cluster) -> None:
    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGUSR1, interrupt)
    try:
        later(0.1, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        with pytest.raises(KeyboardInterrupt):
            handle.wait_for_startup()
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert cluster.workers() == []


def test_a_defect_in_the_thread_reaches_everybody(cluster: Cluster, handle: Handle) -> None:
    engine: Any = cluster._connection.engine
    call = in_thread(handle.wait_for_startup)
    engine._core.handle = None
    with pytest.raises(errors.InternalError, match="thread failed"):
        call()
    with pytest.raises(errors.InternalError, match="thread failed"):
        cluster.workers()
    cluster.close()


# --- threads ---


def test_one_thread_and_only_while_connected(master: Any) -> None:
    """Importing, records and settings start none; a connection has one, however many calls,
    streams and waits there are."""
    before = set(threading.enumerate())
    settings = ClientSettings(master=master.endpoint)
    with posthouse.connect(settings=settings) as cluster:
        handle = cluster.register(WORKER)
        streams = [cluster.events(after=Cursor(0, 0)) for _ in range(5)]
        for stream in streams:
            next(stream)
        with pytest.raises(errors.TimedOut):
            handle.wait_for_startup(timeout=0.05)
        own = set(threading.enumerate()) - before
        assert [(thread.name, thread.daemon) for thread in own] == [("posthouse-client", True)]
        for stream in streams:
            stream.close()
    assert set(threading.enumerate()) == before


def test_eight_threads_hammer_one_client_while_masters_come_and_go(
    cluster: Cluster, master: Any
) -> None:
    """Registers, looks, waits that give up, streams that are left in the middle, repeated ids: each
    thread gets its own answers, and nothing is left over."""

    def work(number: int) -> int:
        for each in range(12):
            name = f"w{number}.{each}"
            worker, identity = BackgroundWorker(name=name, main="m:f"), os.urandom(16)
            made = cluster.register(worker, request_id=identity, timeout=30)
            assert cluster.register(worker, request_id=identity, timeout=30) == made
            assert made.status(timeout=30).name == made.name == name
            with made.events(timeout=30) as stream:
                assert next(stream).name == name
            with pytest.raises(errors.TimedOut):
                made.wait_for_startup(timeout=0)
            assert made.terminate(timeout=30) is True
        return number

    calls = [in_thread(partial(work, number)) for number in range(8)]
    for _ in range(3):
        time.sleep(0.1)  # somewhere in the middle
        master.restart()
    assert [call() for call in calls] == list(range(8))
    board = cluster._connection.engine.board
    assert not board.waiters
    with master.scripting() as script:
        assert len(script.effects) == len(set(script.effects)) == 8 * 12 * 2
