"""`posthouse config show`: which settings are in force here, and where each came from.

Owns: how they are asked for. Must not know: how files are read (posthouse.config). Invariant: no
daemon is asked and nothing is changed; without --origin the output is a file that reads back.
"""

import dataclasses

import click

from posthouse.errors import ConfigError
from posthouse_cli import settled, shapes
from posthouse_cli.context import Session, json_option

__all__ = ["config"]

_HEADER = ("KIND", "KEY", "VALUE", "ORIGIN")
_KEYS = tuple(field.name for field in dataclasses.fields(settled.Value))


@click.group()
def config() -> None:
    """Show the configuration that is in force, and where each value came from."""


@config.command(epilog=shapes.keys_text(_KEYS))
@click.argument("kinds", metavar="[master|agent|client|up]", nargs=-1)
@click.option("--config", "file", metavar="FILE", help="Read this file; then say of which kind.")
@click.option("--origin", is_flag=True, help="Beside each value: default, file:line, variable.")
@json_option
@click.pass_obj
def show(
    session: Session, kinds: tuple[str, ...], file: str | None, origin: bool, as_json: bool
) -> int:
    """Show what a master, an agent or a client would be told on this machine now.

    Flags win over POSTHOUSE_* variables, these over the file, that over the defaults. Without
    --origin: TOML, that may be used as such a file. Exit status 2 if a file is not good.
    """
    for kind in kinds:
        if kind not in settled.KINDS:
            raise click.UsageError(f"{kind!r} is none of {', '.join(settled.KINDS)}")
    if file is not None and len(kinds) != 1:
        raise click.UsageError(
            "--config needs to know of which kind the file is\nsay master, "
            "agent, client or up before it"
        )
    status = 0
    rows: list[settled.Value] = []
    for kind in kinds or ("master", "agent", "client"):
        flags = {"master": session.master} if kind == "client" else None
        try:
            loaded = settled.load(kind, file, flags)
        except ConfigError as error:
            if len(kinds) == 1:
                raise
            click.echo(f"posthouse: {kind}: {error.message}", err=True)
            status = error.exit_status
            continue
        for warning in loaded.warnings:
            click.echo(f"posthouse: {warning}", err=True)
        found = settled.values(kind, loaded)
        if as_json:
            for value in found:
                session.out.json(dataclasses.asdict(value))
        elif origin:
            rows += found
        else:
            _file(session, kind, found)
    if rows:
        cells = [(v.kind, v.key, v.text, v.where or v.origin) for v in rows]
        session.out.table(_HEADER, cells)
    return status


def _file(session: Session, kind: str, values: list[settled.Value]) -> None:
    """The same as a file."""
    session.out.line(f"# {kind}: as {settled.file_of(kind)} would say it")
    table = ""
    for value in values:
        head, _, name = value.key.rpartition(".")
        if head != table:
            table = head
            session.out.line(f"\n[{table}]")
        unset = not value.text or "(not shown)" in value.text
        session.out.line(
            f"# {name} is not {'set' if not value.text else 'shown'}"
            if unset
            else f"{name} = {value.text}"
        )
