"""The client's one background thread: a socket and a clock around ClientCore.

Owns: the thread, the socket, and where answers and events wait for the threads that want them.
Must not know: handles, what requests mean. Invariant: only the thread touches the core and the
socket; other threads hand it inputs and sleep until it tells them an outcome. Whatever ends the
thread, nobody who waits is forgotten.
"""

import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import zmq

from posthouse import keys
from posthouse.dial import Lost, Opened, Redial, Rejected, Transmit
from posthouse.errors import (
    ConfigError,
    InternalError,
    PosthouseError,
    RequestConflict,
    TimedOut,
    Unreachable,
    UsageError,
    from_wire,
)
from posthouse.ids import Cursor
from posthouse.messages import Refused, Reply, Request, Welcome
from posthouse.records import Event
from posthouse.session import (
    Answered,
    Arrived,
    Broken,
    Call,
    Cancel,
    ClientCore,
    ClientEffect,
    ClientInput,
    Close,
    Frame,
    MasterBack,
    MasterSilent,
    Tick,
    Took,
    Unwatch,
    Watch,
    WatchFailed,
)
from posthouse.settings import ClientSettings
from posthouse.transport import Line

__all__ = ["Deadline", "Engine", "Feed", "Silence"]

_POLL_S_MAX: Final = 3600.0  # poll() takes milliseconds in an int
_FAULTS: Final = frozenset(("SEGV", "BUS", "FPE", "ILL", "ABRT", "TRAP", "SYS"))
_GOODBYE_MS: Final = 100  # for the last frame to leave; the master would notice anyway, later
_TOOK_AT_ONCE: Final = 64  # events taken before the thread is woken to say so


class Silence(Exception):
    """No master answered for as long as a waiter has to believe."""

    def __init__(self, silent_s: float) -> None:
        super().__init__(f"no master answered for {silent_s:.0f} s")
        self.silent_s = silent_s


class Deadline:
    """When a call gives up. `None`: never."""

    def __init__(self, timeout_s: float | None) -> None:
        if timeout_s is not None and not timeout_s >= 0:
            raise UsageError(f"timeout is {timeout_s!r}: must be seconds, 0 or more, or None")
        self.timeout_s = timeout_s
        self._at_s = None if timeout_s is None else time.monotonic() + timeout_s

    @property
    def left_s(self) -> float | None:
        return None if self._at_s is None else max(self._at_s - time.monotonic(), 0.0)


class _Waiter:
    """One request and the threads that wait for its answer. Guarded by the engine's lock."""

    def __init__(self, request: Request, lock: threading.Lock) -> None:
        self.request = request
        self.changed = threading.Condition(lock)
        self.threads = 0
        self.given_up = False
        self.outcome: Reply | PosthouseError | None = None


class Feed:
    """The events of one watch. Taken by one thread at a time; `close` may come from any."""

    def __init__(self, engine: "Engine", subscription: int, lock: threading.Lock) -> None:
        self._engine = engine
        self.subscription = subscription
        self.changed = threading.Condition(lock)
        self._events: deque[Event] = deque()
        self._error: PosthouseError | None = None
        self._taken = 0
        self._cursor: Cursor | None = None  # everything up to here has been put here

    def take(
        self, deadline: Deadline, *, until: Cursor | None = None, until_silent: bool = False
    ) -> Event | None:
        """The next event; None if there is none up to the place `until`. Raises TimedOut, what
        ended the watch, or Silence."""
        self._engine.check()
        with self.changed:
            while not self._events:
                if until is not None and self._cursor is not None and self._cursor >= until:
                    return None
                if self._error is not None:
                    raise _own(self._error)
                if until_silent and self._engine.silent_s is not None:
                    raise Silence(self._engine.silent_s)
                left_s = deadline.left_s
                if left_s is not None and left_s <= 0:
                    raise TimedOut(f"no event within {deadline.timeout_s:g} s")
                self.changed.wait(left_s)
            event = self._events.popleft()
            self._taken += 1
            taken = 0 if self._events and self._taken < _TOOK_AT_ONCE else self._taken
            self._taken -= taken
        if taken:
            self._engine.post(Took(self.subscription, taken))
        return event

    def close(self) -> None:
        """End the watch. A thread that takes from it is told so."""
        self._engine.unwatch(self)

    # --- called with the lock held ---

    def put(self, events: tuple[Event, ...], cursor: Cursor) -> None:
        self._events.extend(events)
        self._cursor = cursor
        self.changed.notify_all()

    def fail(self, error: PosthouseError) -> None:
        self._error = self._error or error
        self.changed.notify_all()


