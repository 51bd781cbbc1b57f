"""Real agents, wardens, workers and a real master: who may be killed, and what must not happen.

The workers themselves write down each start (agent_jobs). From that file and the event log:
each start is told once, with its pid; each end is told once; no token ever ran twice.
"""

import os
import random
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from posthouse import BackgroundWorker, Cluster, Event, EventKind, Handle
from posthouse_testing.cluster import LocalCluster

HERE = Path(__file__).parent
TERMINAL = (EventKind.EXITED, EventKind.START_FAILED)
LIFE = (EventKind.STARTING, EventKind.STARTED, EventKind.READY, *TERMINAL)
Eventually = Callable[..., Any]


class Ran(NamedTuple):
    token: int
    incarnation: int
    pid: int
    name: str


class House:
    """One host, what the workers of one test wrote down, and what the log told meanwhile."""

    def __init__(self, cluster: LocalCluster, client: Cluster, name: str) -> None:
        self.cluster = cluster
        self.client = client
        self.name = name
        self.agent = cluster.agent("a")
        self.record = cluster.dir / f"{name}.record"
        self.handles: list[Handle] = []
        self.events: list[Event] = []
        self._cursor = client.cursor()

    def run(
        self, name: str, function: str, *, restart_time: float = 0.1, arg: Any = None
    ) -> Handle:
        spec = BackgroundWorker(
            name=f"{self.name}.{name}",
            main=f"agent_jobs:{function}",
            main_arg=str(self.record) if arg is None else arg,
            restart_time=restart_time,
        )
        self.handles.append(self.client.register(spec))
        return self.handles[-1]

    def steady(self, count: int) -> dict[Handle, int]:
        """Workers that are up and ready, with their pids."""
        handles = [self.run(f"steady{number}", "steady") for number in range(count)]
        found = {}
        for handle in handles:
            pid = handle.wait_for_ready(timeout=20).pid
            assert pid is not None
            found[handle] = pid
        return found

    def read(self) -> list[Event]:
        """What the log has told until now; called often, because it is trimmed."""
        for event in self.client.events(after=self._cursor, follow=False):
            self._cursor = event.cursor
            if event.name.startswith(f"{self.name}."):
                self.events.append(event)
        return self.events

    def ran(self) -> list[Ran]:
        if not self.record.exists():
            return []
        found = []
        for line in self.record.read_text().splitlines():
            token, incarnation, pid, name = line.split()
            found.append(Ran(int(token), int(incarnation), int(pid), name))
        return found

    def of(self, kind: EventKind, handle: Handle | None = None) -> list[Event]:
        return [
            event
            for event in self.read()
            if event.kind is kind and (handle is None or handle.id == event.handle_id)
        ]

    def check(self) -> None:
        """Nothing lost, nothing doubled, everything in order."""
        events = self.read()
        lives: dict[int, list[Event]] = defaultdict(list)
        for event in events:
            if event.token is not None and event.kind in LIFE:
                lives[event.token].append(event)
        for token, life in lives.items():
            kinds = [event.kind for event in life]
            assert kinds[0] is EventKind.STARTING, (token, kinds)
            assert len(kinds) == len(set(kinds)), (token, kinds)
            ends = [kind for kind in kinds if kind in TERMINAL]
            assert len(ends) <= 1, (token, kinds)
            assert not ends or kinds[-1] in TERMINAL, (token, kinds)
        ran = self.ran()
        tokens = [line.token for line in ran]
        assert len(tokens) == len(set(tokens)), "a token ran twice"
        for line in ran:
            started = [e for e in lives[line.token] if e.kind is EventKind.STARTED]
            if not started:  # it wrote its line and its STARTED is still on its way
                assert lives[line.token][-1].kind is EventKind.STARTING
                continue
            if started[0].pid is None:  # its warden was killed between the fork and writing it down
                assert lives[line.token][-1].exit.cause == "warden_died"
                continue
            assert started[0].pid == line.pid

    def settle(self, handles: list[Handle]) -> None:
        """All of them are ended and unregistered."""
        for handle in handles:
            handle.terminate(timeout=20)
            self.handles.remove(handle)
        for handle in handles:
            handle.wait_until_unregistered(timeout=20)


@pytest.fixture(scope="module")
def shared() -> Iterator[LocalCluster]:
    with LocalCluster(hosts=("a",), path=[HERE / "workers"]) as cluster:
        yield cluster


@pytest.fixture
def house(shared: LocalCluster, request: pytest.FixtureRequest) -> Iterator[House]:
    """A test's own workers on a shared host, which it leaves up."""
    with shared.connect() as client:
        made = House(shared, client, request.node.name[5:60])
        yield made
        for daemon in (shared.master, made.agent):
            if not daemon.alive:
                daemon.start()
        shared.wait_for_hosts()
        made.settle(list(made.handles))


