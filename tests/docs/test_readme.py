"""The README's first screen is what really happens."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import posthouse
from posthouse.toml_file import read_toml
from posthouse.worker_tables import read_worker_tables
from posthouse_cli.demo import Demo
from posthouse_testing.cluster import LocalCluster

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
    shown = blocks("python")[0]
    assert shown in (ROOT / "examples" / "beat.py").read_text()
    assert len(shown.splitlines()) <= 16


def test_the_python_shown_does_the_same():
    source = blocks("python")[1]
    assert len(source.splitlines()) <= 16
    with LocalCluster(["a", "b"], path=[ROOT / "examples"]) as cluster:
        ran = subprocess.run(
            [sys.executable, "-c", source],
            env={**os.environ, "POSTHOUSE_MASTER": cluster.clients},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ran.returncode == 0, ran.stderr
        with cluster.connect() as client:
            assert client.workers() == []
    for word in ("started", "exited", "killed by SIGKILL", "unregistered"):
        assert word in ran.stdout


def test_the_declaration_shown_is_one(tmp_path):
    (text,) = blocks("toml")
    file = tmp_path / "workers.toml"
    file.write_text(text)
    found = read_worker_tables(read_toml(str(file)))
    assert [(entry.worker.name, entry.replicas) for entry in found] == [
        ("ingest", None),
        ("web", 3),
    ]


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
