"""100 workers that fail in a loop, for real: others are served and restarted in their turn.

What is judged is the order of events in the log, not time: a turn is over when a loop has been
started a second time."""

import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from posthouse import BackgroundWorker, Cluster, Cursor, Event, EventKind, Handle
from posthouse_testing.cluster import LocalCluster

MODULE = """
from posthouse import worker

def fail(arg):
    raise SystemExit(1)

def idle(arg):
    worker.unblock_signals()
    while True:
        worker.latch.wait(timeout=60.0)
"""
LOOPS = 100
CALLS = 9
CALM = ("calm", "quiet", "still")


def turns(events: list[Event]) -> int:
    """How often the loop that was started most often was."""
    starts = Counter(e.name for e in events if e.kind is EventKind.STARTING and e.name[0] == "f")
    return max(starts.values(), default=0)


def between(cluster: Cluster, first: Cursor, handle: Handle, kind: EventKind) -> list[Event]:
    """All that the log has after `first`, up to an event of a worker."""
    found: list[Event] = []
    for event in cluster.events(after=first, timeout=30):
        found.append(event)
        if event.kind is kind and event.handle_id == handle.id:
            break
    return found


@pytest.fixture
def storm(tmp_path: Path):
    (tmp_path / "stormy.py").write_text(MODULE)
    with LocalCluster(hosts=("a",), path=[tmp_path]) as cluster, cluster.connect() as client:
        for name in CALM:
            client.register(BackgroundWorker(name=name, main="stormy:idle", restart_time=0))
        loops = [
            client.register(BackgroundWorker(name=f"f{n}", main="stormy:fail", restart_time=0))
            for n in range(LOOPS)
        ]
        for loop in loops:  # each has failed again and again, and none is healthy
            for event in loop.events(after=Cursor(client.timeline, 0), timeout=30):
                if event.kind is EventKind.EXITED and (event.incarnation or 0) >= 3:
                    break
        for name in CALM:
            client.handle(name).wait_for_startup(timeout=30)
        yield client


def test_t3_100_failing_loops_leave_calls_and_the_restarts_of_others_their_turn(storm) -> None:
    for name in CALM:  # each once: who fails twice in a row is one of the storm itself
        calm, before = storm.handle(name), storm.cursor()
        os.kill(calm.status().pid, signal.SIGKILL)
        told = between(storm, before, calm, EventKind.EXITED)
        assert told[-1].exit.signal == signal.SIGKILL
        assert turns(between(storm, told[-1].cursor, calm, EventKind.STARTED)) <= 1

    waited = []
    for number in range(CALLS):
        before = storm.cursor()
        made = storm.register(BackgroundWorker(name=f"new{number}", main="stormy:idle"))
        waited.append(turns(between(storm, before, made, EventKind.REGISTERED)))
        assert made.terminate()
        assert made.wait_until_unregistered(timeout=30).final
    # A machine that is busy may take one client off its processor for long; not half the time.
    assert sorted(waited)[CALLS // 2] <= 1, waited

    after = storm.cursor()
    assert any(event.name[:1] == "f" for event in storm.events(after=after, timeout=30))
