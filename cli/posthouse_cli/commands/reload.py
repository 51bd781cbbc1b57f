"""`posthouse reload`: have this machine's hosts load the code of their runtimes anew.

Owns: which agents are told. Must not know: what they do then. Invariant: a signal goes only to a
process that holds an agent's lock, which it is the only one to hold.
"""

import fcntl
import os
import signal
from pathlib import Path

import click

from posthouse import config
from posthouse.errors import NotRunning
from posthouse_cli.layout import Layout

__all__ = ["reload"]


@click.command()
@click.option("--config", "file", metavar="FILE", help="The configuration of the agent to tell.")
@click.option("--dir", "folder", metavar="DIR", help="The folder of a cluster on this machine.")
@click.option("--host", metavar="NAME", help="Only this host.")
def reload(file: str | None, folder: str | None, host: str | None) -> int:
    """Load the code of the runtimes on this machine anew, for workers that are started from now on.

    Running workers go on with the code that they have; `posthouse status` shows which. A changed
    file is noticed without this. It is needed where a runtime was refused (it could not be loaded)
    and where something else than a file has changed. All hosts of a cluster do the same when the
    master gets a HUP.
    """
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
