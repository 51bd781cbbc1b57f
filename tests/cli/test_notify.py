"""Real SIGUSR1 for a program that is no worker, by the agent of the host that it runs on."""

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from posthouse import BackgroundWorker, EventKind, notified
from posthouse.errors import RefusedError
from posthouse.settings import ClientSettings
from posthouse_agent.vouching import Desk

PATIENCE_S = 60.0
WATCHER = Path(__file__).with_name("watcher.py")


class Watching:
    """The program, and the lines that it has said."""

    def __init__(self, process):
        self.process = process

    def until(self, line):
        while (said := self.line()) != line:
            assert said, "it has ended"

    def line(self):
        assert select.select([self.process.stdout], [], [], PATIENCE_S)[0], "it says nothing"
        return self.process.stdout.readline().decode().strip()

    def lives(self):
        self.process.stdin.write(b"and lives\n")
        self.until("and lives")


@pytest.fixture
def watching(cluster, name):
    with contextlib.ExitStack() as ends:

        def start(host, then="", **variables):
            process = subprocess.Popen(
                [sys.executable, str(WATCHER), name, host, then],
                env={**cluster.command_env(), **variables},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
            )
            ends.enter_context(process)
            ends.callback(process.kill)
            return Watching(process)

        yield start


@pytest.fixture
def client(cluster):
    with cluster.connect() as connected:
        yield connected


@pytest.fixture
def open_folder():
    made = Path(tempfile.mkdtemp(dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def started(client, name, incarnation):
    for event in client.handle(name).events(timeout=PATIENCE_S):
        if event.kind is EventKind.STARTED and event.incarnation == incarnation:
            return event
    raise AssertionError("unregistered")


def test_n1_a_program_gets_sigusr1_at_start_and_end_though_agent_and_master_change(
    cluster, client, watching, name
):
    """PostgreSQL: any backend that says its pid. Here any program on a host with an agent, held by
    boot, pid and start; the worker runs on another host."""
    program = watching("b")
    program.until("SIGUSR1")
    cluster.agent("a").restart()
    cluster.agent("b").restart()
    cluster.master.restart()
    cluster.wait_for_hosts()
    program.lives()
    os.kill(started(client, name, 1).pid, signal.SIGKILL)
    program.until("SIGUSR1")
    started(client, name, 2)
    program.lives()  # what came until now has been said
    client.handle(name).terminate()
    program.until("SIGUSR1")


def test_a_deadly_default_is_refused_with_the_way_out(cluster, client, watching, name):
    program = watching("a", "deadly")
    told = program.line()
    assert "no handler for SIGUSR1, which would end it" in told
    assert "signal.signal(signal.SIGUSR1, handler)" in told
    program.until("registered")
    assert name not in {info.status.name for info in client.workers()}


def test_one_that_becomes_deadly_later_is_not_sent(client, watching, name):
    """Its host's agent gets START after NOTIFY: once the worker runs again, the end is told."""
    program = watching("a", "careless")
    program.until("registered")
    os.kill(started(client, name, 1).pid, signal.SIGKILL)
    started(client, name, 2)
    os.kill(started(client, name, 2).pid, signal.SIGKILL)
    started(client, name, 3)
    program.lives()


def test_a_program_that_has_ended_gets_nothing_and_nobody_minds(client, watching, name):
    program = watching("a")
    program.until("SIGUSR1")
    program.process.kill()
    program.process.wait(PATIENCE_S)
    os.kill(started(client, name, 1).pid, signal.SIGKILL)
    started(client, name, 2)


@pytest.mark.parametrize("there", [False, True])
def test_where_no_agent_answers_it_is_refused(client, tmp_path, there, monkeypatch):
    """No folder of an agent; one whose agent was killed."""
    if there:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(tmp_path / notified.SOCKET))
    settings = ClientSettings(master="tcp://10.0.0.1:1", agent_dir=str(tmp_path))
    with pytest.raises(RefusedError, match="cannot be given SIGUSR1: the agent at") as refused:
        notified.vouched(settings)
    assert "agent_dir of client.toml" in refused.value.hint
    monkeypatch.setenv("POSTHOUSE_DIR", str(tmp_path))
    with pytest.raises(RefusedError, match="no agent of this host was found"):
        notified.vouched(ClientSettings(master="tcp://10.0.0.1:1"))


def test_groups_and_declarations_have_no_registrant(client, name):
    record = BackgroundWorker(name=name, main="jobs:idle", notify=True)
    for ask in (
        lambda: client.register_group(record, 2),
        lambda: client.apply([record], source=name),
    ):
        with pytest.raises(RefusedError, match="registers a single worker") as refused:
            ask()
        assert "handles, events and waits" in refused.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may be somebody else")
def test_another_user_is_told_whose_agent_it_is(open_folder):
    desk = Desk(str(open_folder), "b", bytes(32), "boot")
    path = open_folder / notified.SOCKET
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o666)
    read, write = os.pipe()
    child = os.fork()  # a program would have to be executable for everybody
    if child == 0:
        try:
            os.setuid(65534)
            with socket.socket(socket.AF_UNIX) as asking:
                asking.connect(str(path))
                os.write(write, asking.recv(4096))
        finally:
            os._exit(0)
    os.close(write)
    try:
        assert select.select([desk], [], [], PATIENCE_S)[0]
        desk.serve()
        told = json.loads(os.read(read, 4096))
    finally:
        desk.close()
        os.close(read)
        os.waitpid(child, 0)
    assert "and the agent of host b of root" in told["error"]
