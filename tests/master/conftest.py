"""A master's core without sockets: fake peers speak real frames over real links.

`Town` is a core, the disk that outlives it, and the peers. Effects are carried out in order: what
is to be persisted is committed to the disk before a frame reaches a peer.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from posthouse import codec
from posthouse.codec import NO_SESSION, Envelope
from posthouse.ids import Instant
from posthouse.link import Link
from posthouse.messages import (
    Ack,
    Done,
    Events,
    Exit,
    Exited,
    Failed,
    GetStatus,
    Grant,
    Hello,
    Inventory,
    Message,
    Refused,
    Register,
    Registered,
    Renew,
    Reply,
    Request,
    Running,
    Start,
    Started,
    Stop,
    StopDone,
    Subscribe,
    Terminate,
    WardenRef,
    Welcome,
)
from posthouse.records import Event, ExitFacts, Status
from posthouse.spec import BackgroundWorker
from posthouse_master.core import MasterCore, MasterPolicy
from posthouse_master.effects import Halt, Input, Note, Peer, Persist, Received, Send, Tick
from posthouse_master.store.memory import MemoryDisk, MemoryStore

REGISTRY = "ab" * 16


def entropy_of(seed: int) -> Callable[[int], bytes]:
    counter = itertools.count(1)
    return lambda n: (next(counter) << 64 | seed).to_bytes(32)[-n:]


@dataclass
class FakePeer:
    """One end of a session, driven by hand."""

    town: "Town"
    peer: Peer
    link: Link | None = None
    welcome: Welcome | None = None
    refused: list[Refused] = field(default_factory=list)
    inbox: list[Message] = field(default_factory=list)
    grants: list[Grant] = field(default_factory=list)
    deaf: bool = False

    def deliver(self, frame: bytes) -> None:
        if self.deaf:
            return
        envelope = codec.decode(frame)
        body = envelope.body
        if isinstance(body, Refused):
            self.refused.append(body)
            if self.link is not None and envelope.session == self.link.session:
                self.link = None
        elif isinstance(body, Welcome):
            self.welcome = body
            self.link = Link(body.session, body.epoch, self.town.boot_s)
        elif self.link is not None and envelope.session == self.link.session:
            message = self.link.receive(envelope, self.town.boot_s)
            if isinstance(message, Grant):
                self.grants.append(message)
            elif message is not None:
                self.inbox.append(message)

    def raw(self, frame: bytes) -> None:
        self.town.handle(Received(self.peer, frame))

    def hello(self, **values: Any) -> None:
        hello = Hello(nonce=b"n" * 16, **values)
        self.raw(codec.encode(Envelope(NO_SESSION, 0, 0, 0, hello)))

    def say(self, message: Message) -> None:
        assert self.link is not None, f"no session: {self.refused}"
        self.raw(self.link.send(message, self.town.boot_s))

    def loose(self, message: Message) -> None:
        assert self.link is not None
        self.raw(self.link.loose(message))

    def renew(self) -> None:
        self.loose(Renew(stamp=int(self.town.boot_s * 1e6)))

    def acknowledge(self) -> None:
        self.loose(Ack())

    def take(self, kind: type[Any]) -> list[Any]:
        """All messages of this kind that have come, and are taken now."""
        found = [message for message in self.inbox if isinstance(message, kind)]
        self.inbox = [message for message in self.inbox if not isinstance(message, kind)]
        return found

    def one(self, kind: type[Any]) -> Any:
        found = self.take(kind)
        assert len(found) == 1, f"{kind.__name__}: {found}; inbox {self.inbox}"
        return found[0]


class FakeClient(FakePeer):
    """A client's session."""

    def open(self) -> "FakeClient":
        self.hello(role="client")
        return self

    def ask(self, kind: type[Request], **values: Any) -> Any:
        """The answer to a request, which must come at once."""
        request = values.pop("request", None) or self.town.request_id()
        self.say(kind(request=request, **values))
        answers = [m for m in self.inbox if isinstance(m, Reply) and m.request == request]
        assert answers, f"no answer to {kind.__name__}"
        self.inbox = [m for m in self.inbox if m not in answers]
        return answers[-1]

    def register(self, name: str = "w", **values: Any) -> Registered:
        spec = BackgroundWorker(name=name, **({"main": "acme.jobs:main"} | values))
        answer = self.ask(Register, spec=spec.to_wire())
        assert isinstance(answer, Registered), answer
        return answer

    def register_failed(self, name: str = "w", **values: Any) -> Failed:
        spec = BackgroundWorker(name=name, **({"main": "acme.jobs:main"} | values))
        answer = self.ask(Register, spec=spec.to_wire())
        assert isinstance(answer, Failed), answer
        return answer

    def status(self, ref: str) -> Status:
        status: Status = self.ask(GetStatus, ref=ref).status
        return status

    def terminate(self, ref: str) -> Done:
        answer = self.ask(Terminate, ref=ref)
        assert isinstance(answer, Done), answer
        return answer

    def follow(self, ref: str = "", sequence: int = 0, number: int = 1, **values: Any) -> Any:
        return self.ask(Subscribe, subscription=number, ref=ref, sequence=sequence, **values)

    def events(self) -> list[Event]:
        return [event for page in self.take(Events) for event in page.events]


