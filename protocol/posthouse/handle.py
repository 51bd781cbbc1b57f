"""Handle: one registration, seen from anywhere; and the stream of its events.

Owns: the calls, waits and events of one registration, and what a timeout of each means. Must not
know: threads, sockets, sessions (engine). Invariant: a handle never speaks of another registration
than its own; a wait sees every event after its snapshot, so no stop between two looks is missed.
"""

import signal as platform
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from os import urandom
from types import TracebackType
from typing import Self, TypeVar

from msgspec.structs import replace

from posthouse import limits
from posthouse.engine import Deadline, Engine, Silence
from posthouse.errors import CursorTooOld, InternalError, TimedOut, Unreachable, UsageError
from posthouse.follow import Goal, Wait
from posthouse.ids import Cursor, HandleId
from posthouse.messages import (
    Done,
    Explain,
    Explained,
    GetStacks,
    GetStatus,
    Hold,
    HostVerdict,
    LatchWorker,
    ListWorkers,
    ReadOutput,
    Release,
    Reply,
    Request,
    Restart,
    SignalWorker,
    Stacks,
    StatusReply,
    Terminate,
    WorkersPage,
)
from posthouse.messages import Output as OutputReply
from posthouse.records import Event, Status
from posthouse.session import FROM_START, Close, Unwatch
from posthouse.signals import signal_number
from posthouse.spec import BackgroundWorker
from posthouse.states import EventKind, WorkerState

__all__ = ["Connection", "EventStream", "Explanation", "Handle", "Output", "new_request_id"]

Answer = TypeVar("Answer", bound=Reply)


class Connection:
    """What a Cluster, its handles and its streams hold in common: the engine ends when the last of
    them is gone."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._finalizer = weakref.finalize(self, engine.abandon, Close("forgotten"))
        self._finalizer.atexit = False  # the thread is a daemon; nothing is to be waited for

    def close(self) -> None:
        self._finalizer.detach()
        self.engine.close()

    def deadline(self, timeout: float | Deadline | None) -> Deadline:
        """That of a call: None stands for the connection's own timeout."""
        if isinstance(timeout, Deadline):
            return timeout
        return Deadline(self.engine.settings.timeout_s if timeout is None else timeout)

    def ask(
        self,
        request: Request,
        answer: type[Answer],
        timeout: float | Deadline | None,
        *,
        until_silent: bool = False,
    ) -> Answer:
        """The answer, of the class that belongs to the request."""
        deadline = self.deadline(timeout)
        reply = self.engine.call(request, deadline, until_silent=until_silent)
        if not isinstance(reply, answer):
            raise InternalError(
                f"the master answered {type(request).__name__} with {type(reply).__name__}"
            )
        return reply

    def status(self, ref: str, timeout: float | None) -> Status:
        return self.ask(GetStatus(request=new_request_id(), ref=ref), StatusReply, timeout).status

    def cursor(self, timeout: float | None) -> Cursor:
        """The present end of the log."""
        page = self.ask(ListWorkers(request=new_request_id(), limit=1), WorkersPage, timeout)
        return Cursor(page.timeline, page.sequence)

    def explain(self, ref: str, timeout: float | None) -> "Explanation":
        answer = self.ask(Explain(request=new_request_id(), ref=ref), Explained, timeout)
        return Explanation(answer.reason, tuple(answer.verdicts))


