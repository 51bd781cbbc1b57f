"""`posthouse drain`: empty a host, and let it have workers again.

Owns: what is waited for. Must not know: how workers are moved. Invariant: the drain is recorded
before any waiting; a timeout takes nothing back.
"""

import time

import click

from posthouse import Cluster, Cursor, EventKind
from posthouse_cli import progress
from posthouse_cli.context import Session, timeout_option, verb
from posthouse_cli.durations import DURATION

__all__ = ["drain"]

_LEFT_SHOWN = 10
_ENDS = (EventKind.EXITED, EventKind.START_FAILED)


@click.command()
@click.argument("host", metavar="HOST")
@click.option("--force", is_flag=True, help="Also stop workers that are pinned to the host.")
@click.option(
    "--deadline",
    "--grace",
    "grace",
    type=DURATION,
    help="KILL what is being stopped there after this, where a worker's own stop grace is longer; "
    "counted from when the host hears of it.",
)
@click.option("--undo", is_flag=True, help="Let the host have starts again.")
@click.option("--no-wait", is_flag=True, help="Return once it is recorded.")
@timeout_option("2m", "the end of the workers there")
@verb
def drain(
    session: Session,
    host: str,
    force: bool,
    grace: float | None,
    undo: bool,
    no_wait: bool,
    timeout: float | None,
) -> int:
    """Give a host no more starts, and move its workers to other hosts.

    Workers that are pinned to the host are left running, and named, unless --force; exit status 1
    says that some are left. The host stays drained, also over a restart of the master, until
    `posthouse drain HOST --undo`. Asked again with a nearer deadline, or with --force, it takes
    over from what was asked before; a deadline never gives a worker more time.
    """
    cluster = session.cluster
    if undo:
        undone = cluster.undrain(host, timeout=timeout)
        session.out.line(f"{host} gets starts again" if undone else f"{host} was not being drained")
        return 0
    before = cluster.cursor(timeout=timeout)
    deadline_s = None if timeout is None else time.monotonic() + timeout
    drained = cluster.drain(host, force=force, grace_s=grace, timeout=timeout)
    left = ", ".join(drained.left[:_LEFT_SHOWN])
    if drained.left_count:
        click.echo(
            f"posthouse: {drained.left_count} workers are pinned to {host} and go on: {left}"
            f"{' and others' if drained.left_count > _LEFT_SHOWN else ''} (--force stops them)",
            err=True,
        )
    if not no_wait and drained.stopped:
        with progress.waiting(f"the end of {drained.stopped} workers on {host}"):
            _await(cluster, host, drained.left_count, before, deadline_s)
    if no_wait:
        done = "is being emptied"
    elif drained.left_count:
        done = f"is drained but for {drained.left_count} pinned workers"
    else:
        done = "is drained"
    session.out.line(f"{host} {done}: {drained.stopped} workers stopped there")
    return 1 if drained.left_count else 0


def _await(
    cluster: Cluster, host: str, left: int, before: Cursor, deadline_s: float | None
) -> None:
    """Until no more than those that are left have a process there."""
    while _running(cluster, host) > left:
        left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
        for event in cluster.events(after=before, timeout=left_s):
            before = event.cursor
            if event.kind in _ENDS and event.host == host:
                break


def _running(cluster: Cluster, host: str) -> int:
    return next(found.workers for found in cluster.hosts() if found.name == host)
