"""Who imports what: the cores, the warden, the inside of a worker."""

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOTS = {"protocol": "posthouse", "agent": "posthouse_agent", "master": "posthouse_master"}
ROOTS |= {"testing": "posthouse_testing", "cli": "posthouse_cli"}

# What a bare child has loaded when it reaches its main; the standard library only.
WORKER_SIDE = ("posthouse.worker", "posthouse.latch", "posthouse.channel", "posthouse.exec")
# Never in a warden: it forks, so no threads and no native pools; and it outlives upgrades.
NEVER_IN_A_WARDEN = {"zmq", "msgspec", "structlog", "psutil", "click", "rich", "asyncio"}
UNSAFE = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle"}


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    for folder, package in ROOTS.items():
        for path in sorted((root / folder / package).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            yield ".".join(p for p in parts if p != "__init__"), path


@pytest.fixture(scope="module")
def trees(root: Path) -> dict[str, ast.Module]:
    return {name: ast.parse(path.read_text()) for name, path in modules(root)}


def contract(root: Path, name: str) -> dict[str, Any]:
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]
    found: dict[str, Any] = next(c for c in settings["contracts"] if c["name"].startswith(name))
    return found


def imported(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module or "")
    return found


def loaded_by(statement: str) -> tuple[set[str], int]:
    """Modules and threads of a fresh interpreter after the statement."""
    code = (
        f"import sys, json, os\n{statement}\n"
        "print(json.dumps([sorted(sys.modules), len(os.listdir('/proc/self/task'))]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    names, threads = json.loads(done.stdout)
    return set(names), threads


def tops(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def third_parties(names: set[str]) -> set[str]:
    """Without what the interpreter's own start-up loads (site, .pth files)."""
    before, _ = loaded_by("")
    return {
        top
        for top in tops(names) - tops(before)
        if top not in sys.stdlib_module_names
        and not top.startswith(("posthouse", "_"))
        and top != "cython_runtime"  # no package: what a compiled module leaves in sys.modules
    }


def test_every_core_is_held_to_do_no_io(root: Path, trees: dict[str, ast.Module]) -> None:
    """A docstring that begins with CORE is a promise that import-linter keeps."""
    promised = {
        name
        for name, tree in trees.items()
        if (ast.get_docstring(tree) or "").startswith("CORE")
        and not name.startswith("posthouse_testing")
    }
    assert len(promised) > 20
    unlisted = promised - set(contract(root, "cores do no I/O")["source_modules"])
    assert not unlisted, 'list them in the contract "cores do no I/O" of pyproject.toml'


def test_no_core_opens_files_or_prints(root: Path, trees: dict[str, ast.Module]) -> None:
    """What import-linter cannot see."""
    builtins = {"open", "print", "input", "exec", "eval", "__import__", "breakpoint"}
    for name in contract(root, "cores do no I/O")["source_modules"]:
        called = {
            node.func.id
            for node in ast.walk(trees[name])
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not called & builtins, name


def test_nothing_is_pickled(root: Path, trees: dict[str, ast.Module], tracked: list[Path]) -> None:
    others = {}
    for path in tracked:
        inside = path.relative_to(root)
        if path.suffix == ".py" and inside.parts[0] not in ROOTS:
            text = path.read_text()
            # Only what names one can import it; to parse all tests takes seconds.
            if any(name in text for name in UNSAFE):
                others[str(inside)] = ast.parse(text)
    for name, tree in {**trees, **others}.items():
        assert not tops(imported(tree)) & UNSAFE, name


@pytest.mark.parametrize("module", WORKER_SIDE)
def test_the_inside_of_a_worker_is_standard_library(module: str) -> None:
    names, threads = loaded_by(f"import {module}")
    assert third_parties(names) == set()
    assert threads == 1


def test_a_warden_loads_no_zmq_no_threads_no_client() -> None:
    names, threads = loaded_by("import posthouse_agent.warden")
    assert third_parties(names) <= {"msgpack", "setproctitle"}
    assert not tops(names) & NEVER_IN_A_WARDEN
    assert not names & {"posthouse.messages", "posthouse.codec", "posthouse.transport"}
    assert threads == 1


def test_a_zygote_loads_no_third_party_but_for_its_name() -> None:
    """It runs in applications' own environments."""
    names, threads = loaded_by("import posthouse_agent.zygote")
    assert third_parties(names) <= {"setproctitle"}
    assert not tops(names) & NEVER_IN_A_WARDEN
    assert threads == 1


def test_import_posthouse_loads_no_third_party() -> None:
    names, threads = loaded_by("import posthouse; posthouse.BackgroundWorker")
    assert third_parties(names) == set()
    assert threads == 1


def test_an_agent_loads_nothing_for_colours() -> None:
    """structlog loads rich where it is installed, and keeps working without."""
    names, _ = loaded_by("import posthouse_agent.daemon")
    assert "rich" not in tops(names)
    assert "structlog" in tops(names)


def test_a_connection_loads_no_asyncio() -> None:
    names, _ = loaded_by("import posthouse.transport, posthouse.client")
    assert not tops(names) & {"asyncio", "ssl"}


def test_the_checks_above_can_fail() -> None:
    names, threads = loaded_by("import zmq; c = zmq.Context(); s = c.socket(zmq.DEALER)")
    assert "zmq" in third_parties(names)
    assert threads > 1


def test_nobody_imports_by_the_name_of_a_folder(trees: dict[str, ast.Module]) -> None:
    for name, tree in trees.items():
        assert not tops(imported(tree)) & set(ROOTS), name


def test_every_module_says_what_it_is(trees: dict[str, ast.Module]) -> None:
    for name, tree in trees.items():
        assert ast.get_docstring(tree), name
