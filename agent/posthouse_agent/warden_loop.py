"""The warden's loop: what wakes it, and the carrying out of WardenCore's effects.

Owns: the poll loop, the zombies that wait for their burial. Must not know: how a warden begins
(warden), ZeroMQ, the master, anybody's code. Invariant: one thread; all signals are blocked and
read from a descriptor, so no handler ever runs here; and no round waits for one worker.
"""

import os
import select
import signal
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from posthouse import limits, systemd
from posthouse.ids import Instant
from posthouse_agent import native
from posthouse_agent.agent_line import AgentLine
from posthouse_agent.domains import AnswerMemory, DropSegment, MakeSegment
from posthouse_agent.fuse import Line
from posthouse_agent.journal import Journal
from posthouse_agent.orders import Attach, Report, StartWorker
from posthouse_agent.processes import CannotFork, Processes, SpareGone
from posthouse_agent.warden_core import WardenCore
from posthouse_agent.warden_effects import (
    AgentAttached,
    AgentGone,
    Arm,
    Armed,
    Effect,
    End,
    Entry,
    Event,
    Fork,
    ForkDone,
    ForkRefused,
    Heard,
    Intent,
    Kill,
    Listen,
    Look,
    MemoryAsked,
    MemoryFailed,
    Ordered,
    PostmasterGone,
    ProcessEnded,
    ProcessStuck,
    Reap,
    Recall,
    Renew,
    Tell,
    Terminating,
    Tick,
    WriteJournal,
)
from posthouse_agent.zygotes import Refused, Spare, Zygotes

__all__ = ["Place", "Warden", "instant", "log"]

_LOOK_S: Final = 0.005  # pause between looks at what a dead worker has left, at first
_NAMED: Final = 5  # processes in a sentence
_RETRY_S: Final = 1.0  # after the disk refused something
_FAREWELL_S: Final = 1.0  # for the agent to read the last reports
# Quotes, backslashes and newlines take two bytes in JSON, and everything else what it took before.
_EXIT_LINE_BYTES: Final = 2 * (limits.exit_tail_bytes_max + limits.traceback_bytes_max) + 1024


@dataclass(frozen=True, slots=True)
class Place:
    """The folder that this warden serves, and its lock on it."""

    folder: str
    lock_fd: int
    fuse: native.Fuse | Line | None = None  # what ends this process with its lease


@dataclass(slots=True, kw_only=True)
class _Dead:
    """A zombie."""

    since_s: float
    look_again_s: float
    killing_s: float | None = None  # since when what it left is being killed
    told: bool = False  # that something of it does not die


