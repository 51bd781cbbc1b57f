"""Peers that mean no good: strangers, a client that babbles, an agent that lies about others.

Owns: what they say. Must not know: whether it had an effect: nothing here may have one, and the
ordinary checks see if it has (invariant 14: a host's word counts for its own workers only).
"""

from abc import abstractmethod
from typing import Any

from msgspec import structs

from posthouse import codec
from posthouse.codec import NO_SESSION, Envelope
from posthouse.dial import (
    Delivered,
    DialEffect,
    Dialler,
    Opened,
    Redial,
    Rejected,
    Transmit,
)
from posthouse.messages import (
    PROTOCOL_MAX,
    Credit,
    Exit,
    Exited,
    Explain,
    GetStatus,
    Grant,
    Hello,
    Inventory,
    ListHosts,
    ListWorkers,
    Message,
    ReadOutput,
    Ready,
    Register,
    Renew,
    StartFailed,
    StopDone,
    Subscribe,
    Terminate,
    Unsubscribe,
)
from posthouse.records import ExitFacts
from posthouse_testing.sim.ledger import Ledger
from posthouse_testing.sim.network import Dealer, Network
from posthouse_testing.sim.node import Node
from posthouse_testing.sim.world import Violation, World

__all__ = ["Babbler", "Liar", "NewerAgent", "NewerPeer", "OlderPeer", "stranger_calls"]


def stranger_calls(world: World, network: Network, count: int) -> None:
    """Somebody with a key of no use sends what makes no sense, and hangs up."""
    random = world.random
    endpoint, role = random.choice((("agents", "agent"), ("clients", "client")))
    user = random.choice((f"{role}:stranger", "viewer:stranger", "client:stranger", "agent:x y"))
    dealer = Dealer(network, endpoint, "stranger", user, lambda _frame: None)
    for _ in range(count + 1):
        dealer.send(_nonsense(world))
    world.after(random.uniform(0.1, 3.0), dealer.close)


def _nonsense(world: World) -> bytes:
    random = world.random
    session = random.choice((NO_SESSION, world.entropy(16)))
    messages: tuple[Message, ...] = (
        Hello(nonce=world.entropy(16), role="agent", protocol_min=7, protocol_max=9),
        Hello(nonce=world.entropy(16), role="client", host="a"),
        Hello(nonce=world.entropy(16), role="agent", registry="0" * 32, epoch=10**9),
        Renew(stamp=1),
        Grant(stamp=1),
        StopDone(slot=0, generation=1, token=1),
    )
    message = random.choice(messages)
    sequence = random.randrange(3)
    whole = codec.encode(Envelope(session, random.randrange(4), sequence, 0, message))
    return random.choice((whole, whole, whole[:-3], world.entropy(20), b""))


class Rogue(Node):
    """A peer with a key of its own and a session that is in order; what it says in it is not."""

    role = ""
    user = ""

    def __init__(self, world: World, network: Network, ledger: Ledger, length_s: float) -> None:
        super().__init__(world, self.user.partition(":")[2], world.clock())
        self.network = network
        self.ledger = ledger
        self.dialler = Dialler(self._hello, world.entropy)
        self.dealer: Dealer | None = None
        self.until_s = world.now_s + length_s
        self.tick()

    def _hello(self, nonce: bytes) -> Hello:
        name = self.name
        return Hello(nonce=nonce, role=self.role, host=name, machine_id=name, boot_id=name)

    @abstractmethod
    def word(self) -> Message:
        """What it says next."""

    def opened(self) -> list[Message]:
        """What it says first."""
        return []

    def handle(self, event: bytes) -> None:
        self.carry_out(self.dialler.receive(event, self.clock.boot_s))
        self.wake_at(self.dialler.wake_s)

    def tick(self) -> None:
        if self.world.now_s > self.until_s:
            self.crash()
            return
        self.carry_out(self.dialler.tick(self.clock.boot_s))
        if self.dialler.link is not None and self.dialler.link.room > 0:
            self._say(self.word())
        self.wake_at(min(self.dialler.wake_s, self.clock.boot_s + 0.2))

    def _say(self, message: Message) -> None:
        self.world.log(self.name, f"says {type(message).__name__}")
        self.carry_out([self.dialler.send(message, self.clock.boot_s)])

    def effect(self, effect: DialEffect) -> None:
        match effect:
            case Redial():
                if self.dealer is not None:
                    self.dealer.close()
                endpoint = f"{self.role}s"
                self.dealer = Dealer(self.network, endpoint, self.name, self.user, self._hear)
            case Transmit(frame):
                assert self.dealer is not None
                self.dealer.send(frame)
            case Opened():
                for message in self.opened():
                    self._say(message)
            case Delivered(message):
                self.world.log(self.name, f"is told {type(message).__name__}")

    def _hear(self, frame: bytes) -> None:
        if self.alive:
            self.submit(frame)

    def crash(self) -> None:
        super().crash()
        if self.dealer is not None:
            self.dealer.close()


