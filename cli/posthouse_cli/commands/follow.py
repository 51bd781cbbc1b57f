"""`posthouse events`: what happened, and what goes on.

Owns: when such a reading is complete. Must not know: how events are kept. Invariant: an event is
printed once and in order.
"""

import time
from collections.abc import Iterator

import click

import posthouse
from posthouse import Cursor, Event
from posthouse.errors import PosthouseError, TimedOut
from posthouse_cli import shapes
from posthouse_cli.context import (
    Session,
    json_option,
    timeout_option,
    verb,
    worker_handle,
)

__all__ = ["events", "print_event", "until_deadline"]


class _Cursor(click.ParamType[Cursor]):
    """The "cursor" of an event."""

    name = "cursor"

    def convert(
        self, value: str | Cursor, param: click.Parameter | None, ctx: click.Context | None
    ) -> Cursor:
        try:
            return value if isinstance(value, Cursor) else Cursor.parse(value)
        except (PosthouseError, ValueError) as error:
            self.fail(str(error), param, ctx)


@click.command(epilog=shapes.keys_text(shapes.EVENT_KEYS))
@click.argument("worker", metavar="[NAME]", required=False)
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens from now on.")
@click.option(
    "--after", type=_Cursor(), metavar="CURSOR", help='Only events after this "cursor" of --json.'
)
@json_option
@timeout_option(None, "events under -f")
@verb
def events(
    session: Session,
    worker: str | None,
    follow: bool,
    after: Cursor | None,
    as_json: bool,
    timeout: float | None,
) -> None:
    """Print the life-cycle events of a worker, or of all.

    From the oldest that is kept, or after a cursor; under -f as well what comes, until the worker
    is unregistered. In a pipe: tab-separated, without the header.
    """
    cursor = after or Cursor(0, 0)
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
