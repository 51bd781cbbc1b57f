"""Prints deploy/constraints.txt: the pins of pyproject.toml, for pip users."""

import tomllib
from pathlib import Path

HEAD = "# Made by `make constraints` from pyproject.toml. pip install -c deploy/constraints.txt ."

pyproject = tomllib.loads(Path(__file__).parent.parent.joinpath("pyproject.toml").read_text())
print(HEAD, *pyproject["tool"]["uv"]["constraint-dependencies"], sep="\n")
