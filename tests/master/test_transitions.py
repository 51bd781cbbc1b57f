"""The table of what may follow what, cell by cell, and the indexes that every step keeps."""

import itertools

import pytest

from posthouse.errors import InternalError, NoFreeSlot, NoSuchWorker
from posthouse.ids import HandleId
from posthouse.spec import BackgroundWorker
from posthouse_master.registry import TRANSITIONS, Registration, Registry, Step
from posthouse_master.store.base import Life

SPEC = BackgroundWorker(name="w", main="m:f")


def add(registry: Registry, name: str = "w", pinned: str = "") -> Registration:
    slot, generation = registry.take_slot()
    registration = Registration(
        slot=slot,
        generation=generation,
        revision=1,
        name=name,
        packed=b"%d.%d" % (slot, generation),
        pinned=pinned,
        registered_unix_s=0.0,
    )
    registry.add(registration, SPEC)
    return registration


def lead_to(registry: Registry, life: Life) -> Registration:
    registration = add(registry)
    path = {
        Life.SUBMITTED: (),
        Life.STARTING: (Step.START,),
        Life.RUNNING: (Step.START, Step.STARTED),
        Life.WAITING: (Step.START, Step.STARTED, Step.EXIT),
        Life.HELD: (Step.HOLD,),
        Life.RETIRED: (Step.CANCEL,),
    }[life]
    for step in path:
        registry.move(registration, step, host="b")
    return registration


@pytest.mark.parametrize(("life", "step"), list(itertools.product(Life, Step)), ids=str)
def test_cell(life, step):
    registry = Registry("ab" * 16, 10)
    registration = lead_to(registry, life)
    assert registration.life is life
    registry.changed.clear()
    after = TRANSITIONS.get((life, step))
    if after is None:
        with pytest.raises(InternalError, match=f"cannot {step}"):
            registry.move(registration, step, pid=1)
        assert (registration.life, registration.pid) == (life, None)
        assert not registry.changed
        return
    registry.move(registration, step, pid=1, host="b")
    assert (registration.life, registration.pid) == (after, 1)
    assert list(registry.changed) == [registration.key]
    placed = after in (Life.STARTING, Life.RUNNING)
    assert bool(registry.placed_on(registration.host)) is placed
    assert registry.load(registration.host) == placed
    assert registry.live_count == (after is not Life.RETIRED)
    assert (registry.named("w") is registration) is (after is not Life.RETIRED)


def test_nothing_leaves_retired():
    assert not [cell for cell in TRANSITIONS if cell[0] is Life.RETIRED]


def test_every_state_can_be_reached_and_left():
    assert set(TRANSITIONS.values()) >= set(Life) - {Life.SUBMITTED}
    assert {life for life, _ in TRANSITIONS} == set(Life) - {Life.RETIRED}


def test_d4_the_lowest_free_slot_is_taken_and_its_generation_rises():
    registry = Registry("ab" * 16, 10)
    first = [add(registry, f"w{n}") for n in range(4)]
    assert [r.key for r in first] == [(0, 1), (1, 1), (2, 1), (3, 1)]
    for registration in (first[2], first[0]):
        registry.move(registration, Step.CANCEL)
    assert add(registry, "a").key == (0, 2)
    assert add(registry, "b").key == (2, 2)
    assert add(registry, "c").key == (4, 1)


def test_d3_a_slot_is_held_while_waiting_for_a_restart():
    registry = Registry("ab" * 16, 1)
    waiting = lead_to(registry, Life.WAITING)
    with pytest.raises(NoFreeSlot) as caught:
        registry.take_slot()
    assert caught.value.detail == {
        "limit": "max_worker_processes",
        "value": 1,
        "holders": ["w"],
    }
    registry.move(waiting, Step.CANCEL)
    assert registry.take_slot() == (0, 2)


def test_a_pinned_worker_holds_its_host_slot_while_it_is_registered():
    registry = Registry("ab" * 16, 10)
    pinned = add(registry, pinned="b")
    assert registry.load("b") == 1
    registry.move(pinned, Step.START, host="b")
    assert registry.load("b") == 1
    registry.move(pinned, Step.FAIL)
    assert registry.load("b") == 1
    registry.move(pinned, Step.CANCEL)
    assert registry.load("b") == 0


def test_find_by_handle_name_and_short_handle():
    registry = Registry("ab" * 16, 10)
    one = add(registry, "one")
    two = add(registry, "two")
    assert registry.find(str(registry.handle(one))) is one
    assert registry.find("two") is two
    assert registry.find("1.1") is two


def test_d11_a_stale_handle_is_an_answer_and_reaches_nobody_else():
    registry = Registry("ab" * 16, 10)
    old = add(registry, "w")
    handle = registry.handle(old)
    registry.move(old, Step.CANCEL)
    new = add(registry, "w")
    assert new.slot == old.slot
    assert registry.find(str(handle)) is old
    registry.forget(old)
    assert registry.find(str(handle)) == handle
    assert registry.find("0.1") == handle
    foreign = HandleId("cd" * 16, 0, 2)
    assert registry.find(str(foreign)) == foreign
    # One that was never given is not stale: "final" would be a lie as soon as it is given.
    for slot, generation in ((0, 3), (0, 0), (7, 1), (10**8, 1)):
        never = HandleId("ab" * 16, slot, generation)
        for ref in (str(never), never.short):
            with pytest.raises(NoSuchWorker, match="ever given"):
                registry.find(ref)


def test_find_prefers_the_live_one_then_the_newest_retired():
    registry = Registry("ab" * 16, 10)
    first = add(registry)
    registry.move(first, Step.CANCEL)
    second = add(registry)
    assert registry.find("w") is second
    registry.move(second, Step.CANCEL)
    assert registry.find("w") is second


def test_find_says_which_when_several_have_the_name():
    registry = Registry("ab" * 16, 10)
    add(registry)
    add(registry)
    with pytest.raises(NoSuchWorker, match="2 workers are named") as caught:
        registry.find("w")
    assert "0.1, 1.1" in caught.value.hint


def test_find_suggests_a_near_name():
    registry = Registry("ab" * 16, 10)
    add(registry, "ingest")
    with pytest.raises(NoSuchWorker) as caught:
        registry.find("ingset")
    assert caught.value.hint == "did you mean 'ingest'?"


def test_a_name_that_looks_like_a_handle_is_a_name():
    registry = Registry("ab" * 16, 10)
    add(registry, "other")
    named = add(registry, "0.1")
    assert registry.find("0.1") is named


def test_workers_come_in_slot_order_from_any_place():
    registry = Registry("ab" * 16, 10)
    all_of_them = [add(registry, f"w{n}") for n in range(5)]
    registry.move(all_of_them[1], Step.CANCEL)
    again = add(registry, "again")
    keys = [r.key for r in registry.workers(limit=99, retired=True)]
    assert keys == [(0, 1), (1, 1), (1, 2), (2, 1), (3, 1), (4, 1)]
    for place in range(len(keys)):
        rest = [r.key for r in registry.workers(keys[place], limit=99, retired=True)]
        assert rest == keys[place + 1 :]
    live = [r.key for r in registry.workers(limit=3)]
    assert live == [(0, 1), again.key, (2, 1)]
