"""The examples in the docstrings of the vocabulary run."""

import doctest
import importlib

import pytest

MODULES = (
    "config_keys",
    "errors",
    "ids",
    "paths",
    "records",
    "restart",
    "signals",
    "spec",
    "values",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    module = importlib.import_module(f"posthouse.{name}")
    failed, tried = doctest.testmod(module, raise_on_error=False)
    assert failed == 0
    assert tried > 0
