"""Peers that mean no good: strangers who speak nonsense, and an agent that lies about others.

Owns: what they say. Must not know: whether it had an effect: nothing here may have one, and the
ordinary checks see if it has (invariant 14: a host's word counts for its own workers only).
"""

from collections.abc import Callable
from typing import Any

from posthouse import codec
from posthouse.codec import NO_SESSION, Envelope
from posthouse.dial import Delivered, DialEffect, Dialler, Opened, Redial, Transmit
from posthouse.messages import (
    Exit,
    Exited,
    Grant,
    Hello,
    Inventory,
    Message,
    Ready,
    Renew,
    StartFailed,
    StopDone,
)
from posthouse.records import ExitFacts
from posthouse_testing.sim.ledger import Ledger
from posthouse_testing.sim.network import Dealer, Network
from posthouse_testing.sim.node import Node
from posthouse_testing.sim.world import World

__all__ = ["Liar", "stranger_calls"]


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


class Liar(Node):
    """An agent with a key of its own, without slots, that tells of the ends of others' workers."""

    def __init__(self, world: World, network: Network, ledger: Ledger, length_s: float) -> None:
        super().__init__(world, "liar", world.clock())
        self.network = network
        self.ledger = ledger
        self.dialler = Dialler(self._hello, world.entropy)
        self.dealer: Dealer | None = None
        self.until_s = world.now_s + length_s
        self.tick()

    def _hello(self, nonce: bytes) -> Hello:
        return Hello(nonce=nonce, role="agent", host="liar", machine_id="liar", boot_id="liar")

    def handle(self, event: bytes) -> None:
        self.carry_out(self.dialler.receive(event, self.clock.boot_s))
        self.wake_at(self.dialler.wake_s)

    def tick(self) -> None:
        if self.world.now_s > self.until_s:
            self.crash()
            return
        self.carry_out(self.dialler.tick(self.clock.boot_s))
        if self.dialler.open:
            self.carry_out([self.dialler.send(self._lie(), self.clock.boot_s)])
        self.wake_at(min(self.dialler.wake_s, self.clock.boot_s + 0.3))

    def effect(self, effect: DialEffect) -> None:
        match effect:
            case Redial():
                if self.dealer is not None:
                    self.dealer.close()
                self.dealer = Dealer(self.network, "agents", "liar", "agent:liar", self._hear())
            case Transmit(frame):
                assert self.dealer is not None
                self.dealer.send(frame)
            case Opened():
                empty = Inventory(page=0, last=True)
                self.effect(self.dialler.send(empty, self.clock.boot_s))
            case Delivered(message):
                self.world.log(self.name, f"is told {type(message).__name__}")

    def _hear(self) -> Callable[[bytes], None]:
        def deliver(frame: bytes) -> None:
            if self.alive:
                self.submit(frame)

        return deliver

    def crash(self) -> None:
        super().crash()
        if self.dealer is not None:
            self.dealer.close()

    def _lie(self) -> Message:
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
        lie = random.choice(lies)
        self.world.log(self.name, f"says {type(lie).__name__} of {state.slot}.{state.generation}")
        return lie
