"""What holds for every verb: JSON as documented, no colour in a pipe, no question, a status of the
table, the nearest name, and a sign of life only where a person sees it.

The tables name every verb that there is: a new one fails here until somebody has said what it does.
"""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from posthouse_cli import progress
from posthouse_cli.main import EXIT_STATUSES, VERBS, cli
from posthouse_cli.screen import Screen
from posthouse_testing.cluster import command

PATIENCE_S = 60.0
ESCAPE = "\x1b"


def commands():
    """Every command by its words, groups by their members."""
    context = click.Context(cli)
    for verb in VERBS:
        found = cli.get_command(context, verb)
        if isinstance(found, click.Group):
            if found.invoke_without_command:
                yield verb, found
            yield from ((f"{verb} {name}", each) for name, each in found.commands.items())
        else:
            yield verb, found


COMMANDS = dict(commands())

# What each verb is called with, where IDLE is a worker that runs, NEW a name that nobody has, DIR
# an empty folder. None: it goes on until it is ended, or ends what all tests share; it has tests of
# its own.
CALLS = {
    "demo": None,
    "up": None,
    "run": ["posthouse.exec", "--name", "NEW", "--arg", '["true"]'],
    "register": ["--name", "NEW", "--main", "jobs:idle", "--label", "no=where"],
    "apply": ["-f", "DIR/workers.toml", "--dry-run"],
    "ps": ["--all"],
    "status": ["IDLE"],
    "logs": ["IDLE"],
    "events": ["IDLE"],
    "why": ["IDLE"],
    "stacks": ["IDLE"],
    "wait": ["IDLE", "--for", "started"],
    "pid": ["IDLE"],
    "signal": ["IDLE", "CONT"],
    "terminate": ["NEW"],
    "hold": ["NEW"],
    "release": ["IDLE"],
    "restart": ["NEW"],
    "hosts": [],
    "hosts forget": ["nowhere"],
    "unclaimed": [],
    "claim": ["999999999"],
    "top": [],
    "drain": ["a", "--undo"],
    "reload": ["IDLE"],
    "shutdown": None,
    "master": None,
    "agent": None,
    "backup": ["DIR/copy", "--state-dir", "DIR/none"],
    "restore": ["DIR/copy", "--state-dir", "DIR/none"],
    "config show": [],
    "keygen": ["client:deploy", "-o", "DIR/c.key"],
    "doctor": ["client"],
    "fence-sql": [],
    "conformance": ["--list"],
    "completion": ["bash"],
    "version": [],
}
FAILS = {
    "terminate": 3, "hold": 3, "restart": 3,
    "backup": 1, "restore": 1, "hosts forget": 1, "claim": 1,
}  # fmt: skip
NOTHING = ("logs", "unclaimed")  # here they have nothing to tell; they have tests of their own


def test_the_table_has_every_verb():
    assert set(CALLS) == set(COMMANDS)
    assert set(FAILS.values()) <= set(EXIT_STATUSES)


@pytest.fixture
def called(posthouse, name, idle, tmp_path):
    """Run a command of the table, its words filled in."""
    (tmp_path / "workers.toml").write_text('[[worker]]\nname = "t"\nmain = "jobs:idle"\n')

    def call(words, *more, status=None):
        new = f"{name}-new"
        filled = [
            each.replace("NEW", new).replace("IDLE", idle).replace("DIR", str(tmp_path))
            for each in CALLS[words]
        ]
        ran = posthouse(*words.split(), *filled, *more, status=status)
        posthouse("terminate", "--no-wait", new, status=None)
        return ran

    return call


RUN = [words for words, arguments in CALLS.items() if arguments is not None]


@pytest.mark.parametrize("words", RUN)
def test_its_status_is_of_the_table_and_a_pipe_sees_no_escape_code(called, words):
    ran = called(words)
    assert ran.returncode == FAILS.get(words, 0), ran
    assert ESCAPE not in ran.stdout and ESCAPE not in ran.stderr
    assert "…" not in ran.stdout, "something was cut for a terminal that is not there"


def documented(words):
    """The keys of its JSON, by its help."""
    found = re.fullmatch(r"JSON keys: (.*)\.", COMMANDS[words].epilog or "")
    assert found, f"{words} has --json and no documented keys"
    return found[1].split(", ")


JSON = [w for w, c in COMMANDS.items() if any("--json" in p.opts for p in c.params)]


@pytest.mark.parametrize("words", JSON)
def test_its_json_parses_and_has_the_documented_keys_in_their_order(called, words):
    ran = called(words, "--json", status=FAILS.get(words, 0))
    rows = [json.loads(line) for line in ran.stdout.splitlines()]
    assert rows or words in NOTHING, "nothing was printed"
    for row in rows:
        shown = list(row)
        keys = documented(words)
        # The cases that are listed have no outcome.
        assert shown == (keys[:3] if words == "conformance" else keys)


def test_json_of_what_a_worker_wrote(objects, posthouse, name):
    posthouse("run", "jobs:speak", "--name", name, "--arg", '["one"]', "--detach")
    posthouse("wait", name, "--for", "ready", "--timeout", "20")
    assert list(objects("logs", name)[0]) == documented("logs")


READS = ("ps", "status", "logs", "events", "why", "stacks", "wait", "pid", "hosts", "top")


def test_every_read_has_json():
    assert set(READS) <= set(JSON)


