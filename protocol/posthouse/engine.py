"""The client's one background thread: a socket and a clock around ClientCore.

Owns: the thread, the socket, and how threads hand it inputs. Must not know: handles, what requests
mean, who is told what (switchboard). Invariant: only the thread touches the core and the socket;
other threads hand it inputs and sleep until it tells them an outcome. Whatever ends the thread,
nobody who waits is forgotten.

`call` and `take` are declared async, because what is asked is written once for both clients
(conversation); here they block their thread and never suspend.
"""

import os
import signal
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any, Final

import zmq

from posthouse import keys, limits
from posthouse.dial import Redial, Transmit
from posthouse.errors import (
    ConfigError,
    InternalError,
    PosthouseError,
    TimedOut,
    Unreachable,
    UsageError,
)
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
from posthouse.transport import Line

__all__ = ["GOODBYE_MS", "Engine", "Feed", "boot_s", "failure", "new_line"]

GOODBYE_MS: Final = 100  # for the last frame to leave; the master would notice anyway, later
_POLL_S_MAX: Final = 3600.0  # poll() takes milliseconds in an int
_FAULTS: Final = frozenset(("SEGV", "BUS", "FPE", "ILL", "ABRT", "TRAP", "SYS"))

_Condition = threading.Condition


class Feed(Inbox[_Condition]):
    """The events of one watch. Taken by one thread at a time; `close` may come from any."""

    def __init__(self, engine: "Engine", subscription: int, bell: _Condition) -> None:
        super().__init__(subscription, bell)
        self._engine = engine

    async def take(
        self, deadline: Deadline, *, until: Cursor | None = None, until_silent: bool = False
    ) -> Event | None:
        """The next event; None if there is none up to the place `until`. Raises TimedOut, what
        ended the watch, or Silence."""
        engine = self._engine
        engine.check()
        with self.bell:
            while not self.ready(deadline, until, engine.board.silent_s if until_silent else None):
                self.bell.wait(deadline.left_s)
            event = self.pop()
            taken = self.settle()
        if taken:
            engine.post(Took(self.subscription, taken))
        return event

    def close(self) -> None:
        """End the watch. A thread that takes from it is told so."""
        self._engine.unwatch(self)


