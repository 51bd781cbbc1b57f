"""CORE: the master: one input in, the effects out.

Owns: the wiring of the parts and the way of each message to its handler. Must not know: what a
handler decides; time, sockets, disks.

Invariant: `handle` never raises for anything that a peer sent: a bad frame costs the sender its
session. What it does raise is a defect of ours and ends the process, whose successor reads the
registry again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from posthouse import codec, limits
from posthouse.codec import NO_SESSION, Envelope
from posthouse.errors import (
    BadFrame,
    InternalError,
    NotPermitted,
    PosthouseError,
    RequestConflict,
    UploadLost,
)
from posthouse.ids import Instant
from posthouse.messages import (
    AGENT_TO_MASTER,
    CLIENT_TO_MASTER,
    IDEMPOTENT,
    KIND_OF,
    MUTATING,
    Apply,
    Claim,
    Credit,
    DeclarePart,
    Drain,
    Exited,
    Explain,
    ForgetHost,
    GetStacks,
    GetStatus,
    GetUsage,
    Goodbye,
    Grant,
    Hello,
    Hold,
    HostTold,
    Inventory,
    LatchWorker,
    ListHosts,
    ListUnclaimed,
    ListWorkers,
    LogChunk,
    Message,
    ReadOutput,
    Ready,
    RecordTold,
    Refused,
    Register,
    RegisterGroup,
    Release,
    ReloadRuntimes,
    Renew,
    RenewRuntimes,
    Reply,
    Request,
    Restart,
    Shutdown,
    SignalWorker,
    Started,
    StartFailed,
    StopDone,
    Subscribe,
    Terminate,
    Unsubscribe,
    Unsupported,
    WorkerAnswer,
    WorkerAsks,
)
from posthouse.states import Phase
from posthouse_master.admit import Admit
from posthouse_master.answers import Answers, failed
from posthouse_master.applies import Applies
from posthouse_master.chronicle import Chronicle
from posthouse_master.commands import Commands
from posthouse_master.declare import Declarations
from posthouse_master.effects import (
    Configured,
    Effect,
    Input,
    Interrupted,
    Malformed,
    Peer,
    PeerGone,
    PhaseChanged,
    Received,
    Reload,
    Revoked,
    Room,
    Space,
    Tick,
)
from posthouse_master.eventlog import EventLog
from posthouse_master.groups import Groups
from posthouse_master.hosts import Foreign, Hosts
from posthouse_master.leases import NO_LEASES, LeasePolicy, Leases
from posthouse_master.lifecycle import Lifecycle
from posthouse_master.notify import Watchers
from posthouse_master.pace import DEFAULT_PACE, Pace, PacePolicy
from posthouse_master.phase_watch import PhaseWatch
from posthouse_master.placement import Fleet
from posthouse_master.recovery import Recovery
from posthouse_master.registrants import Registrants
from posthouse_master.registry import Registry
from posthouse_master.requests import RequestBook
from posthouse_master.rollout import Rollout
from posthouse_master.said import check_hello
from posthouse_master.sessions import FrontDoor, Session, TimerKey
from posthouse_master.shutdown import ShutdownWatch
from posthouse_master.starter import Starter
from posthouse_master.static import StaticRegistrations
from posthouse_master.store.base import (
    Counters,
    Life,
    PutCounters,
    PutState,
    Snapshot,
    first_number,
)
from posthouse_master.strays import Strays
from posthouse_master.thrift import afford
from posthouse_master.timers import Timers
from posthouse_master.turn import Turn
from posthouse_master.unclaimed import Unclaimed
from posthouse_master.view import View

__all__ = ["MasterCore", "MasterPolicy"]

_Handler = Callable[[Turn, Session, Any], Reply | None]
_OF_WORKERS: Final = (Register, GetStatus, Terminate, LatchWorker)
_ALLOWED: Final = {"agents": AGENT_TO_MASTER, "clients": CLIENT_TO_MASTER}


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterPolicy:
    """What the operator decides."""

    max_worker_processes: int = limits.workers_per_cluster_max
    max_worker_processes_per_host: int = limits.workers_per_host_max
    pace: PacePolicy = DEFAULT_PACE
    lease: LeasePolicy = NO_LEASES
    version: str = ""
    phase: Phase = Phase.RUNNING  # until a PhaseChanged; only a followed server has a way to go
    phase_detail: str = ""


class MasterCore:
    """One term of one master, begun from what is durable."""

    def __init__(
        self,
        snapshot: Snapshot,
        policy: MasterPolicy,
        entropy: Callable[[int], bytes],
        now: Instant,
    ) -> None:
        self.term = snapshot.term
        self._over = False
        self._space = Space(Room.AMPLE)
        self._counters = snapshot.counters
        self._timers: Timers[TimerKey] = Timers()
        self.registry = Registry(
            snapshot.term.registry,
            policy.max_worker_processes,
            first_number(snapshot.term.timeline),
        )
        self.log = EventLog(
            snapshot.term.timeline,
            snapshot.counters.sequence,
            snapshot.counters.trimmed_to,
            snapshot.counters.dropped_to,
        )
        slots_max = policy.max_worker_processes_per_host
        self.fleet = Fleet(self.registry.load, slots_max, self.registry.home)
        self.door = FrontDoor(snapshot.term, policy.version, self._timers, entropy)
        self.watchers = Watchers(self.log, self.door)
        chronicle = Chronicle(self.registry, self.log, self.watchers)
        self.registrants = Registrants(self.registry, self.fleet, self.door)
        chronicle.on_row = self.registrants.told
        self.starter = Starter(
            self.registry, self.fleet, self.door, chronicle, self._timers, Pace(policy.pace)
        )
        self.lifecycle = Lifecycle(
            self.registry,
            self.fleet,
            self.door,
            self.starter,
            chronicle,
            self._timers,
            lambda: int.from_bytes(entropy(2)) / 65536,
        )
        admit = Admit(self.registry, self.fleet)
        self.groups = Groups(self.registry, self.lifecycle, self.starter, self.fleet, admit)
        self.rollout = Rollout(self.registry, self.lifecycle, self.starter, self._timers)
        self.declarations = Declarations(self.registry, self.lifecycle, self.groups, admit)
        self._applies = Applies(self.registry, self.starter, self.groups, self.declarations, admit)
        self.static = StaticRegistrations(self.registry, self.starter, self.declarations)
        strays = Strays(self.registry, self.starter, self.door, self._timers)
        self.unclaimed = Unclaimed(
            self.registry,
            self.fleet,
            self.starter,
            self.door,
            restored=first_number(snapshot.term.timeline) > 0,
        )
        self.recovery = Recovery(
            snapshot.counters.recovery,
            snapshot.term.timeline,
            self.registry,
            self.starter,
            self._timers,
        )
        self.hosts = Hosts(
            self.registry,
            self.fleet,
            self.lifecycle,
            self.starter,
            self.groups,
            strays,
            self.unclaimed,
            self.recovery,
            chronicle,
            self.door,
            self._timers,
        )
        self.leases = Leases(
            policy.lease,
            self.registry,
            self.fleet,
            self.lifecycle,
            self.starter,
            strays,
            chronicle,
            self.door,
            self._timers,
            self.hosts.persist,
        )
        self.book = RequestBook()
        self.shutdown = ShutdownWatch(
            self.registry,
            self.fleet,
            self.lifecycle,
            self.starter,
            chronicle,
            self.door,
            self.book,
            self._timers,
        )
        self.starter.phase = policy.phase
        self.starter.phase_detail = policy.phase_detail
        self.phases = PhaseWatch(self.registry, self.fleet, self.starter, chronicle, self._timers)
        self.view = View(
            self.registry,
            self.log,
            self.fleet,
            self.starter,
            self.rollout,
            self.static,
            self.door,
            self.unclaimed,
            self._timers,
            self.leases.dead_for_sure_s,
        )
        commands = Commands(
            self.registry,
            self.fleet,
            self.lifecycle,
            self.starter,
            self.hosts,
            self.door,
            admit,
            self.registrants,
            self.unclaimed,
            self.leases,
        )
        self._answers = Answers(
            self.registry,
            self.log,
            self.fleet,
            self.door,
            self.watchers,
            self.view,
            self.unclaimed,
            self._timers,
            commands.process,
        )
        self._agent_handlers: dict[type[Message], Callable[[Turn, Session, Any], None]] = {
            Inventory: self.hosts.inventory,
            Started: self.hosts.started,
            StartFailed: self.hosts.start_failed,
            Ready: self.hosts.ready,
            Exited: self.hosts.exited,
            StopDone: self.hosts.stop_done,
            RecordTold: self.hosts.record,
            WorkerAsks: self._worker_asks,
            LogChunk: self._answers.relayed,
            HostTold: self._answers.relayed,
        }
        self._client_handlers: dict[type[Message], _Handler] = {
            Register: commands.register,
            Apply: self._applies.apply,
            RegisterGroup: self._applies.register_group,
            DeclarePart: self._applies.part,
            Terminate: commands.terminate,
            SignalWorker: commands.signal,
            LatchWorker: commands.latch,
            Shutdown: self.shutdown.request,
            Hold: commands.hold,
            Release: commands.release,
            Restart: commands.restart,
            Drain: commands.drain,
            Claim: commands.claim,
            ReloadRuntimes: commands.reload_runtimes,
            ForgetHost: commands.forget_host,
            GetStatus: self._answers.status,
            ListWorkers: self._answers.workers,
            ListHosts: self._answers.hosts,
            ListUnclaimed: self._answers.unclaimed,
            Explain: self._answers.explain,
            ReadOutput: self._answers.output,
            GetStacks: self._answers.stacks,
            GetUsage: self._answers.usage,
            Subscribe: self._answers.subscribe,
            Credit: self._answers.credit,
            Unsubscribe: self._answers.unsubscribe,
        }
        self._restore(snapshot, now)

    def __repr__(self) -> str:
        return f"MasterCore(epoch={self.term.epoch} {self.registry!r} {self.door!r} {self.log!r})"

    @property
    def wake_s(self) -> float | None:
        """When a Tick is wanted at the latest."""
        return self._timers.wake_s

    @property
    def unheard(self) -> bool:
        """Somebody who asked for the end has not acknowledged the answer. A connection that is
        closed under an answer takes it along unread."""
        return any(
            session.link.unacknowledged
            for session in self.door
            if session.identity in self.shutdown.answered
        )

    def handle(self, event: Input, now: Instant) -> list[Effect]:
        """The only way in. Effects come in the order in which they must happen."""
        turn = Turn(now)
        if self._over:
            self._heard(event, now)
            return []
        match event:
            case Received(peer, frame):
                self._received(turn, peer, frame)
            case Malformed(peer):
                self._bad(turn, peer, "a message is one frame")
            case PeerGone(peer):
                session = self.door.of_peer(peer)
                if session is not None:
                    self._end(turn, session, "", "its connection is gone", back=True)
            case Tick():
                self._tick(turn)
            case Space():
                self._room(turn, event)
            case PhaseChanged():
                self.phases.changed(turn, event)
            case Configured():
                self.starter.structs = event.structs
                self.static.begin(turn, event)
            case Interrupted() | Reload() | Revoked():
                self._signalled(turn, event)
        return self._finish(turn)

    def _signalled(self, turn: Turn, event: Interrupted | Reload | Revoked) -> None:
        if isinstance(event, Revoked):
            for session in self.door.revoke(event.entries):
                self._end(turn, session, "not_permitted", "its key was revoked")
            return
        if isinstance(event, Interrupted):
            self.leases.part(turn)
            turn.goodbye = event.reason
            turn.halt(0, event.reason)
            return
        for session in self.door:
            if session.role == "agent":
                self.door.command(turn, session, RenewRuntimes())

    def _finish(self, turn: Turn) -> list[Effect]:
        self.shutdown.check(turn)
        self.groups.look(turn)
        self.rollout.look(turn)
        self.watchers.pump(turn)
        while turn.broken:
            identity, why = turn.broken.pop()
            session = self.door.get(identity)
            if session is not None:
                self._end(turn, session, "stale_session", why)
                self.watchers.pump(turn)
        if turn.goodbye:
            self.door.say_goodbye(turn, turn.goodbye)
        for registration in self.registry.changed.values():
            turn.persist(PutState(registration.state_row()))
        self.registry.changed.clear()
        self.registry.forgotten.clear()
        counters = Counters(
            token=self.registry.token,
            sequence=self.log.sequence,
            trimmed_to=self.log.trimmed_to,
            dropped_to=self.log.dropped_to,
            recovery=self.recovery.mode,
        )
        if counters != self._counters:
            self._counters = counters
            turn.persist(PutCounters(counters))
        self._over = turn.halted
        return turn.effects()

    def _heard(self, event: Input, now: Instant) -> None:
        """After Halt nothing counts any more but acknowledgements of what was said before it."""
        if not isinstance(event, Received):
            return
        try:
            envelope = codec.decode(event.frame)
            session = self.door.match(event.peer, envelope)
            if session is not None:
                session.link.receive(envelope, now.boot_s)
        except BadFrame:
            return

    # --- frames ---

    def _received(self, turn: Turn, peer: Peer, frame: bytes) -> None:
        agents = peer.endpoint == "agents"
        bytes_max = limits.agent_frame_bytes_max if agents else limits.client_frame_bytes_max
        try:
            envelope = codec.decode(frame, bytes_max)
            kind = type(envelope.body)
            if envelope.body is not None and kind not in _ALLOWED[peer.endpoint]:
                raise BadFrame(f"{kind.__name__} is not for the endpoint of the {peer.endpoint}")
            if isinstance(envelope.body, Hello):
                self._hello(turn, peer, envelope)
                return
            session = self.door.match(peer, envelope)
            if session is None:
                self.door.refuse_stale(turn, peer, envelope)
                return
            self._in_session(turn, session, envelope)
        except BadFrame as error:
            self._bad(turn, peer, str(error))
        except Foreign as error:
            session = self.door.of_peer(peer)
            if session is not None:
                self._end(turn, session, "foreign_registry", str(error))

    def _in_session(self, turn: Turn, session: Session, envelope: Envelope) -> None:
        if self.starter.room is Room.NONE and session.role == "agent" and envelope.sequence:
            # What a host reports has to be kept, and cannot be. It is as if it had not arrived:
            # its link says it again until it is acknowledged.
            envelope = Envelope(envelope.session, envelope.epoch, 0, envelope.acknowledged, None)
        message = session.link.receive(envelope, turn.now.boot_s)
        if session.backlog:
            self.door.drain(turn, session)
        if message is not None:
            self._message(turn, session, message)
        if session.role == "agent":
            self._unchoke(turn, session)
        else:
            self.watchers.roused(session)
        self.door.wind(session)

    def _message(self, turn: Turn, session: Session, message: Message) -> None:
        match message:
            case Renew():
                self._renew(turn, session, message)
            case Goodbye():
                back = message.unheard and not self.leases.unseen(turn, session)
                self._end(turn, session, "", f"goodbye: {message.reason}", back=back)
            case Unsupported() if message.kind:
                frame = session.link.loose(message)  # a kind of a newer version: say so
                turn.send(session.peer, frame)
            case Unsupported():
                pass
            case _ if session.role == "agent":
                self._agent_handlers[type(message)](turn, session, message)
            case _:
                self._client(turn, session, message)

    def _renew(self, turn: Turn, session: Session, message: Renew) -> None:
        if session.role == "agent":
            self.leases.renew(turn, session, message)
            return
        # A grant says nothing about what is durable, so it need not wait for the commit.
        turn.send(session.peer, session.link.loose(Grant(stamp=message.stamp)), urgent=True)

    def _unchoke(self, turn: Turn, session: Session) -> None:
        host = self.fleet.hosts[session.host]
        if host.choked and host.session == session.identity:
            self.starter.unchoke(turn, host, session)

    # --- clients ---

    def _client(self, turn: Turn, session: Session, message: Message) -> None:
        handler = self._client_handlers[type(message)]
        if not isinstance(message, Request):
            handler(turn, session, message)
            return
        answer: Reply | None
        try:
            answer = self._answer(turn, session, message, handler)
        except InternalError:
            raise
        except PosthouseError as error:
            answer = failed(message.request, error)
        if answer is not None:
            self.door.answer(turn, session, answer)

    def _answer(
        self, turn: Turn, session: Session, message: Request, handler: _Handler
    ) -> Reply | None:
        if type(message) not in MUTATING:
            return handler(turn, session, message)
        if session.role == "viewer":
            raise NotPermitted(f"{session.principal} may only read", hint="use the key of a client")
        known = self.book.recall(session.principal, message)
        if known is not None:
            return known
        afford(self._space, message)  # not remembered: asked again when there is room, it is done
        try:
            answer = handler(turn, session, message)
        except (InternalError, RequestConflict, UploadLost):
            raise  # not an answer to be kept: nothing was decided
        except PosthouseError as error:
            answer = failed(message.request, error)
        if answer is not None and type(message) not in IDEMPOTENT:
            self.book.remember(turn, session.principal, message, answer)
        return answer

    def _worker_asks(self, turn: Turn, agent: Session, message: WorkerAsks) -> None:
        request = codec.decode_body(message.kind, message.body)
        if not isinstance(request, _OF_WORKERS):
            raise BadFrame(f"{type(request).__name__} is nothing that a worker asks")
        try:
            session = self.registrants.admit(agent, message)
            handler = self._client_handlers[type(request)]
            answer = self._answer(turn, session, request, handler)
            assert answer is not None
        except InternalError:
            raise
        except PosthouseError as error:
            answer = failed(request.request, error)
        told = WorkerAnswer(
            token=message.token,
            call=message.call,
            kind=KIND_OF[type(answer)],
            body=codec.encode_body(answer),
        )
        self.door.command(turn, agent, told)

    # --- the disk ---

    def _room(self, turn: Turn, space: Space) -> None:
        """The disk is fuller or emptier. What waited for room is started, oldest first."""
        before, self._space = self.starter.room, space
        self.starter.room = space.room
        if space.room is before:
            return
        turn.note(f"disk.{space.room}", path=space.path, free_bytes=space.free_bytes)
        self.phases.room(turn)
        if space.room is Room.AMPLE:
            for host in self.fleet.hosts.values():
                self.starter.serve(turn, host)
                if host.settled:
                    self.groups.host_settled(turn, host)

    # --- sessions ---

    def _hello(self, turn: Turn, peer: Peer, envelope: Envelope) -> None:
        hello = envelope.body
        assert isinstance(hello, Hello)
        if envelope.session != NO_SESSION or envelope.sequence:
            raise BadFrame("HELLO opens a session, so it names none")
        check_hello(hello)
        admission = self.door.judge(peer, hello)
        if isinstance(admission, Refused):
            self._refused(turn, peer, hello, admission)
            return
        before = self.door.of_peer(peer)
        if admission.role == "agent":
            held = self.hosts.admit(turn, hello, admission.name)
            if isinstance(held, Refused):
                self._refused(turn, peer, hello, held)
                return
            if held is not None:
                self._replace(turn, held)
        if before is not None and self.door.get(before.identity) is not None:
            self._end(turn, before, "", "the peer began another session")
        lease_s = self.leases.welcome_s(hello)
        session = self.door.open(turn, peer, hello, admission, lease_s)
        if admission.role == "agent":
            self.hosts.joined(turn, hello, session)
            self.leases.look()

    def _refused(self, turn: Turn, peer: Peer, hello: Hello, refused: Refused) -> None:
        turn.note(
            "session.refused", role=hello.role, host=hello.host, code=refused.code, user=peer.user
        )
        self.door.refuse(turn, peer, refused)

    def _replace(self, turn: Turn, session: Session) -> None:
        """The host's agent has begun anew: the host was never away."""
        self.door.close(turn, session, "stale_session", "the agent began another session")
        self.hosts.replaced(session)
        self._answers.agent_left(turn, session)

    def _end(
        self, turn: Turn, session: Session, code: str, reason: str, *, back: bool = False
    ) -> None:
        """End a session, and what depended on it."""
        self.door.close(turn, session, code, reason)
        if session.role == "agent":
            self.hosts.left(turn, session, reason, back=back)
            self._answers.agent_left(turn, session)
        else:
            self.watchers.drop(session)
            self._applies.session_over(session)

    def _bad(self, turn: Turn, peer: Peer, why: str) -> None:
        turn.note("peer.bad_frame", endpoint=peer.endpoint, user=peer.user, reason=why[:256])
        session = self.door.of_peer(peer)
        if session is not None:
            self._end(turn, session, "bad_frame", why[:256])
        else:
            self.door.refuse(turn, peer, Refused(code="bad_frame", message=why[:256]))

    # --- time ---

    def _tick(self, turn: Turn) -> None:
        now_s = turn.now.boot_s
        for kind, subject in self._timers.pop(now_s):
            handler = self._due[kind]
            handler(self, turn, subject)

    def _silence_due(self, turn: Turn, identity: Any) -> None:
        session = self.door.silent(identity, turn.now.boot_s)
        if session is not None:
            self._end(turn, session, "stale_session", "not heard for too long")

    def _link_due(self, turn: Turn, identity: Any) -> None:
        self.door.link_due(turn, identity)

    def _restart_due(self, turn: Turn, key: Any) -> None:
        self.starter.restart_due(turn, key)

    def _proof_due(self, _turn: Turn, key: Any) -> None:
        self.rollout.due(key)

    def _start_due(self, turn: Turn, key: Any) -> None:
        """A START has gone unanswered for too long: a new session's inventory will tell."""
        registration = self.registry.get(*key)
        if registration is None or registration.life is not Life.STARTING:
            return
        session = self.door.get(self.fleet.hosts[registration.host].session)
        if session is not None:
            self._end(turn, session, "stale_session", f"START of {registration.name} unanswered")

    def _read_due(self, turn: Turn, read: Any) -> None:
        self._answers.read_due(turn, *read)

    def _recovery_due(self, turn: Turn, _subject: Any) -> None:
        self.hosts.recovered(turn)

    def _host_due(self, turn: Turn, name: Any) -> None:
        self.hosts.not_back(turn, name)

    def _lease_due(self, turn: Turn, name: Any) -> None:
        self.leases.due(turn, name)

    def _shutdown_due(self, turn: Turn, subject: Any) -> None:
        self.shutdown.due(turn, subject)

    def _phase_due(self, turn: Turn, _subject: Any) -> None:
        self.phases.go_on(turn)

    _due: Final[dict[str, Callable[["MasterCore", Turn, Any], None]]] = {
        "silence": _silence_due,
        "link": _link_due,
        "restart": _restart_due,
        "proof": _proof_due,
        "start": _start_due,
        "host": _host_due,
        "recovery": _recovery_due,
        "lease": _lease_due,
        "read": _read_due,
        "shutdown": _shutdown_due,
        "phase": _phase_due,
    }

    # --- the beginning ---

    def _restore(self, snapshot: Snapshot, now: Instant) -> None:
        self.registry.token = snapshot.counters.token
        for event in snapshot.events:
            self.log.restore(event)
        for slot, generation in snapshot.slots:
            self.registry.restore_slot(slot, generation)
        states = {(row.slot, row.generation): row for row in snapshot.states}
        restored = [
            self.registry.restore(spec, states[spec.slot, spec.generation])
            for spec in sorted(snapshot.specs, key=self._restore_order)
        ]
        self.registry.restored()
        for row in snapshot.requests:
            self.book.restore(row)
        for host in snapshot.hosts:
            self.hosts.restore(host, now.boot_s)
        self.recovery.begin(set(self.fleet.hosts), now.boot_s)
        for each in self.fleet.hosts.values():
            self.leases.restored(each, now.boot_s)
        self.leases.look()
        self.fleet.offer_changed()
        for group in snapshot.groups:
            self.groups.restore(group)
        if self.recovery.mode:
            self.registry.redraw()
        turn = Turn(now)
        for registration in sorted(restored, key=lambda r: r.order):
            self.log.restore_trim(registration.stream, registration.trimmed_to)
            self.lifecycle.resume(turn, registration)
            self.rollout.note(registration, now.boot_s)
        assert not turn.ops, "nothing can start before a host has said HELLO"

    def _restore_order(self, spec: Any) -> int:
        """Retired ones come oldest first, which is the order of their last rows."""
        return self.log.last_of(f"{spec.slot}.{spec.generation}")
