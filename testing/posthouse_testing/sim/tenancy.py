"""What hosts may count on, from what was said on the wire, and who outlives it (invariant 2).

Owns: the stamps that agents have sent, the grants that answered them, the moment up to which a
host's fenced workers may live. Must not know: the cores' own state.

Invariant: a grant counts from the stamp that the agent sent, on that host's own clock; it counts
until the agent says that a newer one is in force, and no longer. Who lives later than the last
moment of all grants that count, and later than the kernel's timer may be, breaks the invariant at
that very moment, whatever the master has decided by then.
"""

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from posthouse.messages import Grant, Renew
from posthouse_agent.wards import KEPT
from posthouse_testing.sim.process import Process
from posthouse_testing.sim.warden import KERNEL_LATE_S
from posthouse_testing.sim.world import Violation, World

if TYPE_CHECKING:
    from posthouse_testing.sim.host import Machine

__all__ = ["Tenancy"]

_DEATH_S = 0.01  # a warden's workers die after it, each in its own moment; and some rounding


@dataclass(slots=True, eq=False)
class _Host:
    """One boot of one machine."""

    machine: "Machine"
    boot_id: str
    stamps: dict[int, bytes] = field(default_factory=dict)  # that it sent: the session
    until_s: dict[int, float] = field(default_factory=dict)  # by stamp, in the world's time
    look_s: float = inf  # when it is looked at next

    @property
    def last_s(self) -> float:
        """Up to when workers may live; without any grant nobody has said that they may not."""
        return max(self.until_s.values(), default=inf)


class Tenancy:
    """Told of every RENEW and GRANT; raises Violation."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._hosts: dict[str, _Host] = {}  # by machine id
        self._sessions: dict[bytes, _Host] = {}

    def renewed(self, machine: "Machine", session: bytes, renew: Renew) -> None:
        """An agent asks for a grant, and says which one is in force."""
        host = self._hosts.get(machine.machine_id)
        if host is None or host.boot_id != machine.boot_id:
            host = self._hosts[machine.machine_id] = _Host(machine, machine.boot_id)
        now_us = machine.clock.boot_s * 1e6
        if renew.stamp > now_us + 1:
            raise Violation(2, f"{machine.name} stamps {renew.stamp}, its clock is at {now_us:.0f}")
        self._sessions[session] = host
        host.stamps[renew.stamp] = session
        for stamp in [each for each in host.until_s if each < renew.granted]:
            del host.until_s[stamp]
        self._watch(host)

    def granted(self, session: bytes, grant: Grant) -> None:
        """A grant leaves the master. One with a stamp that nobody sent extends nothing."""
        host = self._sessions.get(session)
        if host is None or host.stamps.get(grant.stamp) != session:
            return
        until_s = inf
        if grant.lease_s:
            until_s = host.machine.clock.world_s(grant.stamp / 1e6 + grant.lease_s)
        if host.boot_id == host.machine.boot_id:
            host.until_s[grant.stamp] = max(host.until_s.get(grant.stamp, 0.0), until_s)
            self._watch(host)

    def _watch(self, host: _Host) -> None:
        """Look when nobody may be there any more; it may have come nearer."""
        due_s = host.last_s + KERNEL_LATE_S + _DEATH_S
        if due_s < host.look_s:
            host.look_s = due_s
            self._world.at(due_s, self._look, host, due_s)

    def _look(self, host: _Host, asked_s: float) -> None:
        if host.look_s != asked_s:
            return  # another look was nearer
        host.look_s = inf
        if host.boot_id != host.machine.boot_id:
            return
        if host.last_s + KERNEL_LATE_S + _DEATH_S > asked_s:
            self._watch(host)
            return
        for process in host.machine.live:
            if process.warden != KEPT:
                self._fail(process, host)

    def forked(self, machine: "Machine", process: Process) -> None:
        """A process more, under the lease of its host."""
        host = self._hosts.get(machine.machine_id)
        if host is None or host.boot_id != machine.boot_id or process.warden == KEPT:
            return
        if self._world.now_s > host.last_s + KERNEL_LATE_S:
            self._fail(process, host)

    def _fail(self, process: Process, host: _Host) -> None:
        over_s = self._world.now_s - host.last_s
        raise Violation(2, f"{process} lives {over_s:.3f} s after the lease of {process.host}")
