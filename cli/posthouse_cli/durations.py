"""Durations as people write and read them on the command line.

Owns: a bare number is seconds; "never"; how long something took, for people. Must not know: what
the durations are for. Invariant: seconds as float inside.

>>> parse("1.5"), parse("500ms"), parse("2m")
(1.5, 0.5, 120.0)
>>> shown(0.25), shown(4.27), shown(95), shown(7300), shown(180000)
('0.25 s', '4.2 s', '1 m 35 s', '2 h 1 m', '2 d 2 h')
"""

import math
import re

import click

from posthouse.config import parse_duration

__all__ = ["DURATION", "RESTART_TIME", "parse", "shown"]


def parse(text: str) -> float:
    """Seconds. Raises ValueError."""
    if re.fullmatch(r"\d{1,15}(\.\d{1,9})?", text, re.ASCII):
        return float(text)
    return parse_duration(text)


def shown(seconds: float) -> str:
    """For people: at most two units, and never more than it was."""
    if seconds < 60:
        digits = 2 if seconds < 1 else 1
        return f"{math.floor(max(seconds, 0) * 10**digits) / 10**digits:g} s"
    whole = int(seconds)
    for large, small, large_s, small_s in (("d", "h", 86400, 3600), ("h", "m", 3600, 60)):
        if whole >= large_s:
            return f"{whole // large_s} {large} {whole % large_s // small_s} {small}"
    return f"{whole // 60} m {whole % 60} s"


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            return value if isinstance(value, float) else parse(str(value))
        except ValueError as error:
            self.fail(f"{value!r} {error}, or a number of seconds", param, ctx)


class _RestartTime(_Duration):
    name = "duration|never"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        return -1.0 if value == "never" else super().convert(value, param, ctx)


DURATION = _Duration()
RESTART_TIME = _RestartTime()