class FakeHost(FakePeer):
    """An agent's session with a host whose processes are a table."""

    name: str = ""
    warden: str = ""
    boot_id: str = "boot-1"

    def open(self, *, settle: bool = True, **values: Any) -> "FakeHost":
        offer: dict[str, Any] = {
            "host": self.name,
            "boot_id": self.boot_id,
            "machine_id": f"machine-{self.name}",
            "agent_instance": f"agent-{self.name}",
            "wardens": [WardenRef(kind="fenced", instance=self.warden)],
            "runtimes": ["default"],
            "modules": ["acme.*"],
            "slots": 1000,
        }
        self.hello(role="agent", **(offer | values))
        if settle:
            self.settle()
        return self

    def settle(
        self,
        running: list[Running] | None = None,
        exits: list[Exit] | None = None,
        highest_token: int = 0,
    ) -> None:
        self.say(
            Inventory(
                page=0,
                last=True,
                running=running or [],
                exits=exits or [],
                highest_token=highest_token,
            )
        )

    def running(self, start: Start, pid: int = 4711, **values: Any) -> Running:
        return Running(
            registry=start.registry,
            slot=start.slot,
            generation=start.generation,
            incarnation=start.incarnation,
            token=start.token,
            revision=start.revision,
            pid=pid,
            pid_start=99,
            started_unix_s=self.town.unix_s,
            **({"warden": start.warden} | values),
        )

    def exit(self, start: Start, stop: Any = None, **facts: Any) -> Exit:
        return Exit(
            registry=start.registry,
            slot=start.slot,
            generation=start.generation,
            incarnation=start.incarnation,
            token=start.token,
            facts=ExitFacts(**({"pid": 4711, "started_unix_s": self.town.unix_s} | facts)),
            stop=stop,
        )

    def run(self, pid: int = 4711) -> Start:
        """Take the one START that has come and say that the process exists."""
        start: Start = self.one(Start)
        self.say(Started(worker=self.running(start, pid)))
        return start

    def end(self, start: Start, stop: Any = None, **facts: Any) -> None:
        self.say(Exited(worker=self.exit(start, stop, **facts)))

    def obey_stop(self, start: Start, **facts: Any) -> Stop:
        """Take the one STOP and end the process because of it."""
        stop: Stop = self.one(Stop)
        assert stop.token == start.token
        self.end(start, stop.reason, **(facts or {"code": 0}))
        return stop

    def no_such_process(self, stop: Stop) -> None:
        self.say(StopDone(slot=stop.slot, generation=stop.generation, token=stop.token))


