"""A simulated warden process: the real core, and what its shell does with a journal and a fork.

Owns: the journal's gaps, the ends that wait for room on the disk, which agent is served. Must not
know: the master, the network. Invariant: as in the real shell, an entry is in the journal before
anything that rests on it is done, and a worker whose end cannot be written down stays a zombie.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posthouse_agent import orders
from posthouse_agent import warden_effects as warden
from posthouse_agent.domains import AnswerMemory, DropSegment, MakeSegment
from posthouse_agent.warden_core import WardenCore, recover
from posthouse_agent.wards import FENCED, KEPT, TREE
from posthouse_testing.sim.local import LocalSocket, name_of
from posthouse_testing.sim.memory import Memory
from posthouse_testing.sim.node import Node
from posthouse_testing.sim.world import Timer

if TYPE_CHECKING:
    from posthouse_testing.sim.host import Machine

__all__ = ["KERNEL_LATE_S", "WardenNode", "refused"]

RETRY_S = 1.0  # after the disk refused something
KERNEL_LATE_S = 0.05  # several times what was measured on a busy machine
STOPPED = 0.02  # share of the deadlines before which a tree's fuse is stopped for a while:
STOPPED_S = (0.5, 6.0)
SLOW_S = (0.0, 0.02)  # else it takes so long to set one


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The runtime of a start that waits is there."""

    token: int


class WardenNode(Node):
    """A warden process: reads the journal, takes the lock, serves one agent at a time."""

    def __init__(self, machine: "Machine", kind: str) -> None:
        name = f"warden {machine.name}" if kind == FENCED else f"{kind} warden {machine.name}"
        super().__init__(machine.world, name, machine.clock)
        self.machine = machine
        self.kind = kind
        self.journal = machine.journals[kind]
        self.instance = machine.world.entropy(16).hex()
        self.core = WardenCore(
            instance=self.instance,
            kind=kind,
            boot_id=machine.boot_id,
            pid=machine.next_pid(),
            entropy=machine.world.aside.randbytes,
            fence=kind != KEPT,
        )
        self.memory = Memory(machine.world, machine.name, self._asked)
        self.socket: LocalSocket | None = None  # of the attached agent
        self.accepted: list[LocalSocket] = []
        self.behind = False  # an entry is missing in the journal
        self.unrecorded: list[warden.ProcessEnded] = []  # ends that wait for room on the disk
        self.waiting: dict[int, orders.StartWorker] = {}  # for a process of their runtime
        self._answers: deque[Any] = deque()
        self._lease: Timer | None = None  # of the kernel
        self._fuse_s = 0.0  # when the fuse of a tree has done all that it was asked to do

    def begin(self) -> None:
        machine = self.machine
        rebooted = self.journal.boot_id != machine.boot_id
        recovered = recover(self.journal.entries, rebooted=rebooted)
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
        self.journal.entries = list(self.core.entries())
        self.journal.boot_id = machine.boot_id
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
        if isinstance(event, _Loaded):
            # The process and the answer are one: nothing comes in between in the shell either.
            if event.token not in self.waiting:
                return
            event = self.machine.fork(self, self.waiting.pop(event.token))
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
            self._answers.append(refused(entry.token, "the journal cannot be written"))

    def _loaded(self, token: int) -> None:
        if self.alive and token in self.waiting:
            self.submit(_Loaded(token))

    def _asked(self, event: warden.MemoryAsked) -> None:
        if self.alive:
            self.submit(event)

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
        match effect:
            case warden.WriteJournal(entry):
                self.journal.entries.append(entry)
            case warden.Fork(order):
                self._fork(order)
            case warden.Recall(token):
                self.world.figures["starts that were taken back"] += 1
                del self.waiting[token]
            case warden.Arm() if self.kind == TREE:
                self._ask_fuse(effect)
            case warden.Arm(deadline_s=deadline_s, stamp=stamp):
                self._arm(deadline_s)
                self._answers.append(warden.Armed(stamp, deadline_s))
            case warden.Tell(report):
                self._tell(report)
            case warden.End():
                self.world.log(self.name, "ends")
                self.crash()
            case _:
                self._with_process(effect)

    def _with_process(self, effect: Any) -> None:
        """Effects that concern one process."""
        processes = self.machine.processes
        match effect:
            case warden.Kill(token=token, signal=signal):
                self.world.log(self.name, f"signal {signal} to token {token}")
                processes[token].kill(signal)
            case warden.PostmasterGone(token):
                processes[token].answer({"op": "postmaster", "alive": False})
            case warden.Look(token):
                if processes[token].live:
                    self.world.figures["processes that KILL did not end in time"] += 1
                    self._answers.append(warden.ProcessStuck(token=token, state="in state (D)"))
            case warden.Listen(token):  # no simulated worker hangs
                self._answers.append(warden.Heard(token=token, silent_s=0.0))
            case warden.Reap(token):
                processes[token].reaped = True
                self.memory.reaped(processes[token])
            case MakeSegment() | DropSegment() | AnswerMemory():
                self.memory.effect(effect, processes)

    def _ask_fuse(self, asked: warden.Arm) -> None:
        """It is a process of its own, which now and then is stopped, and goes on where it was."""
        slow, now_s = self.world.fences, self.world.now_s
        if now_s >= self._fuse_s:
            stopped = now_s < self.world.knobs.faulty_s and slow.random() < STOPPED
            self._fuse_s = now_s + slow.uniform(*(STOPPED_S if stopped else SLOW_S))
        self.world.at(self._fuse_s, lambda: self._fuse_sets(asked))

    def _fuse_sets(self, asked: warden.Arm) -> None:
        if self.alive:
            self._arm(asked.deadline_s)
            self.submit(warden.Armed(asked.stamp, asked.deadline_s))

    def _arm(self, deadline_s: float) -> None:
        """The kernel's timer: it is a little late, and does not mind whether this is stopped."""
        if self._lease is not None:
            self._lease.cancel()
            self._lease = None
        if deadline_s:
            late_s = self.world.random.uniform(0.0, KERNEL_LATE_S)
            at_s = self.clock.world_s(deadline_s) + late_s
            self._lease = self.world.at(at_s, self._lease_over)

    def _lease_over(self) -> None:
        if self.alive:
            self.world.log(self.name, "is killed by the kernel: its lease is over")
            self.world.figures["wardens that the kernel ended"] += 1
            self.crash()

    def _tell(self, report: orders.Report) -> None:
        machine = self.machine
        if isinstance(report, orders.Ended) and report.token in machine.processes:
            self.memory.told(machine.processes[report.token], report)
        self.world.log(self.name, f"tells {name_of(report)}")
        machine.watcher.warden_said(machine, self.kind, report)
        if self.socket is not None:
            self.socket.report(report)

    def _fork(self, order: orders.StartWorker) -> None:
        if self._no_room():
            self._answers.append(refused(order.token, "no room for the record of its exit"))
        elif self.world.chance(0.2):
            # Its zygote was killed, or its code has changed: a new one is being loaded.
            self.waiting[order.token] = order
            self.world.figures["starts that waited for their runtime"] += 1
            self.world.after(self.world.random.uniform(0.05, 3.0), self._loaded, order.token)
        else:
            self._answers.append(self.machine.fork(self, order))

    def crash(self) -> None:
        super().crash()
        for socket in self.accepted:
            socket.warden_ended()
        self.machine.warden_died(self)


def refused(token: int, reason: str) -> warden.ForkRefused:
    """There is no process, and there may be one another time."""
    return warden.ForkRefused(token=token, code="fork_failed", reason=reason, retry=True)
