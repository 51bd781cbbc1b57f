"""Handle and Group: one registration, or the members of a group, seen from anywhere; EventStream.

Owns: the blocking calls of one registration and their docs. Must not know: what they ask (calls),
how they wait (waits), threads, sockets (engine). Invariant: a handle never speaks of another
registration than its own.
"""

import signal as platform
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from posthouse import calls, limits, waits
from posthouse.calls import Explanation, Output
from posthouse.conversation import Connection, drive
from posthouse.engine import Engine
from posthouse.follow import Goal
from posthouse.ids import Cursor, HandleId
from posthouse.messages import Hold, LatchWorker, Release, Restart, Terminate
from posthouse.records import Event, Status

__all__ = ["EventStream", "Explanation", "Group", "Handle", "Output"]


class EventStream(Iterator[Event]):
    """An iterator of events; made by `events()` of Cluster and Handle. One thread at a time."""

    def __init__(self, tail: waits.Tail) -> None:
        self._tail = tail
        drive(tail.open())

    def __repr__(self) -> str:
        return f"<EventStream{self._tail!r}>"

    @property
    def cursor(self) -> Cursor:
        """The place of the last event that was given: `after=` of a later reader."""
        assert self._tail.cursor is not None  # it is open
        return self._tail.cursor

    @property
    def timeout(self) -> float | None:
        """How long `next()` waits; may be changed between two events."""
        return self._tail.timeout

    @timeout.setter
    def timeout(self, timeout: float | None) -> None:
        self._tail.timeout = timeout

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        event = drive(self._tail.next())
        if event is None:
            raise StopIteration
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
        self._tail.close()


class Handle:
    """One registration, for ever: after it has ended, its handle says STOPPED, whatever has taken
    its name or slot since. Handles are equal if their ids are. See Cluster about timeouts."""

    def __init__(self, connection: Connection[Engine], id: HandleId, name: str) -> None:  # noqa: A002
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
        return drive(calls.status(self._connection, self.id, timeout))

    def pid(self, *, timeout: float | None = None) -> int | None:
        """The process id on its host; None if it has no process. Outdated as soon as it is told."""
        return self.status(timeout=timeout).pid

    def explain(self, *, timeout: float | None = None) -> Explanation:
        """Why it is where it is, or nowhere."""
        return drive(calls.explain(self._connection, self.id, timeout))

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
        return drive(calls.output(self._connection, self.id, offset, limit, host, timeout))

    def stacks(self, *, timeout: float | None = None) -> str:
        """Where its process is now: the Python stacks of its threads, as text, taken on its host
        without its doing. Raises NotRunning, and RefusedError where it is no Python worker."""
        return drive(calls.stacks(self._connection, self.id, timeout))

    def events(
        self, *, after: Cursor | None = None, follow: bool = True, timeout: float | None = None
    ) -> EventStream:
        """Its events after a cursor, in order, each once; ends after UNREGISTERED.

        Without `after`: from its first event on, however late one looks. With follow=False it ends
        with what there is now. The iterator raises TimedOut if none comes for `timeout` seconds,
        as this call does if it cannot find out in that time where to begin, and CursorTooOld as
        Cluster.events does.
        """
        tail = waits.Tail(self._connection, str(self.id), after, timeout, follow=follow)
        return EventStream(tail)

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
        return drive(waits.wait(self._connection, self.id, self.name, goal, timeout))

    # --- what to do with it ---

    def terminate(self, *, timeout: float | None = None, request_id: bytes | None = None) -> bool:
        """End it and forget it [TerminateBackgroundWorker]. Returns once that is recorded; False
        if there was nothing to do."""
        return drive(calls.change(self._connection, Terminate, self.id, timeout, request_id))

    def hold(self, *, timeout: float | None = None, request_id: bytes | None = None) -> bool:
        """End its process, if any, and keep it stopped until `release`; it stays registered.
        Returns once that is recorded; False if there was nothing to do. Raises NoSuchWorker."""
        return drive(calls.change(self._connection, Hold, self.id, timeout, request_id))

    def release(self, *, timeout: float | None = None, request_id: bytes | None = None) -> bool:
        """End a hold: it is started as soon as it can be placed. False if it was not held."""
        return drive(calls.change(self._connection, Release, self.id, timeout, request_id))

    def restart(self, *, timeout: float | None = None, request_id: bytes | None = None) -> bool:
        """End its process and start it again at once, whatever its restart_time; one that waits
        for its delay is started now. Raises RefusedError if it is held."""
        return drive(calls.change(self._connection, Restart, self.id, timeout, request_id))

    def signal(
        self,
        signal: "int | str | platform.Signals",
        *,
        timeout: float | None = None,
        request_id: bytes | None = None,
    ) -> None:
        """Send a signal to its process: "HUP", signal.SIGHUP or 1. Raises NotRunning."""
        drive(calls.signal(self._connection, self.id, signal, timeout, request_id))

    def reload(self, *, timeout: float | None = None, request_id: bytes | None = None) -> None:
        """Ask it to read its configuration again, by its `reload_signal` (HUP). Raises NotRunning.

        A worker without a handler for it takes no notice [W4]; a program is ended by it then.
        """
        drive(calls.reload(self._connection, self.id, timeout, request_id))

    def set_latch(self, *, timeout: float | None = None, request_id: bytes | None = None) -> None:
        """Set its latch [SetLatch]. Raises NotRunning."""
        drive(calls.change(self._connection, LatchWorker, self.id, timeout, request_id))


