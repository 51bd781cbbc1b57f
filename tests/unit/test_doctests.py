"""The examples in docstrings run, in every package."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOTS = {"protocol": "posthouse", "agent": "posthouse_agent", "master": "posthouse_master"}
ROOTS |= {"testing": "posthouse_testing", "cli": "posthouse_cli"}


def _with_examples() -> list[str]:
    found = []
    for folder, package in ROOTS.items():
        for path in sorted((ROOT / folder / package).rglob("*.py")):
            if ">>> " in path.read_text():
                parts = path.relative_to(ROOT / folder).with_suffix("").parts
                found.append(".".join(part for part in parts if part != "__init__"))
    return found


@pytest.mark.parametrize("name", _with_examples())
def test_examples_run(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name), raise_on_error=False)
    assert failed == 0
    assert tried > 0


def test_the_vocabulary_has_examples() -> None:
    expected = {"errors", "ids", "paths", "records", "restart", "signals", "spec", "values"}
    assert {f"posthouse.{name}" for name in expected} <= set(_with_examples())
