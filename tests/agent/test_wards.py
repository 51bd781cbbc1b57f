"""AgentCore and a second warden, which it has started when the first START needs it."""

from typing import Any

from posthouse import limits
from posthouse.messages import Grant, Hello, Renew, Start, StartFailed, Stop, StopDone
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


def stop(bench: Bench, token: int) -> None:
    """A STOP of it reaches the agent."""
    bench.send(
        Stop(
            registry="ab" * 16,
            slot=token,
            generation=1,
            token=token,
            reason=StopReason.TERMINATE,
            signal=15,
            grace_s=5.0,
        )
    )


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
    kept(bench, 1)
    stop(bench, 1)
    bench.report(orders.StopUnknown(token=1, slot=1))
    bench.deliver()
    assert [told.token for told in bench.said(StopDone)] == [1]
    kept_warden(bench)
    assert not given(bench)


# --- a tree, which ends with the lease as the fenced one does, by a fuse of its own ---


def tree(bench: Bench, token: int) -> None:
    """A START for the tree warden reaches the agent."""
    bench.send(
        Start(
            registry="ab" * 16,
            slot=token,
            generation=1,
            incarnation=1,
            token=token,
            revision=1,
            spec={"name": f"w{token}", "main": "acme.jobs:main"},
            warden="tree",
        )
    )


def tree_warden(bench: Bench, **says: Any) -> None:
    bench.feed(effects.WardenUp("tree"))
    attached = orders.Attached(
        instance="33" * 16, kind="tree", boot_id="b", pid=9, highest_token=0, **says
    )
    bench.report(attached, "tree")
    bench.report(orders.SnapshotEnd(running=0, exits=0), "tree")


def leases(bench: Bench, kind: str) -> list[int]:
    """Stamps of the renewals that this warden was given."""
    return [
        effect.order.stamp
        for effect in bench.effects
        if isinstance(effect, effects.Give)
        if effect.kind == kind and isinstance(effect.order, orders.RenewLease)
    ]


def granted(bench: Bench, lease_s: float = 30.0) -> int:
    """A session whose leases have a deadline, and its first grant: the stamp of it."""
    bench.open(lease_s=lease_s)
    for _ in range(50):
        bench.tick(0.1)
        for message in bench.deliver():
            if isinstance(message, Renew):
                link = bench.master.link
                bench.feed(effects.Frame(link.loose(Grant(stamp=message.stamp, lease_s=lease_s))))
                return message.stamp
    raise AssertionError("no RENEW")


def test_a_tree_starts_nothing_before_its_fuse_has_the_lease(bench: Bench) -> None:
    """It comes in the middle of a session: it is given the lease that is in force, and the start
    when it has said so. The master hears of what is in force for both."""
    bench.attach()
    stamp = granted(bench)
    assert leases(bench, "fenced") == [stamp]
    bench.report(orders.Leased(stamp=stamp))
    assert bench.core._in_force == stamp
    tree(bench, 1)
    assert "tree" in bench.needed
    tree_warden(bench)
    assert leases(bench, "tree") == [stamp]
    assert not given(bench)
    assert bench.core._in_force == 0
    bench.report(orders.Leased(stamp=stamp), "tree")
    assert given(bench) == [1]
    assert bench.core._in_force == stamp


def test_without_deadlines_a_tree_starts_at_once(bench: Bench) -> None:
    bench.attach()
    bench.open()
    tree(bench, 1)
    tree_warden(bench)
    assert given(bench) == [1]
    assert not leases(bench, "tree")


def test_a_start_that_waits_for_the_fuse_is_taken_back_by_its_stop(bench: Bench) -> None:
    bench.attach()
    stamp = granted(bench)
    tree(bench, 1)
    tree_warden(bench)
    stop(bench, 1)
    bench.report(orders.Leased(stamp=stamp), "tree")
    assert not given(bench)


def live(bench: Bench, seconds: float) -> None:
    """The session goes on: every renewal is granted, and no fuse answers."""
    end_s = bench.now_s + seconds
    while bench.now_s < end_s:
        bench.tick(0.1)
        for message in bench.deliver():
            if isinstance(message, Renew):
                grant = Grant(stamp=message.stamp, lease_s=30.0)
                bench.feed(effects.Frame(bench.master.link.loose(grant)))


def test_a_start_waits_for_a_fuse_that_is_stopped_so_long_and_then_has_failed(bench: Bench) -> None:
    """It is never given to the warden afterwards: the master may have started it elsewhere."""
    bench.attach()
    stamp = granted(bench)
    tree(bench, 1)
    tree_warden(bench)
    live(bench, limits.warden_wait_s - 1)
    assert not bench.said(StartFailed)

    live(bench, 2)
    (failed,) = bench.said(StartFailed)
    assert (failed.token, failed.code, failed.retry) == (1, "start_timed_out", True)
    assert "the fuse of the tree warden has not set" in failed.reason
    tree(bench, 2)  # tried again by the rules of its record
    live(bench, limits.warden_wait_s - 1)
    bench.report(orders.Leased(stamp=stamp), "tree")
    assert given(bench) == [2]
    assert len(bench.said(StartFailed)) == 1 and bench.core.session is not None


def test_a_start_waits_no_longer_for_a_warden_that_does_not_come(bench: Bench) -> None:
    bench.attach()
    granted(bench)
    kept(bench, 1)
    live(bench, limits.warden_wait_s + 1)
    (failed,) = bench.said(StartFailed)
    assert failed.code == "start_timed_out"
    assert "no kept warden was ready" in failed.reason
    kept_warden(bench)
    assert not given(bench)


def test_an_agent_that_leaves_gives_no_start_afterwards(bench: Bench) -> None:
    """Found by seed 49 with leases: the fuse answers behind the goodbye."""
    bench.attach()
    stamp = granted(bench)
    tree(bench, 1)
    tree_warden(bench)
    bench.feed(effects.Leave("upgrade"))
    bench.report(orders.Leased(stamp=stamp), "tree")
    assert not given(bench)


def test_hello_says_whether_there_can_be_a_tree_and_why_not(bench: Bench) -> None:
    bench.attach(no_tree="no CAP_SYS_ADMIN")
    bench.open()
    assert bench.master.hello.fences == ["process"]
    assert bench.master.hello.no_tree == "no CAP_SYS_ADMIN"
    bench.warden_gone()
    bench.attach(no_tree="", fence=False, instance="44" * 16)
    bench.open()
    assert bench.master.hello.fences == ["tree"]