@pytest.fixture
def doomed() -> Iterator[House]:
    """A host of its own for a test that breaks it."""
    with LocalCluster(hosts=("a",), path=[HERE / "workers"]) as cluster, cluster.connect() as c:
        yield House(cluster, c, "doomed")


def alive(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


# --- agents ---


def kill_agents(house: House, eventually: Eventually, rounds: int) -> None:
    dice = random.Random(rounds)
    steady = house.steady(3)
    churning = [house.run(f"churn{number}", "churn", restart_time=0.05) for number in range(3)]
    for number in range(rounds):
        if number % 2:
            time.sleep(dice.choice([0.0, 0.05, 0.2, 0.4]))  # in any phase of its own start
        else:
            ran = len(house.ran())  # in the middle of starts
            eventually(lambda ran=ran: len(house.ran()) > ran)
            time.sleep(dice.choice([0.0, 0.001, 0.01]))
        house.agent.kill()
        if number % 20 == 10:  # and its files are gone, and those by which it finds its warden
            folder = house.cluster.host_dir("a")
            for name in ("agent.lock", "fenced/warden.sock", "fenced/journal"):
                (folder / name).unlink()
        house.agent.start()
        house.read()
    house.cluster.wait_for_hosts()
    house.settle(churning)
    for handle, pid in steady.items():
        status = handle.status(timeout=20)
        assert (status.pid, status.incarnation, status.ready) == (pid, 1, True)
        assert alive(pid)
    house.check()
    # What ran and failed was told so, each start of it; nothing was told that never ran.
    told = {e.token: e for e in house.of(EventKind.EXITED) if e.exit and e.exit.code == 1}
    churned = [line for line in house.ran() if "churn" in line.name]
    assert len(churned) > rounds / 2
    assert set(told) == {line.token for line in churned}
    assert all(told[line.token].exit.pid == line.pid for line in churned)


@pytest.mark.timeout(120)
def test_an_agent_that_is_killed_again_and_again_touches_no_worker(
    house: House, eventually: Eventually
) -> None:
    kill_agents(house, eventually, 20)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_agent_that_is_killed_two_hundred_times(house: House, eventually: Eventually) -> None:
    kill_agents(house, eventually, 200)


def test_term_ends_the_agent_alone_and_says_goodbye(house: House, eventually: Eventually) -> None:
    steady = house.steady(2)
    assert house.agent.terminate() == 0
    # The goodbye, not three seconds of silence, tells the master.
    eventually(lambda: not house.client.hosts()[0].reachable)
    assert all(alive(pid) for pid in steady.values())
    assert all(not handle.status().reachable for handle in steady)
    house.agent.start()
    house.cluster.wait_for_hosts()
    assert {handle: handle.status().pid for handle in steady} == steady


def test_an_exit_while_there_is_no_agent_is_told_by_the_next_one(
    house: House, eventually: Eventually
) -> None:
    (handle, pid), *_ = house.steady(1).items()
    house.agent.kill()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid))
    house.agent.start()
    eventually(lambda: handle.status().incarnation == 2)
    (exited,) = house.of(EventKind.EXITED)
    assert (exited.exit.signal, exited.exit.pid, exited.incarnation) == (9, pid, 1)
    house.check()


def test_a_stopped_agent_is_missed_and_comes_back_without_harm(
    house: House, eventually: Eventually
) -> None:
    steady = house.steady(2)
    house.agent.signal(signal.SIGSTOP)
    eventually(lambda: not house.client.hosts()[0].reachable)
    house.agent.signal(signal.SIGCONT)
    eventually(lambda: house.client.hosts()[0].reachable)
    assert {handle: handle.status().pid for handle in steady} == steady
    house.check()


def test_a_killed_master_is_found_again(house: House, eventually: Eventually) -> None:
    steady = house.steady(2)
    house.cluster.master.restart()
    house.cluster.wait_for_hosts()
    assert {handle: handle.status().pid for handle in steady} == steady
    house.check()


# --- wardens ---


def test_a_killed_warden_takes_its_workers_along_and_each_is_told(
    house: House, eventually: Eventually
) -> None:
    steady = house.steady(4)
    warden = house.cluster.warden_pid("a")
    os.kill(warden, signal.SIGKILL)
    eventually(lambda: not any(alive(pid) for pid in steady.values()))
    for handle in steady:
        eventually(lambda handle=handle: handle.status().incarnation == 2)
    exits = house.of(EventKind.EXITED)
    assert sorted(e.exit.pid for e in exits) == sorted(steady.values())
    assert {e.exit.cause for e in exits} == {"warden_died"}
    assert house.cluster.warden_pid("a") != warden
    assert house.agent.alive
    house.check()


