"""A simulated host: its wardens and agents come and go, its journal and its processes are real.

Owns: one machine: clock, boot id, journal, fake processes, the Unix socket between agent and
warden. Must not know: the master, what is checked.

Invariant: what the kernel would keep is kept here and nothing else: a journal entry that was
written survives a warden's crash, a message in a socket's buffer survives its sender, a worker
does not survive its warden, nothing but the journal (and perhaps not all of it) survives a boot.
"""

from collections import deque
from collections.abc import Callable, Iterable
from signal import SIGKILL
from typing import Any, Protocol

from posthouse.dial import Redial, Transmit
from posthouse.settings import AgentSettings
from posthouse_agent import effects as agent_effects
from posthouse_agent import orders
from posthouse_agent import warden_effects as warden
from posthouse_agent.core import AgentCore
from posthouse_agent.warden_core import WardenCore, recover
from posthouse_testing.sim.network import Dealer, Network
from posthouse_testing.sim.node import Node
from posthouse_testing.sim.process import Process
from posthouse_testing.sim.world import World

__all__ = ["AgentNode", "Machine", "WardenNode"]

KIND = "fenced"
Sessions = tuple[bytes | None, bytes | None]  # before an input and after it
RETRY_S = 1.0  # after the disk refused something


class Watcher(Protocol):
    """Who looks at what happens on hosts (check.Checker)."""

    def forking(self, machine: "Machine", order: orders.StartWorker) -> None: ...
    def forked(self, process: Process) -> None: ...
    def ended(self, process: Process) -> None: ...
    def agent_said(self, machine: "Machine", frame: bytes) -> None: ...
    def obeyed(self, machine: "Machine", order: orders.Order, sessions: Sessions) -> None: ...
    def warden_said(self, machine: "Machine", report: orders.Report) -> None: ...


class LocalSocket:
    """One SOCK_SEQPACKET connection. What was sent can be read after the sender is gone."""

    def __init__(self, world: World, agent: "AgentNode", warden: "WardenNode") -> None:
        self.world = world
        self.agent = agent
        self.warden = warden
        self.void = False  # the warden has closed it: what is unread is never read
        self._to_warden_s = 0.0
        self._to_agent_s = 0.0
        self.reads: deque[Any] = deque()

    def order(self, order: orders.Order) -> None:
        data = orders.pack(order)
        self._to_warden_s = self._later(self._to_warden_s)
        self.world.at(self._to_warden_s, self._at_warden, data)

    def report(self, report: orders.Report) -> None:
        data = orders.pack(report)
        self._to_agent_s = self._later(self._to_agent_s)
        self.world.at(self._to_agent_s, self._at_agent, data)

    def agent_ended(self) -> None:
        self._to_warden_s = self._later(self._to_warden_s)
        self.world.at(self._to_warden_s, self._at_warden, None)

    def warden_ended(self) -> None:
        """The warden's end closed, by its death or because a newer agent attached."""
        self.void = True
        self._to_agent_s = self._later(self._to_agent_s)
        self.world.at(self._to_agent_s, self._at_agent, None)

    def _later(self, last_s: float) -> float:
        return max(last_s, self.world.now_s + self.world.random.uniform(0.0001, 0.002))

    def _at_warden(self, data: bytes | None) -> None:
        if not self.void:
            self.warden.submit((self, orders.unpack(data) if data is not None else None))

    def _at_agent(self, data: bytes | None) -> None:
        if self.agent.socket is not self:
            return
        if data is None:
            self.agent.socket = None
            self.agent.submit(agent_effects.WardenGone(KIND, "the warden closed the connection"))
        else:
            self.agent.submit(agent_effects.Reported(KIND, orders.unpack(data)))


