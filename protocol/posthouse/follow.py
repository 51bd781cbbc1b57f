"""CORE: what a handle sees, folded from events over a snapshot; and when a wait is over.

Owns: how each event changes a Status, which Status ends which wait. Must not know: how snapshots
and events are fetched, time. Invariant: a status and the events after its cursor give the status
that the master would tell at the last of them; a stop between two looks is never overlooked.
"""

from enum import Enum

from msgspec.structs import replace

from posthouse.records import Event, Status
from posthouse.states import EventKind, StopReason, WorkerState

__all__ = ["Goal", "Wait", "status_after"]

_STOPPED = WorkerState.STOPPED
_STARTED = WorkerState.STARTED


class Goal(Enum):
    """What a wait waits for."""

    STARTUP = "its start"
    READY = "its being ready"
    SHUTDOWN = "its stop"
    UNREGISTERED = "its end"


def status_after(status: Status, event: Event) -> Status:
    """The status at `event`, given the status before it.

    >>> before = Status(state=WorkerState.NOT_YET_STARTED, name="w")
    >>> now = status_after(
    ...     before,
    ...     Event(timeline=1, sequence=7, kind=EventKind.STARTED, at_unix_s=0, pid=42, host="b"),
    ... )
    >>> now.state, now.host, now.pid, now.cursor
    (<WorkerState.STARTED: 'started'>, 'b', 42, Cursor('1/7'))
    """
    now = replace(status, timeline=event.timeline, sequence=event.sequence)
    match event.kind:
        case EventKind.REVISED:
            return replace(now, revision=event.revision or now.revision)
        case EventKind.STARTING:
            return replace(
                now,
                host=event.host,
                incarnation=event.incarnation or now.incarnation,
                token=event.token,
                revision=event.revision or now.revision,
                reason=event.reason or f"starting on {event.host}",
                restart_in_s=None,
                restart_at_unix_s=None,
            )
        case EventKind.STARTED:
            return replace(
                now,
                state=_STARTED,
                host=event.host or now.host,
                pid=event.pid,
                incarnation=event.incarnation or now.incarnation,
                token=event.token or now.token,
                revision=event.revision or now.revision,
                ready=False,
                reason=event.reason or f"running on {event.host or now.host}",
                final=False,
                restart_in_s=None,
                restart_at_unix_s=None,
                started_unix_s=event.at_unix_s,
                stopping=None,
                reachable=True,
                last_heard_s=None,
            )
        case EventKind.READY:
            return replace(now, ready=True)
        case EventKind.STOP_REQUESTED:
            return replace(now, stopping=event.stop, reason=event.reason)
        case EventKind.EXITED:
            return replace(_ended(now, event), state=_STOPPED, last_exit=event.exit)
        case EventKind.START_FAILED:
            # M6: a worker that never ran is still to be started, unless it is forgotten.
            return replace(_ended(now, event), state=_STOPPED if event.final else now.state)
        case EventKind.RELEASED if now.stopping is StopReason.HOLD:
            return replace(now, stopping=StopReason.RESTART)  # STOP had left already
        case EventKind.HELD | EventKind.RELEASED:
            return replace(now, reason=event.reason)
        case EventKind.UNREGISTERED:
            reason = now.reason if now.final else event.reason or now.reason
            return replace(_ended(now, event), state=_STOPPED, final=True, reason=reason)
        case _:
            return now


def _ended(now: Status, event: Event) -> Status:
    return replace(
        now,
        pid=None,
        ready=False,
        stopping=None,
        reason=event.reason,
        final=event.final,
        restart_in_s=event.restart_in_s,
        restart_at_unix_s=event.restart_at_unix_s,
    )


class Wait:
    """One wait for one goal: give it a snapshot, then the events after the snapshot's cursor, or a
    new snapshot where events are missing; `outcome` is the status that ends it."""

    def __init__(self, goal: Goal) -> None:
        self.goal = goal
        self.status: Status | None = None
        self.outcome: Status | None = None

    def __repr__(self) -> str:
        return f"Wait({self.goal.name} last={self.status and self.status.state.name})"

    def snapshot(self, status: Status) -> None:
        before, self.status = self.status, status
        missed = (
            before is not None
            and before.last_exit != status.last_exit
            and status.state is not _STOPPED
        )
        if missed and self.goal in (Goal.READY, Goal.SHUTDOWN):
            # It stopped and was started again while we could not look.
            last = status.last_exit
            self.outcome = replace(
                status,
                state=_STOPPED,
                pid=None,
                ready=False,
                reason=f"{last.describe() if last else 'stopped'}; started again since",
            )
        elif self._reached(status) or (self.goal is Goal.UNREGISTERED and status.final):
            self.outcome = status

    def event(self, event: Event) -> None:
        assert self.status is not None, "a snapshot comes first"
        self.status = status_after(self.status, event)
        unregistered = event.kind is EventKind.UNREGISTERED
        if self._reached(self.status) or (self.goal is Goal.UNREGISTERED and unregistered):
            self.outcome = self.status

    def _reached(self, status: Status) -> bool:
        match self.goal:
            case Goal.STARTUP:
                return status.state in (_STARTED, _STOPPED)  # H8
            case Goal.READY:
                return status.ready or status.state is _STOPPED
            case Goal.SHUTDOWN:
                return status.state is _STOPPED  # H9
            case Goal.UNREGISTERED:
                return False
