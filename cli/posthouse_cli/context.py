"""What all verbs share: the connection, the output, and the options that many take.

Owns: one lazily made client connection for one command. Must not know: any verb. Invariant: a verb
that needs no master makes no connection.
"""

import difflib
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from click.core import ParameterSource

import posthouse
from posthouse.errors import NoSuchWorker, PosthouseError, Unreachable
from posthouse_cli import durations, render

__all__ = [
    "Session",
    "json_option",
    "timeout_option",
    "verb",
    "worker_argument",
    "worker_handle",
    "worker_handles",
    "workers_argument",
]

Function = TypeVar("Function", bound=Callable[..., Any])

_COMPLETE_S = 1.0
_CONNECT_S = 3.0  # a restarting master answers within this; without one, nobody waits longer


class Session:
    """One command's connection and way of printing."""

    def __init__(self, master: str | None = None, color: str = "auto") -> None:
        self.master = master
        self.connect_s = _CONNECT_S
        self.color = color
        self._cluster: posthouse.Cluster | None = None

    @property
    def cluster(self) -> posthouse.Cluster:
        """The connection; made at the first use. Raises Unreachable."""
        if self._cluster is None:
            try:
                self._cluster = posthouse.connect(self.master, timeout=self.connect_s)
            except Unreachable as error:
                hint = error.hint or (
                    "is it running? `posthouse up` starts one here; another one is named by "
                    "--master or $POSTHOUSE_MASTER"
                )
                raise Unreachable(error.message, hint=hint, **error.detail) from error
        return self._cluster

    @property
    def out(self) -> render.Output:
        return render.Output(self.color)

    def close(self) -> None:
        """Close the connection, if one was made."""
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None


def verb(function: Function) -> Function:
    """Give a command the session as its first argument, and `--master` after the verb as well."""

    @click.option("--master", metavar="ENDPOINT", help="Where the master serves clients.")
    @click.pass_context
    @functools.wraps(function)
    def wrapped(context: click.Context, /, master: str | None, **options: Any) -> Any:
        session = context.find_object(Session)
        assert session is not None
        session.master = master or session.master
        if context.get_parameter_source("timeout") is ParameterSource.COMMANDLINE:
            # 0 is "do not wait for it"; to ask at all takes a moment.
            session.connect_s = options["timeout"] or _CONNECT_S
        return function(session, **options)

    return wrapped  # type: ignore[return-value]


def timeout_option(default: str | None, what: str) -> Callable[[Function], Function]:
    """`--timeout`; no default means for ever."""
    shown = f"default {default}" if default else "default: as long as it takes"
    return click.option(
        "--timeout",
        type=durations.DURATION,
        default=default,
        help=f"Give up waiting for {what} after this long ({shown}).",
    )


json_option = click.option(
    "--json", "as_json", is_flag=True, help="JSON: one object, or one a line for lists."
)


def _names(context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    """What a shell may complete a worker's name to. Nobody waits long for a TAB, nor is an error
    of any use there."""
    master = context.params.get("master") or context.find_root().params.get("master")
    try:
        with posthouse.connect(master, timeout=_COMPLETE_S) as cluster:
            workers = cluster.workers(timeout=_COMPLETE_S)
            found = {info.status.name for info in workers}
    except (PosthouseError, OSError):
        return []
    return sorted(name for name in found if name.startswith(begun))


worker_argument = click.argument("worker", metavar="NAME", shell_complete=_names)
workers_argument = click.argument(
    "workers", metavar="NAME|GROUP:*...", nargs=-1, required=True, shell_complete=_names
)


def worker_handles(
    session: Session, workers: Sequence[str], timeout: float | None = None
) -> list[posthouse.Handle]:
    """The handles of names; GROUP:* stands for the members of a group. Raises NoSuchWorker."""
    found: list[posthouse.Handle] = []
    for worker in workers:
        if not worker.endswith(":*"):
            found.append(worker_handle(session, worker, timeout))
            continue
        members = session.cluster.group(worker[:-2], timeout=timeout).handles
        if not members:
            raise _no_group(session, worker[:-2], timeout)
        found += members
    return found


def _no_group(session: Session, group: str, timeout: float | None) -> NoSuchWorker:
    groups = {info.group for info in session.cluster.workers(timeout=timeout)} - {""}
    near = difflib.get_close_matches(group, groups, 1)
    hint = f"did you mean '{near[0]}:*'?" if near else "`posthouse ps` lists the workers"
    return NoSuchWorker(f"no group {group!r} has members", hint=hint)


def worker_handle(session: Session, worker: str, timeout: float | None = None) -> posthouse.Handle:
    """The handle of a name. Raises NoSuchWorker that names the nearest one."""
    try:
        return session.cluster.handle(worker, timeout=timeout)
    except NoSuchWorker as error:
        if error.hint:
            raise
        names = {info.status.name for info in session.cluster.workers(timeout=timeout)}
        near = difflib.get_close_matches(worker, names, 1)
        hint = f"did you mean {near[0]!r}?" if near else "`posthouse ps -a` lists what there is"
        raise NoSuchWorker(error.message, hint=hint, **error.detail) from None
