"""`posthouse demo` holds what it shows, says so when it does not, and leaves nothing behind."""

import contextlib
import re
import sqlite3
import subprocess

import pytest

from posthouse_cli.demo import Demo, Failed, compare
from posthouse_testing.cluster import command

KILL = re.compile(r"^kill -9 \d+ \(follow-[ab] on [ab], \d+ lines written\): back", re.MULTILINE)


@pytest.mark.timeout(120)
def test_the_demo_plays_checks_and_cleans_up(tmp_path_factory):
    ran = subprocess.run([*command(), "demo"], capture_output=True, text=True, timeout=90)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    text = ran.stdout
    # The README's test reads it there, if it comes later.
    (tmp_path_factory.getbasetemp() / "demo.txt").write_text(text)
    assert re.search(r"^\$ kill -9 \d+$", text, re.MULTILINE)
    assert len(KILL.findall(text)) == 10
    assert re.search(r"^a\.log: \d+ lines written, each copied once$", text, re.MULTILINE)
    assert re.search(r"^b\.log: \d+ lines written, each copied once$", text, re.MULTILINE)
    assert "10 kills, 10 exits told, each once and with its cause" in text
    assert text.splitlines()[-1].startswith("# every step held")
    assert "\x1b" not in text


@pytest.mark.timeout(120)
def test_the_demo_fails_if_a_line_is_doubled(monkeypatch):
    said = []
    demo = Demo(said.append)
    insert = 'database.execute("INSERT INTO line VALUES (?, ?, ?)", (str(file), position, line))'
    prepare = demo._prepare

    def sabotage():
        prepare()
        path = demo._work / "follow.py"
        source = path.read_text()
        assert insert in source
        path.write_text(source.replace(insert, f"{insert}; len(line) % 50 or {insert}"))

    monkeypatch.setattr(demo, "_prepare", sabotage)
    monkeypatch.setattr(demo, "_play_beat", lambda: None)
    monkeypatch.setattr("posthouse_cli.demo._COPIED_S", 0.5)
    assert demo.run() == 1
    [failed] = [line for line in said if line.startswith("# the demo FAILED:")]
    assert " doubled" in failed and " 0 doubled" not in failed
    assert not demo._folder.exists()


@pytest.mark.parametrize(
    ("copied", "words"),
    [
        ([b"one\n", b"two\n"], None),
        ([b"one\n"], "1 missing, 0 doubled"),
        ([b"one\n", b"two\n", b"two\n"], "0 missing, 1 doubled"),
        ([b"two\n", b"one\n"], "0 missing, 0 doubled"),
        ([b"one\n", b"two\n", b""], "0 missing, 0 doubled"),
    ],
)
def test_what_was_copied_is_compared_line_by_line(tmp_path, monkeypatch, copied, words):
    monkeypatch.setattr("posthouse_cli.demo._COPIED_S", 0.0)
    file = tmp_path / "a.log"
    file.write_bytes(b"one\ntwo\n")
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as database:
        database.execute("CREATE TABLE line (file, start, text)")
        database.executemany("INSERT INTO line VALUES ('', ?, ?)", enumerate(copied))
    said = []
    if words is None:
        compare([file], said.append)
        assert said == ["a.log: 2 lines written, each copied once"]
    else:
        with pytest.raises(Failed, match=words):
            compare([file], said.append)


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
