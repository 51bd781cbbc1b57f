"""CORE: the agent's view of one warden: whether it is there, attached, and has told everything.

Owns: the steps of a connection to a warden, the pace of new attempts, the orders that wait for it.
Must not know: what the reports mean for workers, sockets, processes.
Invariant: `complete` is true only between a warden's SnapshotEnd and the loss of that connection,
and no order is given before; no start before its fuse is known to be set.

A host has up to one warden of each kind. The fenced one is always there; one of another kind is
`wanted` once it is needed: by a START, or because an earlier one has left something to be told.
"""

from collections.abc import Callable

from posthouse import limits
from posthouse.messages import WardenRef, Welcome
from posthouse_agent.effects import DropWarden, Effect, Give, NeedWarden
from posthouse_agent.orders import (
    PROTOCOL,
    Attach,
    Attached,
    Remember,
    RenewLease,
    Report,
    SnapshotEnd,
    StartWorker,
)
from posthouse_agent.view import WardenView

__all__ = ["FENCED", "KEPT", "KINDS", "LEASED", "TREE", "WardenSeat"]

FENCED = "fenced"  # the kind whose workers end with the host's lease
KEPT = "kept"  # the kind whose workers go on while the host is cut off
TREE = "tree"  # the kind that ends, with the lease, all that its workers have started
KINDS = (FENCED, KEPT, TREE)
LEASED = (FENCED, TREE)


class WardenSeat:
    """One kind of warden on this host, and the connection to whoever fills it."""

    def __init__(self, kind: str, entropy: Callable[[int], bytes], *, wanted: bool = True) -> None:
        self.kind = kind
        self.wanted = wanted
        self.waiting: list[StartWorker] = []  # for it to be open
        self.attached: Attached | None = None
        self.complete = False
        self.highest_token = 0
        self.leased = False  # it was given a deadline
        self.in_force = 0  # stamp of this session's renewal by which its fuse is set
        self._entropy = entropy
        self._connected = False
        self._failures = 0
        self.leaves = False  # it ends on purpose, and has told everything
        self.returns = False  # one that did so has yet to be replaced, in this session
        self._since_s = 0.0
        self._awaited_s: float | None = None  # since when somebody has waited for it to be open
        self.wake_s = 0.0  # when to ask for it (again); infinity while that is under way or done

    def __repr__(self) -> str:
        return f"WardenSeat({self.kind} {self.instance[:8] or 'absent'} complete={self.complete})"

    @property
    def instance(self) -> str:
        return self.attached.instance if self.attached is not None else ""

    def reference(self) -> WardenRef:
        """How HELLO names it."""
        assert self.attached is not None
        return WardenRef(
            kind=self.kind, instance=self.attached.instance, protocol=self.attached.protocol
        )

    def view(self) -> WardenView:
        """What health checks see of it."""
        pid = self.attached.pid if self.attached is not None else 0
        return WardenView(kind=self.kind, pid=pid, complete=self.complete)

    @property
    def open(self) -> bool:
        """Whether it may be given a start. The fuse of a tree is another process: that it was
        asked to set a deadline does not mean that it has."""
        return self.complete and (self.kind != TREE or not self.leased or self.in_force > 0)

    def renew(self, stamp: int, deadline_us: int) -> list[Effect]:
        """Its part of the host's lease, as it was granted for the renewal of this stamp."""
        if self.kind not in LEASED:
            return []
        if not deadline_us and not self.leased:
            self.in_force = stamp
            return []
        self.leased = deadline_us > 0
        return [Give(self.kind, RenewLease(stamp=stamp, deadline_us=deadline_us))]

    def admitted(self) -> list[Effect]:
        """Those who have waited for it, if it is open."""
        if not self.open:
            return []
        waiting, self.waiting = self.waiting, []
        return [Give(self.kind, start) for start in waiting]

    def overdue(self, now_s: float) -> list[StartWorker]:
        """Who has waited in vain, and is given to nobody any more."""
        if not self.waiting:
            self._awaited_s = None
        elif self._awaited_s is None:
            self._awaited_s = now_s
        elif now_s >= self._awaited_s + limits.warden_wait_s:
            overdue, self.waiting, self._awaited_s = self.waiting, [], None
            return overdue
        return []

    @property
    def closed_because(self) -> str:
        """What they have waited for."""
        if not self.complete:
            return f"no {self.kind} warden was ready for {limits.warden_wait_s:g} s"
        return (
            f"the fuse of the {self.kind} warden has not set the host's lease for "
            f"{limits.warden_wait_s:g} s: it is stopped, or the host has no time for it"
        )

    @property
    def due_s(self) -> float:
        """When `tick` or `overdue` may have something."""
        awaited_s = float("inf") if self._awaited_s is None else self._awaited_s
        return min(self.wake_s, awaited_s + limits.warden_wait_s)

    def want(self) -> None:
        """It is needed from now on."""
        self.wanted = True

    def gives_up(self) -> list[StartWorker]:
        """It is gone. Who waited for it, if it was wanted for nothing else: it has never been
        there. Before `gone`."""
        if self.kind == FENCED or self.attached is not None or not self.waiting:
            return []
        self.wanted = False
        return list(self.waiting)

    def tick(self, now_s: float) -> list[Effect]:
        if not self.wanted or now_s < self.wake_s:
            return []
        self.wake_s = float("inf")
        return [NeedWarden(self.kind)]

    def up(self, now_s: float) -> None:
        self._connected, self._since_s = True, now_s
        self.wake_s = float("inf")

    def attach(self, agent: str) -> Effect:
        return Give(self.kind, Attach(agent=agent))

    @property
    def remembers(self) -> bool:
        """It can be told which master is obeyed."""
        return self.attached is not None and self.attached.remembers

    def remember(self, of: Welcome) -> Effect:
        order = Remember(
            registry=of.registry, timeline=of.timeline, epoch=of.epoch, master=of.master
        )
        return Give(self.kind, order)

    def check(self, report: Report) -> str:
        """Why this report cannot be taken from this warden now, or nothing."""
        if not self._connected:
            return f"{type(report).__name__} without a connection"
        if isinstance(report, Attached):
            if self.attached is not None:
                return "attached twice"
            if report.kind != self.kind:
                return f"it is a {report.kind!r} warden"
            if report.protocol != PROTOCOL:
                return f"it speaks protocol {report.protocol}, this agent {PROTOCOL}"
            self.highest_token = report.highest_token
            return ""
        if self.attached is None:
            return f"{type(report).__name__} before Attached"
        if isinstance(report, SnapshotEnd) and self.complete:
            return "a second snapshot"
        return ""

    def ends(self) -> None:
        """It ends on purpose: no reason to be slow with the next one."""
        self.leaves = True

    def drop(self) -> Effect:
        return DropWarden(self.kind)

    def gone(self, now_s: float) -> None:
        """Ask for a new one: at once if the last one had lasted, else after a growing pause, so
        that a warden that cannot live (no space, no descriptors) does not eat the host."""
        lasted = self.complete and now_s - self._since_s >= limits.warden_backoff_s_max
        self._failures = 0 if lasted or self.leaves else self._failures + 1
        self.leaves = False
        pause_s = 0.0
        if self._failures > 1:
            pause_s = limits.warden_backoff_s_min * 2.0 ** min(self._failures - 2, 10)
            pause_s = min(pause_s, limits.warden_backoff_s_max)
            pause_s *= 0.5 + self._entropy(1)[0] / 256
        self.wake_s = now_s + pause_s
        self.attached, self.complete, self._connected = None, False, False
        self.leased, self.in_force = False, 0
        self.waiting.clear()
