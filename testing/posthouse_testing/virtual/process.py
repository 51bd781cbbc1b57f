"""A simulated process that runs a user's worker: when it steps, what wakes it, how it ends.

Owns: the generator, what it waits for, its signals, its latch, its way out. Must not know: why it
was started, what the cluster makes of its end. Invariant: one that has ended never steps again: as
after kill -9 not even its `finally` blocks run, until the cluster is closed and forgets it.
"""

import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from signal import (
    SIGCHLD,
    SIGCONT,
    SIGFPE,
    SIGHUP,
    SIGINT,
    SIGKILL,
    SIGPIPE,
    SIGQUIT,
    SIGSTOP,
    SIGTERM,
    SIGUSR1,
    SIGUSR2,
    SIGWINCH,
)
from typing import TYPE_CHECKING, Any, Protocol

from posthouse import limits
from posthouse.errors import TimedOut, UsageError, from_wire
from posthouse.latch import (
    EXIT_ON_PM_DEATH,
    LATCH_SET,
    POSTMASTER_DEATH,
    SOCKET_READABLE,
    SOCKET_WRITEABLE,
    TIMEOUT,
    WaitEvent,
)
from posthouse.worker import BLOCKED
from posthouse_testing.oracle import Hold
from posthouse_testing.sim.process import Process
from posthouse_testing.sim.world import Timer
from posthouse_testing.virtual.watchdog import StuckStep

if TYPE_CHECKING:
    from posthouse_testing.virtual.worker import SimulatedWorker

__all__ = ["Ask", "Program", "Site", "Sleep", "VirtualProcess", "Wait", "Wanted", "wanted_events"]

IMPORT_S = (0.001, 0.02)  # from the fork to the first step
STEP_S = (0.0001, 0.002)  # a bare `yield`: anything may happen meanwhile
SIGNAL_S = (0.0002, 0.002)  # from kill() to its effect
STEPS_MAX = 20_000  # of one process in one virtual second; more is a busy loop
_IGNORED = frozenset(
    (SIGINT, SIGHUP, SIGPIPE, SIGUSR2, SIGFPE, SIGCHLD, SIGCONT, SIGSTOP, SIGWINCH)
)


@dataclass(frozen=True, slots=True, eq=False)
class Sleep:
    """For so many seconds, whatever happens but signals."""

    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Wait:
    """For the latch, the postmaster's death or the time, as `worker.latch.wait`."""

    events: WaitEvent
    timeout: float | None


@dataclass(slots=True, eq=False)
class Ask:
    """For the master's answer to a question that the host's agent carries on (registrant)."""

    call: str
    what: str
    fields: dict[str, Any]
    timeout: float
    told: Callable[[dict[str, Any]], Any]  # what the worker makes of the answer
    request: bytes = b""
    number: int = 0
    reply: dict[str, Any] | None = None


Wanted = Sleep | Wait | Ask | None
Steps = Generator[Any, Any, Any]
Program = Callable[["SimulatedWorker"], Any]
Handler = Callable[[int, None], object]


class Site(Protocol):
    """Where simulated processes live (virtual.cluster)."""

    def program(self, main: str) -> Program: ...
    def body_of(self, process: "VirtualProcess") -> "SimulatedWorker": ...
    def step_begins(self) -> None: ...
    def step_ends(self) -> None: ...


