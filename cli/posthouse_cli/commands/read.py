"""`posthouse ps`, `status`, `pid` and `hosts`: what is there now.

Owns: which facts each view shows. Must not know: how they are drawn (render) or spelt (shapes).
Invariant: reading changes nothing.
"""

import time

import click
from click.core import ParameterSource

from posthouse import Handle, limits
from posthouse.errors import NotRunning, RefusedError, TimedOut, UsageError
from posthouse.records import HostInfo, Status
from posthouse.states import Phase, WorkerState
from posthouse_cli import progress, shapes
from posthouse_cli.context import (
    Session,
    json_option,
    timeout_option,
    verb,
    worker_argument,
    worker_handle,
)
from posthouse_cli.durations import shown
from posthouse_cli.load import look_at

__all__ = ["hosts", "pid", "ps", "stacks", "status"]

_TAIL_LINES = 10
_JOIN_S = 60.0  # for hosts to join, unless --timeout says otherwise
_LOOK_S = 0.1  # between two looks whether a host has joined


@click.command(epilog=shapes.keys_text(shapes.WORKER_KEYS))
@click.option("--all", "-a", "retired", is_flag=True, help="Also those that are unregistered.")
@click.option("--quiet", "-q", is_flag=True, help="Only handles.")
@click.option("--group", default="", metavar="NAME", help="Only the live members of a group.")
@json_option
@timeout_option("10s", "the master's answer")
@verb
def ps(
    session: Session,
    retired: bool,
    quiet: bool,
    group: str,
    as_json: bool,
    timeout: float | None,
) -> None:
    """List the registrations and what became of each.

    In a pipe: tab-separated, without the header.
    """
    workers = session.cluster.workers(retired=retired, group=group, timeout=timeout)
    if as_json:
        for info in workers:
            session.out.json(shapes.worker_json(info))
    elif quiet:
        for info in workers:
            session.out.line(shapes.handle_text(info.status.handle))
    else:
        session.out.table(shapes.WORKER_HEADER, [shapes.worker_cells(info) for info in workers])
        _tell_phase(session, timeout)
        _tell_unclaimed(session.cluster.hosts(timeout=timeout))
        for report in session.cluster.reports(timeout=timeout):
            click.echo(f"posthouse: {report}", err=True)


@click.group(invoke_without_command=True, epilog=shapes.keys_text(shapes.HOST_KEYS))
@click.option(
    "--wait",
    "wanted",
    metavar="NAMES|N",
    help="First wait, a minute or --timeout, until these hosts (as in a,b), or so many of any, are "
    "reachable.",
)
@json_option
@timeout_option("10s", "the master's answer")
@verb
def hosts(session: Session, wanted: str | None, as_json: bool, timeout: float | None) -> None:
    """List the hosts that have ever joined, and what is in use of those that are reachable.

    A host that is just starting joins a moment later: --wait is for scripts. Exit status 5 if
    they are not there in time.

    CPU% is of all processors together, over a fifth of a second; LOAD the number of runnable
    processes, mean of a minute. In a pipe: tab-separated, without the header.
    """
    if click.get_current_context().invoked_subcommand is not None:
        return
    if wanted is not None:
        given = click.get_current_context().get_parameter_source("timeout")
        _await(session, wanted, _JOIN_S if given is ParameterSource.DEFAULT else timeout)
    found = session.cluster.hosts(timeout=timeout)
    loads = look_at(session.cluster, found, timeout)
    if as_json:
        for host in found:
            session.out.json(shapes.host_json(host, loads.get(host.name)))
    else:
        rows = [shapes.host_cells(host, loads.get(host.name)) for host in found]
        session.out.table(shapes.HOST_HEADER, rows)
        _tell_phase(session, timeout)
        _tell_unclaimed(found)


def _await(session: Session, wanted: str, timeout: float | None) -> None:
    """Until they are reachable. Raises TimedOut, which names who is not. It asks again and again:
    of a host that is back after a restart of the master no event tells, as it was never away."""
    names = set() if wanted.isdecimal() else {name.strip() for name in wanted.split(",")}
    if "" in names:
        raise UsageError(f"--wait is {wanted!r}: must be names, as in a,b, or a number")
    count = int(wanted) if wanted.isdecimal() else len(names)
    end_s = float("inf") if timeout is None else time.monotonic() + timeout
    session.connect_s = timeout or session.connect_s  # the master may be starting, too
    with progress.waiting(f"hosts: {wanted}"):
        while True:
            up = {host.name for host in session.cluster.hosts(timeout=timeout) if host.reachable}
            if names <= up and len(up) >= count:
                return
            if time.monotonic() >= end_s:
                here = ", ".join(sorted(up)) or "none"
                who = ", ".join(sorted(names - up)) or f"{count} hosts"
                raise TimedOut(f"{who}: not reachable yet; reachable: {here}")
            time.sleep(_LOOK_S)


def _tell_unclaimed(hosts: list[HostInfo]) -> None:
    count = sum(host.unclaimed for host in hosts)
    if count:
        click.echo(
            f"posthouse: {count} processes run that the registry does not know since it was "
            "restored: `posthouse unclaimed` lists them",
            err=True,
        )


