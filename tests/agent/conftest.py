"""What the tests of the agent share: a bench for its core, and real processes on a private host."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from posthouse import codec
from posthouse.ids import Instant
from posthouse.link import Link
from posthouse.messages import (
    Exited,
    Grant,
    Hello,
    Inventory,
    Message,
    Refused,
    Renew,
    Start,
    Welcome,
)
from posthouse.settings import AgentSettings
from posthouse_agent.core import AgentCore
from posthouse_agent.effects import (
    DropWarden,
    Effect,
    Frame,
    Give,
    HostFacts,
    Input,
    NeedWarden,
    Note,
    Redial,
    Reported,
    Tick,
    Transmit,
    WardenGone,
    WardenUp,
)
from posthouse_agent.orders import (
    Attach,
    Attached,
    Confirm,
    Ended,
    Forked,
    SnapshotEnd,
    StartWorker,
)

REGISTRY = "ab" * 16
SETTINGS = AgentSettings(
    host="b", master="ipc:///nowhere", runtime_dir="/nowhere", log_dir="/nowhere", modules=("*",)
)


def forked(start: StartWorker | Start, pid: int = 4711, *, known: bool = False) -> Forked:
    return Forked(
        token=start.token,
        registry=start.registry,
        slot=start.slot,
        generation=start.generation,
        incarnation=start.incarnation,
        revision=start.revision,
        pid=pid,
        pid_start=99,
        started_unix_s=1e9,
        known=known,
    )


def ended(of: Forked, *, known: bool = False, **facts: Any) -> Ended:
    return Ended(
        token=of.token,
        registry=of.registry,
        slot=of.slot,
        generation=of.generation,
        incarnation=of.incarnation,
        revision=of.revision,
        facts=facts or {"cause": "exited", "code": 1, "pid": of.pid},
        known=known,
    )


@dataclass
class ScriptedMaster:
    """The other end of the sessions, with the real link; does nothing by itself."""

    link: Link | None = None
    hello: Hello | None = None
    said: list[Message] = field(default_factory=list)  # sequenced, in this session
    greetings: int = 0

    def take(self, frame: bytes, now_s: float) -> Message | None:
        envelope = codec.decode(frame)
        if isinstance(envelope.body, Hello):
            self.hello, self.link = envelope.body, None
            self.greetings += 1
            return envelope.body
        if self.link is None or envelope.session != self.link.session:
            return None
        message = self.link.receive(envelope, now_s)
        if message is not None and envelope.sequence:
            self.said.append(message)
        return message

    def welcome(self, now_s: float, **fields: Any) -> bytes:
        assert self.hello is not None
        session = self.greetings.to_bytes(16, "big")
        values: dict[str, Any] = {
            "epoch": 1,
            "timeline": 1,
            "registry": REGISTRY,
            "protocol": 0,
            "principal": "agent:b",
            **fields,
        }
        self.link = Link(session, values["epoch"], now_s)
        self.said = []
        body = Welcome(nonce=self.hello.nonce, session=session, **values)
        return codec.encode(codec.Envelope(codec.NO_SESSION, 0, 0, 0, body))

    def exits_told(self) -> list[int]:
        tokens = []
        for message in self.said:
            if isinstance(message, Inventory):
                tokens += [worker.token for worker in message.exits]
            elif isinstance(message, Exited):
                tokens.append(message.worker.token)
        return tokens


class Bench:
    """An AgentCore between a scripted master and a scripted warden, on a clock of its own.

    Frames of the agent go to `to_master`; a test delivers them with `deliver`. Orders go to
    `orders`; a test answers with `report`.
    """

    def __init__(self, settings: AgentSettings = SETTINGS) -> None:
        self.now_s = 1000.0
        self._random = 0
        self.facts = HostFacts(
            boot_id="boot", machine_id="machine", instance="cd" * 16, user="me", version="0"
        )
        self.core = AgentCore(settings, self.facts, self._entropy)
        self.master = ScriptedMaster()
        self.to_master: deque[bytes] = deque()
        self.orders: list[Any] = []
        self.needed: list[str] = []
        self.notes: list[Note] = []
        self.others: list[Effect] = []
        self.effects: list[Effect] = []

    def _entropy(self, count: int) -> bytes:
        self._random += 1
        return self._random.to_bytes(4, "big").rjust(count, b"\x55")[-count:]

    def feed(self, event: Input) -> list[Effect]:
        effects = self.core.handle(event, Instant(self.now_s, 1e9 + self.now_s))
        for effect in effects:
            match effect:
                case Transmit(frame):
                    self.to_master.append(frame)
                case Redial():
                    self.to_master.clear()
                case Give(_, order):
                    self.orders.append(order)
                case NeedWarden(kind):
                    self.needed.append(kind)
                case Note():
                    self.notes.append(effect)
                case DropWarden():
                    self.others.append(effect)
                case _:
                    self.others.append(effect)
        self.effects += effects
        return effects

    def tick(self, seconds: float = 0.0) -> list[Effect]:
        self.now_s += seconds
        return self.feed(Tick())

    def report(self, report: Any, kind: str = "fenced") -> list[Effect]:
        return self.feed(Reported(kind, report))

    # --- the warden's side ---

    def attach(
        self, *snapshot: Forked | Ended, instance: str = "11" * 16, top: int = 0, **says: Any
    ) -> None:
        """A warden connects, and tells these; known is set."""
        if not self.needed:
            self.tick()
        self.needed.pop()
        self.feed(WardenUp("fenced"))
        assert isinstance(self.orders[-1], Attach)
        self.report(
            Attached(
                instance=instance, kind="fenced", boot_id="boot", pid=7, highest_token=top, **says
            )
        )
        for entry in snapshot:
            self.report(replace(entry, known=True))
        running = sum(isinstance(entry, Forked) for entry in snapshot)
        self.report(SnapshotEnd(running=running, exits=len(snapshot) - running))

    def warden_gone(self, reason: str = "killed") -> None:
        self.feed(WardenGone("fenced", reason))

    def confirmed(self) -> list[int]:
        return [t for order in self.orders if isinstance(order, Confirm) for t in order.tokens]

    # --- the master's side ---

    def deliver(self) -> list[Message]:
        """All frames reach the master; what it understood of them."""
        found = []
        while self.to_master:
            message = self.master.take(self.to_master.popleft(), self.now_s)
            if message is not None:
                found.append(message)
        return found

    def open(self, **welcome: Any) -> list[Message]:
        """A session up to the inventory; returns what the master was told in it."""
        for _ in range(100):
            if any(isinstance(message, Hello) for message in self.deliver()):
                break
            self.tick(0.1)
        else:
            raise AssertionError("no HELLO")
        self.feed(Frame(self.master.welcome(self.now_s, **welcome)))
        self.deliver()
        return self.master.said

    def send(self, message: Message) -> list[Effect]:
        """A sequenced message of the master reaches the agent."""
        assert self.master.link is not None
        return self.feed(Frame(self.master.link.send(message, self.now_s)))

    def acknowledge(self) -> list[Effect]:
        """The master acknowledges what it has received."""
        assert self.master.link is not None
        self.now_s += 0.1
        effects = []
        for frame in self.master.link.due(self.now_s):
            effects += self.feed(Frame(frame))
        return effects

    def grant(self, renew: Renew) -> None:
        assert self.master.link is not None
        self.feed(Frame(self.master.link.loose(Grant(stamp=renew.stamp))))

    def refuse(self, code: str = "stale_session") -> list[Effect]:
        assert self.master.link is not None
        return self.feed(Frame(self.master.link.loose(Refused(code=code))))

    def start(self, token: int, slot: int | None = None, **spec: Any) -> Start:
        message = Start(
            registry=REGISTRY,
            slot=token if slot is None else slot,
            generation=1,
            incarnation=1,
            token=token,
            revision=1,
            spec={"name": f"w{token}", "main": "acme.jobs:main", **spec},
        )
        self.send(message)
        return message

    def started(self, token: int) -> Forked:
        """A START that is answered by a fork; nothing delivered to the master yet."""
        self.start(token)
        order = self.orders[-1]
        assert isinstance(order, StartWorker), order
        report = forked(order, pid=1000 + token)
        self.report(report)
        return report

    def said(self, *kinds: type[Message]) -> list[Message]:
        return [message for message in self.master.said if not kinds or type(message) in kinds]


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def new_bench() -> type[Bench]:
    return Bench


@pytest.fixture
def make_forked() -> Callable[..., Forked]:
    return forked


@pytest.fixture
def make_ended() -> Callable[..., Ended]:
    return ended


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Wait until `check` is true, and return what it returned."""

    def wait(check: Callable[[], Any], timeout_s: float = 20.0) -> Any:
        deadline_s = time.monotonic() + timeout_s
        while not (result := check()):
            assert time.monotonic() < deadline_s, "it did not become true in time"
            time.sleep(0.01)
        return result

    return wait
