"""`posthouse stacks`: where a worker is, without its doing."""

import os
import signal
import time

import pytest

DEADLINE_S = 30.0


def run(posthouse, name, main, arg, host="b"):
    posthouse("run", main, "--name", name, "--on", host, "--detach", "--arg", arg)
    deadline_s = time.monotonic() + DEADLINE_S
    while "hangs" not in posthouse("logs", name, status=None).stdout:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("how", "found"),
    [
        ("loop", ["in busy_loop", "in hang"]),
        ("C code that holds the interpreter", ["in hang"]),
        ("a lock, with a thread", ["in busy_loop", "in hang", "Current thread", "Thread 0x"]),
    ],
)
def test_the_stacks_of_a_worker_that_hangs_with_signals_blocked(posthouse, name, how, found):
    run(posthouse, name, "jobs:hang", f'"{how}"')
    before = posthouse("pid", name).stdout
    for _ in range(3):  # the second is not the first and something behind it
        told = posthouse("stacks", name).stdout
        assert told.startswith(f"process {before.strip()}, ")
        assert all(words in told for words in found), told
        assert told.count("in hang") == 1
    assert posthouse("pid", name).stdout == before


def test_the_worker_notices_nothing(posthouse, idle):
    """It waits in poll(), which a signal interrupts; its latch stays as it is."""
    told = posthouse("stacks", idle).stdout
    assert "latch.py" in told
    assert "in idle" in told
    [pid] = posthouse("pid", idle).stdout.split()
    assert posthouse("logs", idle).stdout == ""
    assert posthouse("pid", idle).stdout.strip() == pid


def test_a_program_is_not_hurt_and_why_there_are_no_stacks(posthouse, name):
    """The signal would end it: it is looked at first."""
    argv = '["sh", "-c", "echo hangs; exec sleep 600"]'
    run(posthouse, name, "posthouse.exec", argv, host="a")
    before = posthouse("pid", name).stdout
    told = posthouse("stacks", name, status=1).stderr
    assert "is no Python worker of posthouse" in told
    assert "py-spy dump --pid" in told
    assert posthouse("pid", name).stdout == before


def test_a_stopped_worker_is_said_to_be_stopped(posthouse, idle):
    pid = int(posthouse("pid", idle).stdout)
    os.kill(pid, signal.SIGSTOP)
    try:
        assert "stopped" in posthouse("stacks", idle, status=1).stderr
    finally:
        os.kill(pid, signal.SIGCONT)
    assert "in idle" in posthouse("stacks", idle).stdout


def test_without_a_process_there_are_none(posthouse, idle):
    posthouse("hold", idle)
    assert "no process" in posthouse("stacks", idle, status=3).stderr
