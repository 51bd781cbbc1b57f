"""The rules of the contract, and the test that holds posthouse to each.

Owns: reading tests/contract.toml, and finding tests by their names without importing them. Used by
docs/generate.py and by tests/house/test_contract_rules.py.
Invariant: a test speaks for a rule if, and only if, its name begins with the rule's id.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
_NAMED = re.compile(r"test((?:_[a-z]\d{1,2})+)(?:_|$)")

SECTIONS = {
    "F": "The record",
    "S": "Static registration",
    "D": "Registration, slots, handles",
    "H": "What a handle sees",
    "M": "The states of a registration",
    "E": "Exit codes",
    "T": "Restarts and the order of starts",
    "G": "Phases",
    "N": "Notification, shutdown, the end of the postmaster",
    "W": "Inside the worker",
    "L": "Latches",
    "C": "Crash domains",
    "K": "Shared memory",
}


class Rule(NamedTuple):
    """One line of the table."""

    verdict: str
    postgresql: str
    posthouse: str


class Named(NamedTuple):
    """A test whose name begins with ids of rules."""

    ids: tuple[str, ...]
    path: Path
    line: int
    name: str


def rules() -> dict[str, Rule]:
    """Every rule by its id, in the order of the contract."""
    table = tomllib.loads((TESTS / "contract.toml").read_text())
    return {name: Rule(*row) for section in SECTIONS for name, row in table[section].items()}


def ids_of(name: str) -> tuple[str, ...]:
    """The rules that a test's name begins with.

    >>> ids_of("test_m11_m12_t1_restart_once"), ids_of("test_each_exit")
    (('M11', 'M12', 'T1'), ())
    """
    match = _NAMED.match(name)
    return tuple(match[1].upper().split("_")[1:]) if match else ()


def named_tests() -> Iterator[Named]:
    """All tests that speak for rules, by file and line."""
    for path in sorted(TESTS.rglob("test_*.py")):
        found = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        for node in sorted(found, key=lambda node: node.lineno):
            if ids := ids_of(node.name):
                yield Named(ids, path.relative_to(ROOT), node.lineno, node.name)


def first_tests() -> dict[str, Named]:
    """The first test of each rule that has one."""
    first: dict[str, Named] = {}
    for test in named_tests():
        for rule in test.ids:
            first.setdefault(rule, test)
    return first
