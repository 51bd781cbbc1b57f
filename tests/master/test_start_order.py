"""T5-T9: who is started first, how many at a time, and what a start that fails costs the others."""

from typing import Any

import pytest

from posthouse import limits
from posthouse.messages import Start, Started, StartFailed, Stop
from posthouse.states import NEVER_RESTART

WAVE = limits.starts_in_flight_max


def names(starts: list[Start]) -> list[str]:
    return [start.spec["name"] for start in starts]


def started(host: Any, starts: list[Start]) -> None:
    for start in starts:
        host.say(Started(worker=host.running(start)))
        host.acknowledge()


def failed(host: Any, start: Start, **values: Any) -> None:
    host.say(
        StartFailed(
            slot=start.slot,
            generation=start.generation,
            incarnation=start.incarnation,
            token=start.token,
            reason="fork: no memory",
            **values,
        )
    )


def test_t5_those_that_waited_together_start_oldest_first(town):
    """PostgreSQL: newest first. posthouse: oldest first, healed on purpose."""
    client = town.client()
    for n in range(10):
        client.register(f"w{n}")
    host = town.host()
    assert names(host.take(Start)) == [f"w{n}" for n in range(10)]


def test_t6_a_host_is_given_a_bounded_number_of_starts_at_a_time(town):
    """PostgreSQL: 100 starts, then other events, then again from the head of the list. posthouse:
    so many STARTs of one host unanswered, and the line goes on where it was."""
    client = town.client()
    count = 3 * WAVE + 5
    for n in range(count):
        client.register(f"w{n}")
    host = town.host()
    order: list[str] = []
    while starts := host.take(Start):
        assert len(starts) <= WAVE
        order += names(starts)
        started(host, starts)
    assert order == [f"w{n}" for n in range(count)]


def test_t6_newcomers_do_not_put_off_who_has_waited_longer(town):
    """PostgreSQL: a steady flow of new workers can delay old ones for ever. posthouse: each that
    comes goes to the end of the line, also before a restart that has become due."""
    client = town.client()
    host = town.host()
    client.register("old", restart_time=1)
    (old,) = host.take(Start)
    started(host, [old])
    for n in range(2 * WAVE):
        client.register(f"first{n}")
    (first, *_) = flying = host.take(Start)
    assert len(flying) == WAVE
    host.end(old, code=1)
    town.pass_time(1.5)  # its restart is due, behind those that wait already
    seen: list[str] = []
    for n in range(400):
        client.register(f"flow{n}")
        host.say(Started(worker=host.running(flying.pop(0))))
        host.acknowledge()
        client.acknowledge()
        come = host.take(Start)
        flying += come
        seen += names(come)
        if "old" in seen:
            break
    assert seen.index("old") == WAVE, "after those that came before it, and nobody else"
    assert not any(name.startswith("flow") for name in seen)
    assert first.spec["name"] == "first0"


def test_t6_a_storm_does_not_put_off_the_restart_of_another(town):
    """PostgreSQL: all wait in one list. posthouse: who fails again and again waits a second longer
    than the others, and no more than that."""
    client, host = town.client(), town.host()
    client.register("calm", restart_time=2)
    for n in range(3 * WAVE):
        client.register(f"storm{n}", restart_time=0, restart_budget=(1000, 0.001))
    calm, *flying = host.take(Start)
    started(host, [calm])

    def fail_some(count: int) -> list[str]:
        come = []
        for _ in range(count):
            start = flying.pop(0)
            started(host, [start])
            host.end(start, code=1)
            host.acknowledge()
            client.acknowledge()
            found = host.take(Start)
            flying.extend(found)
            come += names(found)
        return come

    fail_some(9 * WAVE)  # each has failed more than once, and all of them wait in line
    host.end(calm, code=1)
    waited = 0
    while "calm" not in fail_some(8):  # 80 a second, of those that wait
        waited += 1
        town.pass_time(0.1)
        assert waited <= 22, "it is due after 2 s, and then the next one"
    assert waited >= 19
    later: set[str] = set()
    for _ in range(20):
        town.pass_time(0.1)
        later |= set(fail_some(8))
    assert len(later) == 3 * WAVE, "and none of the others is starved"


def test_t6_a_stop_does_not_wait_behind_a_mass_of_starts(town):
    client, host = town.client(), town.host()
    client.register("calm")
    (calm,) = host.take(Start)
    started(host, [calm])
    for n in range(500):
        client.register(f"w{n}")
    client.terminate("calm")
    kinds = [type(message) for message in host.inbox if isinstance(message, Start | Stop)]
    assert kinds.index(Stop) <= WAVE


def test_t7_a_start_that_fails_holds_up_nobody_else(town):
    """PostgreSQL: the first failure ends the pass; the others are tried at once in the next one."""
    client = town.client()
    for n in range(WAVE + 10):
        client.register(f"w{n}", restart_time=50)
    host = town.host()
    first = host.take(Start)
    for start in first:
        failed(host, start)
        host.acknowledge()
    assert names(host.take(Start)) == [f"w{n}" for n in range(WAVE, WAVE + 10)]
    assert client.status("w0").restart_in_s == pytest.approx(50.0)


def test_t8_who_was_terminated_is_gone_before_delay_and_phase_are_asked(town):
    """PostgreSQL: doomed workers are purged first. posthouse: by the request itself."""
    client, host = town.client(), town.host()
    client.register("waits", restart_time=1000)
    (start,) = host.take(Start)
    started(host, [start])
    host.end(start, code=1)
    client.register("nowhere", labels=("none",))
    for name in ("waits", "nowhere"):
        client.terminate(name)
        assert client.status(name).final
    town.pass_time(1001)
    assert not host.take(Start)


def test_t9_a_start_is_not_part_of_the_registration(town):
    """PostgreSQL and posthouse: register() says nothing about the start, and two workers need not
    start in the order in which they were registered."""
    client, host = town.client(), town.host("b")
    client.register("pinned", host="b", labels=("later",))
    client.register("free")
    free = host.take(Start)
    assert names(free) == ["free"]
    started(host, free)
    host.open(labels=["later"], settle=False)
    host.settle([host.running(free[0])], highest_token=free[0].token)
    assert names(host.take(Start)) == ["pinned"]


def test_a_session_that_ends_gives_the_starts_in_flight_back(town):
    client, host = town.client(), town.host()
    for n in range(WAVE + 1):
        client.register(f"w{n}")
    assert len(host.take(Start)) == WAVE
    host.open()
    again = host.take(Start)
    assert len(again) == WAVE
    assert {start.token for start in again}.isdisjoint(range(1, WAVE + 1))
    started(host, again)
    assert len(host.take(Start)) == 1
    assert town.core.registry.starting("b") == 1


@pytest.mark.parametrize("ends", ["started", "failed", "stopped", "never_again"])
def test_every_answer_makes_room_for_the_next_start(town, ends):
    client, host = town.client(), town.host()
    never = {"restart_time": NEVER_RESTART} if ends == "never_again" else {"restart_time": 100}
    for n in range(WAVE + 1):
        client.register(f"w{n}", **never)
    (start, *_) = host.take(Start)
    if ends == "started":
        started(host, [start])
    elif ends in ("failed", "never_again"):
        failed(host, start)
    else:
        client.terminate("w0")
        host.no_such_process(host.one(Stop))
    assert names(host.take(Start)) == [f"w{WAVE}"]
