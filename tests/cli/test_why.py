"""`posthouse why`: the decisions about a worker with the rule of each."""

import re
from pathlib import Path

import pytest

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
    assert [row["rule"] for row in read] == ["", "M5", "", "E2"]
    assert read[-1]["rule"] == "E2" and read[-1]["rule_text"] == RULES["E2"]
    assert len(objects("why", name, "-n", "2")) == 2
    posthouse("terminate", name)
    last = posthouse("why", name)
    assert "[M13: " in last.stdout.splitlines()[-1]


def test_unknown_worker_is_3(posthouse, idle):
    assert f"did you mean {idle!r}?" in posthouse("why", f"{idle}x", status=3).stderr


def last_exit(posthouse, name):
    """What `status` and the line of `ps -a` say of it."""
    told = posthouse("status", name, status=None).stdout
    [line] = [line for line in told.splitlines() if line.startswith("last exit")]
    [row] = [row for row in posthouse("ps", "-a").stdout.splitlines() if row.startswith(name)]
    return line.partition("\t")[2], row.split("\t")[-1]


@pytest.mark.parametrize(
    ("verb", "told"),
    [
        ("terminate", "terminated by client:local: killed by SIGTERM"),
        ("hold", "held by client:local: killed by SIGTERM"),
        ("restart", "restarted by client:local: killed by SIGTERM"),
    ],
)
def test_a_stop_that_was_asked_for_is_no_plain_exit(posthouse, objects, name, verb, told):
    posthouse("run", "posthouse.exec", "--name", name, "--arg", '["sleep", "600"]', "--detach")
    posthouse("wait", name, "--for", "started", "--timeout", "20")
    posthouse(verb, name)
    assert last_exit(posthouse, name) == (told, told)
    facts = objects("status", name, status=None)[0]["last_exit"]
    assert (facts["stop"], facts["by"], facts["signal"]) == (verb, "client:local", 15)


@pytest.mark.parametrize(
    ("signal", "rule", "told"),
    [
        ("KILL", "E3", "killed by SIGKILL, sent by client:local; counts as a crash"),
        ("TERM", "E6", "killed by SIGTERM, sent by client:local; counts as exit code 1"),
    ],
)
def test_a_signal_that_kills_is_told_with_who_had_it_sent(
    posthouse, objects, name, signal, rule, told
):
    """It decides nothing: the rules of the exit apply, as in PostgreSQL."""
    sleep = ("posthouse.exec", "--arg", '["sleep", "600"]')
    posthouse("run", *sleep, "--name", name, "--restart-time", "1h", "--detach")
    posthouse("wait", name, "--for", "started", "--timeout", "20")
    posthouse("signal", name, signal)
    posthouse("wait", name, "--for", "exit", "--timeout", "20")
    exited = objects("why", name)[-1]
    assert (exited["rule"], exited["reason"], exited["exit"]["by"]) == (rule, told, "client:local")
    assert exited["stop"] is None and exited["exit"]["stop"] is None
    assert last_exit(posthouse, name)[0] == told.partition(";")[0]
