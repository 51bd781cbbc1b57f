"""The tables of cli.md, from the command line's own commands.

Owns: how a verb, its options and its JSON keys are told. Must not know: any single verb.
Invariant: every verb and every option is told, in the order of the help.
"""

import inspect
import re
from collections.abc import Iterator

import click

from pages.notes import Tables, table
from posthouse_cli.fields import FIELDS
from posthouse_cli.main import EXIT_STATUSES, VERBS, cli

__all__ = ["TABLES"]


def _option(parameter: click.Parameter, context: click.Context) -> tuple[str, str]:
    record = parameter.get_help_record(context)
    assert record is not None, parameter
    return f"`{record[0]}`", record[1]


def _prose(text: str) -> Iterator[str]:
    """A help text: paragraphs, and the blocks that are not to be wrapped."""
    for block in text.split("\n\n"):
        kept = block.startswith("\b")
        body = block.removeprefix("\b").strip("\n")
        yield f"```text\n{body}\n```" if kept else " ".join(body.split())


def _verb(path: tuple[str, ...], command: click.Command, depth: int) -> Iterator[str]:
    context = click.Context(command, info_name=" ".join(path))
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"{'#' * depth} {' '.join(path)}"
    yield f"```text\nposthouse {' '.join(path)} {usage}\n```"
    yield from _prose(_dedented(command.help or ""))
    options = [
        _option(each, context)
        for each in command.get_params(context)
        if isinstance(each, click.Option) and not each.hidden and "--help" not in each.opts
    ]
    if options:
        yield table(("option", ""), options)
    if command.epilog:
        found = re.fullmatch(r"JSON keys: (.*)\.", command.epilog)
        keys = found[1].split(", ") if found else []
        if keys:
            yield "Keys of `--json`: " + ", ".join(f"`{key}`" for key in keys) + "."
        else:
            yield " ".join(command.epilog.split())
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from _verb((*path, name), child, depth + 1)


def _dedented(text: str) -> str:
    return inspect.cleandoc(text.split("\f", maxsplit=1)[0])


def verbs() -> str:
    """Every verb under the heading of its section."""
    told: list[str] = []
    for section in dict.fromkeys(section for _, section in VERBS.values()):
        told.append(f"## {section}")
        for verb in (verb for verb, (_, its) in VERBS.items() if its == section):
            command = cli.get_command(click.Context(cli), verb)
            assert command is not None
            told += _verb((verb,), command, 3)
    return "\n\n".join(told)


def global_options() -> str:
    """What may stand before the verb."""
    context = click.Context(cli, info_name="posthouse")
    found = [_option(each, context) for each in cli.params]
    return table(("option", ""), found)


def exit_statuses() -> str:
    """What scripts go by."""
    return table(("status", "means"), [(str(code), text) for code, text in EXIT_STATUSES.items()])


def record_options() -> str:
    """The fields of a registration, as `--field` or `-o field=`."""
    rows = [(f"`{name}`", f"`{field.metavar}`", field.help) for name, field in FIELDS.items()]
    return table(("field", "value", ""), rows)


TABLES: Tables = {
    "cli_global": lambda _: global_options(),
    "cli_statuses": lambda _: exit_statuses(),
    "cli_verbs": lambda _: verbs(),
    "cli_fields": lambda _: record_options(),
}
