"""`posthouse wait`, `terminate`, `hold`, `release`, `restart`, `signal` and `shutdown`.

Owns: what each waits for, and which outcome is which exit status. Must not know: how the cluster
does it. Invariant: what was asked for is recorded before any waiting; a timeout takes nothing back.
"""

import time
from collections.abc import Callable

import click

from posthouse import (
    Cluster,
    Cursor,
    Event,
    EventKind,
    Handle,
    Phase,
    ShutdownMode,
    Status,
    WorkerState,
)
from posthouse.errors import NoSuchWorker, PosthouseError, TimedOut, Unreachable
from posthouse_cli import progress, shapes
from posthouse_cli.context import (
    Session,
    json_option,
    timeout_option,
    verb,
    worker_argument,
    worker_handle,
    worker_handles,
    workers_argument,
)

__all__ = ["hold", "release", "restart", "shutdown", "signal", "terminate", "wait"]

_LOOK_S = 3.0
_GOALS: dict[str, tuple[Callable[..., Status], Callable[[Status], bool]]] = {
    "started": (Handle.wait_for_startup, lambda s: s.state is WorkerState.STARTED),
    "ready": (Handle.wait_for_ready, lambda s: s.state is WorkerState.STARTED and s.ready),
    "exit": (Handle.wait_for_shutdown, lambda s: s.state is WorkerState.STOPPED),
    "gone": (Handle.wait_until_unregistered, lambda s: s.final),
}
_LAST_WORD_S = 2.0  # for the master to say how far a shutdown is
_HOSTS_SHOWN = 10


@click.command(epilog=shapes.keys_text(shapes.STATUS_KEYS))
@worker_argument
@click.option(
    "--for",
    "goal",
    type=click.Choice(list(_GOALS)),
    default="gone",
    show_default=True,
    help="started: it runs. ready: it called worker.ready(). exit: it stopped, perhaps to be "
    "restarted. gone: it is unregistered.",
)
@json_option
@timeout_option(None, "it")
@verb
def wait(session: Session, worker: str, goal: str, as_json: bool, timeout: float | None) -> int:
    """Wait until something is true of a worker; prints what is.

    --timeout 0 looks once. Exit status 0 if it came true, 1 if it no longer can, 4 if the master
    died, 5 if timed out.
    """
    handle = worker_handle(session, worker)
    reach, reached = _GOALS[goal]
    with progress.waiting(f"{handle.name}: {goal}"):
        status = _look(handle, goal) if timeout == 0 else reach(handle, timeout=timeout)
    if status.state is WorkerState.POSTMASTER_DIED:
        raise Unreachable(f"{handle.name}: {status.reason}")
    if as_json:
        session.out.json(shapes.status_json(status))
    else:
        session.out.line(_sentence(status))
    return 0 if reached(status) else 1


def _look(handle: Handle, goal: str) -> Status:
    """What it is now, if nothing is to be waited for. Raises TimedOut if more may come."""
    status = handle.status(timeout=_LOOK_S)
    if not _GOALS[goal][1](status) and not status.final:
        raise TimedOut(f"{_sentence(status)}; not waited for {goal}", status=status)
    return status


def _sentence(status: Status) -> str:
    where = f" on {status.host}" if status.host else ""
    process = f" with pid {status.pid}" if status.pid else ""
    why = f": {status.reason}" if status.reason else ""
    return f"{status.name} is {shapes.state_word(status.state)}{where}{process}{why}"


@click.command()
@workers_argument
@click.option("--no-wait", is_flag=True, help="Return once it is recorded.")
@timeout_option("60s", "the end of all of them")
@verb
def terminate(
    session: Session, workers: tuple[str, ...], no_wait: bool, timeout: float | None
) -> int:
    """End workers and unregister them.

    Each gets its stop signal (TERM), and KILL after its stop grace; it is never restarted. Exit
    status 3 if one of them is unknown or unregistered already.
    """
    handles = worker_handles(session, workers)
    gone = [handle for handle in handles if not handle.terminate()]
    for handle in gone:
        click.echo(f"posthouse: {handle.name} is unregistered already", err=True)
    deadline_s = None if timeout is None else time.monotonic() + timeout
    for handle in handles:
        if handle in gone:
            continue
        if no_wait:
            session.out.line(f"{handle.name} is being terminated")
            continue
        left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
        with progress.waiting(f"the end of {handle.name}"):
            status = handle.wait_until_unregistered(timeout=left_s)
        if status.state is WorkerState.POSTMASTER_DIED:
            raise Unreachable(f"{handle.name}: {status.reason}")
        session.out.line(f"{handle.name} is unregistered: {status.reason}")
    return NoSuchWorker.exit_status if gone else 0


@click.command()
@workers_argument
@click.option("--no-wait", is_flag=True, help="Return once it is recorded.")
@timeout_option("60s", "the end of their processes")
@verb
def hold(session: Session, workers: tuple[str, ...], no_wait: bool, timeout: float | None) -> None:
    """Stop workers and keep them stopped until `posthouse release`.

    They stay registered, also over a restart of the master.
    """
    deadline_s = None if timeout is None else time.monotonic() + timeout
    begun = [_begin(each, Handle.hold, timeout) for each in worker_handles(session, workers)]
    for handle, changed, before in begun:
        if not changed:
            session.out.line(f"{handle.name} is held already")
        elif no_wait:
            session.out.line(f"{handle.name} is to be held")
        else:
            _await(handle, EventKind.HELD, before, deadline_s)
            session.out.line(f"{handle.name} is held")


