"""kill -9 of the master before every SQL statement of a scripted run, over the real store.

The cores, hosts and clients are those of the simulator, so each run checks every invariant that the
simulator checks (3, 4, 5, 7, 8, 9, 10, 11, 13, 21 and liveness among them). The registry is a real
SQLite file. What kill -9 leaves of it is what was written to its files by then, so the folder is
copied at that moment, and the next master opens the copy.
"""

import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from posthouse.errors import StoreError
from posthouse.messages import Hold, Release, Restart, Shutdown
from posthouse.states import NEVER_RESTART, EventKind, ShutdownMode
from posthouse_master import eventlog
from posthouse_master.store.base import Op, Snapshot, Term
from posthouse_master.store.sqlite import SqliteStore
from posthouse_testing.sim.run import Failure, Simulation
from posthouse_testing.sim.world import Knobs

pytestmark = pytest.mark.timeout(300)  # seconds of a processor, on a busy machine

SHOWN = 24  # points of the default suite, spread over all of them


class Killed(StoreError):
    """The process is gone in the middle of a statement; nobody hears of it."""


class Statements(sqlite3.Connection):
    """Counts the statements that SQLite begins; the kill is seen by whoever called it."""

    machine: "Machine"

    def __init__(self, *arguments, **named) -> None:
        super().__init__(*arguments, **named)
        self.set_trace_callback(self.machine.begins)

    def execute(self, *arguments):
        found = super().execute(*arguments)
        self.machine.done()
        return found

    def executemany(self, *arguments):
        found = super().executemany(*arguments)
        self.machine.done()
        return found

    def executescript(self, *arguments):
        found = super().executescript(*arguments)
        self.machine.done()
        return found


class Machine:
    """The machine of the master: a folder, and a moment at which the process is killed."""

    def __init__(self, root: Path, kill_at: int = 0, *, after: bool = False) -> None:
        self.root = root
        self.folder = root / "0"
        self.kill_at = kill_at
        self.after = after
        self.statements: list[str] = []
        self.dying = self.dead = False
        self.killed_after_commit: Callable[[], None] = lambda: None

    def begins(self, statement: str) -> None:
        if self.dead:
            return  # what a process does that is gone, it has not done
        self.statements.append(statement.strip())
        self.dying = len(self.statements) == self.kill_at
        if self.dying and not self.after:
            self._die()

    def done(self) -> None:
        if self.dying and not self.dead:
            self._die()
        if self.dead:
            raise Killed("killed")

    def _die(self) -> None:
        self.dead = True
        left = self.root / "1"
        shutil.copytree(self.folder, left)
        self.folder = left

    def open(self) -> "Store":
        self.dying = self.dead = False
        return Store(self)


