"""docs/reference/events.md against the rows of many clusters in which everything goes wrong."""

import tomllib
from collections import defaultdict
from pathlib import Path

import msgspec

from posthouse_testing.sim.run import Simulation

ROOT = Path(__file__).parents[2]
SEEDS_MAX = 90
ALL = {"timeline", "sequence", "kind", "at_unix_s"}
OF = {
    "registration": {"registry", "slot", "generation", "name", "revision"}
    | {"host", "incarnation", "token"},
    "host": {"registry", "host"},
    "cluster": {"registry"},
}
# No server is followed; a row of a log is no event of the store; nobody forgets a host.
NEVER_HERE = {"phase", "trimmed", "host_forgotten"}
# A host must be lost, and come back, and know better.
RARE = {"host_lost", "host_braked", "exit_amended"}


def test_rows_have_the_fields_and_rules_that_are_told() -> None:
    told = tomllib.loads((ROOT / "docs" / "reference" / "events.toml").read_text())
    own = {
        kind: {*one.get("fields", ()), *(("rule",) if "rules" in one else ())}
        for kind, one in told.items()
    }
    fields: dict[str, set[str]] = defaultdict(set)
    rules: dict[str, set[str]] = defaultdict(set)
    wanted = {(kind, each) for kind in told if kind not in NEVER_HERE | RARE for each in own[kind]}
    for seed in range(SEEDS_MAX):
        if not {(kind, each) for kind, each in wanted if each not in fields[kind]}:
            break
        simulation = Simulation(seed)
        with simulation.squeezed():
            simulation.run()
        for event in simulation.ledger.events:
            fields[event.kind] |= set(msgspec.to_builtins(event))
            rules[event.kind] |= {event.rule} - {""}
    assert set(told) - {kind for kind, seen in fields.items() if seen} - RARE == NEVER_HERE
    for kind, seen in fields.items():
        if not seen:
            continue
        assert seen - own[kind] <= ALL | OF[told[kind]["of"]], kind
        assert own[kind] <= seen, f"{kind} never had a field that is told"
        assert rules[kind] <= set(told[kind].get("rules", ())), kind


def test_the_classes_are_those_of_the_page() -> None:
    page = (ROOT / "docs" / "reference" / "events.md").read_text()
    for of, fields in OF.items():
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {of} | `registry`")]
        assert {word.strip("`") for word in line.split("|")[2].strip().split(", ")} == fields
