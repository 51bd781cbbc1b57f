"""VirtualCluster: a master, hosts and a client on virtual time, for one test.

Owns: the world, the simulated workers and the oracles of one test, the passing of time. Must not
know: pytest, how a fault is done (faults, sim). Invariant: time passes only in `run`, `run_until`,
`chaos` and in calls of the client; what a worker or the outside world breaks is raised there.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar, cast

from posthouse import limits
from posthouse.client import Cluster
from posthouse.conversation import Connection
from posthouse.errors import TimedOut, UsageError
from posthouse.handle import Handle
from posthouse.ids import HandleId
from posthouse.records import Event
from posthouse.spec import BackgroundWorker
from posthouse_master.core import MasterPolicy
from posthouse_master.leases import LeasePolicy
from posthouse_testing.oracle import DoubleRun, Exclusive, Once
from posthouse_testing.sim.check import Checker
from posthouse_testing.sim.faults import Stage
from posthouse_testing.sim.host import Machine
from posthouse_testing.sim.ledger import Ledger
from posthouse_testing.sim.master import MasterSeat
from posthouse_testing.sim.network import Network
from posthouse_testing.sim.process import Process
from posthouse_testing.sim.world import Knobs, Timer, Violation, World
from posthouse_testing.virtual import faults
from posthouse_testing.virtual.engine import VirtualEngine
from posthouse_testing.virtual.faults import CHAOS, Target
from posthouse_testing.virtual.process import Program, VirtualProcess
from posthouse_testing.virtual.watchdog import STEP_S_MAX, Watchdog
from posthouse_testing.virtual.worker import SimulatedWorker

__all__ = ["VirtualCluster"]

EVENTS_MAX = 5_000_000  # of one cluster: some minutes of real time
WAIT_S_MAX = 100_000.0  # of a call or wait that names no end: a day, in virtual time
HOSTS_MAX = 50
LOOK_S = 0.01  # how often run_until looks
BRAKE_S = 10.0  # how long nothing is moved when many hosts are lost at once
TRACE_LINES = 100  # of a report
_DULL = ("RenewLease", "tells Leased")  # each second, and no news

SomeProgram = TypeVar("SomeProgram", bound=Program)


class VirtualCluster:
    """hosts: their names, or how many. seed: of everything that is random. lease_s: how long a
    host that is cut off keeps workers that may move (0: for ever). slots: of each host. delay_s:
    of a message, typically. It is ready when it is made: the hosts are up.
    """

    def __init__(
        self,
        hosts: Iterable[str] | int = ("a", "b"),
        *,
        seed: int = 0,
        lease_s: float = 10.0,
        slots: int = 50,
        delay_s: float = 0.001,
        step_s_max: float = STEP_S_MAX,
    ) -> None:
        names = _names(hosts)
        if lease_s and not limits.lease_s_min <= lease_s <= limits.lease_s_max:
            rule = f"must be 0, or {limits.lease_s_min:g} to {limits.lease_s_max:g}"
            raise UsageError(f"lease_s is {lease_s}: {rule}")
        self.seed = seed
        self.hosts = names
        self.struck: list[str] = []
        """The faults that `chaos` has done, in their order."""
        self._trace: deque[str] = deque(maxlen=TRACE_LINES)
        world = self.world = World(seed, self._noted)
        quiet = Knobs.quiet(hosts=len(names), clients=1)
        world.knobs = replace(quiet, lease_s=lease_s, delay_s=delay_s, drift=limits.clock_drift / 2)
        self._programs: dict[str, Program] = {}
        self._exclusives: dict[str, Exclusive] = {}
        self._onces: dict[str, Once] = {}
        self._watchdog = Watchdog(step_s_max)
        self._depth = 0  # of steps of workers
        self._happening = False
        network = Network(world)
        ledger = self._ledger = Ledger(world, limits.workers_per_cluster_max, {})
        checker = Checker(world, ledger)
        policy = MasterPolicy(
            lease=LeasePolicy(lease_s=lease_s, handover_s=2 * lease_s, mass_loss_wait_s=BRAKE_S),
        )
        seat = MasterSeat(world, network, ledger, checker, policy)
        machines = [Machine(world, network, checker, name, slots) for name in names]
        for machine in machines:
            machine.make_process = self._make_process
        self._stage = Stage(world, network, seat, machines, [], ledger)
        self._engine = VirtualEngine(world, network, self._passing)
        self.client = self._begin()
        """A posthouse.Cluster, as posthouse.connect() gives one; its waits pass virtual time."""

    def _begin(self) -> Cluster:
        world = self.world
        world.at(0.0, self._stage.seat.start)
        for machine in self._stage.machines:
            world.at(world.random.uniform(0.0, 0.2), machine.boot)
        self._engine.start()
        client = Cluster(cast("Any", Connection(self._engine)))
        self.run_until(lambda: all(host.reachable for host in self._known(client)), timeout=60)
        return client

    def _known(self, client: Cluster) -> Iterator[Any]:
        hosts = {host.name: host for host in client.hosts()}
        return (hosts.get(name) or _NoHost for name in self.hosts)

    def __repr__(self) -> str:
        hosts = ",".join(self.hosts)
        return f"<VirtualCluster seed={self.seed} hosts={hosts} at {self.now_s:.3f} s>"

    # --- workers ---

    def worker(self, main: str) -> Callable[[SomeProgram], SomeProgram]:
        """What runs where a registration says `main`: a generator function of one argument, the
        SimulatedWorker, or a class of one argument whose `run()` is a generator.

            @cluster.worker("myapp:consume")
            def consume(me):
                while True:
                    yield me.latch.wait(timeout=1)
        """
        if not isinstance(main, str) or ":" not in main:
            raise UsageError(f'main is {main!r}: must be "module:function"')

        def declare(program: SomeProgram) -> SomeProgram:
            self._programs[main] = program
            return program

        return declare

    def register(self, worker: BackgroundWorker, **options: Any) -> Handle:
        """`client.register`; its main must be declared with `worker`."""
        self.program(worker.entry_point)
        return self.client.register(worker, **options)

    def processes(self, handle: Handle | None = None) -> list[VirtualProcess]:
        """Every process there ever was, by token; with a handle, of this registration. What is in
        here is the truth: no master and no agent was asked."""
        found = [p for p in self._ledger.processes.values() if isinstance(p, VirtualProcess)]
        if handle is not None:
            found = [p for p in found if (p.slot, p.generation) == _key(handle.id)]
        return found

    def running(self, handle: Handle | None = None) -> list[VirtualProcess]:
        """Those of them that live now."""
        return [process for process in self.processes(handle) if process.live]

    def events(self, handle: Handle | None = None) -> list[Event]:
        """The rows of the master's log, or of one registration, that are durable now."""
        if handle is None:
            return list(self._ledger.events)
        return list(self._ledger.streams[handle.id.short])

    # --- time ---

    @property
    def now_s(self) -> float:
        """Virtual seconds since the cluster was made."""
        return self.world.now_s

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        if not 0 <= seconds <= WAIT_S_MAX:
            raise UsageError(f"seconds is {seconds}: must be 0 to {WAIT_S_MAX:g}")
        __tracebackhide__ = True
        self._advance(lambda: False, self.now_s + seconds)

    def run_until(self, true: Callable[[], Any], *, timeout: float) -> None:
        """Let time pass until `true()` is; it is asked each hundredth second. Raises TimedOut."""
        __tracebackhide__ = True
        until_s = self.now_s + timeout
        while not true():
            if self.now_s >= until_s:
                raise TimedOut(f"not within {timeout:g} virtual seconds: {_named(true)}")
            self._advance(lambda: False, min(self.now_s + LOOK_S, until_s))

    def after(self, seconds: float, happens: Callable[..., Any], *arguments: Any) -> Timer:
        """The world outside: call this later, whoever is dead by then. A message that is on its
        way, a job that another service works on. Its `cancel()` takes it back."""
        return self.world.after(seconds, happens, *arguments)

    # --- what must not happen ---

    def exclusive(self, name: str) -> Exclusive:
        """What only one may hold at a time, the same one for each name; see also me.exclusive."""
        if name not in self._exclusives:
            self._exclusives[name] = Exclusive(name, lambda: self.now_s, self.log)
        return self._exclusives[name]

    def once(self, name: str) -> Once:
        """What may be done once for each key, the same one for each name."""
        if name not in self._onces:
            self._onces[name] = Once(name, lambda: self.now_s, self.log)
        return self._onces[name]

    def log(self, text: str) -> None:
        """A line of the test's own in the trace, which a failure shows."""
        self.world.log("outside", text)

    def check(self) -> None:
        """Raises DoubleRun if one was found, though somebody may have swallowed it then."""
        broken: list[DoubleRun] = []
        oracles: list[Exclusive | Once] = [*self._exclusives.values(), *self._onces.values()]
        for oracle in oracles:
            broken += oracle.broken
        if broken:
            raise broken[0]

    # --- faults ---

    def cut(self, host: str, *, to_master: bool = True, from_master: bool = True) -> None:
        """Nothing passes between the host and the master, or one way only, until `heal`; nobody
        is told."""
        name = faults.machine(self._stage, host).name
        self._stage.network.cut(name, up=to_master, down=from_master)

    def heal(self, host: str | None = None) -> None:
        """The cable is whole again; without a name, all are."""
        network = self._stage.network
        if host is None:
            network.heal_all()
        else:
            network.heal(faults.machine(self._stage, host).name)

    def kill(self, target: Target, *, down_s: float | None = None) -> None:
        """kill -9 of "master", "agent:HOST", "warden:HOST" (all of the host) or of a worker's
        process; "host:HOST" loses power. Master, agent and host are back after `down_s`, else
        after some seconds; a worker as its registration says."""
        faults.kill(self._stage, target, down_s)

    def pause(self, target: Target, seconds: float) -> None:
        """SIGSTOP to one of those, and SIGCONT after so many seconds."""
        faults.pause(self._stage, target, seconds)

    def chaos(self, seconds: float, *, rate: float = 0.4, kinds: Iterable[str] = CHAOS) -> None:
        """Let time pass with random faults, `rate` a second, drawn by the seed; then all is made
        whole again. posthouse_testing.virtual.CHAOS has their kinds."""
        __tracebackhide__ = True
        planned = faults.begin(self._stage, seconds, rate, tuple(kinds))
        begun_s = self.now_s
        try:
            self.run(seconds)
        finally:
            self.struck += [
                f"{begun_s + fault.at_s:10.3f} s  {faults.told(self._stage, fault)}"
                for fault in planned
                if begun_s + fault.at_s <= self.now_s
            ]
        faults.make_whole(self._stage)

    # --- the end ---

    def report(self) -> str:
        """What a failure is explained by: the faults, the processes, the end of the trace."""
        parts = [f"seed {self.seed}, {self.now_s:.3f} virtual seconds"]
        if self.struck:
            parts += ["", "faults:", *(f"  {fault}" for fault in self.struck)]
        parts += ["", "processes:"]
        parts += [f"  {_life(process)}" for process in self.processes()] or ["  none"]
        parts += ["", f"the last {TRACE_LINES} lines of the trace:"]
        parts += [f"  {line}" for line in self._trace]
        return "\n".join(parts)

    def close(self) -> None:
        """Nothing happens any more. What is left of the workers' generators is thrown away."""
        self._engine.close()
        self._watchdog.close()
        for process in self.processes():
            process.end("closed", None, 9)
            process.forget()

    # --- for process.Site, engine.Passing and faults ---

    def program(self, main: str) -> Program:
        """Raises UsageError."""
        if main not in self._programs:
            known = ", ".join(repr(name) for name in self._programs) or "none"
            raise UsageError(
                f"no simulated worker {main!r}; declared: {known}",
                hint=f'@cluster.worker("{main}") above a generator function declares it',
            )
        return self._programs[main]

    def body_of(self, process: VirtualProcess) -> SimulatedWorker:
        run = self._ledger.runs[process.slot, process.generation][process.incarnation]
        return SimulatedWorker(self, process, self._ledger.registry, run.revision)

    def step_begins(self) -> None:
        self._depth += 1
        self._watchdog.begin()

    def step_ends(self) -> None:
        self._depth -= 1
        if not self._depth:
            self._watchdog.end()

    def _noted(self, line: str) -> None:
        if not line.endswith(_DULL):
            self._trace.append(line)

    def _make_process(self, **fields: Any) -> Process:
        return VirtualProcess(site=self, **fields)

    def _passing(self, done: Callable[[], bool], what: str) -> None:
        self._advance(done, self.now_s + WAIT_S_MAX)
        if not done():
            raise TimedOut(f"waited {WAIT_S_MAX:g} virtual seconds for {what}")

    def _advance(self, done: Callable[[], bool], until_s: float) -> None:
        __tracebackhide__ = True
        if self._happening:
            raise UsageError(
                "virtual time does not pass in the midst of a step: this was called by a "
                "simulated worker, or by what cluster.after() called",
                hint="a worker waits by yielding; calls of the client belong into the test",
            )
        with self._told():
            while not done():
                self._happening = True
                try:
                    if not self.world.step(until_s):
                        return
                finally:
                    self._happening = False
                if self.world.figures["events"] > EVENTS_MAX:
                    raise AssertionError(f"more than {EVENTS_MAX} events at {self.now_s:.0f} s")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except Violation as violation:
            violation.add_note(
                "This is a promise of posthouse that was broken, and no fault of your worker: "
                f"please report it, with the seed {self.seed} and this test."
            )
            raise


