"""Our master passes the conformance kit, and the kit finds masters that do not."""

import ast
import json
import os
from pathlib import Path

import pytest

from posthouse import keys
from posthouse_cli.main import main
from posthouse_testing import conformance
from posthouse_testing.conformance import CASES, Target, run, select
from posthouse_testing.conformance.kit import Kit

SPAN_S = 1.5  # enough for a case that holds, and what a fault that is found by waiting costs
HERE = Path(conformance.__file__).parent


def verdicts(outcomes):
    return {one.case.name: (one.verdict, one.expected, one.got) for one in outcomes}


# --- our master ---


PARTS = {
    "sessions": "session-*",
    "link": "link-*",
    "frames": "bad-*",
    "events": "events-*",
    "hosts": "host-*",
    "inventory": "inventory-*",
    "declare": "apply*",
    "groups": "group*",
}


@pytest.mark.parametrize("part", [*PARTS, "workers", "requests"])
def test_our_master_holds_every_case(master, part):
    if part in PARTS:
        cases = select([PARTS[part]])
    else:
        told = {one.name for one in select(PARTS.values())}
        rest = [one for one in CASES.values() if one.name not in told]
        cases = [one for one in rest if one.host == (part == "workers")]
    outcomes = run(Target(master.clients, master.agents), cases)
    assert [one for one in outcomes if one.verdict != "ok"] == []
    assert len(outcomes) == len(cases) > 3


def test_two_runs_leave_nothing_behind(master, capsys, monkeypatch):
    """The second one finds what the first one left: its host, its names, its tokens."""
    cases = select(["life", "hold", "events-credit", "inventory-exit"])
    for _ in range(2):
        outcomes = run(Target(master.clients, master.agents), cases)
        assert {one.verdict for one in outcomes} == {"ok"}, verdicts(outcomes)
    monkeypatch.setenv("POSTHOUSE_MASTER", master.clients)
    assert main(["ps", "--json"]) == 0
    assert capsys.readouterr().out == ""


def test_a_run_that_was_killed_is_cleaned_up_after(master, capsys, monkeypatch):
    target = Target(master.clients, master.agents)
    killed = Kit(target)
    killed.wires.begin(SPAN_S)
    host, client = killed.host(), killed.client()
    killed.register(client)
    host.start()
    for peer in killed.wires.peers:
        peer.drop()
    killed.wires.term()
    outcomes = run(target, select(["life", "tokens"]))
    assert {one.verdict for one in outcomes} == {"ok"}, verdicts(outcomes)
    monkeypatch.setenv("POSTHOUSE_MASTER", master.clients)
    assert main(["ps", "--json"]) == 0
    assert capsys.readouterr().out == ""


def test_a_master_with_keys(start, folder, capsys):
    names = ("agent:kit", "client:kit")
    pairs = {name: keys.generate() for name in ("master:m", *names)}
    for name, pair in pairs.items():
        keys.write_pair(str(folder / name.replace(":", "-")), pair, name)
    known = folder / "principals"
    known.write_text(
        "[principals]\n" + "".join(f'"{name}" = "{pairs[name].public}"\n' for name in names)
    )
    known.chmod(0o644)
    keyed = start(
        listen_agents="tcp://127.0.0.1:*",
        listen_clients="tcp://127.0.0.1:*",
        key_file=str(folder / "master-m"),
        principals_file=str(known),
    )
    status = main([
        *("conformance", "--clients", keyed.clients, "--agents", keyed.agents),
        *("--client-key-file", str(folder / "client-kit"), "--json"),
        *("--agent-key-file", str(folder / "agent-kit"), "--master-key", pairs["master:m"].public),
        *("--only", "session-welcome", "--only", "life", "--only", "host-*"),
    ])  # fmt: skip
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one for one in told if one["verdict"] != "ok"] == []
    assert (status, len(told)) == (0, len(select(["session-welcome", "life", "host-*"])))


# --- what is wrong is found ---


def welcome_with_another_nonce(down, frame):
    if down and frame[0] == 2:
        frame[5]["nonce"] = bytes(16)
    return frame


def nothing_acknowledged(down, frame):
    if down:
        frame[4] = 0
    return frame


def an_event_twice(down, frame):
    if down and frame[0] == 69 and len(frame[5]["events"]) > 0:
        frame[5]["events"].append(frame[5]["events"][-1])
    return frame


def stamps_of_its_own(down, frame):
    if down and frame[0] == 5:
        frame[5]["stamp"] = 7
    return frame


def more_than_the_credit(down, frame):
    if not down and frame[0] == 45:
        frame[5]["credit"] = 64
    return frame


def refusals_without_a_session(down, frame):
    if down and frame[0] == 3 and frame[5]["code"] == "stale_session":
        frame[1], frame[2] = bytes(16), 0
    return frame


def bad_frames_are_swallowed(down, frame):
    return None if down and frame[0] == 3 and frame[5]["code"] == "bad_frame" else frame


def restarts_at_once(down, frame):
    if not down and frame[0] == 30:
        frame[5]["spec"]["restart_time"] = 0.0
    return frame


def grants_to_every_renew():
    """A master that answers RENEW before it knows what runs on the host."""

    def fault(down, frame):
        if not down and frame[0] == 10:
            frame[5]["last"] = True
        return frame

    return fault


