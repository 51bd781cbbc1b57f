"""How a run of the tests is carried out: where its bytecode is, and which process has which tests.

Knows nothing of what is tested. Invariant: tests that share something run in one process, in their
order: all of a file, but for the files in APART, and those in TOGETHER.
"""

import os
import shutil
import sys
import tempfile
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

# Files of long tests that share nothing with each other: each test goes where there is room. Units
# of one test are given out last, when whole files would leave all processes but one with nothing.
APART = (
    "tests/docs/test_pages.py",
    "tests/master/test_restored_at_random.py",
    "tests/sim/test_determinism.py",
    "tests/sim/test_mutants.py",
)
# The one reads what the other has kept; by itself it plays the whole demo again.
TOGETHER = {"tests/docs/test_readme.py": "tests/demo/test_demo.py"}


def pytest_configure(config: pytest.Config) -> None:
    """A run begins a thousand interpreters. Under PYTHONDONTWRITEBYTECODE, which images of
    containers set, each of them would compile all that it imports: half of a daemon's start. So
    would each process of xdist all tests. What they compile is kept where pytest keeps its own."""
    cache = getattr(config, "cache", None)
    if sys.dont_write_bytecode and cache is not None:
        kept = cache.mkdir("bytecode")
        # Of the modules that tests write no path comes again.
        shutil.rmtree(kept / tempfile.gettempdir().lstrip("/"), ignore_errors=True)
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(kept)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix


class ByFile(LoadFileScheduling):
    """`--dist loadfile`, but for what is apart or together. Only one test waits behind the one that
    runs: the last ones would wait behind long ones while other processes have nothing."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return nodeid if file in APART else TOGETHER.get(file, file)

    def _reschedule(self, node: Any) -> None:
        if not self.workqueue or self._pending_of(self.assigned_work[node]) <= 1:
            super()._reschedule(node)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile | None:
    return ByFile(config, log) if config.getoption("dist") == "loadfile" else None
