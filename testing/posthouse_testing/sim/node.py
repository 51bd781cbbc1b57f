"""A simulated process around a core: its inputs, its timer, pauses, and crashes between effects.

Owns: whether the process lives, when its core is ticked, at which effect it dies. Must not know:
which core it is. Invariant: a crashed node never runs another effect; its core is not used again.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable
from math import isfinite
from typing import Any

from posthouse_testing.sim.world import Clock, Timer, Violation, World

__all__ = ["Node"]

TICK_S_MIN = 0.0005  # a poll loop does not come round faster
TICKS_MAX = 3000  # in one simulated second; more is a busy loop


class Node(ABC):
    """`submit` an input; the subclass turns it into effects and carries each out in `effect`."""

    def __init__(self, world: World, name: str, clock: Clock) -> None:
        self.world = world
        self.name = name
        self.clock = clock
        self.alive = True
        self.fuse: int | None = None  # effects until it crashes
        self._paused_to_s = 0.0
        self._inputs: deque[Any] = deque()
        self._timer: Timer | None = None
        self._second = -1
        self._ticks = 0

    @abstractmethod
    def handle(self, event: Any) -> None:
        """Let the core handle an input and carry out what comes of it."""

    @abstractmethod
    def effect(self, effect: Any) -> None:
        """Carry out one effect."""

    @abstractmethod
    def tick(self) -> None:
        """The core's timer has come."""

    @property
    def paused(self) -> bool:
        return self.world.now_s < self._paused_to_s

    def submit(self, event: Any) -> None:
        if not self.alive:
            return
        if self.paused:
            self._inputs.append(event)
        else:
            self.handle(event)

    def pause(self, length_s: float) -> None:
        """SIGSTOP, then SIGCONT: what comes in the meantime waits."""
        self._paused_to_s = max(self._paused_to_s, self.world.now_s + length_s)
        self.world.at(self._paused_to_s, self._resume)

    def _resume(self) -> None:
        while self.alive and not self.paused and self._inputs:
            self.handle(self._inputs.popleft())

    def carry_out(self, effects: Iterable[Any]) -> None:
        """In order; the process may die between any two."""
        for effect in effects:
            if not self.alive or self.burn():
                return
            self.effect(effect)

    def burn(self) -> bool:
        """One effect nearer to the planned crash; True if this is it."""
        if self.fuse is None:
            return False
        if self.fuse > 0:
            self.fuse -= 1
            return False
        self.fuse = None
        self.world.figures["crashes between two effects"] += 1
        self.crash()
        return True

    def crash(self) -> None:
        """kill -9."""
        self.alive = False
        self._inputs.clear()
        if self._timer is not None:
            self._timer.cancel()

    def wake_at(self, boot_s: float | None) -> None:
        """The core wants a tick when this node's clock shows `boot_s`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if boot_s is None or not isfinite(boot_s) or not self.alive:
            return
        jitter_s = self.world.random.uniform(0.0, self.world.knobs.jitter_s)
        time_s = max(self.clock.world_s(boot_s), self.world.now_s + TICK_S_MIN) + jitter_s
        self._timer = self.world.at(time_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if not self.alive:
            return
        if self.paused:
            self._timer = self.world.at(self._paused_to_s, self._tick)
            return
        second = int(self.world.now_s)
        self._ticks = self._ticks + 1 if second == self._second else 0
        self._second = second
        if self._ticks > TICKS_MAX:
            raise Violation(0, f"{self.name} ticks in a busy loop")
        self.tick()
