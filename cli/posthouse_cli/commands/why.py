"""`posthouse why`: how a worker came to be what it is now, each decision with its rule.

Owns: which events are told, and in what words. Must not know: the rules themselves (told).
Invariant: reading changes nothing; a history whose beginning is no longer kept says so.
"""

import click

from posthouse.errors import CursorTooOld
from posthouse.handle import Handle
from posthouse.records import Event
from posthouse.states import WorkerState
from posthouse_cli import shapes
from posthouse_cli.context import (
    Session,
    json_option,
    timeout_option,
    verb,
    worker_argument,
    worker_handle,
)
from posthouse_cli.told import RULES

__all__ = ["why"]

_KEYS = (*shapes.EVENT_KEYS, "rule_text")


@click.command(epilog=shapes.keys_text(_KEYS))
@worker_argument
@click.option("--limit", "-n", type=click.IntRange(1), metavar="N", help="Only the last N.")
@json_option
@timeout_option("10s", "the master's answer")
@verb
def why(
    session: Session, worker: str, limit: int | None, as_json: bool, timeout: float | None
) -> None:
    """Tell how a worker came to be what it is: every decision, and the rule behind it.

    One line an event: when, what, where, why, and in brackets the rule and what it says. The state
    now, and where it is not running what each host says, go to standard error. In a pipe:
    tab-separated, without the header.
    """
    handle = worker_handle(session, worker, timeout)
    history = _history(handle, timeout)
    for event in history[-limit:] if limit else history:
        if as_json:
            session.out.json({**shapes.event_json(event), "rule_text": RULES.get(event.rule)})
        else:
            cells = list(shapes.event_cells(event, full_time=not session.out.terminal))
            said = f"{event.rule}: {RULES[event.rule]}" if event.rule in RULES else event.rule
            cells[-1] = f"{cells[-1]} [{said}]".strip() if said else cells[-1]
            session.out.row(cells, shapes.EVENT_WIDTHS)
    if not as_json:
        _tell_now(handle, timeout)


def _history(handle: Handle, timeout: float | None) -> list[Event]:
    """What the log still has of it, from the oldest."""
    try:
        return list(handle.events(follow=False, timeout=timeout))
    except CursorTooOld as error:
        click.echo(f"posthouse: {error.message}; older events are not kept", err=True)
        after = error.detail["cursor"]
        return list(handle.events(after=after, follow=False, timeout=timeout))


def _tell_now(handle: Handle, timeout: float | None) -> None:
    now = handle.status(timeout=timeout)
    told = f": {now.reason}" if now.reason else ""
    click.echo(f"posthouse: {now.name} is {shapes.state_word(now.state)}{told}", err=True)
    if now.state is WorkerState.STARTED or now.final:
        return
    for verdict in handle.explain(timeout=timeout).verdicts:
        click.echo(f"posthouse: {shapes.verdict_text(verdict)}", err=True)
