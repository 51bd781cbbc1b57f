"""A sign of life on a terminal, while a verb waits for something that takes longer than a second.

Owns: one line of standard error, rewritten in place and gone at the end. Must not know: what is
waited for. Invariant: a pipe, a file or TERM=dumb never see any of it, and neither do escape codes:
a carriage return and spaces are enough.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator

from posthouse_cli.durations import shown

__all__ = ["waiting"]

_FIRST_S = 1.0  # who waits shorter than this needs no comfort
_EACH_S = 0.5
_WIDTH_MAX = 79  # a longer line would be wrapped, and could not be taken back


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Tell, where a person sees it, what is being waited for and since when."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield
        return
    over = threading.Event()
    teller = threading.Thread(target=_tell, args=(what, over), name="progress", daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def _tell(what: str, over: threading.Event) -> None:
    began_s = time.monotonic()
    told = ""
    each_s = _FIRST_S
    with contextlib.suppress(OSError, ValueError):  # the terminal is gone
        while not over.wait(each_s):
            each_s = _EACH_S
            line = f"posthouse: waiting for {what}, {shown(int(time.monotonic() - began_s))}"
            line = "".join(c if c.isprintable() else " " for c in line)[:_WIDTH_MAX]
            _write(f"\r{line.ljust(len(told))}")
            told = line
        if told:
            _write(f"\r{' ' * len(told)}\r")


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
