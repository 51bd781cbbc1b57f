"""What no file of the repository may hold, and what must be where."""

import os
import re
import stat
from pathlib import Path

import pytest

# Spelled apart, so that this file does not find itself.
MACHINE_PATHS = re.compile(
    r"(?<![\w.~-])/(?:wo" r"rk|fa" r"rm|ro" r"ot|ho" r"me/(?!u\b)\w+)(?=/|\b)"
)
REGISTRIES = re.compile(
    r"pythonho" r"sted|/sim" r"ple/|artifac" r"tory|--(?:extra-)?index-" r"url|find-li" r"nks",
    re.IGNORECASE,
)
TEXT = {".py", ".md", ".toml", ".txt", ".service", ".sysusers", ".yml", ".yaml", ".json", ".hex"}
TEXT |= {"", ".sh", ".cfg", ".in"}


@pytest.fixture(scope="module")
def texts(root: Path, tracked: list[Path]) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text(errors="replace")
        for path in tracked
        if path.suffix in TEXT
    }


@pytest.mark.parametrize("pattern", [MACHINE_PATHS, REGISTRIES])
def test_no_file_names_a_machine_or_a_registry(
    pattern: re.Pattern[str], texts: dict[str, str]
) -> None:
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def test_the_patterns_find_what_they_are_for() -> None:
    for path in ("/wo" + "rk/main", '"/ro' + 'ot/x"', "in /fa" + "rm", "/ho" + "me/someone/x"):
        assert MACHINE_PATHS.search(path), path
    for path in ("/workers/x", "docs/work/x", "/rooted", "api/v1/work"):
        assert not MACHINE_PATHS.search(path), path
    assert REGISTRIES.search("https://x.example/sim" + "ple/zmq")


def test_there_is_no_lock_file(tracked: list[Path]) -> None:
    """It would say where packages came from; versions are pinned in pyproject.toml."""
    assert not [path for path in tracked if path.name in {"uv.lock", "poetry.lock", "Pipfile.lock"}]


def test_the_house_is_complete(root: Path) -> None:
    for name in ("README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile"):
        assert (root / name).is_file(), name
    licence = (root / "LICENSE").read_text()
    assert "PostgreSQL Licence" in licence
    assert "without a written agreement is hereby granted" in licence
    assert "## [Unreleased]" in (root / "CHANGELOG.md").read_text()


def test_ci_scripts_are_bash_and_executable(root: Path) -> None:
    for name in (".ci/run", ".ci/check"):
        script = root / name
        assert os.stat(script).st_mode & stat.S_IXUSR, name
        assert script.read_text().startswith("#!/usr/bin/env bash\n"), name


def test_every_decision_is_one_page_and_listed(root: Path) -> None:
    folder = root / "docs/decisions"
    index = (folder / "README.md").read_text()
    pages = sorted(path for path in folder.glob("*.md") if path.name != "README.md")
    numbers = [path.name[:4] for path in pages]  # handed out beforehand: one may still be missing
    assert all(number.isdecimal() for number in numbers)
    assert len(set(numbers)) == len(pages)
    for path in pages:
        text = path.read_text()
        assert f"({path.name})" in index
        assert text.startswith(f"# {path.name[:4]}: ")
        assert len(text.splitlines()) <= 60
        for part in ("**Context.**", "**Decision.**", "**Refused.**"):
            assert part in text, path.name


def test_make_has_a_target_for_each_thing(root: Path) -> None:
    targets = re.findall(r"^([a-z]+):", (root / "Makefile").read_text(), re.MULTILINE)
    assert {"check", "test", "demo", "docs", "sim", "constraints"} <= set(targets)
