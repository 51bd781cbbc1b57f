"""Tables on a terminal, tab-separated lines in a pipe, colours only where they belong."""

import io
import sys
from pathlib import Path

import pytest

from posthouse_cli.render import Output
from posthouse_cli.screen import Screen

ESCAPE = "\x1b["


@pytest.fixture
def screen(cluster):
    """screen("ps", NO_COLOR="1"): what the command shows on a terminal."""

    def show(*arguments, **variables):
        env = {k: v for k, v in cluster.command_env().items() if k not in ("NO_COLOR", "TERM")}
        shown = Screen(arguments, Path.cwd(), {**env, "TERM": "xterm", **variables})
        try:
            text = shown.rest(20)
            assert shown.wait(20) == 0
            return text
        finally:
            shown.end(5)

    return show


def test_a_terminal_gets_a_header_and_columns(screen, idle):
    header, *rows = screen("ps", NO_COLOR="1").splitlines()
    assert header.split() == ["NAME", "STATE", "HOST", "PID", "UP", "STARTS", "LAST", "EXIT"]
    [row] = [row for row in rows if row.startswith(idle)]
    assert row.index("started") == header.index("STATE")
    assert "\t" not in row


def test_a_pipe_gets_tabs_and_no_header(posthouse, idle):
    lines = posthouse("ps").stdout.splitlines()
    assert all(line.count("\t") == 6 for line in lines)
    assert not any(line.startswith("NAME") for line in lines)


def test_colours_on_a_terminal_and_none_in_a_pipe(screen, posthouse, idle):
    assert ESCAPE in screen("events", idle)
    assert ESCAPE in screen("--color", "always", "ps", NO_COLOR="1")
    assert ESCAPE not in posthouse("ps").stdout


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "option", "variables", "wanted"),
    [
        (Terminal, "auto", {"TERM": "xterm"}, True),
        (Terminal, "auto", {"TERM": "dumb"}, False),
        (Terminal, "auto", {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (Terminal, "never", {"TERM": "xterm", "FORCE_COLOR": "1"}, False),
        (Terminal, "always", {"TERM": "dumb", "NO_COLOR": "1"}, True),
        (io.StringIO, "auto", {"TERM": "xterm"}, False),
        (io.StringIO, "auto", {"TERM": "xterm", "FORCE_COLOR": "1"}, True),
        (io.StringIO, "auto", {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        (io.StringIO, "always", {}, True),
    ],
)
def test_who_decides_about_colours(monkeypatch, stream, option, variables, wanted):
    for name in ("TERM", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", stream())
    output = Output(option)
    assert output.colors is wanted
    output.table(("STATE", "NAME"), [("started", "w")])
    output.row(("started", "w"), (8, 4))
    assert (ESCAPE in sys.stdout.getvalue()) is (wanted and stream is Terminal)


def test_json_is_the_same_on_a_terminal(screen, posthouse, idle):
    def lines(text):
        return [line for line in text.splitlines() if idle in line]

    assert len(lines(screen("events", idle, "--json"))) == len(
        lines(posthouse("events", idle, "--json").stdout)
    )
    assert ESCAPE not in screen("ps", "--json")


def test_what_a_worker_is_called_or_says_cannot_drive_the_terminal(screen, posthouse, name):
    posthouse("run", "jobs:idle", "--name", f"{name} [bold]x", "--detach")
    try:
        assert "[bold]x" in screen("ps")
    finally:
        posthouse("terminate", f"{name} [bold]x")


def test_a_narrow_terminal_loses_nothing(screen, idle):
    assert idle in screen("ps", COLUMNS="10", NO_COLOR="1")
