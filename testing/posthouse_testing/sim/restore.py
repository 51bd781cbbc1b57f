"""Registries that fall behind: a backup that is put back, and a disk that lied about its syncs.

Owns: what a copy of the registry is, and what comes of the rest of the world when it takes the
registry's place. Must not know: how the cores go on from there, what is checked of it.

Invariant: as with `posthouse restore`, a copy that is put back begins a new timeline, above every
number that was handed out before, and doubts every lease; and a disk that lied does neither. Who
asked the lost history for something begins anew: its notebook tells of what never was.

A disk that lied comes back with a registry that lacks the beginning of a term. Nothing in it says
so; but agents have seen that term. So it gets no session with any of them (check.py), until the
operator, to whom all that is told, restores that very registry. What is not simulated, because
nothing could hold: that whoever has seen the term, agent and wardens, is gone before that.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from posthouse_master.store.base import first_number
from posthouse_master.store.memory import MemoryDisk

if TYPE_CHECKING:
    from posthouse_testing.sim.faults import Fault, Stage

__all__ = ["Backup", "backup", "disk_lies", "registry_restored", "restore"]

_TABLES = ("specs", "states", "slots", "events", "hosts", "groups", "requests")
_NOTICED_S = 3.0  # that a registry which lost commits is left as it is
_LOOK_S = 0.02  # shorter than any restart of an agent


@dataclass(frozen=True, slots=True)
class Backup:
    """A registry as it was, and what was true of it then."""

    disk: MemoryDisk
    history: dict[str, Any]


def registry_restored(fault: "Fault", stage: "Stage") -> None:
    """Take a backup, and put it back some time later."""
    if _allowed(stage):
        stage.world.after(fault.length_s, _operate, stage, backup(stage))


def disk_lies(fault: "Fault", stage: "Stage") -> None:
    """What is synced from now on is lost with the power, some time later; with the beginning of the
    term that follows."""
    if _allowed(stage):
        if stage.seat.node is not None:
            stage.world.after(0.3 * fault.length_s, stage.seat.node.crash)
        stage.world.after(fault.length_s, _lose_power, stage, backup(stage))


def _allowed(stage: "Stage") -> bool:
    """Deployments are not followed through a restore. Where nothing ends a lease, a host that the
    copy does not know may never be heard again, and then nobody can say what runs there."""
    knobs = stage.world.knobs
    known = set(stage.seat.disk.hosts) >= {machine.name for machine in stage.machines}
    return not knobs.deploys and (known or (knobs.lease_s > 0 and not knobs.near))


def backup(stage: "Stage") -> Backup:
    """The registry as it is now."""
    disk = stage.seat.disk
    tables: dict[str, Any] = {name: dict(getattr(disk, name)) for name in _TABLES}
    return Backup(replace(disk, held_by=None, **tables), stage.ledger.history())


def _put(stage: "Stage", copy: Backup, **changes: Any) -> None:
    """The copy takes the registry's place, in the same file, with these changes."""
    seat, disk = stage.seat, stage.seat.disk
    if seat.node is not None:
        seat.node.crash()
    for name in _TABLES:
        setattr(disk, name, dict(changes.pop(name, getattr(copy.disk, name))))
    disk.counters, disk.epoch = copy.disk.counters, copy.disk.epoch
    for name, value in changes.items():
        setattr(disk, name, value)
    stage.ledger.put_back(copy.history, disk)
    for client in stage.clients:
        client.forget()


def _operate(stage: "Stage", copy: Backup) -> None:
    if not stage.over:
        restore(stage, copy)


def restore(stage: "Stage", copy: Backup) -> None:
    """`posthouse restore`: what copies.restore does to a registry."""
    disk = stage.seat.disk
    timeline = disk.timeline + 1
    first = first_number(timeline)
    complete = set(copy.disk.hosts) >= {machine.name for machine in stage.machines}
    stage.world.log("master", f"has its registry restored: timeline {timeline}")
    stage.world.figures["registries restored"] += 1
    stage.seat.doubtful = False
    mode = "known" if complete else "any"
    _put(
        stage,
        copy,
        timeline=timeline,
        epoch=first,
        counters=replace(copy.disk.counters, token=first, recovery=mode),
        hosts={name: replace(row, lease_s=0.0) for name, row in copy.disk.hosts.items()},
    )


def _lose_power(stage: "Stage", copy: Backup) -> None:
    """The registry is as it was, if everybody knows of a later term."""
    same = copy.disk.timeline == stage.seat.disk.timeline and not stage.seat.doubtful
    if stage.over or not same or _seen(stage) <= (copy.disk.timeline, copy.disk.epoch):
        return
    stage.world.log("master", f"loses power, and all since epoch {copy.disk.epoch}")
    stage.world.figures["registries that lost commits"] += 1
    stage.seat.doubtful = True
    _put(stage, copy)
    _watch(stage, stage.world.now_s + _NOTICED_S)


def _seen(stage: "Stage") -> tuple[int, int]:
    """A term that no agent would go behind."""
    agents = [machine.agent for machine in stage.machines]
    return min(agent.term if agent is not None else (0, 0) for agent in agents)


def _watch(stage: "Stage", until_s: float) -> None:
    """The operator restores it soon: before an agent is replaced, or a term comes that is new."""
    if not stage.seat.doubtful:
        return
    disk = stage.seat.disk
    new = _seen(stage) <= (disk.timeline, disk.epoch)
    if new or stage.over or stage.world.now_s >= until_s:
        restore(stage, backup(stage))
    else:
        stage.world.after(_LOOK_S, _watch, stage, until_s)