class Store:
    """The real store, in which a process that was killed does nothing more."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._store = SqliteStore(machine.folder)

    def begin_term(self) -> Term:
        return self._store.begin_term()

    def load(self) -> Snapshot:
        return self._store.load()

    def commit(self, epoch: int, ops: Sequence[Op]) -> None:
        try:
            self._store.commit(epoch, ops)
        except Killed:
            if not self._machine.after:
                raise
            self._machine.killed_after_commit()  # durable; and nothing of it is sent any more

    def close(self) -> None:
        self._store.close()


def play(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Simulation:
    """Register, start, fail and restart, hold and release, restart, drain, trim, retire, end the
    cluster, terminate: with every request asked again under its id."""
    monkeypatch.setattr(Statements, "machine", machine, raising=False)
    simulation = Simulation(1, knobs=Knobs.quiet(hosts=2, length_s=16.0))
    simulation._squeeze = {
        "events_per_registration_max": 8,
        "retired_max": 1,
        "requests_kept_max": 12,
    }
    monkeypatch.setattr(eventlog, "_TRIM_SLACK", 0)
    simulation.seat.open_store = machine.open
    machine.killed_after_commit = lambda: setattr(simulation.seat.node, "fuse", 0)
    simulation.seat.restart_s = lambda: 0.3
    world, (client,) = simulation.world, simulation.clients

    def ask(verb, number: int = 0, **fields) -> None:
        if number < len(client.handles):
            client.ask(verb(request=world.entropy(16), ref=client.handles[number], **fields))

    def again() -> None:
        answered = [q for q in client.questions.values() if q.answer is not None]
        for question in answered[-3:]:
            client.doubt(question)

    def fail(code: int) -> None:
        for host in simulation.machines:
            for process in list(host.live):
                process.end("exited", code, None)

    script = [
        (2.0, lambda: client.register(name="one", host="a", restart_time=0.3)),
        (2.5, again),
        (3.0, lambda: fail(1)),
        (4.0, lambda: ask(Hold)),
        (4.5, lambda: ask(Release)),
        (5.0, lambda: ask(Restart)),
        (5.5, lambda: client.register(name="two", host=None, restart_time=NEVER_RESTART)),
        (6.0, again),
        (6.5, lambda: client.drain("a", on=True)),
        (7.0, lambda: client.drain("b", on=True)),
        (7.5, lambda: client.drain("a", on=False)),
        (8.0, lambda: client.drain("b", on=False)),
        (8.5, lambda: fail(1)),
        (9.5, lambda: fail(0)),
        (10.0, lambda: client.register(name="three", host="b", restart_time=1.0)),
        (10.5, lambda: client.register(name="four", host="b", restart_time=NEVER_RESTART)),
        (11.0, lambda: fail(3)),
        (11.5, again),
        (12.0, lambda: client.terminate(client.handles[-1]) if client.handles else None),
        (12.2, lambda: client.follow("")),
        (13.0, lambda: client.ask(Shutdown(request=world.entropy(16), mode=ShutdownMode.FAST))),
    ]
    for at_s, act in script:
        world.at(at_s, act)
    simulation.run()
    return simulation


def points(statements: list[str]) -> list[tuple[int, bool]]:
    """Before each statement, and after each COMMIT."""
    found = [(number, False) for number in range(1, len(statements) + 1)]
    found += [(n, True) for n, said in enumerate(statements, 1) if said == "COMMIT"]
    return sorted(found)


def whole(root: Path) -> list[str]:
    """The statements of a run in which nothing happens to the master."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", Statements)
        machine = Machine(root)
        simulation = play(machine, patch)
    kinds = {str(event.kind) for event in simulation.ledger.events}
    assert {"exited", "held", "released", "host_draining", "shutdown", "unregistered"} <= kinds
    assert simulation.ledger.dropped and simulation.world.figures["processes"] > 8
    for did in ("DELETE FROM events", "DELETE FROM specs", "DELETE FROM requests", "CREATE TABLE"):
        assert any(said.startswith(did) for said in machine.statements), did
    return machine.statements


def killed_at(root: Path, point: tuple[int, bool]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", Statements)
        machine = Machine(root, point[0], after=point[1])
        simulation = play(machine, patch)
    assert machine.folder.name == "1", "the crash point was reached"
    assert all(e.kind is not EventKind.UNREGISTERED or e.final for e in simulation.ledger.events)
    shutil.rmtree(root)


def sweep(root: Path, chosen: Callable[[list[tuple[int, bool]]], list[tuple[int, bool]]]) -> None:
    statements = whole(root / "whole")
    every = points(statements)
    tried = chosen(every)
    for point in tried:
        killed_at(root / f"{point[0]}-{point[1]}", point)
    print(f"{len(tried)} of {len(every)} crash points: {len(statements)} statements")


def test_killed_at_statements_spread_over_the_run(tmp_path: Path) -> None:
    sweep(tmp_path, lambda every: every[:: len(every) // SHOWN])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_every_statement(tmp_path: Path) -> None:
    """`make crash-points`"""
    sweep(tmp_path, lambda every: every)


def test_a_store_that_commits_row_by_row_is_found_out(tmp_path: Path) -> None:
    """The sweep is worth something: without the one transaction it objects."""

    def commit(self: SqliteStore, epoch: int, ops: Sequence[Op]) -> None:
        for op in ops:
            true(self, epoch, [op])

    true = SqliteStore.commit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SqliteStore, "commit", commit)
        with pytest.raises(Failure, match="not what was committed"):
            sweep(tmp_path, lambda every: every[len(every) // 2 :: 3])
