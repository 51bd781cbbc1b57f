"""The tables of errors.md, from the classes of errors.

Owns: a row for each code. Must not know: who raises them. Invariant: every error is told, and what
to do about it; every code of a refusal has its note.
"""

from collections.abc import Callable

from pages.notes import Notes, Tables, Unfit, prose, table
from posthouse import errors
from posthouse.errors import PosthouseError
from posthouse.shmem import wrong

__all__ = ["TABLES"]


def codes_table(name: str) -> Callable[[Notes], str]:
    def make(notes: Notes) -> str:
        return table(("code", "meaning"), [(f'"{code}"', t) for code, t in notes.all(name)])

    return make


def every_error() -> list[type[PosthouseError]]:
    """All of the tree but its root; shared memory has some of its own."""
    found = [getattr(errors, name) for name in errors.__all__]
    found += [getattr(wrong, name) for name in dir(wrong)]
    classes = [cls for cls in found if isinstance(cls, type) and issubclass(cls, PosthouseError)]
    return [cls for cls in dict.fromkeys(classes) if cls is not PosthouseError]


def errors_table(notes: Notes) -> str:
    rows = []
    local = dict(notes.all("errors"))
    for cls in every_error():
        made_by = local.pop(cls.code, "master")
        of = cls.__bases__[0].__name__
        advice = notes.of("advice", cls.code)
        code = f'"{cls.code}"'
        rows.append((code, cls.__name__, of, made_by, str(cls.exit_status), prose(cls), advice))
    if local:
        raise Unfit(f"[errors] has codes that no error has: {sorted(local)}")
    rows.sort()
    head = ("code", "class", "is a", "made by", "exit status", "when", "what to do")
    return table(head, rows)


TABLES: Tables = {
    "refused": codes_table("refused"),
    "start_failed": codes_table("start_failed"),
    "errors": errors_table,
}
