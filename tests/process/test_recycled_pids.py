"""Never a signal to a pid that is not ours: here used pids are given to strangers on purpose."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.process import recycled

ROOT = Path(__file__).parents[2]
SPACE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


@pytest.fixture(scope="module")
def space():
    """The command that runs another one as pid 1 of a namespace."""
    if shutil.which(SPACE[0]) is None or subprocess.run([*SPACE, "true"]).returncode != 0:
        pytest.skip("no pid namespaces here")
    return SPACE


@pytest.mark.parametrize("case", recycled.CASES)
def test_inv15_a_stranger_with_a_used_pid_is_not_signalled(space, case):
    done = subprocess.run(
        [*space, sys.executable, "-m", "tests.process.recycled", case],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["pid"] > 1
    assert found["unharmed"]
