"""The master by itself: its core, its store, its size.

uv run python bench/master.py [--registrations 100000] [--clients 8] [--seconds 5]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

from noise import machine, probe

from posthouse import BackgroundWorker, connect
from posthouse.dial import DialEffect, Dialler, Transmit
from posthouse.ids import Instant
from posthouse.messages import (
    Exit,
    Exited,
    Hello,
    Inventory,
    Message,
    Register,
    Running,
    Started,
)
from posthouse.records import ExitFacts
from posthouse_master.core import MasterCore, MasterPolicy
from posthouse_master.effects import Input, Peer, Persist, Received, Send, Tick
from posthouse_master.store.base import Op
from posthouse_master.store.memory import MemoryDisk, MemoryStore
from posthouse_master.store.sqlite import SqliteStore

BOOT = "b" * 32
UNPLACED = ("nowhere",)


class Room:
    """A core and who speaks to it, inside this process: real frames, no socket, no disk."""

    def __init__(self, core: MasterCore) -> None:
        self.core = core
        self.talkers: dict[Peer, Talker] = {}
        self.rows = 0
        self.inputs = 0
        self.now_s = 1.0

    def tick(self) -> None:
        self.handle(Tick())

    def handle(self, event: Input) -> None:
        self.inputs += 1
        for effect in self.core.handle(event, Instant(self.now_s, 0.0)):
            if isinstance(effect, Persist):
                self.rows += 1
                self.persisted(effect.op)
            elif isinstance(effect, Send):
                self.talkers[effect.peer].hear(effect.frame)

    def persisted(self, op: Op) -> None:
        """A row that a store would write."""


class Talker:
    """One peer in a room, with its session open."""

    def __init__(self, room: Room, endpoint: str, role: str) -> None:
        self.room = room
        self.peer = Peer(endpoint, role.encode())  # type: ignore[arg-type]
        room.talkers[self.peer] = self

        def hello(nonce: bytes) -> Hello:
            return Hello(
                nonce=nonce, role=role, host="h", machine_id=BOOT, boot_id=BOOT,
                runtimes=["default"], modules=["*"], slots=100_000,
            )  # fmt: skip

        self.dialler = Dialler(hello, os.urandom)
        self._transmit(self.dialler.tick(room.now_s))

    def hear(self, frame: bytes) -> None:
        self._transmit(self.dialler.receive(frame, self.room.now_s))

    def say(self, message: Message) -> None:
        self._transmit([self.dialler.send(message, self.room.now_s)])

    def _transmit(self, effects: list[DialEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Transmit):
                self.room.handle(Received(self.peer, effect.frame))


def _core(disk: MemoryDisk) -> MasterCore:
    store = MemoryStore(disk)
    store.begin_term()
    return MasterCore(store.load(), MasterPolicy(), os.urandom, Instant(0.0, 0.0))


def decisions(seconds: float) -> str:
    """A worker that fails and is started again: STARTED and EXITED in, rows and START out."""
    room = Room(_core(MemoryDisk("ab" * 16)))
    agent = Talker(room, "agents", "agent")
    agent.say(Inventory(page=0, last=True))
    client = Talker(room, "clients", "client")
    record = BackgroundWorker(name="w", main="m:f", restart_time=0, restart_budget=(1000, 0.001))
    client.say(Register(request=os.urandom(16), spec=record.to_wire()))
    registry = room.core.registry
    room.inputs = room.rows = 0
    begun_s = time.perf_counter()
    incarnation = 0
    while time.perf_counter() - begun_s < seconds:
        incarnation += 1
        assert registry.token == incarnation
        identity = {
            "registry": registry.identity, "slot": 0, "generation": 1,
            "incarnation": incarnation, "token": registry.token,
        }  # fmt: skip
        running = Running(revision=1, pid=7, pid_start=1, started_unix_s=0.0, **identity)
        agent.say(Started(worker=running))
        agent.say(Exited(worker=Exit(facts=ExitFacts(code=1, pid=7), **identity)))
        room.now_s += 0.06  # acknowledgements fall due
        room.tick()
    took_s = time.perf_counter() - begun_s
    return (
        f"core alone: {room.inputs / took_s:,.0f} inputs/s, {incarnation / took_s:,.0f} restarts/s "
        f"({room.rows / room.inputs:.1f} rows an input)"
    )


def _register_many(endpoint: str, number: int, begin_s: float, end_s: float) -> int:
    with connect(endpoint) as cluster:
        time.sleep(max(0.0, begin_s - time.time()))
        count = 0
        while time.time() < end_s:
            record = BackgroundWorker(name=f"w{number}-{count}", main="m:f", labels=UNPLACED)
            cluster.register(record)
            count += 1
        return count


def durable(clients: int, seconds: float) -> str:
    """Registrations that came back as durable, from processes that register one after another."""
    with tempfile.TemporaryDirectory(prefix="ph", dir="/tmp") as folder:
        Path(folder).chmod(0o700)
        command = [sys.executable, "-m", "posthouse_cli", "master", "--dir", folder]
        with open(os.devnull, "wb") as null:
            master = subprocess.Popen(command, stderr=null)
        try:
            endpoint = f"ipc://{folder}/clients.sock"
            connect(endpoint, timeout=20).close()
            begin_s = time.time() + 8.0  # until every client is there
            jobs = [(endpoint, n, begin_s, begin_s + seconds) for n in range(clients)]
            with get_context("spawn").Pool(clients) as pool:
                counts = pool.starmap(_register_many, jobs)
        finally:
            master.terminate()
            master.wait()
    rate = sum(counts) / seconds
    return f"durable registrations: {rate:,.0f}/s from {clients} clients (SQLite, FULL)"


class _Disk(Room):
    """A room whose rows go into a store, many in one transaction."""

    def __init__(self, core: MasterCore, store: SqliteStore) -> None:
        super().__init__(core)
        self._store = store
        self._ops: list[Op] = []

    def persisted(self, op: Op) -> None:
        self._ops.append(op)

    def commit(self, at_least: int = 1) -> None:
        if len(self._ops) >= at_least:
            self._store.commit(self.core.term.epoch, self._ops)
            self._ops = []


def _fill(folder: str, count: int) -> None:
    store = SqliteStore(folder)
    store.begin_term()
    room = _Disk(MasterCore(store.load(), MasterPolicy(), os.urandom, Instant(0.0, 0.0)), store)
    client = Talker(room, "clients", "client")
    for number in range(count):
        name = f"worker-{number:06}"
        record = BackgroundWorker(name=name, main="acme.jobs:main", labels=UNPLACED)
        client.say(Register(request=os.urandom(16), spec=record.to_wire()))
        room.now_s += 0.001
        if number % 50 == 0:
            room.now_s += 0.06
            room.tick()
        room.commit(5000)
    room.commit()
    store.close()


_LOAD = """
import os, sys, time
from posthouse.ids import Instant
from posthouse_master.core import MasterCore, MasterPolicy
from posthouse_master.store.sqlite import SqliteStore
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
before = rss(); begun = time.perf_counter()
store = SqliteStore(sys.argv[1]); store.begin_term()
core = MasterCore(store.load(), MasterPolicy(), os.urandom, Instant(0.0, 0.0))
took = time.perf_counter() - begun
print(f"{core.registry.live_count} registrations loaded in {took:.2f} s, ", end="")
print(f"RSS {before:.0f} -> {rss():.0f} MB")
"""


def size(count: int) -> str:
    """A fresh process that loads a registry of this size."""
    with tempfile.TemporaryDirectory(prefix="ph", dir="/tmp") as folder:
        _fill(folder, count)
        disk = sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6
        command = [sys.executable, "-c", _LOAD, folder]
        loaded = subprocess.run(command, check=True, capture_output=True, text=True)
    return f"{loaded.stdout.strip()}, {disk:.0f} MB on disk"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--registrations", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0)
    chosen = parser.parse_args()
    print(machine())
    print(probe())
    print(decisions(chosen.seconds))
    print(durable(chosen.clients, chosen.seconds))
    print(size(chosen.registrations))
    print(probe())


if __name__ == "__main__":
    main()
