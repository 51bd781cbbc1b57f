"""The wheel, the pins, and what lies where in the tree."""

import email
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

PACKAGES = {
    "posthouse": "protocol",
    "posthouse_agent": "agent",
    "posthouse_master": "master",
    "posthouse_testing": "testing",
    "posthouse_cli": "cli",
}


@pytest.fixture(scope="session")
def pyproject(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())


@pytest.fixture(scope="session")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built by the backend that pip would use, in a process of its own, without the network."""
    target = tmp_path_factory.mktemp("wheel")
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(target)], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(target / done.stdout.split()[-1])


def test_the_wheel_has_exactly_our_top_level_names(wheel: zipfile.ZipFile) -> None:
    names = {name.split("/", 1)[0] for name in wheel.namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == set(PACKAGES)
    assert len(names) == len(PACKAGES) + 1


def test_the_wheel_holds_code_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    odd = [
        name
        for name in wheel.namelist()
        if ".dist-info/" not in name and not name.endswith((".py", "/py.typed"))
    ]
    assert odd == []


def test_every_package_is_typed(wheel: zipfile.ZipFile) -> None:
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(wheel.namelist())


def test_the_wheel_has_every_module_of_the_tree(root: Path, wheel: zipfile.ZipFile) -> None:
    ours = {
        str(path.relative_to(root / folder))
        for package, folder in PACKAGES.items()
        for path in (root / folder / package).rglob("*.py")
    }
    assert ours == {name for name in wheel.namelist() if name.endswith(".py")}


def test_the_base_has_three_dependencies(wheel: zipfile.ZipFile) -> None:
    name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
    required = metadata.get_all("Requires-Dist") or []
    base = {line.split(">")[0].strip() for line in required if "extra ==" not in line}
    assert base == {"pyzmq", "msgpack", "msgspec"}
    assert metadata["License-Expression"] == "PostgreSQL"
    assert any(n.endswith("/licenses/LICENSE") for n in wheel.namelist())


def test_the_wheel_names_the_command(wheel: zipfile.ZipFile) -> None:
    name = next(n for n in wheel.namelist() if n.endswith("/entry_points.txt"))
    assert "posthouse = posthouse_cli.main:main" in wheel.read(name).decode()


def test_constraints_agree_with_pyproject(root: Path, pyproject: dict[str, Any]) -> None:
    pins = pyproject["tool"]["uv"]["constraint-dependencies"]
    lines = (root / "deploy/constraints.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == pins, "run make constraints"
    assert pins == sorted(pins, key=lambda pin: pin.split("==")[0])
    assert all(pin.count("==") == 1 and "/" not in pin and "@" not in pin for pin in pins)


def test_every_direct_dependency_is_pinned(pyproject: dict[str, Any]) -> None:
    pinned = {pin.split("==")[0] for pin in pyproject["tool"]["uv"]["constraint-dependencies"]}
    project = pyproject["project"]
    wanted = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        wanted += extra
    for group in pyproject["dependency-groups"].values():
        wanted += [entry for entry in group if not entry.startswith("posthouse[")]
    assert {re.split(r"[\[>]", entry)[0].strip() for entry in wanted} <= pinned


def test_a_root_holds_its_package_and_nothing_else(root: Path) -> None:
    """The editable install puts the five folders on sys.path: a stray module would be importable,
    and so would a folder."""
    for package, folder in PACKAGES.items():
        found = {path.name for path in (root / folder).iterdir()} - {"__pycache__"}
        assert found <= {package, "README.md"}, folder


def test_a_package_holds_modules_only(root: Path, tracked: list[Path]) -> None:
    for package, folder in PACKAGES.items():
        base = root / folder / package
        odd = [
            str(path)
            for path in tracked
            if path.is_relative_to(base) and path.suffix != ".py" and path.name != "py.typed"
        ]
        assert odd == []