def test_warden_and_agent_killed_at_once(house: House, eventually: Eventually) -> None:
    steady = house.steady(3)
    churning = house.run("churn", "churn", restart_time=0.02)
    eventually(lambda: len(house.ran()) > 5)
    os.kill(house.cluster.warden_pid("a"), signal.SIGKILL)
    house.agent.restart()
    for handle in steady:
        eventually(lambda handle=handle: handle.status().incarnation == 2)
    house.settle([churning])
    exits = [e for handle in steady for e in house.of(EventKind.EXITED, handle)]
    assert [e.exit.cause for e in exits] == ["warden_died"] * 3
    house.check()


@pytest.mark.timeout(120)
def test_wardens_killed_in_the_middle_of_starts(house: House, eventually: Eventually) -> None:
    churning = [house.run(f"churn{number}", "churn", restart_time=0.0) for number in range(3)]
    for number in range(5):
        wanted = len(house.ran()) + 10 + number
        eventually(lambda wanted=wanted: len(house.ran()) >= wanted)
        os.kill(eventually(lambda: warden_of(house)), signal.SIGKILL)
        house.read()
    house.settle(churning)
    house.check()
    ended = {e.token for e in house.of(EventKind.EXITED)}
    assert {line.token for line in house.ran()} <= ended


def warden_of(house: House) -> int | None:
    try:
        return house.cluster.warden_pid("a")
    except LookupError:
        return None


def test_term_to_the_warden_ends_its_workers_in_order(house: House, eventually: Eventually) -> None:
    (handle, pid), *_ = house.steady(1).items()
    os.kill(house.cluster.warden_pid("a"), signal.SIGTERM)
    eventually(lambda: handle.status().incarnation == 2)
    (exited,) = house.of(EventKind.EXITED)
    assert exited.exit.pid == pid
    assert exited.exit.cause != "warden_died"  # it was there to see the end
    house.check()


# --- folders and locks ---


def test_a_second_agent_on_the_same_folder_is_refused(house: House) -> None:
    second = house.cluster.run(*house.agent.argv[4:], timeout=20)
    assert second.returncode == 1
    assert "another agent runs here" in second.stderr
    assert f"pid {house.agent.pid}" in second.stderr
    assert house.client.hosts()[0].reachable


def test_a_second_agent_of_the_same_name_elsewhere_is_not_taken_in(
    house: House, eventually: Eventually
) -> None:
    steady = house.steady(1)
    other = house.cluster.dir / "hosts" / "x"
    argv = ["--runtime-dir", str(other), "--log-dir", str(house.cluster.dir / "x")]
    stranger = house.cluster._daemon("stranger", "agent", *house.agent.argv[7:], *argv)
    stranger.start()
    try:
        eventually(lambda: "host_taken" in stranger.log.read_text())
        assert {handle: handle.status().pid for handle in steady} == steady
    finally:
        stranger.close()


def test_the_agents_lock_may_be_deleted(house: House, eventually: Eventually) -> None:
    steady = house.steady(1)
    (house.cluster.host_dir("a") / "agent.lock").unlink()
    house.agent.restart()
    house.cluster.wait_for_hosts()
    assert {handle: handle.status().pid for handle in steady} == steady


def test_the_runtime_folder_deleted_underneath(doomed: House, eventually: Eventually) -> None:
    """Agent and warden are connected and need no name: work goes on. The agent's lock comes back;
    the warden's socket does not, so the next agent ends that warden before it starts another:
    whatever happens, nothing runs twice."""
    steady = doomed.steady(2)
    churning = doomed.run("churn", "churn", restart_time=0.05)
    warden = doomed.cluster.warden_pid("a")
    lock = doomed.cluster.host_dir("a") / "agent.lock"
    shutil.rmtree(doomed.cluster.host_dir("a"))
    before = len(doomed.ran())
    eventually(lambda: len(doomed.ran()) > before + 5)
    eventually(lambda: lock.exists() and lock.read_text() == f"{doomed.agent.pid}\n")
    assert "another agent" in doomed.cluster.run(*doomed.agent.argv[4:]).stderr
    assert {handle: handle.status().pid for handle in steady} == steady
    doomed.agent.restart()
    eventually(lambda: not alive(warden))
    assert not any(alive(pid) for pid in steady.values())
    for handle in steady:
        eventually(lambda handle=handle: handle.status().incarnation == 2)
        eventually(lambda handle=handle: alive(handle.status().pid or 0))
    doomed.settle([churning])
    doomed.check()
