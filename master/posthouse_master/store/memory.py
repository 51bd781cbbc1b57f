"""A registry in memory: for the simulator and for tests of everything that needs no disk.

Owns: rows that live as long as their MemoryDisk. Must not know: what they mean.
Invariant: it keeps the same promises as the real store, but for the one that needs a disk.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from posthouse.errors import StoreError
from posthouse_master.store.base import (
    Counters,
    DropGroup,
    DropHost,
    DropRegistration,
    DropRequests,
    EpochLost,
    EventRow,
    GroupRow,
    HostRow,
    Op,
    PutCounters,
    PutEvent,
    PutGroup,
    PutHost,
    PutRegistration,
    PutRequest,
    PutSlot,
    PutState,
    RegistryRefused,
    RequestRow,
    Snapshot,
    SpecRow,
    StateRow,
    Term,
    TrimEvents,
)

__all__ = ["MemoryDisk", "MemoryStore"]


@dataclass(slots=True)
class MemoryDisk:
    """What outlives a MemoryStore, as a disk outlives a process."""

    registry: str
    timeline: int = 1
    epoch: int = 0
    held_by: "MemoryStore | None" = None
    counters: Counters = field(default_factory=Counters)
    specs: dict[tuple[int, int], SpecRow] = field(default_factory=dict)
    states: dict[tuple[int, int], StateRow] = field(default_factory=dict)
    slots: dict[int, int] = field(default_factory=dict)
    events: dict[int, EventRow] = field(default_factory=dict)
    hosts: dict[str, HostRow] = field(default_factory=dict)
    groups: dict[str, GroupRow] = field(default_factory=dict)
    requests: dict[tuple[str, bytes], RequestRow] = field(default_factory=dict)


class MemoryStore:
    """One opening of a MemoryDisk. Raises RegistryRefused while another has it open; `steal`
    opens it nevertheless, as a second machine would that the lock does not reach."""

    def __init__(self, disk: MemoryDisk, *, steal: bool = False) -> None:
        if disk.held_by is not None and not steal:
            raise RegistryRefused("another master has this registry open")
        disk.held_by = self
        self._disk: MemoryDisk | None = disk

    def begin_term(self) -> Term:
        disk = self._open()
        disk.epoch += 1
        return Term(registry=disk.registry, timeline=disk.timeline, epoch=disk.epoch)

    def load(self) -> Snapshot:
        disk = self._open()
        return Snapshot(
            term=Term(registry=disk.registry, timeline=disk.timeline, epoch=disk.epoch),
            counters=disk.counters,
            specs=list(disk.specs.values()),
            states=list(disk.states.values()),
            slots=sorted(disk.slots.items()),
            events=[disk.events[sequence] for sequence in sorted(disk.events)],
            hosts=list(disk.hosts.values()),
            groups=list(disk.groups.values()),
            requests=list(disk.requests.values()),
        )

    def commit(self, epoch: int, ops: Sequence[Op]) -> None:
        self.check(epoch)
        for op in ops:
            _apply(self._open(), op)

    def check(self, epoch: int) -> None:
        disk = self._open()
        if epoch != disk.epoch:
            raise EpochLost(f"this master is of epoch {epoch}, the registry of {disk.epoch}")

    def close(self) -> None:
        if self._disk is not None and self._disk.held_by is self:
            self._disk.held_by = None
        self._disk = None

    def _open(self) -> MemoryDisk:
        if self._disk is None:
            raise StoreError("the registry is closed")
        return self._disk


def _apply(disk: MemoryDisk, op: Op) -> None:
    match op:
        case PutRegistration(row):
            disk.specs[row.slot, row.generation] = row
        case PutState(state):
            disk.states[state.slot, state.generation] = state
        case PutSlot(slot, generation):
            disk.slots[slot] = generation
        case PutEvent(event):
            if event.sequence in disk.events:
                raise StoreError(f"event {event.sequence} is there already")
            disk.events[event.sequence] = event
        case PutRequest(request):
            disk.requests[request.principal, request.request] = request
        case PutHost(host):
            disk.hosts[host.name] = host
        case PutGroup(group):
            disk.groups[group.name] = group
        case PutCounters(counters):
            disk.counters = replace(counters)
        case _:
            _drop(disk, op)


def _drop(
    disk: MemoryDisk, op: DropRegistration | TrimEvents | DropRequests | DropHost | DropGroup
) -> None:
    match op:
        case DropRegistration(slot, generation):
            disk.specs.pop((slot, generation), None)
            disk.states.pop((slot, generation), None)
        case TrimEvents(sequences):
            for sequence in sequences:
                disk.events.pop(sequence, None)
        case DropHost(name):
            disk.hosts.pop(name, None)
        case DropGroup(name):
            disk.groups.pop(name, None)
        case DropRequests(keys):
            for key in keys:
                disk.requests.pop(key, None)
