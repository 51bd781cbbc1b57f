"""A simulated host: its wardens and agents come and go, its journal and its processes are real.

Owns: one machine: power, clock, boot id, journal, fake processes. Must not know: the master, what
is checked.

Invariant: what the kernel would keep is kept here and nothing else: a journal entry that was
written survives a warden's crash, a worker does not survive its warden, nothing but the journal
(and perhaps not all of it) survives a boot.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from signal import SIGKILL
from typing import Protocol

from posthouse.link import Link
from posthouse.settings import AgentSettings
from posthouse_agent import effects as agent_effects
from posthouse_agent import orders
from posthouse_agent.warden_core import recover
from posthouse_agent.warden_effects import Entry, ForkDone, ForkRefused, ProcessEnded
from posthouse_agent.wards import FENCED, KINDS
from posthouse_testing.sim.agent import AgentNode
from posthouse_testing.sim.local import LocalSocket
from posthouse_testing.sim.network import Dealer, Network
from posthouse_testing.sim.process import Process
from posthouse_testing.sim.warden import WardenNode, refused
from posthouse_testing.sim.world import World

__all__ = ["Machine", "Sessions", "Watcher"]

Sessions = tuple[bytes | None, bytes | None]  # an agent's, before an input and after it


class Watcher(Protocol):
    """Who looks at what happens on hosts (check.Checker)."""

    def queued(self, who: str, link: Link, backlog: int = 0) -> None: ...
    def forking(self, machine: "Machine", order: orders.StartWorker) -> None: ...
    def forked(self, machine: "Machine", process: Process) -> None: ...
    def ended(self, process: Process) -> None: ...
    def agent_said(self, machine: "Machine", frame: bytes) -> None: ...
    def obeyed(self, machine: "Machine", order: orders.Order, sessions: Sessions) -> None: ...
    def warden_said(self, machine: "Machine", kind: str, report: orders.Report) -> None: ...


@dataclass(slots=True)
class Journal:
    """The file of one kind of warden. `boot_id`: of when it was begun."""

    boot_id: str
    entries: list[Entry] = field(default_factory=list)

    @property
    def tells(self) -> bool:
        """Whether workers or exits are in it that nobody else can tell of."""
        left = recover(self.entries, rebooted=False)
        return bool(left.lost or left.exits)


class Machine:
    """One host."""

    def __init__(
        self, world: World, network: Network, watcher: Watcher, name: str, slots: int
    ) -> None:
        self.world = world
        self.network = network
        self.watcher = watcher
        self.name = name
        self.cable = name  # what a cut cuts
        self.slots = slots
        self.machine_id = world.entropy(16).hex()
        self.clock = world.clock()
        self.boot_id = world.entropy(16).hex()
        self.journals = {kind: Journal(self.boot_id) for kind in KINDS}
        self.processes: dict[int, Process] = {}  # by token; dead ones stay
        self.wardens: dict[str, WardenNode] = {}  # by kind
        self.agent: AgentNode | None = None
        self.make_process: Callable[..., Process] = Process
        self.agent_restart_s: Callable[[], float] = lambda: world.random.uniform(0.05, 3.0)
        self.forks_fail = False
        self.disk_full = False
        self.up = False
        self._pids = world.random.randint(100, 30_000)
        self._pid_starts = 1000

    @property
    def live(self) -> list[Process]:
        return [process for process in self.processes.values() if process.live]

    @property
    def warden(self) -> WardenNode | None:
        """The fenced one."""
        return self.wardens.get(FENCED)

    @property
    def settled(self) -> bool:
        """Agent and wardens serve, and no exit waits to be confirmed."""
        if not self.up or self.agent is None or FENCED not in self.wardens:
            return False
        sockets = self.agent.sockets
        return all(
            kind in sockets and not sockets[kind].left and not node.core.exits
            for kind, node in self.wardens.items()
        )

    def there(self) -> tuple[str, ...]:
        """As WardenStarter.there."""
        return tuple(
            kind
            for kind, journal in self.journals.items()
            if kind != FENCED and (kind in self.wardens or journal.tells)
        )

    def next_pid(self) -> int:
        # Small numbers come round again soon: a pid alone is nobody's name.
        self._pids = 100 + (self._pids - 99) % 40
        while any(process.pid == self._pids for process in self.live):
            self._pids += 1
        return self._pids

    # --- power ---

    def boot(self) -> None:
        self.up = True
        self.start_agent()

    def reboot(self, keep: str, off_s: float) -> None:
        """Power is lost. `keep`: what is left of the journal: "all", "part" or "none"."""
        self.world.log(f"host {self.name}", f"loses power, journal: {keep}")
        self.up = False
        for process in self.live:
            process.end("reboot", None, None)
        for node in (self.agent, *self.wardens.values()):
            if node is not None:
                node.crash()
        if keep != "all":
            for process in self.processes.values():
                process.orphaned = True
        for journal in self.journals.values():
            if keep == "none":
                journal.entries = []
            elif keep == "part" and journal.entries:
                del journal.entries[self.world.random.randrange(len(journal.entries)) :]
        self.boot_id = self.world.entropy(16).hex()
        self.clock = self.world.clock()
        self.world.after(off_s, self.boot)

    def calm(self) -> None:
        """Faults stop: forks succeed, workers obey and do not end by themselves."""
        self.forks_fail = self.disk_full = False
        for process in self.live:
            process.calm()
        for node in (self.agent, *self.wardens.values()):
            if node is not None:
                node.fuse = None

    # --- agent ---

    def start_agent(self) -> None:
        if not self.up or self.agent is not None:
            return
        settings = AgentSettings(
            host=self.name,
            master="ipc:///simulated",
            runtime_dir="/simulated",
            log_dir="/simulated",
            max_worker_processes=self.slots,
            modules=("*",),
        )
        self.agent = AgentNode(self, settings)
        self.agent.begin()

    def agent_died(self, agent: AgentNode) -> None:
        if self.agent is agent:
            self.agent = None
            if self.up:
                self.world.after(self.agent_restart_s(), self.start_agent)

    def dial(self, agent: AgentNode) -> Dealer:
        def deliver(frame: bytes) -> None:
            agent.submit((dealer, frame))

        def broken(reason: str, retried: bool) -> None:
            if agent.dealer is dealer:
                agent.submit(agent_effects.ConnectionBroken(reason, retried))

        user = f"agent:{self.name}"
        dealer = Dealer(self.network, "agents", self.cable, user, deliver, broken)
        return dealer

    # --- warden ---

    def find_warden(self, agent: AgentNode, kind: str) -> None:
        """Connect, after starting one if there is none. It waits for the lock that workers hold."""
        world = self.world
        pause_s = 0.001 if kind in self.wardens else world.random.uniform(0.03, 0.3)
        if kind not in self.wardens and world.chance(0.1) and world.knobs.fault_rate:
            world.figures["wardens that could not be started"] += 1
            failed = agent_effects.WardenGone(kind, "could not be started")
            world.after(pause_s, agent.submit, failed)
            return
        world.after(pause_s, self._connect, agent, kind)

    def _connect(self, agent: AgentNode, kind: str) -> None:
        if not agent.alive or not self.up:
            return
        if kind not in self.wardens:
            if any(process.warden == kind for process in self.live):
                self.world.after(0.01, self._connect, agent, kind)
                return
            self.wardens[kind] = WardenNode(self, kind)
            self.wardens[kind].begin()
            if kind not in self.wardens:  # it crashed at once
                agent.submit(agent_effects.WardenGone(kind, "it died"))
                return
        node = self.wardens[kind]
        agent.sockets[kind] = LocalSocket(self.world, agent, node, kind)
        node.accepted.append(agent.sockets[kind])
        agent.submit(agent_effects.WardenUp(kind))

    def warden_died(self, node: WardenNode) -> None:
        """PDEATHSIG: the kernel kills its workers, each in its own moment."""
        if self.wardens.get(node.kind) is node:
            del self.wardens[node.kind]
        for process in self.processes.values():
            process.orphaned |= not process.reaped and process.warden == node.kind
        for process in self.live:
            if process.warden != node.kind:
                continue
            pause_s = self.world.random.uniform(0.0, 0.004)
            if self.world.chance(self.world.knobs.unkillable):
                pause_s = self.world.random.uniform(0.5, 4.0)
            self.world.after(pause_s, process.end, "warden", None, int(SIGKILL))

    # --- processes ---

    def fork(self, node: WardenNode, order: orders.StartWorker) -> ForkDone | ForkRefused:
        self.watcher.forking(self, order)
        if self.forks_fail:
            self.world.figures["forks refused"] += 1
            return refused(order.token, "EAGAIN")
        self._pid_starts += 1
        process = self.make_process(
            world=self.world,
            host=self.name,
            warden=node.kind,
            token=order.token,
            slot=order.slot,
            generation=order.generation,
            incarnation=order.incarnation,
            revision=order.revision,
            spec=order.spec,
            pid=self.next_pid(),
            pid_start=self._pid_starts,
            born_s=self.world.now_s,
            born_unix_s=self.clock.now().unix_s,
            ended=self._process_ended,
        )
        self.processes[order.token] = process
        self.world.log(f"host {self.name}", f"forks {process} pid {process.pid}")
        self.watcher.forked(self, process)
        process.begin()
        node.memory.begin(process)
        return ForkDone(token=order.token, pid=process.pid, pid_start=process.pid_start)

    def _process_ended(self, process: Process) -> None:
        self.world.log(
            f"host {self.name}",
            f"{process} ends: {process.cause} code {process.code} signal {process.signal}",
        )
        self.watcher.ended(process)
        node = self.wardens.get(process.warden)
        if node is None:
            return
        node.memory.died(process)
        if process.cause in ("exited", "signaled"):
            pause_s = self.world.random.uniform(0.0001, 0.002)
            self.world.after(pause_s, self._tell_warden, node, process)

    def _tell_warden(self, node: WardenNode, process: Process) -> None:
        facts = process.facts(self.clock.now().unix_s)
        node.submit(ProcessEnded(token=process.token, facts=facts))
