"""What the tests of the house share: where the repository is."""

import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def tracked(root: Path) -> list[Path]:
    """The files of the repository; in an unpacked source distribution, all files."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=root,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        return _all_files(root)
    if listed.returncode != 0:
        return _all_files(root)
    files = [root / name for name in listed.stdout.split("\0") if name]
    return [path for path in files if path.is_file()]


def _all_files(root: Path) -> list[Path]:
    skipped = {".venv", "__pycache__", ".git", "dist", "build"}
    return [
        path
        for path in root.rglob("*")
        if path.is_file() and not skipped & set(path.relative_to(root).parts)
    ]
