"""CORE: the agent: between the master's sessions and the wardens of its host.

Owns: the session with the master, the table of workers as the wardens reported it, the exits that
the master has not confirmed yet, what is waiting to be told. Must not know: sockets, processes,
files, clocks; and it keeps nothing on disk: an agent that is killed loses nothing that its next
life does not hear again from the wardens.

Invariant: an exit leaves this table (Confirm to the warden) only when the master has acknowledged
the very frame that carried it; until then every session's inventory lists it.

Races, and what settles them:
1. A session opens while a START is on its way to the warden: the inventory could list neither the
   worker nor its end. So no HELLO is sent while a start is unanswered or a snapshot incomplete.
2. A warden goes away: starts that it had not answered may have happened or not. The session ends
   at once, and the next one begins with the new warden's snapshot. A token that is in neither of
   its lists never ran and never will: orders of an older connection are void
   (docs/decisions/0007).
   A warden that is started because of a START comes after HELLO: it has no workers yet, so the
   master misses nothing.
3. A worker ends while its inventory page waits for room: the pages are a snapshot taken at once,
   and the exit follows them in the same sequence.
4. A START comes before the session's first GRANT, which is not sequenced and may be lost. Where
   leases have deadlines it waits here: a warden is given no start before the lease it falls under.
5. A kept worker ends, and the session with it: nobody knows whether the master has heard of that,
   and has drawn the next incarnation. So this host, once it has been alone for a while, starts it
   under the very token that the master would draw (plans.py).
"""

from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import msgspec

from posthouse import dial, limits
from posthouse.dial import DialEffect, Dialler
from posthouse.ids import Instant
from posthouse.messages import (
    DumpStacks,
    Exit,
    Exited,
    GetRecord,
    Goodbye,
    Hello,
    HostTold,
    LogChunk,
    Measure,
    Message,
    Notify,
    ReadLog,
    Ready,
    RecordTold,
    RenewRuntimes,
    Running,
    Signal,
    Start,
    Started,
    StartFailed,
    Stop,
    StopDone,
    Welcome,
    WorkerAnswer,
    WorkerAsks,
)
from posthouse.messages import SetLatch as LatchCommand
from posthouse.settings import AgentSettings
from posthouse_agent import admission, asking, inventory
from posthouse_agent.effects import (
    AnswerWorker,
    ConnectionBroken,
    Consume,
    Effect,
    Frame,
    Give,
    HostFacts,
    Input,
    Leave,
    LogRead,
    MeasureUse,
    Note,
    NotifyProcess,
    ReadLogFile,
    Reload,
    Reported,
    SetLatch,
    StacksTaken,
    TakeStacks,
    Tick,
    UseMeasured,
    WardenGone,
    WardenUp,
    WorkerSaid,
)
from posthouse_agent.orders import (
    Attached,
    Confirm,
    Ended,
    Forget,
    Forked,
    ForkFailed,
    Leased,
    NoteReady,
    Planned,
    RecordOf,
    RenewRuntime,
    Report,
    SignalWorker,
    SnapshotEnd,
    StartWorker,
    StopUnknown,
    StopWorker,
    Stuck,
    TellRecord,
    unpack,
)
from posthouse_agent.plans import Plans, start_of
from posthouse_agent.reads import Reads
from posthouse_agent.telling import Telling
from posthouse_agent.view import HostView
from posthouse_agent.wards import FENCED, KEPT, KINDS, LEASED, WardenSeat

__all__ = ["AgentCore"]


