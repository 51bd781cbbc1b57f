"""Every sentence of the chapter has its tests, and every test in tests/seed its sentence."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def table(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("seed_table", root / "docs" / "pages" / "seed.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_sentence_has_tests_that_exist(table: ModuleType) -> None:
    known = table.tests()
    for rows in table.sentences().values():
        for row in rows:
            assert row.topic, row
            assert row.tests, row
            assert [name for name in row.tests if name not in known] == [], row.topic


def test_each_test_stands_at_a_sentence(table: ModuleType) -> None:
    named = {name for rows in table.sentences().values() for row in rows for name in row.tests}
    assert set(table.tests()) - named == set()


def test_no_sentence_is_there_twice(table: ModuleType) -> None:
    topics = [row.topic for rows in table.sentences().values() for row in rows]
    assert len(topics) == len(set(topics))
    assert len(topics) >= 70
