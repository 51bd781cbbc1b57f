"""Every command and every file on our pages is tried: the README, and all of docs."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TWO_MACHINES = ROOT / "docs" / "how-to" / "two-machines.md"
# What is on a page and not run, and where else it is tried. A line here is a line too many.
NOT_RUN = {
    "README.md": [
        ".ci/run begins with the first, on a machine that has nothing; the second wants a network",
        "it is what `posthouse demo` prints; test_readme.py compares the two",
        "these are the tests themselves",
    ],
    "docs/how-to/test-your-workers.md": ["tests/plugin/test_real.py runs such tests"],
    "docs/reference/protocol.md": ["tests/cli/test_keys.py reads such files"],
    "docs/reliability.md": ["tests/sim runs the simulator, with fewer seeds"],
}


def test_what_is_not_run_is_listed_here(not_run: dict[str, list[str]]) -> None:
    assert not_run == NOT_RUN


@pytest.mark.timeout(300)
def test_the_page_is_true(played_page: str, player: Callable[..., Any]) -> None:
    player().page((ROOT / played_page).read_text())


@pytest.mark.timeout(300)
def test_two_machines(namespaces: dict[str, str], player: Callable[..., Any]) -> None:
    played = player(namespaces)
    played.page(TWO_MACHINES.read_text())
    assert (played.folder / "a" / "master-main.key").stat().st_mode & 0o077 == 0
    # The agent writes its log behind what it does: the last line may be a moment late.
    until_s = time.monotonic() + 10
    while (told := events(played.folder / "b.log")).count("session.opened") < 2:
        assert time.monotonic() < until_s, told
        time.sleep(0.05)
    assert told.count("session.opened") == 2, "not while its key was taken back"
    assert told.count("worker.started") == 1


def events(log: Path) -> list[str]:
    """Of the lines that are whole."""
    whole = [line for line in log.read_text().splitlines(keepends=True) if line[-1] == "\n"]
    return [json.loads(line)["event"] for line in whole]


def test_two_machines_takes_five_commands() -> None:
    page = TWO_MACHINES.read_text()
    part = page.partition("## Five commands")[2].partition("## ")[0]
    assert len(re.findall(r"^[ab]\$ ", part, re.MULTILINE)) == 5


# What supervisord 4 reads in a [program:x] section.
SUPERVISORD = """
    command process_name numprocs numprocs_start priority autostart autorestart exitcodes startsecs
    startretries stopsignal stopwaitsecs stopasgroup killasgroup user directory umask environment
    redirect_stderr stdout_logfile stdout_logfile_maxbytes stdout_logfile_backups
    stdout_capture_maxbytes stdout_events_enabled stdout_syslog stderr_logfile serverurl
"""


def test_each_option_of_supervisord_has_its_line() -> None:
    page = (ROOT / "docs" / "how-to" / "move-from-supervisord.md").read_text()
    part = page.partition("## Option by option")[2].partition("| elsewhere")[0]
    first_column = "\n".join(re.findall(r"^\| ([^|]*) \|", part, re.MULTILINE))
    assert set(re.findall(r"`(\w+)(?:=\w+)?`", first_column)) == set(SUPERVISORD.split())
