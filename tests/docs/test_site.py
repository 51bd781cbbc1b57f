"""`make html`: the pages as a site, without a warning."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)  # three seconds alone; much more beside others
def test_it_is_built_without_a_warning(tmp_path: Path) -> None:
    options = ("-W", "--keep-going", "-q", "-b", "html", "-d", str(tmp_path / "doctrees"))
    ran = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, str(ROOT / "docs"), str(tmp_path / "html")],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stderr
    for page in ("index", "reference/protocol", "tutorial/first-worker", "decisions/README"):
        assert (tmp_path / "html" / f"{page}.html").is_file(), page


def test_make_html_is_that_command() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "sphinx-build -W --keep-going -q -b html docs build/html" in makefile