def request_ids_are_forgotten():
    """Each request looks new to the master."""
    real = {}

    def fault(down, frame):
        request = frame[5].get("request")
        if request is not None and down:
            frame[5]["request"] = real[request]
        elif request is not None:
            frame[5]["request"] = os.urandom(16)
            real[frame[5]["request"]] = request
        return frame

    return fault


def tokens_that_stay():
    """Every START has the first one's token."""
    first = []

    def fault(down, frame):
        if down and frame[0] == 20:
            first.append(frame[5]["token"])
            frame[5]["token"] = first[0]
        return frame

    return fault


def gone_is_gone(down, frame):
    """A master that has never heard of stale handles."""
    if down and frame[0] == 62 and frame[5]["status"].get("name", "") == "":
        request = frame[5]["request"]
        return [68, *frame[1:5], {"request": request, "code": "no_such_worker", "message": "?"}]
    return frame


def reloads_everything(down, frame):
    """A master that does not say which runtime."""
    return [*frame[:5], {}] if down and frame[0] == 25 else frame


@pytest.mark.parametrize(
    ("fault", "found", "held"),
    [
        (welcome_with_another_nonce, "session-welcome", "session-unknown"),
        (nothing_acknowledged, "link-acknowledged", "session-grant"),
        (an_event_twice, "events-once", "link-gap"),
        (an_event_twice, "events-gapless", "retry"),
        (stamps_of_its_own, "session-grant", "register"),
        (more_than_the_credit, "events-credit", "events-cursor"),
        (refusals_without_a_session, "session-unknown", "session-new"),
        (bad_frames_are_swallowed, "bad-key-twice", "register"),
        (restarts_at_once, "exit-1", "exit-0"),
        (grants_to_every_renew(), "host-grant", "session-grant"),
        (request_ids_are_forgotten(), "retry", "register"),
        (tokens_that_stay(), "tokens", "register"),
        (gone_is_gone, "reference-stale", "reference-unknown"),
        (reloads_everything, "reload", "stacks"),
    ],
    ids=lambda value: getattr(value, "__qualname__", value).partition(".")[0],
)
def test_the_kit_bites(lying, fault, found, held):
    clients, agents = lying(fault)
    got = verdicts(run(Target(clients, agents), select([held, found]), span_s=SPAN_S))
    verdict, expected, came = got[found]
    assert verdict == "failed" and expected and came, got
    assert "cleaning up" not in expected
    assert got[held] == ("ok", "", ""), got


def test_without_a_fault_the_go_between_changes_nothing(lying):
    clients, agents = lying(lambda _down, frame: frame)
    cases = select(["life", "retry", "events-*", "link-gap", "bad-deep", "session-of-another"])
    outcomes = run(Target(clients, agents), cases)
    assert {one.verdict for one in outcomes} == {"ok"}, verdicts(outcomes)


# --- the command ---


def test_the_command_tells_a_line_for_each_case(master, capsys):
    status = main(["conformance", "--clients", master.clients, "--only", "session-[nr]*"])
    out, err = capsys.readouterr()
    lines = [line.split("\t") for line in out.splitlines()]
    assert [(line[0], line[1]) for line in lines] == [
        ("session-new", "ok"), ("session-role", "ok"), ("session-nonce-missing", "ok"),
    ]  # fmt: skip
    assert "3 held, 0 failed, 0 skipped" in err
    assert status == 0


def test_the_command_says_what_failed(lying, capsys):
    clients, _ = lying(stamps_of_its_own)
    only = ("--only", "session-grant", "--only", "session-new")
    status = main(["conformance", "--clients", clients, "--timeout", "2s", *only])
    lines = dict(line.split("\t", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["session-new"].startswith("ok")
    assert lines["session-grant"].startswith("FAILED\tGRANT repeats the stamp")
    assert "expected stamps [1, 2," in lines["session-grant"]
    assert "came [7, 7," in lines["session-grant"]
    assert status == 1


def test_without_agents_the_cases_of_hosts_are_skipped(master, capsys):
    only = ("--only", "life", "--only", "register")
    assert main(["conformance", "--clients", master.clients, *only]) == 0
    assert "life\tskipped\tno agents' endpoint was given" in capsys.readouterr().out
    # Nothing was held by a run that ran nothing.
    assert main(["conformance", "--clients", master.clients, "--only", "life"]) == 1


def test_without_a_master_one_fails_and_the_rest_is_skipped(folder):
    outcomes = run(Target(f"ipc://{folder}/no.sock"), select(["session-*"]), span_s=0.2)
    assert [one.verdict for one in outcomes[:3]] == ["failed", "skipped", "skipped"]
    assert outcomes[0].got.startswith("no connection")


def test_usage(capsys):
    assert main(["conformance", "--only", "nothing-like-this", "--list"]) == 2
    assert "no case 'nothing-like-this'" in capsys.readouterr().err
    assert main(["conformance"]) == 2
    assert main(["conformance", "--list", "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["case"] for one in told] == list(CASES)


# --- the kit itself ---


def test_the_kit_knows_nothing_of_our_own_code():
    """Else it would agree with our mistakes."""
    found = set()
    for path in HERE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module or "")
    ours = {name for name in found if name.startswith("posthouse")}
    assert {name for name in ours if not name.startswith("posthouse_testing.conformance")} == set()
    assert {"zmq", "msgpack"} <= found


def test_statements_are_one_sentence():
    for one in CASES.values():
        assert 10 < len(one.statement) < 90, one.name
        assert not one.statement.endswith("."), one.name
