"""A simulated agent process: the real core, its socket to the master, its line to the warden.

Owns: what an agent's shell does with effects, and what a worker's channel shows it. Must not know:
the master's state. Invariant: nothing of it survives it but what lies in sockets' buffers.
"""

from typing import TYPE_CHECKING, Any

from posthouse.dial import Redial, Transmit
from posthouse.records import HostUse
from posthouse.settings import AgentSettings
from posthouse_agent import effects as agent_effects
from posthouse_agent import orders
from posthouse_agent.core import AgentCore
from posthouse_testing.sim.local import LocalSocket, name_of
from posthouse_testing.sim.network import Dealer
from posthouse_testing.sim.node import Node
from posthouse_testing.sim.process import Process

if TYPE_CHECKING:
    from posthouse_testing.sim.host import Machine

__all__ = ["AgentNode"]


class AgentNode(Node):
    """An agent process."""

    def __init__(self, machine: "Machine", settings: AgentSettings) -> None:
        super().__init__(machine.world, f"agent {machine.name}", machine.clock)
        self.machine = machine
        self.instance = machine.world.entropy(16).hex()
        facts = agent_effects.HostFacts(
            boot_id=machine.boot_id, machine_id=machine.machine_id, instance=self.instance
        )
        self.core = AgentCore(settings, facts, machine.world.entropy, machine.there())
        self.sockets: dict[str, LocalSocket] = {}  # by the warden's kind
        self.dealer: Dealer | None = None
        self.session: bytes | None = None  # before the input that is being handled

    @property
    def term(self) -> tuple[int, int]:
        """Timeline and epoch of the newest master that it has seen."""
        return self.core._term  # noqa: SLF001 - what its HELLO says

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
        if (link := self.core._dialler.link) is not None:  # noqa: SLF001
            self.machine.watcher.queued(self.name, link)
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
            case agent_effects.NeedWarden(kind):
                machine.find_warden(self, kind)
            case agent_effects.DropWarden(kind):
                self._drop(kind)
            case agent_effects.Give(kind, order):
                self.world.log(self.name, f"gives {name_of(order)}")
                machine.watcher.obeyed(machine, order, (self.session, self.core.session))
                if kind in self.sockets:
                    self.sockets[kind].order(order)
            case agent_effects.Note(name, fields):
                self.world.log(self.name, f"{name} {fields}")
            case _:
                self._serve(effect)

    def _serve(self, effect: Any) -> None:
        """Effects that concern one worker."""
        processes = self.machine.processes
        match effect:
            case agent_effects.AnswerWorker(token, message):
                processes[token].answer(message)
            case agent_effects.Consume(token):
                del processes[token].channel[0]
            case agent_effects.ReadLogFile(read):
                self.world.after(0.01, self.submit, agent_effects.LogRead(read))
            case agent_effects.MeasureUse(read, _, more):
                used = agent_effects.UseMeasured(read, HostUse(), (), more)
                self.world.after(0.01, self.submit, used)
            case agent_effects.TakeStacks(read):
                self.world.after(0.01, self.submit, agent_effects.StacksTaken(read, error="none"))
            case agent_effects.SetLatch(token):
                self.world.log(self.name, f"sets the latch of token {token}")
                processes[token].set_latch()

    def _drop(self, kind: str) -> None:
        if kind in self.sockets:
            self.sockets.pop(kind).agent_ended()
        gone = agent_effects.WardenGone(kind, "dropped")
        self.world.after(0.001, self.submit, gone)

    def crash(self) -> None:
        if not self.alive:
            return
        super().crash()
        self.world.log(self.name, "is gone")
        for socket in self.sockets.values():
            socket.agent_ended()
        self.sockets.clear()
        if self.dealer is not None:
            self.dealer.close()
        self.machine.agent_died(self)