class Engine:
    """`start()` before anything else. Thread-safe; useless in a forked child, and says so there."""

    def __init__(
        self, settings: ClientSettings, *, version: str = "", master_silence_s: float | None = None
    ) -> None:
        self._core = ClientCore(os.urandom, version=version, master_silence_s=master_silence_s)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._wake_lock = threading.Lock()
        self.board = Switchboard(settings, lambda: _Condition(self._lock))  # guarded by the lock
        self._queue: deque[ClientInput] = deque()
        self._line = new_line(settings)
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="posthouse-client", daemon=True)

    # --- for all threads ---

    def start(self, timeout_s: float) -> None:
        """Start the thread and wait for a master's welcome. Raises Unreachable, or what it said."""
        deadline = Deadline(timeout_s)
        self._thread.start()
        try:
            with self._lock:
                while not self.board.welcomed:
                    if deadline.passed:
                        raise self.board.unreachable(timeout_s)
                    self.board.changed.wait(deadline.left_s)
        except BaseException:
            self.close()
            raise

    async def call(
        self, request: Request, deadline: Deadline, *, until_silent: bool = False
    ) -> Reply:
        """The answer to a request. Raises the error that it was answered with; TimedOut if it is
        unknown whether it took effect, Unreachable if it was never sent; Silence if asked for."""
        self.check()
        with self._lock:
            waiter = self._waiter(request, deadline)
            waiter.asking += 1
            try:
                self._await(waiter, deadline, until_silent)
                if waiter.outcome is None and waiter.asking == 1:
                    self._give_up(waiter)
            finally:
                waiter.asking -= 1
                if waiter.outcome is None and not waiter.asking and not waiter.given_up:
                    waiter.given_up = True  # KeyboardInterrupt and the like
                    self.post(Cancel(request.request))
            if waiter.given_up and until_silent and self.board.silent_s is not None:
                raise Silence(self.board.silent_s)
            outcome = waiter.outcome
        if outcome is None:
            raise TimedOut("no answer in time; another thread still waits for the same request")
        if isinstance(outcome, PosthouseError):
            raise own(outcome)
        return outcome

    def watch(self, ref: str, after: Cursor | None) -> Feed:
        """Follow the log."""
        self.check()
        with self._lock:
            feed = Feed(self, self.board.next_subscription(), self.board.bell())
            self.board.add(feed)
        self.post(Watch(feed.subscription, ref, after))
        return feed

    def unwatch(self, feed: Feed) -> None:
        if os.getpid() != self._pid:
            return
        with self._lock:
            feed.fail(UsageError("these events were closed"))
            known = feed.subscription in self.board.inboxes
        if known:
            self.post(Unwatch(feed.subscription))

    def post(self, event: ClientInput) -> None:
        """Hand the thread an input."""
        self._queue.append(event)
        # The lock keeps the thread from closing the socket, whose number another file could get,
        # between our look at it and our write.
        with self._wake_lock:
            if self.board.ended is None:
                with suppress(BlockingIOError):  # full: it is awake already
                    self._wake_in.send(b"\0")

    def abandon(self, event: Unwatch | Close) -> None:
        """For finalizers, which may run anywhere, even where a lock is held: takes no lock and
        wakes nobody. The thread sees it at its next renewal."""
        if os.getpid() == self._pid:
            self._queue.append(event)

    def close(self) -> None:
        """End the session and the thread. Whoever waits gets Unreachable."""
        if os.getpid() != self._pid:
            return  # a forked child has no thread to end, and the session is its parent's
        self.post(Close())
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(limits.client_thread_s)

    def check(self) -> None:
        """Raises UsageError in a forked child, or what ended the thread."""
        if os.getpid() != self._pid:
            raise UsageError(
                f"this Cluster belongs to process {self._pid}; a fork does not carry it over",
                hint="call posthouse.connect() in the child",
            )
        if self.board.ended is not None:
            raise own(self.board.ended)

    def _waiter(self, request: Request, deadline: Deadline) -> Waiter[_Condition]:
        while True:
            waiter, new = self.board.waiter(request)
            if new:
                self.post(Call(request))
            if not waiter.given_up:
                return waiter
            # It is about to be answered; then ask anew.
            if deadline.passed:
                raise TimedOut(
                    "another thread gives the same request up just now",
                    request_id=request.request,
                )
            waiter.bell.wait(deadline.left_s)

    def _await(self, waiter: Waiter[_Condition], deadline: Deadline, until_silent: bool) -> None:
        while waiter.outcome is None and not (until_silent and self.board.silent_s is not None):
            if deadline.passed:
                return
            waiter.bell.wait(deadline.left_s)

    def _give_up(self, waiter: Waiter[_Condition]) -> None:
        """The core knows whether it was ever sent; and the answer may come first."""
        waiter.given_up = True
        self.post(Cancel(waiter.request.request))
        patience = Deadline(limits.client_thread_s)
        while waiter.outcome is None and not patience.passed:
            waiter.bell.wait(patience.left_s)
        if waiter.outcome is None:
            waiter.outcome = TimedOut(
                "the client's thread is stuck: whether the request took effect is unknown",
                hint="asking again with the same request_id settles it",
                request_id=waiter.request.request,
            )

    # --- the thread ---

    def _run(self) -> None:
        ended: PosthouseError = closed()
        _leave_signals_to_others()
        try:
            self._loop()
        except BaseException as error:  # noqa: BLE001 - a defect; those who wait must hear of it
            ended = failure(error, "thread")
        finally:
            self._finish(ended)

    def _loop(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake_out, zmq.POLLIN)
        self._line.watch(poller)
        core, line = self._core, self._line
        self._effects(core.handle(Tick(), boot_s()))
        while True:
            wait_s = min(max(core.wake_s - boot_s(), 0.0), _POLL_S_MAX)
            poller.poll(int(wait_s * 1000) + (wait_s > 0))
            with suppress(BlockingIOError):
                while self._wake_out.recv(4096):
                    pass
            for frame in line.receive():
                self._effects(core.handle(Frame(frame), boot_s()))
            trouble = line.trouble()
            if trouble is not None:
                self.board.trouble = trouble.reason
                self._effects(core.handle(Broken(*trouble), boot_s()))
            while self._queue:
                event = self._queue.popleft()
                if isinstance(event, Unwatch):
                    with self._lock:
                        self.board.inboxes.pop(event.subscription, None)
                self._effects(core.handle(event, boot_s()))
                if isinstance(event, Close):
                    return
            if boot_s() >= core.wake_s:
                self._effects(core.handle(Tick(), boot_s()))

    def _finish(self, ended: PosthouseError) -> None:
        with self._lock:
            self.board.end(ended)
        self._line.close(GOODBYE_MS)
        with self._wake_lock:
            self._wake_in.close()
            self._wake_out.close()

    def _effects(self, effects: list[ClientEffect]) -> None:
        for effect in effects:
            match effect:
                case Transmit(frame):
                    self._line.transmit(frame)
                case Redial():
                    redial(self._line, self.board)
                case _:
                    with self._lock:
                        self.board.tell(effect)


# --- the same for both engines ---


def new_line(settings: ClientSettings) -> Line:
    """The line that these settings describe. Raises ConfigError."""
    pair = keys.client_keys(settings.key_file, settings.master_key) if settings.key_file else None
    return Line(settings.master, keys=pair, insecure=settings.insecure)


def redial(line: Line, board: Switchboard[Any]) -> None:
    """Raises ConfigError if it never worked; later a folder may be made again."""
    try:
        line.redial()
    except ConfigError as error:
        if not board.welcomed:
            raise
        board.trouble = str(error)


def closed() -> PosthouseError:
    return Unreachable("this client is closed", hint="connect() opens another")


def failure(error: BaseException, where: str) -> PosthouseError:
    """What everybody is told whom this error leaves without an engine."""
    if isinstance(error, PosthouseError):
        return error
    told = InternalError(f"the client's {where} failed: {type(error).__name__}: {error}")
    told.__cause__ = error
    return told


def boot_s() -> float:
    """Seconds that go on while the machine is suspended, where the platform has such a clock."""
    boot: Any = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


def _leave_signals_to_others() -> None:
    """A signal that this thread caught would not interrupt what the main thread is waiting in."""
    mask = getattr(signal, "pthread_sigmask", None)  # Windows has none
    if mask is not None:
        faults = {getattr(signal, f"SIG{name}", None) for name in _FAULTS}
        mask(signal.SIG_BLOCK, signal.valid_signals() - faults)
