"""What people get wrong: each is refused in words, with a status, and nothing else changes.

One table. Every row is a command, its exit status, and what its one message has to say.
"""

import os
import socket
import subprocess
import threading

import pytest

from posthouse import keys
from posthouse_testing.cluster import command

OK = ("--main", "jobs:idle")

REFUSED = {
    # what is wrong: (arguments; NAME and DIR are filled in, exit status, words of the message)
    "unknown verb": (["regsiter"], 2, ["'regsiter'", "did you mean `register`?"]),
    "unknown option": (["ps", "--jsno"], 2, ["--jsno", "posthouse ps --help"]),
    "unknown worker": (["status", "NAME"], 3, ["NAME"]),
    "unknown group": (["terminate", "NAME:*"], 3, ["'NAME'", "members"]),
    "unknown host": (["register", "--name", "NAME", *OK, "--host", "mars"], 1, ["mars", "a, b"]),
    "host to drain": (["drain", "mars"], 1, ["mars", "a, b"]),
    "label of nobody": (
        ["register", "--name", "NAME", *OK, "--label", "x y"],
        1,
        ["labels", "x y"],
    ),
    "empty name": (["register", "--name", "", *OK], 1, ["name is ''", "1 to 96 bytes"]),
    "NUL in a name": (["register", "--name", "a\0b", *OK], 1, ["name is 'a\\x00b'"]),
    "newline in a name": (["register", "--name", "a\nb", *OK], 1, ["name is 'a\\nb'"]),
    "97 bytes of name": (["register", "--name", "x" * 97, *OK], 1, ["name", "96 bytes"]),
    "97 bytes in fewer letters": (["register", "--name", "é" * 49, *OK], 1, ["name"]),
    "right to left": (["register", "--name", "a\u202eb", *OK], 1, ["name is 'a\\u202eb'"]),
    "a path as a name": (["register", "--name", "../etc", *OK], 1, ["name is '../etc'", "/"]),
    "surrogate in a name": (["register", "--name", "a\udce9", *OK], 1, ["name"]),
    "no such form of main": (["register", "--name", "NAME", "--main", "jobs"], 1, ["main", "jobs"]),
    "a private function": (["register", "--name", "NAME", "--main", "jobs:_f"], 1, ["_f"]),
    "nothing to run": (["register", "--name", "NAME"], 1, ["main"]),
    "main_arg too large": (
        ["register", "--name", "NAME", *OK, "--main-arg", '"' + "x" * 70_000 + '"'],
        1,
        ["main_arg", "65536"],
    ),
    "main_arg too deep": (
        ["register", "--name", "NAME", *OK, "--main-arg", "[" * 20 + "]" * 20],
        1,
        ["main_arg"],
    ),
    "main_arg no JSON": (
        ["register", "--name", "NAME", *OK, "--main-arg", "orders"],
        2,
        ["main_arg is 'orders'", "quotes"],
    ),
    "a number too large": (
        ["register", "--name", "NAME", *OK, "--main-arg", "1" * 40],
        1,
        ["main_arg"],
    ),
    "extra of no file": (
        ["register", "--name", "NAME", *OK, "-o", "extra=@DIR/none"],
        2,
        ["extra", "No such file"],
    ),
    "a duration without unit word": (["wait", "NAME", "--timeout", "soon"], 2, ["'soon'", "5s"]),
    "a field with a typo": (
        ["register", "--name", "NAME", *OK, "-o", "restrat_time=1"],
        2,
        ["restrat_time", "did you mean restart_time?"],
    ),
    "a file that is not there": (["apply", "-f", "DIR/none.toml"], 2, ["none.toml does not exist"]),
    "a file with a typo": (
        ["apply", "-f", "DIR/typo.toml"],
        2,
        ["typo.toml:3: unknown key 'mian' of a worker", "did you mean 'main'?"],
    ),
    "a file that is no TOML": (["apply", "-f", "DIR/no.toml"], 2, ["no.toml:2: "]),
    "a folder in the place of a file": (["apply", "-f", "DIR"], 2, ["is not a file"]),
    "one bad record of two": (
        ["apply", "-f", "DIR/half.toml"],
        2,
        ["half.toml:8", "nice is 99", "nothing was changed"],
    ),
    "an endpoint of no kind": (["ps", "--master", "localhost"], 2, ["localhost", "ipc://"]),
    "a cursor of no kind": (["events", "--after", "yesterday"], 2, ["yesterday", "1/42"]),
    "a signal of no kind": (["signal", "IDLE", "NOSUCH"], 1, ["NOSUCH"]),
    "the name of another": (["register", "--name", "IDLE", *OK], 1, ["IDLE"]),
    "a function that cannot be found": (["run", "jobs:idle", "--on", "mars"], 1, ["mars"]),
}


