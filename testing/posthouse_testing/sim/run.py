"""One seed: build the world, let things go wrong, let them be well again, see that all settles.

Owns: the phases of a run and what "settled" means (invariant 20). Must not know: how a fault is
done, how an invariant is checked.

Invariant: a run ends with a Report or with a Failure that carries what is needed to see it again.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from posthouse import limits
from posthouse.messages import Claim
from posthouse.states import StopReason
from posthouse_agent.domains import crash_domain
from posthouse_agent.wards import FENCED, KEPT, TREE
from posthouse_master.core import MasterPolicy
from posthouse_master.leases import LeasePolicy
from posthouse_master.store.base import Life
from posthouse_testing.sim.check import Checker
from posthouse_testing.sim.client import Client
from posthouse_testing.sim.deploy import SOURCES
from posthouse_testing.sim.faults import Fault, Stage, plan
from posthouse_testing.sim.host import Machine
from posthouse_testing.sim.ledger import Ledger
from posthouse_testing.sim.master import MasterSeat
from posthouse_testing.sim.network import Network
from posthouse_testing.sim.world import Knobs, Violation, World

__all__ = ["SETTLE_S", "Failure", "Report", "Simulation", "simulate"]

SETTLE_S = 60.0  # after the last fault everything is in order within this, in virtual time
FOLLOW_S = 300.0  # a watch with a window of one has a round trip for each row behind it
LOOK_S = 0.5  # how often it is looked at
ACTION_RATE = 0.5  # what each client does a second
DEPLOY_RATE = 0.3  # where clients deploy: by each, a second
FOCUS_RATE = 1.5  # faults a second where their kinds are chosen
BRAKE_S = 10.0  # how long nothing is moved when many hosts are lost at once
RECOVERY_S = 25.0  # longer than the longest lease of such a world (twice 8 s, and the margin)
PLENTY = 50  # slots of a host, or of the cluster, that no run uses up
ENDING = 0.5  # share of seeds that end by terminating everything

Echo = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Report:
    """A run without a violation."""

    seed: int
    trace_hash: str
    figures: Counter[str]
    virtual_s: float
    settled_s: float  # the longest that it took to settle


class Failure(Exception):
    """A violation, and the run that led to it."""

    def __init__(self, seed: int, cause: Exception, world: World, faults: list[Fault]) -> None:
        super().__init__(f"seed {seed}: {type(cause).__name__}: {cause}")
        self.seed = seed
        self.cause = cause
        self.faults = faults
        self.number = cause.number if isinstance(cause, Violation) else 0
        self.trace = list(world.trace)
        self.trace_hash = world.trace_hash


def simulate(
    seed: int,
    *,
    skip: frozenset[int] = frozenset(),
    only: tuple[str, ...] = (),
    echo: Echo | None = None,
    leases: bool | None = None,
) -> Report:
    """Run a seed, without the faults whose numbers are in `skip`, or with faults of the kinds in
    `only` and many of them; with `leases` that have deadlines, or none, or as the seed draws.
    Raises Failure."""
    return Simulation(seed, skip=skip, only=only, echo=echo, leases=leases).run()


class Simulation:
    """The world of one seed. With `knobs` of your own and without faults it is a stage for a
    script: schedule what shall happen with `world.at`, then `run`. `lease_s`: leases end after
    that long; `leases`: whether they end after a length that is drawn, among longer faults."""

    def __init__(
        self,
        seed: int,
        *,
        skip: frozenset[int] = frozenset(),
        only: tuple[str, ...] = (),
        echo: Echo | None = None,
        knobs: Knobs | None = None,
        leases: bool | None = None,
        lease_s: float = 0.0,
    ) -> None:
        world = self.world = World(seed, echo, leases)
        self.scripted = knobs is not None
        if knobs is not None:
            world.knobs = knobs
        if lease_s:
            world.knobs = replace(world.knobs, lease_s=lease_s)
        random, knobs = world.random, world.knobs
        rate = FOCUS_RATE if only else knobs.fault_rate
        self.faults = plan(random, rate, knobs.faulty_s, only)
        self.skip = skip
        self.network = Network(world)
        # Mostly room for all; sometimes too little, in the cluster or on each host.
        workers_max = random.choice((2, 5, 100, 100)) if not self.scripted else 100
        slots = random.choice((1, 3, 50, 50)) if not self.scripted else 50
        self.ledger = Ledger(world, workers_max, {})
        self.checker = Checker(world, self.ledger)
        names = "abcdefgh"[: knobs.hosts]
        self.machines = [Machine(world, self.network, self.checker, n, slots) for n in names]
        policy = MasterPolicy(
            max_worker_processes=workers_max,
            max_worker_processes_per_host=50,
            lease=LeasePolicy(
                lease_s=knobs.lease_s,
                local_boot_id=self.machines[0].boot_id if knobs.near else "",
                handover_s=2 * knobs.lease_s,
                mass_loss_wait_s=BRAKE_S,
            ),
        )
        self.seat = MasterSeat(world, self.network, self.ledger, self.checker, policy)
        self.ledger.workers_per_host_max = dict.fromkeys(names, slots)
        self.clients = [
            Client(world, self.network, self.checker, f"c{number}", list(names), calm=self.scripted)
            for number in range(1, knobs.clients + 1)
        ]
        self._deployed_well = False
        self.stage = Stage(world, self.network, self.seat, self.machines, self.clients, self.ledger)
        self._squeeze = (
            {}
            if self.scripted
            else {
                "events_per_registration_max": random.choice((8, 256, 256)),
                "start_attempt_s": random.choice((5.0, 60.0, 60.0)),
                "page_items_max": random.choice((2, 256, 256)),
                "healthy_s": random.choice((1.0, 3.0, 10.0)),
                "retired_max": random.choice((1, 10_000, 10_000)),
                "outbox_messages_max": random.choice((160, 1024, 1024)),  # 128 are kept free
                "recovery_s": RECOVERY_S,
            }
        )

    @contextlib.contextmanager
    def squeezed(self) -> Iterator[None]:
        """Some bounds are made so small that a short run reaches them."""
        old = {name: getattr(limits, name) for name in self._squeeze}
        for name, value in self._squeeze.items():
            setattr(limits, name, value)
        try:
            yield
        finally:
            for name, value in old.items():
                setattr(limits, name, value)

    def run(self) -> Report:
        """All of it. Raises Failure."""
        try:
            with self.squeezed():
                return self._run()
        except Exception as error:
            self.world.log("VIOLATION", f"{type(error).__name__}: {error}")
            raise Failure(self.world.seed, error, self.world, self.faults) from error

    def _run(self) -> Report:
        world, knobs = self.world, self.world.knobs
        world.log("world", f"{knobs}")
        world.at(0.0, self.seat.start)
        for machine in self.machines:
            world.at(world.random.uniform(0.0, 1.0), machine.boot)
        for client in self.clients:
            world.at(world.random.uniform(0.0, 1.0), client.start)
            if not self.scripted:
                self._often(ACTION_RATE, client.act)
                if knobs.deploys:
                    self._often(DEPLOY_RATE, client.deployer.deploy)
        for _ in range(knobs.workers):
            client = world.random.choice(self.clients)
            world.at(world.random.uniform(0.5, 3.0), client.register)
        for fault in self.faults:
            if fault.number not in self.skip:
                world.at(fault.at_s, fault.strike, self.stage)
        world.run(knobs.faulty_s)
        self._calm()
        settled_s = self._settle(self._unsettled)
        if world.chance(ENDING) or self.scripted:
            world.log("world", "everything is terminated")
            for client in self.clients:
                client.terminate_all()
            for slot, generation in self.ledger.states:  # a lost history took some handles along
                self.clients[0].terminate(f"{self.ledger.registry}:{slot}.{generation}")
            for source in SOURCES if knobs.deploys else ():
                self.clients[0].deployer.withdraw(source)
            settled_s = max(settled_s, self._settle(self._unfinished))
        return Report(world.seed, world.trace_hash, world.figures, world.now_s, settled_s)

    def _often(self, rate: float, act: Callable[[], None]) -> None:
        world = self.world
        at_s = world.random.uniform(1.0, 4.0)
        while at_s < world.knobs.faulty_s:
            world.at(at_s, act)
            at_s += world.random.expovariate(rate)

    def _calm(self) -> None:
        """Faults stop: cables are whole, forks succeed, workers behave and do not end."""
        world = self.world
        world.log("world", "the faults stop")
        world.knobs = world.knobs.calm()
        self.stage.over = True
        self.network.heal_all()
        self.seat.calm()
        for machine in self.machines:
            machine.calm()
        for client in self.clients:
            client.calm = True

    def _settle(self, unsettled: Callable[[], list[str]]) -> float:
        """Wait until nothing is unsettled; how long that took."""
        begun_s = self.world.now_s
        while waits := unsettled():
            behind = sum(len(client.behind()) for client in self.clients)
            limit_s = FOLLOW_S if behind == len(waits) else SETTLE_S
            if self.world.now_s - begun_s > limit_s:
                raise Violation(20, f"after {limit_s:.0f} s without faults: " + "; ".join(waits))
            self.world.run(self.world.now_s + LOOK_S)
        return self.world.now_s - begun_s

    def _unsettled(self) -> list[str]:
        """What is not as it should be: empty once every registration runs that may."""
        waits = [f"host {m.name} is not settled" for m in self.machines if not m.settled]
        for client in self.clients:
            waits += client.unsettled()
        for machine in self.machines:
            for warden in machine.wardens.values():
                waits += warden.memory.old()
        waits += self._claimed()
        # Who follows slowly asks for nothing.
        behind = sum(len(client.behind()) for client in self.clients)
        waits += self._drained(all_asked=len(waits) == behind)
        waits += self._deployed()
        checker = self.checker
        wanted = {}
        for key, state in self.ledger.states.items():
            if state.life is Life.RETIRED:
                continue
            process = checker.living.get(key)
            if state.life is Life.RUNNING and process is not None:
                if state.stopping not in (None, StopReason.SHUTDOWN):  # that one is over by now
                    waits.append(f"{key} is still to be stopped")
                if process.token != state.token:
                    waits.append(f"{key} runs token {process.token}, not {state.token}")
                wanted[key] = process
            elif state.life is not Life.HELD and not self._has_no_room(key):
                waits.append(f"{key} is {state.life} and {'not ' * (not process)}running")
        waits += [f"{p} runs for nobody" for key, p in checker.living.items() if key not in wanted]
        return waits

    def _claimed(self) -> list[str]:
        """The operator takes over what a restored registry does not know, or has it ended."""
        found = [
            process
            for key, process in self.checker.living.items()
            if key not in self.ledger.states and process.token in self.ledger.lost
        ]
        for process in found:
            stop = process.token % 3 == 0 or self.world.chance(0.3)
            if stop:
                self.checker.may_end[process.token] = None
            claim = Claim(request=self.world.entropy(16), token=process.token, stop=stop)
            self.clients[0].ask(claim)
        return [f"{process} is unclaimed" for process in found]

    def _drained(self, *, all_asked: bool) -> list[str]:
        """Hosts that are out of service; they are taken back once no older wish is under way."""
        names = [name for name, host in self.ledger.hosts.items() if host.draining]
        if all_asked:
            for name in names:
                self.clients[0].drain(name, on=False)
        return [f"host {name} is drained" for name in names]

    def _deployed(self) -> list[str]:
        """Each source is declared once more, with content that runs, when nothing older is under
        way; then everything comes to its newest revision."""
        if not self.world.knobs.deploys:
            return []
        if not self._deployed_well:
            # Not once everything is settled: bad content keeps it from being so.
            if not any(client.asking for client in self.clients):
                self._deployed_well = True
                for source in SOURCES:
                    self.clients[0].deployer.deploy_well(source)
            return ["the last deployments are to come"]
        return self.ledger.declared.unmet(
            self.checker.living, self._has_no_room, self._hosts_with_room()
        )

    def _hosts_with_room(self) -> list[str]:
        """Where nothing is ever refused for want of a slot."""
        if self.ledger.workers_max < PLENTY:
            return []
        return [machine.name for machine in self.machines if machine.slots >= PLENTY]

    def _has_no_room(self, key: tuple[int, int]) -> bool:
        """Every host that it may run on is full: of processes, and of registrations that name the
        host and so have a slot there whether they run or not. Or its crash domain lives there
        under a warden that does not guard as it needs it."""
        pinned = self.ledger.wires[key].get("host")
        taken: Counter[str] = Counter()
        for other, state in self.ledger.states.items():
            placed = state.host if other in self.checker.living else ""
            if other != key and state.life is not Life.RETIRED:
                taken[self.ledger.wires[other].get("host") or placed] += 1
        return all(
            taken[machine.name] >= machine.slots or self._other_domain(key, machine)
            for machine in self.machines
            if pinned in (None, machine.name)
        )

    def _other_domain(self, key: tuple[int, int], machine: Machine) -> bool:
        wire = self.ledger.wires[key]
        domain = crash_domain(wire)
        if not domain or wire.get("host") or not self.world.knobs.lease_s:
            return False
        others = (KEPT, FENCED) if wire.get("fence") == TREE else (KEPT,)
        return any(p.warden in others and crash_domain(p.spec) == domain for p in machine.live)

    def _unfinished(self) -> list[str]:
        """After everything was terminated: nothing lives, all is retired, everybody was told."""
        waits = [f"host {m.name} is not settled" for m in self.machines if not m.settled]
        for client in self.clients:
            waits += client.unsettled()
        waits += [
            f"{key} is {state.life}"
            for key, state in self.ledger.states.items()
            if state.life is not Life.RETIRED
        ]
        return waits + [f"{process} lives" for process in self.checker.living.values()]
