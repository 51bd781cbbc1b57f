"""Every rule of the contract that posthouse keeps or heals has a test that is named after it."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

VERDICTS = {"kept", "healed", "not applicable"}
COUNTS = {
    "F": 20,
    "S": 6,
    "D": 15,
    "H": 11,
    "M": 16,
    "E": 9,
    "T": 10,
    "G": 7,
    "N": 15,
    "W": 16,
    "L": 10,
    "C": 9,
    "K": 20,
    "Q": 34,
}


@pytest.fixture(scope="module")
def contract(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "contract_rules", root / "docs" / "pages" / "rules.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_whole(contract: ModuleType) -> None:
    expected = [f"{letter}{n}" for letter, count in COUNTS.items() for n in range(1, count + 1)]
    assert list(contract.rules()) == expected
    for name, rule in contract.rules().items():
        assert rule.verdict in VERDICTS, name
        assert rule.postgresql.strip(), name
        assert rule.posthouse.strip(), name


def test_each_rule_has_its_test(contract: ModuleType) -> None:
    tested = contract.first_tests()
    untested = {
        name
        for name, rule in contract.rules().items()
        if rule.verdict != "not applicable" and name not in tested
    }
    assert not untested, sorted(untested)


def test_no_test_names_a_rule_that_there_is_not(contract: ModuleType) -> None:
    known = set(contract.rules())
    strays = [
        f"{test.path}:{test.line} {test.name}"
        for test in contract.named_tests()
        if not known.issuperset(test.ids)
    ]
    assert strays == []


def test_q34_what_upstream_does_not_test_is_tested(contract: ModuleType) -> None:
    """Restart delay, exit 0, order of starts, notification of who is gone or not connected, the end
    before the start, a failing fork, a storm of crashes, registering during a smart stop."""
    assert {"T1", "E1", "T5", "T6", "N2", "M4", "M6", "N4", "T3", "N5"} <= set(
        contract.first_tests()
    )


def test_what_does_not_apply_is_not_tested(contract: ModuleType) -> None:
    """Either the table or the test would not be true."""
    rules = contract.rules()
    tested = contract.first_tests()
    assert not [n for n in tested if n in rules and rules[n].verdict == "not applicable"]


def test_ids_are_read_from_names(contract: ModuleType) -> None:
    assert contract.ids_of("test_m3_m4_terminate_before_it_ran") == ("M3", "M4")
    assert contract.ids_of("test_n15_nothing") == ("N15",)
    assert contract.ids_of("test_100_loops") == ()
    assert contract.ids_of("test_each_exit_class") == ()
