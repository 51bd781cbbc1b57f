"""CORE: what clients ask about many workers at once: APPLY, its parts, REGISTER_GROUP.

Owns: the parts that have arrived of each session's declaration, and the answers. Must not know:
what a plan is made of (declare), how a group grows (groups).
Invariant: parts are bounded, belong to one session and go with it; they have no effect before the
APPLY that names them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from posthouse import limits
from posthouse.errors import RefusedError, ShuttingDown, UploadLost
from posthouse.messages import (
    Applied,
    Apply,
    Change,
    Declared,
    DeclarePart,
    Done,
    GroupRegistered,
    RegisterGroup,
)
from posthouse.records import HandleRef
from posthouse.spec import BackgroundWorker
from posthouse.states import Phase
from posthouse_master.admit import Admit
from posthouse_master.declare import Declaration, Declarations, Plan
from posthouse_master.groups import Groups
from posthouse_master.registry import Registration, Registry
from posthouse_master.sessions import Session
from posthouse_master.starter import Starter
from posthouse_master.turn import Turn

__all__ = ["Applies"]

_size_of: Final = msgspec.msgpack.Encoder().encode


@dataclass(slots=True)
class _Upload:
    identity: bytes
    parts: int = 0
    size: int = 0
    workers: list[Declared] = field(default_factory=list)


class Applies:
    """Each handler returns its answer or raises a PosthouseError that becomes FAILED."""

    def __init__(
        self,
        registry: Registry,
        starter: Starter,
        groups: Groups,
        declarations: Declarations,
        admit: Admit,
    ) -> None:
        self._registry = registry
        self._starter = starter
        self._groups = groups
        self._declarations = declarations
        self._admit = admit
        self._uploads: dict[bytes, _Upload] = {}  # by session

    def __repr__(self) -> str:
        return f"Applies({len(self._uploads)} uploads)"

    def session_over(self, session: Session) -> None:
        """What it has sent of a declaration is gone."""
        self._uploads.pop(session.identity, None)

    def part(self, _turn: Turn, session: Session, message: DeclarePart) -> Done:
        if message.structs:
            raise RefusedError(
                "structures can be requested only in posthouse_init(registry) of a library",
                hint="shmem.init_struct() makes one at any other time",
            )
        held = self._uploads.get(session.identity)
        if held is None or (message.part == 0 and held.identity != message.upload):
            if message.part != 0:
                raise _lost()
            if held is None and len(self._uploads) >= limits.declarations_held_max:
                raise RefusedError(
                    f"{limits.declarations_held_max} declarations are being sent already",
                    hint="try again in a moment",
                )
            held = self._uploads[session.identity] = _Upload(message.upload)
        if held.identity != message.upload:
            raise _lost()
        if message.part < held.parts:
            return Done(request=message.request, changed=False)  # a retry
        if message.part > held.parts:
            raise _lost()
        size = held.size + len(_size_of(message.workers))
        count = len(held.workers) + len(message.workers)
        if size > limits.declaration_bytes_max or count > limits.declaration_workers_max:
            del self._uploads[session.identity]
            raise RefusedError(
                f"the declaration has more than {limits.declaration_workers_max} workers or "
                f"{limits.declaration_bytes_max} bytes",
                hint="declare them under several sources",
            )
        held.parts, held.size = held.parts + 1, size
        held.workers += message.workers
        return Done(request=message.request)

    def apply(self, turn: Turn, session: Session, message: Apply) -> Applied:
        self._admit.source(message.source)
        self._open()
        plan = self._declarations.plan(
            Declaration(
                source=message.source,
                workers=self._declared(session, message),
                by=session.principal,
                prune=message.prune,
                max_unavailable=message.max_unavailable,
            )
        )
        if message.dry_run:
            return self._answer(message, plan, {})
        made = self._declarations.carry_out(turn, plan)
        turn.note(
            "declaration.applied",
            source=message.source,
            by=session.principal,
            created=plan.count("create"),
            updated=plan.count("update"),
            pruned=plan.count("prune"),
        )
        if message.upload:
            self.session_over(session)
        return self._answer(message, plan, made)

    def register_group(
        self, turn: Turn, session: Session, message: RegisterGroup
    ) -> GroupRegistered:
        spec = BackgroundWorker.from_wire(message.spec)
        self._open()
        group = self._groups.wanted(spec, message.replicas, source="", by=session.principal)
        members = self._groups.register(turn, group)
        return GroupRegistered(request=message.request, name=group.name, members=members)

    def _open(self) -> None:
        if self._starter.phase is Phase.STOPPING:
            raise ShuttingDown("the cluster is shutting down", hint="ask again when it is up")

    def _declared(self, session: Session, message: Apply) -> Sequence[Declared]:
        if not message.upload:
            return message.workers
        held = self._uploads.get(session.identity)
        if held is None or held.identity != message.upload:
            raise _lost()
        return [*held.workers, *message.workers]

    def _answer(self, message: Apply, plan: Plan, made: dict[str, Registration]) -> Applied:
        changes: list[Change] = []
        size = 0
        for step in plan.steps[message.skip :]:
            registration = step.registration or made.get(step.name)
            change = Change(
                name=step.name,
                action=step.action,
                handle=None if registration is None else self._handle(registration),
                fields=list(step.fields),
            )
            size += len(_size_of(change))
            if size > limits.page_bytes_max or len(changes) == limits.page_items_max:
                break
            changes.append(change)
        return Applied(
            request=message.request,
            created=plan.count("create"),
            updated=plan.count("update"),
            pruned=plan.count("prune"),
            finished=plan.count("finished"),
            unchanged=plan.unchanged,
            changes=changes,
            more=message.skip + len(changes) < len(plan.steps),
        )

    def _handle(self, registration: Registration) -> HandleRef:
        return HandleRef(
            registry=self._registry.identity,
            slot=registration.slot,
            generation=registration.generation,
        )


def _lost() -> UploadLost:
    return UploadLost(
        "the parts of this declaration are not all here: they belong to one session, in order",
        hint="send it again from part 0",
    )
