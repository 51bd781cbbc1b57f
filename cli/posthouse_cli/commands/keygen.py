"""`posthouse keygen`: a key pair for one principal, as files.

Owns: what people are told to do with the two files. Must not know: how keys are used on the wire.
Invariant: an existing file is never overwritten, and a secret key is never printed.
"""

import click

from posthouse import keys
from posthouse_cli.context import Session


@click.command()
@click.argument("principal", metavar="ROLE:NAME")
@click.option(
    "-o", "--output", metavar="FILE", help="The secret key's file.  [default: ROLE-NAME.key]"
)
@click.pass_obj
def keygen(session: Session, principal: str, output: str | None) -> None:
    """Make the key pair of a principal: master:NAME, agent:HOST, client:NAME or viewer:NAME.

    Writes the secret key to FILE (mode 0600; it stays on its machine) and the public key to
    FILE.pub, as the line for the master's principals file. Prints the public key.

    \b
    posthouse keygen master:main   # its public key is `master_key` of agents and clients
    posthouse keygen agent:b       # append agent-b.key.pub to the principals file
    """
    path = output or f"{principal.replace(':', '-')}.key"
    pair = keys.generate()
    public_file = keys.write_pair(path, pair, principal)
    session.out.line(pair.public)
    click.echo(f"posthouse: {path} is secret and stays here; {public_file} is public", err=True)