@click.command()
@workers_argument
@timeout_option("10s", "the master's answer")
@verb
def release(session: Session, workers: tuple[str, ...], timeout: float | None) -> None:
    """End a hold: the workers are started as soon as they can be placed."""
    for handle in worker_handles(session, workers):
        released = handle.release(timeout=timeout)
        session.out.line(f"{handle.name} is released" if released else f"{handle.name} is not held")


@click.command()
@workers_argument
@click.option("--no-wait", is_flag=True, help="Return once it is recorded.")
@timeout_option("60s", "their new processes")
@verb
def restart(
    session: Session, workers: tuple[str, ...], no_wait: bool, timeout: float | None
) -> None:
    """End workers' processes and start them again at once.

    One that waits for its restart delay is started now. A held worker is refused.
    """
    deadline_s = None if timeout is None else time.monotonic() + timeout
    begun = [_begin(each, Handle.restart, timeout) for each in worker_handles(session, workers)]
    for handle, changed, before in begun:
        if not changed:
            session.out.line(f"{handle.name} is being started or restarted already")
        elif no_wait:
            session.out.line(f"{handle.name} is to be restarted")
        else:
            started = _await(handle, EventKind.STARTED, before, deadline_s)
            session.out.line(f"{handle.name} runs on {started.host} with pid {started.pid}")


def _begin(
    handle: Handle, ask: Callable[..., bool], timeout: float | None
) -> tuple[Handle, bool, Cursor]:
    """Ask for it. Whether that changed anything, and a place in the log before it did."""
    before = handle.status(timeout=timeout).cursor
    return handle, ask(handle, timeout=timeout), before


def _await(handle: Handle, kind: EventKind, after: Cursor, deadline_s: float | None) -> Event:
    """The first such event after a place in the log."""
    left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
    with progress.waiting(f"{handle.name} to be {kind}"):
        for event in handle.events(after=after, timeout=left_s):
            if event.kind is kind:
                return event
            if event.kind is EventKind.UNREGISTERED:
                raise NoSuchWorker(f"{handle.name} was unregistered: {event.reason}")
    raise TimedOut(
        f"{handle.name}: no {kind} event in time", hint=f"posthouse status {handle.name}"
    )


@click.command()
@worker_argument
@click.argument("name", metavar="SIGNAL")
@timeout_option("10s", "the master's answer")
@verb
def signal(session: Session, worker: str, name: str, timeout: float | None) -> None:
    """Send a signal to a worker's process: HUP, SIGHUP or 1.

    An exit that it leads to is one that nobody asked for: the restart rules apply. Exit status 3
    if the worker is not running.
    """
    handle = worker_handle(session, worker, timeout)
    handle.signal(int(name) if name.isdecimal() else name, timeout=timeout)


@click.command()
@click.option(
    "-m",
    "--mode",
    type=click.Choice([str(mode) for mode in ShutdownMode]),
    default="fast",
    show_default=True,
    help="smart: no new registrations, wait until the workers end by themselves. fast: TERM, then "
    "KILL after each one's grace. immediate: QUIT, KILL after 5 s.",
)
@timeout_option("2m", "the workers' end")
@verb
def shutdown(session: Session, mode: str, timeout: float | None) -> int:
    """End all workers of the cluster, and then the master; registrations are kept.

    Nothing is started meanwhile, nor does a due restart count. Agents go on and wait: the next
    start of the master starts the workers again, but for those that are held. A harder mode takes
    over from a milder one. Hosts that are away have 10 s to come back; smart waits for them. Exit
    status 1 if a host was not reached or a worker did not end in time; 5 if it is not over yet.
    """
    try:
        with progress.waiting(f"the {mode} shutdown"):
            told = session.cluster.shutdown(mode, timeout=timeout)
    except TimedOut as unanswered:
        raise _not_over_yet(session.cluster, mode, unanswered) from None
    session.out.line(told)
    return 0 if told == f"{mode} shutdown" else 1


def _not_over_yet(cluster: Cluster, mode: str, unanswered: TimedOut) -> TimedOut:
    """What the master says of a shutdown that has not ended; if it says nothing, the error."""
    try:
        phase = cluster.phase(timeout=_LAST_WORD_S)
        if phase.phase is not Phase.STOPPING:
            return unanswered
        running = [host for host in cluster.hosts(timeout=_LAST_WORD_S) if host.workers]
    except PosthouseError:
        return unanswered
    on = ", ".join(f"{host.workers} on {host.name}" for host in running[:_HOSTS_SHOWN])
    others = f" and on {more} other hosts" if (more := len(running) - _HOSTS_SHOWN) > 0 else ""
    return TimedOut(
        f"the {mode} shutdown goes on; workers left: {on}{others}"
        if on
        else f"the {mode} shutdown goes on",
        hint="ask again to wait for its end; a harder mode takes over",
    )