class Engine:
    """`start()` before anything else. Thread-safe; useless in a forked child, and says so there."""

    def __init__(
        self, settings: ClientSettings, *, version: str = "", master_silence_s: float | None = None
    ) -> None:
        self.settings = settings
        self.silent_s: float | None = None  # for how long no master answers, if that is too long
        self._core = ClientCore(os.urandom, version=version, master_silence_s=master_silence_s)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._wake_lock = threading.Lock()
        self._state_changed = threading.Condition(self._lock)
        self._inbox: deque[ClientInput] = deque()
        self._waiters: dict[bytes, _Waiter] = {}
        self._feeds: dict[int, Feed] = {}
        self._subscriptions = 0
        self._welcome: Welcome | None = None
        self._open = False
        self._refused: Refused | None = None
        self._trouble = ""
        self._ended: PosthouseError | None = None
        key_pair = None
        if settings.key_file:
            key_pair = keys.client_keys(settings.key_file, settings.master_key)
        self._line = Line(settings.master, keys=key_pair, insecure=settings.insecure)
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="posthouse-client", daemon=True)

    # --- for all threads ---

    @property
    def welcome(self) -> Welcome:
        """That of the last session."""
        assert self._welcome is not None, "start() has not returned"
        return self._welcome

    @property
    def open(self) -> bool:
        return self._open

    @property
    def closed(self) -> bool:
        return self._ended is not None

    def start(self, timeout_s: float) -> None:
        """Start the thread and wait for a master's welcome. Raises Unreachable, or what it said."""
        self._thread.start()
        deadline = Deadline(timeout_s)
        try:
            with self._lock:
                while self._welcome is None:
                    if self._ended is not None:
                        raise self._ended
                    if self._refused is not None and self._refused.retry_after_s <= 0:
                        raise from_wire(
                            self._refused.code, self._refused.message, self._refused.hint
                        )
                    if deadline.left_s == 0:
                        raise self._unreachable(timeout_s)
                    self._state_changed.wait(deadline.left_s)
        except BaseException:
            self.close()
            raise

    def call(self, request: Request, deadline: Deadline, *, until_silent: bool = False) -> Reply:
        """The answer to a request. Raises the error that it was answered with; TimedOut if it is
        unknown whether it took effect, Unreachable if it was never sent; Silence if asked for."""
        self.check()
        with self._lock:
            waiter = self._waiter(request)
            waiter.threads += 1
            try:
                self._await(waiter, deadline, until_silent)
                if waiter.outcome is None and waiter.threads == 1:
                    # The core knows whether it was ever sent; the answer may come first, too.
                    waiter.given_up = True
                    self.post(Cancel(request.request))
                    while waiter.outcome is None:
                        waiter.changed.wait()
            finally:
                waiter.threads -= 1
                if waiter.outcome is None and not waiter.threads and not waiter.given_up:
                    waiter.given_up = True  # KeyboardInterrupt and the like
                    self.post(Cancel(request.request))
            if waiter.given_up and until_silent and self.silent_s is not None:
                raise Silence(self.silent_s)
            outcome = waiter.outcome
        if outcome is None:
            raise TimedOut("no answer in time; another thread still waits for the same request")
        if isinstance(outcome, PosthouseError):
            raise _own(outcome)
        return outcome

    def watch(self, ref: str, after: Cursor | None) -> Feed:
        """Follow the log."""
        self.check()
        with self._lock:
            self._subscriptions += 1
            feed = Feed(self, self._subscriptions, self._lock)
            self._feeds[feed.subscription] = feed
            if self._ended is not None:
                feed.fail(self._ended)
        self.post(Watch(feed.subscription, ref, after))
        return feed

    @contextmanager
    def watching(self, ref: str, after: Cursor | None) -> Iterator[Feed]:
        """A feed that is closed at the end of the block."""
        feed = self.watch(ref, after)
        try:
            yield feed
        finally:
            feed.close()

    def unwatch(self, feed: Feed) -> None:
        if os.getpid() != self._pid:
            return
        with self._lock:
            feed.fail(UsageError("these events were closed"))
            known = feed.subscription in self._feeds
        if known:
            self.post(Unwatch(feed.subscription))

    def post(self, event: ClientInput) -> None:
        """Hand the thread an input."""
        self._inbox.append(event)
        # The lock keeps the thread from closing the socket, whose number another file could get,
        # between our look at it and our write.
        with self._wake_lock:
            if self._ended is None:
                with suppress(BlockingIOError):  # full: it is awake already
                    self._wake_in.send(b"\0")

    def abandon(self, event: Unwatch | Close) -> None:
        """For finalizers, which may run anywhere, even where a lock is held: takes no lock and
        wakes nobody. The thread sees it at its next renewal."""
        if os.getpid() == self._pid:
            self._inbox.append(event)

    def close(self) -> None:
        """End the session and the thread. Whoever waits gets Unreachable."""
        if os.getpid() != self._pid:
            return  # a forked child has no thread to end, and the session is its parent's
        self.post(Close())
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(5.0)

    def check(self) -> None:
        """Raises UsageError in a forked child, or what ended the thread."""
        if os.getpid() != self._pid:
            raise UsageError(
                f"this Cluster belongs to process {self._pid}; a fork does not carry it over",
                hint="call posthouse.connect() in the child",
            )
        if self._ended is not None:
            raise _own(self._ended)

    def _waiter(self, request: Request) -> _Waiter:
        while True:
            waiter = self._waiters.get(request.request)
            if waiter is None:
                waiter = self._waiters[request.request] = _Waiter(request, self._lock)
                if self._ended is None:
                    self.post(Call(request))
                else:
                    waiter.outcome = self._ended
                return waiter
            if waiter.request != request:
                raise RequestConflict("a request with this id and another body is waiting")
            if not waiter.given_up:
                return waiter
            waiter.changed.wait()  # it is about to be answered; then ask anew

    def _await(self, waiter: _Waiter, deadline: Deadline, until_silent: bool) -> None:
        while waiter.outcome is None and not (until_silent and self.silent_s is not None):
            left_s = deadline.left_s
            if left_s is not None and left_s <= 0:
                return
            waiter.changed.wait(left_s)

    def _unreachable(self, timeout_s: float) -> Unreachable:
        why = self._trouble
        if self._refused is not None:
            why = f"refused: {self._refused.message or self._refused.code}"
        return Unreachable(
            f"no master answered at {self.settings.master} within {timeout_s:g} s"
            + (f": {why}" if why else ""),
            hint="`posthouse up` starts a local one; $POSTHOUSE_MASTER names another",
            endpoint=self.settings.master,
        )

    # --- the thread ---

    def _run(self) -> None:
        ended: PosthouseError = Unreachable("this client is closed", hint="connect() opens another")
        _leave_signals_to_others()
        try:
            self._loop()
        except PosthouseError as error:
            ended = error
        except BaseException as error:  # noqa: BLE001 - a defect; those who wait must hear of it
            ended = InternalError(f"the client's thread failed: {type(error).__name__}: {error}")
            ended.__cause__ = error
        finally:
            self._finish(ended)

    def _loop(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake_out, zmq.POLLIN)
        self._line.watch(poller)
        core, line = self._core, self._line
        self._effects(core.handle(Tick(), _now_s()))
        while True:
            wait_s = min(max(core.wake_s - _now_s(), 0.0), _POLL_S_MAX)
            poller.poll(int(wait_s * 1000) + (wait_s > 0))
            with suppress(BlockingIOError):
                while self._wake_out.recv(4096):
                    pass
            for frame in line.receive():
                self._effects(core.handle(Frame(frame), _now_s()))
            trouble = line.trouble()
            if trouble is not None:
                self._trouble = trouble
                self._effects(core.handle(Broken(trouble), _now_s()))
            while self._inbox:
                event = self._inbox.popleft()
                if isinstance(event, Unwatch):
                    with self._lock:
                        self._feeds.pop(event.subscription, None)
                self._effects(core.handle(event, _now_s()))
                if isinstance(event, Close):
                    return
            if _now_s() >= core.wake_s:
                self._effects(core.handle(Tick(), _now_s()))

    def _finish(self, ended: PosthouseError) -> None:
        with self._lock:
            self._ended, self._open = ended, False
            for waiter in self._waiters.values():
                waiter.outcome = waiter.outcome or ended
                waiter.changed.notify_all()
            for feed in self._feeds.values():
                feed.fail(ended)
            self._waiters.clear()
            self._feeds.clear()
            self._state_changed.notify_all()
        self._line.close(_GOODBYE_MS)
        with self._wake_lock:
            self._wake_in.close()
            self._wake_out.close()

    def _effects(self, effects: list[ClientEffect]) -> None:
        for effect in effects:
            match effect:
                case Transmit(frame):
                    self._line.transmit(frame)
                case Redial():
                    self._redial()
                case _:
                    with self._lock:
                        self._tell(effect)

    def _redial(self) -> None:
        try:
            self._line.redial()
        except ConfigError as error:
            if self._welcome is None:
                raise
            self._trouble = str(error)  # it worked before: a folder may be made again

    def _tell(self, effect: ClientEffect) -> None:
        match effect:
            case Answered(request_id, outcome):
                waiter = self._waiters.pop(request_id, None)
                if waiter is not None:
                    waiter.outcome = outcome
                    waiter.changed.notify_all()
            case Arrived(subscription, events, cursor):
                feed = self._feeds.get(subscription)
                if feed is not None:
                    feed.put(events, cursor)
            case WatchFailed(subscription, error):
                feed = self._feeds.pop(subscription, None)
                if feed is not None:
                    feed.fail(error)
            case _:
                self._note(effect)

    def _note(self, effect: ClientEffect) -> None:
        """What everybody is concerned by."""
        match effect:
            case Opened(welcome):
                self._welcome, self._open, self._refused = welcome, True, None
                self._trouble = ""
                self._state_changed.notify_all()
            case Lost(reason):
                self._open, self._trouble = False, reason
            case Rejected(refused):
                self._refused = refused
                self._state_changed.notify_all()
            case MasterSilent(silent_s):
                self.silent_s = silent_s
                for waiter in self._waiters.values():
                    waiter.changed.notify_all()
                for feed in self._feeds.values():
                    feed.changed.notify_all()
            case MasterBack():
                self.silent_s = None


def _leave_signals_to_others() -> None:
    """A signal that this thread caught would not interrupt what the main thread is waiting in."""
    mask = getattr(signal, "pthread_sigmask", None)  # Windows has none
    if mask is not None:
        faults = {getattr(signal, f"SIG{name}", None) for name in _FAULTS}
        mask(signal.SIG_BLOCK, signal.valid_signals() - faults)


def _now_s() -> float:
    """Seconds that go on while the machine is suspended, where the platform has such a clock."""
    boot: Any = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


def _own(error: PosthouseError) -> PosthouseError:
    """A copy for one raise: several threads may get the same outcome and add their tracebacks."""
    copy = type(error)(error.message, hint=error.hint)
    copy.detail.update(error.detail)
    copy.__cause__ = error.__cause__
    return copy