class WardenNode(Node):
    """A warden process: reads the journal, takes the lock, serves one agent at a time."""

    def __init__(self, machine: "Machine") -> None:
        super().__init__(machine.world, f"warden {machine.name}", machine.clock)
        self.machine = machine
        self.instance = machine.world.entropy(16).hex()
        self.core = WardenCore(
            instance=self.instance,
            kind=KIND,
            boot_id=machine.boot_id,
            pid=machine.next_pid(),
        )
        self.socket: LocalSocket | None = None  # of the attached agent
        self.accepted: list[LocalSocket] = []
        self.behind = False  # an entry is missing in the journal
        self.unrecorded: list[warden.ProcessEnded] = []  # ends that wait for room on the disk
        self._answers: deque[Any] = deque()

    def begin(self) -> None:
        machine = self.machine
        rebooted = machine.journal_boot_id != machine.boot_id
        recovered = recover(machine.journal, rebooted=rebooted)
        self.world.log(
            self.name,
            f"begins, lost {len(recovered.lost)} exits {len(recovered.exits)}"
            + (" after a reboot" if rebooted else ""),
        )
        self.core.handle(recovered, self.clock.now())  # its entries are part of what follows
        if machine.disk_full:
            self.crash()  # it cannot write its first line
        elif not self.burn():
            self._rewrite()

    def _rewrite(self) -> None:
        """A short journal in a new file, which takes the old one's place at once."""
        machine = self.machine
        if machine.disk_full:
            self.world.after(RETRY_S, self._retry)
            return
        machine.journal = list(self.core.entries())
        machine.journal_boot_id = machine.boot_id
        self.behind = False

    def _retry(self) -> None:
        """There may be room on the disk now: for what is missing, and for ends."""
        if not self.alive:
            return
        if self.behind:
            self._rewrite()
        if not self.behind:
            unrecorded, self.unrecorded = self.unrecorded, []
            for event in unrecorded:
                self.submit(event)

    def handle(self, event: Any) -> None:
        if isinstance(event, tuple):
            event = self._read(*event)
            if event is None:
                return
        if isinstance(event, warden.ProcessEnded) and self._no_room():
            # It stays a zombie: its end must not be forgotten, and cannot be written down yet.
            self.unrecorded.append(event)
            self.world.after(RETRY_S, self._retry)
            return
        self.carry_out(self.core.handle(event, self.clock.now()))
        while self._answers and self.alive:
            self.handle(self._answers.popleft())
        if self.alive:
            self.wake_at(self.core.deadline())

    def _no_room(self) -> bool:
        return self.behind or self.machine.disk_full

    def carry_out(self, effects: Iterable[Any]) -> None:
        """As Node does, but what follows an Intent that cannot be written is not done."""
        for effect in effects:
            if not self.alive or self.burn():
                return
            if isinstance(effect, warden.WriteJournal) and self._no_room():
                self._unwritten(effect.entry)
                if isinstance(effect.entry, warden.Intent):
                    return
            else:
                self.effect(effect)

    def _unwritten(self, entry: warden.Entry) -> None:
        self.world.figures["journal entries that could not be written"] += 1
        self.behind = True
        self.world.after(RETRY_S, self._retry)
        if isinstance(entry, warden.Intent):
            self._answers.append(_refused(entry.token, "the journal cannot be written"))

    def tick(self) -> None:
        self.handle(warden.Tick())

    def terminate(self) -> None:
        """TERM to the warden: it ends its workers, then itself."""
        self.submit(warden.Terminating())

    def _read(self, socket: LocalSocket, order: Any) -> Any:
        if socket.void:
            return None
        if order is None:
            if self.socket is socket:
                self.socket = None
                return warden.AgentGone()
            return None
        if isinstance(order, orders.Attach):
            if self.socket is not None and self.socket is not socket:
                self.socket.warden_ended()
            self.socket = socket
            return warden.AgentAttached(order)
        return warden.Ordered(order) if socket is self.socket else None

    def effect(self, effect: Any) -> None:
        machine = self.machine
        match effect:
            case warden.WriteJournal(entry):
                machine.journal.append(entry)
            case warden.Fork(order) if self._no_room():
                self._answers.append(_refused(order.token, "no room for the record of its exit"))
            case warden.Fork(order):
                self._answers.append(machine.fork(order))
            case warden.Kill(token, signal):
                self.world.log(self.name, f"signal {signal} to token {token}")
                machine.processes[token].kill(signal)
            case warden.Reap(token):
                machine.processes[token].reaped = True
            case warden.Tell(report):
                self.world.log(self.name, f"tells {type(report).__name__} {_token(report)}")
                machine.watcher.warden_said(machine, report)
                if self.socket is not None:
                    self.socket.report(report)
            case warden.End():
                self.world.log(self.name, "ends")
                self.crash()

    def crash(self) -> None:
        super().crash()
        for socket in self.accepted:
            socket.warden_ended()
        self.machine.warden_died(self)


