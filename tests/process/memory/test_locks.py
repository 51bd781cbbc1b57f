"""Locks in shared memory between real workers (K20)."""

import pytest

from posthouse_agent.orders import StopWorker

JOBS = "lock_jobs"


def test_k20_one_process_alone(memory):
    assert memory.run("alone")[0] == {
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
def test_k20_shared_and_exclusive(memory, agent, held, wanted, at_once):
    holder = memory.begin("hold", [held, "release"])
    pid = memory.said(holder)[0]["pid"]
    other = memory.begin("attempt", [wanted, 0.01])
    memory.ended(other)
    told = memory.said(other)[1]
    assert told["at_once"] is at_once
    if at_once:
        assert told["error"] == ""
    else:
        assert "TimedOut" in told["error"]
        assert f"process {pid} holds it" in told["error"]
    agent.set_latch(holder.token)
    assert memory.ended(holder).facts["code"] == 0


def test_k20_who_waits_has_it_when_it_is_released(memory, agent):
    holder = memory.begin("hold", [False, "release"])
    other = memory.begin("attempt", [False, 30])
    agent.set_latch(holder.token)
    assert memory.ended(other).facts["code"] == 0
    assert memory.said(other)[1] == {"at_once": False, "error": ""}


@pytest.mark.parametrize("ending", ["exit", "error", "die"])
def test_k20_e4_an_exit_with_a_lock_held_counts_as_a_crash(memory, agent, ending, domain):
    """PostgreSQL releases them on the way out. Here what they protect is not trusted any more."""
    holder = memory.begin("hold", [False, ending])
    other = memory.begin("attempt", [False, 30])
    agent.set_latch(holder.token)
    ended = memory.ended(holder)
    assert ended.facts["lock_held"] is True
    assert (ended.facts["crash_domain"], ended.facts["domain_epoch"]) == (domain, 2)
    assert "while it held a lock" in ended.facts["domain_cause"]
    memory.ended(other)
    assert "Abandoned" in memory.said(other)[1]["error"]


def test_k20_k19_a_killed_holder_does_not_keep_it(memory):
    holder = memory.begin("hold", [False, "release"])
    other = memory.begin("attempt", [False, 30])
    memory.kill(holder)
    memory.ended(other)
    assert "Abandoned: process" in memory.said(other)[1]["error"]


def test_w3_k20_term_waits_until_the_lock_is_released(memory):
    forked = memory.begin("hold_and_be_told")
    ended = memory.ended(forked)
    assert ended.facts["code"] == 1
    assert "lock_held" not in ended.facts
    assert memory.said(forked) == [{"still": True}]


def test_k20_nothing_is_counted_twice_or_seen_torn(memory):
    orders = [memory.order("count", [60, number > 0]) for number in range(3)]
    for order in orders:
        assert memory.said(order) == [{"done": True, "torn": 0}]
    assert memory.run("counted") == [{"count": [140, 140]}]
    memory.end(*orders)


def test_w2_w3_k20_term_at_any_line_of_a_lock_leaves_what_it_protects_whole(memory):
    """Before it is had, while it is held, after it is given back: never in between."""
    lines = 0
    while True:
        ended = memory.ended(memory.order("term_at_line", lines))
        assert "crash_domain" not in ended.facts, ended.facts
        if ended.facts["code"] == 0:
            break
        assert ended.facts["code"] == 1, ended.facts
        assert "due to administrator command" in ended.facts["output_tail"]
        lines += 1
    assert lines > 30
    (told,) = memory.run("counted")
    assert told["count"][0] == told["count"][1] > 5


def test_w3_k20_who_never_lets_go_is_killed_after_its_grace_and_the_domain_reset(memory, domain):
    holder = memory.begin("hold_for_ever")
    other = memory.begin("attempt", [False, 30])
    memory.agent.give(
        StopWorker(token=holder.token, slot=holder.slot, reason="hold", signal=15, grace_s=0.3)
    )
    ended = memory.ended(holder)
    assert (ended.stop, ended.facts["signal"]) == ("hold", 9)
    assert "ended by signal 9 while it held a lock" in ended.facts["domain_cause"]
    assert memory.ended(other).facts["crash_domain"] == domain
    assert "Abandoned" in memory.said(other)[1]["error"]  # its last words


def test_w2_w3_term_ends_a_wait_for_a_lock_at_once(memory):
    holder = memory.begin("hold", [False, "release"])
    waiter = memory.begin("wait_for_it")
    facts = memory.kill(waiter, signal=15).facts
    assert facts["code"] == 1
    assert "lock_held" not in facts
    memory.agent.set_latch(holder.token)
    assert memory.ended(holder).facts["code"] == 0
