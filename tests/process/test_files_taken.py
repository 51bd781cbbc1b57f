"""Files of a warden that somebody deletes while it runs are made anew, and nothing is lost."""

import os
import signal

import pytest

from posthouse_agent import procfs
from posthouse_agent.orders import Ended, Forked, SignalWorker


@pytest.fixture
def running(host, agent):
    return [host.begin(agent, "open_idle") for _ in range(2)]


def test_a_deleted_socket_comes_back_and_the_next_agent_finds_its_workers(
    host, agent, running, eventually
):
    os.unlink(host.socket_path)
    agent.close()
    eventually(lambda: os.path.exists(host.socket_path))
    snapshot = host.connect().attach()
    assert [r.pid for r in snapshot if isinstance(r, Forked)] == [f.pid for f in running]
    assert "warden.sock was deleted, and is made anew" in host.warden_log()
    assert os.stat(host.socket_path).st_mode & 0o777 == 0o600


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_journal_that_was_taken_is_written_anew(host, agent, running, eventually, how):
    """Else the next warden would know nothing of these workers, nor of exits that wait."""
    journal = host.home / "journal"
    gone = host.run(agent, "leave", 7)
    text = journal.read_text()
    journal.unlink()
    if how == "replaced":
        journal.write_text("somebody else's words\n")
    eventually(lambda: journal.exists() and procfs.boot_id() in journal.read_text())
    assert journal.read_text().splitlines()[0] == text.splitlines()[0]
    agent.give(SignalWorker(token=running[0].token, signal=signal.SIGKILL))
    agent.expect(Ended, running[0].token)
    host.kill()
    exits = {r.token: r for r in host.start().connect().attach() if isinstance(r, Ended)}
    assert exits[gone.token].facts == gone.facts
    assert exits[running[0].token].facts["signal"] == signal.SIGKILL
    assert exits[running[1].token].facts["cause"] == "warden_died"
    assert len(exits) == 3


def test_starts_go_on_while_the_journal_is_gone(host, agent):
    (host.home / "journal").unlink()
    for _ in range(5):
        assert host.run(agent, "nothing").facts["code"] == 0
