"""`posthouse master` and `posthouse agent`: settings from file, environment and flags; then run.

Owns: the flags that are needed without a file. Must not know: what the daemons do.
Invariant: a value is checked in posthouse.config, wherever it comes from.
"""

import dataclasses
import functools
import os
import sys
from typing import Any

import click

from posthouse import config, paths
from posthouse.settings import AgentSettings
from posthouse_cli.layout import Layout

__all__ = ["agent", "master"]

_config = click.option(
    "--config", "file", metavar="FILE", help="TOML; see deploy/ for a commented sample."
)
_folder = click.option(
    "--dir",
    "folder",
    metavar="DIR",
    help="Keep everything of a cluster on this machine in this folder: sockets, registry, logs.",
)
_log_format = click.option(
    "--log-format",
    type=click.Choice(["auto", "console", "json"]),
    help="Form of the daemon's own log lines, which go to standard error.",
)


@click.command()
@_config
@_folder
@click.option("--listen-clients", metavar="ENDPOINT", help="Where clients are served.")
@click.option("--listen-agents", metavar="ENDPOINT", help="Where agents are served.")
@click.option("--state-dir", metavar="DIR", help="Folder of the registry.")
@click.option(
    "--preload-path",
    multiple=True,
    metavar="DIR",
    help="Where to look for preload_libraries first; may be repeated.",
)
@_log_format
def master(file: str | None, folder: str | None, **flags: Any) -> int:
    """Run the master: the registry, its restart decisions, its event log.

    Flags win over POSTHOUSE_* variables, these over the file, that over the defaults. TERM and
    Ctrl-C end only this process: workers go on, and agents wait for the next master.
    """
    if folder is not None:
        layout = Layout.at(folder)
        paths.private_dir(layout.run)
        flags["listen_clients"] = flags["listen_clients"] or layout.clients
        flags["listen_agents"] = flags["listen_agents"] or layout.agents
        flags["state_dir"] = flags["state_dir"] or str(layout.registry)
    loaded = config.load_master(file, flags=flags)
    _say(loaded.warnings)
    from posthouse_master import daemon

    return daemon.run(loaded.settings)


@click.command()
@_config
@_folder
@click.option("--host", metavar="NAME", help="This host's name. Default: the machine's.")
@click.option("--master", metavar="ENDPOINT", help="Where the master serves agents (not clients).")
@click.option("--runtime-dir", metavar="DIR", help="Sockets, locks and journals of this host.")
@click.option("--log-dir", metavar="DIR", help="Output of this host's workers.")
@click.option("--label", "labels", multiple=True, help="A label for placement; may be repeated.")
@click.option(
    "--module",
    "modules",
    multiple=True,
    help='What may be run here: "acme.jobs", "acme.*" or "*"; may be repeated.',
)
@click.option("--allow-exec", is_flag=True, default=None, help="Allow posthouse.exec.")
@click.option(
    "--path",
    "import_path",
    multiple=True,
    metavar="DIR",
    help="Import folder of the workers; may be repeated.",
)
@click.option(
    "--clients",
    metavar="ENDPOINT",
    help="Where the master serves clients: becomes POSTHOUSE_MASTER of the workers.",
)
@_log_format
def agent(
    file: str | None,
    folder: str | None,
    import_path: tuple[str, ...],
    clients: str | None,
    **flags: Any,
) -> int:
    """Run a host's agent, which starts the host's wardens as they are needed.

    Flags win over POSTHOUSE_* variables, these over the file, that over the defaults. TERM and
    Ctrl-C end only this process: wardens and workers go on, and the next agent finds them.

    As pid 1, in a container, it becomes a small init: it starts wardens and the agent, starts
    them again when they end, and TERM ends the workers, the wardens and the agent, in this order.
    """
    if folder is not None:
        layout = Layout.at(folder)
        paths.private_dir(layout.run)
        host = flags["host"] or config.load_agent(file, flags=flags).settings.host
        flags["master"] = flags["master"] or layout.agents
        flags["runtime_dir"] = flags["runtime_dir"] or str(layout.host(host))
        flags["log_dir"] = flags["log_dir"] or str(layout.logs(host))
        clients = clients or layout.clients
    loaded = config.load_agent(file, flags=flags)
    _say(loaded.warnings)
    if os.getpid() == 1:
        return _be_init(loaded.settings)
    from posthouse_agent import daemon

    return daemon.run(_with_runtime(loaded.settings, import_path, clients))


def _be_init(settings: AgentSettings) -> int:
    """Start them as processes of their own: neither a warden nor an agent is pid 1."""
    from posthouse_agent import init
    from posthouse_agent.wardens import is_wanted, warden_argv
    from posthouse_agent.wards import KINDS

    paths.private_dir(settings.runtime_dir)
    command = [sys.executable, "-P", "-m", "posthouse_cli", *sys.argv[1:]]
    wardens = {kind: warden_argv(settings, kind) for kind in KINDS}
    return init.run(wardens, command, functools.partial(is_wanted, settings.runtime_dir))


def _with_runtime(
    settings: AgentSettings, path: tuple[str, ...], clients: str | None
) -> AgentSettings:
    """The default runtime with a further import path and POSTHOUSE_MASTER."""
    folders = tuple(os.path.abspath(folder) for folder in path)  # noqa: PTH100
    variables = {"POSTHOUSE_MASTER": clients} if clients else {}
    default, *others = settings.runtimes
    default = dataclasses.replace(
        default, path=(*folders, *default.path), env={**variables, **default.env}
    )
    return dataclasses.replace(settings, runtimes=(default, *others))


def _say(warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        click.echo(f"posthouse: {warning}", err=True)
