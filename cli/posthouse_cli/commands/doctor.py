"""`posthouse doctor`: whether this machine can be what its configuration says.

Owns: how findings are printed, and their exit status. Must not know: what is looked at (health).
Invariant: looking changes nothing and starts nothing.
"""

import click

from posthouse_cli import health, shapes
from posthouse_cli.context import Session, json_option

__all__ = ["doctor"]

_KEYS = ("check", "verdict", "what", "hint")


@click.command(epilog=shapes.keys_text(_KEYS))
@click.argument("kinds", metavar="[master|agent|client]", nargs=-1)
@click.option("--quiet", "-q", is_flag=True, help="Only what is not good.")
@json_option
@click.pass_obj
def doctor(session: Session, kinds: tuple[str, ...], quiet: bool, as_json: bool) -> int:
    """Look whether this machine can do what its configuration says.

    Limits of descriptors and processes, libzmq, fences, the clock, permissions of keys and
    folders, room on disks, and the worst cases that follow from the settings. Each finding is ok,
    warn or bad. Exit status 1 if one is bad.
    """
    for kind in kinds:
        if kind not in health.KINDS:
            raise click.UsageError(f"{kind!r} is none of {', '.join(health.KINDS)}")
    found = health.examine(kinds or health.KINDS, master=session.master)
    rows = []
    for one in found:
        if quiet and one.verdict == "ok":
            continue
        if as_json:
            session.out.json({name: getattr(one, name) for name in _KEYS})
        else:
            rows.append((one.verdict, one.check, one.what + (f"; {one.hint}" if one.hint else "")))
    if rows:
        session.out.table(("VERDICT", "CHECK", "WHAT"), rows)
    bad = sum(one.verdict == "bad" for one in found)
    warned = sum(one.verdict == "warn" for one in found)
    if not as_json:
        click.echo(f"posthouse: {bad} bad, {warned} to be warned of, of {len(found)}", err=True)
    return 1 if bad else 0