@hosts.command()
@click.argument("host", metavar="HOST")
@click.option(
    "--confirm-dead", is_flag=True, help="You know that its machine is off; else they run twice."
)
@timeout_option("10s", "the master's answer")
@verb
def forget(session: Session, host: str, confirm_dead: bool, timeout: float | None) -> None:
    """Say that a host is gone for good: its workers may run elsewhere, and it is listed no more.

    Refused while the host is heard. A host whose lease is over needs no such word; one of a cluster
    without leases does, and so do workers that are pinned to it.
    """
    told = session.cluster.forget_host(host, confirm_dead=confirm_dead, timeout=timeout)
    session.out.line(f"{host} is forgotten: {told}")


def _tell_phase(session: Session, timeout: float | None) -> None:
    """Where not everything may be started, people who look at a list are told."""
    now = session.cluster.phase(timeout=timeout)
    if now.phase is not Phase.RUNNING:
        why = f": {now.reason}" if now.reason else ""
        click.echo(f"posthouse: the phase of the cluster is {now.phase}{why}", err=True)


@click.command(epilog=shapes.keys_text((*shapes.STATUS_KEYS, "output_tail", "verdicts")))
@worker_argument
@click.option("--why", is_flag=True, help="Also whether each host could run it, and why not.")
@json_option
@timeout_option("10s", "the master's answer")
@verb
def status(session: Session, worker: str, why: bool, as_json: bool, timeout: float | None) -> int:
    """Show one worker: its state and why, its last exit, the end of its output.

    Exit status 0 if it is started, 3 if not. NAME may be a name or a handle.
    """
    handle = worker_handle(session, worker, timeout)
    now = handle.status(timeout=timeout)
    tail = _tail(handle, timeout)
    verdicts = handle.explain(timeout=timeout).verdicts if why else None
    if as_json:
        each = None if verdicts is None else [shapes.verdict_json(one) for one in verdicts]
        session.out.json({**shapes.status_json(now), "output_tail": tail, "verdicts": each})
    else:
        lines = [shapes.verdict_text(one) for one in verdicts or ()]
        session.out.pairs([*_facts(now), ("hosts", "\n".join(lines)), ("output", tail)])
    return 0 if now.state is WorkerState.STARTED else NotRunning.exit_status


def _facts(now: Status) -> list[tuple[str, str]]:
    state = shapes.state_word(now.state)
    if now.ready:
        state += ", ready"
    if now.stopping:
        state += f", being stopped ({now.stopping})"
    if not now.reachable:
        heard = "" if now.last_heard_s is None else f", last heard {shown(now.last_heard_s)} ago"
        state += f", its host is not reachable{heard}"
    last = now.last_exit
    return [
        ("name", now.name),
        ("state", state),
        ("why", now.reason),
        ("host", now.host),
        ("pid", str(now.pid or "")),
        ("up", shapes.up_for(now)),
        ("starts", str(now.incarnation)),
        ("revision", _revision(now)),
        ("runtime", f"{now.runtime}, code {now.code}" if now.code else now.runtime),
        ("restart", f"in {shown(now.restart_in_s)}" if now.restart_in_s is not None else ""),
        ("last exit", shapes.exit_words(last)),
        ("traceback", last.traceback.rstrip() if last else ""),
        ("handle", shapes.handle_text(now.handle)),
    ]


def _revision(now: Status) -> str:
    """Only where there has been more than one."""
    if now.revision == 1:
        return ""
    old = now.pid is not None and now.running_revision != now.revision
    return (
        f"{now.revision} (the process is of {now.running_revision})" if old else f"{now.revision}"
    )


def _tail(handle: Handle, timeout: float | None) -> str:
    """The last lines it wrote, if its host can be asked."""
    try:
        page = handle.output(limit=limits.exit_tail_bytes_max, timeout=timeout)
    except (RefusedError, TimedOut):
        return ""
    return "\n".join(page.text.splitlines()[-_TAIL_LINES:])


@click.command(epilog=shapes.keys_text(("name", "host", "pid")))
@worker_argument
@json_option
@timeout_option("10s", "the master's answer")
@verb
def pid(session: Session, worker: str, as_json: bool, timeout: float | None) -> None:
    """Print the process id of a worker, a number on its host.

    Exit status 3 if it is not running.
    """
    now = worker_handle(session, worker, timeout).status(timeout=timeout)
    if now.state is not WorkerState.STARTED or now.pid is None:
        raise NotRunning(
            f"{now.name or worker} is {shapes.state_word(now.state)}: {now.reason}",
            hint=f"`posthouse status {worker}` tells more",
        )
    if as_json:
        session.out.json({"name": now.name, "host": now.host, "pid": now.pid})
    else:
        session.out.line(str(now.pid))


@click.command(epilog=shapes.keys_text(("name", "stacks")))
@worker_argument
@json_option
@timeout_option("10s", "the host's answer")
@verb
def stacks(session: Session, worker: str, as_json: bool, timeout: float | None) -> None:
    """Show where a Python worker is: the stacks of its threads, the innermost call first.

    The worker need not take part: it works where one hangs in a loop or in a lock. All that it
    notices is a system call that is interrupted, which Python repeats. Exit status 3 if it is not
    running.
    """
    handle = worker_handle(session, worker, timeout)
    told = handle.stacks(timeout=timeout).rstrip()
    if as_json:
        session.out.json({"name": handle.name, "stacks": told})
    else:
        session.out.line(told)
