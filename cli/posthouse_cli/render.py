"""How results are drawn: tables on a terminal, tab-separated lines in a pipe, JSON on request.

Owns: the only import of rich. Must not know: what the rows mean. Invariant: what a pipe gets has
no colour, no padding and no header, and each record is flushed as soon as it is complete.
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["Output", "ReaderLeft"]


class ReaderLeft(Exception):
    """Whoever read our output has seen enough (`| head`)."""


_WIDE = 10_000  # a narrow terminal wraps lines; it must not cut the names of workers
_STYLES = {
    "started": "green",
    "not-yet-started": "yellow",
    "stopped": "red",
    "ready": "green",
    "exited": "red",
    "start_failed": "red",
    "reachable": "green",
    "unreachable": "red",
}


class Output:
    """Standard output of one command."""

    def __init__(self, color: str = "auto") -> None:
        self.terminal = sys.stdout.isatty()
        self._color = color

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Rows under a header; in a pipe tab-separated, without the header."""
        if self.terminal:
            self._draw(header, list(rows))
        else:
            for row in rows:
                self.line("\t".join(_flat(cell) for cell in row))

    def row(self, cells: Sequence[str], widths: Sequence[int]) -> None:
        """One line of something that goes on: padded on a terminal, tab-separated in a pipe."""
        if not self.terminal:
            self.line("\t".join(_flat(cell) for cell in cells))
            return
        shown = [_flat(cell) for cell in cells]
        padded = [cell.ljust(width) for cell, width in zip(shown, widths, strict=False)]
        styled = [self.styled(cell) for cell in padded]
        self.line("  ".join([*styled, *shown[len(widths) :]]).rstrip())

    def pairs(self, rows: Iterable[tuple[str, str]]) -> None:
        """Labels and values, one pair a line."""
        present = [(label, value) for label, value in rows if value]
        width = max((len(label) for label, _ in present), default=0)
        for label, value in present:
            first, *more = value.splitlines()
            gap = " " * (width - len(label))
            self.line(f"{label}:{gap} {first}" if self.terminal else f"{label}\t{first}")
            for line in more:
                self.line(f"{' ' * width}  {line}" if self.terminal else f"\t{line}")

    def json(self, value: Any) -> None:
        """One JSON value on one line."""
        self.line(json.dumps(value, ensure_ascii=False, separators=(", ", ": ")))

    def line(self, text: str) -> None:
        """A line of text, flushed: a reader behind a pipe sees it now."""
        try:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            raise ReaderLeft from None

    def raw(self, data: bytes) -> None:
        """Bytes as they are, flushed: for a pipe or a file."""
        try:
            if hasattr(sys.stdout, "buffer"):
                sys.stdout.buffer.write(data)
            else:  # a program has put something else in the place of standard output
                sys.stdout.write(data.decode(errors="replace"))
            sys.stdout.flush()
        except BrokenPipeError:
            raise ReaderLeft from None

    def styled(self, text: str) -> str:
        """The text with its colour, if it is one of our state words and colours are wanted."""
        style = _STYLES.get(text.strip())
        if style is None or not self.colors:
            return text
        code = {"green": 32, "yellow": 33, "red": 31}[style]
        return f"\x1b[{code}m{text}\x1b[0m"

    @property
    def colors(self) -> bool:
        """Whether colours belong there: a terminal that can, and nobody said no."""
        if self._color != "auto":
            return self._color == "always"
        if os.environ.get("NO_COLOR"):
            return False
        if os.environ.get("FORCE_COLOR"):
            return True
        return self.terminal and os.environ.get("TERM") != "dumb"

    def _draw(self, header: Sequence[str], rows: list[Sequence[str]]) -> None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold" if self.colors else "")
        for title in header:
            table.add_column(title, no_wrap=True)
        for row in rows:
            styles = (_STYLES.get(cell, "") if self.colors else "" for cell in row)
            cells = (Text(_flat(c), style=s) for c, s in zip(row, styles, strict=True))
            table.add_row(*cells)
        console = Console(
            no_color=not self.colors,
            color_system="standard" if self.colors else None,
            highlight=False,
            markup=False,
            width=_WIDE,
        )
        with console.capture() as captured:
            console.print(table)
        for line in captured.get().splitlines():
            self.line(line.rstrip())


def _flat(cell: str) -> str:
    """One line, no control characters: a worker's name or output must not drive the terminal."""
    return "".join(c if c.isprintable() else " " for c in cell)
