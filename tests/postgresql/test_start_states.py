"""Start states on the real thing (G1-G7): a cluster that follows a hot standby from before its
start over its promotion, crash and return, with workers that are connected to it.

The story is played once; each test looks at what was seen.
"""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from posthouse import (
    DATABASE_CONNECTION,
    SHMEM_ACCESS,
    BackgroundWorker,
    Cluster,
    Cursor,
    EventKind,
    Handle,
    Phase,
    StartTime,
    WorkerState,
)
from posthouse_testing.cluster import LocalCluster

PATIENCE_S = 30.0
pytestmark = pytest.mark.timeout(180)  # whole servers, on a busy machine
WORKERS = """
import json
from posthouse import worker

def idle(arg):
    worker.unblock_signals()
    worker.ready()
    while True:
        worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH, timeout=60.0)
        worker.latch.reset()

def asks(arg):
    '''Asks its server whenever it is woken.'''
    worker.unblock_signals()
    spi = worker.initialize_connection("app")
    while True:
        with spi.transaction():
            ((recovery, read_only),) = spi.execute(
                "SELECT pg_is_in_recovery(), current_setting('transaction_read_only')")
        print(json.dumps([recovery, read_only]), flush=True)
        worker.ready()
        worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH, timeout=60.0)
        worker.latch.reset()
"""


@dataclass
class Seen:
    """What there was to see at each step."""

    states: dict[str, list[str]] = field(default_factory=dict)
    pids: dict[str, list[int | None]] = field(default_factory=dict)
    phase: dict[str, Phase] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    said: dict[str, list[Any]] = field(default_factory=dict)
    phases: list[Phase] = field(default_factory=list)
    place: str = ""


class House:
    """A cluster beside a server, with one worker for each start time."""

    def __init__(self, running: LocalCluster, client: Cluster) -> None:
        self.running, self.client = running, client
        self.handles = [self.register(start_time) for start_time in StartTime]

    def register(self, start_time: StartTime, name: str = "") -> Handle:
        connects = start_time is not StartTime.POSTMASTER_START
        return self.client.register(
            BackgroundWorker(
                name=name or str(start_time),
                main="state_workers:asks" if connects else "state_workers:idle",
                flags=SHMEM_ACCESS | DATABASE_CONNECTION if connects else 0,
                start_time=start_time,
                restart_time=0,
            )
        )

    def note(self, seen: Seen, step: str) -> None:
        found = [handle.status() for handle in self.handles]
        seen.states[step] = [str(status.state) for status in found]
        seen.pids[step] = [status.pid for status in found]
        seen.phase[step] = self.client.phase().phase


