"""The README's first screen is what really happens; test_pages.py plays the rest of it."""

import re
from pathlib import Path

import pytest

import posthouse
from posthouse_cli.demo import Demo

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def masked(text):
    """Times of day, process ids and durations differ from run to run."""
    text = re.sub(r"\d\d:\d\d:\d\d", "TIME", text)
    text = re.sub(r"\b\d+(\.\d+)? s\b(?! *$)", "DURATION", text)
    text = re.sub(r"\b\d{2,7}\b", "PID", text)
    lines = [re.sub(r" {2,}", "  ", line).rstrip() for line in text.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """What the demo printed in its own test, if that came first; else what it prints now."""
    kept = tmp_path_factory.getbasetemp() / "demo.txt"
    if kept.exists():
        return kept.read_text().splitlines()
    said = []
    demo = Demo(said.append)
    demo._play_follow = lambda: None
    assert demo.run() == 0, said
    return said


@pytest.mark.timeout(120)
def test_the_session_is_what_the_demo_prints(played):
    shown = masked(blocks("console")[0])
    printed = masked("\n".join(played))
    assert printed[: len(shown)] == shown
    assert printed[len(shown)].startswith(("# two workers copy", "# every step held"))


def test_the_worker_shown_is_the_example():
    name, _, shown = blocks("python")[0].partition("\n")
    assert name == "# beat.py"
    assert shown in (ROOT / "examples" / "beat.py").read_text()
    assert len(shown.splitlines()) <= 16


def test_the_names_in_the_table_exist():
    table = re.findall(r"^\| `?(\S.*?)`? \| (.*) \|$", README, re.MULTILINE)
    assert len(table) > 15
    for _, ours in table:
        for dotted in re.findall(r"`((?:posthouse|worker|handle|cluster)\.\w+)", ours):
            owner, _, name = dotted.partition(".")
            found = {
                "posthouse": posthouse,
                "worker": posthouse.worker,
                "handle": posthouse.Handle,
                "cluster": posthouse.Cluster,
            }[owner]
            assert hasattr(found, name), dotted
