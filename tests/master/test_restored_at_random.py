"""Restores at random moments of random lives: never two, and nothing is ended that nobody asked.

Hosts are tables that obey at once; a backup is taken at some moment, and put in place at a later
one. The seed is in the test's name.
"""

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from posthouse.messages import (
    Claim,
    Exited,
    GetRecord,
    Hold,
    ListUnclaimed,
    RecordTold,
    Release,
    Restart,
    Start,
    Started,
    Stop,
    StopDone,
    Terminate,
)
from posthouse.states import NEVER_RESTART, StopReason
from posthouse_master.effects import PeerGone
from posthouse_master.store.base import first_number
from posthouse_master.store.memory import MemoryDisk

SEEDS = 40
STEPS = 80
NAMES = [f"n{n}" for n in range(6)]
HOSTS = ("a", "b", "c")


def copied(disk: MemoryDisk) -> MemoryDisk:
    kept = ("specs", "states", "slots", "events", "hosts", "groups", "requests")
    return replace(disk, held_by=None, **{name: dict(getattr(disk, name)) for name in kept})


class Machine:
    """A host: what runs there, and what of it its master has not heard."""

    def __init__(self, play: "Play", name: str) -> None:
        self.play = play
        self.name = name
        self.running: dict[int, Start] = {}
        self.exits: dict[int, Any] = {}
        self.highest = 0
        self.used: dict[int, int] = {}  # by slot, the highest token
        self.agent: Any = None

    @property
    def connected(self) -> bool:
        return self.agent is not None and self.agent.link is not None

    def connect(self) -> None:
        self.agent = self.play.town.agent(self.name)
        self.agent.open(settle=False)
        if not self.connected:
            return
        told = dict(self.exits)
        running = [self.process(start) for start in self.running.values()]
        self.agent.settle(running, list(told.values()), self.highest)
        for token in told:
            del self.exits[token]
        self.obey()

    def process(self, start: Start) -> Any:
        return self.agent.running(start, pid=1000 + start.token % 9000, name=start.spec["name"])

    def obey(self) -> None:
        while self.connected and self.agent.inbox:
            message = self.agent.inbox.pop(0)
            match message:
                case Start():
                    assert message.token > self.used.get(message.slot, 0), "tokens rise by slot"
                    self.used[message.slot] = message.token
                    self.highest = max(self.highest, message.token)
                    self.running[message.token] = message
                    self.play.never_two()
                    self.agent.say(Started(worker=self.process(message)))
                case Stop(token=token) if token in self.running:
                    self.play.asked(message)
                    self.end(token, stop=message.reason, code=0)
                case Stop():
                    place = {"slot": message.slot, "generation": message.generation}
                    self.agent.say(StopDone(**place, token=message.token))
                case GetRecord(token=token) if token in self.running:
                    place = {"slot": message.slot, "generation": message.generation}
                    spec = self.running[token].spec
                    self.agent.say(RecordTold(**place, token=token, spec=spec))

    def end(self, token: int, stop: Any = None, **facts: Any) -> None:
        start = self.running.pop(token)
        ended = self.agent.exit(start, stop, **facts)
        if self.connected:
            self.agent.say(Exited(worker=ended))
        else:
            self.exits[token] = ended


