"""AgentCore and a second warden, which it has started when the first START needs it."""

from typing import Any

from posthouse.messages import Hello, Start, StartFailed, Stop, StopDone
from posthouse.states import StopReason
from posthouse_agent import effects, orders

Bench = Any


def kept(bench: Bench, token: int) -> Start:
    """A START for the kept warden reaches the agent."""
    start = Start(
        registry="ab" * 16,
        slot=token,
        generation=1,
        incarnation=1,
        token=token,
        revision=1,
        spec={"name": f"w{token}", "main": "acme.jobs:main", "host": "b"},
        warden="kept",
    )
    bench.send(start)
    return start


def given(bench: Bench) -> list[int]:
    """Tokens of the starts that wardens were given."""
    return [order.token for order in bench.orders if isinstance(order, orders.StartWorker)]


def kept_warden(bench: Bench, instance: str = "22" * 16, **end: int) -> None:
    bench.feed(effects.WardenUp("kept"))
    bench.report(
        orders.Attached(instance=instance, kind="kept", boot_id="b", pid=8, highest_token=0), "kept"
    )
    bench.report(orders.SnapshotEnd(**{"running": 0, "exits": 0, **end}), "kept")


def test_the_kept_warden_comes_with_the_first_start_that_needs_it(bench: Bench) -> None:
    bench.attach()
    bench.open()
    assert [warden.kind for warden in bench.master.hello.wardens] == ["fenced"]
    bench.needed.clear()
    kept(bench, 1)
    assert bench.needed == ["kept"]
    assert not given(bench)
    kept(bench, 2)
    kept_warden(bench)
    assert given(bench) == [1, 2]
    assert bench.core.session is not None
    # The next HELLO names both, and waits for both.
    bench.feed(effects.WardenGone("kept", "killed"))
    assert bench.core.session is None
    assert bench.needed == ["kept", "kept"]
    bench.tick(20.0)
    assert not any(isinstance(message, Hello) for message in bench.deliver())
    kept_warden(bench)
    bench.open()
    assert [warden.kind for warden in bench.master.hello.wardens] == ["fenced", "kept"]


def test_a_kept_warden_that_cannot_be_had_costs_only_those_who_need_it(bench: Bench) -> None:
    bench.attach()
    bench.open()
    kept(bench, 1)
    bench.feed(effects.WardenGone("kept", "no space"))
    bench.deliver()
    (told,) = bench.said(StartFailed)
    assert (told.token, told.code, told.retry) == (1, "no_warden", True)
    assert "no space" in told.reason
    assert bench.core.session is not None
    bench.start(2)
    assert given(bench) == [2]
    kept(bench, 3)  # and is asked for again
    bench.tick(0.5)
    kept_warden(bench)
    assert given(bench) == [2, 3]


def test_a_start_that_waits_for_the_kept_warden_is_void_with_its_session(bench: Bench) -> None:
    bench.attach()
    bench.open()
    kept(bench, 1)
    bench.refuse()
    kept_warden(bench)
    assert not given(bench)
    bench.open()
    assert bench.master.hello.running == 0


def test_a_stop_of_a_start_that_waits_for_the_kept_warden_takes_it_back(bench: Bench) -> None:
    bench.attach()
    bench.open()
    start = kept(bench, 1)
    bench.send(
        Stop(
            registry=start.registry,
            slot=start.slot,
            generation=1,
            token=1,
            reason=StopReason.TERMINATE,
            signal=15,
            grace_s=5.0,
        )
    )
    bench.report(orders.StopUnknown(token=1, slot=start.slot))
    bench.deliver()
    assert [told.token for told in bench.said(StopDone)] == [1]
    kept_warden(bench)
    assert not given(bench)
