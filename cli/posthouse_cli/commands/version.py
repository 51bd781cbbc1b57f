"""`posthouse version`."""

import platform
from importlib import metadata

import click

from posthouse.messages import PROTOCOL_MAX, PROTOCOL_MIN
from posthouse_cli import shapes
from posthouse_cli.context import Session, json_option

_KEYS = ("posthouse", "protocol_min", "protocol_max", "python", "zmq")


@click.command(epilog=shapes.keys_text(_KEYS))
@json_option
@click.pass_obj
def version(session: Session, as_json: bool) -> None:
    """Versions of posthouse, of its protocol and of what it runs on."""
    import zmq

    facts = {
        "posthouse": metadata.version("posthouse"),
        "protocol_min": PROTOCOL_MIN,
        "protocol_max": PROTOCOL_MAX,
        "python": platform.python_version(),
        "zmq": zmq.zmq_version(),
    }
    if as_json:
        session.out.json(facts)
        return
    session.out.line(
        f"posthouse {facts['posthouse']}, protocol {PROTOCOL_MIN} to {PROTOCOL_MAX}, "
        f"Python {facts['python']}, libzmq {facts['zmq']}"
    )
