"""`posthouse run --foreground`: a worker in the terminal's own process, with a real terminal."""

import os
import pty
import signal
import subprocess
import textwrap

import pytest

from posthouse_testing.cluster import command

CODE = """
import signal, sys, time
from posthouse import worker

def main(arg):
    me = worker.entry()
    worker.before_exit(lambda: print("callback", flush=True))
    worker.on_exit(lambda: print("last", flush=True))
    print(me.name, me.incarnation, arg, me.main_arg == arg, flush=True)
    worker.ready()
    worker.heartbeat()
    worker.latch.set()
    print([event.name for event in worker.latch.wait(timeout=5)], flush=True)
    if arg == "debug":
        answer = 6 * 7
        breakpoint()
    if arg == "wait":
        worker.unblock_signals()
        worker.latch.reset()
        worker.latch.wait(timeout=60)
    if arg == "fail":
        raise RuntimeError("the cause")
    sys.exit(3 if arg == "leave" else None)
"""


@pytest.fixture
def argv(tmp_path):
    (tmp_path / "mine.py").write_text(textwrap.dedent(CODE))
    return lambda arg: [*command(), "run", "--foreground", "mine:main", "--arg", f'"{arg}"']


def environment():
    # No master is asked: there is none at this place.
    return {**os.environ, "POSTHOUSE_MASTER": "ipc:///nowhere/clients.sock"}


@pytest.mark.parametrize(
    ("arg", "status", "told"),
    [
        ("x", 0, "exited with code 0: on a host it would be unregistered"),
        ("leave", 3, "exited with code 3; a crash of its own: on a host it would be restarted"),
        ("fail", 1, "RuntimeError: the cause"),
    ],
)
def test_it_runs_here_and_leaves_as_a_worker_does(argv, tmp_path, arg, status, told):
    ran = subprocess.run(
        argv(arg), cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == status, ran
    assert ran.stdout.splitlines() == [
        f"mine 1 {arg} True", "['LATCH_SET']", "callback", "last"
    ]  # fmt: skip
    assert told in ran.stderr
    assert "the worker is ready" in ran.stderr


def test_the_debugger_has_the_terminal(argv, tmp_path):
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        argv("debug"), cwd=tmp_path, env=environment(), stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        said = b""
        for expected, typed in ((b"(Pdb) ", b"p answer + 100\n"), (b"142", b"c\n")):
            while expected not in said:
                said += os.read(ours, 4096)
            os.write(ours, typed)
        while b"last" not in said:
            said += os.read(ours, 4096)
        assert process.wait(60) == 0
    os.close(ours)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 1)])
def test_signals_end_it_with_its_callbacks(argv, tmp_path, number, status):
    with subprocess.Popen(
        argv("wait"), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        while "LATCH_SET" not in process.stdout.readline():
            pass
        process.send_signal(number)
        assert process.stdout.read().splitlines() == ["callback", "last"]
        assert process.wait(60) == status


def test_a_program_and_what_does_not_go_together_are_refused(posthouse):
    told = posthouse("run", "--foreground", "posthouse.exec", "--arg", '["true"]', status=None)
    assert told.returncode != 0
    assert "start it as it is" in told.stderr
    assert "--detach" in posthouse("run", "--foreground", "-d", "m:f", status=2).stderr
