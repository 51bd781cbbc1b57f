"""What a host may start by itself: under which tokens, when, and when no more."""

import dataclasses
from typing import Any

import msgspec
import pytest

from posthouse import limits
from posthouse.ids import Instant
from posthouse.messages import Exit, Start, StructRequest
from posthouse.records import ExitFacts
from posthouse.states import StopReason
from posthouse_agent import inventory
from posthouse_agent.orders import StartWorker
from posthouse_agent.plans import Plans, start_of

REGISTRY = "ab" * 16
NOW = Instant(1000.0, 1e9)
FAILED = ExitFacts(code=1)


def at(seconds: float) -> Instant:
    return Instant(NOW.boot_s + seconds, NOW.unix_s + seconds)


def start(token: int = 10, reserved: tuple[int, ...] = (11, 12, 20), **spec: Any) -> Start:
    return Start(
        registry=REGISTRY, slot=3, generation=1, incarnation=4, token=token, revision=2,
        spec={"name": "w", "main": "m:f", "restart_time": 2.0} | spec, warden="kept",
        reserved=list(reserved),
    )  # fmt: skip


def end(of: Start, facts: ExitFacts = FAILED, stop: StopReason | None = None) -> Exit:
    return Exit(
        registry=REGISTRY, slot=of.slot, generation=of.generation, incarnation=of.incarnation,
        token=of.token, facts=facts, stop=stop,
    )  # fmt: skip


@pytest.fixture
def plans() -> Plans:
    return Plans(lambda count: b"\0" * count)


def test_the_next_one_has_the_next_token_after_its_delay(plans: Plans) -> None:
    first = start()
    plans.given(first)
    assert not plans.due(at(100)), "it runs"
    plans.ended(end(first), NOW)
    assert plans.wake_s == NOW.boot_s + 2.0
    assert not plans.due(at(1.9))
    ((second, why),) = plans.due(at(2.0))
    assert (second.token, second.incarnation, second.reserved) == (11, 5, [12, 20])
    assert (second.spec, second.revision) == (first.spec, first.revision)
    assert why == "exited with code 1"
    assert plans.went_on(end(first))
    assert not plans.due(at(100))
    plans.ended(end(second), at(100))
    ((third, _),) = plans.due(at(102))
    assert (third.token, third.incarnation, third.reserved) == (12, 6, [20])


def test_the_last_token_is_the_last_start(plans: Plans) -> None:
    first = start(reserved=(11,))
    plans.given(first)
    plans.ended(end(first), NOW)
    ((second, _),) = plans.due(at(2))
    plans.ended(end(second), at(3))
    assert not plans.due(at(1000))
    assert plans.wake_s == float("inf")


@pytest.mark.parametrize(
    ("facts", "stop", "spec"),
    [
        (ExitFacts(code=0), None, {}),
        (FAILED, None, {"restart_time": -1}),
        (FAILED, StopReason.TERMINATE, {}),
        (FAILED, StopReason.HOLD, {}),
        (FAILED, StopReason.SHUTDOWN, {}),
        (FAILED, StopReason.APPLY, {}),
    ],
)
def test_whom_nobody_would_start_again_the_host_does_not_either(
    plans: Plans, facts: ExitFacts, stop: StopReason | None, spec: dict[str, Any]
) -> None:
    first = start(**spec)
    plans.given(first)
    plans.ended(end(first, facts, stop), NOW)
    assert not plans.due(at(10_000))
    assert not plans.went_on(end(first))


def test_the_reset_of_a_crash_domain_is_the_hosts_own(plans: Plans) -> None:
    first = start(flags=1)
    plans.given(first)
    facts = ExitFacts(code=2, crash_domain="default", domain_resets=1, domain_cause="x")
    plans.ended(end(first, facts, StopReason.DOMAIN_RESET), NOW)
    assert [each.token for each, _ in plans.due(NOW)] == [11], "C2: at once"


