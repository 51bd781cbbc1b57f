"""CORE: the state of the cluster at one moment, as metrics and health checks want it.

Owns: what is counted and why a master is not ready. Must not know: HTTP, Prometheus, threads.

Invariant: painting a picture never holds up the master: it goes in slices of a bounded number of
registrations, and the loop does its own work between two of them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from posthouse import limits
from posthouse.ids import Instant
from posthouse.states import Phase
from posthouse_master.core import MasterCore
from posthouse_master.effects import Room
from posthouse_master.store.base import Life

__all__ = ["HostPoint", "Picture", "WorkerPoint", "paint"]

SLICE: Final = 500  # registrations looked at in one go: well under a millisecond


@dataclass(frozen=True, slots=True)
class WorkerPoint:
    """All live registrations of one name on one host, added up."""

    name: str
    host: str
    up: int
    starts: int
    started_unix_s: float
    restart_delay_s: float


@dataclass(frozen=True, slots=True)
class HostPoint:
    name: str
    up: bool
    heard_unix_s: float


@dataclass(frozen=True, slots=True)
class Picture:
    """What was true around `at_unix_s`; a name registered several times is added up. `unlisted`
    live registrations are only in `slots`: their names are too many."""

    at_unix_s: float
    epoch: int
    version: str
    phase: str
    phase_detail: str
    reports: tuple[str, ...]
    slots: Mapping[str, int]
    workers: tuple[WorkerPoint, ...]
    unlisted: int
    hosts: tuple[HostPoint, ...]
    exits: Mapping[str, int]
    sessions: Mapping[str, int]
    resumes: int
    events: int
    not_ready: tuple[str, ...]


def paint(core: MasterCore, now: Instant, version: str) -> Iterator[Picture | None]:
    """Yields None after every slice, and the picture at the end."""
    lives: Counter[Life] = Counter()
    points: dict[tuple[str, str], WorkerPoint] = {}
    unlisted = 0
    place = (-1, 0)
    while True:
        found = list(core.registry.workers(place, limit=SLICE))
        for registration in found:
            place = registration.key
            lives[registration.life] += 1
            at = (registration.name, registration.host or registration.pinned)
            before = points.get(at)
            if before is None and len(points) >= limits.metrics_workers_max:
                unlisted += 1
                continue
            running = registration.life is Life.RUNNING
            points[at] = WorkerPoint(
                *at,
                up=running + (before.up if before else 0),
                starts=registration.starts + (before.starts if before else 0),
                started_unix_s=(registration.started_unix_s or 0.0) if running else 0.0,
                restart_delay_s=registration.restart_delay_s or 0.0,
            )
        if len(found) < SLICE:
            break
        yield None
    yield _picture(core, now, version, lives, tuple(points.values()), unlisted)


def _picture(
    core: MasterCore,
    now: Instant,
    version: str,
    lives: Mapping[Life, int],
    workers: tuple[WorkerPoint, ...],
    unlisted: int,
) -> Picture:
    slots = {
        "free": core.registry.slots_max - core.registry.live_count,
        "not_yet_started": lives.get(Life.SUBMITTED, 0),
        "starting": lives.get(Life.STARTING, 0),
        "started": lives.get(Life.RUNNING, 0),
        "stopped": lives.get(Life.WAITING, 0),
        "held": lives.get(Life.HELD, 0),
    }
    hosts = tuple(
        HostPoint(host.name, host.reachable, now.unix_s - (info.last_heard_s or 0.0))
        if (info := core.view.host(host, now)).last_heard_s is not None
        else HostPoint(host.name, host.reachable, 0.0)
        for host in sorted(core.fleet.hosts.values(), key=lambda h: h.name)
    )
    return Picture(
        at_unix_s=now.unix_s,
        epoch=core.term.epoch,
        version=version,
        phase=str(core.view.phase[0]),
        phase_detail=core.view.phase[1],
        reports=tuple(core.view.reports),
        slots=slots,
        workers=workers,
        unlisted=unlisted,
        hosts=hosts,
        exits=dict(core.lifecycle.exits),
        sessions=core.door.count_by_role(),
        resumes=core.hosts.resumes,
        events=core.log.sequence,
        not_ready=_not_ready(core),
    )


def _not_ready(core: MasterCore) -> tuple[str, ...]:
    reasons = []
    if core.starter.phase is Phase.STOPPING:
        reasons.append("the cluster is shutting down")
    if core.starter.room is not Room.AMPLE:
        reasons.append("the disk of the registry is full: nothing new is begun")
    return tuple(reasons)
