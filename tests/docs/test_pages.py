"""Every command and every file on the pages of docs is tried."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.mark.timeout(150)
def test_two_machines(namespaces: dict[str, str], player: Callable[..., Any]) -> None:
    played = player(namespaces)
    played.page((DOCS / "how-to" / "two-machines.md").read_text())
    assert (played.folder / "a" / "master-main.key").stat().st_mode & 0o077 == 0
    # The agent writes its log behind what it does: the last line may be a moment late.
    until_s = time.monotonic() + 10
    while len(opened := epochs(said := lines(played.folder / "b.log"))) < 2:
        assert time.monotonic() < until_s, opened
        time.sleep(0.05)
    assert opened == [1, 3], "not while its key was taken back"
    assert [line["event"] for line in said].count("worker.started") == 1


def lines(log: Path) -> list[dict[str, Any]]:
    """The whole ones."""
    return [
        json.loads(line) for line in log.read_text().splitlines(keepends=True) if line[-1] == "\n"
    ]


def epochs(said: list[dict[str, Any]]) -> list[int]:
    return [line["epoch"] for line in said if line["event"] == "session.opened"]


def test_two_machines_takes_five_commands() -> None:
    page = (DOCS / "how-to" / "two-machines.md").read_text()
    part = page.partition("## Five commands")[2].partition("## ")[0]
    assert len(re.findall(r"^[ab]\$ ", part, re.MULTILINE)) == 5


@pytest.mark.timeout(150)
def test_the_first_worker(player: Callable[..., Any]) -> None:
    player().page((DOCS / "tutorial" / "first-worker.md").read_text())
