"""`posthouse apply` and groups against real processes."""

import json
import textwrap
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from posthouse.records import HandleRef, Status, WorkerInfo
from posthouse.states import WorkerState
from posthouse_cli import shapes
from posthouse_cli.commands.apply import _is_late

Declare = Callable[[str], str]


@pytest.fixture
def source(posthouse, tmp_path) -> Iterator[str]:
    """A source of its own; what it declares is pruned afterwards."""
    chosen = f"s-{uuid.uuid4().hex[:8]}"
    yield chosen
    empty = tmp_path / "empty.toml"
    empty.write_text("")
    posthouse("apply", "-f", str(empty), "--source", chosen, status=None)


@pytest.fixture
def declare(tmp_path: Path, source: str) -> Declare:
    """declare(text): the path of a file of the source. NAME stands for a name of its own."""

    def write(text: str) -> str:
        path = tmp_path / "workers.toml"
        own = f'source = "{source}"\n'
        path.write_text(own + textwrap.dedent(text).replace("NAME", source))
        return str(path)

    return write


TWO = """
[[worker]]
name = "NAME-one"
main = "jobs:idle"
host = "a"

[[worker]]
name = "NAME-web"
main = "jobs:idle"
replicas = 2
{more}
"""


def rows(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]


def test_a_file_is_applied_changed_and_pruned(posthouse, objects, declare, source):
    ran = posthouse("apply", "-f", declare(TWO.format(more="")), "--wait")
    assert rows(ran.stdout) == [
        ["create", f"{source}-one", ""],
        ["create", f"{source}-web:0", ""],
        ["create", f"{source}-web:1", ""],
    ]
    assert ran.stderr == f"posthouse: {source}: 3 created\n"
    before = {w["name"]: w for w in objects("ps") if w["source"] == source}
    assert {w["state"] for w in before.values()} == {"started"}

    ran = posthouse("apply", "-f", declare(TWO.format(more="")))
    assert (ran.stdout, ran.stderr) == ("", f"posthouse: {source}: 3 unchanged\n")

    changed = declare(TWO.format(more="nice = 1"))
    ran = posthouse("apply", "-f", changed, "--dry-run")
    assert rows(ran.stdout) == [
        ["update", f"{source}-web:0", "nice"],
        ["update", f"{source}-web:1", "nice"],
    ]
    assert "(dry run)" in ran.stderr
    ran = posthouse("apply", "-f", changed, "--max-unavailable", "2", "--wait")
    after = {w["name"]: w for w in objects("ps") if w["source"] == source}
    for name, worker in after.items():
        same = worker["pid"] == before[name]["pid"]
        assert same is name.endswith("one"), "only what differs is restarted"
        assert worker["handle"] == before[name]["handle"]
        assert worker["running_revision"] == worker["revision"] == (1 if same else 2)
    status = posthouse("status", f"{source}-web:0").stdout
    assert "revision" in status

    ran = posthouse("apply", "-f", declare(""), "--json")
    [plan] = [json.loads(line) for line in ran.stdout.splitlines()]
    assert set(plan) == set(shapes.PLAN_KEYS)
    assert (plan["pruned"], plan["source"]) == (3, source)
    for worker in after.values():
        posthouse("wait", worker["handle"], "--for", "gone", "--timeout", "20")


def test_a_group_is_named_with_a_star(posthouse, objects, declare, source):
    posthouse("apply", "-f", declare(TWO.format(more="")), "--wait")
    web = f"{source}-web"
    members = objects("ps", "--group", web)
    assert [m["name"] for m in members] == [f"{web}:0", f"{web}:1"]
    assert {m["group"] for m in members} == {web}
    said = posthouse("hold", f"{web}:*").stdout.splitlines()
    assert said == [f"{web}:0 is held", f"{web}:1 is held"]
    assert posthouse("release", f"{web}:*").stdout.count("is released") == 2
    assert posthouse("restart", f"{web}:*").stdout.count("runs on") == 2
    assert posthouse("terminate", f"{web}:*").stdout.count("is unregistered") == 2
    ran = posthouse("terminate", f"{web}:*", status=3)
    assert "no group" in ran.stderr


def test_each_host_has_a_member(posthouse, objects, declare, source):
    file = declare('[[worker]]\nname = "NAME"\nmain = "jobs:idle"\nreplicas = "each-host"\n')
    posthouse("apply", "-f", file, "--wait")
    assert {(m["name"], m["host"]) for m in objects("ps", "--group", source)} == {
        (f"{source}:a", "a"),
        (f"{source}:b", "b"),
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[[worker]]\nname = "NAME"\nmian = "m:f"', ":4: unknown key 'mian' of a worker; did you"),
        ('[[worker]]\nname = "NAME"\nmain = "m:f"\nnice = 99', "nice is 99: must be an integer"),
        ('[[wroker]]\nname = "NAME"', ":2: unknown key 'wroker'; did you mean 'worker'?"),
        ("max_unavailable = 0.5", ":2: max_unavailable is 0.5: must be a whole number"),
        ('[[worker]]\nname="NAME"\nmain="m:f"\nhost="zz"', "no host named 'zz' has joined"),
    ],
)
def test_a_wrong_file_changes_nothing(posthouse, objects, declare, source, text, says):
    good = '\n[[worker]]\nname = "NAME-good"\nmain = "jobs:idle"\n'
    ran = posthouse("apply", "-f", declare(text + good), status=None)
    assert ran.returncode in (1, 2)
    assert says in ran.stderr
    assert not [w for w in objects("ps") if w["source"] == source]


def test_every_wrong_record_is_told(posthouse, declare):
    bad = '[[worker]]\nname = "NAME-{0}"\nmain = "m:f"\nnice = {0}\n'
    ran = posthouse("apply", "-f", declare(bad.format(77) + bad.format(88)), status=None)
    assert "nice is 77" in ran.stderr and "nice is 88" in ran.stderr
    assert "nothing was changed" in ran.stderr


def test_a_file_that_is_not_there_is_told(posthouse):
    assert "does not exist" in posthouse("apply", "-f", "/no/such.toml", status=2).stderr


def test_waiting_says_who_is_late(posthouse, declare, source):
    file = declare('[[worker]]\nname = "NAME"\nmain = "jobs:idle"\nlabels = ["none-has-it"]\n')
    ran = posthouse("apply", "-f", file, "--wait", "--timeout", "1s", status=5)
    assert f"{source} is not-yet-started" in ran.stderr
    assert "it has not the label none-has-it" in ran.stderr


@pytest.mark.parametrize(("running", "late"), [(1, True), (2, False), (3, False)])
def test_one_that_runs_a_revision_of_a_lost_history_is_not_waited_for(running, late):
    """After a restore, by an apply with --no-prune that does not name it: nothing would replace it
    now."""
    handle = HandleRef(registry="ab" * 16, slot=0, generation=1)
    status = Status(state=WorkerState.STARTED, handle=handle, revision=2, running_revision=running)
    info = WorkerInfo(status=status, spec={"name": "w"}, source="shop")
    assert _is_late(info, "shop") is late


def test_the_example_file_is_accepted_as_it_is(objects):
    file = Path(__file__).parents[2] / "examples" / "workers.toml"
    [plan] = objects("apply", "-f", str(file), "--dry-run")
    assert plan["source"] == "example"
    assert {change["name"].partition(":")[0] for change in plan["changes"]} == {"beat", "sleeper"}
    assert {change["action"] for change in plan["changes"]} == {"create"}
