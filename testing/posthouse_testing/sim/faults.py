"""What goes wrong: a plan drawn before anything happens, each fault with a number of its own.

Owns: the kinds of faults, how each is done to the world, the plan of a seed. Must not know: what
is checked.

Invariant: a plan is data: the same seed with some faults left out is the same world otherwise as
far as a world can be, so a failing plan can be shrunk by leaving faults out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from posthouse_master.effects import Room
from posthouse_testing.sim.client import Client
from posthouse_testing.sim.host import Machine
from posthouse_testing.sim.ledger import Ledger
from posthouse_testing.sim.master import MasterSeat
from posthouse_testing.sim.network import Network
from posthouse_testing.sim.node import Node
from posthouse_testing.sim.restore import disk_lies, registry_restored
from posthouse_testing.sim.rogue import (
    Babbler,
    Liar,
    NewerAgent,
    NewerPeer,
    OlderPeer,
    stranger_calls,
)
from posthouse_testing.sim.warden import WardenNode
from posthouse_testing.sim.world import World

__all__ = ["KINDS", "Fault", "Stage", "plan"]

FUSE_MAX = 12  # effects before a planned crash


@dataclass(slots=True)
class Stage:
    """Everything that faults can happen to."""

    world: World
    network: Network
    seat: MasterSeat
    machines: list[Machine]
    clients: list[Client]
    ledger: Ledger
    over: bool = False  # the faults have stopped


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong. `target` picks one of several; `amount` is the kind's own."""

    number: int
    at_s: float
    kind: str
    target: int
    length_s: float
    amount: int

    def __str__(self) -> str:
        return f"fault {self.number}: {self.kind} target {self.target} for {self.length_s:.2f} s"

    def strike(self, stage: Stage) -> None:
        stage.world.log("fault", str(self))
        stage.world.figures[f"fault {self.kind}"] += 1
        KINDS[self.kind][1](self, stage)


def plan(random: Random, rate: float, length_s: float, only: tuple[str, ...] = ()) -> list[Fault]:
    """Faults at `rate` a second; each seed leaves some kinds out, so that others go deep."""
    kinds = list(only) or [kind for kind in KINDS if random.random() < 0.6]
    weights = [KINDS[kind][0] for kind in kinds]
    faults: list[Fault] = []
    at_s = 0.0
    while kinds and rate > 0:
        at_s += random.expovariate(rate)
        if at_s >= length_s:
            break
        (kind,) = random.choices(kinds, weights)
        faults.append(
            Fault(
                number=len(faults),
                at_s=at_s,
                kind=kind,
                target=random.randrange(12),
                length_s=random.choice((0.1, 1.0, 2.5, 4.0, 9.0)) * random.uniform(0.5, 1.5),
                amount=random.randrange(FUSE_MAX),
            )
        )
    return faults


# --- how each kind is done ---


def _machine(fault: Fault, stage: Stage) -> Machine:
    return stage.machines[fault.target % len(stage.machines)]


def _warden(fault: Fault, stage: Stage) -> WardenNode | None:
    """One of those that the host has."""
    wardens = list(_machine(fault, stage).wardens.values())
    return wardens[fault.target % len(wardens)] if wardens else None


def _client(fault: Fault, stage: Stage) -> Client:
    return stage.clients[fault.target % len(stage.clients)]


def _peer_name(fault: Fault, stage: Stage) -> str:
    names = _peers(stage)
    return names[fault.target % len(names)]


def _length_s(fault: Fault, world: World) -> float:
    """Where leases have deadlines half of the faults outlast them."""
    longer = fault.amount % 2 == 1
    return fault.length_s + (1.5 * world.knobs.lease_s if longer else 0.0)


def _reset(fault: Fault, stage: Stage) -> None:
    stage.network.reset(_peer_name(fault, stage))


def _cut(fault: Fault, stage: Stage) -> None:
    name = _peer_name(fault, stage)
    up, down = ((True, True), (True, True), (True, False), (False, True))[fault.amount % 4]
    stage.network.cut(name, up=up, down=down)
    stage.world.after(_length_s(fault, stage.world), stage.network.heal, name)


def _cut_all(fault: Fault, stage: Stage) -> None:
    for machine in stage.machines:
        stage.network.cut(machine.name, up=True, down=True)
        stage.world.after(_length_s(fault, stage.world), stage.network.heal, machine.name)


def _peers(stage: Stage) -> list[str]:
    return [machine.name for machine in stage.machines] + [c.name for c in stage.clients]


def _swizzle(fault: Fault, stage: Stage) -> None:
    """Links stop one after the other, and come back in another order."""
    world, network = stage.world, stage.network
    names, step_s = _peers(stage), world.random.uniform(0.02, 0.6)
    world.random.shuffle(names)
    for number, name in enumerate(names):
        world.after(number * step_s, _stop_link, network, name)
    world.random.shuffle(names)
    for number, name in enumerate(names):
        world.after(_length_s(fault, world) + (len(names) + number) * step_s, network.heal, name)


def _stop_link(network: Network, name: str) -> None:
    network.cut(name, up=True, down=True)


def _all_reset(_: Fault, stage: Stage) -> None:
    """Everybody is back at once."""
    for name in _peers(stage):
        stage.network.reset(name)


def _black_hole(fault: Fault, stage: Stage) -> None:
    name, network = _peer_name(fault, stage), stage.network
    up, down = ((True, True), (True, False), (False, True))[fault.amount % 3]
    network.swallow(name, up=up, down=down)

    def again() -> None:
        network.swallow(name, up=False, down=False)

    stage.world.after(_length_s(fault, stage.world), again)


