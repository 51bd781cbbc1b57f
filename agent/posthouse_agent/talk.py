"""The agent's own log: one event a line on standard error, written by a thread of its own.

Owns: the format. Must not know: what the events mean. Invariant: a standard error that does not
take lines (a full pipe, a stuck disk) costs lines, which are counted, and never a renewal.
"""

import contextlib
import sys
import time
from functools import partial
from typing import Any, Final

from posthouse import limits
from posthouse.without import without
from posthouse_agent.chores import Chores

with without("rich"):  # for tracebacks in colour, which no daemon prints: 10 MB
    import structlog

__all__ = ["Talk"]

_WARNINGS: Final = frozenset(
    (
        "descriptors.few",
        "descriptors.lost",
        "folder.gone",
        "line.trouble",
        "log.lost",
        "log.unbounded",
        "logs.tidied",
        "session.lost",
        "session.old_master",
        "session.refused",
        "start.failed",
        "start.repeated",
        "users.unknown",
        "users.unusable",
        "warden.gone",
        "warden.unusable",
        "worker.unkillable",
    )
)


class Talk:
    """`say` never blocks."""

    def __init__(self, log_format: str, **fields: Any) -> None:
        console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
        render: Any = (
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
            if console
            else structlog.processors.JSONRenderer(default=str)
        )
        self._logger = structlog.wrap_logger(
            structlog.PrintLogger(sys.stderr),
            processors=[render],
            wrapper_class=structlog.BoundLoggerBase,
        ).bind(**fields)  # once; else at each line
        self._writer = Chores("log", limits.log_lines_queued_max)
        self._told_lost = 0

    def say(self, name: str, **fields: Any) -> None:
        """One line."""
        if self._writer.refused > self._told_lost:
            lost = self._writer.refused - self._told_lost
            if self._writer.submit(partial(self._write, "log.lost", time.time(), {"lines": lost})):
                self._told_lost += lost
        self._writer.submit(partial(self._write, name, time.time(), fields))

    def close(self) -> None:
        """Let what was said be written, for a second at the most."""
        self._writer.close(1.0)

    def _write(self, name: str, at_unix_s: float, fields: dict[str, Any]) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_unix_s))
        # Perhaps nobody reads our standard error any more; then there is nobody to tell.
        with contextlib.suppress(OSError):
            self._logger._proxy_to_logger(  # noqa: SLF001 - the documented way for own methods
                "msg",
                name,
                timestamp=f"{stamp}.{int(at_unix_s % 1 * 1000):03d}Z",
                level="warning" if name in _WARNINGS else "info",
                **fields,
            )
