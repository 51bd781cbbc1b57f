"""Crash domains of a real warden (C1-C8): who is reset with whom, and what is there afterwards."""

import pytest

from posthouse_agent.orders import StopWorker

JOBS = "shmem_jobs"
TERM, KILL = 15, 9


@pytest.fixture(name="begin")
def _begin(memory):
    def begin(main="struct", arg=("s", 64, 7), **spec):
        return memory.begin(main, arg, **spec)

    return begin


def test_c1_k2_a_crash_resets_all_members_and_the_next_epoch_is_of_zeros(memory, begin, domain):
    members = [begin() for _ in range(3)]
    dsm = begin("dsm_maker", 64)
    handle = memory.said(dsm)[0]["handle"]
    ended = memory.kill(members[0])
    assert ended.facts["signal"] == KILL
    facts = {
        "crash_domain": domain,
        "domain_epoch": 2,
        "domain_cause": f"worker w{members[0].token} (pid {members[0].pid}) ended by signal 9",
        "domain_resets": 1,
    }
    assert facts.items() <= ended.facts.items()
    assert ended.stop == ""
    for member in [*members[1:], dsm]:
        reset = memory.ended(member)
        assert (reset.stop, reset.facts["code"]) == ("domain_reset", 2), "QUIT"
        assert facts.items() <= reset.facts.items()
    again = begin(arg=["s", 64, 0])
    assert memory.said(again)[0] == {"found": False, "before": 0, "size": 64, "epoch": 2}
    gone = begin("dsm_attach_and_leave", handle)
    assert memory.said(gone) == [{"value": None}], "C5: a handle of the epoch before dangles"
    memory.ended(gone)
    memory.end(again)


def test_c1_only_those_who_mapped_a_segment_of_this_domain_are_reset(memory, begin, domain):
    """PostgreSQL resets everybody. Here others do not notice."""
    member = begin()
    elsewhere = begin(crash_domain=f"{domain}x")
    entitled = begin("say_and_stay", None)
    plain = begin("say_and_stay", None, flags=0)
    memory.kill(entitled)  # it has mapped nothing: a crash of its own
    victim = begin()
    assert memory.kill(victim).facts["crash_domain"] == domain
    assert memory.ended(member).stop == "domain_reset"
    for other in (elsewhere, plain):
        ended = memory.kill(other, TERM)
        assert (ended.stop, ended.facts["code"]) == ("", 1), "it was there until now"
        assert "crash_domain" not in ended.facts


@pytest.mark.parametrize("code", [0, 1])
def test_e1_e2_a_clean_exit_of_a_member_resets_nobody(memory, begin, code):
    member = begin()
    leaver = begin("leave", code)
    ended = memory.ended(leaver)
    assert ended.facts["code"] == code
    assert "crash_domain" not in ended.facts
    found = begin(arg=["s", 64, 0])
    assert memory.said(found)[0] == {"found": True, "before": 7, "size": 64, "epoch": 1}
    memory.end(member, found)


def test_e3_another_code_of_a_member_is_a_crash(memory, begin):
    member = begin()
    leaver = begin("leave", 2)
    assert "exited with code 2" in memory.ended(leaver).facts["domain_cause"]
    assert memory.ended(member).stop == "domain_reset"


@pytest.mark.slow
def test_c1_who_does_not_heed_quit_is_killed(memory, begin):
    deaf = begin("deaf", None)
    victim = begin()
    memory.kill(victim)
    ended = memory.ended(deaf)
    assert (ended.stop, ended.facts["signal"]) == ("domain_reset", KILL)
    assert ended.facts["runtime_s"] >= 5


def test_c6_nobody_is_given_memory_until_the_last_member_is_gone(memory, begin):
    """PostgreSQL starts nobody meanwhile. Here one may start; its question waits."""
    deaf = begin("deaf", None)
    memory.kill(begin())
    order = memory.order("struct", ["s", 64, 0])
    memory.end(deaf, signal=KILL)
    assert memory.said(order) == [{"found": False, "before": 0, "size": 64, "epoch": 2}]
    memory.end(order)


def test_nobody_sees_bytes_of_the_old_epoch(memory, begin):
    """A member is killed in the middle of writing, again and again."""
    for epoch in range(1, 6):
        writers = [begin("scribble", epoch) for _ in range(3)]
        for writer in writers:
            assert memory.said(writer)[0] == {"foreign": 0, "epoch": epoch}
        memory.kill(writers[0])
        for writer in writers[1:]:
            memory.ended(writer)
            assert memory.said(writer)[-1].get("foreign", 0) == 0
    assert len(memory.said(writers[0])) == 1


def test_c2_the_number_of_resets_within_a_minute_is_told(memory, begin):
    """After the first one whoever is reset waits for its restart_time."""
    for count in (1, 2, 3):
        assert memory.kill(begin()).facts["domain_resets"] == count


@pytest.mark.slow
def test_a_request_to_end_stands_though_its_domain_is_reset(memory, agent, begin):
    deaf = begin("deaf", None)
    victim = begin()
    agent.give(
        StopWorker(token=deaf.token, slot=deaf.slot, reason="terminate", signal=TERM, grace_s=60)
    )
    memory.kill(victim)
    ended = memory.ended(deaf)
    assert (ended.stop, ended.facts["signal"]) == ("terminate", KILL)
