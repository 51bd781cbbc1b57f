"""The tables of events.md, and the short one of protocol.md.

Owns: a row for each kind of event, a line for each rule. Must not know: who writes them. Invariant:
every kind is told, with fields that an event has and rules that have a sentence.
"""

import tomllib
from typing import Any

from pages import rules as contract
from pages.fields import fields_table
from pages.notes import REFERENCE, Notes, Tables, Unfit, table
from posthouse import records, states
from posthouse_cli.told import RULES

__all__ = ["OF", "TABLES", "kinds"]

# The fields that all rows of a class may have.
OF = {
    "registration": (
        *("registry", "slot", "generation", "name", "revision"),
        *("host", "incarnation", "token"),
    ),
    "host": ("registry", "host"),
    "cluster": ("registry",),
    "reader": ("registry", "slot", "generation"),
}
# Rules that no row can carry yet, and why.
NOT_YET = {"E-LEASE": "leases have no deadline yet"}


def kinds() -> dict[str, dict[str, Any]]:
    """What reference/events.toml says of each."""
    told: dict[str, dict[str, Any]] = tomllib.loads((REFERENCE / "events.toml").read_text())
    if list(told) != [str(kind) for kind in states.EventKind]:
        raise Unfit("events.toml must list every EventKind, in their order")
    known = set(records.Event.__struct_fields__)
    for kind, one in told.items():
        odd = {*one.get("fields", ()), *OF[one["of"]]} - known
        odd |= set(one.get("rules", ())) - set(RULES)
        if odd:
            raise Unfit(f"events.toml, [{kind}]: there is no {sorted(odd)}")
    return told


def in_short(_notes: Notes) -> str:
    return table(
        ("kind", "what has happened", "beside its class"),
        [
            (f'"{kind}"', one["when"], ", ".join(f"`{f}`" for f in one.get("fields", ())))
            for kind, one in kinds().items()
        ],
    )


def in_full(_notes: Notes) -> str:
    rows = [
        (
            f"`{kind}`",
            one["of"],
            one["when"],
            ", ".join(f"`{field}`" for field in one.get("fields", ())),
            ", ".join(f"[{rule}](#rules)" for rule in one.get("rules", ())),
        )
        for kind, one in kinds().items()
    ]
    return table(("kind", "a row of", "when", "fields", "rules"), rows)


def classes(_notes: Notes) -> str:
    rows = [(of, ", ".join(f"`{field}`" for field in fields)) for of, fields in OF.items()]
    return table(("a row of", "has"), rows)


def fields(notes: Notes) -> str:
    told = fields_table(records.Event, notes)
    return told.replace("](#", "](protocol.md#")


def rules(_notes: Notes) -> str:
    """Each rule that a row may carry; those of the contract with what PostgreSQL does."""
    carried = {rule for one in kinds().values() for rule in one.get("rules", ())}
    if carried | set(NOT_YET) != set(RULES):
        raise Unfit(f"rules on no row: {sorted(set(RULES) - carried - set(NOT_YET))}")
    known = contract.rules()
    rows = [
        (
            rule,
            text,
            known[rule].postgresql if rule in known else "nothing like it",
            NOT_YET.get(rule, ""),
        )
        for rule, text in RULES.items()
    ]
    return table(("rule", "what posthouse decides by it", "PostgreSQL", "not yet"), rows)


TABLES: Tables = {
    "events": in_short,
    "events_full": in_full,
    "events_classes": classes,
    "events_fields": fields,
    "events_rules": rules,
}
