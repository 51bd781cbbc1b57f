"""Many workers at once: what apply() is given and answers; the same for both clients.

Owns: the records of a declaration and of its plan, the cutting into frames. Must not know: threads,
event loops, sockets, what the master decides. Invariant: a declaration has its effect with the one
request that ends it; the parts before it have none.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from posthouse import limits
from posthouse.conversation import Connection, Engine, new_request_id
from posthouse.errors import UploadLost, UsageError
from posthouse.ids import HandleId
from posthouse.messages import Applied, Apply, Change, Declared, DeclarePart, Done
from posthouse.spec import BackgroundWorker
from posthouse.states import Every
from posthouse.switchboard import Deadline
from posthouse.worker_tables import read_replicas

__all__ = ["Plan", "PlannedChange", "WorkerGroup", "declare"]

_FRAME_BYTES: Final = limits.client_frame_bytes_max - 4096  # room for everything but the workers
_UPLOADS: Final = 5  # of one declaration, if sessions keep being lost under it

_packed: Final = msgspec.msgpack.Encoder().encode


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


async def declare(
    connection: Connection[Engine],
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
    _check(source, max_unavailable)
    deadline = connection.deadline(timeout)
    frames = list(_frames([_declared(entry) for entry in workers]))
    request = new_request_id(request_id)
    for attempt in range(_UPLOADS):
        try:
            upload = await _upload(connection, request, frames[:-1], deadline)
            apply = Apply(
                request=request,
                source=source,
                workers=frames[-1],
                upload=upload,
                prune=prune,
                max_unavailable=max_unavailable,
                dry_run=dry_run,
            )
            return _plan(apply, await _answers(connection, apply, deadline))
        except UploadLost:
            # The session ended after a part: nothing has happened, so all of it is said again.
            if attempt == _UPLOADS - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


def _check(source: str, max_unavailable: int) -> None:
    if not isinstance(source, str) or not 0 < len(source) <= limits.name_bytes_max:
        raise UsageError(
            f"source is {source!r}: must be a text of 1 to {limits.name_bytes_max} characters"
        )
    if not 0 < max_unavailable <= limits.workers_per_cluster_max:
        raise UsageError(
            f"max_unavailable is {max_unavailable!r}: must be a number from 1 to "
            f"{limits.workers_per_cluster_max}"
        )


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
        grown = size + len(_packed(worker))
        if piece and (grown > _FRAME_BYTES or len(piece) == limits.page_items_max):
            yield piece
            piece, grown = [], grown - size
        piece.append(worker)
        size = grown
    yield piece


async def _upload(
    connection: Connection[Engine],
    request_id: bytes,
    parts: list[list[Declared]],
    deadline: Deadline,
) -> bytes:
    """The name of what has been sent before the request that ends it; it follows from what it is,
    so that the caller who repeats his request repeats it to the letter."""
    if not parts:
        return b""
    upload = hashlib.sha256(request_id + _packed(parts)).digest()[: limits.request_id_bytes]
    for number, workers in enumerate(parts):
        part = DeclarePart(request=new_request_id(), upload=upload, part=number, workers=workers)
        await connection.ask(part, Done, deadline)
    return upload


async def _answers(
    connection: Connection[Engine], apply: Apply, deadline: Deadline
) -> list[Applied]:
    """One answer; of a dry run as many as it takes to tell everything."""
    answers = [await connection.ask(apply, Applied, deadline)]
    skip = 0
    while apply.dry_run and answers[-1].more and answers[-1].changes:
        skip += len(answers[-1].changes)
        apply = msgspec.structs.replace(apply, request=new_request_id(), skip=skip)
        answers.append(await connection.ask(apply, Applied, deadline))
    return answers


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
