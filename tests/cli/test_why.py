"""`posthouse why`: the decisions about a worker with the rule of each."""

import re
import signal
from pathlib import Path

import pytest

from posthouse_cli.screen import Screen
from posthouse_cli.told import RULES

ROOT = Path(__file__).resolve().parents[2]
RULED = [ROOT / "protocol/posthouse/restart.py"]


def test_every_rule_of_an_event_has_its_sentence():
    """The source of all that decides: a new rule has to say what it says."""
    used = set()
    for path in (*(ROOT / "master/posthouse_master").glob("*.py"), *RULED):
        used |= set(re.findall(r'"([A-Z]\d{1,2}|[A-Z]-[A-Z]+)"', path.read_text()))
    assert len(used) > 15
    assert used == set(RULES)
    for rule, words in RULES.items():
        assert words[0].islower() or words.startswith("TERM"), rule
        assert not re.search(r"\b[A-Z]\d+\b", words), f"{rule} is explained by another rule"
        assert 20 < len(words) < 100 and words.isprintable()


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


def started(client, name, incarnation):
    for event in client.handle(name).events(timeout=60):
        if event.kind == "started" and event.incarnation == incarnation:
            return event
    raise AssertionError("unregistered")


def test_a_long_history_has_no_gap(cluster, posthouse, objects, name, tmp_path):
    """Every start and every end says by which rule, and every request by whom."""
    file = tmp_path / "w.toml"

    def apply(seconds):
        argv = f'["sleep", "{seconds}"]'
        file.write_text(
            f'[[worker]]\nname = "{name}"\nmain = "posthouse.exec"\nmain_arg = {argv}\n'
            "restart_time = 0.0\n"
        )
        posthouse("apply", "-f", str(file), "--source", name)

    with cluster.connect() as client:
        apply(600)
        host = started(client, name, 1).host
        posthouse("signal", name, "KILL")
        started(client, name, 2)
        posthouse("signal", name, "TERM")
        started(client, name, 3)
        posthouse("restart", name)
        posthouse("hold", name)
        posthouse("release", name)
        started(client, name, 5)
        host = client.handle(name).status().host
        posthouse("drain", host, status=None)
        posthouse("drain", host, "--undo")
        started(client, name, 6)
        apply(601)
        started(client, name, 7)
        posthouse("terminate", name)
    rows = objects("why", name)
    by_kind = [(row["kind"], row["rule"]) for row in rows if row["kind"] in ("starting", "exited")]
    starts = [rule for kind, rule in by_kind if kind == "starting"]
    assert starts == ["M5", *["M12"] * 6]
    assert [rule for kind, rule in by_kind if kind == "exited"] == [
        "E3", "E6", "E-RESTART", "H-HOLD", "E-DRAIN", "E-APPLY", "M10",
    ]  # fmt: skip
    for row in rows:
        assert row["rule_text"] == RULES.get(row["rule"])
        assert row["kind"] in ("started", "ready") or row["rule"] or row["by"], row
    for line in posthouse("why", name).stdout.splitlines():
        kind, said = line.split("\t")[2], line.split("\t")[-1]
        assert "[" in said or "by client:local" in said or kind in ("started", "ready"), line


def test_events_go_on_under_a_terminal_line_by_line(cluster, posthouse, idle):
    """Columns, no tabs; each line as it happens; TERM ends it, and nothing stays behind."""
    screen = Screen(["events", "-f", idle], Path.cwd(), {**cluster.command_env(), "NO_COLOR": "1"})
    try:
        screen.wait_for(" started ", 60)
        posthouse("restart", idle)
        again = screen.wait_for("restarted on request by client:local", 60)
        assert "\t" not in again and "\x1b" not in again
        screen.wait_for(" started ", 60)
        screen.signal(signal.SIGTERM)
        assert screen.wait(60) == 128 + signal.SIGTERM
    finally:
        screen.end(5)
