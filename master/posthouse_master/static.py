"""CORE: static registrations: what the master's configuration and its libraries want to be there.

Owns: their order, what is told of those that are left out, what is ended because it is no longer
wanted. Must not know: files, processes (preload), what a plan is made of (declare).

Invariant: nothing that is wrong with a source or an entry stops the master or costs another one its
registration; and nothing is ended because something failed: only because it is no longer named by
a source that could be read.
"""

from typing import Final

from posthouse import limits
from posthouse.errors import PosthouseError
from posthouse_master.declare import Declaration, Declarations
from posthouse_master.effects import Configured, Room, StaticSource
from posthouse_master.registry import Registry
from posthouse_master.starter import Starter
from posthouse_master.turn import Turn

__all__ = ["CONFIG", "LIBRARY", "StaticRegistrations"]

CONFIG: Final = "config"
"""The source of the `[[worker]]` tables."""
LIBRARY: Final = "library:"
"""How the source of a library begins; its module follows."""


class StaticRegistrations:
    """Made once in a term, before anybody is served (S5)."""

    def __init__(self, registry: Registry, starter: Starter, declarations: Declarations) -> None:
        self._registry = registry
        self._starter = starter
        self._declarations = declarations
        self._told: list[str] = []
        self._untold = 0

    def __repr__(self) -> str:
        return f"StaticRegistrations({len(self._told) + self._untold} reports)"

    @property
    def reports(self) -> list[str]:
        """What is wrong with the configuration, for people; the log has all of it."""
        if not self._untold:
            return self._told[:]
        return [*self._told, f"and {self._untold} more, which are in the master's log"]

    def begin(self, turn: Turn, configured: Configured) -> None:
        if self._starter.room is not Room.AMPLE:
            self._report(turn, CONFIG, "", "nothing is registered from it: the disk is full")
            return
        for source in configured.sources:
            self._declare(turn, source)
        if configured.libraries_named:
            named = {source.source for source in configured.sources}
            for name in self._registry.sources():
                if name.startswith(LIBRARY) and name not in named:
                    self._declare(turn, StaticSource(source=name))

    def _declare(self, turn: Turn, source: StaticSource) -> None:
        if source.failed:
            self._report(turn, source.source, "", source.failed)
            return
        for bad in source.bad:
            self._report(turn, source.source, bad.name, bad.reason)
        declaration = Declaration(
            source=source.source,
            workers=[entry.worker for entry in source.entries],
            by=source.source,
            at_start=True,
            keep=frozenset(bad.name for bad in source.bad),
        )
        try:
            plan = self._declarations.plan(declaration)
        except PosthouseError as error:  # of the whole: far too many
            self._report(turn, source.source, "", str(error))
            return
        self._declarations.carry_out(turn, plan)
        for left in plan.left:
            where = source.entries[left.number].where
            self._report(turn, source.source, left.name, f"{where}: {left.error}")
        unnamed = "" in declaration.keep or any(not left.name for left in plan.left)
        if unnamed and self._registry.of_source(source.source):
            self._report(
                turn, source.source, "", "nothing of it is ended, as one of it has no name"
            )
        if plan.steps:
            turn.note(
                "declaration.applied",
                source=source.source,
                by=declaration.by,
                created=plan.count("create"),
                updated=plan.count("update"),
                pruned=plan.count("prune"),
            )

    def _report(self, turn: Turn, source: str, name: str, reason: str) -> None:
        of = f"{source}, worker {name!r}" if name and repr(name) not in reason else source
        # A library's own words among them: nothing that a terminal would obey, in one line.
        reason = "".join(c if c.isprintable() else " " for c in reason)
        turn.note("static.skipped", source=source, worker=name, reason=reason)
        if len(self._told) < limits.reports_max:
            self._told.append(f"skipped: {of}: {reason}"[: limits.report_chars_max])
        else:
            self._untold += 1
