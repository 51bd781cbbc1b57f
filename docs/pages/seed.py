"""The sentences of PostgreSQL's chapter, and the tests that hold posthouse to each.

Owns: reading tests/seed.toml, finding the tests in tests/seed without importing them, the tables.
Used by tests/house/test_seed_table.py too, so it imports nothing of its neighbours.
Invariant: every test of that folder stands at a sentence, and every sentence has a test.
"""

import ast
import tomllib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "seed"
LIST = ROOT / "tests" / "seed.toml"


class Sentence(NamedTuple):
    """One line of the table."""

    topic: str
    tests: tuple[str, ...]
    difference: str


def sentences() -> dict[str, list[Sentence]]:
    """By the titles of their paragraphs, in the chapter's order."""
    return {
        part["title"]: [
            Sentence(topic, tuple(tests.split()), difference)
            for topic, tests, difference in part["sentences"]
        ]
        for part in tomllib.loads(LIST.read_text())["topic"]
    }


def tests() -> dict[str, Path]:
    """The tests of the folder, and the file that each is in."""
    found = {}
    for path in sorted(FOLDER.glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found[node.name] = path.relative_to(ROOT)
    return found


def page(_notes: object) -> str:
    """A table for each paragraph. Raises KeyError for a test that there is not."""
    where = tests()
    parts = []
    for title, rows in sentences().items():
        lines = [f"## {title}", "", "| sentence | test | result |", "| --- | --- | --- |"]
        for row in rows:
            links = ", ".join(f"[{name}](../../{where[name]})" for name in row.tests)
            result = f"differs: {row.difference}" if row.difference else "as written"
            lines.append(f"| {row.topic} | {links} | {result} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


TABLES = {"seed": page}
