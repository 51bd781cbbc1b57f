"""Planted bugs of hosts that go on without their master: the simulator has to find each of them."""

from collections.abc import Callable
from typing import Any

import pytest

from posthouse_agent.core import AgentCore
from posthouse_agent.plans import Plans
from posthouse_master import hosts
from posthouse_master.registry import Registration
from posthouse_testing.sim.run import Failure, simulate

pytestmark = pytest.mark.timeout(300)  # seconds of a processor, on a busy machine

FAULTS = ("cable cut", "master killed", "worker killed", "agent killed")
WITHIN = 150  # seeds

Plant = Callable[[pytest.MonkeyPatch], None]
MUTANTS: dict[str, tuple[Plant, frozenset[int]]] = {}


def mutant(*numbers: int) -> Callable[[Plant], Plant]:
    def note(plant: Plant) -> Plant:
        MUTANTS[plant.__name__] = (plant, frozenset(numbers))
        return plant

    return note


@mutant(0, 11)
def who_waits_is_terminated_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Registration, "loose", False)


@mutant(6)
def host_goes_on_in_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    true = AgentCore._go_on

    def go_on(self: Any, now: Any) -> None:
        since_s, self._alone_since_s = self._alone_since_s, 0.0
        try:
            true(self, now)
        finally:
            self._alone_since_s = since_s

    monkeypatch.setattr(AgentCore, "_go_on", go_on)


@mutant(12)
def host_does_not_wait_for_the_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Plans._put_off

    def put_off(self: Any, plan: Any, spec: Any, delay_s: float, why: str, now: Any) -> None:
        true(self, plan, spec, 0.0, why, now)

    monkeypatch.setattr(Plans, "_put_off", put_off)


@mutant(1, 3, 7, 11, 20)
def what_a_host_did_is_not_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts.Hosts, "_went_on", lambda *_: None)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, numbers = MUTANTS[name]
    plant(monkeypatch)
    for seed in range(WITHIN):
        try:
            simulate(seed, only=FAULTS)
        except Failure as failure:
            print(f"{name}: seed {seed}: {failure}")
            assert failure.number in numbers, failure
            return
    pytest.fail(f"not found within {WITHIN} seeds")
