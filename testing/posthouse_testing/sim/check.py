"""What must hold, checked as it happens, against what really happened and what is really durable.

Owns: every process that was ever forked, and the rules between them, what is durable (ledger) and
what is said on the wire. Must not know: the cores' own state.

Invariant: nothing here trusts a core. The fake processes and the committed operations are the
truth; frames and reports are claims about it, and each is compared when it is made. The numbers
are those of the table of invariants in docs/reliability.md:

- a commit: 3, 5, 7, 10, 11, 13, 17, 21; no gap in the log, no counter that falls;
- an order that an agent gives: 6 (the master said so in the session of now);
- a START that leaves the master: 3 (committed before), 6 (never in a second session);
- a STOP: 25; a WELCOME of a registry that lost commits: 6;
- a fork: 1, 3, 7, 11, 12;
- a grant, and the moment when all that were given to a host are over: 2 (tenancy.py);
- a warden's or an agent's word that a process has ended: 17;
- memory that is given to a worker, and the end of one that had some (memory.py): 24;
- an answer or an event that reaches a client: 8, 9, 10, 21;
- what is kept for each peer, after each batch and input: 19, in messages and bytes;
- a new master's snapshot: 9 (nothing that was durable is missing);
- the end, when faults have stopped: 20 (run.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from posthouse import codec, limits
from posthouse.errors import PosthouseError
from posthouse.link import Link
from posthouse.messages import (
    KIND_OF,
    Exit,
    Exited,
    Grant,
    Inventory,
    Register,
    Registered,
    Renew,
    Start,
    StartFailed,
    Stop,
    StopDone,
    Subscribed,
    Welcome,
)
from posthouse.records import Event, Status
from posthouse.states import EventKind, StopReason
from posthouse_agent import orders
from posthouse_agent.wards import KEPT
from posthouse_master.store.base import Life
from posthouse_testing.sim.fold import fold
from posthouse_testing.sim.host import Machine, Sessions
from posthouse_testing.sim.ledger import Key, Ledger
from posthouse_testing.sim.process import Process
from posthouse_testing.sim.tenancy import Tenancy
from posthouse_testing.sim.world import Violation, World

__all__ = ["Checker", "Watching"]

_CLAIMS = frozenset(KIND_OF[cls] for cls in (Inventory, Exited, StopDone, StartFailed, Renew))
_HEEDED = frozenset(KIND_OF[cls] for cls in (Start, Stop, Subscribed, Grant))
_CLOCKS = 0.005  # two clocks may differ by this share; twice the drift and some rounding


@dataclass(frozen=True, slots=True)
class Watching:
    """Who is told: its stream, its subscription in its session, whether it had a place there."""

    stream: str
    session: bytes
    subscription: int
    placed: bool


@dataclass(slots=True)
class Checker:
    """Told of everything; raises Violation."""

    world: World
    ledger: Ledger
    living: dict[Key, Process] = field(default_factory=dict)
    last: dict[Key, Process] = field(default_factory=dict)
    starts_sent: dict[int, list[bytes]] = field(default_factory=dict)  # token -> sessions
    wardens: dict[int, str] = field(default_factory=dict)  # token -> kind that is to start it
    missing_to: dict[tuple[bytes, int], int] = field(default_factory=dict)  # by watch
    excused: dict[tuple[bytes, int], dict[str, int]] = field(default_factory=dict)  # by watch
    stops_sent: dict[int, list[bytes]] = field(default_factory=dict)  # token -> sessions
    may_end: dict[int, None] = field(default_factory=dict)  # unclaimed, and an operator says so
    tenancy: Tenancy = field(init=False)

    def __post_init__(self) -> None:
        self.tenancy = Tenancy(self.world)

    def fail(self, number: int, text: str) -> NoReturn:
        raise Violation(number, text)

    # --- what the master says ---

    def master_said(self, frame: bytes, endpoint: str, *, doubtful: bool) -> None:
        """A frame leaves the master. One whose registry lost the beginning of a term has nothing
        to say to agents that have seen it."""
        if doubtful and endpoint == "agents" and frame[1] == KIND_OF[Welcome]:
            self.fail(6, "a registry that lost commits is not refused by who has seen them")
        if frame[1] not in _HEEDED:
            return
        envelope = codec.decode(frame)
        match envelope.body:
            case Subscribed(subscription=number, missing_to=missing_to):
                self.missing_to[envelope.session, number] = missing_to
            case Stop(token=token):
                self.stops_sent.setdefault(token, []).append(envelope.session)
                self._stop(envelope.body)
            case Grant():
                self.tenancy.granted(envelope.session, envelope.body)
            case Start():
                self._start(envelope.body, envelope.session)

    def _start(self, start: Start, session: bytes) -> None:
        self.world.figures["START sent"] += 1
        self.wardens[start.token] = start.warden
        key = (start.slot, start.generation)
        # One that is sent again may leave in the batch in which its registration is dropped.
        state = self.ledger.states.get(key) or self.ledger.dropped.get(key)
        run = self.ledger.runs[key].get(start.incarnation)
        if run is None or run.token != start.token or state is None:
            self.fail(3, f"START of {key} token {start.token} before it is durable")
        said = self.starts_sent.setdefault(start.token, [])
        # A kept worker's host may come to this token by itself: nobody else can be given it.
        if said and said[-1] != session and start.warden != KEPT:
            self.fail(6, f"START of {key} token {start.token} is sent again in a new session")
        said.append(session)

    def _stop(self, stop: Stop) -> None:
        """What a registry does not know since it was restored ends on an operator's word only."""
        key, ledger = (stop.slot, stop.generation), self.ledger
        unknown = key in ledger.lost_keys and key not in ledger.specs and key not in ledger.dropped
        if unknown and stop.token in ledger.lost and stop.token not in self.may_end:
            self.fail(25, f"STOP of {key} token {stop.token}, which is unclaimed")

    def obeyed(self, machine: Machine, order: orders.Order, sessions: Sessions) -> None:
        """An agent gives an order to its warden: the master must have said so in this session."""
        match order:
            case orders.StartWorker(token=token):
                said = self.starts_sent.get(token, [])
                if not any(session in said for session in sessions) and self.ledger.reserves.alone(
                    machine.name,
                    order,
                    self.last.get((order.slot, order.generation)),
                    self.world.now_s,
                    open_=sessions[-1] is not None,
                ):
                    self.world.figures["starts of hosts without a master"] += 1
                    self.wardens[token] = KEPT
                    return
            case orders.StopWorker(token=token):
                said = self.stops_sent.get(token, [])
            case _:
                return
        if not any(session in said for session in sessions):
            what = type(order).__name__
            self.fail(6, f"agent of {machine.name}: {what} {token} was not said in this session")

    def queued(self, who: str, link: Link, backlog: int = 0) -> None:
        """What a process keeps for one peer, after each input: never more than its limits."""
        count, size = link.unacknowledged, link._outbox_bytes  # noqa: SLF001
        figures = self.world.figures
        if count > limits.outbox_messages_max or backlog > limits.answers_waiting_max:
            self.fail(19, f"{who} keeps {count} messages, and {backlog} that wait for room")
        if size > limits.outbox_bytes_max + limits.frame_body_bytes_max:
            self.fail(19, f"{who} keeps {size} bytes")
        figures["looks at what is kept for a peer"] += 1

    # --- what hosts do ---

    def forking(self, machine: Machine, order: orders.StartWorker) -> None:
        """A warden is about to fork."""
        key = (order.slot, order.generation)
        if order.token in self.ledger.barred:
            why = self.ledger.barred[order.token]
            self.fail(7, f"{machine.name} forks {key} token {order.token}: {why}")
        if order.token in self.ledger.lost:
            return  # said in a history that was lost since, and still good in its session
        state = self.ledger.states.get(key) or self.ledger.dropped.get(key)
        if state is None or state.life is Life.RETIRED:
            self.fail(11, f"{machine.name} forks {key}, which is unregistered")
        may = self.ledger.reserves.may_fork(machine.name, order, state)
        if (order.token != state.token or state.host != machine.name) and not may:
            self.fail(
                3,
                f"{machine.name} forks {key} token {order.token}; durable is token "
                f"{state.token} on {state.host}",
            )
        last = self.last.get(key)
        if last is None:
            return
        again = last.incarnation >= order.incarnation and last.token not in self.ledger.lost
        if again and not self.ledger.untold(last):
            self.fail(3, f"{key} incarnation {order.incarnation} after {last.incarnation}")
        self._not_too_soon(key, last)

    def _not_too_soon(self, key: Key, last: Process) -> None:
        """A crash restart is never sooner than restart_time unless an operator asks for it; other
        rules restart at once."""
        ended = self.ledger.exit_of(last)
        if ended is None or last.died_s is None or ended.exit is None:
            return
        resets = ended.exit.domain_resets
        if resets == 1 or (ended.stop is not None and not resets):
            return  # C2: the first reset of a crash domain restarts its members at once
        if ended.stop not in (None, StopReason.DOMAIN_RESET):
            return
        if self.ledger.folds[key].hastened:
            return
        restart_s = self.ledger.runs[key][last.incarnation].restart_s
        if self.world.now_s - last.died_s < restart_s * (1 - _CLOCKS):
            self.fail(12, f"{key} is back after {self.world.now_s - last.died_s:.3f} s")

    def forked(self, machine: Machine, process: Process) -> None:
        key = (process.slot, process.generation)
        if process.token in self.ledger.processes:
            self.fail(1, f"{process} is forked twice")
        other = self.living.get(key)
        if other is not None:
            self.fail(1, f"{process} on {process.host} runs beside {other} on {other.host}")
        self.world.figures["processes"] += 1
        self.ledger.processes[process.token] = process
        self.living[key] = self.last[key] = process
        self.tenancy.forked(machine, process)

    def ended(self, process: Process) -> None:
        del self.living[(process.slot, process.generation)]

    def warden_said(self, machine: Machine, kind: str, report: orders.Report) -> None:
        match report:
            case orders.StopUnknown(token=token) if self.wardens.get(token, kind) != kind:
                pass  # every warden is asked
            case orders.Ended(token=token):
                self._gone(token, f"warden of {machine.name} reports the end of", reaped=True)
            case orders.ForkFailed(token=token) if self.wardens.get(token) != KEPT:
                # That of a kept one may be ordered again, as long as the log does not say so.
                self.ledger.barred.setdefault(token, f"its start on {machine.name} failed")
            case orders.StopUnknown(token=token):
                self._gone(token, f"warden of {machine.name} does not know", reaped=False)
                self.ledger.barred.setdefault(
                    token, f"a stop found nothing of it on {machine.name}"
                )

    def agent_said(self, machine: Machine, frame: bytes) -> None:
        """A frame is handed to an agent's socket."""
        if frame[1] not in _CLAIMS:
            return
        ends: list[Exit] = []
        envelope = codec.decode(frame)
        match envelope.body:
            case Renew():
                self.tenancy.renewed(machine, envelope.session, envelope.body)
            case Exited(worker=worker):
                ends.append(worker)
            case Inventory(exits=exits):
                ends += exits
            case StopDone(token=token) | StartFailed(token=token):
                self._gone(token, f"agent of {machine.name} says there is none of", reaped=False)
        for worker in ends:
            self._gone(worker.token, f"agent of {machine.name} says ended:", reaped=True)

    def _gone(self, token: int, who: str, *, reaped: bool) -> None:
        process = self.ledger.processes.get(token)
        if process is None:
            return
        if process.live or (reaped and not process.reaped and not process.orphaned):
            self.fail(17, f"{who} {process}, which is not reaped")

    # --- what clients are told ---

    def registered(self, principal: str, request: Register, reply: Registered) -> None:
        """A client holds an answer to REGISTER."""
        key = (reply.handle.slot, reply.handle.generation)
        tag = request.spec["main_arg"]["tag"]
        if self.ledger.tags.get(tag) != [key]:
            self.fail(
                9, f"{principal} was told {key} for {tag}, durable: {self.ledger.tags.get(tag)}"
            )

    def told(self, who: str, status: Status) -> None:
        """A client is told a status: it must be what the log says at the place that it names."""
        handle = status.handle
        stream = "" if handle is None else f"{handle.slot}.{handle.generation}"
        if handle is not None and self.forgotten(stream) and status.final:
            return  # a stale handle answers STOPPED and remembers nothing
        if handle is None or (handle.slot, handle.generation) not in self.ledger.wires:
            self.fail(9, f"{who} is told of {handle}, which was never registered")
        truth = fold(self.ledger.rows(stream, 0, status.sequence))
        if lie := truth.lies(status):
            self.fail(21, f"{who} is told at {status.sequence} of {stream}: {lie}")

    def watched(
        self, who: str, watch: Watching, cursor: int, told: Sequence[Event], up_to: int
    ) -> None:
        """A watcher at `cursor` is given `told`: all rows of its stream up to `up_to`. One that had
        no place yet asked for what is kept, and was told up to where rows are missing."""
        ledger = self.ledger
        place = (watch.session, watch.subscription)
        for gap in (event for event in told if event.kind is EventKind.TRIMMED):
            stream = f"{gap.slot}.{gap.generation}"
            lost = ledger.rows(stream, cursor, gap.trimmed_to or 0)
            if watch.stream or not any(row.sequence not in ledger.bodies for row in lost):
                self.fail(8, f"{who} after {cursor} is told of a gap in {stream}: there is none")
            self.excused.setdefault(place, {})[stream] = gap.trimmed_to or 0
        told = [event for event in told if event.kind is not EventKind.TRIMMED]
        excused = self.excused.get(place, {})
        wanted = [
            row
            for row in ledger.rows(watch.stream, cursor, up_to)
            if row.sequence > excused.get(f"{row.slot}.{row.generation}", 0)
            or row.sequence in ledger.bodies
            or any(event.sequence == row.sequence for event in told)
        ]
        missing_to = self.missing_to.get((watch.session, watch.subscription), 0)
        if missing_to and cursor < missing_to:
            rows = ledger.rows(watch.stream, 0, missing_to)
            if watch.placed or not any(row.sequence not in ledger.bodies for row in rows):
                self.fail(8, f"{who} after {cursor} may do without rows up to {missing_to}: why?")
            given = {event.sequence for event in told}
            wanted = [
                row
                for row in wanted
                if row.sequence > missing_to
                or row.sequence in given
                or row.sequence in ledger.bodies
            ]
        if list(told) != wanted:
            self.fail(
                8,
                f"{who} after {cursor} was told {[e.sequence for e in told]} up to {up_to}, "
                f"the log has {[e.sequence for e in wanted]}",
            )

    def missed(self, who: str, stream: str, cursor: int) -> None:
        """A watcher is told that rows after `cursor` are gone."""
        if self.forgotten(stream):
            return  # nobody remembers which were its last rows
        ledger = self.ledger
        rows = ledger.rows(stream, cursor, len(ledger.events))
        if all(row.sequence in ledger.bodies for row in rows):
            self.fail(8, f"{who} is told that rows after {cursor} are missing; none is")

    def forgotten(self, stream: str) -> bool:
        """It was retired and is no longer listed, or is of a history that was lost."""
        if not stream:
            return False
        slot, _, generation = stream.partition(".")
        key = (int(slot), int(generation))
        lost = key in self.ledger.lost_keys and key not in self.ledger.specs
        return lost or key in self.ledger.dropped

    def watch_refused(self, who: str, stream: str, error: PosthouseError) -> None:
        """A watch ended for another reason: only a registration that is gone is a good one."""
        if not self.forgotten(stream):
            self.fail(8, f"{who} was refused: {error}")
