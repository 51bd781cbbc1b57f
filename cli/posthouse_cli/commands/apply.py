"""`posthouse apply`: make the registrations of a file what the file says.

Owns: the file's own keys, how a plan is shown, what --wait waits for. Must not know: how a
declaration is carried out. Invariant: a file with one wrong record changes nothing.
"""

import time
from pathlib import Path
from typing import Final

import click

from posthouse import BackgroundWorker, Cluster, Cursor, EventKind, Plan, WorkerGroup, WorkerState
from posthouse.errors import ConfigError, TimedOut
from posthouse.records import WorkerInfo
from posthouse.toml_file import TomlFile, nearest, read_toml, refusal
from posthouse.worker_tables import BadWorker, read_worker_tables
from posthouse_cli import progress, shapes
from posthouse_cli.context import Session, json_option, timeout_option, verb

__all__ = ["apply"]

_KEYS: Final = ("source", "max_unavailable", "worker")
_NEWS: Final = frozenset(
    (EventKind.STARTED, EventKind.READY, EventKind.EXITED, EventKind.START_FAILED)
) | {EventKind.UNREGISTERED, EventKind.HELD}


@click.command(epilog=shapes.keys_text(shapes.PLAN_KEYS))
@click.option(
    "-f", "--file", "path", required=True, metavar="FILE", help="TOML with [[worker]] tables."
)
@click.option(
    "--source",
    metavar="NAME",
    help="Whose declaration it is. Default: the file's own, or its name.",
)
@click.option(
    "--prune/--no-prune",
    default=True,
    help="Terminate what this source registered and the file no longer names (default: prune).",
)
@click.option(
    "--max-unavailable",
    type=click.IntRange(1),
    metavar="N",
    help="Processes that may be missing at a time while others are replaced. Default: the file's, "
    "or 1.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@click.option("--wait", "waits", is_flag=True, help="Wait until all of it runs.")
@json_option
@timeout_option("60s", "the master's answer, and with --wait for the workers")
@verb
def apply(
    session: Session,
    path: str,
    source: str | None,
    prune: bool,
    max_unavailable: int | None,
    dry_run: bool,
    waits: bool,
    as_json: bool,
    timeout: float | None,
) -> None:
    """Make the registrations of a file what the file says.

    New workers are registered. One with other content gets its next revision, and its process is
    replaced, a few at a time. What the file no longer names is terminated. The same content is
    nothing. A file with one wrong record changes nothing.
    """
    file = read_toml(path)
    own_source, own_unavailable = _settings(file)
    workers = _workers(file)
    deadline_s = None if timeout is None else time.monotonic() + timeout
    cluster = session.cluster
    before = cluster.cursor(timeout=timeout)
    plan = cluster.apply(
        workers,
        source=source or own_source or Path(path).name,
        prune=prune,
        max_unavailable=max_unavailable or own_unavailable or 1,
        dry_run=dry_run,
        timeout=timeout,
    )
    if as_json:
        session.out.json(shapes.plan_json(plan))
    else:
        session.out.table(shapes.PLAN_HEADER, [shapes.change_cells(c) for c in plan.changes])
        click.echo(f"posthouse: {_summary(plan)}", err=True)
    if waits and not dry_run:
        with progress.waiting(f"the workers of {plan.source}"):
            _await(cluster, plan.source, before, deadline_s)


def _settings(file: TomlFile) -> tuple[str, int]:
    """The file's own `source` and `max_unavailable`; "" and 0 where it says nothing."""
    for key in file.values:
        if key not in _KEYS:
            raise ConfigError(
                f"{file.where(key)}: unknown key {key!r}{nearest(key, _KEYS)}",
                file=file.path,
                field=key,
            )
    source = file.values.get("source", "")
    if not isinstance(source, str) or len(source) > 96:
        raise refusal(file.where("source"), "source", source, "text of 1 to 96 characters")
    width = file.values.get("max_unavailable", 0)
    if not isinstance(width, int) or isinstance(width, bool) or width < 0:
        rule = "a whole number from 1"
        raise refusal(file.where("max_unavailable"), "max_unavailable", width, rule)
    return source, width


def _workers(file: TomlFile) -> list[BackgroundWorker | WorkerGroup]:
    """Raises ConfigError that tells of every record that breaks a rule."""
    found: list[BackgroundWorker | WorkerGroup] = []
    wrong: list[str] = []
    for entry in read_worker_tables(file):
        if isinstance(entry, BadWorker):
            wrong.append(entry.error.message)
        elif entry.replicas is None:
            found.append(entry.worker)
        else:
            found.append(WorkerGroup(entry.worker, entry.replicas))
    if wrong:
        raise ConfigError(wrong[0], hint="\n".join((*wrong[1:], "nothing was changed")))
    return found


def _summary(plan: Plan) -> str:
    counts = [
        (plan.created, "created"),
        (plan.updated, "updated"),
        (plan.pruned, "pruned"),
        (plan.finished, "finished"),
        (plan.unchanged, "unchanged"),
    ]
    told = ", ".join(f"{count} {word}" for count, word in counts if count) or "nothing is declared"
    more = "; not all of it is shown" if plan.more else ""
    return f"{plan.source}: {told}{' (dry run)' if plan.dry_run else ''}{more}"


def _await(cluster: Cluster, source: str, after: Cursor, deadline_s: float | None) -> None:
    """Until every live worker of the source runs with its newest revision, or is held."""
    with cluster.events(after=after) as events:
        while True:
            late = [info for info in cluster.workers() if _is_late(info, source)]
            if not late:
                return
            events.timeout = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            try:
                while next(events).kind not in _NEWS:
                    pass
            except TimedOut as error:
                status = late[0].status
                raise TimedOut(
                    f"{len(late)} workers of {source} do not run yet: "
                    f"{status.name} is {shapes.state_word(status.state)}: {status.reason}",
                    hint=f"posthouse status {status.name}",
                ) from error


def _is_late(info: WorkerInfo, source: str) -> bool:
    status = info.status
    if info.source != source or status.reason.startswith("held by"):
        return False
    return status.state is not WorkerState.STARTED or status.running_revision < status.revision
