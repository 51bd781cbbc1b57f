"""CORE: when a registration may be started again: growing delays, budgets, flapping.

Owns: the arithmetic of restart delays and of budgets. Must not know: slots, hosts, sessions, what
an exit means (restart), clocks; a draw for the jitter is an argument. The master runs it, and later
a host that is cut off from its master.

Invariant: nothing here ever makes a restart earlier than its restart_time. Growth, jitter and
budgets only add to it, and none of them gives up: a worker whose budget is used up is flapping,
and goes on at the pace of its budget.
"""

from collections import deque
from dataclasses import dataclass, field

from posthouse import limits
from posthouse.records import ExitFacts
from posthouse.spec import BackgroundWorker

__all__ = ["Budget", "Spent", "grown_delay", "next_streak"]


@dataclass(frozen=True, slots=True)
class Budget:
    """At most `starts` in any `window_s`."""

    starts: int
    window_s: float

    def __str__(self) -> str:
        return f"{self.starts} starts in {self.window_s:g} s"

    @classmethod
    def of(cls, spec: BackgroundWorker) -> "Budget":
        """The worker's own, or the default: PostgreSQL has none, and a worker that exits at once
        with restart_time 0 was started 1137 times in 3 s there (T3)."""
        if spec.restart_budget is None:
            return cls(limits.restart_budget_starts, limits.restart_budget_window_s)
        return cls(*spec.restart_budget)


@dataclass(slots=True)
class Spent:
    """What of a budget is used: the times of the last starts, the newest last.

    >>> spent, budget = Spent(), Budget(2, 10.0)
    >>> [spent.room_s(budget, now_s=t) for t in (0.0, 0.0)]
    [0.0, 0.0]
    >>> spent.take(budget, 0.0); spent.take(budget, 4.0)
    >>> spent.room_s(budget, now_s=5.0), spent.room_s(budget, now_s=12.0)
    (10.0, 12.0)
    """

    at_s: deque[float] = field(default_factory=deque)

    def room_s(self, budget: Budget, now_s: float) -> float:
        """The earliest time, not before `now_s`, at which a start keeps to the budget."""
        self._forget(budget, now_s)
        if len(self.at_s) < budget.starts:
            return now_s
        return max(now_s, self.at_s[-budget.starts] + budget.window_s)

    def used_up(self, budget: Budget, now_s: float) -> bool:
        """Whether a start now would exceed the budget."""
        return self.room_s(budget, now_s) > now_s

    def take(self, budget: Budget, now_s: float) -> None:
        """A start happened."""
        self._forget(budget, now_s)
        self.at_s.append(now_s)
        while len(self.at_s) > budget.starts:
            self.at_s.popleft()

    def _forget(self, budget: Budget, now_s: float) -> None:
        while self.at_s and self.at_s[0] <= now_s - budget.window_s:
            self.at_s.popleft()


def grown_delay(spec: BackgroundWorker, streak: int, draw: float) -> float:
    """Seconds from the end of a process to its next start: `streak` failures in a row lie before
    this one, `draw` is from 0 up to 1.

    The first restart waits restart_time, each further one in a row restart_growth times as long,
    up to restart_time_max; jitter adds up to its share, so that what failed together does not
    come back together.

    >>> spec = BackgroundWorker(name="w", main="m:f", restart_time=2, restart_growth=3.0,
    ...                         restart_time_max=30.0)
    >>> [grown_delay(spec, streak, 0.0) for streak in range(4)]
    [2.0, 6.0, 18.0, 30.0]
    """
    delay_s = float(spec.restart_time)
    assert delay_s >= 0
    if spec.restart_growth > 1 and streak:
        base_s = max(delay_s, limits.restart_growth_s_min)
        ceiling_s = spec.restart_time_max
        if ceiling_s is None:
            ceiling_s = max(limits.restart_grown_s_max, delay_s)
        # The exponent is bounded: 10 ** 300 would be infinite, and the ceiling holds long before.
        delay_s = min(base_s * spec.restart_growth ** min(streak, 64), ceiling_s)
    return delay_s + delay_s * spec.restart_jitter * draw


def next_streak(streak: int, facts: ExitFacts | None, delay_s: float) -> int:
    """Failures in a row after this one. A process that ran longer than it had been waited for, and
    at least `limits.healthy_s`, was healthy: the next failure is a first one again."""
    ran_s = (facts.runtime_s if facts is not None else None) or 0.0
    return 1 if ran_s >= max(limits.healthy_s, delay_s) else streak + 1