class Group:
    """The members of a group as they were when they were asked for. Calls go to one after another,
    all within `timeout` seconds; the first error ends them, and asking again, with the same
    `request_id`, does what is left."""

    def __init__(
        self, connection: Connection[Engine], name: str, members: Iterable[tuple[HandleId, str]]
    ) -> None:
        self._connection = connection
        self.name = name
        self.handles = tuple(Handle(connection, *member) for member in members)

    def __repr__(self) -> str:
        return f"<Group {self.name}: {len(self.handles)} members>"

    def __iter__(self) -> Iterator[Handle]:
        return iter(self.handles)

    def __len__(self) -> int:
        return len(self.handles)

    def wait_for_startup(self, *, timeout: float | None = None) -> list[Status]:
        """Of each member, STARTED or STOPPED. Raises TimedOut."""
        return self._wait(Goal.STARTUP, timeout)

    def wait_until_unregistered(self, *, timeout: float | None = None) -> list[Status]:
        """Until none of them will run again."""
        return self._wait(Goal.UNREGISTERED, timeout)

    def terminate(self, *, timeout: float | None = None, request_id: bytes | None = None) -> int:
        """End and forget all of them. How many there were to end."""
        return self._change(Terminate, timeout, request_id)

    def hold(self, *, timeout: float | None = None, request_id: bytes | None = None) -> int:
        """Stop all of them and keep them registered. How many were not held already."""
        return self._change(Hold, timeout, request_id)

    def release(self, *, timeout: float | None = None, request_id: bytes | None = None) -> int:
        """Let all of them run again. How many were held."""
        return self._change(Release, timeout, request_id)

    def restart(self, *, timeout: float | None = None, request_id: bytes | None = None) -> int:
        """Start all of them anew, at once. How many there were to start."""
        return self._change(Restart, timeout, request_id)

    def _wait(self, goal: Goal, timeout: float | None) -> list[Status]:
        members = [(handle.id, handle.name) for handle in self.handles]
        return drive(waits.wait_each(self._connection, members, goal, timeout))

    def _change(self, kind: calls.Change, timeout: float | None, request_id: bytes | None) -> int:
        refs = [handle.id for handle in self.handles]
        return drive(calls.change_each(self._connection, kind, refs, timeout, request_id))