@pytest.fixture(scope="module")
def begin(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    @contextlib.contextmanager
    def begin(server: Any) -> Iterator[House]:
        folder = tmp_path_factory.mktemp("states")
        (folder / "state_workers.py").write_text(WORKERS)
        (folder / "agent.toml").write_text(f'[databases.app]\nurl = "{server.url}"\n')
        env = {"POSTHOUSE_CLUSTER__FOLLOW": server.url}
        with LocalCluster(hosts=(), path=[folder], env=env) as running:
            running.start_host("a", "--config", str(folder / "agent.toml"))
            running.wait_for_hosts()
            with running.connect() as client:
                yield House(running, client)

    return begin


def until(true: Callable[[], Any]) -> Any:
    end_s = time.monotonic() + PATIENCE_S
    while not (found := true()):
        assert time.monotonic() < end_s
        time.sleep(0.02)
    return found


def lines(handle: Handle) -> list[Any]:
    return [json.loads(line) for line in handle.output().text.splitlines() if line.startswith("[")]


@pytest.fixture(scope="module")
def story(pair_of_module: Any, begin: Any) -> Seen:
    primary, standby = pair_of_module
    seen = Seen(place=f"PostgreSQL at {standby.folder}:{standby.port}")
    with begin(standby) as house:
        first, second, third = house.handles

        # Nothing is up.
        first.wait_for_ready(timeout=PATIENCE_S)
        until(lambda: "is not reachable" in second.status().reason)
        seen.why["down"] = second.status().reason
        seen.why["explained"] = house.client.explain("recovery_finished").reason
        seen.said["hosts"] = [house.running.run("hosts").stderr]
        house.note(seen, "down")

        # A worker ends, and one is registered, while it is down.
        os.kill(first.pid() or 0, signal.SIGKILL)
        until(lambda: first.status().incarnation == 2 and first.status().pid)
        house.register(StartTime.POSTMASTER_START, "late").wait_for_ready(timeout=PATIENCE_S)

        # A hot standby.
        primary.start()
        standby.start()
        second.wait_for_ready(timeout=PATIENCE_S)
        seen.why["hot_standby"] = third.status().reason
        house.note(seen, "hot_standby")

        # Promoted.
        standby.promote()
        third.wait_for_ready(timeout=PATIENCE_S)
        second.set_latch()
        until(lambda: len(lines(second)) == 2)
        house.note(seen, "running")

        # Crashed: every process of the server at once.
        pid = standby.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for one in (pid, *map(int, children)):
            os.kill(one, signal.SIGKILL)
        standby.process.wait(PATIENCE_S)
        standby.process = None
        until(lambda: house.client.phase().phase is Phase.STARTING)
        house.note(seen, "crashed")
        second.set_latch()  # it finds its connection lost, ends, and waits for the server
        until(lambda: "waits for consistent_state" in second.status().reason)
        seen.why["crashed"] = second.status().reason
        house.running.master.restart()
        until(lambda: house.client.phase().phase is Phase.STARTING)
        house.note(seen, "new_master")

        # Back.
        (standby.data / "postmaster.pid").unlink(missing_ok=True)
        standby.start()
        until(lambda: second.status().incarnation == 2 and second.status().pid)
        until(lambda: len(lines(second)) == 3)
        house.note(seen, "back")
        seen.said["second"] = lines(second)
        seen.said["third"] = lines(third)
        with house.client.events(after=Cursor(0, 0), follow=False) as stream:
            seen.phases = [event.phase for event in stream if event.kind is EventKind.PHASE]
    return seen


STARTED, WAITS = str(WorkerState.STARTED), str(WorkerState.NOT_YET_STARTED)
STOPPED = str(WorkerState.STOPPED)


def test_g1_before_a_server_is_consistent_only_postmaster_start(story: Seen) -> None:
    assert story.states["down"] == [STARTED, WAITS, WAITS]
    assert story.phase["down"] is Phase.STARTING
    assert story.why["down"].startswith(
        f"waits for consistent_state: {story.place} is not reachable: "
    )
    assert "waits for recovery_finished: " in story.why["explained"]
    assert f"the phase of the cluster is starting: {story.place}" in story.said["hosts"][0]


def test_g2_a_hot_standby_starts_consistent_state_for_reading(story: Seen) -> None:
    assert story.states["hot_standby"] == [STARTED, STARTED, WAITS]
    assert story.phase["hot_standby"] is Phase.HOT_STANDBY
    assert story.said["second"][0] == [True, "on"]
    assert story.why["hot_standby"] == (
        f"waits for recovery_finished: {story.place} is in recovery"
    )


def test_g3_only_its_promotion_starts_recovery_finished(story: Seen) -> None:
    assert story.states["running"] == [STARTED, STARTED, STARTED]
    assert story.phase["running"] is Phase.RUNNING
    assert story.said["third"][0] == [False, "off"]


def test_g5_no_phase_stops_anybody_and_a_restart_is_gated_anew(story: Seen) -> None:
    """Neither promotion nor crash; the same connection reads on the primary that it was promoted
    to. Who ends by the lost connection waits for the server, whatever its restart_time."""
    assert story.pids["running"][:2] == story.pids["hot_standby"][:2]
    assert story.said["second"][1] == [False, "off"]
    assert story.states["crashed"] == [STARTED, STARTED, STARTED]
    assert story.pids["crashed"] == story.pids["running"]
    assert "; waits for consistent_state: " in story.why["crashed"]
    assert story.states["new_master"] == [STARTED, STOPPED, STARTED]
    assert story.states["back"] == [STARTED, STARTED, STARTED]
    assert story.said["second"][2] == [False, "off"]  # over a connection of its own, anew


def test_g7_each_new_phase_exit_and_registration_leads_to_starts(story: Seen) -> None:
    """An exit and a registration while it was down did (the story waited for both), and the
    phases did, each once: it is a crash that leads back."""
    assert story.pids["down"][0] != story.pids["hot_standby"][0]
    assert story.phases == [Phase.HOT_STANDBY, Phase.RUNNING, Phase.STARTING, Phase.RUNNING]


def test_g4_in_a_shutdown_not_even_a_promotion_starts_anything(pair: Any, begin: Any) -> None:
    primary, standby = pair
    with begin(standby) as house:
        primary.start()
        standby.start()
        _, second, third = house.handles
        second.wait_for_ready(timeout=PATIENCE_S)
        waited = house.running.run("shutdown", "-m", "smart", "--timeout", "0.3")
        assert waited.returncode == 5, waited
        standby.promote()
        until(lambda: not in_recovery(standby))
        second.set_latch()
        until(lambda: lines(second)[-1] == [False, "off"])
        assert third.status().state is WorkerState.NOT_YET_STARTED
        assert "shut" in third.status().reason
        assert house.running.run("shutdown", "-m", "fast").returncode == 0


def in_recovery(server: Any) -> bool:
    import psycopg

    with psycopg.connect(server.url) as connection:
        ((found,),) = connection.execute("SELECT pg_is_in_recovery()").fetchall()
    return bool(found)


def test_g6_a_plain_primary_goes_straight_through(primary: Any, begin: Any) -> None:
    primary.start()
    with begin(primary) as house:
        for handle in house.handles:
            handle.wait_for_ready(timeout=PATIENCE_S)
        with house.client.events(after=Cursor(0, 0), follow=False) as stream:
            phases = [event.phase for event in stream if event.kind is EventKind.PHASE]
        assert phases == [Phase.RUNNING]
