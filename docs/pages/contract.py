"""The tables of rules.md, from-postgresql.md and conformance.md.

Owns: how rules, names and cases are told. Must not know: what they say. Invariant: each rule
stands at one name, each name exists, each case tests a section that there is.
"""

import dataclasses
import re
from typing import Any

import posthouse.shmem
from pages import rules as contract
from pages.notes import REFERENCE, Notes, Tables, Unfit, table
from posthouse import config_keys, spi
from posthouse.spec import BackgroundWorker
from posthouse_testing.conformance import CASES

__all__ = ["TABLES"]


def conformance_table(_notes: Notes) -> str:
    """Each case with a link to the section that it tests."""
    headings = re.findall(r"^#+ (.*)$", (REFERENCE / "protocol.in.md").read_text(), re.MULTILINE)
    rows = []
    for one in CASES.values():
        if one.section not in headings:
            raise Unfit(f"case {one.name}: protocol.in.md has no section {one.section!r}")
        anchor = re.sub(r"[^\w -]", "", one.section.lower()).replace(" ", "-")
        rows.append((one.name, f"[{one.section}](protocol.md#{anchor})", one.statement))
    return table(("case", "section", "what holds"), rows)


def rules_text(_notes: Notes) -> str:
    """One table a section; of several tests for a rule the first is named."""
    tests = contract.first_tests()
    parts = []
    for letter, title in contract.SECTIONS.items():
        rows = []
        for name, rule in contract.rules().items():
            if name[0] != letter:
                continue
            test = tests.get(name)
            link = f"[{test.name}](../../{test.path})" if test else ""
            rows.append((name, rule.postgresql, rule.verdict, rule.posthouse, link))
        head = ("id", "PostgreSQL", "", "posthouse", "test")
        parts.append(f"## {title}\n\n{table(head, rows)}\n")
    return "\n".join(parts)


def ours(dotted: str) -> None:
    """Raises Unfit for a name that there is not, or that nobody is given."""
    if dotted in (
        "[[worker]]",
        *(f"[{name}.NAME]" for name in config_keys.KEYS),
        posthouse.shmem.__name__.partition(".")[2],
        *(key.name for key in config_keys.KEYS["master"]),
    ):
        return
    if dotted.startswith("worker.spi.") and hasattr(spi.Session, dotted.split(".")[2]):
        return
    if (contract.ROOT / dotted).exists():
        return
    owner, _, rest = dotted.partition(".")
    found: Any = getattr(posthouse, owner, None)
    fields = {field.name for field in dataclasses.fields(BackgroundWorker)}
    if found is BackgroundWorker and rest in fields:
        return
    if found is None or (rest and not hasattr(found, rest)):
        raise Unfit(f"posthouse has no {dotted}")


def from_postgresql(_notes: Notes) -> str:
    """Each name with ours, and the verdicts of the rules that they are under."""
    known = contract.rules()
    placed = [rule for _, under in contract.NAMES.values() for rule in under.split()]
    if sorted(placed) != sorted(known):
        odd = set(placed) ^ set(known) or {r for r in placed if placed.count(r) > 1}
        raise Unfit(f"rules that stand at no name, or at two: {sorted(odd)}")
    rows = []
    for theirs, (name, under) in contract.NAMES.items():
        ours(name)
        by_verdict = [
            " ".join(rule for rule in under.split() if known[rule].verdict == verdict)
            for verdict in ("kept", "healed", "not applicable")
        ]
        rows.append((f"`{theirs}`", f"`{name}`", *by_verdict))
    return table(("PostgreSQL", "posthouse", "kept", "healed", "not applicable"), rows)


TABLES: Tables = {
    "conformance": conformance_table,
    "rules": rules_text,
    "from_postgresql": from_postgresql,
}
