"""CORE: what clients may ask to be told.

Owns: the answers to reads, subscriptions, and the relay of output from hosts. Must not know: how
anything is changed. Invariant: an answer is within one page, and says so where there is more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec

from posthouse import limits
from posthouse.errors import NotRunning, PosthouseError, RefusedError
from posthouse.ids import HandleId
from posthouse.messages import (
    Credit,
    DumpStacks,
    Explain,
    Explained,
    Failed,
    GetStacks,
    GetStatus,
    GetUsage,
    HostsPage,
    HostTold,
    HostVerdict,
    ListHosts,
    ListUnclaimed,
    ListWorkers,
    LogChunk,
    Measure,
    Output,
    ReadLog,
    ReadOutput,
    Reply,
    Request,
    Stacks,
    StatusReply,
    Subscribe,
    Subscribed,
    UnclaimedPage,
    Unsubscribe,
    Usage,
    WorkersPage,
)
from posthouse.records import HostInfo, WorkerInfo
from posthouse_master.eventlog import EventLog
from posthouse_master.notify import Watch, Watchers
from posthouse_master.placement import Fleet
from posthouse_master.registry import Registration, Registry
from posthouse_master.sessions import FrontDoor, Session, TimerKey
from posthouse_master.starter import wants_now
from posthouse_master.timers import Timers
from posthouse_master.turn import Turn
from posthouse_master.unclaimed import Unclaimed
from posthouse_master.view import View, public

__all__ = ["Answers", "failed"]

_pack = msgspec.msgpack.Encoder().encode
_REASON_SHOWN = 128  # characters of a verdict: 1,024 hosts fit into one frame


def failed(request: bytes, error: PosthouseError) -> Failed:
    """An error as it travels."""
    detail = {name: _bounded(value) for name, value in list(error.detail.items())[:16]}
    bound = limits.wide_text_bytes_max // 4  # characters; each is at most four bytes
    return Failed(
        request=request,
        code=error.code,
        message=error.message[:bound],
        hint=error.hint[:bound],
        detail=detail,
    )


def _bounded(value: Any) -> Any:
    return value[:1024] if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class _Read:
    client: bytes  # session
    request: bytes


class Answers:
    """Read-only towards the registry."""

    def __init__(
        self,
        registry: Registry,
        log: EventLog,
        fleet: Fleet,
        door: FrontDoor,
        watchers: Watchers,
        view: View,
        unclaimed: Unclaimed,
        timers: Timers[TimerKey],
        process: Callable[[str], tuple[Registration, Session]],
    ) -> None:
        self._process = process
        self._registry = registry
        self._log = log
        self._fleet = fleet
        self._door = door
        self._watchers = watchers
        self._view = view
        self._unclaimed = unclaimed
        self._timers = timers
        self._reads: dict[bytes, dict[int, _Read]] = {}  # by agent session and read number
        self._read = 0

    # --- state ---

    def status(self, turn: Turn, session: Session, message: GetStatus) -> StatusReply:
        found = self._registry.find(message.ref)
        if isinstance(found, HandleId):
            return StatusReply(request=message.request, status=self._view.stale(found))
        wire = found.wire
        return StatusReply(
            request=message.request,
            status=self._view.status(found, turn.now),
            spec=public(wire) if session.role == "viewer" else wire,
        )

    def workers(self, turn: Turn, _session: Session, message: ListWorkers) -> WorkersPage:
        found: list[WorkerInfo] = []
        size = 0
        more = False
        after = (message.slot, message.generation)
        for registration in self._registry.workers(
            after, limit=message.limit + 1, retired=message.retired, group=message.group
        ):
            info = self._view.info(registration, turn.now)
            size += len(_pack(info))
            if len(found) == message.limit or (found and size > limits.page_bytes_max):
                more = True
                break
            found.append(info)
        return WorkersPage(
            request=message.request,
            workers=found,
            more=more,
            timeline=self._log.timeline,
            sequence=self._log.sequence,
        )

    def hosts(self, turn: Turn, _session: Session, message: ListHosts) -> HostsPage:
        found: list[HostInfo] = []
        size = 0
        names = sorted(name for name in self._fleet.hosts if name > message.after)
        for name in names[: message.limit]:
            info = self._view.host(self._fleet.hosts[name], turn.now)
            size += len(_pack(info))
            if found and size > limits.page_bytes_max:
                break
            found.append(info)
        phase, detail = self._view.phase
        return HostsPage(
            request=message.request,
            hosts=found,
            more=len(found) < len(names),
            phase=phase,
            phase_detail=detail,
            reports=[] if message.after else self._view.reports,
        )

    def unclaimed(self, _turn: Turn, _session: Session, message: ListUnclaimed) -> UnclaimedPage:
        found = list(islice(self._unclaimed.after(message.after), message.limit + 1))
        return UnclaimedPage(
            request=message.request,
            processes=[self._view.unclaimed(process) for process in found[: message.limit]],
            more=len(found) > message.limit,
        )

    def explain(self, turn: Turn, _session: Session, message: Explain) -> Explained:
        """For every host, whether it could run the worker, and why not."""
        found = self._registry.find(message.ref)
        if isinstance(found, HandleId):
            return Explained(
                request=message.request, verdicts=[], reason=self._view.stale(found).reason
            )
        wants = wants_now(found)
        verdicts = []
        for name in sorted(self._fleet.hosts):
            if found.placed and found.host == name:
                verdicts.append(HostVerdict(host=name, fits=True, reason="it is there"))
                continue
            reason = self._fleet.verdict(wants, self._fleet.hosts[name])
            verdicts.append(HostVerdict(host=name, fits=not reason, reason=reason[:_REASON_SHOWN]))
        status = self._view.status(found, turn.now)
        return Explained(request=message.request, verdicts=verdicts, reason=status.reason)

    # --- the log ---

    def subscribe(self, _turn: Turn, session: Session, message: Subscribe) -> Subscribed:
        """Rows follow the answer; where some are missing, it is followed by CURSOR_TOO_OLD."""
        stream: str | None = None
        void = ""
        if message.ref:
            found = self._registry.find(message.ref)
            if isinstance(found, HandleId):
                stream, void = str(found), self._view.stale(found).reason
            else:
                stream = found.stream
        if self._watchers.count(session) >= limits.subscriptions_per_session_max:
            raise RefusedError(
                f"a session follows at most {limits.subscriptions_per_session_max} things",
                hint="follow everything with cluster.events()",
            )
        cursor = message.sequence
        if cursor < 0:
            cursor = self._log.sequence
        elif message.timeline not in (0, self._log.timeline):
            void = (
                f"the cursor is of timeline {message.timeline}, this is {self._log.timeline}: "
                "the registry was restored from a backup"
            )
        elif cursor > self._log.sequence:
            void = "the cursor is of a future that this registry has not seen"
        cursor = min(cursor, self._log.sequence)
        # Who has no place yet asks for what is kept; who has one asks for all that follows it.
        kept_from = self._log.trimmed_to if stream is None else self._log.trimmed_in(stream)
        missing_to = kept_from if message.sequence == 0 and not void else 0
        self._watchers.add(
            Watch(session, message.subscription, stream, cursor, message.credit, missing_to, void)
        )
        return Subscribed(
            request=message.request,
            subscription=message.subscription,
            timeline=self._log.timeline,
            sequence=cursor,
            missing_to=missing_to,
        )

    def credit(self, _turn: Turn, session: Session, message: Credit) -> None:
        self._watchers.credit(session, message.subscription, message.credit)

    def unsubscribe(self, _turn: Turn, session: Session, message: Unsubscribe) -> None:
        self._watchers.remove(session, message.subscription)

    # --- output, relayed ---

    def output(self, turn: Turn, session: Session, message: ReadOutput) -> None:
        """Ask the host; the answer comes with its LOG_CHUNK."""
        found = self._registry.find(message.ref)
        if isinstance(found, HandleId):
            raise NotRunning(f"{found.short}: {self._view.stale(found).reason}")
        if not found.host:
            raise NotRunning(f"{found.name!r} has not run yet, so it has no output")
        host = self._fleet.hosts.get(message.host or found.host)
        if host is None:
            raise RefusedError(f"no host {message.host!r} has joined", hint="see `posthouse hosts`")
        agent = self._door.get(host.session) if host.settled else None
        if agent is None:
            what = "where it ran last" if host.name == found.host else "with output of it"
            raise RefusedError(
                f"{found.name!r}: host {host.name}, {what}, is not reachable now",
                hint="its output stays there; ask again when `posthouse hosts` shows the host",
            )
        command = ReadLog(
            read=self._relay(turn, session, message, agent),
            slot=found.slot,
            generation=found.generation,
            offset=message.offset,
            limit=message.limit,
        )
        self._door.command(turn, agent, command)

    def stacks(self, turn: Turn, session: Session, message: GetStacks) -> None:
        """Ask the host; the answer comes with its STACK_DUMP."""
        found, agent = self._process(message.ref)
        command = DumpStacks(
            read=self._relay(turn, session, message, agent),
            slot=found.slot,
            generation=found.generation,
            token=found.token,
        )
        self._door.command(turn, agent, command)

    def usage(self, turn: Turn, session: Session, message: GetUsage) -> None:
        """Ask the host; the answer comes with its HOST_TOLD."""
        host = self._fleet.known(message.host)
        agent = self._door.get(host.session) if host.settled else None
        if agent is None:
            raise RefusedError(
                f"host {message.host} is not reachable now", hint="see `posthouse hosts`"
            )
        number = self._relay(turn, session, message, agent)
        command = Measure(read=number, after=message.after, limit=message.limit)
        self._door.command(turn, agent, command)

    def _relay(self, turn: Turn, session: Session, message: Request, agent: Session) -> int:
        """The number under which an agent answers this request."""
        reads = self._reads.setdefault(agent.identity, {})
        if len(reads) >= limits.requests_in_flight_max:
            raise RefusedError(f"host {agent.host} is too busy", hint="try again in a moment")
        self._read += 1
        reads[self._read] = _Read(session.identity, message.request)
        due_s = turn.now.boot_s + limits.read_output_s
        self._timers.set(("read", (agent.identity, self._read)), due_s)
        return self._read

    def read_due(self, turn: Turn, agent: bytes, number: int) -> None:
        """The host has had its time."""
        read = self._reads.get(agent, {}).pop(number, None)
        client = self._door.get(read.client) if read is not None else None
        if read is not None and client is not None:
            error = RefusedError(
                f"the host has not answered for {limits.read_output_s:g} s",
                hint="ask again; `posthouse hosts` shows whether it is heard",
            )
            self._door.answer(turn, client, failed(read.request, error))

    def relayed(self, turn: Turn, agent: Session, message: LogChunk | HostTold) -> None:
        """A host's answer, for who asked."""
        self._timers.cancel(("read", (agent.identity, message.read)))
        read = self._reads.get(agent.identity, {}).pop(message.read, None)
        client = self._door.get(read.client) if read is not None else None
        if read is None or client is None:
            return
        answer: Reply
        if message.error:
            error = RefusedError(f"host {agent.host}: {message.error}")
            answer = failed(read.request, error)
        elif isinstance(message, HostTold) and message.host is not None:
            answer = Usage(
                request=read.request,
                host=agent.host,
                use=message.host,
                workers=message.workers,
                more=message.more,
            )
        elif isinstance(message, HostTold):
            answer = Stacks(request=read.request, host=agent.host, text=message.text)
        else:
            answer = Output(
                request=read.request,
                host=agent.host,
                offset=message.offset,
                data=message.data,
                size=message.size,
                lost=message.lost,
            )
        self._door.answer(turn, client, answer)

    def agent_left(self, turn: Turn, agent: Session) -> None:
        """What was asked of it will not be answered in this session."""
        error = RefusedError(f"the session with host {agent.host} ended", hint="ask again")
        for number, read in self._reads.pop(agent.identity, {}).items():
            self._timers.cancel(("read", (agent.identity, number)))
            client = self._door.get(read.client)
            if client is not None:
                self._door.answer(turn, client, failed(read.request, error))
