"""The journal file: whole lines or none, whatever the disk does."""

import os
import resource
import signal
import subprocess

import pytest

from posthouse_agent import orders
from posthouse_agent.journal import Head, Journal, read_journal
from posthouse_agent.warden_core import recover
from posthouse_agent.warden_effects import (
    Confirmed,
    Exited,
    Intent,
    Mark,
    NotForked,
    ReadyNoted,
    Started,
    Stopping,
)

HEAD = Head(boot_id="boot", instance="1" * 32)
INTENT = Intent(token=1, registry="9f" * 16, slot=0, generation=1, incarnation=1, revision=1)
ENTRIES = [
    INTENT,
    Started(token=1, pid=5, pid_start=7, started_unix_s=1.5),
    ReadyNoted(token=1),
    Stopping(token=1, reason="hold"),
    Exited(token=1, facts={"cause": "exited", "output_tail": 'd\u00e9j\u00e0 "vu"\n\\\U0001f600'}),
    NotForked(token=2),
    Confirmed(tokens=[1]),
    Mark(slot=3, token=4),
]


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "journal")


@pytest.fixture
def journal(path):
    made = Journal(path, HEAD)
    made.rewrite([])
    yield made
    os.close(made._fd)


def test_all_entries_come_back(journal, path):
    for entry in ENTRIES:
        journal.append(entry)
    assert read_journal(path) == (HEAD, ENTRIES, 0)
    journal.rewrite(ENTRIES[:2])
    journal.append(ENTRIES[2])
    assert read_journal(path) == (HEAD, ENTRIES[:3], 0)


def test_no_journal(path):
    assert read_journal(path) == (None, [], 0)


@pytest.mark.parametrize("cut", [1, 10, 30])
def test_last_line_that_was_being_written_is_dropped(journal, path, cut):
    for entry in ENTRIES[:2]:
        journal.append(entry)
    os.truncate(path, os.path.getsize(path) - cut)
    assert read_journal(path) == (HEAD, ENTRIES[:1], 0)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"7",
        b'{"op":"Intent"}',
        b'{"op":"Unheard"}',
        b'{"op":[]}',
        b"[" * 100_000,
        b"\0" * 4096,
    ],
)
def test_lines_without_sense_cost_only_themselves(journal, path, line):
    journal.append(ENTRIES[0])
    with open(path, "ab") as file:
        file.write(line + b"\n")
    journal.append(ENTRIES[1])
    assert read_journal(path) == (HEAD, ENTRIES[:2], 1)


def test_fields_of_a_newer_version_are_left_out(journal, path):
    journal.append(INTENT)
    with open(path, "r+") as file:
        text = file.read().replace('"slot":0', '"slot":0,"colour":"red"')
        file.seek(0)
        file.write(text)
    assert read_journal(path) == (HEAD, [INTENT], 0)


def test_full_disk_leaves_no_half_line(journal, path):
    """RLIMIT_FSIZE in place of a full disk: the write is cut short in the middle of the line."""
    journal.append(INTENT)
    size = os.path.getsize(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
    try:
        with pytest.raises(OSError, match="No space left"):
            journal.append(ENTRIES[1])
        assert journal.behind
        assert os.path.getsize(path) == size
        with pytest.raises(OSError, match="still missing"):
            journal.append(ENTRIES[2])  # nothing may overtake what is missing
        assert not journal.make_room(1)
        with pytest.raises(OSError):
            journal.rewrite(ENTRIES)
        assert read_journal(path) == (HEAD, [INTENT], 0)  # the old one stays
        assert not os.path.exists(path + ".new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    journal.rewrite(ENTRIES[:3])
    assert not journal.behind
    assert read_journal(path) == (HEAD, ENTRIES[:3], 0)


def test_room_is_taken_and_given_back(journal, path):
    assert journal.make_room(1000)
    assert os.stat(path).st_blocks * 512 >= 60_000
    assert os.path.getsize(path) < 1000
    journal.append(INTENT)
    assert read_journal(path) == (HEAD, [INTENT], 0)


def test_it_asks_for_a_rewrite_when_it_has_grown(journal):
    assert not journal.wants_rewrite
    facts = {"output_tail": "x" * 4000}
    for token in range(300):
        journal.append(Exited(token=token, facts=facts))
    assert journal.wants_rewrite
    journal.rewrite([])
    assert not journal.wants_rewrite


def test_recovery_of_a_whole_life():
    recovered = recover(ENTRIES[:4], rebooted=False)
    (lost,) = recovered.lost
    assert (lost.pid, lost.pid_start, lost.ready, lost.stop) == (5, 7, True, "hold")
    (exited,) = recover(ENTRIES[:5], rebooted=False).exits
    assert exited.facts == ENTRIES[4].facts
    assert recover(ENTRIES, rebooted=False).highest == {0: 1, 3: 4}
    assert not recover(ENTRIES, rebooted=False).exits


# --- with a warden ---


def test_warden_with_a_torn_journal(host, agent):
    forked = host.begin(agent, "idle")
    gone = host.run(agent, "leave", 4)
    host.kill()
    path = host.home / "journal"
    lines = path.read_bytes().splitlines(keepends=True)
    lines.insert(2, b"\x00\x00 not a line\n")
    path.write_bytes(b"".join(lines) + b'{"op":"Exited","tok')
    host.start()
    exits = {r.token: r for r in host.connect().attach() if isinstance(r, orders.Ended)}
    assert exits[gone.token].facts == gone.facts
    assert exits[forked.token].facts["cause"] == "warden_died"
    assert "journal: 1 lines make no sense" in host.warden_log()


def test_warden_with_a_headless_journal_kills_by_the_lock_only(host, agent, alive):
    """Without a boot id, pids of the journal mean nothing; the lock still does."""
    forked = host.begin(agent, "no_posthouse_death")
    host.kill()
    path = host.home / "journal"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[1:]))
    host.start()
    assert not alive(forked.pid, forked.pid_start)
    exits = [r for r in host.connect().attach() if isinstance(r, orders.Ended)]
    assert [e.token for e in exits] == [forked.token]


def test_pid_that_is_somebody_else_s_now_is_not_killed(host, agent, alive):
    """The journal names a pid that a stranger has: the start time tells."""
    forked = host.begin(agent, "idle")
    host.kill()
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        path = host.home / "journal"
        path.write_text(path.read_text().replace(f'"pid":{forked.pid}', f'"pid":{stranger.pid}'))
        host.start()
        assert stranger.poll() is None
        (ended,) = [r for r in host.connect().attach() if isinstance(r, orders.Ended)]
        assert ended.facts["pid"] == stranger.pid
    finally:
        stranger.kill()
        stranger.wait()


def test_journal_is_compacted_while_the_warden_runs(host, agent):
    idle = host.begin(agent, "idle")
    gone = host.run(agent, "leave", 7)
    path = host.home / "journal"
    inode = path.stat().st_ino
    for _ in range(30):
        batch = [host.order("fail_long") for _ in range(10)]
        for order in batch:
            agent.give(order)
        for order in batch:
            agent.expect(orders.Ended, order.token)
        agent.give(orders.Confirm(tokens=[order.token for order in batch]))
        if path.stat().st_ino != inode:
            break
    assert path.stat().st_ino != inode
    host.kill()
    host.start()
    exits = {r.token: r for r in host.connect().attach() if isinstance(r, orders.Ended)}
    assert exits[gone.token].facts == gone.facts
    assert exits[idle.token].facts["cause"] == "warden_died"
    assert exits[idle.token].facts["pid"] == idle.pid