@dataclass(frozen=True, slots=True)
class Output:
    """A page of a worker's output. `offset` is the place of its first byte, `size` the end of what
    there is now, `lost` how many bytes before `offset` are no longer kept."""

    host: str
    offset: int
    data: bytes
    size: int
    lost: int

    @property
    def text(self) -> str:
        return self.data.decode(errors="replace")

    @property
    def next_offset(self) -> int:
        return self.offset + len(self.data)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a worker is where it is, or nowhere; and for each host whether it could run it."""

    reason: str
    verdicts: tuple[HostVerdict, ...]


class EventStream(Iterator[Event]):
    """An iterator of events; made by `events()` of Cluster and Handle. One thread at a time."""

    def __init__(
        self,
        connection: Connection,
        ref: str,
        after: Cursor,
        timeout: float | None,
        *,
        ends: bool = False,
        follow: bool = True,
    ) -> None:
        self._connection = connection  # which lives as long as somebody reads
        self.timeout = timeout
        """How long `next()` waits; may be changed between two events."""
        self._ends = ends
        self._until = None if follow else connection.cursor(None)
        engine = connection.engine
        self._feed = engine.watch(ref, after)
        unwatch = Unwatch(self._feed.subscription)
        self._finalizer = weakref.finalize(self, engine.abandon, unwatch)
        self._finalizer.atexit = False
        self._done = False
        self.cursor = after
        """The place of the last event that was given: `after=` of a later reader."""

    def __repr__(self) -> str:
        return f"<EventStream {self.cursor}{' closed' if self._done else ''}>"

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        if self._done:
            raise StopIteration
        event = None
        if self._until is None or self.cursor < self._until:
            event = self._feed.take(Deadline(self.timeout), until=self._until)
        if event is None:
            self.close()
            raise StopIteration
        self.cursor = event.cursor
        if self._ends and event.kind is EventKind.UNREGISTERED:
            self.close()
        return event

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """No more events. The iterator ends."""
        self._done = True
        self._finalizer.detach()
        self._feed.close()


class Handle:
    """One registration, for ever: after it has ended, its handle says STOPPED, whatever has taken
    its name or slot since. Handles are equal if their ids are. See Cluster about timeouts."""

    def __init__(self, connection: Connection, id: HandleId, name: str) -> None:  # noqa: A002
        self._connection = connection
        self.id = id
        self.name = name

    def __repr__(self) -> str:
        return f"<Handle {self.name} {self.id.short}>"

    def __eq__(self, other: object) -> bool:
        return self.id == other.id if isinstance(other, Handle) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    # --- what it is ---

    def status(self, *, timeout: float | None = None) -> Status:
        """NOT_YET_STARTED, STARTED or STOPPED, and why [GetBackgroundWorkerPid]."""
        return self._connection.status(str(self.id), timeout)

    def pid(self, *, timeout: float | None = None) -> int | None:
        """The process id on its host; None if it has no process. Outdated as soon as it is told."""
        return self.status(timeout=timeout).pid

    def explain(self, *, timeout: float | None = None) -> Explanation:
        """Why it is where it is, or nowhere."""
        return self._connection.explain(str(self.id), timeout)

    def output(
        self,
        *,
        offset: int = -1,
        limit: int = limits.log_read_bytes_max,
        host: str = "",
        timeout: float | None = None,
    ) -> Output:
        """A page of what it wrote. `offset` -1: the last `limit` bytes. `host`: an earlier one,
        which keeps what was written there; by default the one that it runs on or ran on last."""
        request = ReadOutput(
            request=new_request_id(),
            ref=str(self.id),
            offset=max(offset, -1),
            limit=min(max(limit, 0), limits.log_read_bytes_max),
            host=host,
        )
        answer = self._connection.ask(request, OutputReply, timeout)
        return Output(answer.host, answer.offset, answer.data, answer.size, answer.lost)

    def stacks(self, *, timeout: float | None = None) -> str:
        """Where its process is now: the Python stacks of its threads, as text, taken on its host
        without its doing. Raises NotRunning, and RefusedError where it is no Python worker."""
        request = GetStacks(request=new_request_id(), ref=str(self.id))
        return self._connection.ask(request, Stacks, timeout).text

    def events(
        self, *, after: Cursor | None = None, follow: bool = True, timeout: float | None = None
    ) -> EventStream:
        """Its events after a cursor, in order, each once; ends after UNREGISTERED.

        Without `after`: from its first event on, however late one looks. With follow=False it ends
        with what there is now. The iterator raises TimedOut if none comes for `timeout` seconds,
        and CursorTooOld as Cluster.events does.
        """
        if after is not None and follow:
            follow = not self.status().final  # its end may be before the cursor: nothing comes
        start = after or FROM_START
        ref = str(self.id)
        return EventStream(self._connection, ref, start, timeout, ends=True, follow=follow)

    # --- waits ---

    def wait_for_startup(self, *, timeout: float | None = None) -> Status:
        """STARTED, or STOPPED if it ended already [WaitForBackgroundWorkerStartup].

        All waits raise TimedOut (`detail["status"]` is the last known), and return POSTMASTER_DIED
        if no master answers for too long, which says nothing about the worker.
        """
        return self._wait(Goal.STARTUP, timeout)

    def wait_for_ready(self, *, timeout: float | None = None) -> Status:
        """STARTED with `ready`, once the worker has called worker.ready(); STOPPED if it stopped
        before."""
        return self._wait(Goal.READY, timeout)

    def wait_for_shutdown(self, *, timeout: float | None = None) -> Status:
        """STOPPED at the first stop, even if it is to be restarted (`final` tells); waits for the
        start, too, if that is yet to come [WaitForBackgroundWorkerShutdown]."""
        return self._wait(Goal.SHUTDOWN, timeout)

    def wait_until_unregistered(self, *, timeout: float | None = None) -> Status:
        """STOPPED with `final`: it will never run again."""
        return self._wait(Goal.UNREGISTERED, timeout)

    def _wait(self, goal: Goal, timeout: float | None) -> Status:
        deadline = Deadline(timeout)
        wait = Wait(goal)
        try:
            while wait.outcome is None:
                # Snapshot first, then events after its cursor: what happens in between is told.
                request = GetStatus(request=new_request_id(), ref=str(self.id))
                answer = self._connection.ask(request, StatusReply, deadline, until_silent=True)
                wait.snapshot(answer.status)
                if wait.outcome is None:
                    self._follow(wait, answer.status.cursor, deadline)
        except Silence as silence:
            return self._master_died(wait.status, silence)
        except (TimedOut, Unreachable) as error:
            if deadline.left_s != 0:
                raise  # not the time: the connection was closed
            raise self._timed_out(wait, deadline) from error
        return wait.outcome

    def _follow(self, wait: Wait, after: Cursor, deadline: Deadline) -> None:
        engine = self._connection.engine
        try:
            with engine.watching(str(self.id), after) as feed:
                while wait.outcome is None:
                    event = feed.take(deadline, until_silent=True)
                    assert event is not None  # no end was given
                    wait.event(event)
        except CursorTooOld:
            return  # a storm, or a restore: look again

    def _master_died(self, last: Status | None, silence: Silence) -> Status:
        reason = f"{silence}; the worker may well be running"
        if last is None:
            return Status(state=WorkerState.POSTMASTER_DIED, name=self.name, reason=reason)
        return replace(last, state=WorkerState.POSTMASTER_DIED, reason=reason)

    def _timed_out(self, wait: Wait, deadline: Deadline) -> TimedOut:
        last = wait.status
        known = "nothing is known of it"
        if last is not None:
            known = f"last known {last.state}" + (f": {last.reason}" if last.reason else "")
        away = "" if self._connection.engine.open else "; no master answers now"
        return TimedOut(
            f"waited {deadline.timeout_s:g} s for {wait.goal.value}: worker {self.name}, "
            f"{known}{away}",
            status=last,
        )

    # --- what to do with it ---

    def terminate(self, *, timeout: float | None = None, request_id: bytes | None = None) -> bool:
        """End it and forget it [TerminateBackgroundWorker]. Returns once that is recorded; False
        if there was nothing to do."""
        request = Terminate(request=new_request_id(request_id), ref=str(self.id))
        return self._connection.ask(request, Done, timeout).changed

    def hold(self, *, timeout: float | None = None, request_id: bytes | None = None) -> bool:
        """End its process, if any, and keep it stopped until `release`; it stays registered.
        Returns once that is recorded; False if there was nothing to do. Raises NoSuchWorker."""
        request = Hold(request=new_request_id(request_id), ref=str(self.id))
        return self._connection.ask(request, Done, timeout).changed

    def release(self, *, timeout: float | None = None, request_id: bytes | None = None) -> bool:
        """End a hold: it is started as soon as it can be placed. False if it was not held."""
        request = Release(request=new_request_id(request_id), ref=str(self.id))
        return self._connection.ask(request, Done, timeout).changed

    def restart(self, *, timeout: float | None = None, request_id: bytes | None = None) -> bool:
        """End its process and start it again at once, whatever its restart_time; one that waits
        for its delay is started now. Raises RefusedError if it is held."""
        request = Restart(request=new_request_id(request_id), ref=str(self.id))
        return self._connection.ask(request, Done, timeout).changed

    def signal(
        self,
        signal: "int | str | platform.Signals",
        *,
        timeout: float | None = None,
        request_id: bytes | None = None,
    ) -> None:
        """Send a signal to its process: "HUP", signal.SIGHUP or 1. Raises NotRunning."""
        request = SignalWorker(
            request=new_request_id(request_id), ref=str(self.id), signal=signal_number(signal)
        )
        self._connection.ask(request, Done, timeout)

    def reload(self, *, timeout: float | None = None) -> None:
        """Ask it to read its configuration again, by its `reload_signal` (HUP). Raises NotRunning.

        A worker without a handler for it takes no notice [W4]; a program is ended by it then.
        """
        deadline = self._connection.deadline(timeout)
        asked = GetStatus(request=new_request_id(), ref=str(self.id))
        spec = self._connection.ask(asked, StatusReply, deadline).spec
        number = signal_number(spec.get("reload_signal", BackgroundWorker.reload_signal))
        request = SignalWorker(request=new_request_id(), ref=str(self.id), signal=number)
        self._connection.ask(request, Done, deadline)

    def set_latch(self, *, timeout: float | None = None, request_id: bytes | None = None) -> None:
        """Set its latch [SetLatch]. Raises NotRunning."""
        request = LatchWorker(request=new_request_id(request_id), ref=str(self.id))
        self._connection.ask(request, Done, timeout)


def new_request_id(given: bytes | None = None) -> bytes:
    """A random id, unless the caller repeats a request."""
    if given is None:
        return urandom(limits.request_id_bytes)
    if not isinstance(given, bytes) or len(given) != limits.request_id_bytes:
        raise UsageError(f"request_id is {given!r}: must be {limits.request_id_bytes} bytes")
    return given