class Play:
    def __init__(self, towns: Any, seed: int) -> None:
        self.random = Random(seed)
        self.town = towns.Town()
        self.machines = {name: Machine(self, name) for name in HOSTS}
        self.backup: MemoryDisk | None = None
        self.restored = False
        self.to_be_stopped: set[int] = set()
        self.client = self.town.client()
        for machine in self.machines.values():
            machine.connect()

    # --- what must hold ---

    def never_two(self) -> None:
        live = [s for machine in self.machines.values() for s in machine.running.values()]
        for what in ("slot and generation", "name"):
            of = [
                (s.slot, s.generation) if what != "name" else s.spec["name"]
                for s in live
                if what != "name" or s.token not in self.to_be_stopped
            ]
            assert len(set(of)) == len(of), f"two of one {what}: {live}"

    def asked(self, stop: Stop) -> None:
        if stop.reason is StopReason.UNKNOWN:
            assert stop.token in self.to_be_stopped, f"nobody asked for the end of {stop}"

    # --- what happens ---

    def register(self) -> None:
        values: dict[str, Any] = {"restart_time": self.random.choice((0, 0, 0, NEVER_RESTART))}
        if self.random.random() < 0.4:
            values["host"] = self.random.choice(HOSTS)
        from posthouse.messages import Register
        from posthouse.spec import BackgroundWorker

        name = self.random.choice(NAMES)
        spec = BackgroundWorker(name=name, main="acme.jobs:main", **values)
        self.client.ask(Register, spec=spec.to_wire())

    def change(self) -> None:
        kind = self.random.choice((Terminate, Hold, Release, Restart))
        self.client.ask(kind, ref=self.random.choice(NAMES))

    def end(self) -> None:
        machine = self.random.choice(list(self.machines.values()))
        if machine.running:
            token = self.random.choice(list(machine.running))
            machine.end(token, **self.random.choice(({"code": 0}, {"code": 1}, {"code": 1})))

    def cut(self) -> None:
        machine = self.random.choice(list(self.machines.values()))
        if machine.connected:
            peer, machine.agent.link = machine.agent.peer, None
            self.town.peers.pop(peer)
            self.town.handle(PeerGone(peer))

    def heal(self) -> None:
        machine = self.random.choice(list(self.machines.values()))
        if not machine.connected:
            machine.connect()

    def crash(self) -> None:
        self.town.crash()
        self.client = self.town.client()

    def claim(self) -> None:
        found = self.client.ask(ListUnclaimed).processes
        if found:
            process = self.random.choice(found)
            stop = self.random.random() < 0.3
            done = self.client.ask(Claim, token=process.token, stop=stop)
            if stop and type(done).__name__ == "Done":
                self.to_be_stopped.add(process.token)

    def take_backup(self) -> None:
        self.backup = copied(self.town.disk)

    def restore(self) -> None:
        assert self.backup is not None
        timeline = 1_700_000_000
        first = first_number(timeline)
        self.town.store.close()
        self.town.disk = disk = self.backup
        disk.timeline, disk.epoch = timeline, first
        disk.counters = replace(disk.counters, token=first, recovery="any")
        for machine in self.machines.values():
            machine.agent.link = None
        self.town.peers.clear()
        self.town._start()
        self.client = self.town.client()
        self.restored = True

    def step(self) -> None:
        weights = {
            self.register: 6, self.change: 4, self.end: 6, self.cut: 2, self.heal: 4,
            self.crash: 1, self.claim: 4 if self.restored else 0,
        }  # fmt: skip
        (act,) = self.random.choices(list(weights), list(weights.values()))
        act()
        for machine in self.machines.values():
            machine.obey()
        self.town.pass_time(0.5)
        for machine in self.machines.values():
            machine.obey()
        self.never_two()

    def settle(self) -> None:
        """No more faults: everybody is there, and the longest lease is over."""
        for _ in range(24):
            for machine in self.machines.values():
                if not machine.connected:
                    machine.connect()
            self.town.pass_time(30)
            for machine in self.machines.values():
                machine.obey()
        self.never_two()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_restore_at_a_random_moment(towns, seed):
    play = Play(towns, seed)
    early, late = sorted(play.random.sample(range(STEPS), 2))
    for number in range(STEPS):
        if number == early:
            play.take_backup()
        if number == late:
            play.restore()
        play.step()
    play.settle()
    town = play.town
    assert not town.core.starter.recovering
    live = {start.token for m in play.machines.values() for start in m.running.values()}
    believed = {r.token for r in town.core.registry.workers(limit=1000) if r.placed}
    unclaimed = {p.token for p in play.client.ask(ListUnclaimed).processes}
    assert live == believed | unclaimed, "what runs is known or listed, and nothing else is"
    for registration in town.core.registry.workers(limit=1000):
        waits = str(registration.life) in ("submitted", "waiting")
        if waits and registration.name not in town.core.starter.withheld:
            pytest.fail(
                f"{registration!r} is never started: {town.core.view.why_not_running(registration)}"
            )
