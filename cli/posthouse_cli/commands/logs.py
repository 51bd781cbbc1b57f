"""`posthouse logs`: what a worker wrote, and what it goes on to write, wherever that is.

Owns: the order of hosts and pages, and when the reading is complete. Must not know: how output is
kept. Invariant: a byte is printed once and in order; in a pipe nothing else is printed, so that
what is read is what was written; whatever is missing is told on standard error.
"""

import itertools
import time

import click

from posthouse import Cursor, Event, EventKind, Handle, Output
from posthouse.errors import CursorTooOld, NotRunning, RefusedError, TimedOut, Unreachable
from posthouse.records import Status
from posthouse_agent.remains import printable
from posthouse_cli import shapes
from posthouse_cli.context import (
    Session,
    json_option,
    timeout_option,
    verb,
    worker_argument,
    worker_handle,
)

__all__ = ["logs"]

_LOOK_S = 0.2  # how often `logs -f` asks for more


@click.command(epilog=shapes.keys_text(("host", "offset", "text")))
@worker_argument
@click.option("--follow", "-f", is_flag=True, help="Go on until the worker is unregistered.")
@click.option("--lines", "-n", type=click.IntRange(0), help="Only the last so many lines.")
@click.option("--offset", type=click.IntRange(0), help="Only from this position on.")
@click.option("--host", default="", help="What it wrote on this host, where it ran before.")
@json_option
@timeout_option(None, "output under -f")
@verb
def logs(
    session: Session,
    worker: str,
    follow: bool,
    lines: int | None,
    offset: int | None,
    host: str,
    as_json: bool,
    timeout: float | None,
) -> None:
    """Print what a worker wrote to its standard output and error, over all its starts.

    From the host that it runs on, or ran on last. Under -f it goes on over restarts of the worker,
    of agents and of the master, and follows the worker to other hosts. A pipe gets the bytes as
    they were written; a terminal is shown no control characters.
    """
    if lines is not None and offset is not None:
        raise click.UsageError("--lines and --offset exclude each other")
    if host and follow:
        raise click.UsageError("--host and --follow exclude each other: a worker is followed")
    handle = worker_handle(session, worker)
    deadline_s = None if timeout is None else time.monotonic() + timeout
    reader = _Reader(session, handle, as_json)
    reader.begin(host, lines, offset or 0)
    if not follow:
        reader.read_on()
        reader.finish()
        return
    following = _Following(handle, reader)
    while not following.look():
        if deadline_s is not None and time.monotonic() >= deadline_s:
            raise TimedOut(f"{handle.name} is not unregistered after {timeout:g} s")
        time.sleep(_LOOK_S)
    reader.finish()


