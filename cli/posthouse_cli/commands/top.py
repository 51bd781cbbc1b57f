"""`posthouse top`: what hosts and workers use, again and again.

Owns: the pace, the order, the difference between two looks. Must not know: how hosts find out.
Invariant: reading changes nothing; in a pipe it is one look of two samples, and ends.
"""

import time
from dataclasses import dataclass
from typing import Any

import click

from posthouse import HostUsage
from posthouse.errors import RefusedError, TimedOut
from posthouse.records import WorkerUse
from posthouse_cli import shapes
from posthouse_cli.context import Session, json_option, timeout_option, verb
from posthouse_cli.durations import DURATION

__all__ = ["top"]

_SAMPLE_S = 0.5  # between the two samples of one look
_HEADER = ("WORKER", "HOST", "PID", "CPU%", "PSS", "RSS", "FDS", "THREADS")
_KEYS = (
    "name",
    "host",
    "pid",
    "cpu_percent",
    "pss_bytes",
    "rss_bytes",
    "descriptors",
    "threads",
    "cpu_s",
    "handle",
)


@dataclass(frozen=True, slots=True)
class _Line:
    name: str
    host: str
    use: WorkerUse
    cpu_percent: float | None


@click.command(epilog=shapes.keys_text(_KEYS))
@click.option("--host", "only", metavar="NAME", help="Only this host.")
@click.option("--every", type=DURATION, default="2s", show_default=True, help="Between looks.")
@json_option
@timeout_option("10s", "each host's answer")
@verb
def top(
    session: Session, only: str | None, every: float, as_json: bool, timeout: float | None
) -> None:
    """Show what hosts and their workers use: processors, memory, descriptors, threads.

    On a terminal until Ctrl-C, the busiest worker first. In a pipe, or with --json, once. PSS is a
    worker's share of memory: what workers have in common is divided among them.
    """
    looks = _Looks(session, only, timeout)
    looks.look()
    if as_json or not session.out.terminal:
        time.sleep(_SAMPLE_S)
        for line in looks.look():
            if as_json:
                session.out.json(_json(line))
            else:
                session.out.line("\t".join(_cells(line)))
        return
    _live(looks, every)


class _Looks:
    """Samples of all reachable hosts."""

    def __init__(self, session: Session, only: str | None, timeout: float | None) -> None:
        self._cluster = session.cluster
        self._only = only
        self._timeout = timeout
        self._before: dict[int, float] = {}  # processor time by token
        self._at_s = 0.0
        self.hosts: list[HostUsage] = []
        self.missing: list[str] = []

    def look(self) -> list[_Line]:
        """One sample; the busiest first."""
        names = {
            (info.status.handle.slot, info.status.handle.generation): info.status.name
            for info in self._cluster.workers(timeout=self._timeout)
            if info.status.handle is not None
        }
        self.hosts, self.missing = [], []
        for host in [self._only] if self._only else self._names():
            try:
                self.hosts.append(self._cluster.usage(host, timeout=self._timeout))
            except (RefusedError, TimedOut):
                if self._only:
                    raise
                self.missing.append(host)
        now_s = time.monotonic()
        lines = [
            _Line(
                name=names.get((use.slot, use.generation), f"{use.slot}.{use.generation}"),
                host=usage.host,
                use=use,
                cpu_percent=self._percent(use, now_s),
            )
            for usage in self.hosts
            for use in usage.workers
        ]
        self._before = {line.use.token: line.use.cpu_s for line in lines}
        self._at_s = now_s
        return sorted(lines, key=lambda line: (-(line.cpu_percent or 0.0), line.name))

    def _names(self) -> list[str]:
        return [host.name for host in self._cluster.hosts(timeout=self._timeout)]

    def _percent(self, use: WorkerUse, now_s: float) -> float | None:
        before_s = self._before.get(use.token)
        if before_s is None:
            return None
        return max(0.0, 100.0 * (use.cpu_s - before_s) / max(now_s - self._at_s, 0.001))


def _live(looks: _Looks, every_s: float) -> None:
    from rich.live import Live

    with Live(_picture(looks, looks.look()), auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(every_s)
            live.update(_picture(looks, looks.look()), refresh=True)


def _picture(looks: _Looks, lines: list[_Line]) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    heads = [
        f"{usage.host}: load {usage.use.load:.2f} of {usage.use.cpus}, memory "
        f"{shapes.size(usage.use.memory_bytes - usage.use.available_bytes)} of "
        f"{shapes.size(usage.use.memory_bytes)}, {len(usage.workers)} workers"
        for usage in looks.hosts
    ]
    heads += [f"{host}: not reachable" for host in looks.missing]
    table = Table(box=None, pad_edge=False)
    for at, title in enumerate(_HEADER):
        table.add_column(title, no_wrap=True, justify="left" if at < 2 else "right")
    for line in lines:
        table.add_row(*(Text(cell) for cell in _cells(line)))
    return Group(*(Text(head) for head in heads), table)


def _cells(line: _Line) -> tuple[str, ...]:
    use = line.use
    return (
        line.name,
        line.host,
        str(use.pid),
        "" if line.cpu_percent is None else f"{line.cpu_percent:.1f}",
        "" if use.pss_bytes is None else shapes.size(use.pss_bytes),
        shapes.size(use.rss_bytes),
        "" if use.descriptors is None else str(use.descriptors),
        str(use.threads),
    )


def _json(line: _Line) -> dict[str, Any]:
    use = line.use
    return {
        "name": line.name,
        "host": line.host,
        "pid": use.pid,
        "cpu_percent": None if line.cpu_percent is None else round(line.cpu_percent, 1),
        "pss_bytes": use.pss_bytes,
        "rss_bytes": use.rss_bytes,
        "descriptors": use.descriptors,
        "threads": use.threads,
        "cpu_s": use.cpu_s,
        "handle": f"{use.slot}.{use.generation}",
    }