class AgentNode(Node):
    """An agent process."""

    def __init__(self, machine: "Machine", settings: AgentSettings) -> None:
        super().__init__(machine.world, f"agent {machine.name}", machine.clock)
        self.machine = machine
        self.instance = machine.world.entropy(16).hex()
        facts = agent_effects.HostFacts(
            boot_id=machine.boot_id, machine_id=machine.machine_id, instance=self.instance
        )
        self.core = AgentCore(settings, facts, machine.world.entropy)
        self.socket: LocalSocket | None = None
        self.dealer: Dealer | None = None
        self.session: bytes | None = None  # before the input that is being handled

    def begin(self) -> None:
        self.world.log(self.name, "begins")
        self.handle(agent_effects.Tick())

    def handle(self, event: Any) -> None:
        if isinstance(event, tuple):
            event = self._read(*event)
            if event is None:
                return
        if isinstance(event, agent_effects.Reported) and isinstance(event.report, orders.Ended):
            self._last_messages(event.report.token)
        self.session = self.core.session
        self.carry_out(self.core.handle(event, self.clock.now()))
        if self.alive:
            self._listen()
            self.wake_at(self.core.wake_s)

    def tick(self) -> None:
        self.handle(agent_effects.Tick())

    def _read(self, dealer: Dealer, frame: bytes) -> Any:
        # What a closed socket had received is gone with it.
        return agent_effects.Frame(frame) if dealer is self.dealer else None

    def _listen(self) -> None:
        """Level-triggered: a message that is not taken out of its channel is seen again."""
        for process in self.machine.processes.values():
            if process.channel and process.token in self.core.running:
                self.world.after(0.002, self._look, process)

    def _look(self, process: Process) -> None:
        if self.alive and process.channel and process.token in self.core.running:
            self.submit(agent_effects.WorkerSaid(process.token, process.channel[0]))

    def _last_messages(self, token: int) -> None:
        """What a worker said before it ended comes before its end."""
        process = self.machine.processes.get(token)
        while process is not None and process.channel and self.alive:
            self.carry_out(
                self.core.handle(
                    agent_effects.WorkerSaid(token, process.channel[0]), self.clock.now()
                )
            )

    def leave(self) -> None:
        """TERM: it says goodbye and ends; its workers do not notice."""
        self.world.log(self.name, "leaves")
        self.submit(agent_effects.Leave("SIGTERM"))
        self.world.after(0.05, self.crash)

    def effect(self, effect: Any) -> None:
        machine = self.machine
        match effect:
            case Redial():
                if self.dealer is not None:
                    self.dealer.close()
                self.dealer = machine.dial(self)
            case Transmit(frame):
                machine.watcher.agent_said(machine, frame)
                if self.dealer is not None:
                    self.dealer.send(frame)
            case agent_effects.NeedWarden():
                machine.find_warden(self)
            case agent_effects.DropWarden():
                self._drop()
            case agent_effects.Give(_, order):
                self.world.log(self.name, f"gives {type(order).__name__} {_token(order)}")
                machine.watcher.obeyed(machine, order, (self.session, self.core.session))
                if self.socket is not None:
                    self.socket.order(order)
            case agent_effects.Note(name, fields):
                self.world.log(self.name, f"{name} {fields}")
            case _:
                self._serve(effect)

    def _serve(self, effect: Any) -> None:
        """Effects that concern one worker."""
        processes = self.machine.processes
        match effect:
            case agent_effects.AnswerWorker(token, message):
                processes[token].answers.append(message)
            case agent_effects.Consume(token):
                del processes[token].channel[0]
            case agent_effects.ReadLogFile(read):
                self.world.after(0.01, self.submit, agent_effects.LogRead(read))
            case agent_effects.SetLatch(token):
                self.world.log(self.name, f"sets the latch of token {token}")

    def _drop(self) -> None:
        if self.socket is not None:
            self.socket.agent_ended()
            self.socket = None
        gone = agent_effects.WardenGone(KIND, "dropped")
        self.world.after(0.001, self.submit, gone)

    def crash(self) -> None:
        if not self.alive:
            return
        super().crash()
        self.world.log(self.name, "is gone")
        if self.socket is not None:
            self.socket.agent_ended()
            self.socket = None
        if self.dealer is not None:
            self.dealer.close()
        self.machine.agent_died(self)


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
        self.journal: list[warden.Entry] = []
        self.journal_boot_id = self.boot_id
        self.processes: dict[int, Process] = {}  # by token; dead ones stay
        self.warden: WardenNode | None = None
        self.agent: AgentNode | None = None
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
    def settled(self) -> bool:
        """Agent and warden serve, and no exit waits to be confirmed."""
        return (
            self.up
            and self.agent is not None
            and self.agent.socket is not None
            and self.warden is not None
            and not self.warden.core.exits
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
        for node in (self.agent, self.warden):
            if node is not None:
                node.crash()
        if keep != "all":
            for process in self.processes.values():
                process.orphaned = True
        if keep == "none":
            self.journal = []
        elif keep == "part" and self.journal:
            del self.journal[self.world.random.randrange(len(self.journal)) :]
        self.boot_id = self.world.entropy(16).hex()
        self.clock = self.world.clock()
        self.world.after(off_s, self.boot)

    def calm(self) -> None:
        """Faults stop: forks succeed, workers obey and do not end by themselves."""
        self.forks_fail = self.disk_full = False
        for process in self.live:
            process.calm()
        for node in (self.agent, self.warden):
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

        def broken() -> None:
            if agent.dealer is dealer:
                agent.submit(agent_effects.ConnectionBroken("disconnected"))

        user = f"agent:{self.name}"
        dealer = Dealer(self.network, "agents", self.cable, user, deliver, broken)
        return dealer

    # --- warden ---

    def find_warden(self, agent: AgentNode) -> None:
        """Connect, after starting one if there is none. It waits for the lock that workers hold."""
        world = self.world
        pause_s = 0.001 if self.warden is not None else world.random.uniform(0.03, 0.3)
        if self.warden is None and world.chance(0.1) and world.knobs.fault_rate:
            world.figures["wardens that could not be started"] += 1
            failed = agent_effects.WardenGone(KIND, "could not be started")
            world.after(pause_s, agent.submit, failed)
            return
        world.after(pause_s, self._connect, agent)

    def _connect(self, agent: AgentNode) -> None:
        if not agent.alive or not self.up:
            return
        if self.warden is None:
            if self.live:
                self.world.after(0.01, self._connect, agent)
                return
            self.warden = WardenNode(self)
            self.warden.begin()
            if self.warden is None:  # it crashed at once
                agent.submit(agent_effects.WardenGone(KIND, "it died"))
                return
        agent.socket = LocalSocket(self.world, agent, self.warden)
        self.warden.accepted.append(agent.socket)
        agent.submit(agent_effects.WardenUp(KIND))

    def warden_died(self, node: WardenNode) -> None:
        """PDEATHSIG: the kernel kills its workers, each in its own moment."""
        if self.warden is node:
            self.warden = None
        for process in self.processes.values():
            process.orphaned |= not process.reaped
        for process in self.live:
            pause_s = self.world.random.uniform(0.0, 0.004)
            if self.world.chance(self.world.knobs.unkillable):
                pause_s = self.world.random.uniform(0.5, 4.0)
            self.world.after(pause_s, process.end, "warden", None, int(SIGKILL))

    # --- processes ---

    def fork(self, order: orders.StartWorker) -> warden.ForkDone | warden.ForkRefused:
        self.watcher.forking(self, order)
        if self.forks_fail:
            self.world.figures["forks refused"] += 1
            return _refused(order.token, "EAGAIN")
        self._pid_starts += 1
        process = Process(
            world=self.world,
            host=self.name,
            token=order.token,
            slot=order.slot,
            generation=order.generation,
            incarnation=order.incarnation,
            spec=order.spec,
            pid=self.next_pid(),
            pid_start=self._pid_starts,
            born_s=self.world.now_s,
            born_unix_s=self.clock.now().unix_s,
            ended=self._process_ended,
        )
        self.processes[order.token] = process
        self.world.log(f"host {self.name}", f"forks {process} pid {process.pid}")
        self.watcher.forked(process)
        process.begin()
        return warden.ForkDone(token=order.token, pid=process.pid, pid_start=process.pid_start)

    def _process_ended(self, process: Process) -> None:
        self.world.log(
            f"host {self.name}",
            f"{process} ends: {process.cause} code {process.code} signal {process.signal}",
        )
        self.watcher.ended(process)
        if self.warden is not None and process.cause in ("exited", "signaled"):
            pause_s = self.world.random.uniform(0.0001, 0.002)
            self.world.after(pause_s, self._tell_warden, self.warden, process)

    def _tell_warden(self, node: WardenNode, process: Process) -> None:
        facts = process.facts(self.clock.now().unix_s)
        node.submit(warden.ProcessEnded(token=process.token, facts=facts))


def _refused(token: int, reason: str) -> warden.ForkRefused:
    return warden.ForkRefused(token=token, code="fork_failed", reason=reason, retry=True)


def _token(record: Any) -> str:
    found = getattr(record, "token", None)
    return f"token {found}" if found is not None else str(getattr(record, "tokens", ""))
