"""docs/reference/events.md against the rows of many clusters in which everything goes wrong."""

import tomllib
from collections import defaultdict
from pathlib import Path

import msgspec

from posthouse_testing.sim.run import Simulation

ROOT = Path(__file__).parents[2]
SEEDS = 90
ALL = {"timeline", "sequence", "kind", "at_unix_s"}
OF = {
    "registration": {"registry", "slot", "generation", "name", "revision"}
    | {"host", "incarnation", "token"},
    "host": {"registry", "host"},
    "cluster": {"registry"},
}
# No server is followed; no row of a log; no lease has a deadline.
NEVER_HERE = {"phase", "trimmed", "exit_amended", "host_lost", "host_braked", "host_forgotten"}


def test_rows_have_the_fields_and_rules_that_are_told() -> None:
    fields: dict[str, set[str]] = defaultdict(set)
    rules: dict[str, set[str]] = defaultdict(set)
    for seed in range(SEEDS):
        simulation = Simulation(seed)
        with simulation.squeezed():
            simulation.run()
        for event in simulation.ledger.events:
            fields[event.kind] |= set(msgspec.to_builtins(event))
            rules[event.kind] |= {event.rule} - {""}
    told = tomllib.loads((ROOT / "docs" / "reference" / "events.toml").read_text())
    assert set(told) - set(fields) == NEVER_HERE
    for kind, seen in fields.items():
        one = told[kind]
        own = {*one.get("fields", ()), *(("rule",) if "rules" in one else ())}
        assert seen - own <= ALL | OF[one["of"]], kind
        assert own <= seen, f"{kind} never had a field that is told"
        assert rules[kind] <= set(one.get("rules", ())), kind


def test_the_classes_are_those_of_the_page() -> None:
    page = (ROOT / "docs" / "reference" / "events.md").read_text()
    for of, fields in OF.items():
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {of} | `registry`")]
        assert {word.strip("`") for word in line.split("|")[2].strip().split(", ")} == fields
