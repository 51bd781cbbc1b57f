"""CORE: what a host may count on, and from when on its workers may run elsewhere.

Owns: the length of grants, the moment at which each host is lost, the brake on a mass of losses,
hosts that are forgotten. Must not know: frames, how an agent guards its lease, what becomes of a
registration that is lost (lifecycle).

Invariant: `host.lease_s` is durable and never shorter than any lease that the host may still count
on (0: one without a deadline, and such a host is never lost). So a longer one is written down
before it is granted, and a shorter one only when the agent has said that it is in force.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from posthouse import limits
from posthouse.errors import RefusedError
from posthouse.messages import Grant, Hello, Renew
from posthouse.states import EventKind
from posthouse_master.chronicle import Chronicle, host_stream
from posthouse_master.effects import Room
from posthouse_master.lifecycle import Lifecycle
from posthouse_master.placement import FENCED, KEPT, TREE, Fleet, Host, guard_of
from posthouse_master.registry import Registration, Registry
from posthouse_master.sessions import FrontDoor, Session, TimerKey
from posthouse_master.starter import Starter
from posthouse_master.store.base import DropHost
from posthouse_master.strays import Strays
from posthouse_master.timers import Timers
from posthouse_master.turn import Turn

__all__ = ["NO_LEASES", "LeasePolicy", "Leases", "lost_after_s"]

_LOOK_S: Final = 1.0  # between two looks at a host whose loss waits for the brake, or for the disk


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasePolicy:
    """What the operator decides. `lease_s` 0: no lease has a deadline. `local_boot_id`: that of the
    master's own machine; while every host is of that boot no lease has one either."""

    lease_s: float = 0.0
    local_boot_id: str = ""
    handover_s: float = limits.handover_s
    mass_loss_share: float = limits.mass_loss_share
    mass_loss_hosts_min: int = limits.mass_loss_hosts_min
    mass_loss_wait_s: float = limits.mass_loss_wait_s


NO_LEASES: Final = LeasePolicy()


def lost_after_s(lease_s: float) -> float:
    """How long after a grant its host is lost, on the master's clock.

    >>> lost_after_s(30.0)
    32.06
    """
    return lease_s * (1 + limits.clock_drift) + limits.lease_margin_s