def test_what_the_master_knows_or_takes_back_is_the_masters(plans: Plans) -> None:
    first = start()
    plans.given(first)
    plans.confirmed(3, 9)
    plans.ended(end(first), NOW)
    plans.confirmed(3, 10)
    assert not plans.due(at(100))
    plans.given(first)
    plans.ended(end(first), NOW)
    plans.taken_back(3)
    assert not plans.due(at(100))
    plans.given(first)
    plans.forget(but={10})
    plans.ended(end(first), NOW)
    assert plans.due(at(2))
    plans.forget()
    plans.ended(end(first), NOW)
    assert not plans.due(at(100))


def test_a_confirmed_end_does_not_take_the_plan_of_what_runs(plans: Plans) -> None:
    first, second = start(), start(11, (12, 20, 21))
    plans.given(first)
    plans.ended(end(first), NOW)
    plans.given(second)
    plans.confirmed(3, 10)
    plans.ended(end(second), at(5))
    assert [each.token for each, _ in plans.due(at(7))] == [12]


def test_one_that_could_not_be_started_uses_up_its_token(plans: Plans) -> None:
    first = start()
    plans.given(first)
    plans.ended(end(first), NOW)
    plans.due(at(2))
    assert plans.failed(3, 11, "no room", "fork_failed", at(2))
    assert not plans.due(at(3.9))
    assert [each.token for each, _ in plans.due(at(4))] == [12]
    assert plans.failed(3, 12, "stale", "stale_token", at(4))
    assert [each.token for each, _ in plans.due(at(4))] == [20], "that one was tried before"
    assert plans.failed(3, 20, "no room", "fork_failed", at(4))
    assert not plans.due(at(100)), "there is none left"
    assert not plans.failed(3, 20, "again", "fork_failed", at(4))


def test_a_crash_loop_keeps_to_the_workers_budget(plans: Plans) -> None:
    tokens = tuple(range(11, 11 + limits.reserved_tokens_max))
    newest = start(reserved=tokens, restart_time=0.0, restart_budget=[3, 60.0])
    plans.given(newest)
    plans.ended(end(newest), NOW)
    times = []
    for second in range(200):
        for each, _ in plans.due(at(second)):
            newest = each
            times.append(second)
            plans.ended(end(newest), at(second))
    assert len(times) > 6
    for third, after in zip(times, times[3:], strict=False):
        assert after - third >= 60


def test_it_is_told_again_to_a_later_agent(plans: Plans) -> None:
    order = StartWorker(
        token=10, registry=REGISTRY, slot=3, generation=1, incarnation=4, revision=2, host="a",
        spec=start().spec | {"flags": 1, "crash_domain": "d"}, reserved=[11, 12],
        structs=[{"name": "counters", "size": 4096, "library": "acme"}],
    )  # fmt: skip
    again = start_of(order)
    assert (again.token, again.incarnation, again.warden) == (10, 4, "kept")
    assert again.reserved == [11, 12]
    struct = StructRequest(name="counters", size=4096, library="acme", crash_domain="d")
    assert again.structs == [struct]
    unnamed = dataclasses.replace(order, structs=[{"size": 4096}])
    with pytest.raises(ValueError, match="name"):
        start_of(unnamed)
    later = dataclasses.replace(order, spec=order.spec | {"restart_time": "soon"})
    with pytest.raises(ValueError, match="restart_time"):
        start_of(later)


def test_the_inventory_says_after_which_ends_the_host_went_on(plans: Plans) -> None:
    first = start()
    second = msgspec.structs.replace(first, token=11, incarnation=5)
    other = msgspec.structs.replace(first, slot=4, token=30, reserved=[31])
    ends = [end(first), end(second), end(other)]
    told = inventory.onward(ends, [], plans.went_on)
    assert [each.went_on for each in told] == [True, False, False]
    plans.given(other)
    plans.ended(end(other), NOW)
    plans.due(at(2))
    told = inventory.onward(ends, [], plans.went_on)
    assert [each.went_on for each in told] == [True, False, True]
