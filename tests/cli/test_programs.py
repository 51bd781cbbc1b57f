"""Programs of other people, supervised as they are."""

import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from posthouse import BackgroundWorker
from posthouse_agent import procfs

PROGRAMS = Path(__file__).parent / "programs"
DEADLINE_S = 60.0
TASKS = 1000
KILLS = 5


def until(check, deadline_s=DEADLINE_S):
    end_s = time.monotonic() + deadline_s
    while not (found := check()):
        assert time.monotonic() < end_s
        time.sleep(0.02)
    return found


def test_huey_works_off_a_thousand_tasks_though_it_is_killed_five_times(
    cluster, name, tmp_path, monkeypatch
):
    """What posthouse promises: the consumer is started again, at once, each time. What it does not:
    the task that ran at that moment, which huey had taken out of its queue: one a kill, with one
    worker thread. The test enqueues those again, as their author would."""
    monkeypatch.setenv("TASKS", str(tmp_path))
    monkeypatch.syspath_prepend(PROGRAMS)
    import tasks

    done = tasks.connect()

    def missing():
        return set(range(TASKS)) - {number for (number,) in done.execute("select number from done")}

    for number in range(TASKS):
        tasks.work(number)
    consumer = BackgroundWorker(
        name=name,
        main="posthouse.exec",
        main_arg=[sys.executable, "-m", "huey.bin.huey_consumer", "tasks.huey", "-d", "0.01"],
        env={"TASKS": str(tmp_path), "PYTHONPATH": str(PROGRAMS)},
        host="a",
        restart_time=0.0,
        stop_signal="INT",
    )
    with cluster.connect() as client:
        handle = client.register(consumer)
        killed = set()
        for kill in range(1, KILLS + 1):
            until(lambda at=kill: TASKS - len(missing()) > at * TASKS // 10)
            pid = until(lambda: handle.pid() not in {None, *killed} and handle.pid())
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        tasks.work(TASKS)  # behind all others: once it is done, no other is being worked on
        until(lambda: list(done.execute("select 1 from done where number = ?", (TASKS,))))
        lost = missing()
        assert len(lost) <= KILLS
        for number in lost:
            tasks.work(number)
        until(lambda: not missing())
        assert handle.status().incarnation == KILLS + 1
        assert handle.terminate()
        ended = handle.wait_until_unregistered(timeout=DEADLINE_S)
        assert ended.last_exit.code == 0  # it took its stop signal for what it is
    counted = done.execute("select runs from done where number < ?", (TASKS,))
    runs = [runs for (runs,) in counted]
    assert (len(runs), sum(runs)) == (TASKS, TASKS)


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def ask(port):
    """Who answers: master's pid, worker's pid, configuration; None if nobody does."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
    except OSError:
        return None
    return answer.rpartition(b"\r\n\r\n")[2].decode().split() or None


def family(pid):
    """The process and all that comes from it."""
    found, parents = {pid}, [(p, procfs.read(p)) for p in procfs.pids()]
    for _ in range(3):
        found |= {p for p, process in parents if process is not None and process.parent in found}
    return found


def test_gunicorn_is_reloaded_by_its_signal_and_stopped_without_leftovers(
    cluster, posthouse, name, tmp_path, port
):
    configuration = tmp_path / "web.txt"
    configuration.write_text("first")
    argv = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--workers", "3"]
    web = BackgroundWorker(
        name=name,
        main="posthouse.exec",
        main_arg=[*argv, "--worker-tmp-dir", str(tmp_path), "--no-control-socket", "web:app"],
        env={"WEB_CONFIGURATION": str(configuration), "PYTHONPATH": str(PROGRAMS)},
        cwd=str(tmp_path),
        host="b",
        reload_signal="HUP",
        stop_grace_s=30.0,
    )
    with cluster.connect() as client:
        handle = client.register(web)
        master, _, told = until(lambda: ask(port))
        assert (int(master), told) == (handle.pid(), "first")
        before = until(lambda: len(family(handle.pid())) == 4 and family(handle.pid()))
        configuration.write_text("second")
        assert posthouse("reload", name).stdout == f"{name} is told to reload\n"
        until(lambda: (ask(port) or [0, 0, ""])[2] == "second")
        until(lambda: len(now := family(handle.pid())) == 4 and now & before == {handle.pid()})
        assert int(ask(port)[0]) == int(master)
        status = handle.status()
        assert (status.incarnation, status.pid) == (1, int(master))
        everybody = family(handle.pid())
        assert handle.terminate()
        ended = handle.wait_until_unregistered(timeout=DEADLINE_S)
        assert ended.last_exit.code == 0
        assert "no process" in posthouse("reload", str(handle.id), status=3).stderr
    assert [pid for pid in everybody if procfs.is_process(pid)] == []
    assert ask(port) is None


def test_a_program_that_is_killed_leaves_none_of_its_processes(cluster, name, tmp_path, port):
    """gunicorn's own workers notice the end of their master only after a while."""
    argv = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--workers", "2"]
    (tmp_path / "web.txt").write_text("x")
    web = BackgroundWorker(
        name=name,
        main="posthouse.exec",
        main_arg=[*argv, "--worker-tmp-dir", str(tmp_path), "--no-control-socket", "web:app"],
        env={"WEB_CONFIGURATION": str(tmp_path / "web.txt"), "PYTHONPATH": str(PROGRAMS)},
        cwd=str(tmp_path),
        restart_time=0.0,
        host="b",
    )
    with cluster.connect() as client:
        handle = client.register(web)
        until(lambda: ask(port))
        first = until(lambda: len(family(handle.pid())) == 3 and family(handle.pid()))
        os.kill(handle.pid(), signal.SIGKILL)
        # The port is free again for the next one, because nobody of the first is left.
        until(lambda: (answer := ask(port)) and int(answer[1]) not in first)
        assert [pid for pid in first if procfs.is_process(pid)] == []
