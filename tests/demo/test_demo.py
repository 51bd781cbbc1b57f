"""`posthouse demo` holds what it shows, says so when it does not, and leaves nothing behind."""

import re
import subprocess
from pathlib import Path

import pytest

from posthouse_cli.demo import Demo
from posthouse_testing.cluster import command

KILL = re.compile(r"^kill -9 \d+ \(follow-[ab] on [ab], \d+ lines written\): back", re.MULTILINE)


def folders():
    return set(Path("/tmp").glob("ph*"))


def processes():
    """Command lines that name a demo's folder."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if re.search(r"/tmp/ph\w+/house", line)]


@pytest.mark.timeout(120)
def test_the_demo_plays_checks_and_cleans_up():
    ran = subprocess.run([*command(), "demo"], capture_output=True, text=True, timeout=90)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    text = ran.stdout
    assert re.search(r"^\$ kill -9 \d+$", text, re.MULTILINE)
    assert len(KILL.findall(text)) == 10
    assert re.search(r"^a\.log: \d+ lines written, each copied once$", text, re.MULTILINE)
    assert re.search(r"^b\.log: \d+ lines written, each copied once$", text, re.MULTILINE)
    assert "10 kills, 10 exits told, each once and with its cause" in text
    assert text.splitlines()[-1].startswith("# every step held")
    assert "\x1b" not in text
    used = set(re.findall(r"/tmp/ph\w+", text))
    assert not used & {str(folder) for folder in folders()}


INSERT = 'database.execute("INSERT INTO line VALUES (?, ?, ?)", (str(file), position, line))'
BREAKS = {
    "loses one line in fifty": (INSERT, f"if len(line) % 50: {INSERT}"),
    "doubles some": (INSERT, f"{INSERT}; len(line) % 50 or {INSERT}"),
    "takes half a line for a whole one": ("        lines.pop()", "        pass"),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", list(BREAKS))
def test_the_demo_fails_if_a_line_is_lost_or_doubled(how, monkeypatch):
    said = []
    demo = Demo(said.append)
    good, bad = BREAKS[how]
    prepare = demo._prepare

    def sabotage():
        prepare()
        path = demo._work / "follow.py"
        source = path.read_text()
        assert good in source
        path.write_text(source.replace(good, bad))

    monkeypatch.setattr(demo, "_prepare", sabotage)
    monkeypatch.setattr(demo, "_play_beat", lambda: None)
    monkeypatch.setattr("posthouse_cli.demo._PATIENCE_S", 4.0)
    assert demo.run() == 1
    assert any(line.startswith("# the demo FAILED:") for line in said), said
    assert not demo._folder.exists()


def test_keep_leaves_it_running_and_says_how_to_end_it():
    said = []
    demo = Demo(said.append, keep=True)
    demo._play_beat = demo._play_follow = lambda: None
    assert demo.run() == 0
    try:
        assert "reachable" in demo._capture("hosts")
        ending = next(line for line in said if line.startswith("# to end it: "))
        subprocess.run(["sh", "-c", ending.removeprefix("# to end it: ").split(";")[0]], check=True)
        assert demo._screens[0].wait(30) == 0
    finally:
        demo._clean_up()
    assert not demo._folder.exists()
    assert str(demo._folder) not in "\n".join(processes())
