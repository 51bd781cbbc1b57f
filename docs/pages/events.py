"""The table of the kinds of events.

Owns: a row for each kind. Must not know: who writes them. Invariant: every kind is told.
"""

from pages.notes import Notes, Tables, Unfit, table
from posthouse import states

__all__ = ["TABLES"]


def events_table(notes: Notes) -> str:
    given = dict(notes.all("events"))
    if list(given) != [str(kind) for kind in states.EventKind]:
        raise Unfit("[events] must list every EventKind, in their order")
    return table(("kind", "what has happened"), [(f'"{k}"', text) for k, text in given.items()])


TABLES: Tables = {"events": events_table}