@pytest.mark.parametrize("words", ["ps", "hosts", "status", "events", "why"])
def test_a_terminal_sees_colours_only_where_they_are_wanted(cluster, idle, words):
    """NO_COLOR wins over a terminal, --color over NO_COLOR; a dumb one gets none."""

    def shown(*before, **variables):
        names = [idle] if "IDLE" in CALLS[words] else []
        env = {k: v for k, v in cluster.command_env().items() if k not in ("NO_COLOR", "TERM")}
        screen = Screen([*before, words, *names], Path.cwd(), {**env, "TERM": "xterm", **variables})
        try:
            return screen.rest(PATIENCE_S)
        finally:
            screen.end(5)

    assert ESCAPE not in shown(NO_COLOR="1")
    assert ESCAPE not in shown(TERM="dumb")
    assert ESCAPE not in shown("--color", "never")
    plain = words == "status"  # a page of labels, not of states
    assert (ESCAPE in shown("--color", "always", NO_COLOR="1")) != plain


def test_no_verb_ever_asks(cluster, idle, name, tmp_path):
    """Unattended by default: what is asked for is done or refused, so no question needs a yes. A
    command whose standard input is closed, or would be read, ends by itself."""
    source = "\n".join(path.read_text() for path in (Path(progress.__file__).parent).rglob("*.py"))
    assert not re.search(r"click\.(confirm|prompt|getchar|pause)|\binput\(|stdin\.read", source)
    for arguments in (
        ["drain", "a", "--force", "--no-wait"],
        ["drain", "a", "--undo"],
        ["terminate", idle],
        ["keygen", "client:x", "-o", str(tmp_path / "k")],
        ["keygen", "client:x", "-o", str(tmp_path / "k")],
    ):
        with subprocess.Popen(
            [*command(), *arguments],
            env=cluster.command_env(),
            stdin=subprocess.PIPE,  # never written to, and open
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as running:
            try:
                running.wait(PATIENCE_S)
            finally:
                running.kill()


# --- the nearest name ---


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["termiante", "x"], 2, "did you mean `terminate`?"),
        (["ps", "--jsn"], 2, "--json"),
        (["config", "shwo"], 2, "show"),
        (["drain", "aa"], 1, "did you mean 'a'?"),
        (["reload", "--host", "bb"], 1, "did you mean 'b'?"),
        (["top", "--host", "aa"], 1, "did you mean 'a'?"),
        (["register", "--name", "NEW", "--main", "m:f", "--host", "bb"], 1, "did you mean 'b'?"),
        (["terminate", "GROUPE:*"], 3, "did you mean 'GROUP:*'?"),
        (["status", "IDLEE"], 3, "did you mean 'IDLE'?"),
        (["register", "-o", "nmae=x"], 2, "did you mean name?"),
        (["wait", "IDLE", "--for", "redy"], 2, "ready"),
        (["completion", "bsh"], 2, "bash"),
    ],
)
def test_the_nearest_name_is_told(cluster, posthouse, idle, name, arguments, status, words):
    from posthouse import BackgroundWorker

    group = f"{name}-crew"
    if "GROUP" in words:
        with cluster.connect() as client:
            client.register_group(BackgroundWorker(name=group, main="jobs:idle"), 2)

    def filled(text):
        return text.replace("GROUP", group).replace("IDLE", idle).replace("NEW", f"{name}-new")

    try:
        ran = posthouse(*map(filled, arguments), status=status)
        assert filled(words) in ran.stderr
    finally:
        posthouse("terminate", f"{group}:*", status=None)


# --- signs of life ---


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["wait", "IDLE"], "waiting for IDLE: gone, "),
        (["wait", "IDLE", "--for", "exit"], "waiting for IDLE: exit, "),
        (["terminate", "DEAF"], "waiting for the end of DEAF, "),
        (["hold", "DEAF"], "waiting for DEAF to be held, "),
        (["restart", "DEAF"], "waiting for DEAF to be started, "),
        (
            ["apply", "-f", "DIR/workers.toml", "--wait"],
            "waiting for the workers of workers.toml, ",
        ),
        (["drain", "b", "--force"], "waiting for the end of "),
    ],
)
def test_a_terminal_gets_a_sign_of_life_and_loses_it_again(
    cluster, posthouse, idle, name, tmp_path, arguments, told
):
    """Where it takes longer than a second; on standard error, without escape codes."""
    deaf = f"{name}-deaf"
    stubborn = ["--name", deaf, "--host", "b", "-o", "stop_grace_s=1h"]
    posthouse("register", *stubborn, "--main", "jobs:deaf")
    posthouse("wait", deaf, "--for", "ready", "--timeout", "60")
    (tmp_path / "workers.toml").write_text(
        f'[[worker]]\nname = "{name}-t"\nmain = "jobs:idle"\nlabels = ["no=where"]\n'
    )

    def filled(text):
        return text.replace("IDLE", idle).replace("DEAF", deaf).replace("DIR", str(tmp_path))

    screen = Screen(
        list(map(filled, arguments)), Path.cwd(), {**cluster.command_env(), "TERM": "xterm"}
    )
    try:
        screen.until(filled(told), PATIENCE_S)
        # In this order: one that is restarted first would be as deaf to its end as before.
        posthouse("terminate", idle, deaf, "--no-wait", status=None)
        posthouse("signal", deaf, "KILL", status=None)
        if arguments[0] != "apply":
            shown = screen.rest(PATIENCE_S)
            assert ESCAPE not in shown
    finally:
        screen.end(5)
        posthouse("drain", "b", "--undo")
        posthouse("terminate", "--no-wait", f"{name}-t", deaf, status=None)


def test_a_pipe_gets_no_sign_of_life(monkeypatch):
    """Nor does a dumb terminal. No clock is needed: there is no thread that could tell anything."""
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    with progress.waiting("nothing"):
        assert not [t for t in progress.threading.enumerate() if t.name == "progress"]
    said.isatty = lambda: True
    monkeypatch.setitem(os.environ, "TERM", "dumb")
    with progress.waiting("nothing"):
        assert not [t for t in progress.threading.enumerate() if t.name == "progress"]
    assert said.getvalue() == ""
