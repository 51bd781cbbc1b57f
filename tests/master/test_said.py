"""What an agent says beyond types and bounds: a liar loses its session, and no more."""

from typing import Any

import msgspec
import pytest

from posthouse import limits
from posthouse.messages import Exited, Inventory, Started, WardenRef
from posthouse.records import ExitFacts


def facts(**values: Any) -> ExitFacts:
    return ExitFacts(pid=4711, **values)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (facts(), "exited without a code or a signal"),
        (facts(code=1, signal=9), "exited with a code and a signal"),
        (facts(cause="signaled"), "signaled without a code or a signal"),
        (facts(cause="signaled", code=1), "signaled with the other's number"),
        (facts(signal=9), "exited with the other's number"),
        (facts(cause="warden_died", code=0), "a code or signal that nobody saw"),
        (facts(cause="host_rebooted", signal=9), "a code or signal that nobody saw"),
        (facts(code=1, core=True), "core or oom without a signal"),
        (facts(code=1, oom=True), "core or oom without a signal"),
        (facts(cause="of_a_newer_agent", code=1, signal=9), "with a code and a signal"),
    ],
)
def test_an_end_that_cannot_be_costs_the_session_and_nothing_else(town, told, why):
    client, host = town.client(), town.host()
    client.register("w")
    start = host.run()
    ended = msgspec.structs.replace(host.exit(start), facts=told)
    rows = len(town.log("0.1"))
    host.say(Exited(worker=ended))
    assert host.refused[-1].code == "bad_frame"
    assert why in host.refused[-1].message
    assert client.status("w").state == "started"
    assert len(town.log("0.1")) == rows
    host.open(settle=False)
    host.settle([host.running(start)], highest_token=start.token)
    assert client.status("w").reachable


def test_an_end_of_a_kind_that_only_newer_agents_know_is_believed(town):
    client, host = town.client(), town.host()
    client.register("w", restart_time=100)
    host.end(host.run(), cause="of_a_newer_agent", signal=6)
    assert client.status("w").last_exit.signal == 6


@pytest.mark.parametrize(
    ("field", "value"), [("warden", "mine"), ("incarnation", 0), ("token", 2**63 - 1)]
)
@pytest.mark.parametrize("where", ["started", "inventory"])
def test_a_process_that_cannot_be_costs_the_session(town, field, value, where):
    client, host = town.client(), town.host()
    client.register("w")
    start = host.take(type(host.inbox[0]))[0]
    running = msgspec.structs.replace(host.running(start), **{field: value})
    if where == "started":
        host.say(Started(worker=running))
    else:
        host.open(settle=False)
        host.settle([running])
    assert host.refused[-1].code == "bad_frame"
    assert client.status("w").state == "not_yet_started"
    assert town.core.registry.token == start.token


def test_the_numbers_of_tokens_cannot_be_used_up_by_a_lie(town):
    """Else the next token would have no room in 64 bits, at every start of the master."""
    client, host = town.client(), town.agent("b")
    host.open(settle=False)
    host.say(Inventory(page=0, last=True, highest_token=2**63 - 1))
    assert host.refused[-1].code == "bad_frame"
    assert town.core.registry.token == 0
    host.open(settle=False)
    host.settle(highest_token=limits.token_ahead_max)  # a registry that was restored
    client.register("w")
    assert host.run().token == limits.token_ahead_max + 1


@pytest.mark.parametrize(
    "wardens",
    [
        [WardenRef(kind="mine", instance="ab" * 16)],
        [WardenRef(kind="kept", instance=i * 16) for i in ("ab", "cd")],
        [WardenRef(kind=kind, instance="ab" * 16) for kind in ("kept", "fenced")],
    ],
)
def test_wardens_that_cannot_be_open_no_session(town, wardens):
    host = town.agent("b")
    host.open(settle=False, wardens=wardens)
    assert host.link is None
    assert host.refused[-1].code == "bad_frame"
