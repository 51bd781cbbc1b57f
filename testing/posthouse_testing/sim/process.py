"""A fake worker process: the truth about what ran, when, and how it ended.

Owns: what a process does when it is left alone or signalled. Must not know: why it was started.
Invariant: it ends exactly once, by itself, by a signal, with its warden, or with its host.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from signal import SIGINT, SIGKILL, SIGQUIT, SIGTERM
from typing import Any

from posthouse_testing.sim.world import Timer, World

__all__ = ["Process"]

DEADLY = (SIGTERM, SIGINT, SIGQUIT)  # what a worker takes for a wish to stop


@dataclass(slots=True, eq=False, kw_only=True)
class Process:
    """One incarnation as it really was. `cause` is "" while it lives; then "exited", "signaled",
    "warden" (died with it) or "reboot"."""

    world: World
    host: str
    warden: str  # the kind of its warden
    token: int
    slot: int
    generation: int
    incarnation: int
    revision: int
    spec: dict[str, Any]
    pid: int
    pid_start: int
    born_s: float
    born_unix_s: float
    ended: Callable[["Process"], None]  # told once, at the moment of death
    died_s: float | None = None
    cause: str = ""
    code: int | None = None
    signal: int | None = None
    reaped: bool = False
    orphaned: bool = False  # its warden or its host died before its end was written down
    stubborn: bool = False
    channel: list[dict[str, Any]] = field(default_factory=list)  # said, not yet consumed
    answers: list[dict[str, Any]] = field(default_factory=list)
    _plan: Timer | None = None

    def __str__(self) -> str:
        return f"{self.slot}.{self.generation}#{self.incarnation} token {self.token}"

    @property
    def live(self) -> bool:
        return self.died_s is None

    def begin(self) -> None:
        """Draw how long it runs and how it ends, if nobody ends it before."""
        world, knobs = self.world, self.world.knobs
        self.stubborn = world.chance(knobs.stubborn)
        wish = self.spec.get("main_arg") or {}
        if wish.get("bad"):
            world.after(world.random.uniform(0.0, 0.3), self.end, "exited", 1, None)
        if wish["ready"] if "ready" in wish else world.chance(0.3):
            world.after(world.random.uniform(0.001, 0.5), self._say_ready)
        if knobs.exit_rate:
            length_s = world.random.expovariate(knobs.exit_rate)
            if world.chance(0.1):
                length_s = 0.0  # dead before anybody has been told that it lives
            self._plan = world.after(length_s, self._leave)

    def calm(self) -> None:
        """The faults are over: it no longer ends by itself, and it obeys."""
        self.stubborn = False
        if self._plan is not None:
            self._plan.cancel()

    def kill(self, signal: int) -> None:
        """A signal comes. Dead ones do not mind."""
        if not self.live:
            return
        random = self.world.random
        if signal == SIGKILL:
            pause_s = random.uniform(0.0002, 0.004)
            if self.world.chance(self.world.knobs.unkillable):
                pause_s = random.uniform(0.5, 4.0)
            self.world.after(pause_s, self.end, "signaled", None, signal)
        elif signal in DEADLY and not self.stubborn:
            how = random.choice(((0, None), (1, None), (None, signal), (3, None)))
            cause = "signaled" if how[0] is None else "exited"
            self.world.after(random.uniform(0.0005, 0.6), self.end, cause, *how)

    def end(self, cause: str, code: int | None, signal: int | None) -> None:
        if not self.live:
            return
        self.died_s, self.cause, self.code, self.signal = self.world.now_s, cause, code, signal
        self.ended(self)

    def answer(self, message: dict[str, Any]) -> None:
        """The agent says something on its channel."""
        self.answers.append(message)

    def set_latch(self) -> None:
        """Somebody wakes it. A fake one sleeps on."""

    def facts(self, unix_s: float) -> dict[str, Any]:
        """What a warden sees of its zombie."""
        assert self.died_s is not None
        facts: dict[str, Any] = {
            "cause": self.cause,
            "pid": self.pid,
            "started_unix_s": self.born_unix_s,
            "ended_unix_s": unix_s,
            "runtime_s": self.died_s - self.born_s,
        }
        facts["signal" if self.signal is not None else "code"] = (
            self.signal if self.signal is not None else self.code
        )
        return facts

    def _say_ready(self) -> None:
        if self.live:
            self.channel.append({"op": "ready", "id": 1})

    def _leave(self) -> None:
        code = self.world.random.choice((0, 1, 1, 1, 2, 3, 137, -9, -11, -6))
        if code < 0:
            self.end("signaled", None, -code)
        else:
            self.end("exited", code, None)
