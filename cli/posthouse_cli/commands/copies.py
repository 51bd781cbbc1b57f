"""`posthouse backup` and `posthouse restore`: the registry as a file, on the master's machine.

Owns: how the registry's folder is found. Must not know: what is in a registry. Invariant: as
`posthouse master` with the same flags would find it.
"""

import click

from posthouse import config
from posthouse_cli.context import Session
from posthouse_cli.layout import Layout

__all__ = ["backup", "restore"]

_config = click.option("--config", "config_file", metavar="FILE", help="The master's TOML.")
_folder = click.option("--dir", "folder", metavar="DIR", help="As of `posthouse master`.")
_state_dir = click.option("--state-dir", metavar="DIR", help="Folder of the registry.")


@click.command()
@click.argument("file", metavar="FILE")
@_config
@_folder
@_state_dir
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@click.pass_obj
def backup(
    session: Session,
    file: str,
    config_file: str | None,
    folder: str | None,
    state_dir: str | None,
    force: bool,
) -> int:
    """Copy the registry into a file, while its master runs.

    To be run on the master's machine, as its user. The copy has everything that was acknowledged
    before the command began; it is read whole before it gets its name, and only its owner may
    read it. A master that is down is no obstacle.
    """
    from posthouse_master.store import copies

    made = copies.backup(_state(config_file, folder, state_dir), file, overwrite=force)
    session.out.line(
        f"{file}: registry {made.registry}, timeline {made.timeline}, commit {made.commits}, "
        f"{made.registrations} registrations"
    )
    return 0


@click.command()
@click.argument("file", metavar="FILE")
@_config
@_folder
@_state_dir
@click.option(
    "--hosts-complete",
    is_flag=True,
    help="No host has joined since the backup: the master waits only for those that it knows.",
)
@click.pass_obj
def restore(
    session: Session,
    file: str,
    config_file: str | None,
    folder: str | None,
    state_dir: str | None,
    hosts_complete: bool,
) -> int:
    """Put a backup in the place of the registry, and begin a new timeline.

    The master must be down. What is replaced is kept beside it. Workers go on running. One that the
    backup knows is taken over with what its host says has become of it since; one that it does not
    know is left alone until somebody claims or ends it (`posthouse unclaimed`). Cursors of the old
    timeline are answered with "cursor too old".

    The next master starts nothing before it can know what runs: for 11 minutes, the longest lease
    of a host that has joined since the backup; with --hosts-complete until the hosts of the backup
    are back.
    """
    from posthouse_master.store import copies

    made = copies.restore(_state(config_file, folder, state_dir), file, complete=hosts_complete)
    session.out.line(
        f"registry {made.registry}, timeline {made.timeline}, {made.registrations} registrations"
    )
    if made.kept is not None:
        click.echo(f"posthouse: what was there before is kept as {made.kept}", err=True)
    return 0


def _state(config_file: str | None, folder: str | None, state_dir: str | None) -> str:
    if folder is not None and state_dir is None:
        return str(Layout.at(folder).registry)
    return config.load_master(config_file, flags={"state_dir": state_dir}).settings.state_dir