def _crash(node: Node | None) -> None:
    if node is not None:
        node.crash()


def _light(node: Node | None, fault: Fault) -> None:
    """It will crash in the midst of what it does next."""
    if node is not None:
        node.fuse = fault.amount


def _pause(node: Node | None, fault: Fault) -> None:
    if node is not None:
        node.pause(min(_length_s(fault, node.world), node.world.knobs.pause_s))


def _agent_leaves(fault: Fault, stage: Stage) -> None:
    agent = _machine(fault, stage).agent
    if agent is not None:
        agent.leave()


def _warden_term(fault: Fault, stage: Stage) -> None:
    warden = _warden(fault, stage)
    if warden is not None:
        warden.terminate()


def _reboot(fault: Fault, stage: Stage) -> None:
    machine = _machine(fault, stage)
    if machine.up:
        off_s = min(_length_s(fault, stage.world), max(5.0, 2 * stage.world.knobs.lease_s))
        machine.reboot(("all", "part", "none")[fault.amount % 3], off_s)


def _forks_fail(fault: Fault, stage: Stage) -> None:
    machine = _machine(fault, stage)
    machine.forks_fail = True

    def again() -> None:
        machine.forks_fail = False

    stage.world.after(fault.length_s, again)


def _disk_full(fault: Fault, stage: Stage) -> None:
    machine = _machine(fault, stage)
    machine.disk_full = True

    def again() -> None:
        machine.disk_full = False

    stage.world.after(fault.length_s, again)


def _master_disk(fault: Fault, stage: Stage) -> None:
    """Nearly full; or full, and then nothing can be kept."""
    stage.seat.fill((Room.LOW, Room.NONE)[fault.amount % 2])
    stage.world.after(fault.length_s, stage.seat.fill, Room.AMPLE)


def _kill_worker(fault: Fault, stage: Stage) -> None:
    live = [process for machine in stage.machines for process in machine.live]
    if live:
        live[fault.target % len(live)].kill(9)


def _kill_workers(fault: Fault, stage: Stage) -> None:
    for process in _machine(fault, stage).live:
        process.kill(9)


def _wall_clock(fault: Fault, stage: Stage) -> None:
    clocks = [machine.clock for machine in stage.machines] + [stage.seat.clock]
    jumps_s = (-86_400.0, 3600.0, -5.0, 10 * 86_400.0)
    clocks[fault.target % len(clocks)].wall_skew_s += jumps_s[fault.amount % len(jumps_s)]


def _store(fault: Fault, stage: Stage) -> None:
    stage.seat.store_fails = ("before", "after")[fault.amount % 2]


def _stranger(fault: Fault, stage: Stage) -> None:
    stranger_calls(stage.world, stage.network, fault.amount)


def _liar(fault: Fault, stage: Stage) -> None:
    Liar(stage.world, stage.network, stage.ledger, fault.length_s)


def _foreigner(fault: Fault, stage: Stage) -> None:
    kinds = (OlderPeer, NewerPeer, NewerAgent)
    kinds[fault.amount % 3](stage.world, stage.network, stage.ledger, fault.length_s)


def _babbler(fault: Fault, stage: Stage) -> None:
    Babbler(stage.world, stage.network, stage.ledger, fault.length_s)


def _interrupt(_: Fault, stage: Stage) -> None:
    if stage.seat.node is not None:
        stage.seat.node.interrupt()


Strike = Callable[[Fault, Stage], None]

KINDS: dict[str, tuple[float, Strike]] = {
    "connection reset": (3, _reset),
    "cable cut": (3, _cut),
    "all hosts cut": (1, _cut_all),
    "links stop in turn": (1, _swizzle),
    "all connections reset": (1, _all_reset),
    "black hole": (2, _black_hole),
    "master killed": (2, lambda _, s: _crash(s.seat.node)),
    "master killed between effects": (3, lambda f, s: _light(s.seat.node, f)),
    "master paused": (1, lambda f, s: _pause(s.seat.node, f)),
    "master deposed": (1, lambda _, s: s.seat.usurp()),
    "master interrupted": (1, _interrupt),
    "registry restored": (2, registry_restored),
    "disk of the master lied": (2, disk_lies),
    "commit failed": (1, _store),
    "disk of the master full": (1, _master_disk),
    "agent killed": (2, lambda f, s: _crash(_machine(f, s).agent)),
    "agent killed between effects": (3, lambda f, s: _light(_machine(f, s).agent, f)),
    "agent paused": (2, lambda f, s: _pause(_machine(f, s).agent, f)),
    "agent left": (1, _agent_leaves),
    "warden killed": (2, lambda f, s: _crash(_warden(f, s))),
    "warden killed between effects": (3, lambda f, s: _light(_warden(f, s), f)),
    "warden paused": (1, lambda f, s: _pause(_warden(f, s), f)),
    "warden ended by TERM": (1, _warden_term),
    "host rebooted": (1, _reboot),
    "forks fail": (1, _forks_fail),
    "disk of a host full": (1, _disk_full),
    "worker killed": (2, _kill_worker),
    "all workers of a host killed": (1, _kill_workers),
    "wall clock set": (1, _wall_clock),
    "stranger calls": (1, _stranger),
    "agent lies about others": (1, _liar),
    "peer of another version": (1, _foreigner),
    "client babbles": (1, _babbler),
    "client killed": (1, lambda f, s: _crash(_client(f, s).node)),
    "client paused": (1, lambda f, s: _pause(_client(f, s).node, f)),
}
