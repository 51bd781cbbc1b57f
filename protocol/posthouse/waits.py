"""Waits for a registration's goals, and its events in order: the same for both clients.

Owns: which questions a wait asks, what a timeout of it means, where a stream begins and ends. Must
not know: threads, event loops, sockets. Invariant: a wait sees every event after its snapshot, so
no stop between two looks is missed; a stream's cursor is that of the last event it gave.
"""

import weakref

from msgspec.structs import replace

from posthouse.conversation import Connection, Engine, Feed, new_request_id
from posthouse.errors import CursorTooOld, TimedOut, Unreachable
from posthouse.follow import Goal, Wait
from posthouse.ids import Cursor, HandleId
from posthouse.messages import GetStatus, ListWorkers, StatusReply, WorkersPage
from posthouse.records import Event, Status
from posthouse.session import FROM_START, Unwatch
from posthouse.states import EventKind, WorkerState
from posthouse.switchboard import Deadline, Silence

__all__ = ["Tail", "cursor", "wait", "wait_each"]


async def cursor(connection: Connection[Engine], timeout: float | Deadline | None) -> Cursor:
    """The present end of the log."""
    request = ListWorkers(request=new_request_id(), limit=1)
    page = await connection.ask(request, WorkersPage, timeout)
    return Cursor(page.timeline, page.sequence)


async def wait(
    connection: Connection[Engine],
    handle: HandleId,
    name: str,
    goal: Goal,
    timeout: float | Deadline | None,
) -> Status:
    """The status that ends a wait for the goal. `None`: waits for ever."""
    ref = str(handle)
    deadline = connection.patience(timeout)
    waiting = Wait(goal)
    try:
        while waiting.outcome is None:
            # Snapshot first, then events after its cursor: what happens in between is told.
            request = GetStatus(request=new_request_id(), ref=ref)
            answer = await connection.ask(request, StatusReply, deadline, until_silent=True)
            waiting.snapshot(answer.status)
            if waiting.outcome is None:
                await _follow(connection, waiting, ref, answer.status.cursor, deadline)
    except Silence as silence:
        return _master_died(waiting.status, name, silence)
    except (TimedOut, Unreachable) as error:
        if not deadline.passed:
            raise  # not the time: the connection was closed
        raise _timed_out(connection, waiting, name, deadline) from error
    return waiting.outcome


async def wait_each(
    connection: Connection[Engine],
    members: list[tuple[HandleId, str]],
    goal: Goal,
    timeout: float | None,
) -> list[Status]:
    """That of each, all within one deadline."""
    deadline = connection.patience(timeout)
    return [await wait(connection, id_, name, goal, deadline) for id_, name in members]


async def _follow(
    connection: Connection[Engine], waiting: Wait, ref: str, after: Cursor, deadline: Deadline
) -> None:
    feed = connection.engine.watch(ref, after)
    try:
        while waiting.outcome is None:
            event = await feed.take(deadline, until_silent=True)
            assert event is not None  # no end was given
            waiting.event(event)
    except CursorTooOld:
        return  # a storm, or a restore: look again
    finally:
        feed.close()


def _master_died(last: Status | None, name: str, silence: Silence) -> Status:
    reason = f"{silence}; the worker may well be running"
    if last is None:
        return Status(state=WorkerState.POSTMASTER_DIED, name=name, reason=reason)
    return replace(last, state=WorkerState.POSTMASTER_DIED, reason=reason)


def _timed_out(
    connection: Connection[Engine], waiting: Wait, name: str, deadline: Deadline
) -> TimedOut:
    last = waiting.status
    known = "nothing is known of it"
    if last is not None:
        known = f"last known {last.state}" + (f": {last.reason}" if last.reason else "")
    away = "" if connection.engine.board.open else "; no master answers now"
    return TimedOut(
        f"waited {deadline.timeout_s:g} s for {waiting.goal.value}: worker {name}, {known}{away}",
        status=last,
    )


class Tail:
    """The events of one registration (`ref`), which end with it, or of all (""), for ever; without
    `follow` those that are there when it is opened. Without `after`: of one registration from its
    first, of all from now on."""

    def __init__(
        self,
        connection: Connection[Engine],
        ref: str,
        after: Cursor | None,
        timeout: float | None,
        *,
        follow: bool,
    ) -> None:
        connection.patience(timeout)  # a bad one is refused here
        self._connection = connection  # which lives as long as somebody reads
        self._ref = ref
        self._follow = follow
        self._until: Cursor | None = None
        self._feed: Feed | None = None
        self._finalizer: weakref.finalize[[Unwatch], Tail] | None = None
        self.timeout = timeout
        self.done = False
        self.cursor = after

    def __repr__(self) -> str:
        place = "" if self.cursor is None else f" {self.cursor}"
        return f"{place}{' closed' if self.done else ''}"

    async def open(self) -> None:
        """Find out where it begins and ends, within its timeout."""
        if self._feed is None and not self.done:
            deadline = self._connection.deadline(self.timeout)
            after = self.cursor
            if after is None:
                after = FROM_START if self._ref else await cursor(self._connection, deadline)
            elif self._ref and self._follow:
                # Its end may be before the cursor: then nothing comes.
                request = GetStatus(request=new_request_id(), ref=self._ref)
                answer = await self._connection.ask(request, StatusReply, deadline)
                self._follow = not answer.status.final
            if not self._follow:
                self._until = await cursor(self._connection, deadline)
            if not self.done:
                self._watch(after)

    def _watch(self, after: Cursor) -> None:
        engine = self._connection.engine
        self.cursor = after
        self._feed = engine.watch(self._ref, after)
        unwatch = Unwatch(self._feed.subscription)
        self._finalizer = weakref.finalize(self, engine.abandon, unwatch)
        self._finalizer.atexit = False

    async def next(self) -> Event | None:
        """The next event; None at the end."""
        await self.open()
        if self._feed is None or self.done:
            return None
        assert self.cursor is not None
        event = None
        if self._until is None or self.cursor < self._until:
            event = await self._feed.take(
                self._connection.patience(self.timeout), until=self._until
            )
        if event is None:
            self.close()
            return None
        self.cursor = event.cursor
        if self._ref and event.kind is EventKind.UNREGISTERED:
            self.close()
        return event

    def close(self) -> None:
        self.done = True
        if self._finalizer is not None:
            self._finalizer.detach()
        if self._feed is not None:
            self._feed.close()
