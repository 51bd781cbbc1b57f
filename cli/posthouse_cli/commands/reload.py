"""`posthouse reload`: have workers read their configuration again, or hosts load their code anew.

Owns: which workers or hosts are told, and by which way: through the master, or, where a folder is
named, by a signal to the agent. Must not know: what they do then. Invariant: a signal goes only to
a process that holds an agent's lock, which it is the only one to hold.
"""

import fcntl
import os
import signal
from pathlib import Path

import click

from posthouse import config
from posthouse.errors import NotRunning
from posthouse_cli.context import Session, timeout_option, verb, worker_handles
from posthouse_cli.layout import Layout

__all__ = ["reload"]


@click.command()
@click.argument("workers", metavar="[NAME|GROUP:*]...", nargs=-1)
@click.option("--host", metavar="NAME", help="Only this host.")
@click.option("--runtime", metavar="NAME", default="", help="Only this runtime.")
@click.option(
    "--config", "file", metavar="FILE", help="Tell the agent of this configuration, by a signal."
)
@click.option(
    "--dir", "folder", metavar="DIR", help="Tell the agents of this cluster folder, by a signal."
)
@timeout_option("10s", "the master's answer")
@verb
def reload(
    session: Session,
    workers: tuple[str, ...],
    host: str | None,
    runtime: str,
    file: str | None,
    folder: str | None,
    timeout: float | None,
) -> int:
    """Have workers read their configuration again; without a name, hosts load code anew.

    NAME: the worker's process is sent the reload signal of its registration (HUP). A Python worker
    that has no handler for it takes no notice; exit status 3 if one is not running.

    Without NAME: every host that is reachable loads the code of its runtimes anew, for workers that
    are started from now on. Running workers go on with the code that they have; `posthouse status`
    shows which. A changed file is noticed without this. It is needed where a runtime was refused
    (it could not be loaded) and where something else than a file has changed. The master does the
    same when it gets a HUP. With --config or --dir the agents on this machine are told without a
    master.
    """
    if workers:
        if file or folder or host or runtime:
            raise click.UsageError(
                "--host, --runtime, --config and --dir are for hosts: leave out the names"
            )
        for handle in worker_handles(session, workers, timeout):
            handle.reload(timeout=timeout)
            session.out.line(f"{handle.name} is told to reload")
        return 0
    if file is None and folder is None:
        return _reload_hosts(session, host, runtime, timeout)
    if runtime:
        raise click.UsageError("a signal names no runtime: leave out --config and --dir")
    return _signal_agents(file, folder, host)


def _reload_hosts(session: Session, host: str | None, runtime: str, timeout: float | None) -> int:
    cluster = session.cluster
    if host is not None:
        cluster.reload_runtimes(host, runtime, timeout=timeout)
        session.out.line(f"{host}: told")
        return 0
    status = 0
    for found in cluster.hosts(timeout=timeout):
        if not found.reachable:
            click.echo(f"posthouse: {found.name} is not reachable, and not told", err=True)
            status = 1
        elif not runtime or runtime in found.runtimes:
            cluster.reload_runtimes(found.name, runtime, timeout=timeout)
            session.out.line(f"{found.name}: told")
    return status


def _signal_agents(file: str | None, folder: str | None, host: str | None) -> int:
    if file is not None:
        settings = config.load_agent(file, flags={"host": host}).settings
        folders = [Path(settings.runtime_dir)]
    else:
        layout = Layout.at(folder)
        hosts = layout.run / "hosts"
        names = sorted(path.name for path in hosts.iterdir()) if hosts.is_dir() else []
        folders = [layout.host(name) for name in names if host in (None, name)]
    told = 0
    for runtime_dir in folders:
        pid = _holder(runtime_dir / "agent.lock")
        if pid:
            os.kill(pid, signal.SIGHUP)
            click.echo(f"{runtime_dir.name}: told (agent {pid})")
            told += 1
    if not told:
        where = ", ".join(map(str, folders)) or f"{Layout.at(folder).run}/hosts"
        raise NotRunning(
            f"no agent runs in {where}",
            hint="say --config FILE or --dir DIR as the agent was given it",
        )
    return 0


def _holder(lock: Path) -> int:
    """The pid of the agent that holds this lock; 0 if none does."""
    try:
        with lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read(32) or 0)
    except (FileNotFoundError, NotADirectoryError):
        pass
    return 0