class AgentCore:
    """`handle(event, now)` is the only way in; effects come back in the order they must happen."""

    def __init__(
        self,
        settings: AgentSettings,
        facts: HostFacts,
        entropy: Callable[[int], bytes],
        there: tuple[str, ...] = (),
    ) -> None:
        """`there`: kinds of wardens, beside the fenced one, that run on this host or have left
        something to be told."""
        self._settings = settings
        self._facts = facts
        self._dialler = Dialler(self._hello, entropy, self._digest, lambda: self._in_force)
        self._seats = {
            kind: WardenSeat(kind, entropy, wanted=kind == FENCED or kind in there)
            for kind in KINDS
        }
        self._workers: dict[int, Running] = {}  # by token, as the wardens reported them
        self._names: dict[int, str] = {}  # of the same workers, for people
        self._exits: dict[int, tuple[str, Exit]] = {}  # by token: the warden's kind, and the exit
        self._starting: dict[int, str] = {}  # tokens of unanswered orders: the warden's kind
        self._stopping: dict[int, tuple[Stop, set[str]]] = {}  # unanswered, and by which wardens
        self._plans = Plans(entropy)
        self._alone_since_s: float | None = None  # without a session; None: there is one
        self._reads = Reads()
        self._telling = Telling()
        self._greeted: list[str] = []  # instances of the wardens that the last HELLO named
        self._registry = ""
        self._master = ""  # its instance
        self._term = (0, 0)  # timeline and epoch of the newest master of that registry
        self._digest_now: bytes | None = None
        self._left = False
        self._sessions = 0
        self._lost = "none was open yet"  # why there is no session
        self._unanswered: set[str] = (
            set()
        )  # of such reasons, what has been told since there was one
        self._granted_s: float | None = None  # stamp of the renewal that was granted last
        self._lease = (0, 0)  # of this session: stamp and deadline, in microseconds
        self._tell_leased = False  # at once, not with the next renewal
        self._waiting: list[Start] | None = None  # for the first grant; None: it has come
        self._effects: list[Effect] = []

    def __repr__(self) -> str:
        return (
            f"AgentCore({self._settings.host} {self._dialler.link or 'no session'} "
            f"workers={len(self._workers)} exits={len(self._exits)} starting={len(self._starting)})"
        )

    # --- queries ---

    @property
    def wake_s(self) -> float:
        """When Tick is due, in seconds of CLOCK_BOOTTIME; infinity if nothing is."""
        times = [seat.due_s for seat in self._wanted] if not self._left else []
        if self._may_dial:
            times.append(self._dialler.wake_s)
        if not self._left and self._alone_since_s is not None and self._seats[KEPT].open:
            times.append(max(self._plans.wake_s, self._alone_since_s + limits.alone_s))
        return min(times, default=float("inf"))

    @property
    def session(self) -> bytes | None:
        """The open session, if any."""
        return self._dialler.link.session if self._dialler.link is not None else None

    @property
    def running(self) -> dict[int, Running]:
        """A copy of the table of live workers, by token."""
        return dict(self._workers)

    @property
    def unconfirmed(self) -> list[int]:
        """Tokens of the exits that the master has not confirmed."""
        return list(self._exits)

    def view(self, now: Instant) -> HostView:
        """What /metrics and the health checks of this host show."""
        granted_s = self._granted_s
        settings = self._settings
        return HostView(
            host=settings.host,
            version=self._facts.version,
            at_unix_s=now.unix_s,
            session=self._dialler.open,
            told=self._telling.told,
            lost=f"no session with the master ({settings.master}): {self._lost}",
            sessions=self._sessions,
            granted_unix_s=None if granted_s is None else now.unix_s - (now.boot_s - granted_s),
            slots=settings.max_worker_processes,
            starting=len(self._starting),
            unconfirmed=len(self._exits),
            workers=tuple((self._names.get(t, ""), w) for t, w in self._workers.items()),
            wardens=tuple(seat.view() for seat in self._wanted),
        )

    # --- the one way in ---

    def handle(self, event: Input, now: Instant) -> list[Effect]:
        match event:
            case Frame(frame):
                self._dialled(self._dialler.receive(frame, now.boot_s), now)
                self._acknowledged(now)
            case Reported(kind, report):
                self._reported(kind, report, now)
            case WorkerSaid(token, message):
                self._worker_said(token, message)
            case LogRead() | StacksTaken() | UseMeasured():
                chunk = self._reads.done(event)
                if chunk is not None:
                    self._tell(chunk)
            case WardenUp(kind):
                self._seats[kind].up(now.boot_s)
                self._effects.append(self._seats[kind].attach(self._facts.instance))
            case WardenGone(kind, reason):
                self._warden_gone(kind, reason, now)
            case ConnectionBroken(reason, retried):
                self._tell_unanswered(reason)
                self._dialled(self._dialler.broken(reason, now.boot_s, retried=retried), now)
            case Reload():
                self._renew_runtimes("", now)
            case Leave(reason):
                self._left = True
                self._pump(now)
                self._dialled(self._dialler.hang_up(reason, now.boot_s), now)
                self._forget_waiting()
            case Tick():
                pass
        self._advance(now)
        effects, self._effects = self._effects, []
        return effects

    def _advance(self, now: Instant) -> None:
        if not self._sessions and self._alone_since_s is None:
            self._alone_since_s = now.boot_s  # its life begins
        if self._left:
            return
        for seat in self._seats.values():
            self._effects += seat.tick(now.boot_s)
            for start in seat.overdue(now.boot_s):
                del self._starting[start.token]
                why = seat.closed_because
                self._start_failed(start, "start_timed_out", why, retry=True, now=now)
        if self._may_dial:
            greeting = self._dialler.greeting
            self._dialled(self._dialler.tick(now.boot_s), now)
            if greeting and not self._dialler.greeting:
                self._tell_unanswered("what listens there does not answer as a master")
        if self._tell_leased and self._dialler.open:
            self._effects.append(self._dialler.renew(now.boot_s))
        self._tell_leased = False
        self._go_on(now)
        self._pump(now)

    def _go_on(self, now: Instant) -> None:
        """Race 5: kept workers whose time has come, if nobody else can start them."""
        since_s = self._alone_since_s
        if since_s is None or now.boot_s < since_s + limits.alone_s or not self._seats[KEPT].open:
            return
        for start, why in self._plans.due(now):
            self._note("worker.restart", **_named(start), reason=f"without a master: {why}")
            self._start(start, now)

    def _tell_unanswered(self, reason: str) -> None:
        """A HELLO leads to nothing. Told once a reason: dialling goes on every second or two."""
        if not self._dialler.greeting and self._dialler.open:
            return
        self._lost = reason
        if reason not in self._unanswered:
            self._unanswered.add(reason)
            self._note("session.none", master=self._settings.master, reason=reason)

    @property
    def _wanted(self) -> list[WardenSeat]:
        return [seat for seat in self._seats.values() if seat.wanted]

    @property
    def _attached(self) -> list[WardenSeat]:
        return [seat for seat in self._seats.values() if seat.attached is not None]

    @property
    def _in_force(self) -> int:
        """Stamp of the renewal by which the fuses of all wardens are set that end with the lease;
        0: not all of them are."""
        stamps = [s.in_force for s in self._attached if s.kind in LEASED and s.complete]
        return min(stamps, default=0)

    @property
    def _settled(self) -> bool:
        return not self._starting and all(seat.complete for seat in self._wanted)

    @property
    def _may_dial(self) -> bool:
        # An open session is renewed whatever the wardens do; a new one waits for them (race 1).
        return not self._left and (self._dialler.open or self._settled)

    # --- the session ---

    def _hello(self, nonce: bytes) -> Hello:
        seats = self._attached
        self._greeted = [seat.instance for seat in seats]
        fenced = self._seats[FENCED].attached
        settings = self._settings
        return Hello(
            nonce=nonce,
            role="agent",
            version=self._facts.version,
            registry=self._registry,
            epoch=self._term[1],
            master=self._master,
            host=settings.host,
            machine_id=self._facts.machine_id,
            boot_id=self._facts.boot_id,
            agent_instance=self._facts.instance,
            wardens=[seat.reference() for seat in seats],
            **admission.offer(
                settings,
                self._facts.user,
                run_as=all(seat.attached.run_as for seat in seats if seat.attached is not None),
                fence=fenced is not None and fenced.fence,
                no_tree="there is no fenced warden" if fenced is None else fenced.no_tree,
            ),
            running=len(self._workers),
            exits=len(self._exits),
            digest=self._digest(),
            notify_key=self._facts.notify_key,
        )

    def _digest(self) -> bytes:
        """Of the running set: BLAKE2b, 16 bytes, over the sorted tokens as 8 bytes, big-endian."""
        if self._digest_now is None:
            tokens = b"".join(token.to_bytes(8, "big") for token in sorted(self._workers))
            self._digest_now = blake2b(tokens, digest_size=16).digest()
        return self._digest_now

    def _dialled(self, effects: list[DialEffect], now: Instant) -> None:
        for effect in effects:
            match effect:
                case dial.Redial() | dial.Transmit():
                    self._effects.append(effect)
                case dial.Opened(welcome):
                    self._opened(welcome, now)
                case dial.Lost(reason):
                    self._forget_session()
                    if self._alone_since_s is None:  # else it was no master to obey
                        self._alone_since_s = now.boot_s
                    self._lost = reason
                    self._note("session.lost", reason=reason)
                case dial.Rejected(refused):
                    self._lost = f"refused: {refused.message}"
                    self._note(
                        "session.refused",
                        code=refused.code,
                        message=refused.message,
                        hint=refused.hint,
                        retry_after_s=refused.retry_after_s,
                    )
                case dial.Granted():
                    self._granted(effect, now)
                case dial.Delivered(message):
                    self._command(message, now)

    def _opened(self, welcome: Welcome, now: Instant) -> None:
        term = (welcome.timeline, welcome.epoch)
        # A copy of its registry may have brought another master to the very same epoch.
        copied = term == self._term and self._master not in ("", welcome.master)
        if welcome.registry == self._registry and (term < self._term or copied):
            # A master that was paused while another took over: it does not know it yet.
            self._note("session.old_master", epoch=welcome.epoch, known=self._term[1])
            self._end_session("an older master", now)
            return
        self._registry, self._term, self._master = welcome.registry, term, welcome.master
        self._effects += [seat.remember(welcome) for seat in self._seats.values() if seat.remembers]
        self._sessions += 1
        self._alone_since_s = None
        self._unanswered.clear()
        self._note(
            "session.opened",
            epoch=welcome.epoch,
            principal=welcome.principal,
            running=len(self._workers),
            exits=len(self._exits),
        )
        # A warden may have gone between HELLO and WELCOME; then the HELLO named a dead one.
        current = [seat.instance for seat in self._attached]
        if not self._settled or current != self._greeted:
            self._end_session("a warden changed", now)
            return
        pages = inventory.pages(
            self._workers.values(),
            inventory.onward(
                [worker for _, worker in self._exits.values()],
                self._workers.values(),
                self._plans.went_on,
            ),
            max((seat.highest_token for seat in self._seats.values()), default=0),
        )
        self._telling.begin(pages)
        self._lease = (0, 0)
        for seat in self._seats.values():
            seat.in_force = 0
        self._waiting = [] if welcome.lease_s > 0 else None

    def _granted(self, granted: dial.Granted, now: Instant) -> None:
        """The wardens that end with it hear of it; with what waited for it behind it."""
        self._granted_s = granted.stamp_s
        lease_us = int(min(granted.lease_s, limits.lease_s_max) * 1e6)
        self._lease = (granted.stamp, granted.stamp + lease_us if lease_us > 0 else 0)
        for seat in self._attached:
            if seat.complete:
                self._effects += seat.renew(*self._lease)
        waiting, self._waiting = self._waiting or [], None
        for start in waiting:
            self._start(start, now)

    def _end_session(self, reason: str, now: Instant) -> None:
        link = self._dialler.link
        if link is not None and link.room > 0:
            self._effects.append(self._dialler.send(Goodbye(reason=reason), now.boot_s))
        self._dialled(self._dialler.broken(reason, now.boot_s), now)

    def _forget_session(self) -> None:
        self._telling.end()
        self._waiting = None
        self._forget_waiting()
        self._stopping.clear()
        self._reads.end()

    def _forget_waiting(self) -> None:
        """Starts of this session that no warden has been given: they are void with it."""
        for seat in self._seats.values():
            for start in seat.waiting:
                del self._starting[start.token]
            seat.waiting.clear()

    def _tell(self, message: Message, carries: list[int] | None = None) -> None:
        # Without a session there is nobody to tell: the next inventory says it all.
        if self._dialler.open:
            self._telling.add(message, carries or [])

    def _pump(self, now: Instant) -> None:
        self._effects += self._telling.pump(self._dialler, now.boot_s)

    def _acknowledged(self, now: Instant) -> None:
        confirmed: dict[str, list[int]] = {}
        told = self._telling.told
        for token in self._telling.acknowledged(self._dialler, now.boot_s):
            kind, worker = self._exits.pop(token)
            self._plans.confirmed(worker.slot, token)
            confirmed.setdefault(kind, []).append(token)
        for kind, tokens in confirmed.items():
            for at in range(0, len(tokens), limits.page_items_max):
                order = Confirm(tokens=tokens[at : at + limits.page_items_max])
                self._effects.append(Give(kind, order))
        if self._telling.told and not told and self._waiting is not None:
            self._effects.append(self._dialler.renew(now.boot_s))  # granted only from now on

    # --- commands of the master ---

    def _command(self, message: Message, now: Instant) -> None:
        match message:
            case Start():
                self._start(message, now)
            case Stop():
                self._stop(message)
            case Signal() | LatchCommand() | Notify() | GetRecord():
                self._wake(message)
            case Measure():
                self._read(self._reads.ask_use(message, self._workers.values()))
            case WorkerAnswer(token=token):
                self._effects.append(AnswerWorker(token, asking.answer(message)))
            case RenewRuntimes(runtime=runtime):
                self._renew_runtimes(runtime, now)
            case ReadLog():
                self._read(self._reads.ask(message))
            case DumpStacks():
                self._read(self._reads.ask_stacks(message, self._workers.get(message.token)))
            case _:
                self._end_session(f"{type(message).__name__} is not for an agent", now)

    def _wake(self, message: Signal | LatchCommand | Notify | GetRecord) -> None:
        """A process here is to get a signal, or its latch set, or its record is asked for."""
        match message:
            case Signal():
                worker = self._known(message.token, "signal")
                if worker is not None:
                    order = SignalWorker(
                        token=message.token, signal=message.signal, handled=message.handled
                    )
                    self._effects.append(Give(worker.warden, order))
            case LatchCommand():
                if self._known(message.token, "set_latch") is not None:
                    self._effects.append(SetLatch(message.token))
            case Notify():
                if message.boot_id == self._facts.boot_id:  # else it ended with its boot
                    self._effects.append(NotifyProcess(message.pid, message.pid_start))
            case GetRecord(token=token):
                worker = self._known(token, "record")
                if worker is not None:
                    self._effects.append(Give(worker.warden, TellRecord(token=token)))

    def _renew_runtimes(self, runtime: str, now: Instant) -> None:
        """What was refused for good may succeed now: the master tries again in the next session."""
        self._note("runtimes.renewed", runtime=runtime)
        self._effects += [Give(s.kind, RenewRuntime(name=runtime)) for s in self._attached]
        if self._dialler.open:
            self._end_session("its runtimes are loaded anew", now)

    def _read(self, answer: ReadLogFile | TakeStacks | MeasureUse | LogChunk | HostTold) -> None:
        if isinstance(answer, LogChunk | HostTold):
            self._tell(answer)
        else:
            self._effects.append(answer)

    def _known(self, token: int, what: str) -> Running | None:
        worker = self._workers.get(token)
        if worker is None:
            self._note(f"{what}.unknown", token=token)
        return worker

    def _start(self, start: Start, now: Instant) -> None:
        token = start.token
        if self._waiting is not None:
            self._waiting.append(start)
            return
        if token in self._workers or token in self._exits or token in self._starting:
            # A master never sends one token twice; its report is sent or on its way.
            self._note("start.repeated", token=token)
            return
        if start.warden not in self._seats:
            known = ", ".join(self._seats)
            reason = f"host {self._settings.host} has no {start.warden!r} warden (it has: {known})"
            self._start_failed(start, "no_such_warden", reason, retry=False, now=now)
            return
        occupied = len(self._workers) + len(self._starting)
        verdict = admission.admit(start, self._settings, self._facts.user, occupied)
        if isinstance(verdict, admission.Refusal):
            refused = verdict
            self._start_failed(start, refused.code, refused.reason, retry=refused.retry, now=now)
            return
        self._starting[token] = start.warden
        self._plans.given(start)
        seat = self._seats[start.warden]
        seat.want()
        seat.waiting.append(verdict.order)
        self._effects += seat.admitted()

    def _start_failed(
        self,
        of: Start | StartWorker | ForkFailed,
        code: str,
        reason: str,
        *,
        retry: bool,
        now: Instant,
    ) -> None:
        self._note("start.failed", **_named(of), code=code, reason=reason)
        if not self._dialler.open and self._plans.failed(of.slot, of.token, reason, code, now):
            return
        self._plans.taken_back(of.slot)  # from now on it is the master's again
        self._tell(
            StartFailed(
                slot=of.slot,
                generation=of.generation,
                incarnation=of.incarnation,
                token=of.token,
                reason=reason[: limits.wide_text_bytes_max],
                code=code,
                retry=retry,
            )
        )

    def _stop(self, stop: Stop) -> None:
        order = StopWorker(
            token=stop.token,
            slot=stop.slot,
            reason=stop.reason.value,
            signal=stop.signal,
            grace_s=min(max(stop.grace_s, 0.0), limits.stop_grace_s_max),
        )
        if self._waiting:
            self._waiting = [start for start in self._waiting if start.token != stop.token]
        self._plans.taken_back(stop.slot)
        worker = self._workers.get(stop.token)
        if worker is not None:
            self._workers[stop.token] = msgspec.structs.replace(worker, stopping=stop.reason)
        for seat in self._wanted:
            if any(start.token == stop.token for start in seat.waiting):
                seat.waiting = [start for start in seat.waiting if start.token != stop.token]
                del self._starting[stop.token]
        # To every warden: only together can they say that nobody has this token, and each keeps
        # a tombstone against a START of it.
        kinds = [seat.kind for seat in self._attached]
        self._effects += [Give(kind, order) for kind in kinds]
        self._stopping[stop.token] = (stop, set(kinds))

    # --- the wardens ---

    def _reported(self, kind: str, report: Report, now: Instant) -> None:
        seat = self._seats[kind]
        problem = seat.check(report)
        if problem:
            self._note("warden.unusable", kind=kind, reason=problem)
            self._effects.append(seat.drop())
            return
        match report:
            case Attached():
                self._forget_warden(kind)
                seat.attached = report
                seat.leased, seat.in_force = report.leased, 0
                self._note("warden.attached", kind=kind, pid=report.pid, instance=report.instance)
                if not report.run_as and set(self._settings.users) - {self._facts.user}:
                    reason = "this warden has not the capabilities to run workers as other users"
                    self._note("users.unusable", users=list(self._settings.users), reason=reason)
            case Forked():
                self._forked(kind, report)
            case ForkFailed():
                self._fork_failed(report, now)
            case Ended():
                self._ended(kind, report, now)
            case StopUnknown():
                self._stop_unknown(kind, report)
            case Stuck() | RecordOf():
                self._told_of(report)
            case Leased() | Planned() | SnapshotEnd() | Forget():
                self._warden_said(seat, report, now)
        if isinstance(report, Forked | Ended):
            seat.highest_token = max(seat.highest_token, report.token)

    def _warden_said(
        self, seat: WardenSeat, report: Leased | Planned | SnapshotEnd | Forget, now: Instant
    ) -> None:
        """What concerns no single worker."""
        match report:
            case Leased(stamp=stamp):
                before = self._in_force
                seat.in_force = max(seat.in_force, stamp)
                self._tell_leased = not before and self._in_force > 0  # a first one is waited for
                self._effects += seat.admitted()
            case Planned(token=token, order=order):
                self._planned(token, order, now)
            case SnapshotEnd(running=running, exits=exits):
                seat.complete = True
                if running or exits:
                    self._recall(seat.attached)
                self._note("warden.ready", kind=seat.kind, running=running, exits=exits)
                if self._dialler.open and self._lease[0]:
                    self._effects += seat.renew(*self._lease)
                self._effects += seat.admitted()
                # Somebody else started it, with an agent before us: the inventory lacks these. Or
                # it is a new one, where starts of the master were refused by the last one.
                if (running or seat.returns) and self._dialler.open:
                    self._end_session(f"the {seat.kind} warden is there", now)
                seat.returns = False
            case Forget():
                seat.ends()
                self._note("warden.ends", kind=seat.kind)

    def _planned(self, token: int, packed: bytes, now: Instant) -> None:
        """An earlier agent was given this one, with tokens for those that follow it."""
        try:
            order = unpack(packed)
            start = start_of(order) if isinstance(order, StartWorker) else None
        except ValueError as error:  # of a warden of another version
            self._note("plan.unusable", token=token, reason=str(error))
            return
        if start is None or start.token != token:
            return
        self._plans.given(start)
        if token in self._exits:
            self._plans.ended(self._exits[token][1], now)

    def _recall(self, told: Attached | None) -> None:
        """What an earlier agent had learnt of masters binds this one, too, where there is something
        that an older registry would misjudge. An idle host may be given to another cluster."""
        if told is None or not told.registry or self._registry not in ("", told.registry):
            return
        term = (told.timeline, told.epoch)
        if term > self._term:
            self._registry, self._term, self._master = told.registry, term, told.master

    def _forked(self, kind: str, forked: Forked) -> None:
        worker = inventory.running_of(kind, forked)
        self._starting.pop(forked.token, None)
        self._workers[forked.token] = worker
        self._names[forked.token] = forked.name
        self._digest_now = None
        if not forked.known:
            self._note("worker.started", **_named(forked), pid=forked.pid)
            self._tell(Started(worker=worker))

    def _fork_failed(self, failed: ForkFailed, now: Instant) -> None:
        if self._starting.pop(failed.token, None) is None:
            return  # ordered in a session that is over, by an agent that was killed
        code, reason = failed.code, failed.reason
        self._start_failed(failed, code, reason, retry=failed.retry, now=now)

    def _ended(self, kind: str, ended: Ended, now: Instant) -> None:
        self._stopping.pop(ended.token, None)
        if ended.known and self._seats[kind].complete:
            # Said again in answer to a STOP. It may even be confirmed, with Confirm on its way.
            return
        self._starting.pop(ended.token, None)
        self._workers.pop(ended.token, None)
        self._names.pop(ended.token, None)
        self._digest_now = None
        worker = inventory.exit_of(ended)
        self._exits[ended.token] = (kind, worker)
        self._note(
            "worker.exited",
            **_named(ended),
            pid=worker.facts.pid,
            cause=worker.facts.cause,
            code=worker.facts.code,
            signal=worker.facts.signal,
        )
        self._plans.ended(worker, now)
        self._tell(Exited(worker=worker), [ended.token])

    def _told_of(self, report: Stuck | RecordOf) -> None:
        """A fact of a worker, for the master. One that is stuck keeps its slot, here and there."""
        worker = self._workers.get(report.token)
        if worker is None:
            return
        if isinstance(report, RecordOf):
            told = {name: getattr(report, name) for name in ("token", "spec", "source", "group")}
            self._tell(RecordTold(slot=worker.slot, generation=worker.generation, **told))
            return
        state = report.state[: limits.stuck_text_max]
        self._workers[report.token] = worker = msgspec.structs.replace(worker, stuck=state)
        self._note("worker.unkillable", **_named(worker), pid=worker.pid, state=state)
        self._tell(Started(worker=worker))

    def _stop_unknown(self, kind: str, unknown: StopUnknown) -> None:
        stop, unanswered = self._stopping.get(unknown.token, (None, {kind}))
        unanswered.discard(kind)
        if stop is not None and not unanswered and unknown.token not in self._workers:
            del self._stopping[unknown.token]
            self._tell(StopDone(slot=stop.slot, generation=stop.generation, token=stop.token))

    def _warden_gone(self, kind: str, reason: str, now: Instant) -> None:
        self._note("warden.gone", kind=kind, reason=reason)
        seat = self._seats[kind]
        refused = seat.gives_up()
        in_order = seat.leaves and kind not in self._starting.values()
        others = any(worker.warden != kind for worker in self._workers.values())
        seat.gone(now.boot_s)
        for start in refused:
            del self._starting[start.token]
            why = f"no {kind} warden: {reason}"
            self._start_failed(start, "no_warden", why, retry=True, now=now)
        if refused:
            return  # nothing of it is missed
        for token in [token for token, of in self._starting.items() if of == kind]:
            del self._starting[token]
        if in_order and (others or self._exits):
            # It has told everything, which has yet to be heard; and another one may have to say
            # how its workers end. A socket that is closed now may take the last words along.
            seat.returns = True
        elif self._dialler.open:
            self._end_session(f"the {kind} warden is gone: {reason}", now)

    def _forget_warden(self, kind: str) -> None:
        if kind == KEPT:
            self._plans.forget(but=self._starting)  # those have waited for this very warden
        self._workers = {t: w for t, w in self._workers.items() if w.warden != kind}
        self._names = {t: name for t, name in self._names.items() if t in self._workers}
        self._exits = {t: entry for t, entry in self._exits.items() if entry[0] != kind}
        self._digest_now = None

    # --- the workers ---

    def _worker_said(self, token: int, message: dict[str, Any]) -> None:
        worker = self._workers.get(token)
        answer: dict[str, Any] = {"op": "reply", "id": message.get("id")}
        match message.get("op"):
            case "ready" if worker is not None:
                self._became_ready(worker)
            case "ask" if worker is not None:
                asked = asking.ask(worker, message)
                if isinstance(asked, WorkerAsks):
                    self._tell(asked)  # without a session it is lost, and said again
                    self._effects.append(Consume(token))
                    return
                answer["error"] = asked
            case "ready" | "ask":
                pass  # its end was reported before its last words were read
            case op:
                text = f"this agent does not know the operation {str(op)[:64]!r}"
                answer["error"] = {"code": "unsupported", "message": text}
        self._effects += [AnswerWorker(token, answer), Consume(token)]

    def _became_ready(self, worker: Running) -> None:
        if worker.ready:
            return
        self._workers[worker.token] = msgspec.structs.replace(worker, ready=True)
        self._note("worker.ready", **_named(worker), pid=worker.pid)
        self._effects.append(Give(worker.warden, NoteReady(token=worker.token)))
        self._tell(
            Ready(
                slot=worker.slot,
                generation=worker.generation,
                incarnation=worker.incarnation,
                token=worker.token,
            )
        )

    def _note(self, name: str, **fields: Any) -> None:
        self._effects.append(Note(name, fields))


def _named(of: Start | StartWorker | ForkFailed | Forked | Ended | Running) -> dict[str, Any]:
    """The incarnation that a line of the log is about; names are the master's to tell."""
    return {
        "worker": f"{of.slot}.{of.generation}",
        "incarnation": of.incarnation,
        "token": of.token,
    }
