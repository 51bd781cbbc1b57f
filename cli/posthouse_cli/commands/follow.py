"""`posthouse events` and `posthouse logs`: what happened, what was written, and what goes on.

Owns: when such a reading is complete. Must not know: how events are kept. Invariant: an event is
printed once and in order; a byte of output once and in order.
"""

import time
from collections.abc import Iterator

import click

import posthouse
from posthouse import Cursor, Event
from posthouse.errors import NoSuchWorker, RefusedError, TimedOut
from posthouse_cli import shapes
from posthouse_cli.context import (
    Session,
    json_option,
    timeout_option,
    verb,
    worker_argument,
    worker_handle,
)

__all__ = ["events", "logs", "print_event", "until_deadline"]

_LOOK_S = 0.2  # how often `logs -f` asks for more


@click.command(epilog=shapes.keys_text(shapes.EVENT_KEYS))
@click.argument("worker", metavar="[NAME]", required=False)
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens from now on.")
@click.option("--after", metavar="CURSOR", help='Only events after this "cursor" of --json.')
@json_option
@timeout_option(None, "events under -f")
@verb
def events(
    session: Session,
    worker: str | None,
    follow: bool,
    after: str | None,
    as_json: bool,
    timeout: float | None,
) -> None:
    """Print the life-cycle events of a worker, or of all.

    From the oldest that is kept, or after a cursor; under -f as well what comes, until the worker
    is unregistered. In a pipe: tab-separated, without the header.
    """
    cursor = Cursor.parse(after) if after else Cursor(0, 0)
    if worker is None:
        stream = session.cluster.events(after=cursor, follow=follow)
    else:
        stream = worker_handle(session, worker).events(after=cursor, follow=follow)
    for event in until_deadline(stream, timeout):
        print_event(session, event, as_json)


def until_deadline(stream: posthouse.EventStream, timeout: float | None) -> Iterator[Event]:
    """The events of a stream. Raises TimedOut if it has not ended after the timeout."""
    deadline_s = None if timeout is None else time.monotonic() + timeout
    with stream:
        while True:
            if deadline_s is not None:
                stream.timeout = max(0.0, deadline_s - time.monotonic())
            try:
                event = next(stream, None)
            except TimedOut:
                raise TimedOut(f"gave up after {timeout:g} s; it goes on") from None
            if event is None:
                return
            yield event


def print_event(session: Session, event: Event, as_json: bool) -> None:
    """One line of `events` or `run`, or one JSON object."""
    if as_json:
        session.out.json(shapes.event_json(event))
    else:
        cells = shapes.event_cells(event, full_time=not session.out.terminal)
        session.out.row(cells, shapes.EVENT_WIDTHS)


@click.command()
@worker_argument
@click.option("--follow", "-f", is_flag=True, help="Go on until the worker is unregistered.")
@click.option("--lines", "-n", type=click.IntRange(0), help="Only the last so many lines.")
@json_option
@timeout_option(None, "output under -f")
@verb
def logs(
    session: Session,
    worker: str,
    follow: bool,
    lines: int | None,
    as_json: bool,
    timeout: float | None,
) -> None:
    """Print what a worker wrote to its standard output and error, over all its starts.

    JSON keys, one object a line: host, offset, text.
    """
    handle = worker_handle(session, worker)
    deadline_s = None if timeout is None else time.monotonic() + timeout
    reader = _Reader(session, handle, as_json, lines)
    while True:
        ended = handle.status().final
        try:
            while reader.more():
                pass
        except RefusedError as error:
            # Not started yet, or its host is away: worth waiting for, if somebody waits anyhow.
            if not follow or ended or isinstance(error, NoSuchWorker):
                raise
        # Looked at before the last read: so a final status means that the read was complete.
        if not follow or ended:
            break
        if deadline_s is not None and time.monotonic() >= deadline_s:
            raise TimedOut(f"{handle.name} is not unregistered after {timeout:g} s")
        time.sleep(_LOOK_S)
    reader.finish()


class _Reader:
    """Reads pages in order and prints whole lines; the last one may lack its newline."""

    def __init__(
        self, session: Session, handle: posthouse.Handle, as_json: bool, lines: int | None
    ) -> None:
        self._out = session.out
        self._handle = handle
        self._as_json = as_json
        self._host = ""
        self._offset = 0
        self._rest = b""
        self._lines = lines  # None: no longer, or never, to be looked for

    def _begin(self, lines: int) -> None:
        """Stand where the last so many lines begin."""
        page = self._handle.output(offset=-1)
        self._host = page.host
        start, seen = page.size, 0
        data = b""
        while seen <= lines and page.data:
            data = page.data + data
            start = page.offset
            seen = data.count(b"\n") - data.endswith(b"\n") + 1
            if page.offset == 0 or page.lost >= page.offset:
                break
            before = max(0, page.offset - len(page.data))
            page = self._handle.output(offset=before, limit=page.offset - before)
        kept = b"".join(data.splitlines(keepends=True)[-lines:]) if lines else b""
        self._offset = start + len(data) - len(kept)

    def more(self) -> bool:
        """Print what there is next; False if there is nothing."""
        if self._lines is not None:
            self._begin(self._lines)
            self._lines = None
        page = self._handle.output(offset=self._offset)
        if self._host and page.host and page.host != self._host:
            self.finish()
            click.echo(f"posthouse: {self._handle.name} now writes on host {page.host}", err=True)
            self._host, self._offset = page.host, 0
            return True
        self._host = page.host or self._host
        if page.offset > self._offset and not self._rest:
            click.echo(f"posthouse: {page.offset - self._offset} bytes no longer kept", err=True)
        *whole, self._rest = (self._rest + page.data).split(b"\n")
        at = page.next_offset - len(self._rest) - sum(len(line) + 1 for line in whole)
        for line in whole:
            self._print(line, at)
            at += len(line) + 1
        self._offset = page.next_offset
        return bool(page.data)

    def finish(self) -> None:
        """Print a last line that has no newline."""
        if self._rest:
            self._print(self._rest, self._offset - len(self._rest))
            self._rest = b""

    def _print(self, line: bytes, offset: int) -> None:
        text = line.decode(errors="replace")
        if self._as_json:
            self._out.json({"host": self._host, "offset": offset, "text": text})
        else:
            self._out.line(text)