class Babbler(Rogue):
    """A client that asks for what is not, counts what it does not have, and registers nonsense."""

    role = "client"
    user = "client:babbler"

    def word(self) -> Message:
        random = self.world.random
        number = random.choice((0, 1, 2, 255, 256, 2**31, 2**63 - 1))
        ref = random.choice(("", "x", "0.1", "1.", ".", "9" * 160, "w1", "\x00", f"{number}.1"))
        request = self.world.entropy(16)
        specs: tuple[dict[str, Any], ...] = (
            {},
            {"name": "w"},
            {"name": "w", "main": 7},
            {"main": "m:f", "name": "w", "z": 1},
        )
        words: tuple[Message, ...] = (
            Subscribe(request=request, subscription=number, ref=ref, sequence=number),
            Subscribe(request=request, subscription=0, timeline=number, sequence=-1, credit=1),
            Credit(subscription=number, credit=4096),
            Credit(subscription=0, credit=1),
            Unsubscribe(subscription=number % 3),
            Register(request=request, spec=random.choice(specs)),
            GetStatus(request=request, ref=ref or "?"),
            Explain(request=request, ref=ref or "?"),
            Terminate(request=request, ref=f"{'9' * 32}:{number}.1"),
            ListWorkers(request=request, slot=number, generation=number, retired=True, limit=1),
            ListHosts(request=request, after="\uffff"),
            ReadOutput(request=request, ref=ref or "?", offset=number),
        )
        return random.choice(words)


class _Foreigner(Rogue):
    """A peer of another version of the protocol."""

    role = "client"
    user = "client:foreigner"
    versions = (0, 0)

    def _hello(self, nonce: bytes) -> Hello:
        first, last = self.versions
        return structs.replace(super()._hello(nonce), protocol_min=first, protocol_max=last)

    def word(self) -> Message:
        return ListHosts(request=self.world.entropy(16))


class OlderPeer(_Foreigner):
    """One with which this master has no version in common: it never gets a session."""

    versions = (PROTOCOL_MAX + 1, PROTOCOL_MAX + 3)

    def effect(self, effect: DialEffect) -> None:
        if isinstance(effect, Opened):
            raise Violation(6, f"{self.name} of protocol {self.versions} has a session")
        if isinstance(effect, Rejected):
            self.world.figures["peers of another version refused"] += 1
        super().effect(effect)


class NewerAgent(OlderPeer):
    """The same, of an agent."""

    role = "agent"
    user = "agent:foreigner"


class NewerPeer(_Foreigner):
    """One that speaks our version, too, and says now and then what we have never heard of."""

    versions = (0, PROTOCOL_MAX + 3)

    def tick(self) -> None:
        link = self.dialler.link
        if self.alive and link is not None and self.dealer is not None:
            kind = self.world.random.randrange(200, 256)
            body = codec.encode_body(Renew(stamp=1))
            self.dealer.send(codec.frame(kind, link.session, link.epoch, 0, 0, body))
            self.world.figures["frames of an unknown kind"] += 1
        super().tick()


class Liar(Rogue):
    """An agent without slots that tells of the ends of others' workers, and, where keys name the
    peers, now and then under another host's name."""

    role = "agent"
    user = "agent:liar"

    def _hello(self, nonce: bytes) -> Hello:
        hello, hosts = super()._hello(nonce), list(self.ledger.hosts.values())
        if not self.world.knobs.keyed or not hosts or self.world.random.random() < 0.5:
            return hello
        other = self.world.random.choice(hosts)
        self.world.figures["hosts under another one's name"] += 1
        return structs.replace(
            hello, host=other.name, machine_id=other.machine_id, boot_id=other.boot_id
        )

    def opened(self) -> list[Message]:
        return [Inventory(page=0, last=True)]

    def word(self) -> Message:
        """About a worker that is, or was, somewhere else."""
        random = self.world.random
        states = list(self.ledger.states.values())
        if not states:
            return StopDone(slot=0, generation=1, token=1)
        state = random.choice(states)
        word: dict[str, Any] = {
            "slot": state.slot,
            "generation": state.generation,
            "incarnation": state.incarnation,
            "token": state.token,
        }
        exit_ = Exit(registry=self.ledger.registry, facts=ExitFacts(code=0), **word)
        lies: tuple[Message, ...] = (
            Exited(worker=exit_),
            StopDone(slot=state.slot, generation=state.generation, token=state.token),
            StartFailed(reason="it is not so", **word),
            Ready(**word),
        )
        return random.choice(lies)
