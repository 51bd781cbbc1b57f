"""Locks in shared memory between real workers (K20)."""

import zlib

import pytest

from posthouse_agent.orders import Ended, SignalWorker, StopWorker

SHMEM = 1
TERM, KILL = 15, 9


@pytest.fixture(name="host")
def _host(shared_host):
    return shared_host


@pytest.fixture(name="agent")
def _agent(shared_agent):
    return shared_agent


@pytest.fixture(name="domain")
def _domain(request):
    return f"d{zlib.crc32(request.node.name.encode())}"


@pytest.fixture(name="begin")
def _begin(host, agent, domain):
    def begin(main, arg=None):
        return host.begin(agent, f"lock_jobs:{main}", arg, flags=SHMEM, crash_domain=domain)

    return begin


def end(agent, *many):
    for forked in many:
        token, slot = forked.token, forked.slot
        agent.give(StopWorker(token=token, slot=slot, reason="terminate", signal=TERM, grace_s=5))
        agent.expect(Ended, forked.token)


def test_k20_one_process_alone(host, agent, domain):
    ended = host.run(agent, "lock_jobs:alone", flags=SHMEM, crash_domain=domain)
    assert ended.facts["code"] == 0, ended.facts
    assert host.said(ended.slot)[0] == {
        "free": False,
        "held": True,
        "twice": "UsageError",
        "not another's": "UsageError",
        "not held": "UsageError",
        "shared twice": "UsageError",
        "offsets": ["UsageError"] * 3,
        "too many": "UsageError",
        "thread": [[], [1]],
    }


@pytest.mark.parametrize(
    ("held", "wanted", "at_once"),
    [(False, False, False), (False, True, False), (True, False, False), (True, True, True)],
)
def test_k20_shared_and_exclusive(host, agent, begin, held, wanted, at_once):
    holder = begin("hold", [held, "release"])
    pid = host.said(holder.slot)[0]["pid"]
    other = begin("attempt", [wanted, 0.01])
    agent.expect(Ended, other.token)
    told = host.said(other.slot)[1]
    assert told["at_once"] is at_once
    if at_once:
        assert told["error"] == ""
    else:
        assert "TimedOut" in told["error"]
        assert f"process {pid} holds it" in told["error"]
    agent.set_latch(holder.token)
    assert agent.expect(Ended, holder.token).facts["code"] == 0


def test_k20_who_waits_has_it_when_it_is_released(host, agent, begin, eventually):
    holder = begin("hold", [False, "release"])
    other = begin("attempt", [False, 30])
    agent.set_latch(holder.token)
    assert agent.expect(Ended, other.token).facts["code"] == 0
    assert host.said(other.slot)[1] == {"at_once": False, "error": ""}


@pytest.mark.parametrize("ending", ["exit", "error", "die"])
def test_k20_e4_an_exit_with_a_lock_held_counts_as_a_crash(host, agent, begin, ending, domain):
    """PostgreSQL releases them on the way out. Here what they protect is not trusted any more."""
    holder = begin("hold", [False, ending])
    other = begin("attempt", [False, 30])
    agent.set_latch(holder.token)
    ended = agent.expect(Ended, holder.token)
    assert ended.facts["lock_held"] is True
    assert (ended.facts["crash_domain"], ended.facts["domain_epoch"]) == (domain, 2)
    assert "while it held a lock" in ended.facts["domain_cause"]
    agent.expect(Ended, other.token)
    assert "Abandoned" in host.said(other.slot)[1]["error"]


def test_k20_k19_a_killed_holder_does_not_keep_it(host, agent, begin):
    holder = begin("hold", [False, "release"])
    other = begin("attempt", [False, 30])
    agent.give(SignalWorker(token=holder.token, signal=KILL))
    agent.expect(Ended, holder.token)
    agent.expect(Ended, other.token)
    assert "Abandoned: process" in host.said(other.slot)[1]["error"]


def test_w3_k20_term_waits_until_the_lock_is_released(host, agent, begin):
    forked = begin("hold_and_be_told")
    ended = agent.expect(Ended, forked.token)
    assert ended.facts["code"] == 1
    assert "lock_held" not in ended.facts
    assert host.said(forked.slot) == [{"still": True}]


def test_k20_nothing_is_counted_twice_or_seen_torn(host, agent, begin, eventually):
    orders = [
        host.order("lock_jobs:count", [60, number > 0], flags=SHMEM, crash_domain="torn")
        for number in range(3)
    ]
    for order in orders:
        agent.give(order)
    for order in orders:
        eventually(lambda slot=order.slot: host.log_path(slot).exists() and host.said(slot))
        assert host.said(order.slot) == [{"done": True, "torn": 0}]
    ended = host.run(agent, "lock_jobs:counted", flags=SHMEM, crash_domain="torn")
    assert host.said(ended.slot) == [{"count": [140, 140]}]
    end(agent, *orders)
