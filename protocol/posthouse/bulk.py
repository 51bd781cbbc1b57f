"""Many workers at once: what apply() is given and answers, and groups.

Owns: the records of a declaration and of its plan, the cutting into frames, Group. Must not know:
sockets, what the master decides. Invariant: a declaration has its effect with the one request that
ends it; the parts before it have none.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from os import urandom
from typing import Final

import msgspec

from posthouse import limits
from posthouse.engine import Deadline
from posthouse.errors import UploadLost
from posthouse.handle import Connection, Handle, new_request_id
from posthouse.ids import HandleId
from posthouse.messages import Applied, Apply, Change, Declared, DeclarePart, Done
from posthouse.records import Status
from posthouse.spec import BackgroundWorker
from posthouse.states import Every
from posthouse.worker_tables import read_replicas

__all__ = ["Group", "Plan", "PlannedChange", "WorkerGroup", "declare"]

_FRAME_BYTES: Final = limits.client_frame_bytes_max - 4096  # room for everything but the workers
_UPLOADS: Final = 5  # of one declaration, if sessions keep being lost under it

_size_of: Final = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """A record of which there are to be several: `replicas` members NAME:0, NAME:1, ..., or
    "each-host": one member NAME:HOST on every host that fits, also on those that join later.

    >>> WorkerGroup(BackgroundWorker(name="web", main="acme.web:main"), 3).replicas
    3
    """

    worker: BackgroundWorker
    replicas: int | str


@dataclass(frozen=True, slots=True)
class PlannedChange:
    """What apply() does about one name: `action` is "create", "update" (`fields` differ), "prune",
    or "finished": it has ended by itself with this content, and is left so."""

    name: str
    action: str
    handle: HandleId | None = None
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What apply() did, or with dry_run would do. `more`: there are changes that are not listed,
    because one answer has room for so many; a dry run lists all."""

    source: str
    dry_run: bool
    created: int
    updated: int
    pruned: int
    finished: int
    unchanged: int
    changes: tuple[PlannedChange, ...]
    more: bool = False

    @property
    def changed(self) -> bool:
        return bool(self.created or self.updated or self.pruned)


def declare(
    connection: Connection,
    workers: Iterable[BackgroundWorker | WorkerGroup],
    *,
    source: str,
    prune: bool,
    max_unavailable: int,
    dry_run: bool,
    timeout: float | None,
    request_id: bytes | None,
) -> Plan:
    """Cluster.apply."""
    deadline = connection.deadline(timeout)
    frames = list(_frames([_declared(entry) for entry in workers]))
    request = new_request_id(request_id)
    for attempt in range(_UPLOADS):
        try:
            upload = _upload(connection, frames[:-1], deadline) if len(frames) > 1 else b""
            apply = Apply(
                request=request,
                source=source,
                workers=frames[-1],
                upload=upload,
                prune=prune,
                max_unavailable=max_unavailable,
                dry_run=dry_run,
            )
            return _plan(apply, list(_answers(connection, apply, deadline)))
        except UploadLost:
            # The session ended after a part: nothing has happened, so all of it is said again.
            if attempt == _UPLOADS - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


def _declared(entry: BackgroundWorker | WorkerGroup) -> Declared:
    if isinstance(entry, WorkerGroup):
        replicas = read_replicas(entry.replicas)
        return Declared(
            spec=entry.worker.check().to_wire(),
            replicas=Every(replicas) if isinstance(replicas, str) else replicas,
        )
    return Declared(spec=entry.check().to_wire())


def _frames(workers: list[Declared]) -> Iterator[list[Declared]]:
    """Cut so that each piece fits a frame; there is always a last one, if only an empty one."""
    piece: list[Declared] = []
    size = 0
    for worker in workers:
        grown = size + len(_size_of(worker))
        if piece and (grown > _FRAME_BYTES or len(piece) == limits.page_items_max):
            yield piece
            piece, grown = [], grown - size
        piece.append(worker)
        size = grown
    yield piece


def _upload(connection: Connection, parts: list[list[Declared]], deadline: Deadline) -> bytes:
    upload = urandom(16)
    for number, workers in enumerate(parts):
        part = DeclarePart(request=new_request_id(), upload=upload, part=number, workers=workers)
        connection.ask(part, Done, deadline)
    return upload


def _answers(connection: Connection, apply: Apply, deadline: Deadline) -> Iterator[Applied]:
    """One answer; of a dry run as many as it takes to tell everything."""
    skip = 0
    while True:
        answer = connection.ask(apply, Applied, deadline)
        yield answer
        skip += len(answer.changes)
        if not (apply.dry_run and answer.more and answer.changes):
            return
        apply = msgspec.structs.replace(apply, request=new_request_id(), skip=skip)


def _plan(apply: Apply, answers: list[Applied]) -> Plan:
    last = answers[-1]
    return Plan(
        source=apply.source,
        dry_run=apply.dry_run,
        created=last.created,
        updated=last.updated,
        pruned=last.pruned,
        finished=last.finished,
        unchanged=last.unchanged,
        changes=tuple(_change(change) for answer in answers for change in answer.changes),
        more=last.more,
    )


def _change(change: Change) -> PlannedChange:
    handle = None if change.handle is None else change.handle.id
    return PlannedChange(change.name, change.action, handle, tuple(change.fields))


class Group:
    """The members of a group as they were when they were asked for. Calls go to one after another;
    the first error ends them, and asking again does what is left."""

    def __init__(self, name: str, handles: Iterable[Handle]) -> None:
        self.name = name
        self.handles = tuple(handles)

    def __repr__(self) -> str:
        return f"<Group {self.name}: {len(self.handles)} members>"

    def __iter__(self) -> Iterator[Handle]:
        return iter(self.handles)

    def __len__(self) -> int:
        return len(self.handles)

    def wait_for_startup(self, *, timeout: float | None = None) -> list[Status]:
        """Of each member, STARTED or STOPPED; all within `timeout` seconds. Raises TimedOut."""
        deadline = Deadline(timeout)
        return [handle.wait_for_startup(timeout=deadline.left_s) for handle in self.handles]

    def wait_until_unregistered(self, *, timeout: float | None = None) -> list[Status]:
        """Until none of them will run again."""
        deadline = Deadline(timeout)
        return [handle.wait_until_unregistered(timeout=deadline.left_s) for handle in self.handles]

    def terminate(self, *, timeout: float | None = None) -> int:
        """End and forget all of them. How many there were to end."""
        return sum([handle.terminate(timeout=timeout) for handle in self.handles])

    def hold(self, *, timeout: float | None = None) -> int:
        """Stop all of them and keep them registered. How many were not held already."""
        return sum([handle.hold(timeout=timeout) for handle in self.handles])

    def release(self, *, timeout: float | None = None) -> int:
        """Let all of them run again. How many were held."""
        return sum([handle.release(timeout=timeout) for handle in self.handles])

    def restart(self, *, timeout: float | None = None) -> int:
        """Start all of them anew, at once. How many there were to start."""
        return sum([handle.restart(timeout=timeout) for handle in self.handles])