@dataclass(slots=True, eq=False, kw_only=True)
class VirtualProcess(Process):
    """Process, with a body."""

    site: Site
    latch: bool = False
    postmaster_dead: bool = False
    blocked: bool = True
    handlers: dict[int, Handler] = field(default_factory=dict)
    pending: list[int] = field(default_factory=list)  # signals that wait until they are unblocked
    holds: list[Hold] = field(default_factory=list)
    before_exit: list[Callable[[], object]] = field(default_factory=list)
    on_exit: list[Callable[[], object]] = field(default_factory=list)
    made: Wanted = None  # what me.sleep() and the like gave, until it is yielded
    traceback: str = ""
    stopped_to_s: float = 0.0
    _steps: Steps | None = None
    _wanted: Wanted = None
    _until: Timer | None = None  # the end of a wait that has one
    _woken: Timer | None = None  # a step that is due
    _asked: int = 0  # questions, for their numbers on the channel
    _second: int = -1
    _count: int = 0

    @property
    def name(self) -> str:
        return str(self.spec["name"])

    @property
    def main(self) -> str:
        spec = self.spec
        return str(spec.get("main") or f"{spec.get('library')}:{spec.get('function')}")

    def __repr__(self) -> str:
        end = "" if self.live else f", {self.cause}"
        return f"<{self.name} #{self.incarnation} on {self.host} token {self.token}{end}>"

    # --- life ---

    def begin(self) -> None:
        self.blocked = not self.spec.get("unblock_signals", False)
        self._woken = self.world.after(self.world.random.uniform(*IMPORT_S), self._main)

    def calm(self) -> None:
        """It never misbehaves by itself."""

    def kill(self, signal: int) -> None:
        if not self.live:
            return
        pause_s = self.world.random.uniform(*SIGNAL_S)
        if signal == SIGKILL:
            self.world.after(pause_s, self.end, "signaled", None, int(signal))
        elif signal in BLOCKED and self.blocked:
            self.pending.append(signal)
        else:
            self.world.after(pause_s, self._arrived, signal)

    def pause(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after that time; it notices nothing but that time has passed."""
        self.stopped_to_s = max(self.stopped_to_s, self.world.now_s + seconds)

    def end(self, cause: str, code: int | None, signal: int | None) -> None:
        if not self.live:
            return
        for timer in (self._until, self._woken):
            if timer is not None:
                timer.cancel()
        Process.end(self, cause, code, signal)
        for hold in list(self.holds):
            hold.release(f"ends ({_how(cause, code, signal)}), and so its hold")
        self.holds.clear()

    def facts(self, unix_s: float) -> dict[str, Any]:
        facts = Process.facts(self, unix_s)
        return facts | ({"traceback": self.traceback} if self.traceback else {})

    def forget(self) -> None:
        """The test is over: what is left of the generator may go, and say nothing."""
        steps, self._steps = self._steps, None
        if steps is not None:
            try:
                steps.close()
            except BaseException:  # noqa: BLE001 - a dead process's last words count for nothing
                return

    # --- what wakes it ---

    def set_latch(self) -> None:
        self.latch = True
        if isinstance(self._wanted, Wait) and LATCH_SET in self._wanted.events:
            self._wake()

    def answer(self, message: dict[str, Any]) -> None:
        if message.get("op") == "postmaster":
            self.postmaster_dead = message.get("alive") is False
            if isinstance(self._wanted, Wait) and self.postmaster_dead:
                self._wake()
        elif isinstance(self._wanted, Ask) and message.get("id") == self._wanted.number:
            self._wanted.reply = message
            self._wake()

    def _wake(self) -> None:
        if self.live and self._woken is None:
            pause_s = self.world.random.uniform(*STEP_S)
            self._woken = self.world.after(pause_s, self._resume)

    def _time_is_up(self) -> None:
        self._until = None
        if self._woken is None:
            self._resume()

    def _resume(self) -> None:
        self._woken = None
        if self._put_off(self._resume):
            return
        wanted, result = self._wanted, None
        if isinstance(wanted, Wait):
            found = self._found(wanted)
            if EXIT_ON_PM_DEATH in found:
                self._step(error=SystemExit(1))
                return
            result = frozenset(found or (TIMEOUT,))
        if isinstance(wanted, Ask):
            self._answered(wanted)
        else:
            self._step(result)

    def _say(self, ask: Ask) -> None:
        """Again each second under the same id: agent and master come and go."""
        if self.live and self._wanted is ask and ask.reply is None:
            message = {"op": "ask", "id": ask.number, "what": ask.what}
            self.channel.append(message | {"request": ask.request, "fields": ask.fields})
            self.world.after(limits.worker_repeat_s, self._say, ask)

    def _answered(self, ask: Ask) -> None:
        reply = ask.reply
        if reply is None:
            late = TimedOut(f"no answer to {ask.what!r} within {ask.timeout:g} s")
            self._step(error=late)
        elif "error" in reply:
            error = reply["error"]
            code, message, hint = (str(error.get(key, "")) for key in ("code", "message", "hint"))
            self._step(error=from_wire(code, message, hint, error.get("detail")))
        else:
            self._step(ask.told(reply["answer"]))

    def _found(self, wanted: Wait) -> WaitEvent:
        """What is true of it now; a latch that is set wins (L6)."""
        if self.latch and LATCH_SET in wanted.events:
            return LATCH_SET
        if self.postmaster_dead:
            deadly = EXIT_ON_PM_DEATH in wanted.events
            return EXIT_ON_PM_DEATH if deadly else POSTMASTER_DEATH
        return WaitEvent(0)

    def _put_off(self, what: Callable[..., None], *arguments: Any) -> bool:
        """It is stopped: then `what` happens when it goes on."""
        if self.world.now_s >= self.stopped_to_s:
            return False
        timer = self.world.at(self.stopped_to_s, what, *arguments)
        if what == self._resume:
            self._woken = timer
        return True

    # --- signals ---

    def _arrived(self, signal: int) -> None:
        if not self.live or self._put_off(self._arrived, signal):
            return
        if signal in BLOCKED and self.blocked:
            self.pending.append(signal)
            return
        try:
            self.handle(signal)
        except BaseException as error:  # noqa: BLE001 - what a handler raises, main gets
            self._step(error=error)

    def handle(self, signal: int) -> None:
        """Its handler, or the default of W2: what it raises comes up where the worker is."""
        self.world.log(f"host {self.host}", f"{self} has signal {signal}")
        handler = self.handlers.get(signal)
        if handler is not None:
            with self._stepping():
                handler(signal, None)
        elif signal == SIGTERM:
            raise SystemExit(1)
        elif signal == SIGQUIT:
            self.end("exited", 2, None)
        elif signal == SIGUSR1:
            self.set_latch()
        elif signal not in _IGNORED:
            self.end("signaled", None, signal)

    def unblock(self) -> None:
        self.blocked = False
        pending, self.pending = self.pending, []
        for signal in pending:
            self.handle(signal)

    # --- steps ---

    def _main(self) -> None:
        self._woken = None
        if self._put_off(self._main):
            return
        program = self.site.program(self.main)
        try:
            with self._stepping():
                body = program(self.site.body_of(self))
                body = body.run() if not hasattr(body, "send") and hasattr(body, "run") else body
        except AssertionError:
            raise
        except Exception as error:  # noqa: BLE001 - as in a real worker's main
            self._failed(error)
            return
        if not hasattr(body, "send"):
            raise UsageError(
                f"simulated worker {self.main} gave {body!r}: must be a generator, or a class "
                "whose run() is one",
                hint="yield me.sleep(0.1), me.latch.wait(timeout=1), or nothing",
            )
        self._steps = body
        self._step(None)

    def _step(self, value: Any = None, error: BaseException | None = None) -> None:
        """Run it to its next yield, at which it may die."""
        steps = self._steps
        if self._until is not None:
            self._until.cancel()
            self._until = None
        if self._woken is not None:
            self._woken.cancel()
            self._woken = None
        if steps is None or not self.live:
            return
        self._wanted = None
        try:
            with self._stepping():
                yielded = steps.send(value) if error is None else steps.throw(error)
        except StopIteration:
            self._exit(0)
        except SystemExit as leaving:
            self._exit(_status(leaving.code))
        except AssertionError:
            raise  # of the test, wherever it was noticed
        except Exception as failure:  # noqa: BLE001 - E2: an uncaught error is an exit 1
            self._failed(failure)
        else:
            self._obey(yielded)

    @contextmanager
    def _stepping(self) -> Iterator[None]:
        second = int(self.world.now_s)
        self._count = self._count + 1 if second == self._second else 0
        self._second = second
        if self._count > STEPS_MAX:
            raise AssertionError(f"{self!r} makes {self._count} steps in a virtual second")
        self.site.step_begins()
        try:
            yield
        except StuckStep as stuck:
            frames = traceback.extract_tb(stuck.__traceback__)
            at = frames[-2] if len(frames) > 1 else frames[-1]  # the last one is the watchdog's
            raise AssertionError(
                f"{self!r} did not yield in time: it is at {at.filename}:{at.lineno}, in {at.name}"
                f" ({at.line}). A simulated worker waits by `yield me.sleep(...)` or `yield "
                "me.latch.wait(...)`, and lets others run by a bare `yield`."
            ) from None
        finally:
            self.site.step_ends()

    def _obey(self, yielded: Any) -> None:
        if not self.live:
            return  # it ended itself by a signal
        made, self.made = self.made, None
        if made is not None and yielded is not made:
            raise UsageError(f"{self!r} called {_call(made)} and did not yield it: nobody waited")
        match yielded:
            case None:
                self._wanted = None
                self._woken = self.world.after(self.world.random.uniform(*STEP_S), self._resume)
            case Sleep(seconds):
                self._wanted = yielded
                self._until = self.world.after(seconds, self._time_is_up)
            case Wait(_, timeout):
                self._wanted = yielded
                if self._found(yielded):
                    self._wake()
                elif timeout is not None:
                    self._until = self.world.after(timeout, self._time_is_up)
            case Ask(timeout=timeout):
                self._asked += 1
                yielded.number, yielded.request = self._asked, self.world.entropy(16)
                self._wanted = yielded
                self._say(yielded)
                self._until = self.world.after(timeout, self._time_is_up)
            case _:
                raise UsageError(
                    f"{self!r} yields {yielded!r}: must be me.sleep(...), me.latch.wait(...), "
                    "what me.register(...) or a handle's calls give, or nothing"
                )

    # --- the way out ---

    def _failed(self, error: Exception) -> None:
        lines = traceback.format_exception(error)
        self.traceback = "".join(lines)[-4096:]
        self.world.log(f"host {self.host}", f"{self} fails: {lines[-1].strip()}")
        self._exit(1)

    def _exit(self, code: int) -> None:
        """Exit callbacks, last first, then the end."""
        for callbacks in (self.before_exit, self.on_exit):
            while callbacks:
                try:
                    with self._stepping():
                        callbacks.pop()()
                except AssertionError:
                    raise
                except SystemExit as leaving:
                    code = _status(leaving.code) or code
                except Exception:  # noqa: BLE001 - as in a real worker
                    code = 1
        self.end("exited", code, None)


def wanted_events(events: tuple[WaitEvent, ...]) -> WaitEvent:
    """The rules of `worker.latch.wait` (L5). Raises UsageError."""
    wanted = WaitEvent(0)
    for event in events:
        if not isinstance(event, WaitEvent):
            raise UsageError(f"{event!r} is no wait event; durations are given as timeout=seconds")
        wanted |= event
    if wanted & (SOCKET_READABLE | SOCKET_WRITEABLE):
        raise UsageError("a simulated worker has no sockets to wait for")
    wanted = wanted or LATCH_SET | POSTMASTER_DEATH
    if not wanted & (POSTMASTER_DEATH | EXIT_ON_PM_DEATH):
        raise UsageError("name POSTMASTER_DEATH or EXIT_ON_PM_DEATH among the events")
    return wanted


def _call(made: Wanted) -> str:
    if isinstance(made, Ask):
        return made.call
    return "me.sleep()" if isinstance(made, Sleep) else "me.latch.wait()"


def _status(code: object) -> int:
    """As a real worker's (child)."""
    if code is None:
        return 0
    return ((code & 0xFF) or (1 if code else 0)) if isinstance(code, int) else 1


def _how(cause: str, code: int | None, signal: int | None) -> str:
    if cause == "warden":
        return "its warden ended"
    if cause == "reboot":
        return "power lost"
    return f"exit {code}" if signal is None else f"signal {signal}"
