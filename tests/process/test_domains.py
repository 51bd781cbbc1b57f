"""Crash domains of a real warden (C1-C8): who is reset with whom, and what is there afterwards."""

import zlib

import pytest

from posthouse_agent.orders import Ended, Forked, SignalWorker, StopWorker

SHMEM = 1
TERM, QUIT, KILL = 15, 3, 9


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
    def begin(main="struct", arg=("s", 64, 7), **spec):
        fields = {"flags": SHMEM, "crash_domain": domain, **spec}
        return host.begin(agent, f"shmem_jobs:{main}", arg, **fields)

    return begin


def kill(agent, forked, signal=KILL):
    agent.give(SignalWorker(token=forked.token, signal=signal))
    return agent.expect(Ended, forked.token)


def end(agent, *many, signal=TERM):
    for forked in many:
        token, slot = forked.token, forked.slot
        agent.give(StopWorker(token=token, slot=slot, reason="terminate", signal=signal, grace_s=5))
        agent.expect(Ended, forked.token)


def test_c1_k2_a_crash_resets_all_members_and_the_next_epoch_is_of_zeros(
    host, agent, begin, domain
):
    members = [begin() for _ in range(3)]
    dsm = begin("dsm_maker", 64)
    handle = host.said(dsm.slot)[0]["handle"]
    ended = kill(agent, members[0])
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
        reset = agent.expect(Ended, member.token)
        assert (reset.stop, reset.facts["code"]) == ("domain_reset", 2), "QUIT"
        assert facts.items() <= reset.facts.items()
    again = begin(arg=["s", 64, 0])
    assert host.said(again.slot)[0] == {"found": False, "before": 0, "size": 64, "epoch": 2}
    gone = begin("dsm_attach_and_leave", handle)
    assert host.said(gone.slot) == [{"value": None}], "C5: a handle of the epoch before dangles"
    agent.expect(Ended, gone.token)
    end(agent, again)


def test_c1_only_those_who_mapped_a_segment_of_this_domain_are_reset(host, agent, begin, domain):
    """PostgreSQL resets everybody. Here others do not notice."""
    member = begin()
    elsewhere = begin(crash_domain=f"{domain}x")
    entitled = begin("say_and_stay", None)
    plain = begin("say_and_stay", None, flags=0)
    kill(agent, entitled)  # it has mapped nothing: a crash of its own
    victim = begin()
    assert kill(agent, victim).facts["crash_domain"] == domain
    assert agent.expect(Ended, member.token).stop == "domain_reset"
    for other in (elsewhere, plain):
        ended = kill(agent, other, TERM)
        assert (ended.stop, ended.facts["code"]) == ("", 1), "it was there until now"
        assert "crash_domain" not in ended.facts


@pytest.mark.parametrize("code", [0, 1])
def test_e1_e2_a_clean_exit_of_a_member_resets_nobody(host, agent, begin, code):
    member = begin()
    leaver = begin("leave", code)
    ended = agent.expect(Ended, leaver.token)
    assert ended.facts["code"] == code
    assert "crash_domain" not in ended.facts
    found = begin(arg=["s", 64, 0])
    assert host.said(found.slot)[0] == {"found": True, "before": 7, "size": 64, "epoch": 1}
    end(agent, member, found)


def test_e3_another_code_of_a_member_is_a_crash(host, agent, begin):
    member = begin()
    leaver = begin("leave", 2)
    assert "exited with code 2" in agent.expect(Ended, leaver.token).facts["domain_cause"]
    assert agent.expect(Ended, member.token).stop == "domain_reset"


@pytest.mark.slow
def test_c1_who_does_not_heed_quit_is_killed(host, agent, begin):
    deaf = begin("deaf", None)
    victim = begin()
    kill(agent, victim)
    ended = agent.expect(Ended, deaf.token)
    assert (ended.stop, ended.facts["signal"]) == ("domain_reset", KILL)
    assert ended.facts["runtime_s"] >= 5


def test_c6_nobody_is_given_memory_until_the_last_member_is_gone(
    host, agent, begin, domain, eventually
):
    """PostgreSQL starts nobody meanwhile. Here one may start; its question waits."""
    deaf = begin("deaf", None)
    kill(agent, begin())
    order = host.order("shmem_jobs:struct", ["s", 64, 0], flags=SHMEM, crash_domain=domain)
    agent.give(order)
    agent.expect(Forked, order.token)
    end(agent, deaf, signal=KILL)
    eventually(lambda: host.log_path(order.slot).exists() and host.said(order.slot))
    assert host.said(order.slot) == [{"found": False, "before": 0, "size": 64, "epoch": 2}]
    end(agent, order)


def test_nobody_sees_bytes_of_the_old_epoch(host, agent, begin):
    """A member is killed in the middle of writing, again and again."""
    for epoch in range(1, 6):
        writers = [begin("scribble", epoch) for _ in range(3)]
        for writer in writers:
            assert host.said(writer.slot)[0] == {"foreign": 0, "epoch": epoch}
        kill(agent, writers[0])
        for writer in writers[1:]:
            agent.expect(Ended, writer.token)
            assert host.said(writer.slot)[-1].get("foreign", 0) == 0
    assert len(host.said(writers[0].slot)) == 1


def test_c2_the_number_of_resets_within_a_minute_is_told(host, agent, begin):
    """After the first one whoever is reset waits for its restart_time."""
    for count in (1, 2, 3):
        assert kill(agent, begin()).facts["domain_resets"] == count


@pytest.mark.slow
def test_a_request_to_end_stands_though_its_domain_is_reset(host, agent, begin):
    deaf = begin("deaf", None)
    victim = begin()
    agent.give(
        StopWorker(token=deaf.token, slot=deaf.slot, reason="terminate", signal=TERM, grace_s=60)
    )
    kill(agent, victim)
    ended = agent.expect(Ended, deaf.token)
    assert (ended.stop, ended.facts["signal"]) == ("terminate", KILL)
