"""CORE: groups: one record, several registrations of it.

Owns: what the members are called and where they run; which hosts an each-host group has been given
a member on. Must not know: why a member is registered or ended.

Invariant: an each-host group gets one member a host, once, also on hosts that join later and after
a change of master; a group ends with its last member.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from posthouse import limits
from posthouse.errors import NoFreeSlot
from posthouse.rules import need, refusal
from posthouse.spec import BackgroundWorker
from posthouse.states import Every, Phase
from posthouse_master.admit import Admit
from posthouse_master.effects import Room
from posthouse_master.lifecycle import Lifecycle
from posthouse_master.placement import Fleet, Host, Wants, wants_of
from posthouse_master.registry import Registry
from posthouse_master.starter import Starter
from posthouse_master.store.base import DropGroup, GroupRow, PutGroup
from posthouse_master.turn import Turn

__all__ = ["Group", "Groups", "is_member", "member_name"]

_EVERY: Final = -1

_pack: Final = msgspec.msgpack.Encoder().encode
_unpack: Final = msgspec.msgpack.Decoder(dict[str, Any]).decode
_unpack_hosts: Final = msgspec.msgpack.Decoder(list[str]).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """`replicas` -1: one on each host, and `hosts` are those that have been given one."""

    spec: BackgroundWorker
    replicas: int
    source: str = ""
    by: str = ""
    max_unavailable: int = 1
    hosts: frozenset[str] = field(default_factory=frozenset)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def each_host(self) -> bool:
        return self.replicas == _EVERY


def member_name(group: str, which: object) -> str:
    """
    >>> member_name("web", 0), member_name("probe", "b")
    ('web:0', 'probe:b')
    """
    return f"{group}:{which}"


def is_member(group: str, name: str) -> bool:
    """Whether a worker of that name can be of the group."""
    return bool(group) and name.startswith(member_name(group, ""))


class Groups:
    """All groups that have members, or may get some."""

    def __init__(
        self, registry: Registry, lifecycle: Lifecycle, starter: Starter, fleet: Fleet, admit: Admit
    ) -> None:
        self._registry = registry
        self._lifecycle = lifecycle
        self._starter = starter
        self._fleet = fleet
        self._admit = admit
        self._groups: dict[str, Group] = {}

    def __repr__(self) -> str:
        return f"Groups({sorted(self._groups)})"

    def restore(self, row: GroupRow) -> None:
        """A group of an earlier term."""
        self._groups[row.name] = Group(
            spec=BackgroundWorker.from_wire(_unpack(row.spec)),
            replicas=row.replicas,
            source=row.source,
            by=row.by,
            max_unavailable=row.max_unavailable,
            hosts=frozenset(_unpack_hosts(row.hosts)),
        )

    def get(self, name: str) -> Group | None:
        return self._groups.get(name)

    def is_each_host(self, name: str) -> bool:
        group = self._groups.get(name)
        return group is not None and group.each_host

    def of_source(self, source: str) -> list[str]:
        return [name for name, group in self._groups.items() if group.source == source]

    # --- what is wanted ---

    def wanted(
        self,
        spec: BackgroundWorker,
        replicas: int | str,
        *,
        source: str,
        by: str,
        max_unavailable: int = 1,
    ) -> Group:
        """A group that would be new, or other than it is. Raises InvalidField."""
        every = replicas == Every.HOST
        need(
            not (every and spec.host is not None),
            "host",
            spec.host,
            "left out where there is a member on each host",
        )
        count = _EVERY if every or isinstance(replicas, str) else replicas
        longest = limits.label_bytes_max if every else len(str(max(0, count - 1)))
        room = limits.name_bytes_max - 1 - longest
        if len(spec.name.encode()) > room:
            raise refusal("name", spec.name, f"at most {room} bytes, for a group of {replicas}")
        known = self._groups.get(spec.name)
        same = known is not None and known.source == source and known.spec == spec
        return Group(
            spec=spec,
            replicas=count,
            source=source,
            by=known.by if known is not None and same else by,
            max_unavailable=max_unavailable,
            hosts=known.hosts if known is not None and same else frozenset(),
        )

    def members(self, group: Group) -> dict[str, BackgroundWorker]:
        """Who belongs to it now, by name."""
        if not group.each_host:
            names = (member_name(group.name, number) for number in range(group.replicas))
            return {name: replace(group.spec, name=name) for name in names}
        live = {
            registration.spec.host or ""
            for registration in self._registry.of_group(group.name).values()
        }
        fitting = {
            host.name
            for host in self._fleet.hosts.values()
            if self._fleet.fits(_member_wants(group), host)
        }
        # A host that had its member, and has it no longer, is not given another.
        found = (_member_on(group, host) for host in sorted(live | (fitting - group.hosts)))
        return {member.name: member for member in found}

    # --- what there is ---

    def put(self, turn: Turn, group: Group) -> None:
        """It is to be as given."""
        if group.each_host:
            group = replace(group, hosts=group.hosts | self._hosts_of(self.members(group).values()))
        if self._groups.get(group.name) == group:
            return
        self._groups[group.name] = group
        self._persist(turn, group)

    def drop(self, turn: Turn, name: str) -> None:
        """Nobody wants it any more; its members have been ended, or will be."""
        if self._groups.pop(name, None) is not None:
            turn.persist(DropGroup(name))
            self._starter.pace.forget_group(name)

    def register(self, turn: Turn, group: Group) -> int:
        """Register all members of a new group, or none. How many there are. Raises
        AlreadyRegistered, NoFreeSlot, UnknownHost, RefusedError."""
        self._admit.offered(group.spec)
        members = self.members(group)
        for holder in self._registry.of_group(group.name).values():
            raise self._admit.taken(holder)
        for spec in members.values():
            self._admit.unique(spec)
        self._admit.slots(members.values())
        self.put(turn, group)
        for spec in members.values():
            self._register(turn, group, spec)
        return len(members)

    def host_settled(self, turn: Turn, host: Host) -> None:
        """The host is there: it is given its member of each group that has none there yet."""
        if self._starter.phase is Phase.STOPPING or self._starter.room is not Room.AMPLE:
            return  # at its next session
        for group in list(self._groups.values()):
            if not group.each_host or host.name in group.hosts:
                continue
            if not self._fleet.fits(_member_wants(group), host):
                continue
            spec = _member_on(group, host.name)
            if self._registry.named(spec.name) is not None or spec.name in self._starter.withheld:
                continue  # somebody has the name; asked again at the host's next session
            try:
                self._admit.slots([spec])
            except NoFreeSlot as error:
                turn.note("group.no_slot", group=group.name, host=host.name, reason=error.message)
                continue
            self._register(turn, self._grow(turn, group, host.name), spec)

    def look(self, turn: Turn) -> None:
        """After an input: a group ends with its last member, and a host whose member was claimed
        has been given it."""
        for registration in list(self._registry.changed.values()):
            group = self._groups.get(registration.group)
            if group is None:
                continue
            if not registration.live:
                if not self._registry.of_group(group.name):
                    self.drop(turn, group.name)
            elif group.each_host and registration.pinned not in group.hosts:
                self._grow(turn, group, registration.pinned)

    def _grow(self, turn: Turn, group: Group, host: str) -> Group:
        grown = replace(group, hosts=group.hosts | {host})
        self._groups[group.name] = grown
        self._persist(turn, grown)
        return grown

    def _register(self, turn: Turn, group: Group, spec: BackgroundWorker) -> None:
        self._lifecycle.register(
            turn,
            spec,
            _pack(spec.to_wire()),
            group.by,
            group.source,
            group=group.name,
            max_unavailable=group.max_unavailable,
        )

    def _hosts_of(self, specs: Iterable[BackgroundWorker]) -> frozenset[str]:
        return frozenset(spec.host for spec in specs if spec.host is not None)

    def _persist(self, turn: Turn, group: Group) -> None:
        turn.persist(
            PutGroup(
                GroupRow(
                    name=group.name,
                    spec=_pack(group.spec.to_wire()),
                    replicas=group.replicas,
                    source=group.source,
                    by=group.by,
                    max_unavailable=group.max_unavailable,
                    hosts=_pack(sorted(group.hosts)),
                )
            )
        )


def _member_wants(group: Group) -> Wants:
    """What each member on a host wants of it: none of them may run elsewhere, so no fence."""
    return wants_of(group.spec)._replace(guard="")


def _member_on(group: Group, host: str) -> BackgroundWorker:
    return replace(group.spec, name=member_name(group.name, host), host=host)
