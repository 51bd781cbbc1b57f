"""The warden's decisions: who may start, when a stop becomes a kill, which exits are still owed.

Owns: the table of live workers, the exits that nobody has confirmed, the highest token of every
slot. Must not know: pids as targets, sockets, files, clocks. Invariant: every token that was
meant to fork gets exactly one Exited or NotForked entry, and the entry comes before the reap.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from posthouse import limits
from posthouse.ids import Instant
from posthouse.signals import SIGNALS
from posthouse.states import StopReason
from posthouse_agent import orders
from posthouse_agent.domains import Domains, MemoryEffect, crash_domain, refusal
from posthouse_agent.orders import (
    Confirm,
    NoteReady,
    RecordOf,
    Remember,
    RenewLease,
    RenewRuntime,
    SignalWorker,
    StartWorker,
    StopWorker,
    TellRecord,
)
from posthouse_agent.tenure import Tenure
from posthouse_agent.warden_effects import (
    AgentAttached,
    AgentGone,
    Arm,
    Armed,
    Confirmed,
    Effect,
    End,
    Entry,
    Event,
    Exited,
    Fork,
    ForkDone,
    ForkRefused,
    Heard,
    Intent,
    Kill,
    Listen,
    Look,
    Mark,
    MemoryAsked,
    MemoryFailed,
    NotForked,
    Ordered,
    Orphan,
    PostmasterGone,
    ProcessEnded,
    ProcessStuck,
    ReadyNoted,
    Reap,
    Recall,
    Recovered,
    Renew,
    Started,
    Stopping,
    Tell,
    Terminating,
    Tick,
    WriteJournal,
)

__all__ = ["WardenCore", "output_bytes", "recover"]

_KILL = SIGNALS["KILL"]
_ABORT = SIGNALS["ABRT"]
_QUIT = SIGNALS["QUIT"]


@dataclass(slots=True)
class _Worker:
    """A token between its intent and its end. pid 0: it waits for a process of its runtime."""

    intent: Intent
    stop_signal: int
    stop_grace_s: float
    log_bytes: int
    name: str
    record: bytes = b""  # the answer to TellRecord, packed
    watchdog_s: float | None = None
    listen_at_s: float | None = None  # it has a watchdog: whether it has been heard by then
    silent: bool = False  # it was ended for that
    domain: str = ""  # its crash domain, with SHMEM_ACCESS
    pid: int = 0
    pid_start: int = 0
    started_unix_s: float = 0.0
    runtime: str = ""
    code: str = ""
    ready: bool = False
    stop: str = ""
    signal: int = 0  # the last stop signal sent
    kill_at_s: float | None = None
    look_at_s: float | None = None  # it was sent KILL, and should be gone by then
    leaves: bool = False  # it was told so because of the lease
    stuck: str = ""


class WardenCore:
    """State machine of one warden. The first event is Recovered, also after an empty journal."""

    def __init__(
        self,
        *,
        instance: str,
        kind: str,
        boot_id: str,
        pid: int,
        run_as: bool = False,
        entropy: Callable[[int], bytes] = lambda count: b"\x01" * count,
        fence: bool = True,
        no_tree: str = "",
    ) -> None:
        self._fence = fence
        self._no_tree = no_tree
        self._asked = 0  # stamp of the newest renewal; not in force before its Armed
        self._tenure = Tenure()
        self._master = Remember()
        self._domains = Domains(entropy)  # of handles; without it no worker asks for memory
        self._spoilt: set[str] = set()  # domains that a death spoilt while this warden ends
        self._run_as = run_as
        self._instance = instance
        self._kind = kind
        self._boot_id = boot_id
        self._pid = pid
        self._live: dict[int, _Worker] = {}
        self._holders: dict[int, int] = {}  # slot -> live token
        self._exits: dict[int, Orphan] = {}
        self._highest: dict[int, int] = {}
        # Orders that came with reserved tokens, packed, by token: for an agent that comes later. In
        # memory only: with this process they are void, as the master takes them to be.
        self._plans: dict[int, bytes] = {}
        self._attached = False
        self._terminating = False
        self._ended = False

    # --- queries ---

    @property
    def live(self) -> tuple[int, ...]:
        """Tokens of all workers that run or are being forked."""
        return tuple(self._live)

    @property
    def exits(self) -> tuple[int, ...]:
        """Tokens of the exits that are not confirmed."""
        return tuple(self._exits)

    def deadline(self) -> float | None:
        """`boot_s` at which a Tick is due, if any."""
        times = (
            at_s for w in self._live.values() for at_s in (w.kill_at_s, w.look_at_s, w.listen_at_s)
        )
        due = [at_s for at_s in times if at_s is not None]
        return min([*due, *self._lease_times()], default=None)

    def entries(self) -> list[Entry]:
        """A short journal with the same meaning as the whole one so far."""
        entries: list[Entry] = [Mark(slot=s, token=t) for s, t in sorted(self._highest.items())]
        for token, w in self._live.items():
            entries.append(w.intent)
            if w.pid:
                entries.append(_started(w))
            if w.ready:
                entries.append(ReadyNoted(token=token))
            if w.stop:
                entries.append(Stopping(token=token, reason=w.stop))
        for token, gone in self._exits.items():
            entries.append(gone.intent)
            if gone.ready:
                entries.append(ReadyNoted(token=token))
            if gone.stop:
                entries.append(Stopping(token=token, reason=gone.stop))
            entries.append(Exited(token=token, facts=gone.facts or {}))
        return entries

    # --- the machine ---

    def handle(self, event: Event, now: Instant) -> list[Effect]:
        match event:
            case Ordered(order=order):
                effects = self._order(order, now)
            case ProcessEnded(token=token, facts=facts):
                effects = self._on_end(token, facts, now)
            case ProcessStuck(token=token, state=state):
                self._live[token].stuck = state
                effects = self._tell(orders.Stuck(token=token, state=state))
            case ForkDone():
                effects = self._on_forked(event, now)
            case ForkRefused():
                effects = self._on_refused(event)
            case AgentAttached():
                effects = self._snapshot()
            case AgentGone():
                self._attached = False
                effects = self._recall_all("the agent has gone")
            case Tick() | Heard() | Armed():
                effects = self._on_time(event, now)
            case Terminating():
                effects = self._on_term(now)
            case MemoryAsked() | MemoryFailed():
                effects = self._on_memory(event, now)
            case Recovered():
                effects = self._on_recovered(event, now)
        return effects + self._end_when_done()

    def _end_when_done(self) -> list[Effect]:
        if not self._terminating or self._live or self._ended:
            return []
        self._ended = True
        return [*self._tell(orders.Forget()), End(0)]

    def _order(self, order: orders.Order, now: Instant) -> list[Effect]:
        match order:
            case StartWorker():
                return self._start(order, now)
            case StopWorker():
                return self._stop(order, now)
            case SignalWorker():
                return self._signal(order, now)
            case RenewRuntime(name=name):
                return [Renew(name)]
            case TellRecord(token=token):
                worker = self._live.get(token)
                record = orders.unpack(worker.record) if worker is not None else None
                return self._tell(record) if isinstance(record, RecordOf) else []
            case RenewLease():
                return self._renew_lease(order, now)
            case Remember():
                self._master = order
            case NoteReady(token=token):
                worker = self._live.get(token)
                if worker is None or worker.ready:
                    return []
                worker.ready = True
                return [WriteJournal(ReadyNoted(token=token))]
            case Confirm(tokens=tokens):
                done = [t for t in tokens if self._exits.pop(t, None) is not None]
                for token in done:
                    self._plans.pop(token, None)
                return [WriteJournal(Confirmed(tokens=done))] if done else []
        return []  # Attach comes as AgentAttached

    def _signal(self, order: SignalWorker, now: Instant) -> list[Effect]:
        worker = self._live.get(order.token)
        if worker is None or not worker.pid or not 0 < order.signal <= 64:
            return []
        if order.handled:
            return [Kill(order.token, order.signal, handled=True)]
        return self._kill(worker, order.signal, now)

    # --- starting ---

    def _start(self, order: StartWorker, now: Instant) -> list[Effect]:
        token = order.token
        if (worker := self._live.get(token)) is not None:
            return self._tell(_forked(worker), fds_of=token) if worker.pid else []
        if (gone := self._exits.get(token)) is not None:
            return self._tell(_ended(gone, known=True))
        refusal = self._refusal(order, now)
        raised = token > self._highest.get(order.slot, -1)
        if raised:
            # A refused token is spent too: it has been answered, so it must never run later.
            self._highest[order.slot] = token
        if refusal is not None:
            mark: list[Effect] = (
                [WriteJournal(Mark(slot=order.slot, token=token))] if raised else []
            )
            return mark + self._tell(refusal)
        intent = Intent(
            token=token,
            registry=order.registry,
            slot=order.slot,
            generation=order.generation,
            incarnation=order.incarnation,
            revision=order.revision,
        )
        signal, grace_s = _stop_rule(order.spec)
        self._live[token] = _Worker(
            intent,
            signal,
            grace_s,
            output_bytes(order.spec),
            str(order.spec.get("name", "")),
            orders.pack(_record_of(order)),
            _watchdog_s(order.spec),
            domain=crash_domain(order.spec),
        )
        self._holders[order.slot] = token
        if order.reserved:
            self._plans[token] = orders.pack(order)
        made: list[MemoryEffect] = []
        if domain := self._live[token].domain:
            made = self._domains.request(domain, order.structs, now.boot_s)
        return [WriteJournal(intent), *made, Fork(order)]

    def _refusal(self, order: StartWorker, now: Instant) -> orders.ForkFailed | None:
        highest = self._highest.get(order.slot, -1)
        holder = self._holders.get(order.slot)
        if order.token <= highest:
            return _failed(
                order,
                "stale_token",
                f"token {order.token} is not above {highest}, "
                f"the highest seen for slot {order.slot}",
                retry=False,
            )
        if self._terminating:
            return _failed(order, "stopping", "the warden is ending", retry=True)
        if self._tenure.ends(now.boot_s):
            return _failed(order, "no_lease", "the host's lease is over", retry=True)
        if self._asked and not self._tenure.stamp:
            # With a fuse that is stopped nothing would ever end it.
            return _failed(order, "no_lease", "the fuse has not set the first lease", retry=True)
        if holder is not None:
            # Two processes of one slot are what tokens exist to prevent; the holder is ended first.
            return _failed(
                order, "bad_order", f"slot {order.slot} still runs token {holder}", retry=True
            )
        if len(self._exits) + len(self._live) >= limits.exit_records_max:
            return _failed(
                order,
                "too_many_exits",
                f"{len(self._exits)} exits are not confirmed and {len(self._live)} workers run "
                f"(limit {limits.exit_records_max})",
                retry=True,
            )
        return None

    def _on_forked(self, done: ForkDone, now: Instant) -> list[Effect]:
        worker = self._live[done.token]
        worker.pid, worker.pid_start = done.pid, done.pid_start
        worker.started_unix_s = now.unix_s
        worker.runtime, worker.code = done.runtime, done.code
        if worker.watchdog_s is not None:
            worker.listen_at_s = now.boot_s + worker.watchdog_s
        return [WriteJournal(_started(worker)), *self._tell(_forked(worker), fds_of=done.token)]

    def _on_refused(self, refused: ForkRefused) -> list[Effect]:
        intent = self._live.pop(refused.token).intent
        self._plans.pop(refused.token, None)
        del self._holders[intent.slot]
        report = _failed(intent, refused.code, refused.reason, retry=refused.retry)
        return [WriteJournal(NotForked(token=refused.token)), *self._tell(report)]

    def _recall(self, token: int, why: str, code: str = "recalled") -> list[Effect]:
        """What waits for a process of its runtime never gets one: the order was taken back."""
        reason = f"it had no process yet when {why}"
        refused = ForkRefused(token=token, code=code, reason=reason, retry=True)
        return [Recall(token), *self._on_refused(refused)]

    def _recall_all(self, why: str, code: str = "recalled") -> list[Effect]:
        """An order is void without the connection that it came by, unless it has been obeyed."""
        waiting = [token for token, worker in self._live.items() if not worker.pid]
        return [effect for token in waiting for effect in self._recall(token, why, code)]

    # --- stopping ---

    def _stop(self, order: StopWorker, now: Instant) -> list[Effect]:
        token = order.token
        self._take_back(order.slot)
        worker = self._live.get(token)
        if worker is not None and worker.pid:
            return self._end_worker(worker, order.reason, order.signal, order.grace_s, now)
        if (gone := self._exits.get(token)) is not None:
            return self._tell(_ended(gone, known=True))
        effects: list[Effect] = [] if worker is None else self._recall(token, "it was stopped")
        if token > self._highest.get(order.slot, -1):
            self._highest[order.slot] = token
            effects.append(WriteJournal(Mark(slot=order.slot, token=token)))
        return effects + self._tell(orders.StopUnknown(token=token, slot=order.slot))

    def _take_back(self, slot: int) -> None:
        """What was reserved for this slot is void: no later agent is told of it."""
        mine = [token for token in self._plans if self._slot_of(token) == slot]
        for token in mine:
            del self._plans[token]

    def _slot_of(self, token: int) -> int:
        of = self._live.get(token) or self._exits.get(token)
        assert of is not None, "a plan is of a worker or of an exit"
        return of.intent.slot

    def _end_worker(
        self, worker: _Worker, reason: str, signal: int, grace_s: float, now: Instant
    ) -> list[Effect]:
        """First rung of the ladder. A second order can only bring the end nearer."""
        token = worker.intent.token
        effects: list[Effect] = []
        if reason and reason != worker.stop:
            worker.stop = reason
            effects.append(WriteJournal(Stopping(token=token, reason=reason)))
        if not 0 < signal <= 64:
            signal = _KILL
        # max first: it turns NaN into 0
        at_s = now.boot_s + min(max(0.0, grace_s), limits.stop_grace_s_max)
        if worker.signal != _KILL and worker.signal != signal:
            worker.signal = int(signal)
            effects += self._kill(worker, worker.signal, now)
        if worker.signal == _KILL:
            worker.kill_at_s = None
        elif worker.kill_at_s is None or at_s < worker.kill_at_s:
            worker.kill_at_s = at_s
        return effects

    def _kill(self, worker: _Worker, signal: int, now: Instant) -> list[Effect]:
        if signal == _KILL and worker.look_at_s is None and not worker.stuck:
            worker.look_at_s = now.boot_s + limits.unkillable_s
        return [Kill(worker.intent.token, signal)]

    def _on_time(self, event: Tick | Heard | Armed, now: Instant) -> list[Effect]:
        if isinstance(event, Heard):
            return self._on_heard(event, now)
        if isinstance(event, Armed):
            return self._on_armed(event, now)
        effects = self._on_lease(now)
        for token, worker in self._live.items():
            if worker.kill_at_s is not None and worker.kill_at_s <= now.boot_s:
                worker.kill_at_s, worker.signal = None, _KILL
                effects += self._kill(worker, _KILL, now)
            if worker.look_at_s is not None and worker.look_at_s <= now.boot_s:
                worker.look_at_s = None
                effects.append(Look(token))
            if worker.listen_at_s is not None and worker.listen_at_s <= now.boot_s:
                effects += self._listen(worker, now)
        return effects

    def _listen(self, worker: _Worker, now: Instant) -> list[Effect]:
        """Whether it has been silent for too long. A warden that was itself stopped, or whose
        machine slept, may look before anybody could give a heartbeat: it gives all of them time."""
        assert worker.listen_at_s is not None
        assert worker.watchdog_s is not None
        if now.boot_s - worker.listen_at_s > limits.watchdog_late_s:
            worker.listen_at_s = now.boot_s + worker.watchdog_s
            return []
        worker.listen_at_s = None
        return [Listen(worker.intent.token)]

    def _on_heard(self, heard: Heard, now: Instant) -> list[Effect]:
        worker = self._live[heard.token]
        if worker.watchdog_s is None or worker.stop or worker.signal:
            return []  # it is being ended anyway, and has its grace for that
        if heard.silent_s < worker.watchdog_s:
            worker.listen_at_s = now.boot_s + worker.watchdog_s - heard.silent_s
            return []
        worker.silent = True
        return self._end_worker(worker, "", _ABORT, worker.stop_grace_s, now)

    def _on_term(self, now: Instant) -> list[Effect]:
        if self._terminating:
            return []
        self._terminating = True
        effects = self._recall_all("the warden was told to end", "stopping")
        for worker in self._live.values():
            reason = worker.stop or StopReason.SHUTDOWN.value
            effects += self._end_worker(
                worker, reason, worker.stop_signal, worker.stop_grace_s, now
            )
        return effects

    # --- ending ---

    def _on_end(self, token: int, facts: dict[str, Any], now: Instant) -> list[Effect]:
        w = self._live.pop(token)
        del self._holders[w.intent.slot]
        resets = self._resets(w, token, facts, now)
        if w.domain and (resets or token in self._domains.members(w.domain)):
            facts = facts | self._domains.facts(w.domain)
        if w.stop and facts.get("cause") == "daemonised":
            # It was asked to end and did; that it left its helpers to us is no fault.
            facts = facts | {"cause": "exited", "code": 0}
        if w.silent and not w.stop:
            facts = facts | {"cause": "watchdog"}
        gone = Orphan(
            intent=w.intent,
            pid=w.pid,
            pid_start=w.pid_start,
            started_unix_s=w.started_unix_s,
            ready=w.ready,
            stop=w.stop,
            facts=facts,
        )
        self._exits[token] = gone
        return [
            WriteJournal(Exited(token=token, facts=facts)),
            Reap(token),
            *self._tell(_ended(gone)),
            *self._disarm_when_empty(),
            *(effect for other in resets for effect in self._reset(other, now)),
            *(self._domains.ended(token, w.domain) if w.domain else ()),
        ]

    # --- the lease ---

    def _renew_lease(self, order: RenewLease, now: Instant) -> list[Effect]:
        """The kernel first: until it has the new deadline, the older one is what holds."""
        if not self._fence or order.stamp < self._asked:
            return []
        self._asked = order.stamp
        armed = Armed(order.stamp, self._tenure.deadline_of(order.deadline_us, now.boot_s))
        # A lease that is over already ends who is here; without anybody there is nothing to end.
        over = 0 < armed.deadline_s <= now.boot_s + limits.lease_ahead_s
        if over and not self._live:
            return self._on_armed(armed, now)
        return [Arm(armed.deadline_s, armed.stamp)]

    def _on_armed(self, armed: Armed, now: Instant) -> list[Effect]:
        if not armed.stamp:
            return []  # the fuse was taken out
        self._tenure.renew(armed.stamp, armed.deadline_s)
        return [*self._on_lease(now), *self._tell(orders.Leased(stamp=armed.stamp))]

    def _lease_times(self) -> list[float]:
        """When the lease wants something to be done."""
        tenure = self._tenure
        if tenure.last_s is None or tenure.over:
            return []
        staying = [w.stop_grace_s for w in self._live.values() if w.pid and not w.leaves]
        times = [tenure.leave_s(max(staying, default=0.0)), tenure.last_s]
        return [at_s for at_s in times if at_s is not None]

    def _on_lease(self, now: Instant) -> list[Effect]:
        """Have everybody leave in time. What the kernel's timer finds at the deadline is killed by
        it, with this warden; but then nobody sees how it ended."""
        tenure = self._tenure
        if tenure.last_s is None or tenure.over:
            return []
        effects: list[Effect] = []
        left_s = max(0.0, tenure.last_s - now.boot_s)
        for worker in self._live.values():
            leave_s = tenure.leave_s(worker.stop_grace_s)
            if worker.pid and not worker.leaves and leave_s is not None and leave_s <= now.boot_s:
                worker.leaves = True
                reason = worker.stop or StopReason.LEASE_END.value
                signal = worker.stop_signal
                effects += self._end_worker(worker, reason, signal, left_s, now)
                # Who has its signals blocked, as each worker has at first, hears it by this alone.
                effects.append(PostmasterGone(worker.intent.token))
        if tenure.ends(now.boot_s):
            tenure.over = True
            effects += self._recall_all("the host's lease was over", "no_lease")
            effects += self._disarm_when_empty()
        return effects

    def _disarm_when_empty(self) -> list[Effect]:
        """Without a worker there is nothing to be fenced off, and a warden that lives can still
        tell how its workers ended; it starts none before the lease is renewed.

        Not behind a renewal that the fuse has still to answer: 1. it would set that deadline;
        2. take it out again; 3. its answer to the first would have workers started without one."""
        unanswered = self._asked != self._tenure.stamp
        return [Arm(0.0)] if self._tenure.over and not self._live and not unanswered else []

    # --- shared memory ---

    def _on_memory(self, event: MemoryAsked | MemoryFailed, now: Instant) -> list[Effect]:
        worker = self._live.get(event.token)
        if worker is None or not worker.domain:
            return []
        if isinstance(event, MemoryFailed):
            return [*self._domains.failed(worker.domain, event.number)]
        name, message = worker.domain, event.message
        if name in self._spoilt:
            text = f"the warden ends, and a member of crash domain {name} has died badly"
            return [refusal(event.token, message, "stopping", text)]
        return [*self._domains.asked(event.token, name, message, now.boot_s)]

    def _resets(
        self, w: _Worker, token: int, facts: dict[str, Any], now: Instant
    ) -> frozenset[int]:
        """Who must end because a member of their domain died as it did. Whether its memory can be
        trusted is told by how it died, not by who asked for that: it was killed, or left with
        another code than 0 or 1, or with a lock held."""
        if not w.domain or token not in self._domains.members(w.domain):
            return frozenset()
        lock_held = facts.get("lock_held") is True
        clean = facts.get("code") in (0, 1) and not lock_held
        if clean or self._domains.facts(w.domain):
            return frozenset()
        if self._terminating:
            self._spoilt.add(w.domain)  # all are ended anyway, each with the grace that it has
            return frozenset()
        signal, code = facts.get("signal"), facts.get("code")
        how = f"ended by signal {signal}" if signal is not None else f"exited with code {code}"
        if w.silent and not w.stop:
            how = f"gave no heartbeat for {w.watchdog_s:g} s, {how}"
        held = " while it held a lock" if lock_held else ""
        cause = f"worker {w.name} (pid {w.pid}) {how}{held}"
        return self._domains.crashed(token, w.domain, cause, now.boot_s)

    def _reset(self, token: int, now: Instant) -> list[Effect]:
        """C1: QUIT, and KILL after 5 s. Another request for its end stands."""
        worker = self._live[token]
        reason = "" if worker.stop else StopReason.DOMAIN_RESET.value
        return self._end_worker(worker, reason, _QUIT, limits.postmaster_grace_s, now)

    # --- beginnings ---

    def _on_recovered(self, event: Recovered, now: Instant) -> list[Effect]:
        self._highest = dict(event.highest)
        self._exits = {gone.intent.token: gone for gone in event.exits}
        cause = "host_rebooted" if event.rebooted else "warden_died"
        effects: list[Effect] = []
        for orphan in event.lost:
            facts: dict[str, Any] = {"cause": cause, "ended_unix_s": now.unix_s}
            if orphan.pid:
                facts |= {"pid": orphan.pid, "started_unix_s": orphan.started_unix_s}
            token = orphan.intent.token
            self._exits[token] = replace(orphan, facts=facts)
            effects.append(WriteJournal(Exited(token=token, facts=facts)))
        return effects

    def _snapshot(self) -> list[Effect]:
        self._attached = (
            False  # what waits came from an older agent, and this one never asked for it
        )
        effects = self._recall_all("another agent came")
        self._attached = True
        effects += self._tell(
            orders.Attached(
                instance=self._instance,
                kind=self._kind,
                boot_id=self._boot_id,
                pid=self._pid,
                highest_token=max(self._highest.values(), default=0),
                run_as=self._run_as,
                fence=self._fence,
                leased=bool(self._tenure.deadline_s),
                no_tree=self._no_tree,
                remembers=True,
                registry=self._master.registry,
                timeline=self._master.timeline,
                epoch=self._master.epoch,
                master=self._master.master,
            )
        )
        running = list(self._live.values())
        for worker in running:
            effects += self._tell(_forked(worker, known=True), fds_of=worker.intent.token)
        for gone in self._exits.values():
            effects += self._tell(_ended(gone, known=True))
        for token, order in self._plans.items():
            effects += self._tell(orders.Planned(token=token, order=order))
        end = orders.SnapshotEnd(running=len(running), exits=len(self._exits))
        return effects + self._tell(end)

    def _tell(self, report: orders.Report, *, fds_of: int | None = None) -> list[Effect]:
        return [Tell(report, fds_of)] if self._attached else []


def recover(entries: Iterable[Entry], *, rebooted: bool) -> Recovered:
    """What a journal says to the next warden, which must first see to it that all are dead."""
    found: dict[int, Orphan] = {}
    highest: dict[int, int] = {}
    for entry in entries:
        match entry:
            case Intent(token=token, slot=slot):
                found[token] = Orphan(intent=entry)
                highest[slot] = max(token, highest.get(slot, -1))
            case Mark(slot=slot, token=token):
                highest[slot] = max(token, highest.get(slot, -1))
            case Confirmed(tokens=tokens):
                for token in tokens:
                    found.pop(token, None)
            case NotForked(token=token):
                found.pop(token, None)
            case Started() | ReadyNoted() | Stopping() | Exited():
                if entry.token in found:
                    found[entry.token] = _learn(found[entry.token], entry)
    return Recovered(
        rebooted=rebooted,
        lost=tuple(o for o in found.values() if o.facts is None),
        exits=tuple(o for o in found.values() if o.facts is not None),
        highest=highest,
    )


def _learn(orphan: Orphan, entry: Started | ReadyNoted | Stopping | Exited) -> Orphan:
    match entry:
        case Started(pid=pid, pid_start=start, started_unix_s=unix_s):
            return replace(orphan, pid=pid, pid_start=start, started_unix_s=unix_s)
        case ReadyNoted():
            return replace(orphan, ready=True)
        case Stopping(reason=reason):
            return replace(orphan, stop=reason)
        case Exited(facts=facts):
            return replace(orphan, facts=facts)


def _started(w: _Worker) -> Started:
    return Started(
        token=w.intent.token,
        pid=w.pid,
        pid_start=w.pid_start,
        started_unix_s=w.started_unix_s,
        runtime=w.runtime,
        code=w.code,
    )


def _forked(w: _Worker, *, known: bool = False) -> orders.Forked:
    i = w.intent
    return orders.Forked(
        token=i.token,
        registry=i.registry,
        slot=i.slot,
        generation=i.generation,
        incarnation=i.incarnation,
        revision=i.revision,
        pid=w.pid,
        pid_start=w.pid_start,
        started_unix_s=w.started_unix_s,
        runtime=w.runtime,
        code=w.code,
        ready=w.ready,
        stopping=w.stop,
        known=known,
        stuck=w.stuck,
        log_bytes=w.log_bytes,
        name=w.name,
    )


def _ended(gone: Orphan, *, known: bool = False) -> orders.Ended:
    i = gone.intent
    return orders.Ended(
        token=i.token,
        registry=i.registry,
        slot=i.slot,
        generation=i.generation,
        incarnation=i.incarnation,
        revision=i.revision,
        facts=gone.facts or {},
        ready=gone.ready,
        stop=gone.stop,
        known=known,
    )


def _record_of(order: StartWorker) -> RecordOf:
    return RecordOf(token=order.token, spec=order.spec, source=order.source, group=order.group)


def _failed(
    what: StartWorker | Intent, code: str, reason: str, *, retry: bool
) -> orders.ForkFailed:
    return orders.ForkFailed(
        token=what.token,
        slot=what.slot,
        generation=what.generation,
        incarnation=what.incarnation,
        code=code,
        reason=reason,
        retry=retry,
    )


def _stop_rule(spec: dict[str, Any]) -> tuple[int, float]:
    """How this worker is ended when the warden itself ends; the record's own defaults."""
    number = SIGNALS.get(str(spec.get("stop_signal", "TERM")), SIGNALS["TERM"])
    grace_s = spec.get("stop_grace_s", 5.0)
    return number, float(grace_s) if isinstance(grace_s, int | float) else 5.0


def output_bytes(spec: dict[str, Any]) -> int:
    """How much of this worker's output is kept."""
    value = spec.get("log_bytes")
    return max(value, limits.log_bytes_min) if isinstance(value, int) else limits.log_bytes_max


def _watchdog_s(spec: dict[str, Any]) -> float | None:
    value = spec.get("watchdog_s")
    return float(value) if isinstance(value, int | float) and value > 0 else None
