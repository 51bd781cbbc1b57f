"""The client's session on an event loop: a socket and a clock around ClientCore, without a thread.

Owns: the socket, its place in the loop, how tasks wait. Must not know: handles, what requests mean,
who is told what (switchboard). Invariant: all of it runs in its loop's thread; a task that is
cancelled leaves no request, no watch, no descriptor and no task.

ZMQ_FD tells edges only, and a send may swallow one: after each use of the socket a turn looks
again whether there is something to read, and at least each `limits.edge_s`.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import zmq

from posthouse import limits
from posthouse.dial import Redial, Transmit
from posthouse.engine import GOODBYE_MS, boot_s, closed, failure, new_line, redial
from posthouse.errors import PosthouseError, TimedOut, UsageError
from posthouse.ids import Cursor
from posthouse.messages import Reply, Request
from posthouse.records import Event
from posthouse.session import (
    Broken,
    Call,
    Cancel,
    ClientCore,
    ClientEffect,
    ClientInput,
    Close,
    Frame,
    Tick,
    Took,
    Unwatch,
    Watch,
)
from posthouse.settings import ClientSettings
from posthouse.switchboard import Deadline, Inbox, Silence, Switchboard, Waiter, own

__all__ = ["Engine", "Feed"]

_POLLIN: Final = int(zmq.POLLIN)


class Bell:
    """Tasks sleep here; nothing of them stays when they are cancelled."""

    def __init__(self) -> None:
        self._sleepers: set[asyncio.Future[None]] = set()

    def notify_all(self) -> None:
        for sleeper in self._sleepers:
            _wake(sleeper)

    async def wait(self, timeout_s: float | None) -> None:
        """Until it rings, or time has passed."""
        loop = asyncio.get_running_loop()
        sleeper = loop.create_future()
        self._sleepers.add(sleeper)
        timer = None if timeout_s is None else loop.call_later(timeout_s, _wake, sleeper)
        try:
            await sleeper
        finally:
            self._sleepers.discard(sleeper)
            if timer is not None:
                timer.cancel()


def _wake(sleeper: "asyncio.Future[None]") -> None:
    if not sleeper.done():
        sleeper.set_result(None)


class Feed(Inbox[Bell]):
    """The events of one watch. Taken by one task at a time; `close` may come from any."""

    def __init__(self, engine: "Engine", subscription: int) -> None:
        super().__init__(subscription, Bell())
        self._engine = engine

    async def take(
        self, deadline: Deadline, *, until: Cursor | None = None, until_silent: bool = False
    ) -> Event | None:
        """As that of engine.Feed."""
        board = self._engine.board
        self._engine.check()
        while not self.ready(deadline, until, board.silent_s if until_silent else None):
            await self.bell.wait(deadline.left_s)
        event = self.pop()
        if taken := self.settle():
            self._engine.post(Took(self.subscription, taken))
        return event

    def close(self) -> None:
        """End the watch. A task that takes from it is told so."""
        self._engine.unwatch(self)


class _Readers(zmq.Poller):
    """A poller whose sockets also wake a loop, each by the edges of its descriptor."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        super().__init__()
        self._loop = loop
        self._wake = wake

    def register(self, socket: Any, flags: int = _POLLIN) -> None:
        if socket not in self:
            try:
                self._loop.add_reader(socket.getsockopt(zmq.FD), self._wake)
            except NotImplementedError:
                raise UsageError(
                    f"{type(self._loop).__name__} cannot watch a socket",
                    hint="asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) has one that can",
                ) from None
        super().register(socket, flags)

    def unregister(self, socket: Any) -> None:
        super().unregister(socket)
        self._loop.remove_reader(socket.getsockopt(zmq.FD))


