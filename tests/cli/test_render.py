"""Tables on a terminal, tab-separated lines in a pipe, colours only where they belong."""

from pathlib import Path

import pytest

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


def test_colours_where_they_belong(screen, posthouse, cluster, idle):
    assert ESCAPE in screen("ps")
    assert ESCAPE not in screen("ps", NO_COLOR="1")
    assert ESCAPE not in screen("ps", TERM="dumb")
    assert ESCAPE not in screen("--color", "never", "ps")
    assert ESCAPE in screen("--color", "always", "ps", NO_COLOR="1")
    assert ESCAPE not in posthouse("ps").stdout
    assert ESCAPE in screen("events", idle)
    assert ESCAPE not in screen("events", idle, NO_COLOR="1")


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
