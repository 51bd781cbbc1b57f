"""The plugin as users see it: pytest runs with tests of theirs, and what is printed of failures."""

import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from posthouse_testing import VirtualCluster, plugin

pytest_plugins = ["pytester"]

assert VirtualCluster  # loaded now, it is not loaded anew in each run below

ROOT = Path(__file__).parents[2]
WORKER = """
import pytest
from posthouse import BackgroundWorker

def declare(cluster):
    @cluster.worker("app:main")
    def main(me):
        me.unblock_signals()
        while True:
            yield me.latch.wait(timeout=1)
    return cluster.register(BackgroundWorker(name="w", main="app:main"))
"""


def run(pytester: pytest.Pytester, text: str, *options: str) -> pytest.RunResult:
    """Without the other plugins, which take a second to load in each run."""
    pytester.makepyfile(WORKER + text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        return pytester.runpytest_inprocess("-p", plugin.__name__, *options)


def test_pytest_finds_it_by_itself() -> None:
    (found,) = entry_points(group="pytest11", name="posthouse")
    assert found.value == plugin.__name__


def test_a_marked_test_runs_under_many_seeds(pytester: pytest.Pytester) -> None:
    text = """
seen = []

@pytest.mark.posthouse_seeds(5, start=3)
def test_it(posthouse_cluster, posthouse_seed):
    assert posthouse_cluster().seed == posthouse_seed
    seen.append(posthouse_seed)

def test_once(posthouse_cluster):
    assert posthouse_cluster().seed == 0
    assert posthouse_cluster(seed=9).seed == 9

def test_all():
    assert seen == [3, 4, 5, 6, 7]
"""
    run(pytester, text).assert_outcomes(passed=7)


def test_options_choose_the_seeds(pytester: pytest.Pytester) -> None:
    text = """
@pytest.mark.posthouse_seeds
def test_it(posthouse_cluster):
    declare(posthouse_cluster())
"""
    run(pytester, text, "--posthouse-seeds", "2").assert_outcomes(passed=2)
    result = run(pytester, text, "--posthouse-seed", "77", "-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*test_it?seed77? PASSED*"])
    result = run(pytester, text, "--posthouse-seeds", "0")
    result.stdout.fnmatch_lines(["*posthouse_seeds: 0 seeds: must be 1 to 100000*"])


def test_a_failure_tells_the_seed_and_what_happened(pytester: pytest.Pytester) -> None:
    text = """
@pytest.mark.parametrize("other", ["x", "y"])
@pytest.mark.posthouse_seeds(6)
def test_it(posthouse_cluster, posthouse_seed, other):
    cluster = posthouse_cluster()
    declare(cluster)
    cluster.chaos(30, rate=1)
    cluster.log(f"this is {other}")
    assert posthouse_seed != 2 or other == "x"
"""
    result = run(pytester, text)
    result.assert_outcomes(passed=8, failed=1, skipped=3)
    again = '"test_a_failure_tells_the_seed_and_what_happened.py::test_it[seed2-y]"'
    result.stdout.fnmatch_lines(
        [
            "*posthouse: how to see it again*",
            f"pytest {again.replace('[', '[[]')} --posthouse-seed 2",
            "*posthouse: <VirtualCluster seed=2 hosts=a,b at *",
            "seed 2, * virtual seconds",
            "faults:",
            "* s  *",
            "processes:",
            "  w #1 token 1 on *",
            "*outside      this is y",
        ]
    )
    result = run(pytester, text, again.strip('"'), "--posthouse-seed", "2")
    result.assert_outcomes(failed=1)


def test_a_double_run_that_was_swallowed_fails_the_test(pytester: pytest.Pytester) -> None:
    text = """
def test_it(posthouse_cluster):
    cluster = posthouse_cluster()
    for who in ("anna", "bert"):
        try:
            cluster.exclusive("pen").take(who)
        except AssertionError:
            pass
"""
    result = run(pytester, text)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *pen is held twice: by bert while anna holds it"])


def test_a_mark_that_would_do_nothing_is_told(pytester: pytest.Pytester) -> None:
    result = run(pytester, "@pytest.mark.posthouse_seeds(5)\ndef test_it():\n    pass\n")
    assert result.ret
    result.stdout.fnmatch_lines(["*is marked posthouse_seeds and uses neither*"])
    text = """
pytestmark = pytest.mark.posthouse_seeds(3)

def test_it():
    pass

def test_seeds(posthouse_cluster):
    pass
"""
    run(pytester, text).assert_outcomes(passed=4)


def test_without_the_server_extra_only_the_real_fixture_complains(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "SERVER", ("not_installed_here",))
    text = """
def test_virtual(posthouse_cluster):
    declare(posthouse_cluster())

def test_real(posthouse_real_cluster):
    posthouse_real_cluster()
"""
    result = run(pytester, text)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*not_installed_here. pip install 'posthouse?server?' brings it*"])


def test_the_names_of_the_server_extra_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [entry.split(">")[0] for entry in project["optional-dependencies"]["server"]]
    assert [name.replace("-", "_") for name in wanted] == list(plugin.SERVER)


def test_loading_it_loads_pytest_and_nothing_else() -> None:
    code = (
        "import sys, pytest\nbefore = set(sys.modules)\nimport posthouse_testing.plugin\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    ours = {name for name in loaded.stdout.split() if not name.startswith("importlib")}
    assert ours == {"posthouse_testing", "posthouse_testing.plugin"}, loaded.stderr


def test_what_workers_load_is_standard_library() -> None:
    code = (
        "import sys\nimport posthouse_testing.inside\n"
        "print(*{name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names))"
    )
    base = subprocess.run(
        [sys.executable, "-c", code.replace("import posthouse_testing.inside\n", "")],
        capture_output=True,
        text=True,
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    found = set(loaded.stdout.split()) - set(base.stdout.split())
    assert found == {"posthouse", "posthouse_testing"}, loaded.stderr


# --- the example ---


@pytest.fixture
def example(pytester: pytest.Pytester) -> Path:
    for path in (ROOT / "examples" / "double_run").glob("*.py"):
        shutil.copy(path, pytester.path)
    return pytester.path


@pytest.mark.timeout(300)  # seconds of a processor, on a busy machine
def test_the_example_finds_its_planted_double_run(pytester: pytest.Pytester, example: Path) -> None:
    others = ("-p", "no:xdist", "-p", "no:hypothesispytest", "-p", "no:anyio")
    result = pytester.runpytest_subprocess(*others, "--posthouse-seeds", "12")
    outcomes = result.parseoutcomes()
    assert outcomes["failed"] == 1
    assert outcomes["passed"] >= 12, "careful passes the seeds that careless fails"
    result.stdout.fnmatch_lines(
        [
            "E *DoubleRun: payment * was done twice",
            "E *s  by payments on *, token *",
            "E *s  by payments on *, token *",
            'pytest "test_payments.py::test_careless*--posthouse-seed *',
            "faults:",
            "processes:",
            "  payments #1 token 1 on *",
            "FAILED test_payments.py::test_careless*",
        ]
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_example_over_many_seeds_and_two_processes(
    pytester: pytest.Pytester, example: Path
) -> None:
    result = pytester.runpytest_subprocess("-n", "2")
    outcomes = result.parseoutcomes()
    assert 1 <= outcomes["failed"] <= 2, "each of the two stops at its own first one"
    assert outcomes["passed"] >= 100
