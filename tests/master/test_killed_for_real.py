"""A master process that is killed by SIGKILL in the midst of an SQL statement, with real hosts,
workers and clients. Every statement is tried in tests/sim/test_crash_points.py; this is a sample
that shows that a real process leaves what is assumed there."""

import os
import signal
import sys
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from posthouse import BackgroundWorker, Cursor, EventKind, WorkerState
from posthouse.errors import RefusedError
from posthouse_testing.cluster import LocalCluster

EXAMPLES = Path(__file__).parents[2] / "examples"
KILLED = """
import os, signal, sqlite3, sys

class Connection(sqlite3.Connection):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.set_trace_callback(count)

def count(statement):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

left = int(sys.argv.pop(1))
sqlite3.connect = lambda *a, **n: Connection(*a, **n)
from posthouse_cli.main import main
main()
"""


class Keeper:
    """Starts the master again, once, as systemd would."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.status: int | None = None
        self._cluster = cluster
        self._thread = threading.Thread(target=self._keep)
        self._thread.start()

    def _keep(self) -> None:
        master = self._cluster.master
        self.status = master.wait(timeout=60)
        master.argv[3] = "0"
        master.start()

    def end(self) -> int | None:
        self._thread.join(timeout=30)
        return self.status


# Until the host is there it takes some 70 statements, and then come seven or more to a transaction.
@pytest.mark.parametrize("statement", [90, 131, 172])
def test_d13_handles_and_workers_outlive_a_master_killed_in_a_statement(statement):
    """PostgreSQL: handles die with the postmaster, and so does every worker. Here a handle names
    its registration for ever, and the workers never notice."""
    cluster = LocalCluster(hosts=("a",), path=[EXAMPLES])
    argv = cluster.master.argv
    argv[:] = [sys.executable, "-c", KILLED, str(statement), *argv[argv.index("master") :]]
    with cluster, cluster.connect(timeout=40) as client:
        keeper = Keeper(cluster)
        handle = client.register(BackgroundWorker(name="w", main="beat:main", restart_time=0.1))
        first = handle.wait_for_startup(timeout=40)
        os.kill(first.pid, signal.SIGKILL)
        events = handle.events(after=Cursor(0, 0), timeout=40)
        seen = []
        for event in events:
            seen.append(event)
            if event.kind is EventKind.STARTED and event.incarnation == 2:
                break
        handle.hold()
        handle.wait_for_shutdown(timeout=40)
        handle.release()
        steady = client.register(BackgroundWorker(name="steady", main="beat:main"))
        pid = steady.wait_for_startup(timeout=40).pid
        handle.terminate()
        seen += list(events)
        while cluster.master.argv[3] != "0":  # the run may be shorter than the number
            with suppress(RefusedError):  # its host is not back yet
                steady.signal("URG")
        assert keeper.end() == -signal.SIGKILL
        assert steady.status(timeout=40).pid == pid
        assert steady.status().state is WorkerState.STARTED
        rows = list(client.events(after=Cursor(0, 0), follow=False))
        own = [row for row in rows if row.name == "w"]
    # What the watcher was told, with the master killed in between, is what is kept, each row once.
    assert [row.sequence for row in seen] == [row.sequence for row in own]
    assert (own[0].kind, own[-1].kind) == (EventKind.REGISTERED, EventKind.UNREGISTERED)
    ends = Counter(r.incarnation for r in own if r.kind is EventKind.EXITED)
    starts = Counter(r.incarnation for r in own if r.kind is EventKind.STARTED)
    assert ends == starts and set(ends.values()) == {1}
    tokens = [row.token for row in rows if row.kind is EventKind.STARTING]
    assert tokens == sorted(set(tokens))
