"""What, why and what to do next; and the exit status that scripts go by."""

import contextlib
import os
import socket
import subprocess
import threading

import pytest

from posthouse_cli.main import EXIT_STATUSES
from posthouse_testing.cluster import command


def check(ran, *words):
    """No traceback, nothing on standard output, and the words in the message."""
    assert ran.stdout == ""
    assert "Traceback" not in ran.stderr
    assert ran.stderr.startswith("posthouse: ")
    for word in words:
        assert word in ran.stderr, ran.stderr


def test_unknown_verb_names_the_nearest(posthouse):
    check(posthouse("terminat", status=2), "'terminat'", "did you mean `terminate`?")
    check(posthouse("xyzzy", status=2), "`posthouse --help`")


def test_stop_answers_with_what_it_could_mean(posthouse):
    check(posthouse("stop", "beat", status=2), "posthouse terminate NAME", "posthouse hold NAME")


def test_unknown_option_and_missing_argument(posthouse):
    check(posthouse("ps", "--frobnicate", status=2), "--frobnicate", "posthouse ps --help")
    check(posthouse("pid", status=2), "NAME", "posthouse pid --help")
    check(posthouse("ps", "--timeout", "soon", status=2), "'soon'", "5s")


def test_without_arguments_it_shows_the_help_and_exits_2(posthouse):
    ran = posthouse(status=2)
    assert "terminate" in ran.stderr and ran.stdout == ""


@pytest.mark.parametrize("verb", ["status", "pid", "logs", "events", "wait", "terminate"])
def test_unknown_worker_is_3_and_names_the_nearest(posthouse, idle, verb):
    check(posthouse(verb, f"{idle}x", status=3), f"{idle}x", f"did you mean {idle!r}?")
    check(posthouse(verb, "nothing-like-it", status=3), "nothing-like-it")


def test_unreachable_master_is_4_and_says_how_to_start_one(posthouse, tmp_path):
    endpoint = f"ipc://{tmp_path}/none.sock"
    ran = posthouse("ps", "--master", endpoint, "--timeout", "0.3", status=4)
    check(ran, endpoint, "posthouse up")
    check(posthouse("--master", endpoint, "ps", "--timeout", "300ms", status=4), endpoint)


def test_something_that_is_no_master_is_4(posthouse, cluster):
    path = str(cluster.dir / "not.sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()

        def babble():
            while True:
                try:
                    peer, _ = listening.accept()
                except OSError:
                    return
                with peer, contextlib.suppress(OSError):
                    peer.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=babble)
        thread.start()
        try:
            check(posthouse("ps", "--master", f"ipc://{path}", "--timeout", "1", status=4), path)
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_bad_endpoint_is_2(posthouse):
    check(posthouse("ps", "--master", "nonsense", status=2), "nonsense", "ipc://")


def test_timeout_is_5(posthouse, idle):
    check(posthouse("wait", idle, "--timeout", "0.2", status=5), idle, "0.2 s")
    check(posthouse("logs", "-f", idle, "--timeout", "0.2", status=5), idle)


def test_name_taken_is_1_and_tells_the_handle(posthouse, idle):
    ran = posthouse("run", "jobs:idle", "--name", idle, status=1)
    check(ran, idle)
    assert ":" in ran.stderr


def test_unknown_host_is_1_and_names_the_known(posthouse, name):
    check(posthouse("run", "jobs:idle", "--name", name, "--on", "nowhere", status=1), "a, b")


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--main", "jobs:idle", "--nice", "99"], 1, ["nice", "99", "19"]),
        (["--main", "jobs:idle", "--nice", "x"], 2, ["nice", "'x'", "whole number"]),
        (["--main", "jobs:idle", "--main-arg", "{orders}"], 2, ["JSON", "quotes"]),
        (["--main", "jobs:idle", "-o", "nicce=1"], 2, ["nicce", "did you mean nice?"]),
        (["--main", "jobs:idle", "-o", "nice"], 2, ["FIELD=VALUE"]),
        (["--main", "jobs:idle", "--restart-time", "5 parsecs"], 2, ["restart_time", "never"]),
        (["--main", "no colon"], 1, ["main", "no colon"]),
        ([], 1, ["main"]),
        (["--main", "jobs:idle", "--flags", "database_connection"], 1, ["SHMEM_ACCESS"]),
        (["--main", "jobs:idle", "--name", "twice"], 2, ["name", "2 times"]),
    ],
)
def test_bad_fields_name_field_value_and_rule(posthouse, name, options, status, words):
    check(posthouse("register", "--name", name, *options, status=status), *words)
    assert name not in posthouse("ps", "-a").stdout


@pytest.mark.parametrize("odd", ["", "a\nb", "x" * 97, "\u202eright to left"])
def test_odd_names_are_refused(posthouse, odd):
    check(posthouse("register", "--name", odd, "--main", "jobs:idle", status=1), "name")


def test_a_reader_that_leaves_early_is_no_error(cluster):
    read, write = os.pipe()
    with subprocess.Popen(
        [*command(), "events"],
        env=cluster.command_env(),
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    ) as writing:
        os.close(write)
        os.close(read)
        talk = writing.stderr.read()
    assert talk == ""
    assert writing.returncode in (0, 141)


def test_every_status_is_in_the_help(posthouse):
    shown = posthouse("--help").stdout
    for status, words in EXIT_STATUSES.items():
        assert f"  {status} " in shown and words.split(";")[0] in shown
