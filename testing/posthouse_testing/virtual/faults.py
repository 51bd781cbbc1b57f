"""What a test does to a simulated cluster: one fault by name, or many at random.

Owns: which things can be hit, which kinds of faults chaos is made of. Must not know: how the world
does each (sim.faults), clients, time's passing. Invariant: chaos does nothing that posthouse's
guarantees leave out, such as a process that KILL does not end; so what breaks in it is the
worker's own doing, or a defect of posthouse.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

from posthouse.errors import NotRunning, UsageError
from posthouse.handle import Handle
from posthouse_testing.sim.faults import Fault, Stage
from posthouse_testing.sim.host import Machine
from posthouse_testing.sim.node import Node
from posthouse_testing.sim.process import Process
from posthouse_testing.virtual.process import VirtualProcess

__all__ = ["CHAOS", "Target", "begin", "kill", "machine", "make_whole", "pause", "told"]

CHAOS = (
    "connection reset",
    "cable cut",
    "all hosts cut",
    "master killed",
    "master killed between effects",
    "master paused",
    "agent killed",
    "agent killed between effects",
    "agent paused",
    "warden killed",
    "warden paused",
    "host rebooted",
    "forks fail",
    "worker killed",
    "worker paused",
    "wall clock set",
)
"""The kinds of faults in `chaos`. A seed leaves some of them out, so that others go deep."""

Target = str | Handle | Process
LENGTHS_S = (0.1, 1.0, 2.5, 4.0, 9.0)
RATE_MAX = 20.0  # more faults a second leave no time for anything else


# --- one fault ---


def kill(stage: Stage, target: Target, down_s: float | None) -> None:
    """See VirtualCluster.kill."""
    if not isinstance(target, str):
        _process(stage, target).kill(9)
        return
    role, _, host = target.partition(":")
    if role == "host":
        machine(stage, host).reboot("all", 5.0 if down_s is None else down_s)
        return
    nodes = _nodes(stage, target)
    if down_s is not None and role == "master":
        stage.seat.restart_s = _once(down_s, stage.seat, "restart_s")
    elif down_s is not None and role == "agent":
        owner = machine(stage, host)
        owner.agent_restart_s = _once(down_s, owner, "agent_restart_s")
    elif down_s is not None:
        raise UsageError(f"down_s is {down_s} for {target}: its agent starts another at once")
    for node in nodes:
        node.crash()


def _once(down_s: float, owner: object, name: str) -> Callable[[], float]:
    """It is away for so long now, and later for as long as usual."""
    usual = getattr(owner, name)

    def next_time() -> float:
        setattr(owner, name, usual)
        return down_s

    return next_time


def pause(stage: Stage, target: Target, seconds: float) -> None:
    """See VirtualCluster.pause."""
    if not 0 < seconds < 1e6:
        raise UsageError(f"seconds is {seconds}: must be more than 0")
    if isinstance(target, str):
        for node in _nodes(stage, target):
            node.pause(seconds)
    else:
        _process(stage, target).pause(seconds)


def machine(stage: Stage, host: str) -> Machine:
    """The host of this name. Raises UsageError."""
    for found in stage.machines:
        if found.name == host:
            return found
    names = ", ".join(found.name for found in stage.machines)
    raise UsageError(f"host is {host!r}: must be one of {names}")


def _nodes(stage: Stage, target: str) -> list[Node]:
    role, _, host = target.partition(":")
    found: list[Node | None]
    match role:
        case "master" if not host:
            found = [stage.seat.node]
        case "agent":
            found = [machine(stage, host).agent]
        case "warden":
            found = [*machine(stage, host).wardens.values()]
        case _:
            raise UsageError(
                f'target is {target!r}: must be "master", "agent:HOST", "warden:HOST", '
                'a Handle or a process; kill also takes "host:HOST"'
            )
    nodes = [node for node in found if node is not None]
    if not nodes:
        raise NotRunning(f"{target} does not run now")
    return nodes


def _process(stage: Stage, target: Handle | Process) -> VirtualProcess:
    if isinstance(target, Handle):
        key = (target.id.slot, target.id.generation)
        found = [p for m in stage.machines for p in m.live if (p.slot, p.generation) == key]
        if not found:
            raise NotRunning(f"{target!r} has no process now")
        (target,) = found
    assert isinstance(target, VirtualProcess), target
    return target


# --- many ---


def begin(stage: Stage, seconds: float, rate: float, kinds: tuple[str, ...]) -> list[Fault]:
    """Plan them, from now on; each strikes at its time."""
    if not 0 < rate <= RATE_MAX:
        raise UsageError(f"rate is {rate}: must be more than 0, and {RATE_MAX:g} at most")
    for kind in kinds:
        if kind not in CHAOS:
            raise UsageError(f"kinds has {kind!r}: must be of {', '.join(CHAOS)}")
    world = stage.world
    # Pauses may outlast a lease; bytes of a dead connection may arrive after it.
    pause_s = max(3 * world.knobs.lease_s, 6.0)
    world.knobs = replace(world.knobs, pause_s=pause_s, late=0.5)
    faults = list(_plan(world.random, seconds, rate, kinds))
    for fault in faults:
        world.after(fault.at_s, _strike, stage, fault)
    return faults


def _plan(random: Random, seconds: float, rate: float, kinds: tuple[str, ...]) -> Iterator[Fault]:
    some = [kind for kind in kinds if random.random() < 0.7] or list(kinds)
    number, at_s = 0, random.expovariate(rate)
    while some and at_s < seconds:
        yield Fault(
            number=number,
            at_s=at_s,
            kind=random.choice(some),
            target=random.randrange(12),
            length_s=random.choice(LENGTHS_S) * random.uniform(0.5, 1.5),
            amount=random.randrange(12),
        )
        number, at_s = number + 1, at_s + random.expovariate(rate)


def _strike(stage: Stage, fault: Fault) -> None:
    if fault.kind != "worker paused":
        fault.strike(stage)
        return
    stage.world.log("fault", str(fault))
    live = [process for found in stage.machines for process in found.live]
    if live:
        process = live[fault.target % len(live)]
        assert isinstance(process, VirtualProcess)
        process.pause(fault.length_s)


def told(stage: Stage, fault: Fault) -> str:
    """A fault in words."""
    host = stage.machines[fault.target % len(stage.machines)].name
    everywhere = fault.kind.startswith(("master", "worker", "all hosts", "wall clock"))
    where = "" if everywhere else f" ({host})"
    lasts = not fault.kind.endswith(("killed", "effects", "set", "reset"))
    return f"{fault.kind}{where}" + (f" for {fault.length_s:.2f} s" if lasts else "")


def make_whole(stage: Stage) -> None:
    """The faults are over; what is stopped goes on when its time comes."""
    stage.world.log("world", "the faults stop")
    stage.world.knobs = replace(stage.world.knobs, late=0.0)
    stage.network.heal_all()
    stage.seat.calm()
    for found in stage.machines:
        found.calm()
