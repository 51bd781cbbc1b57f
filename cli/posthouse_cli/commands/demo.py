"""`posthouse demo`: the first screen of the README, played with real processes and checked."""

import click

from posthouse_cli.context import Session

__all__ = ["demo"]


@click.command()
@click.option("--keep", is_flag=True, help="Leave the cluster running afterwards.")
@click.pass_obj
def demo(session: Session, keep: bool) -> int:
    """Show it: two hosts, a worker, kill -9, the restart; then ten kills that lose no line.

    Starts a master and the hosts a and b in a temporary folder, prints each command with its
    output, checks every step, and cleans up. Exit status 0 only if all held.
    """
    from posthouse_cli.demo import Demo

    return Demo(session.out.line, keep=keep).run()
