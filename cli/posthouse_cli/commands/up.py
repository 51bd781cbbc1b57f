"""`posthouse up`: a whole cluster on this machine, in the foreground."""

import os
import shlex
from pathlib import Path
from typing import Final

import click

from posthouse import config, paths
from posthouse.errors import ConfigError, UsageError
from posthouse.settings import MasterSettings
from posthouse_cli.context import Session
from posthouse_cli.layout import Layout

__all__ = ["up"]

_FILE: Final = "posthouse.toml"
_OWN: Final = (
    *("state_dir", "listen_agents", "listen_clients"),
    *("key_file", "principals_file", "insecure"),
)


@click.command()
@click.option("--hosts", default="a,b", show_default=True, help="Names of the hosts to play.")
@click.option(
    "--dir",
    "folder",
    metavar="DIR",
    help="Folder of sockets, registry and logs; a short path. Default: $POSTHOUSE_DIR, else this "
    "user's own folders.",
)
@click.option(
    "--path",
    "import_path",
    multiple=True,
    metavar="DIR",
    help="Import folder of the workers, besides the current one; may be repeated.",
)
@click.option(
    "--config",
    "file",
    metavar="FILE",
    help="TOML with [[worker]] and [databases.NAME] tables and preload_libraries. "
    "Default: ./posthouse.toml, if there is one.",
)
@click.pass_obj
def up(
    session: Session,
    hosts: str,
    folder: str | None,
    import_path: tuple[str, ...],
    file: str | None,
) -> int:
    """Run a master and some hosts on this machine, until Ctrl-C.

    Workers may be any function that can be imported from the current folder, and any program.
    Ctrl-C or TERM ends the workers (TERM, then KILL after each one's grace) and then everything
    else; registrations are kept, and the workers run again at the next `posthouse up`. What a
    killed `posthouse up` leaves behind is ended by the next one.

    Workers that FILE declares are there with each `posthouse up`; those that it no longer names are
    terminated.
    """
    names = [name.strip() for name in hosts.split(",")]
    if not all(names) or len(set(names)) != len(names):
        raise UsageError(f"--hosts is {hosts!r}: must be different names, as in --hosts a,b")
    folder = folder or os.environ.get("POSTHOUSE_DIR")
    layout = Layout.at(folder) if folder else Layout(paths.local_dir(), paths.state_dir() / "up")
    from posthouse_cli.house import Declared, House

    declared = None
    if file is not None or Path(_FILE).exists():
        settings = _declared(file or _FILE)
        declared = Declared(
            os.path.abspath(file or _FILE),  # noqa: PTH100
            settings.preload_path,
            settings.preload_timeout_s if settings.preload_libraries else 0.0,
            config.load_databases(file or _FILE),
        )

    def say(text: str) -> None:
        click.echo(f"posthouse: {text}", err=True)

    elsewhere = layout.clients != paths.clients_endpoint()
    ready = [
        f"ready: hosts {', '.join(names)}. In another terminal, from any folder, type",
        *([f"  export POSTHOUSE_MASTER={shlex.quote(layout.clients)}"] if elsewhere else []),
        f"  posthouse run MODULE:FUNCTION --on {names[-1]}",
        "  posthouse ps",
        "Ctrl-C here ends everything.",
    ]
    house = House(
        layout,
        names,
        path=(".", *import_path),
        declared=declared,
        say=say,
        colors=session.out.colors,
    )
    return house.run(ready)


def _declared(file: str) -> MasterSettings:
    """A file of the master's, without what `up` says itself. Raises ConfigError."""
    loaded = config.load_master(file, environ={})
    for key in _OWN:
        if loaded.origins[key].kind == "file":
            raise ConfigError(
                f"{loaded.origins[key]}: {key} is not for `posthouse up`, which has folders and "
                "sockets of its own",
                hint="for `posthouse master` keep a file of another name",
                field=key,
            )
    return loaded.settings
