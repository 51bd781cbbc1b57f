"""The scripts behind `make kills` and `make churn`, for a moment: they run and find no problem."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("script", [["kills.py", "30", "--seed", "7"], ["churn.py", "1000"]])
def test_soak(script: list[str]) -> None:
    if script[0] == "kills.py" and os.geteuid():
        pytest.skip("network namespaces need root")
    argv = [sys.executable, str(HERE / script[0]), *script[1:]]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    assert "no problem" in ran.stdout
