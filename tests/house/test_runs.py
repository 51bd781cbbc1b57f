"""What the conftest of all tests promises of a run."""

import subprocess
import sys
from pathlib import Path

import pytest


def test_an_interpreter_finds_compiled_what_another_one_has_imported(
    pytestconfig: pytest.Config,
) -> None:
    """Whatever PYTHONDONTWRITEBYTECODE says where the tests are begun."""
    if not hasattr(pytestconfig, "cache"):
        pytest.skip("bytecode is kept in pytest's cache, and this run has none")
    program = "import posthouse.ids; print(posthouse.ids.__cached__)"
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(found).is_file(), found