class _Reader:
    """Prints the pages of one host's file after the other."""

    def __init__(self, session: Session, handle: Handle, as_json: bool) -> None:
        self.host = ""
        self._out = session.out
        self._handle = handle
        self._as_json = as_json
        self._raw = not as_json and not session.out.terminal
        self._offset = 0
        self._rest = b""  # of a line that is not complete
        self._lines: int | None = None  # still to be looked for
        self._places: dict[str, int] = {}  # of hosts: what was written before is not for us

    def begin(self, host: str, lines: int | None, offset: int) -> None:
        """Where to read; without a host the one that the first page comes from."""
        self.host, self._lines, self._offset = host, lines, offset

    def remember(self, host: str) -> None:
        """Whatever is on this host by now is none of what follows."""
        try:
            self._places[host] = self._handle.output(offset=0, limit=0, host=host).size
        except RefusedError:
            self._places[host] = 0

    def move(self, host: str) -> None:
        """Go on with what it wrote there since we last looked."""
        if self.host:
            self.finish()
            self._places[self.host] = self._offset
            self._offset = self._places.get(host, 0)
            _say(f"{self._handle.name} now writes on host {host}")
        self.host = host

    def read_on(self) -> None:
        """Print all that there is. Raises RefusedError if the host cannot be asked."""
        if self._lines is not None:
            self._offset = self._stand_before(self._lines)
            self._lines = None
        while self._print_page(self._handle.output(offset=self._offset, host=self.host)):
            pass

    def finish(self) -> None:
        """Print a last line that has no newline."""
        if self._rest:
            self._print(self._rest, self._offset - len(self._rest))
            self._rest = b""

    def _stand_before(self, lines: int) -> int:
        """Where the last so many lines begin."""
        page = self._handle.output(offset=-1, host=self.host)
        start, data = page.offset, page.data
        # One more newline than lines: that of the line before the first.
        while data.count(b"\n") <= lines and page.data and start > 0 and not page.lost:
            before = max(0, start - len(page.data))
            page = self._handle.output(offset=before, limit=start - before, host=self.host)
            data = page.data[: max(0, start - page.offset)] + data
            start = min(start, page.offset)
        kept = b"".join(data.splitlines(keepends=True)[-lines:]) if lines else b""
        return start + len(data) - len(kept)

    def _print_page(self, page: Output) -> bool:
        self.host = self.host or page.host
        if page.offset > self._offset and page.lost:
            self.finish()
            _say(f"{page.lost} bytes no longer kept")
        self._offset = page.next_offset
        if self._raw:
            self._out.raw(page.data)
            return bool(page.data)
        *whole, self._rest = (self._rest + page.data).split(b"\n")
        at = self._offset - len(self._rest) - sum(len(line) + 1 for line in whole)
        for line in whole:
            self._print(line, at)
            at += len(line) + 1
        return bool(page.data)

    def _print(self, line: bytes, offset: int) -> None:
        if self._as_json:
            text = line.decode(errors="replace")
            self._out.json({"host": self.host, "offset": offset, "text": text})
        else:
            self._out.line(printable(line))


class _Following:
    """Where the worker went, and whether it still may write."""

    def __init__(self, handle: Handle, reader: _Reader) -> None:
        self._handle = handle
        self._reader = reader
        self._place: Cursor | None = None  # in the event log: what was before it is told
        self._waiting = ""  # for what, if that has been said

    def look(self) -> bool:
        """Print what there is; True if that was all that there will ever be."""
        try:
            # Looked at before the read: so a final status means that the read was complete, and
            # another host that nothing comes any more from the one before.
            status = self._handle.status()
            hosts = self._hosts(status)
            for host in hosts:
                if host != self._reader.host:
                    self._reader.move(host)
                self._read(last=host is hosts[-1], final=status.final)
        except (Unreachable, TimedOut) as error:
            self._wait(f"{error.message}; waiting for the master")
            return False
        return status.final

    def _hosts(self, status: Status) -> list[str]:
        """Where it has been since the last look, the host of that time first."""
        hosts = [self._reader.host]
        if self._place is None:
            for host in {event.host for event in self._events(Cursor(0, 0))} - {"", status.host}:
                self._reader.remember(host)
        elif status.host not in hosts:
            hosts += [e.host for e in self._events(self._place) if e.kind is EventKind.STARTED]
        self._place = status.cursor
        return [host for host, _ in itertools.groupby([*hosts, status.host]) if host] or [""]

    def _events(self, after: Cursor) -> list[Event]:
        try:
            return list(self._handle.events(after=after, follow=False))
        except CursorTooOld:
            return []

    def _read(self, *, last: bool, final: bool) -> None:
        try:
            self._reader.read_on()
        except RefusedError as error:
            if final:
                raise
            if not last:
                _say(f"{error.message}: what it wrote there at last is missing here")
            elif not isinstance(error, NotRunning):  # that it has not run yet goes without saying
                self._wait(error.message)
            return
        self._waiting = ""

    def _wait(self, what: str) -> None:
        if what != self._waiting:
            _say(what)
        self._waiting = what


def _say(text: str) -> None:
    click.echo(f"posthouse: {text}", err=True)