class Leases:
    """All hosts' leases."""

    def __init__(
        self,
        policy: LeasePolicy,
        registry: Registry,
        fleet: Fleet,
        lifecycle: Lifecycle,
        starter: Starter,
        strays: Strays,
        chronicle: Chronicle,
        door: FrontDoor,
        timers: Timers[TimerKey],
        persist: Callable[[Turn, Host], None],
    ) -> None:
        self._policy = policy
        self._registry = registry
        self._fleet = fleet
        self._lifecycle = lifecycle
        self._starter = starter
        self._strays = strays
        self._chronicle = chronicle
        self._door = door
        self._timers = timers
        self._persist = persist

    # --- the length of a grant ---

    def look(self) -> None:
        """A host has joined, or is forgotten: whether leases have deadlines now."""
        local = self._policy.local_boot_id
        far = not local or any(
            (host.said_boot_id or host.boot_id) != local for host in self._fleet.hosts.values()
        )
        lease_s = self._policy.lease_s if far else 0.0
        if lease_s != self._fleet.lease_s:
            self._fleet.lease_s = lease_s
            self._fleet.offer_changed()

    def welcome_s(self, hello: Hello) -> float:
        """What WELCOME says of the leases that will be granted."""
        local = self._policy.local_boot_id
        if hello.role == "agent" and local and hello.boot_id != local:
            return self._policy.lease_s
        return self._fleet.lease_s

    # --- granting ---

    def restored(self, host: Host, now_s: float) -> None:
        """A host of an earlier term: it may have been granted its longest lease just now."""
        host.granted_s = now_s
        self._wind(host)

    def renew(self, turn: Turn, session: Session, message: Renew) -> None:
        """Answer an agent's RENEW. A grant is not state: it does not wait for the commit, unless
        the host's row must be written before."""
        host = self._fleet.hosts[session.host]
        if not host.settled:
            return  # no grant before the last page of the inventory
        lease_s = self._fleet.lease_s
        may_write = self._starter.room is not Room.NONE
        if may_write:
            self._confirmed(turn, host, message)
        longer = _longer(lease_s, host.lease_s)
        if longer and not may_write:
            return
        if longer:
            host.lease_s = lease_s
            self._persist(turn, host)
            if not lease_s:
                self._starter.serve(turn, host)
        if lease_s != host.granting_s or not host.granting_from:
            host.granting_s, host.granting_from = lease_s, max(1, message.stamp)
        if message.granted >= host.unseen:
            host.unseen, host.unseen_s = message.stamp, turn.now.boot_s
        host.granted_s, host.stamp = turn.now.boot_s, message.stamp
        host.lost_s = host.braked_s = None
        self._wind(host)
        grant = Grant(stamp=message.stamp, lease_s=lease_s)
        turn.send(session.peer, session.link.loose(grant), urgent=not longer)

    def _confirmed(self, turn: Turn, host: Host, message: Renew) -> None:
        """Its warden's fuse is set by a grant of this session of the present length: whatever it
        was granted before counts no more."""
        in_force = host.granting_from and message.granted >= host.granting_from
        if in_force and _longer(host.lease_s, host.granting_s):
            host.lease_s = host.granting_s
            self._persist(turn, host)
            self._starter.serve(turn, host)

    def unseen(self, turn: Turn, session: Session) -> bool:
        """Whether grants have gone out for some time and not arrived. If none went out, it was this
        master that was busy, or stopped, and nothing is wrong with the host."""
        host = self._fleet.hosts.get(session.host)
        if host is None or not host.unseen:
            return False
        return turn.now.boot_s - host.unseen_s >= limits.renew_s

    def part(self, turn: Turn) -> None:
        """This master ends on purpose: the next one is to find every host as it is now."""
        for host in self._fleet.hosts.values():
            session = self._door.get(host.session)
            if session is None or not host.stamp or not host.granting_s or not host.settled:
                continue
            lease_s = self._policy.handover_s
            if not _longer(lease_s, host.granting_s):
                continue
            if _longer(lease_s, host.lease_s):
                host.lease_s = lease_s
                self._persist(turn, host)
            turn.send(session.peer, session.link.loose(Grant(stamp=host.stamp, lease_s=lease_s)))

    # --- losing ---

    def dead_for_sure_s(self, host: Host) -> float | None:
        """When nothing that ends with its lease lives on the host, unless it is granted more; None
        if no time brings that about."""
        if not host.lease_s or host.granted_s is None:
            return None
        return host.granted_s + lost_after_s(host.lease_s)

    def _wind(self, host: Host) -> None:
        due_s = self.dead_for_sure_s(host)
        if due_s is not None:
            self._timers.set(("lease", host.name), due_s)

    def due(self, turn: Turn, name: str) -> None:
        """The host's lease may be over, with all that is added to it."""
        host = self._fleet.hosts.get(name)
        due_s = self.dead_for_sure_s(host) if host is not None else None
        if host is None or due_s is None or host.lost_s is not None:
            return
        now_s = turn.now.boot_s
        if now_s < due_s:
            self._timers.set(("lease", name), due_s)
        elif self._starter.room is Room.NONE or self._braked(turn, host):
            self._timers.set(("lease", name), now_s + _LOOK_S)
        else:
            host.lost_s = now_s
            reason = f"not heard for its lease of {host.lease_s:g} s"
            self._lose(turn, host, reason, fenced_only=True)

    def _braked(self, turn: Turn, host: Host) -> bool:
        """Whether so many hosts are lost at once that it is more likely the master who is cut off:
        then nobody's workers are moved, before somebody says so or a long time has passed."""
        now_s, policy = turn.now.boot_s, self._policy
        lease_s = max(host.lease_s, limits.lease_s_min)
        counted = [
            each
            for each in self._fleet.hosts.values()
            if each.lease_s and (each.lost_s is None or now_s - each.lost_s < lease_s)
        ]
        away_s = limits.silence_s + limits.renew_s
        away = [h for h in counted if h.granted_s is not None and now_s - h.granted_s > away_s]
        mass = len(counted) >= policy.mass_loss_hosts_min and len(
            away
        ) >= policy.mass_loss_share * len(counted)
        if not mass:
            return False
        if host.braked_s is not None:
            return now_s - host.braked_s < policy.mass_loss_wait_s
        host.braked_s = now_s
        reason = (
            f"{len(away)} of {len(counted)} hosts are lost at once: nothing is moved for "
            f"{policy.mass_loss_wait_s:g} s, or until `posthouse hosts forget`"
        )
        self._record(turn, EventKind.HOST_BRAKED, host, reason)
        return True

    def _lose(
        self, turn: Turn, host: Host, reason: str, *, fenced_only: bool, by: str = ""
    ) -> None:
        placed = list(self._registry.placed_on(host.name).values())
        lost = [each for each in placed if not fenced_only or ends_with_lease(each)]
        host.braked_s = None
        if host.session:
            # A START of this session may be on its way, and waits for a grant that must never come.
            turn.broken.append((host.session, "its host was lost before it was granted a lease"))
        if not by:
            self._record(turn, EventKind.HOST_LOST, host, reason)
        for registration in lost:
            self._lifecycle.lost(turn, registration, "host_lost")

    def forget(self, turn: Turn, host: Host, by: str, *, confirm_dead: bool) -> int:
        """An operator's word that a host is gone: all that ran there may run elsewhere, and it is
        listed no more. How many workers that were. Raises RefusedError."""
        if host.reachable:
            raise RefusedError(
                f"host {host.name} is heard",
                hint=f"end its agent and its wardens first, or `posthouse drain {host.name}`",
            )
        loose = self._registry.loose_on(host.name)  # without a process, but it may start one
        count = len(self._registry.placed_on(host.name)) + len(loose)
        if count and not confirm_dead:
            raise RefusedError(
                f"{count} workers may still run on host {host.name}",
                hint="--confirm-dead says that you know that the machine is off; if it is not, "
                "they run twice",
            )
        reason = f"said to be dead by {by}"
        self._lose(turn, host, reason, fenced_only=False, by=by)
        for registration in loose:
            self._lifecycle.given_back(turn, registration)
        self._record(turn, EventKind.HOST_FORGOTTEN, host, reason, by=by)
        self._timers.cancel(("lease", host.name))
        self._timers.cancel(("host", host.name))
        self._strays.settled(turn, host.name, ())
        del self._fleet.hosts[host.name]
        self._fleet.offer_changed()
        turn.persist(DropHost(host.name))
        self.look()
        return count

    def _record(self, turn: Turn, kind: EventKind, host: Host, reason: str, by: str = "") -> None:
        self._chronicle.record(
            turn,
            kind,
            stream=host_stream(host.name),
            registry=self._registry.identity,
            host=host.name,
            reason=reason,
            by=by,
        )
        turn.note(str(kind).replace("_", "."), host=host.name, reason=reason)


def _longer(one_s: float, other_s: float) -> bool:
    """0 is without an end."""
    return one_s != other_s and (not one_s or (bool(other_s) and one_s > other_s))


def ends_with_lease(registration: Registration) -> bool:
    """Else only its host's own word tells that it has ended: it is kept; or it was started where
    leases had no deadline, under a warden that does not end all that it may have started."""
    if registration.warden == FENCED:
        return guard_of(registration.spec) != TREE
    return registration.warden != KEPT