class _NoHost:
    reachable = False


def _names(hosts: Iterable[str] | int) -> tuple[str, ...]:
    if isinstance(hosts, int):
        if not 1 <= hosts <= HOSTS_MAX:
            raise UsageError(f"hosts is {hosts}: must be 1 to {HOSTS_MAX}, or names")
        return tuple("abcdefghijklmnopqrstuvwxyz"[n] if n < 26 else f"h{n}" for n in range(hosts))
    names = tuple(hosts)
    if not 1 <= len(names) <= HOSTS_MAX or len(set(names)) < len(names) or not all(names):
        raise UsageError(f"hosts is {names!r}: must be 1 to {HOSTS_MAX} different names")
    return names


def _key(id_: HandleId) -> tuple[int, int]:
    return (id_.slot, id_.generation)


def _named(what: Callable[[], Any]) -> str:
    return getattr(what, "__qualname__", repr(what))


def _life(process: VirtualProcess) -> str:
    end = "lives" if process.died_s is None else f"{process.died_s:.3f} s {process.cause}"
    if process.code is not None:
        end += f" {process.code}"
    if process.signal is not None:
        end += f" by signal {process.signal}"
    text = f"{process.name} #{process.incarnation} token {process.token} on {process.host}: "
    text += f"{process.born_s:.3f} s to {end}"
    if process.traceback:
        text += f" ({process.traceback.strip().splitlines()[-1]})"
    return text
