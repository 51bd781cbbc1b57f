"""`posthouse why`: the decisions about a worker with the rule of each."""

import re
from pathlib import Path

from posthouse_cli.told import RULES

ROOT = Path(__file__).resolve().parents[2]


def test_every_rule_of_an_event_has_its_sentence():
    used = set()
    for module in (
        "protocol/posthouse/restart",
        *(f"master/posthouse_master/{name}" for name in ("lifecycle", "starter")),
    ):
        source = (ROOT / f"{module}.py").read_text()
        used |= set(re.findall(r'"([A-Z]\d{1,2}|[A-Z]-[A-Z]+)"', source))
    assert len(used) > 15
    assert used == set(RULES)


def test_each_decision_is_told_with_its_rule(posthouse, objects, name):
    posthouse(
        "run",
        "jobs:leave",
        "--name",
        name,
        "--arg",
        "1",
        "--on",
        "b",
        "--restart-time",
        "1h",
        "--detach",
    )
    posthouse("wait", name, "--for", "exit", "--timeout", "20")
    told = posthouse("why", name)
    rows = [line.split("\t") for line in told.stdout.splitlines()]
    assert [row[2] for row in rows] == ["registered", "starting", "started", "exited"]
    assert rows[-1][-1].endswith(f"[E2: {RULES['E2']}]")
    assert f"{name} is stopped" in told.stderr and "b: " in told.stderr
    read = objects("why", name)
    assert read[-1]["rule"] == "E2" and read[-1]["rule_text"] == RULES["E2"]
    assert len(objects("why", name, "-n", "2")) == 2
    posthouse("terminate", name)
    last = posthouse("why", name)
    assert "[M13: " in last.stdout.splitlines()[-1]


def test_unknown_worker_is_3(posthouse, idle):
    assert f"did you mean {idle!r}?" in posthouse("why", f"{idle}x", status=3).stderr
