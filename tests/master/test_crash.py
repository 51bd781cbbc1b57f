"""kill -9 of the master between any two statements: a random history over two hosts that keep
their word, with the master killed before a commit, after it, and with sessions that break.

Checked after every step, against what is on the disk and what hosts have ever seen: invariants 3,
7, 11 and never two processes of one registration.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from posthouse.messages import (
    Exit,
    Exited,
    Inventory,
    Register,
    Start,
    Started,
    StartFailed,
    Stop,
    StopDone,
    Terminate,
)
from posthouse.records import Event, ExitFacts
from posthouse.spec import BackgroundWorker
from posthouse.states import NEVER_RESTART, EventKind, WorkerState

TERMINAL = (EventKind.EXITED, EventKind.START_FAILED)


class Killed(Exception):
    """The master process is gone in the middle of what it did."""


@dataclass
class Machine:
    """A host that keeps its word: what a warden and an agent promise, and nothing else."""

    name: str
    boot: int = 1
    live: dict[int, Start] = field(default_factory=dict)  # by token
    stopping: dict[int, Any] = field(default_factory=dict)
    exits: dict[int, Exit] = field(default_factory=dict)  # until the master has them durably
    carried: list[tuple[int, int]] = field(default_factory=list)  # (sequence, token) of a session
    highest: dict[int, int] = field(default_factory=dict)  # by slot: tokens seen, until reboot
    peer: Any = None


class History(RuleBasedStateMachine):
    town_class: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.town = self.town_class()
        self.machines = {name: Machine(name) for name in ("a", "b")}
        self.names = 0
        self.started: Counter[tuple[int, int]] = Counter()
        self.obeyed: list[Start] = []
        self.client: Any = None
        self.requests = 0
        self.acknowledged: set[tuple[int, int]] = set()
        self.kill_next = ""

    # --- the master and its death ---

    def carefully(self, action: Any) -> None:
        """Do something that makes the master work; it may be killed while it does."""
        town = self.town

        def kill(*_: Any) -> None:
            raise Killed

        if self.kill_next == "before commit":
            town.on_commit = kill
        elif self.kill_next == "after commit":
            town.on_committed = kill
        try:
            action()
        except Killed:
            town.on_commit = town.on_committed = None
            town.crash()
            self.client = None
            for machine in self.machines.values():
                machine.peer = None
        finally:
            town.on_commit = town.on_committed = None
            self.kill_next = ""

    @rule(when=st.sampled_from(["before commit", "after commit"]))
    def kill_the_master_in_the_next_step(self, when: str) -> None:
        self.kill_next = when

    # --- the client ---

    def ask(self, message: Any, done: Any = None) -> None:
        def action() -> None:
            if self.client is None or self.client.link is None:
                self.client = self.town.client()
            self.client.say(message)
            if done is not None:
                done()

        self.carefully(action)

    @rule(
        host=st.sampled_from([None, None, "a", "b"]),
        restart_time=st.sampled_from([0, 0, 3, NEVER_RESTART]),
    )
    def register(self, host: str | None, restart_time: int) -> None:
        self.names += 1
        self.requests += 1
        spec = BackgroundWorker(
            name=f"w{self.names}", main="acme.x:main", host=host, restart_time=restart_time
        )
        request = self.requests.to_bytes(16)

        def done() -> None:
            for answer in self.client.inbox:
                handle = getattr(answer, "handle", None)
                if handle is not None and answer.request == request:
                    self.acknowledged.add((handle.slot, handle.generation))

        self.ask(Register(request=request, spec=spec.to_wire()), done)

    @rule(data=st.data())
    def terminate(self, data: Any) -> None:
        if self.acknowledged:
            slot, generation = data.draw(st.sampled_from(sorted(self.acknowledged)))
            self.requests += 1
            self.ask(Terminate(request=self.requests.to_bytes(16), ref=f"{slot}.{generation}"))

    # --- hosts ---

    @rule(name=st.sampled_from("ab"))
    def connect(self, name: str) -> None:
        machine = self.machines[name]
        peer = self.town.agent(name, warden=name * 32)
        peer.boot_id = f"boot-{machine.boot}"
        machine.peer, machine.carried = peer, []
        running = [
            peer.running(start, stopping=machine.stopping.get(token))
            for token, start in machine.live.items()
        ]
        exits = list(machine.exits.values())

        def action() -> None:
            peer.open(settle=False)
            for exit_ in exits:
                machine.carried.append((1, exit_.token))
            peer.say(Inventory(page=0, last=False, exits=exits))
            if peer.link is not None:
                top = max(machine.highest.values(), default=0)
                peer.say(Inventory(page=1, last=True, running=running, highest_token=top))

        self.carefully(action)

    @rule(name=st.sampled_from("ab"), fails=st.integers(0, 9))
    def work(self, name: str, fails: int) -> None:
        """The agent takes the next command of its session."""
        machine = self.machines[name]
        peer = machine.peer
        if peer is None or peer.link is None:
            return
        commands = [m for m in peer.inbox if isinstance(m, Start | Stop)]
        if not commands:
            return
        command = commands[0]
        peer.inbox.remove(command)
        if isinstance(command, Start):
            self.obey_start(machine, command, fails == 0)
        else:
            self.obey_stop(machine, command)

    def obey_start(self, machine: Machine, start: Start, fails: bool) -> None:
        key = (start.slot, start.generation)
        # 3. What a host is told to start is durable, and its token is higher than all before.
        assert any(
            event.kind is EventKind.STARTING and event.token == start.token
            for event in self.log(key)
        )
        for earlier in self.obeyed:
            if earlier.slot == start.slot:
                assert start.token > earlier.token
        self.obeyed.append(start)
        assert start.token > machine.highest.get(start.slot, 0)
        machine.highest[start.slot] = start.token
        if fails:
            said: Any = StartFailed(
                slot=start.slot,
                generation=start.generation,
                incarnation=start.incarnation,
                token=start.token,
                reason="no memory",
            )
        else:
            # Never two.
            for other in self.machines.values():
                assert key not in [(s.slot, s.generation) for s in other.live.values()]
            machine.live[start.token] = start
            said = Started(worker=machine.peer.running(start))
        self.carefully(lambda: machine.peer.say(said))

    def obey_stop(self, machine: Machine, stop: Stop) -> None:
        if stop.token in machine.live:
            machine.stopping[stop.token] = stop.reason
            self.end(machine, stop.token, ExitFacts(cause="signaled", signal=stop.signal))
        else:
            machine.highest[stop.slot] = max(machine.highest.get(stop.slot, 0), stop.token)
            said = StopDone(slot=stop.slot, generation=stop.generation, token=stop.token)
            self.carefully(lambda: machine.peer.say(said))

    @rule(name=st.sampled_from("ab"), code=st.sampled_from([0, 1, 1, 3]), data=st.data())
    def worker_exits(self, name: str, code: int, data: Any) -> None:
        machine = self.machines[name]
        if machine.live:
            token = data.draw(st.sampled_from(sorted(machine.live)))
            self.end(machine, token, ExitFacts(code=code))

    def end(self, machine: Machine, token: int, facts: ExitFacts) -> None:
        start = machine.live.pop(token)
        machine.exits[token] = Exit(
            registry=start.registry,
            slot=start.slot,
            generation=start.generation,
            incarnation=start.incarnation,
            token=token,
            facts=facts,
            stop=machine.stopping.pop(token, None),
        )
        peer = machine.peer
        if peer is not None and peer.link is not None:
            machine.carried.append((peer.link.sent + 1, token))
            self.carefully(lambda: peer.say(Exited(worker=machine.exits[token])))

    @rule(name=st.sampled_from("ab"))
    def reboot(self, name: str) -> None:
        machine = self.machines[name]
        machine.boot += 1
        machine.live, machine.exits, machine.stopping = {}, {}, {}
        machine.highest, machine.peer = {}, None

    # --- time ---

    @rule(seconds=st.sampled_from([0.3, 1.5, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.carefully(lambda: self.town.pass_time(seconds))

    # --- what must hold ---

    def log(self, key: tuple[int, int]) -> list[Event]:
        return self.town.log(f"{key[0]}.{key[1]}")

    @invariant()
    def exits_that_are_acknowledged_are_durable(self) -> None:
        for machine in self.machines.values():
            peer = machine.peer
            if peer is None or peer.link is None:
                continue
            for sequence, token in [c for c in machine.carried if c[0] <= peer.link.acknowledged]:
                exit_ = machine.exits.pop(token, None)
                machine.carried.remove((sequence, token))
                if exit_ is not None:
                    ended = self.log((exit_.slot, exit_.generation))
                    assert any(e.token == token and e.kind in TERMINAL for e in ended)

    @invariant()
    def every_history_is_well_formed(self) -> None:
        for key, spec in self.town.disk.specs.items():
            rows = self.log(key)
            assert rows[0].kind is EventKind.REGISTERED
            starting = [e for e in rows if e.kind is EventKind.STARTING]
            assert [e.incarnation for e in starting] == list(range(1, len(starting) + 1))
            assert [e.token for e in starting] == sorted({e.token for e in starting})
            ends = Counter(e.incarnation for e in rows if e.kind in TERMINAL)
            assert all(count == 1 for count in ends.values()), (spec.name, ends)
            began: set[int | None] = set()
            for event in rows:
                if event.kind is EventKind.STARTING:
                    assert set(ends) >= began or event.incarnation == len(began) + 1
                    began.add(event.incarnation)
                elif event.kind in TERMINAL or event.kind is EventKind.STARTED:
                    assert event.incarnation in began
            gone = [e for e in rows if e.kind is EventKind.UNREGISTERED]
            assert len(gone) <= 1
            if gone:
                assert rows[-1] is gone[0]
            # No incarnation begins before the one before it has ended.
            open_now = len(starting) - sum(ends.values())
            assert open_now in (0, 1)

    @invariant()
    def what_was_acknowledged_is_kept(self) -> None:
        assert self.acknowledged <= set(self.town.disk.specs)

    @invariant()
    def sequences_have_no_gap(self) -> None:
        sequences = sorted(self.town.disk.events)
        assert sequences == list(range(1, len(sequences) + 1))

    def teardown(self) -> None:
        """Once nothing fails any more, everything settles."""
        self.kill_next = ""
        for _ in range(6):
            for name in self.machines:
                if self.machines[name].peer is None or self.machines[name].peer.link is None:
                    self.connect(name)
                for _ in range(40):
                    self.work(name, 1)
            self.town.pass_time(4)
        client = self.town.client()
        for slot, generation in sorted(self.acknowledged):
            status = client.status(f"{slot}.{generation}")
            assert status.final or status.state is WorkerState.STARTED, status
        believed = {
            (row.slot, row.generation, row.token)
            for row in self.town.disk.states.values()
            if row.life == "running"
        }
        live = {
            (start.slot, start.generation, token)
            for machine in self.machines.values()
            for token, start in machine.live.items()
        }
        assert believed == live


@pytest.mark.parametrize("examples", [60])
def test_no_history_breaks_an_invariant(town, examples):
    machine = type("TownHistory", (History,), {"town_class": type(town)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


class Script(History):
    """A whole life of one worker, with the master killed at its n-th commit. Everybody carries on:
    the client asks again with the same id, the host connects again."""

    def __init__(self, town: Any, kill_at: int, when: str) -> None:
        self.town, self.machines, self.kill_next = town, {"b": Machine("b")}, ""
        self.obeyed, self.client = [], None
        self.commits, self.kill_at = 0, kill_at
        setattr(town, "on_commit" if when == "before commit" else "on_committed", self.count)

    def count(self, *_: Any) -> None:
        self.commits += 1
        if self.commits == self.kill_at:
            raise Killed

    def carefully(self, action: Any) -> None:
        action()

    def step(self, action: Any) -> None:
        """Do it; if the master is killed in it, do it again with the next one."""
        for _ in range(2):
            try:
                self.everybody_works()
                action()
                self.everybody_works()
                return
            except Killed:
                self.town.crash()
                self.client = self.machines["b"].peer = None
        raise AssertionError("it is killed once only")

    def everybody_works(self) -> None:
        peer = self.machines["b"].peer
        if peer is None or peer.link is None:
            self.connect("b")
        if self.client is None or self.client.link is None:
            self.client = self.town.client()
        for _ in range(3):
            self.work("b", 1)

    def crash_worker(self) -> None:
        machine = self.machines["b"]
        for token in list(machine.live):
            self.end(machine, token, ExitFacts(code=1))

    def play(self) -> None:
        spec = BackgroundWorker(name="w", main="acme.x:main", host="b", restart_time=1).to_wire()
        self.step(lambda: self.client.say(Register(request=b"r" * 16, spec=spec)))
        self.step(self.crash_worker)
        for _ in range(15):
            self.step(lambda: self.town.pass_time(0.2))
        self.step(lambda: self.client.say(Terminate(request=b"t" * 16, ref="0.1")))
        self.step(lambda: None)


@pytest.mark.parametrize("when", ["before commit", "after commit"])
def test_killed_at_every_commit_of_a_scripted_run(towns, when):
    whole = Script(towns.Town(), 0, when)
    whole.play()
    assert whole.commits >= 8  # register, started, exited, starting, started, terminate, exited...
    for kill_at in range(1, whole.commits + 1):
        town = towns.Town()
        script = Script(town, kill_at, when)
        script.play()
        assert script.commits >= kill_at, "every crash point was reached"
        kinds = town.kinds("0.1")
        # A START may be drawn anew, but the worker ran twice and ended twice, told once each.
        assert (kinds.count("started"), kinds.count("exited")) == (2, 2), (kill_at, kinds)
        assert (kinds[0], kinds[-1]) == ("registered", "unregistered")
        ends = Counter(e.incarnation for e in town.log("0.1") if e.kind in TERMINAL)
        assert set(ends.values()) == {1}
        assert not script.machines["b"].live
        assert list(town.disk.specs) == [(0, 1)]


def test_the_log_on_the_disk_is_what_watchers_saw(town):
    """A cursor that was read before a crash is right after it: nothing was told too early."""
    client, host = town.client(), town.host("b")
    client.follow(credit=1000)
    client.register("w", restart_time=0)
    for _ in range(5):
        host.end(host.run(), code=1)
    seen = client.events()
    town.crash()
    kept = town.log()[: len(seen)]
    assert [msgspec.to_builtins(e) for e in seen] == [msgspec.to_builtins(e) for e in kept]