def files(folder):
    (folder / "typo.toml").write_text('[[worker]]\nname = "t"\nmian = "jobs:idle"\n')
    (folder / "no.toml").write_text('a = 1\nb = = "\n')
    (folder / "half.toml").write_text(
        '[[worker]]\nname = "good-half"\nmain = "jobs:idle"\n\n'
        '[[worker]]\nname = "bad-half"\nmain = "jobs:idle"\nnice = 99\n'
    )


def fine(ran, words):
    """One message: no traceback, nothing among the data."""
    assert "Traceback" not in ran.stderr
    assert ran.stderr.startswith("posthouse: ")
    for word in words:
        assert word in ran.stderr, (word, ran.stderr)


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_in_words_and_nothing_changes(posthouse, objects, name, tmp_path, what, idle):
    files(tmp_path)

    def filled(text):
        text = text.replace("NAME", f"no-{name}").replace("IDLE", idle)
        return text.replace("DIR", str(tmp_path))

    arguments, status, words = REFUSED[what]
    before = {row["handle"]: row["incarnation"] for row in objects("ps", "-a")}
    ran = posthouse(*map(filled, arguments), status=status)
    assert ran.stdout == ""
    fine(ran, map(filled, words))
    assert {row["handle"]: row["incarnation"] for row in objects("ps", "-a")} == before


@pytest.mark.parametrize(
    ("main", "words"),
    [
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("broken:f", "this library is broken"),
        ("jobs:no_such_function", "no_such_function"),
        ("jobs:signal", "jobs:signal is <module"),
    ],
)
def test_what_only_the_host_can_see_is_told_by_status_and_why(posthouse, name, main, words):
    posthouse("register", "--name", name, "--main", main, "--host", "b", "--restart-time", "1h")
    posthouse("wait", name, "--for", "exit", "--timeout", "20")
    told = posthouse("status", name, status=3)
    assert words in told.stdout
    assert words[:12] in posthouse("why", name).stdout  # one line an event: its end is cut


def program(*arguments, env=None, status):
    ran = subprocess.run(
        [*command(), *arguments], env=env, capture_output=True, text=True, timeout=30
    )
    assert ran.returncode == status, ran
    assert "Traceback" not in ran.stderr, ran.stderr
    return ran.stderr


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = program(
            *("master", "--dir", str(tmp_path / "d"), "--listen-agents", f"tcp://127.0.0.1:{port}"),
            env={**os.environ, "POSTHOUSE_INSECURE": "true"},
            status=1,
        )
    assert f"127.0.0.1:{port}" in told
    assert "in use" in told


def test_a_socket_that_is_no_socket_is_named(tmp_path):
    place = tmp_path / "d"
    place.mkdir(mode=0o700)
    (place / "clients.sock").write_text("mine")
    assert "clients.sock is there and is no socket" in program(
        "master", "--dir", str(place), status=1
    )
    assert (place / "clients.sock").read_text() == "mine"


def test_a_master_that_goes_away_in_the_middle_of_a_request_is_4_or_5(posthouse, tmp_path):
    """It takes the connection and ends it after some bytes, as a killed one does."""
    path = str(tmp_path / "m.sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()

        def die_each_time():
            while True:
                try:
                    peer, _ = listening.accept()
                except OSError:
                    return
                with peer:
                    peer.recv(16)

        thread = threading.Thread(target=die_each_time)
        thread.start()
        try:
            for verb in (["ps"], ["status", "x"], ["hosts"], ["terminate", "x"]):
                timed = ["--timeout", "0.3", "--master", f"ipc://{path}"]
                fine(posthouse(*verb, *timed, status=4), [path])
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_malformed_master_key_is_refused_by_file_line_and_rule(posthouse, tmp_path):
    """No secret is shown. What a well-formed foreign key leads to: tests/cli/test_keys.py."""
    pair = keys.generate()
    keys.write_pair(str(tmp_path / "c.key"), pair, "client:c")
    file = tmp_path / "client.toml"
    file.write_text(f'key_file = "{tmp_path}/c.key"\nmaster_key = "short"\n')
    before = os.environ.get("POSTHOUSE_CONFIG")
    os.environ["POSTHOUSE_CONFIG"] = str(tmp_path)
    try:
        ran = posthouse("ps", status=2)
    finally:
        os.environ.pop("POSTHOUSE_CONFIG")
        if before is not None:
            os.environ["POSTHOUSE_CONFIG"] = before
    fine(ran, [f"{file}:2: master_key is 'short'", "40 characters"])
    assert pair.secret not in ran.stderr