class Engine:
    """`start()` before anything else; from one loop only."""

    def __init__(
        self, settings: ClientSettings, *, version: str = "", master_silence_s: float | None = None
    ) -> None:
        self.board = Switchboard(settings, Bell)
        self._core = ClientCore(os.urandom, version=version, master_silence_s=master_silence_s)
        self._pid = os.getpid()
        self._loop = asyncio.get_running_loop()
        self._abandoned: deque[Unwatch | Close] = deque()
        self._turn_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._line = new_line(settings)
        self._readers = _Readers(self._loop, self._turn)
        self._line.watch(self._readers)

    # --- for tasks ---

    async def start(self, timeout_s: float) -> None:
        """Wait for a master's welcome. Raises Unreachable, or what it said."""
        deadline = Deadline(timeout_s)
        try:
            self.post(Tick())
            while not self.board.welcomed:
                if deadline.passed:
                    raise self.board.unreachable(timeout_s)
                await self.board.changed.wait(deadline.left_s)
        except BaseException:
            self.close()
            raise

    async def call(
        self, request: Request, deadline: Deadline, *, until_silent: bool = False
    ) -> Reply:
        """As that of engine.Engine."""
        self.check()
        waiter, new = self.board.waiter(request)
        waiter.asking += 1
        try:
            if new:
                self.post(Call(request))
            await self._await(waiter, deadline, until_silent)
        finally:
            waiter.asking -= 1
            if waiter.outcome is None and not waiter.asking:
                waiter.given_up = True  # in time, or cancelled
                self.post(Cancel(request.request))  # which is answered at once
        if waiter.given_up and until_silent and self.board.silent_s is not None:
            raise Silence(self.board.silent_s)
        if waiter.outcome is None:
            raise TimedOut("no answer in time; another task still waits for the same request")
        if isinstance(waiter.outcome, PosthouseError):
            raise own(waiter.outcome)
        return waiter.outcome

    def watch(self, ref: str, after: Cursor | None) -> Feed:
        """Follow the log."""
        self.check()
        feed = Feed(self, self.board.next_subscription())
        self.board.add(feed)
        self.post(Watch(feed.subscription, ref, after))
        return feed

    def unwatch(self, feed: Feed) -> None:
        feed.fail(UsageError("these events were closed"))
        if self.board.inboxes.pop(feed.subscription, None) is not None:
            self.post(Unwatch(feed.subscription))

    def post(self, event: ClientInput) -> None:
        """Let the core handle an input, and look at the socket soon."""
        if self.board.ended is None and os.getpid() == self._pid:
            self._handle(event)
            self._soon()

    def abandon(self, event: Unwatch | Close) -> None:
        """For finalizers, which may run anywhere and in any thread."""
        if os.getpid() == self._pid and self.board.ended is None:
            self._abandoned.append(event)
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._turn)

    def close(self) -> None:
        """End the session. Whoever waits gets Unreachable."""
        if self.board.ended is None and os.getpid() == self._pid:
            self._handle(Close())
            self._finish(closed())

    def check(self) -> None:
        """Raises UsageError in another loop or a forked child, or what ended the session."""
        if os.getpid() != self._pid or asyncio.get_running_loop() is not self._loop:
            raise UsageError(
                f"this Cluster belongs to another event loop, of process {self._pid}",
                hint="call posthouse.aio.connect() in each loop",
            )
        if self.board.ended is not None:
            raise own(self.board.ended)

    async def _await(self, waiter: Waiter[Bell], deadline: Deadline, until_silent: bool) -> None:
        while waiter.outcome is None and not (until_silent and self.board.silent_s is not None):
            if deadline.passed:
                return
            await waiter.bell.wait(deadline.left_s)

    # --- in the loop ---

    def _soon(self) -> None:
        if not self._turn_due and self.board.ended is None:
            self._turn_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Take in what there is, and find out when to look again."""
        self._turn_due = False
        if self.board.ended is not None:
            return
        for frame in self._line.receive():
            self._handle(Frame(frame))
        trouble = self._line.trouble()
        if trouble is not None:
            self.board.trouble = trouble.reason
            self._handle(Broken(*trouble))
        while self._abandoned:
            event = self._abandoned.popleft()
            if isinstance(event, Close):
                self.close()
                return
            self.board.inboxes.pop(event.subscription, None)
            self._handle(event)
        if boot_s() >= self._core.wake_s:
            self._handle(Tick())
        if self.board.ended is None:
            if self._readers.poll(0):
                self._soon()  # the edge of what is there may be gone
            self._sleep()

    def _sleep(self) -> None:
        now_s = self._loop.time()
        at_s = now_s + min(max(self._core.wake_s - boot_s(), 0.0), limits.edge_s)
        if self._timer is None or self._timer.cancelled() or at_s < self._timer.when():
            self._cancel_timer()
            self._timer = self._loop.call_at(at_s, self._rung)

    def _rung(self) -> None:
        self._timer = None
        self._turn()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _handle(self, event: ClientInput) -> None:
        if self.board.ended is not None:
            return
        try:
            self._effects(self._core.handle(event, boot_s()))
        except Exception as error:  # noqa: BLE001 - a defect; those who wait must hear of it
            self._finish(failure(error, "session"))

    def _effects(self, effects: list[ClientEffect]) -> None:
        for effect in effects:
            match effect:
                case Transmit(frame):
                    self._line.transmit(frame)
                case Redial():
                    redial(self._line, self.board)
                case _:
                    self.board.tell(effect)

    def _finish(self, ended: PosthouseError) -> None:
        self._cancel_timer()
        self.board.end(ended)
        # Waits for the goodbye to leave, which takes no time unless the master does not read.
        self._line.close(GOODBYE_MS)