class Town:
    """A core, its disk, and everybody who speaks to it."""

    def __init__(self, policy: MasterPolicy | None = None) -> None:
        self.boot_s = 1000.0
        self.unix_s = 1_700_000_000.0
        self.disk = MemoryDisk(registry=REGISTRY)
        self.policy = policy or MasterPolicy()
        self.peers: dict[Peer, FakePeer] = {}
        self.notes: list[Note] = []
        self.halted: Halt | None = None
        self.commits = 0
        self.on_commit: Callable[[list[Any]], None] | None = None  # before it
        self.on_committed: Callable[[], None] | None = None  # after it, before anything is sent
        self._numbers = itertools.count(1)
        self._start()

    def _start(self) -> None:
        self.store = MemoryStore(self.disk)
        self.store.begin_term()
        self.core = MasterCore(
            self.store.load(), self.policy, entropy_of(self.disk.epoch), self.now
        )

    @property
    def now(self) -> Instant:
        return Instant(self.boot_s, self.unix_s)

    def request_id(self) -> bytes:
        return next(self._numbers).to_bytes(16)

    def crash(self) -> None:
        """kill -9 of the master, and the next one. Every session is gone with it."""
        self.store.close()
        for peer in self.peers.values():
            peer.link = None
        self.peers.clear()
        self.halted = None
        self._start()

    def hold(self, *hosts: Any, seconds: float = 2.0) -> None:
        """Let the hosts renew, and say that what they were granted is in force."""
        end_s = self.boot_s + seconds
        while self.boot_s < end_s:
            for host in hosts:
                granted = host.grants[-1].stamp if host.grants else 0
                host.loose(Renew(stamp=int(self.boot_s * 1e6), granted=granted))
                host.acknowledge()
            self.boot_s += 0.5
            self.unix_s += 0.5
            self.tick()

    def handle(self, event: Input) -> None:
        effects = self.core.handle(event, self.now)
        ops = [effect.op for effect in effects if isinstance(effect, Persist)]
        if self.on_commit is not None and ops:
            self.on_commit(ops)
        if ops:
            self.store.commit(self.core.term.epoch, ops)
            self.commits += 1
            if self.on_committed is not None:
                self.on_committed()
        for effect in effects:
            match effect:
                case Send(peer, frame):
                    if peer in self.peers:
                        self.peers[peer].deliver(frame)
                case Note():
                    self.notes.append(effect)
                case Halt():
                    self.halted = effect

    def tick(self) -> None:
        self.handle(Tick())

    def pass_time(self, seconds: float, *, quiet: tuple[FakePeer, ...] = ()) -> None:
        """Let time pass in steps; every peer but the quiet ones renews and acknowledges."""
        end_s = self.boot_s + seconds
        while self.boot_s < end_s:
            step_s = min(0.5, end_s - self.boot_s)
            self.boot_s += step_s
            self.unix_s += step_s
            for peer in list(self.peers.values()):
                if peer.link is not None and peer not in quiet:
                    peer.renew()
                    peer.acknowledge()
            self.tick()

    def client(self, user: str | None = None, key: str = "") -> FakeClient:
        return self._join(FakeClient(self, self._peer("clients", user, key))).open()

    def host(self, name: str = "b", **values: Any) -> FakeHost:
        host = self.agent(name)
        return host.open(**values)

    def agent(self, name: str, warden: str | None = None, user: str | None = None) -> FakeHost:
        """A host that has not said HELLO yet."""
        host = self._join(FakeHost(self, self._peer("agents", user)))
        host.name = name
        host.warden = warden or name.encode().hex().ljust(32, "0")[:32]
        return host

    def _peer(self, endpoint: Any, user: str | None, key: str = "") -> Peer:
        return Peer(endpoint, next(self._numbers).to_bytes(5), user, key)

    def _join(self, peer: Any) -> Any:
        self.peers[peer.peer] = peer
        return peer

    def log(self, ref: str = "") -> list[Event]:
        """The durable log, of one registration ("slot.generation") or of all."""
        import msgspec

        rows = sorted(self.disk.events.values(), key=lambda row: row.sequence)
        return [
            msgspec.msgpack.decode(row.body, type=Event)
            for row in rows
            if not ref or row.stream == ref
        ]

    def kinds(self, ref: str) -> list[str]:
        return [str(event.kind) for event in self.log(ref)]


@pytest.fixture
def town() -> Town:
    return Town()


@pytest.fixture
def towns() -> SimpleNamespace:
    """Classes for tests that need more than one town or another policy."""
    return SimpleNamespace(Town=Town, Policy=MasterPolicy)
