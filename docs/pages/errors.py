"""The tables of errors.md, from the classes of errors.

Owns: a row for each code. Must not know: who raises them. Invariant: every public error is told,
and every code of a refusal has its note.
"""

from collections.abc import Callable

from pages.notes import Notes, Tables, Unfit, prose, table
from posthouse import errors

__all__ = ["TABLES"]


def codes_table(name: str) -> Callable[[Notes], str]:
    def make(notes: Notes) -> str:
        return table(("code", "meaning"), [(f'"{code}"', t) for code, t in notes.all(name)])

    return make


def errors_table(notes: Notes) -> str:
    rows = []
    local = dict(notes.all("errors"))
    for name in errors.__all__:
        cls = getattr(errors, name)
        if not isinstance(cls, type) or cls is errors.PosthouseError:
            continue
        parent = cls.__bases__[0].__name__
        made_by = local.pop(cls.code, "master")
        rows.append((f'"{cls.code}"', name, parent, made_by, str(cls.exit_status), prose(cls)))
    if local:
        raise Unfit(f"[errors] has codes that no error has: {sorted(local)}")
    rows.sort()
    return table(("code", "class", "is a", "made by", "exit status", ""), rows)


TABLES: Tables = {
    "refused": codes_table("refused"),
    "start_failed": codes_table("start_failed"),
    "errors": errors_table,
}