class Warden:
    """One process's loop. Everything that can fail here fails for one worker or one agent."""

    def __init__(
        self,
        core: WardenCore,
        processes: Processes,
        zygotes: Zygotes,
        journal: Journal,
        line: AgentLine,
        epoll: select.epoll,
        place: Place,
    ) -> None:
        self._folder = place.folder
        self._lock_fd = place.lock_fd
        self._fuse = place.fuse
        self._files_due_s = 0.0
        self._core = core
        self._processes = processes
        self._zygotes = zygotes
        self._journal = journal
        self._line = line
        self._epoll = epoll
        self._signal_fd = native.open_signalfd((signal.SIGCHLD, signal.SIGTERM, signal.SIGINT))
        self._epoll.register(self._signal_fd, select.EPOLLIN)
        if isinstance(self._fuse, Line):
            self._epoll.register(self._fuse.fileno(), select.EPOLLIN)
        self._status: int | None = None
        self._pidfds: dict[int, int] = {}  # pidfd -> token, of those not known to be dead
        self._dead: dict[int, _Dead] = {}  # not reaped yet
        self._retry_s = 0.0  # no attempt to rewrite the journal before this
        self._watchdog_s = systemd.watchdog_interval_s()

    def run(self) -> int:
        """Until the core says End. Returns the exit status."""
        while self._status is None:
            for fd, _ in self._epoll.poll(self._timeout_s()):
                self._on_ready(fd)
                if self._status is not None:
                    break
            self._start_waiting()
            self._bury()
            self._on_time()
        self._say_farewell()
        return self._status

    # --- what wakes it ---

    def _timeout_s(self) -> float | None:
        now_s = instant().boot_s
        due = [self._core.deadline(), self._zygotes.deadline(), self._files_due_s]
        due += (dead.look_again_s for dead in self._dead.values())
        if self._journal.behind:
            due.append(self._retry_s)
        if self._watchdog_s is not None:
            due.append(now_s + self._watchdog_s / 2)
        known = [d for d in due if d is not None]
        # Rounded up: epoll's milliseconds would wake it just before the deadline, again and again.
        return max(0.0, min(known) - now_s) + 0.001 if known else None

    def _on_ready(self, fd: int) -> None:
        if fd == self._signal_fd:
            pending = native.read_signalfd(fd)
            if pending & {signal.SIGTERM, signal.SIGINT}:
                systemd.stopping("ending the workers")
                self._handle(Terminating())
            self._reap_strangers()
            return
        if (token := self._pidfds.get(fd)) is not None:
            # One poll's events are handled one by one: what was `fd` when it woke us may have been
            # closed since, and a new worker's pidfd have got its number.
            if not self._processes.is_dead(token):
                return
            del self._pidfds[fd]
            self._epoll.unregister(fd)
            now_s = instant().boot_s
            self._dead[token] = _Dead(since_s=now_s, look_again_s=now_s)
            return
        if self._zygotes.hear(fd, instant().boot_s):
            return
        if (token := self._processes.memory.token_of(fd)) is not None:
            self._hear_memory(token)
            return
        if isinstance(self._fuse, Line) and fd == self._fuse.fileno():
            self._hear_fuse(self._fuse)
            return
        if not self._line.flush():
            self._handle(AgentGone())
            return
        orders = self._line.take(fd)
        if orders is None:
            self._handle(AgentGone())
            return
        for order in orders:
            self._handle(AgentAttached(order) if isinstance(order, Attach) else Ordered(order))

    def _hear_fuse(self, line: Line) -> None:
        answers = line.answers()
        if answers is None:
            os._exit(1)  # the kernel is about to end this process with it
        for stamp, deadline_s in answers:
            self._handle(Armed(stamp, deadline_s))

    def _hear_memory(self, token: int) -> None:
        """One message, whatever else it has to say: others are heard in between."""
        memory = self._processes.memory
        message = memory.take(token)
        if message is None:
            self._close_memory(token)
        elif message:
            self._handle(MemoryAsked(token, message))

    def _close_memory(self, token: int) -> None:
        line_fd = self._processes.memory.line_of(token)
        if line_fd is not None:
            self._epoll.unregister(line_fd)
            self._processes.memory.close(token)

    def _on_memory(self, effect: MakeSegment | DropSegment | AnswerMemory) -> list[Event]:
        memory = self._processes.memory
        match effect:
            case MakeSegment(number=number, size=size, name=name):
                memory.make(number, size, name)
            case DropSegment(number=number):
                memory.drop(number)
            case AnswerMemory(token=token):
                lost = memory.answer(effect, self._processes.ends_of)
                ends = self._processes.ends_of(token)
                if effect.wake and ends is not None:
                    with suppress(BlockingIOError):
                        os.eventfd_write(ends[0], 1)
                if lost is not None:
                    return [MemoryFailed(token, lost)]
        return []

    def _on_time(self) -> None:
        if self._watchdog_s is not None:
            systemd.watchdog()
        now = instant()
        deadline_s = self._core.deadline()
        if deadline_s is not None and deadline_s <= now.boot_s:
            self._handle(Tick())
        if now.boot_s >= self._files_due_s:
            self._files_due_s = now.boot_s + limits.files_looked_at_s
            self._look_for_files()
        if self._journal.wants_rewrite and now.boot_s >= self._retry_s:
            try:
                self._journal.rewrite(self._core.entries())
            except OSError as error:
                log(f"journal: cannot be rewritten: {error.strerror}")
                self._retry_s = now.boot_s + _RETRY_S

    def _look_for_files(self) -> None:
        """A cleaner of temporary files may have taken the socket or the journal: then no agent
        would find us, or the next warden our workers. Without the folder, or with another lock in
        it, it is no longer ours to write in (homeless.py)."""
        try:
            there = os.stat(f"{self._folder}/warden.lock", follow_symlinks=False)
            ours = os.fstat(self._lock_fd)
            if (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
                return
            if self._line.listen_again():
                log("warden.sock was deleted, and is made anew")
            if not self._journal.behind and self._journal.look_for_it():
                log("journal: was deleted or replaced, and is written anew")
        except OSError as error:
            log(f"{self._folder}: {error.strerror}")

    def _bury(self) -> None:
        """Record and reap the dead workers.

        One stays a zombie for a while if it has left processes behind (many end by themselves
        when they see that it is gone; the others are killed with its burial), or if its end
        cannot be written down: it must not be forgotten.
        """
        for token, dead in list(self._dead.items()):
            now = instant()
            if now.boot_s < dead.look_again_s:
                continue
            if not self._journal.make_room(_EXIT_LINE_BYTES):
                log("no room on the disk for an exit record; the worker is not reaped yet")
                dead.look_again_s = now.boot_s + _RETRY_S
                continue
            if self._leaves_some(token, dead, now):
                continue
            del self._dead[token]
            daemonised = dead.killing_s is not None
            facts = self._processes.examine(token, now, daemonised=daemonised)
            self._handle(ProcessEnded(token=token, facts=facts))
            self._reap_strangers()

    def _leaves_some(self, token: int, dead: _Dead, now: Instant) -> bool:
        """Whether processes that the dead worker started live on: they are given a moment, then
        killed, and looked at again and again until the last one is gone; no round waits."""
        left = self._processes.left_by(token, now)
        if not left:
            if dead.killing_s is not None:
                self._processes.reap_strangers(behind=True)
            return False
        waited_s = now.boot_s - (dead.since_s if dead.killing_s is None else dead.killing_s)
        if dead.killing_s is None and waited_s >= limits.leftovers_grace_s:
            dead.killing_s, waited_s = now.boot_s, 0.0
        if dead.killing_s is not None:
            self._processes.kill_left(token, left)
            if waited_s >= limits.unkillable_s and not dead.told:
                dead.told = True
                where = ", ".join(self._processes.where(pid) for pid in left[:_NAMED])
                text = f"{len(left)} processes that it left do not die: {where}"
                self._handle(ProcessStuck(token=token, state=text))
        dead.look_again_s = now.boot_s + min(max(_LOOK_S, waited_s / 2), _RETRY_S)
        return True

    def _reap_strangers(self) -> None:
        behind = any(dead.told for dead in self._dead.values())
        self._processes.reap_strangers(behind=behind)

    # --- effects ---

    def _handle(self, event: Event) -> None:
        events = deque([event])
        while events:
            events += self._carry_out(self._core.handle(events.popleft(), instant()))

    def _carry_out(self, effects: list[Effect]) -> list[Event]:
        """In order. The answers are returned, for the core to hear before anything else."""
        answers: list[Event] = []
        for effect in effects:
            match effect:
                case WriteJournal(entry=entry):
                    if (refused := self._write(entry)) is not None:
                        return [*answers, refused]
                case Fork() | Recall() | Renew():
                    answers += self._on_runtime(effect)
                case Kill() | PostmasterGone() | Arm():
                    answers += self._strike(effect)
                case Look() | Listen():
                    answers += self._look(effect)
                case Reap(token=token):
                    self._close_memory(token)
                    self._processes.reap(token)
                case MakeSegment() | DropSegment() | AnswerMemory():
                    answers += self._on_memory(effect)
                case Tell(report=report, fds_of=token):
                    if not self._tell(report, token):
                        answers.append(AgentGone())
                case End(status=status):
                    self._status = status
        return answers

    def _strike(self, effect: Kill | PostmasterGone | Arm) -> list[Event]:
        if isinstance(effect, Kill):
            self._processes.kill(effect.token, effect.signal, handled=effect.handled)
            return []
        if isinstance(effect, PostmasterGone):
            self._processes.tell_lost(effect.token)
            return []
        assert self._fuse is not None, "a warden without a fuse takes no lease"
        if isinstance(self._fuse, Line):
            self._fuse.ask(effect.stamp, effect.deadline_s)
            return []
        self._fuse.arm(effect.deadline_s)
        return [Armed(effect.stamp, effect.deadline_s)]

    def _write(self, entry: Entry) -> ForkRefused | None:
        """Append to the journal. An intent that cannot be written must not be carried out; what
        else is missing is caught up with by a rewrite."""
        try:
            self._journal.append(entry)
        except OSError as error:
            self._retry_s = instant().boot_s + _RETRY_S
            log(f"journal: {error.strerror}")
            if isinstance(entry, Intent):
                reason = f"the warden's journal cannot be written: {error.strerror}"
                return _refused(entry.token, reason)
        return None

    def _on_runtime(self, effect: Fork | Recall | Renew) -> list[Event]:
        match effect:
            case Fork(order=order):
                return self._fork(order)
            case Recall(token=token):
                self._zygotes.recall(token)
            case Renew(name=name):
                self._zygotes.renew(name)
        return []

    def _fork(self, order: StartWorker) -> list[Event]:
        """Have it wait for a process of its runtime, unless that is in vain."""
        if not self._journal.make_room(_EXIT_LINE_BYTES):
            return [_refused(order.token, "no room on the disk for the record of its exit")]
        try:
            self._processes.check(order)
        except CannotFork as error:
            return [_refused(order.token, str(error), error.code, retry=error.retry)]
        self._zygotes.want(order, instant().boot_s)
        return []

    def _start_waiting(self) -> None:
        """Give what waits its processes."""
        self._zygotes.begin_round()
        while (settled := self._zygotes.next_settled(instant().boot_s)) is not None:
            if isinstance(settled, Refused):
                token = settled.order.token
                self._handle(_refused(token, settled.reason, settled.code, retry=settled.retry))
            else:
                self._begin(*settled)
        if self._zygotes.restock(instant().boot_s):
            self._start_waiting()

    def _begin(self, order: StartWorker, spare: Spare) -> None:
        try:
            made = self._processes.begin(order, spare, instant())
        except SpareGone:
            spare.close()
            self._zygotes.again(order, instant().boot_s)
            return
        except CannotFork as error:
            self._zygotes.give_back(spare)
            self._handle(_refused(order.token, str(error), error.code, retry=error.retry))
            return
        self._pidfds[made.pidfd] = order.token
        self._epoll.register(made.pidfd, select.EPOLLIN)
        if (line_fd := self._processes.memory.line_of(order.token)) is not None:
            self._epoll.register(line_fd, select.EPOLLIN)
        self._handle(
            ForkDone(
                token=order.token,
                pid=made.host_pid,
                pid_start=made.pid_start,
                runtime=made.runtime,
                code=made.code,
            )
        )

    def _look(self, effect: Look | Listen) -> list[Event]:
        token = effect.token
        if isinstance(effect, Listen):
            return [Heard(token=token, silent_s=self._processes.silent_s(token))]
        if state := self._processes.predicament(token):
            return [ProcessStuck(token=token, state=f"KILL has not ended it: {state}")]
        return []

    def _tell(self, report: Report, token: int | None) -> bool:
        made = None if token is None else self._processes.get(token)
        return self._line.send(report, (made.channel_fd, made.latch_fd) if made else ())

    def _say_farewell(self) -> None:
        deadline_s = time.monotonic() + _FAREWELL_S
        while self._line.waiting and time.monotonic() < deadline_s:
            self._epoll.poll(0.01)
            self._line.flush()
        self._line.close()


def instant() -> Instant:
    """Now."""
    return Instant(time.clock_gettime(time.CLOCK_BOOTTIME), time.time())


def _refused(
    token: int, reason: str, code: str = "fork_failed", *, retry: bool = True
) -> ForkRefused:
    return ForkRefused(token=token, code=code, reason=reason, retry=retry)


def log(text: str) -> None:
    """A line on standard error, which may be gone."""
    with suppress(OSError):
        os.write(2, f"posthouse-warden[{os.getpid()}]: {text}\n".encode())
