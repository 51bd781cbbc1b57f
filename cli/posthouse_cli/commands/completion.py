"""`posthouse completion`: the script that makes a shell complete our words.

Owns: how it is installed. Must not know: what is completed (click, and context for names of
workers and hosts). Invariant: the script asks this program at each TAB, so it is never out of date.
"""

import click
from click.shell_completion import get_completion_class

from posthouse_cli.context import Session

__all__ = ["completion"]

_VARIABLE = "_POSTHOUSE_COMPLETE"


@click.command()
@click.argument("shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_obj
def completion(session: Session, shell: str) -> None:
    """Print a script that completes verbs, options and the names of workers: bash, zsh or fish.

    \b
    bash:  eval "$(posthouse completion bash)"       in ~/.bashrc
    zsh:   eval "$(posthouse completion zsh)"        in ~/.zshrc, after compinit
    fish:  posthouse completion fish | source        in ~/.config/fish/config.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    maker = found(click.get_current_context().find_root().command, {}, "posthouse", _VARIABLE)
    # Not source(): it starts a bash to ask for its version, which whoever evals this need not have.
    session.out.line((maker.source_template % maker.source_vars()).strip())
