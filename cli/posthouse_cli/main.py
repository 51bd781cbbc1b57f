"""The command table of `posthouse`, and how every error becomes one message and one exit status.

Owns: verbs, global options, exit statuses, signals of the command. Must not know: what a verb
does; each lives in its own module and is loaded when it is asked for. Invariant: data goes to
standard output, talk to standard error; no error of ours shows a traceback.
"""

import difflib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

try:
    import click
except ModuleNotFoundError:
    sys.exit("posthouse: the command line is not installed\n  pip install 'posthouse[server]'")

from posthouse.errors import PosthouseError
from posthouse_cli.context import Session
from posthouse_cli.render import ReaderLeft

__all__ = ["EXIT_STATUSES", "VERBS", "cli", "main"]

EXIT_STATUSES: Final = {
    0: "done",
    1: "refused or failed",
    2: "wrong usage",
    3: "no such worker, or it is not running",
    4: "the master is not reachable",
    5: "timed out; the outcome is unknown, asking again settles it",
    130: "interrupted",
}

VERBS: Final[dict[str, tuple[str, str]]] = {
    # verb: (module in posthouse_cli.commands, section of the help)
    "demo": ("demo", "Try it"),
    "up": ("up", "Try it"),
    "run": ("run", "Workers"),
    "register": ("run", "Workers"),
    "apply": ("apply", "Workers"),
    "ps": ("read", "Workers"),
    "status": ("read", "Workers"),
    "logs": ("logs", "Workers"),
    "events": ("follow", "Workers"),
    "why": ("why", "Workers"),
    "stacks": ("read", "Workers"),
    "wait": ("act", "Workers"),
    "pid": ("read", "Workers"),
    "signal": ("act", "Workers"),
    "terminate": ("act", "Workers"),
    "hold": ("act", "Workers"),
    "release": ("act", "Workers"),
    "restart": ("act", "Workers"),
    "hosts": ("read", "Cluster"),
    "top": ("top", "Cluster"),
    "drain": ("drain", "Cluster"),
    "reload": ("reload", "Cluster"),
    "shutdown": ("act", "Cluster"),
    "master": ("daemons", "Cluster"),
    "agent": ("daemons", "Cluster"),
    "backup": ("copies", "Cluster"),
    "restore": ("copies", "Cluster"),
    "unclaimed": ("unclaimed", "Cluster"),
    "claim": ("unclaimed", "Cluster"),
    "config": ("config", "Cluster"),
    "keygen": ("keygen", "Cluster"),
    "doctor": ("doctor", "Cluster"),
    "fence-sql": ("fence_sql", "Cluster"),
    "conformance": ("conformance", "Cluster"),
    "completion": ("completion", "Cluster"),
    "version": ("version", "Cluster"),
}

_NOT_VERBS: Final = {
    "stop": (
        "there is no bare stop, because it could mean two things",
        """`posthouse terminate NAME` ends the worker and forgets it;
`posthouse hold NAME` ends it and keeps it registered, until `posthouse release NAME`""",
    ),
    "start": ("a registered worker is started by the master", "see `posthouse run --help`"),
    "kill": (
        "there is no kill",
        "`posthouse terminate NAME` ends and forgets; `posthouse signal NAME KILL` only kills",
    ),
    "list": ("there is no list", "`posthouse ps` lists workers, `posthouse hosts` hosts"),
}


class _Verbs(click.Group):
    """Loads a verb's module when the verb is used, so that `posthouse pid` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's name
        return list(VERBS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's name
        cmd_name: str,
    ) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"posthouse_cli.commands.{VERBS[cmd_name][0]}")
        command = getattr(module, cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        verb = args[0]
        if verb not in VERBS and not verb.startswith("-") and not ctx.resilient_parsing:
            what, hint = _NOT_VERBS.get(verb, ("", ""))
            if not what:
                what = f"{verb!r} is no verb of posthouse"
                near = difflib.get_close_matches(verb, VERBS, 1)
                hint = f"did you mean `{near[0]}`?" if near else "`posthouse --help` lists them"
            raise click.UsageError(f"{what}\n{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for verb, (_, section) in VERBS.items():
            command = self.get_command(ctx, verb)
            assert command is not None
            sections.setdefault(section, []).append((verb, command.get_short_help_str(72)))
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl(rows)
        with formatter.section("Exit status"):
            formatter.write_dl([(str(code), text) for code, text in EXIT_STATUSES.items()])


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--master",
    metavar="ENDPOINT",
    help="Where the master serves clients: ipc:///path or tcp://address:port. "
    "Default: $POSTHOUSE_MASTER, else the local master.",
)
@click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    help="Colours in tables; NO_COLOR and FORCE_COLOR are obeyed too.",
)
@click.pass_context
def cli(context: click.Context, master: str | None, color: str) -> None:
    """Background workers on this machine and on others: registered anywhere, forked on a host,
    restarted by the rules you gave; and you are told."""
    context.obj = Session(master=master, color=color)
    context.call_on_close(context.obj.close)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    previous = signal.signal(signal.SIGTERM, _terminated)
    try:
        return _run(arguments)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        status: Any = cli.main(
            args=None if arguments is None else list(arguments),
            prog_name="posthouse",
            standalone_mode=False,
        )
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        return _usage(error)
    except click.ClickException as error:
        return _complain(error.format_message(), "", 1)
    except PosthouseError as error:
        return _complain(error.message, error.hint, error.exit_status)
    except (KeyboardInterrupt, click.Abort):
        return 130
    except (BrokenPipeError, ReaderLeft):
        # Nothing more can be said on that stream, also not by the interpreter when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    return status if isinstance(status, int) else 0


def _terminated(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _usage(error: click.UsageError) -> int:
    what, _, hint = error.format_message().partition("\n")
    if error.ctx is not None and not hint:
        hint = f"see `{error.ctx.command_path} --help`"
    return _complain(what, hint, 2)


def _complain(what: str, hint: str, status: int) -> int:
    lines = [f"posthouse: {what}", *(f"  {line}" for line in hint.splitlines())]
    click.echo("\n".join(lines), err=True)
    return status
