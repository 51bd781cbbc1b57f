"""The models of the protocol hold, and each of their guards is needed.

`make models` runs all of them; needs spin and gcc (`apt-get install spin gcc`).
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MODELS = ("endings", "orders", "lease")
LONG = ("orders", "lease")  # more than a few seconds to look at all states
QUICK = ("NO_WAIT", "SESSION_GOES_ON")  # some hundred states; the others take 100,000 and more
CHECK_S = 600
_SEARCH = ("-E", "-m2000000", "-w24")  # a state in which nothing more happens is no error here
_GUARD = re.compile(r"^ {5}([A-Z_]+) {2,}\S", re.MULTILINE)

MISSING = [tool for tool in ("spin", "gcc") if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING),
    reason=f"no {' and no '.join(MISSING)} here to look at all states of a model with: "
    "apt-get install spin gcc, then make models",
)


def guards(name):
    """What the model's head says can be taken away."""
    head = (HERE / f"{name}.pml").read_text().partition("*/")[0]
    return _GUARD.findall(head)


def check(folder, name, *options):
    """(states that were looked at, the first thing that does not hold or "")."""
    shutil.copy(HERE / f"{name}.pml", folder / "model.pml")
    for command in (
        ["spin", *options, "-a", "model.pml"],
        ["gcc", "-w", "-O2", "-DSAFETY", "-DCOLLAPSE", "-DMEMLIM=3000", "-o", "pan", "pan.c"],
    ):
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
    found = subprocess.run(
        ["./pan", *_SEARCH], cwd=folder, check=True, capture_output=True, text=True, timeout=CHECK_S
    ).stdout
    assert "out of memory" not in found and "max search depth too small" not in found, found
    states = int(re.search(r"(\d+) states, stored", found)[1])
    errors = int(re.search(r"errors: (\d+)", found)[1])
    violated = re.search(r"assertion violated (.*)", found)
    assert bool(errors) == bool(violated), found
    return states, violated[1] if violated else ""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in MODELS]
)
@pytest.mark.timeout(CHECK_S)
def test_the_model_holds(tmp_path, name):
    states, violated = check(tmp_path, name)
    print(f"{name}: {states:,} states, none violates it")
    assert violated == ""
    assert states > 10_000


def without():
    """Each guard of each model; of the long ones the quickest to be found, elsewhere all."""
    return [
        pytest.param(n, g, marks=[pytest.mark.slow] * (n in LONG and g not in QUICK))
        for n in MODELS
        for g in guards(n)
    ]


@pytest.mark.parametrize(("name", "guard"), without())
def test_without_a_guard_it_does_not(tmp_path, name, guard):
    states, violated = check(tmp_path, name, f"-D{guard}")
    print(f"{name} without {guard}: violated after {states:,} states: {violated}")
    assert violated


def test_each_model_names_what_it_can_be_without():
    for name in MODELS:
        text = (HERE / f"{name}.pml").read_text()
        used = set(re.findall(r"^#ifn?def ([A-Z_]+)$", text, re.MULTILINE))
        assert used == set(guards(name)) and len(used) >= 4, name
