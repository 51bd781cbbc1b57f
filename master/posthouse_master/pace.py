"""CORE: the pace of restarts: each worker's budget, and what all flapping workers share.

Owns: what is spent of every budget in this term. Must not know: placement, exits, frames.

Invariant: a worker that keeps to its own budget never waits for another's: the budgets of a group,
a host and the cluster bind only those that are flapping, so 100 failing loops leave every other
restart on time.
"""

from dataclasses import dataclass
from typing import Final

from posthouse import limits
from posthouse.pacing import Budget, Spent
from posthouse_master.registry import Key, Registration
from posthouse_master.store.base import Life

__all__ = ["DEFAULT_PACE", "Pace", "PacePolicy"]


_WINDOW_S: Final = limits.restart_budget_window_s
_GROUP: Final = Budget(limits.restart_budget_group_starts, _WINDOW_S)
_HOST: Final = Budget(limits.restart_budget_host_starts, _WINDOW_S)
_CLUSTER: Final = Budget(limits.restart_budget_cluster_starts, _WINDOW_S)


@dataclass(frozen=True, slots=True)
class PacePolicy:
    """Budgets that flapping workers share."""

    group: Budget = _GROUP
    host: Budget = _HOST
    cluster: Budget = _CLUSTER


DEFAULT_PACE: Final = PacePolicy()


@dataclass(slots=True)
class _Runner:
    """One registration: its starts, and whether it has used up its budget since it was healthy."""

    spent: Spent
    started_s: float = 0.0
    flapping: bool = False


class Pace:
    """Times are the master's seconds of CLOCK_BOOTTIME. What is spent is not durable: after a
    restart of the master every delay runs again in full, which is slower, never faster."""

    def __init__(self, policy: PacePolicy) -> None:
        self._policy = policy
        self._runners: dict[Key, _Runner] = {}
        self._groups: dict[str, Spent] = {}
        self._hosts: dict[str, Spent] = {}
        self._cluster = Spent()

    def __len__(self) -> int:
        return len(self._runners)

    def started(self, registration: Registration, now_s: float) -> None:
        """An incarnation was drawn."""
        runner = self._runners.setdefault(registration.key, _Runner(Spent()))
        runner.spent.take(Budget.of(registration.spec), now_s)
        runner.started_s = now_s
        if runner.flapping:
            self._hosts.setdefault(registration.host, Spent()).take(self._policy.host, now_s)
            self._cluster.take(self._policy.cluster, now_s)
            if registration.group:
                spent = self._groups.setdefault(registration.group, Spent())
                spent.take(self._policy.group, now_s)

    def forget(self, key: Key) -> None:
        """The registration is gone."""
        self._runners.pop(key, None)

    def forget_group(self, name: str) -> None:
        """The group is gone."""
        self._groups.pop(name, None)

    def flapping(self, registration: Registration, now_s: float) -> bool:
        """Whether its budget is used up and it has not been healthy since."""
        runner = self._runners.get(registration.key)
        if runner is None or not runner.flapping:
            return False
        running = registration.life is Life.RUNNING
        return not running or now_s - runner.started_s < limits.healthy_s

    def delay_s(
        self, registration: Registration, delay_s: float, now_s: float, *, healthy: bool
    ) -> float:
        """After a failure: `delay_s`, or longer if its own budget says so. `healthy`: the run
        that has ended was, so whatever it was before, it is not flapping."""
        runner = self._runners.get(registration.key)
        if runner is None:
            return delay_s
        runner.flapping = runner.flapping and not healthy
        room_s = runner.spent.room_s(Budget.of(registration.spec), now_s) - now_s
        if room_s <= delay_s:
            return delay_s
        runner.flapping = True
        return room_s

    def put_off_s(self, registration: Registration, now_s: float) -> float | None:
        """When to ask again about a start of a flapping worker, if what all flapping workers of
        its host, or of the cluster, share is used up."""
        runner = self._runners.get(registration.key)
        if runner is None or not runner.flapping:
            return None
        due_s = self._cluster.room_s(self._policy.cluster, now_s)
        host = self._hosts.get(registration.host)
        if host is not None:
            due_s = max(due_s, host.room_s(self._policy.host, now_s))
        group = self._groups.get(registration.group)
        if group is not None:
            due_s = max(due_s, group.room_s(self._policy.group, now_s))
        return due_s if due_s > now_s else None
