"""Declarations against what is durable: what an answer to APPLY says is so, and rollouts keep pace.

Owns: the newest declaration of each source, which processes a rollout has taken away, what proves
that one is back. Must not know: the master's own reckoning, beyond what it has made durable.

Invariants, by their numbers in docs/reliability.md:

- 22: when an APPLY is answered, its source has registered what it declares and, with prune,
  nothing else; content changes by one revision and only within its source;
- 23: a rollout takes no process away while `max_unavailable` of its source are on their way, and
  one is back only when its new process truly said ready or truly ran for limits.healthy_s.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from posthouse import limits
from posthouse.messages import KIND_OF, Applied, Apply, Declared
from posthouse.records import Event
from posthouse.spec import BackgroundWorker
from posthouse.states import EventKind, Every, StopReason
from posthouse_master.store.base import Life, RequestRow, SpecRow, StateRow
from posthouse_testing.sim.alone import ALONE
from posthouse_testing.sim.process import Process
from posthouse_testing.sim.world import Violation, World

if TYPE_CHECKING:
    from posthouse_testing.sim.ledger import Key, Ledger

__all__ = ["Declarations", "Newest"]

_CLOCKS = 0.005  # two clocks may differ by this share
_PLACED = (Life.STARTING, Life.RUNNING)


@dataclass(frozen=True, slots=True)
class Newest:
    """The declaration of a source that was answered last."""

    workers: tuple[Declared, ...]


@dataclass(slots=True, eq=False)
class Declarations:
    """Told of every operation by the ledger, in its order; raises Violation."""

    world: World
    ledger: "Ledger"
    # What clients have asked for, with all parts, by request id.
    asked: dict[bytes, tuple[Apply, tuple[Declared, ...]]] = field(default_factory=dict)
    newest: dict[str, Newest] = field(default_factory=dict)  # by source
    _away: dict["Key", None] = field(default_factory=dict)  # taken away last at the end
    _awaits_ready: dict["Key", None] = field(default_factory=dict)
    _pending: list[tuple["Key", int]] = field(default_factory=list)
    _alone: dict["Key", None] = field(default_factory=dict)  # its host may start it, or has

    def fail(self, number: int, text: str) -> NoReturn:
        raise Violation(number, text)

    # --- 22: the registrations of a source ---

    def revised(self, key: "Key", old: SpecRow, new: SpecRow) -> None:
        """A registration's row is written again."""
        if (new.revision, new.spec, new.group) == (old.revision, old.spec, old.group):
            return  # its rollout is to go faster or slower
        if new.revision != old.revision + 1:
            self.fail(22, f"{key} goes from revision {old.revision} to {new.revision}")
        if (new.source, new.name, new.order) != (old.source, old.name, old.order):
            self.fail(22, f"{key} was {old.source}/{old.name} and is {new.source}/{new.name}")

    def answered(self, row: RequestRow) -> None:
        """An answer is written down, in the transaction of what it tells."""
        if row.request not in self.asked or row.kind != KIND_OF[Applied]:
            return
        apply, workers = self.asked[row.request]
        if apply.dry_run:
            return
        self.newest[apply.source] = Newest(workers)
        self.world.figures["declarations carried out"] += 1
        live = self._live(apply.source)
        wanted, groups, each_host = _expanded(workers)
        for name, (spec, group) in wanted.items():
            key = live.pop(name, None)
            if key is None:
                if not self._finished(apply.source, name, spec):
                    self.fail(22, f"{apply.source} declares {name}, which is not registered")
            elif (self.ledger.wires[key], self.ledger.specs[key].group) != (spec, group):
                self.fail(22, f"{apply.source} declares {name} otherwise than {key} is")
        for name, key in live.items():
            row_ = self.ledger.specs[key]
            if row_.group in each_host:
                member = each_host[row_.group] | {"name": name, "host": name.partition(":")[2]}
                if self.ledger.wires[key] != member:
                    self.fail(22, f"{apply.source} declares {name} otherwise than {key} is")
            elif apply.prune or row_.group in groups:
                self.fail(22, f"{apply.source} no longer declares {name}, and {key} stays")

    def _live(self, source: str) -> dict[str, "Key"]:
        """Who is registered under it and not about to be unregistered."""
        ledger = self.ledger
        return {
            row.name: key
            for key, row in ledger.specs.items()
            if row.source == source
            and ledger.folds[key].life is not Life.RETIRED
            and not ledger.terminated(key)
        }

    def _finished(self, source: str, name: str, spec: Mapping[str, Any]) -> bool:
        """It has ended by itself with this very content; perhaps it is no longer listed since."""
        ledger = self.ledger
        specs = ledger.specs | ledger.gone
        return any(
            (row.source, row.name, ledger.wires[key]) == (source, name, spec)
            and ledger.folds[key].life is Life.RETIRED
            and not ledger.terminated(key)
            for key, row in specs.items()
        )

    # --- 23: who is away because of a rollout ---

    def event(self, key: "Key", row: Event) -> None:
        """A row of the log, before the fold has it."""
        ledger = self.ledger
        match row.kind:
            case EventKind.REVISED:
                unproven = ledger.states[key].proven_revision < ledger.specs[key].revision - 1
                if ledger.folds[key].ready or (unproven and key in self._awaits_ready):
                    self._awaits_ready[key] = None
                else:
                    self._awaits_ready.pop(key, None)
            case EventKind.STOP_REQUESTED if row.stop is StopReason.APPLY:
                self.world.figures["processes replaced by a rollout"] += 1
                asked_for = ledger.folds[key].life is Life.STARTING and key in self._alone
                if asked_for:  # it waited, and its host is asked whether it has gone on by itself
                    self._away.setdefault(key)
                elif key not in self._away:
                    self._away[key] = None
                    self._pending.append((key, ledger.specs[key].max_unavailable))
            case EventKind.STARTING if row.rule == ALONE:
                self._alone[key] = None
            case EventKind.STARTING if key in ledger.states:
                self._alone.pop(key, None)
                if ledger.specs[key].revision > ledger.states[key].proven_revision:
                    self._away.setdefault(key)

    def state(self, key: "Key", old: StateRow | None, new: StateRow) -> None:
        """A state is written, the last of the turn that changed it."""
        if old is not None and new.proven_revision > old.proven_revision:
            self._proven(key, old, new)
        if old is not None and new.token == old.token and new.ran_revision > old.ran_revision:
            self._away.setdefault(key)  # its START did not arrive, and goes out with new content
        held = new.life is Life.HELD or (old is not None and old.life is Life.HELD)
        if held and key in self._away:  # an operator has it, so others do not wait for it
            del self._away[key]
            self._away[key] = None
        if new.life is Life.RETIRED or new.proven_revision >= self.ledger.specs[key].revision:
            self._away.pop(key, None)

    def dropped(self, key: "Key") -> None:
        """It was retired in this turn, and is not even listed."""
        self._away.pop(key, None)

    def _proven(self, key: "Key", old: StateRow, new: StateRow) -> None:
        """Nobody waits for this revision any more: rightly so?"""
        revision = new.proven_revision
        if old.life not in _PLACED and old.proven_revision == revision - 1:
            return  # there was no process that could have been taken away
        for run in self.ledger.runs[key].values():
            if run.revision < revision or not run.started:
                continue
            if run.ready:
                return
            process = self.ledger.processes.get(run.token)
            ended_s = self.world.now_s if run.ended_s is None else run.ended_s
            ran_s = ended_s - (process.born_s if process is not None else 0.0)
            if key not in self._awaits_ready and ran_s >= limits.healthy_s * (1 - _CLOCKS):
                return
        self.fail(23, f"{key} passes for back with revision {revision}: no process of it proved it")

    def whole(self) -> None:
        """The transaction is whole: each process that was taken away, could be."""
        for key, most in self._pending:
            if key not in self._away:
                continue
            source = self.ledger.specs[key].source
            others: list[Key] = []
            for other in self._away:
                if other == key:
                    break
                row = self.ledger.specs[other]
                if row.source == source and self.ledger.states[other].life is not Life.HELD:
                    others.append(other)
            if len(others) >= most:
                self.fail(23, f"{key} of {source} is taken away, at most {most}; so are {others}")
        self._pending.clear()

    # --- the end ---

    def unmet(
        self, living: Mapping["Key", Process], no_room: Callable[["Key"], bool], hosts: list[str]
    ) -> list[str]:
        """What does not run as the newest declarations want it. `hosts`: where each-host members
        must be. A rollout waits for ever for one whose place somebody else has."""
        ledger = self.ledger
        stuck = {
            ledger.specs[key].source
            for key, state in ledger.states.items()
            if state.life in (Life.SUBMITTED, Life.WAITING) and no_room(key)
        }
        waits = [
            f"{key} runs with older content than revision {ledger.specs[key].revision}"
            for key, process in living.items()
            if key in ledger.specs
            and ledger.specs[key].source not in stuck
            and process.spec != ledger.wires[key]
        ]
        names = {wire["name"] for wire in ledger.wires.values()}
        for group in ledger.groups.values():
            if group.replicas == -1:
                members = [f"{group.name}:{host}" for host in hosts]
                waits += [f"{member} is missing" for member in members if member not in names]
        return waits


def _expanded(
    workers: tuple[Declared, ...],
) -> tuple[dict[str, tuple[dict[str, Any], str]], set[str], dict[str, dict[str, Any]]]:
    """Names with content and group; groups; records of groups with a member on each host."""
    wanted: dict[str, tuple[dict[str, Any], str]] = {}
    groups: set[str] = set()
    each_host: dict[str, dict[str, Any]] = {}
    for entry in workers:
        # As it is written down: unpacked from its own packed form.
        spec = _written(entry.spec)
        name = spec["name"]
        if entry.replicas is None:
            wanted[name] = (spec, "")
        elif entry.replicas == Every.HOST:
            each_host[name] = spec
        else:
            groups.add(name)
            for number in range(int(entry.replicas)):
                member = f"{name}:{number}"
                wanted[member] = (spec | {"name": member}, name)
    return wanted, groups, each_host


def _written(spec: Mapping[str, Any]) -> dict[str, Any]:
    wire = BackgroundWorker.from_wire(dict(spec)).to_wire()
    found: dict[str, Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(wire))
    return found
