"""`posthouse unclaimed` and `posthouse claim`: what runs and a restored registry does not know.

Owns: which processes are meant. Must not know: how a claim is carried out. Invariant: each process
is claimed or stopped by a request of its own, so a refusal of one leaves no doubt about others.
"""

import click

from posthouse.errors import PosthouseError
from posthouse_cli import shapes
from posthouse_cli.context import Session, json_option, timeout_option, verb

__all__ = ["claim", "unclaimed"]


@click.command(epilog=shapes.keys_text(shapes.UNCLAIMED_KEYS))
@json_option
@timeout_option("10s", "the master's answer")
@verb
def unclaimed(session: Session, as_json: bool, timeout: float | None) -> None:
    """List processes that run and that the registry does not know since it was restored.

    They go on running, and nothing of their names is started, until each is claimed, stopped, or
    ends by itself. `posthouse claim --all` takes all of them back. In a pipe: tab-separated,
    without the header.
    """
    found = session.cluster.unclaimed(timeout=timeout)
    if as_json:
        for process in found:
            session.out.json(shapes.unclaimed_json(process))
    else:
        rows = [shapes.unclaimed_cells(process) for process in found]
        session.out.table(shapes.UNCLAIMED_HEADER, rows)


@click.command()
@click.argument("tokens", metavar="TOKEN...", nargs=-1, type=int)
@click.option("--all", "every", is_flag=True, help="All that `posthouse unclaimed` lists.")
@click.option("--stop", is_flag=True, help="End them instead.")
@timeout_option("10s", "the master's answer")
@verb
def claim(
    session: Session, tokens: tuple[int, ...], every: bool, stop: bool, timeout: float | None
) -> int:
    """Make unclaimed processes registrations again, with the records they were started with.

    They go on running under their old handles. A process whose name was registered anew since is
    refused: terminate that registration, or end the process with --stop, and it is started.
    Exit status 1 if any was refused.
    """
    if bool(tokens) is every:
        raise click.UsageError("name the tokens, or say --all\n`posthouse unclaimed` lists them")
    if every:
        tokens = tuple(process.token for process in session.cluster.unclaimed(timeout=timeout))
    refused = 0
    for token in tokens:
        try:
            session.cluster.claim(token, stop=stop, timeout=timeout)
        except PosthouseError as error:
            if len(tokens) == 1:
                raise
            click.echo(f"posthouse: {token}: {error}", err=True)
            refused += 1
        else:
            session.out.line(f"{token} {'is being ended' if stop else 'is registered again'}")
    return 1 if refused else 0
