"""`posthouse register` and `posthouse run`: make a registration, and perhaps follow it.

Owns: the default name of a worker, the exit status of `run --wait`. Must not know: the fields'
rules. Invariant: leaving `run` early never ends the worker.
"""

from typing import Any

import click

from posthouse import BackgroundWorker
from posthouse.errors import PosthouseError
from posthouse.records import Event, ExitFacts
from posthouse.restart import decide
from posthouse.states import EventKind
from posthouse_cli import shapes
from posthouse_cli.commands.follow import print_event, until_deadline
from posthouse_cli.context import Session, json_option, timeout_option, verb
from posthouse_cli.fields import FIELDS, build, field_options

__all__ = ["register", "run"]

_REGISTERED_KEYS = ("handle", "name")


@click.command(epilog=shapes.keys_text(_REGISTERED_KEYS))
@field_options(*FIELDS)
@json_option
@timeout_option("10s", "the master's answer")
@verb
def register(
    session: Session,
    assignments: tuple[str, ...],
    as_json: bool,
    timeout: float | None,
    **options: Any,
) -> None:
    """Register a worker; prints its handle.

    The worker is started when its host, its start time and a free slot allow it.
    """
    handle = session.cluster.register(build(assignments, options), timeout=timeout)
    if as_json:
        session.out.json({"handle": str(handle.id), "name": handle.name})
    else:
        session.out.line(str(handle.id))


@click.command(epilog=shapes.keys_text(shapes.EVENT_KEYS))
@click.argument("main", metavar="MODULE:FUNC")
@click.option("--on", "host", multiple=True, metavar="HOST", help="The host that runs it.")
@click.option("--arg", "main_arg", multiple=True, metavar="JSON", help="The function's argument.")
@field_options("name", "restart_time", "labels", "env")
@click.option("--detach", "-d", is_flag=True, help="Only register, and print the handle.")
@click.option(
    "--wait", is_flag=True, help="Exit with the worker's own status (128+n for a signal)."
)
@click.option(
    "--foreground",
    is_flag=True,
    help="Without any master: call the function here, in this process, so that breakpoint() works.",
)
@json_option
@timeout_option(None, "the worker's end")
@verb
def run(
    session: Session,
    main: str,
    assignments: tuple[str, ...],
    detach: bool,
    wait: bool,
    foreground: bool,
    as_json: bool,
    timeout: float | None,
    **options: Any,
) -> int:
    """Register a function and follow what happens to it, until it is unregistered.

    Ctrl-C ends only the following: the worker goes on. Without --name, the name is the module's
    last part (and the function's, if it is not main).

    With --foreground nothing is registered: the function is called in this very process, with
    posthouse.worker as on a host, the terminal, and its own exit status.
    """
    if not options["name"] and not any(a.startswith("name=") for a in assignments):
        options["name"] = (_default_name(main),)
    worker = build(assignments, {**options, "main": (main,)})
    if foreground:
        if detach or wait:
            raise click.UsageError("--foreground registers nothing: leave out --detach and --wait")
        return _in_foreground(worker)
    handle = session.cluster.register(worker)
    if detach:
        session.out.line(str(handle.id))
        return 0
    last: Event | None = None
    try:
        for event in until_deadline(handle.events(), timeout):
            if event.kind is EventKind.EXITED:
                last = event
            if as_json or event.kind is not EventKind.STARTING:
                print_event(session, event, as_json)
    except (KeyboardInterrupt, PosthouseError):
        click.echo(
            f"posthouse: {handle.name} goes on; `posthouse events -f {handle.name}` follows it, "
            f"`posthouse terminate {handle.name}` ends it",
            err=True,
        )
        raise
    return _own_status(last) if wait else 0


def _in_foreground(worker: BackgroundWorker) -> int:
    from posthouse_cli import foreground

    if names := foreground.not_applied(worker):
        click.echo(f"posthouse: without effect in the foreground: {', '.join(names)}", err=True)
    status = foreground.run(worker)
    decision = decide(worker, ExitFacts(code=status), None)
    told = f"restarted after {decision.delay_s:g} s"
    if decision.kind == "unregister":
        told = "unregistered"
    click.echo(f"posthouse: {decision.reason}: on a host it would be {told}", err=True)
    return status


def _default_name(main: str) -> str:
    """acme.ingest:main -> ingest, acme.jobs:clean -> jobs.clean, posthouse.exec -> exec."""
    module, _, function = main.partition(":")
    name = module.rpartition(".")[2]
    return name if function in ("", "main") else f"{name}.{function}"


def _own_status(event: Event | None) -> int:
    exit_facts = event.exit if event else None
    if exit_facts is None or (exit_facts.code is None and exit_facts.signal is None):
        return 1
    return exit_facts.code if exit_facts.code is not None else 128 + (exit_facts.signal or 0)
