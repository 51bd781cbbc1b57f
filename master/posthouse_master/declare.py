"""CORE: a declaration - all that one source wants to be registered - against what is registered.

Owns: the plan (create, update, prune, finished, unchanged) and its carrying out. Must not know:
sessions, frames, when a process is replaced (rollout).

Invariant: a plan is refused as a whole before anything has changed, or carried out as a whole in
one turn, and so in one transaction; what another source registered is never touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from posthouse import limits
from posthouse.errors import InvalidField, PosthouseError, RefusedError
from posthouse.messages import Declared
from posthouse.rules import refusal
from posthouse.spec import BackgroundWorker
from posthouse.states import StopReason
from posthouse_master.admit import Admit
from posthouse_master.groups import Group, Groups
from posthouse_master.lifecycle import Lifecycle
from posthouse_master.registry import Registration, Registry
from posthouse_master.turn import Turn

__all__ = ["Declaration", "Declarations", "Left", "Plan", "Step"]

Action = Literal["create", "update", "prune", "finished"]

_pack: Final = msgspec.msgpack.Encoder().encode
_unpack: Final = msgspec.msgpack.Decoder(dict[str, Any]).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What a source wants. `by`: on whose word. `at_start`: the master's own configuration, as it
    begins: hosts may be unknown yet, what somebody terminated is not brought back, and what breaks
    a rule is left out instead of costing the rest. `keep`: names that are not declared, and that
    are not ended for it; with "" among them nothing is, as it could be any."""

    source: str
    workers: Sequence[Declared]
    by: str
    prune: bool = True
    max_unavailable: int = 1
    at_start: bool = False
    keep: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What is left out: an entry of the declaration by its number, or a member of its group."""

    number: int
    name: str
    error: PosthouseError


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    number: int
    spec: BackgroundWorker
    packed: bytes
    group: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is done about one name."""

    name: str
    action: Action
    registration: Registration | None = None
    wanted: _Wanted | None = None
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`steps` are told in this order; `unchanged` names need none."""

    declaration: Declaration
    steps: tuple[Step, ...]
    groups: tuple[Group, ...]
    unchanged: int
    left: tuple[Left, ...] = ()

    def count(self, action: Action) -> int:
        return sum(step.action == action for step in self.steps)


class Declarations:
    """Makes plans, and carries them out."""

    def __init__(
        self, registry: Registry, lifecycle: Lifecycle, groups: Groups, admit: Admit
    ) -> None:
        self._registry = registry
        self._lifecycle = lifecycle
        self._groups = groups
        self._admit = admit

    def plan(self, declaration: Declaration) -> Plan:
        """Raises InvalidField (with the worker's name), AlreadyRegistered, NoFreeSlot, UnknownHost,
        RefusedError."""
        if len(declaration.workers) > limits.declaration_workers_max:
            raise RefusedError(
                f"{len(declaration.workers)} workers are declared: must be at most "
                f"{limits.declaration_workers_max}",
                hint="declare them under several sources",
            )
        wanted: dict[str, _Wanted] = {}
        groups: list[Group] = []
        left: list[Left] = []
        for number, entry in enumerate(declaration.workers):
            try:
                self._expand(declaration, number, entry, wanted, groups)
            except PosthouseError as error:
                _leave(declaration, left, number, str(entry.spec.get("name", "")), error)
        if len(wanted) > limits.declaration_workers_max:
            raise RefusedError(
                f"the declaration comes to {len(wanted)} workers with all replicas: "
                f"must be at most {limits.declaration_workers_max}",
                hint="declare them under several sources",
            )
        unchanged = 0
        steps: list[Step] = []
        for name, each in wanted.items():
            try:
                step = self._step(declaration, name, each)
            except PosthouseError as error:
                _leave(declaration, left, each.number, name, error)
                continue
            if step is None:
                unchanged += 1
            else:
                steps.append(step)
        steps = self._with_slots(declaration, steps, left)
        keep = declaration.keep | {each.name for each in left}
        prunes = self._prunes(declaration, wanted, {group.name for group in groups}, keep)
        return Plan(
            declaration=declaration,
            steps=(*prunes, *steps),
            groups=tuple(groups),
            unchanged=unchanged,
            left=tuple(left),
        )

    def carry_out(self, turn: Turn, plan: Plan) -> dict[str, Registration]:
        """In one turn. The registrations that were created, by name."""
        declaration = plan.declaration
        made: dict[str, Registration] = {}
        for group in plan.groups:
            self._groups.put(turn, group)
        # As it begins nobody is there yet to be started anywhere, so their order is as declared.
        steps = plan.steps if declaration.at_start else sorted(plan.steps, key=_turn_of)
        for step in steps:
            if step.action == "prune" and step.registration is not None:
                self._lifecycle.terminate(turn, step.registration, declaration.by)
            elif step.action == "update" and step.registration is not None and step.wanted:
                step.registration.max_unavailable = declaration.max_unavailable
                step.registration.group = step.wanted.group
                self._lifecycle.revise(
                    turn,
                    step.registration,
                    step.wanted.spec,
                    step.wanted.packed,
                    declaration.by,
                )
            elif step.action == "create" and step.wanted is not None:
                made[step.name], _ = self._lifecycle.register(
                    turn,
                    step.wanted.spec,
                    step.wanted.packed,
                    declaration.by,
                    declaration.source,
                    group=step.wanted.group,
                    max_unavailable=declaration.max_unavailable,
                )
        for name in self._ended_groups(plan):
            self._groups.drop(turn, name)
        for registration in self._registry.of_source(declaration.source).values():
            if registration.revision != registration.proven_revision:
                self._lifecycle.pace(turn, registration, declaration.max_unavailable)
        return made

    # --- the parts of a plan ---

    def _expand(
        self,
        declaration: Declaration,
        number: int,
        entry: Declared,
        wanted: dict[str, _Wanted],
        groups: list[Group],
    ) -> None:
        name = str(entry.spec.get("name", ""))
        try:
            spec = BackgroundWorker.from_checked(entry.spec).check(static=declaration.at_start)
            self._admit.offered(spec)
            if not spec.unique:
                raise refusal("unique", False, "True: a declaration knows workers by their names")
            group, members = None, {spec.name: spec}
            if entry.replicas is not None:
                group = self._groups.wanted(
                    spec,
                    entry.replicas,
                    source=declaration.source,
                    by=declaration.by,
                    max_unavailable=declaration.max_unavailable,
                )
                members = self._groups.members(group)
        except InvalidField as error:
            raise InvalidField(
                f"worker {name!r}: {error.message}", hint=error.hint, **error.detail, worker=name
            ) from None
        for member in members:
            if member in wanted:
                raise refusal("name", member, "declared once")
        for member, made in members.items():
            wanted[member] = _Wanted(
                number=number,
                spec=made,
                packed=_pack(made.to_wire()),
                group="" if group is None else group.name,
            )
        if group is not None:
            groups.append(group)

    def _step(self, declaration: Declaration, name: str, wanted: _Wanted) -> Step | None:
        """What is to be done about a name that is wanted; None if nothing."""
        holders = self._registry.all_named(name)
        if not holders:
            ended = self._registry.retired_named(name)
            if ended is not None and self._stays_ended(declaration, ended, wanted):
                return Step(name=name, action="finished", registration=ended)
            return Step(name=name, action="create", wanted=wanted)
        (holder, *others) = holders
        if others or holder.source != declaration.source:
            raise self._admit.taken(holder)
        if holder.stopping is StopReason.TERMINATE:
            if self._stays_ended(declaration, holder, wanted):
                return Step(name=name, action="finished", registration=holder)
            raise self._admit.ending(holder)
        same = holder.packed == wanted.packed and holder.group == wanted.group
        if same and not holder.ahead:
            return None
        return Step(
            name=name,
            action="update",
            registration=holder,
            wanted=wanted,
            fields=_differing(holder.packed, wanted.packed),
        )

    def _with_slots(
        self, declaration: Declaration, steps: list[Step], left: list[Left]
    ) -> list[Step]:
        """The steps for which there are slots: all of them, or else those that come first."""
        claims = [
            (step, step.wanted, step.action == "create")
            for step in steps
            if step.wanted and (step.action == "create" or _moves(step))
        ]
        if not declaration.at_start:
            self._admit.slots(
                [wanted.spec for _, wanted, new in claims if new],
                moved=[wanted.spec for _, wanted, new in claims if not new],
            )
            return steps
        refused = self._admit.surplus([(wanted.spec, new) for _, wanted, new in claims])
        for at, error in refused.items():
            step, wanted, _ = claims[at]
            _leave(declaration, left, wanted.number, step.name, error)
        without = {claims[at][0].name for at in refused}
        return [step for step in steps if step.name not in without]

    def _stays_ended(self, declaration: Declaration, ended: Registration, wanted: _Wanted) -> bool:
        """Whether it has done what is asked for. What somebody terminated comes back at somebody's
        word, and never because a master begins; what a declaration has ended, as it no longer
        named it, comes back with being named again."""
        same = ended.source == declaration.source and ended.packed == wanted.packed
        by_somebody = ended.stop_by not in ("", declaration.by)
        return same and (not ended.stop_by or (declaration.at_start and by_somebody))

    def _prunes(
        self,
        declaration: Declaration,
        wanted: dict[str, _Wanted],
        groups: set[str],
        keep: frozenset[str],
    ) -> list[Step]:
        """Those of the source that are no longer wanted. A group always has the members that it is
        declared with; one on each host keeps those on hosts that fit no longer."""
        return [
            Step(name=registration.name, action="prune", registration=registration)
            for registration in self._registry.of_source(declaration.source).values()
            if "" not in keep
            and registration.stopping is not StopReason.TERMINATE
            and registration.name not in wanted
            and registration.name not in keep
            and (registration.group or registration.name) not in keep
            and (declaration.prune or registration.group in groups)
            and not (registration.group in groups and self._groups.is_each_host(registration.group))
        ]

    def _ended_groups(self, plan: Plan) -> list[str]:
        kept = {group.name for group in plan.groups} | plan.declaration.keep
        kept |= {each.name for each in plan.left}
        if not plan.declaration.prune or "" in kept:
            return []
        return [
            name for name in self._groups.of_source(plan.declaration.source) if name not in kept
        ]


def _moves(step: Step) -> bool:
    """It comes to name a host on which it has no slot yet."""
    if step.registration is None or step.wanted is None or step.wanted.spec.host is None:
        return False
    there = step.registration.host if step.registration.placed else ""
    return step.wanted.spec.host not in (step.registration.pinned, there)


def _turn_of(step: Step) -> int:
    """What goes away goes first. Who names a host takes the slot there that was found for it
    before one that may run anywhere can."""
    if step.action == "prune":
        return 0
    return 1 if step.wanted is not None and step.wanted.spec.host is not None else 2


def _leave(
    declaration: Declaration, left: list[Left], number: int, name: str, error: PosthouseError
) -> None:
    """A declaration is refused for it, or goes on without it."""
    if not declaration.at_start:
        raise error
    left.append(Left(number=number, name=name, error=error))


def _differing(before: bytes, after: bytes) -> tuple[str, ...]:
    """The names of the fields that differ; never what is in them, which may be secret."""
    old, new = _unpack(before), _unpack(after)
    return tuple(sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name)))
