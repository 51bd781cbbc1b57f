"""`posthouse conformance`: run the conformance kit against a master, whoever wrote it.

Owns: how outcomes are printed. Must not know: the cases. Invariant: exit status 0 only if at least
one case was run and none failed.
"""

import click

from posthouse import keys
from posthouse_cli import shapes
from posthouse_cli.context import Session, json_option, timeout_option
from posthouse_testing.conformance import CASES, Case, Keys, Outcome, Target, run, select

__all__ = ["conformance"]

_KEYS = ("case", "section", "statement", "verdict", "took_s", "expected", "got")


@click.command(epilog=shapes.keys_text(_KEYS))
@click.option("--clients", metavar="ENDPOINT", help="Where the master serves clients.")
@click.option(
    "--agents", metavar="ENDPOINT", default="", help="Where it serves agents; else no host cases."
)
@click.option("--only", metavar="NAME", multiple=True, help="These cases; `link-*` works too.")
@click.option("--list", "listed", is_flag=True, help="List the cases and run none.")
@click.option(
    "--host", metavar="NAME", default="conformance", help="Name of the host that the kit plays."
)
@click.option("--client-key-file", metavar="FILE", help="Key of a client, for a master with keys.")
@click.option("--agent-key-file", metavar="FILE", help="Key of an agent, for a master with keys.")
@click.option("--master-key", metavar="KEY", help="The master's public key.")
@timeout_option("12s", "one case")
@json_option
@click.pass_obj
def conformance(
    session: Session,
    clients: str | None,
    agents: str,
    only: tuple[str, ...],
    listed: bool,
    host: str,
    client_key_file: str | None,
    agent_key_file: str | None,
    master_key: str | None,
    timeout: float,
    as_json: bool,
) -> int:
    """Judge a master by its bytes: one case for each promise of docs/reference/protocol.md.

    For a test cluster: the cases register workers of their own, on a host that the kit plays, and
    terminate them. Exit status 0 only if no case failed.
    With --list --json only the first three keys.
    """
    try:
        cases = select(only)
    except KeyError as error:
        raise click.UsageError(
            f"there is no case {error.args[0]!r}\n`posthouse conformance --list` lists them"
        ) from None
    if listed:
        for one in cases:
            _list(session, one, as_json)
        return 0
    if not clients:
        raise click.UsageError("--clients ENDPOINT says where the master is")
    target = Target(
        clients, agents, host, _keys(client_key_file, master_key), _keys(agent_key_file, master_key)
    )
    outcomes = run(target, cases, lambda outcome: _tell(session, outcome, as_json), timeout)
    count = {verdict: sum(one.verdict == verdict for one in outcomes) for verdict in _WORDS}
    click.echo(
        f"posthouse: {count['ok']} held, {count['failed']} failed, {count['skipped']} skipped "
        f"of {len(CASES)} cases",
        err=True,
    )
    return 0 if count["ok"] and not count["failed"] else 1


_WORDS = {"ok": "ok", "failed": "FAILED", "skipped": "skipped"}


def _keys(path: str | None, server: str | None) -> Keys | None:
    if path is None:
        return None
    found = keys.client_keys(path, server)
    return Keys(found.public, found.secret, found.server)


def _facts(one: Case) -> dict[str, object]:
    return {"case": one.name, "section": one.section, "statement": one.statement}


def _list(session: Session, one: Case, as_json: bool) -> None:
    if as_json:
        session.out.json(_facts(one))
    else:
        session.out.row((one.name, one.section, one.statement), (24, 34))


def _tell(session: Session, outcome: Outcome, as_json: bool) -> None:
    if as_json:
        facts = {"verdict": outcome.verdict, "took_s": round(outcome.took_s, 3)}
        said = {"expected": outcome.expected, "got": outcome.got}
        session.out.json({**_facts(outcome.case), **facts, **said})
        return
    text = outcome.case.statement
    if outcome.verdict == "skipped":
        text = outcome.got
    elif outcome.verdict == "failed":
        text += f"; expected {outcome.expected}; came {outcome.got}"
    session.out.row((outcome.case.name, _WORDS[outcome.verdict], text), (24, 7))
