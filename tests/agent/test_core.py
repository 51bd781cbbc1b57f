"""AgentCore between a scripted master and a scripted warden: sessions, orders, reports."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from posthouse import limits
from posthouse.messages import (
    Exited,
    Goodbye,
    Hello,
    Inventory,
    LogChunk,
    ReadLog,
    Ready,
    Register,
    Renew,
    RenewRuntimes,
    SetLatch,
    Signal,
    Started,
    StartFailed,
    Stop,
    StopDone,
    WardenRef,
)
from posthouse.settings import AgentSettings, RuntimeSettings
from posthouse.states import StopReason
from posthouse_agent import effects, orders
from posthouse_agent.effects import ReadLogFile, WorkerSaid

Bench = Any
Make = Callable[..., Any]
SETTINGS = AgentSettings(host="b", master="ipc:///x", runtime_dir="/x", log_dir="/x")
ONE = "11" * 16
TWO = "22" * 16


def stop(token: int, **fields: Any) -> Stop:
    return Stop(
        registry="ab" * 16,
        slot=token,
        generation=1,
        token=token,
        reason=StopReason.TERMINATE,
        signal=15,
        grace_s=5.0,
        **fields,
    )


# --- before and at the beginning of a session ---


def test_a_warden_is_asked_for_first_and_hello_waits_for_its_whole_snapshot(
    bench: Bench, make_forked: Make
) -> None:
    bench.tick()
    assert bench.needed == ["fenced"]
    bench.feed(effects.WardenUp("fenced"))
    assert isinstance(bench.orders[0], orders.Attach)
    bench.report(orders.Attached(instance=ONE, kind="fenced", boot_id="b", pid=7, highest_token=41))
    bench.tick(5.0)
    assert not bench.to_master
    bench.report(orders.SnapshotEnd(running=0, exits=0))
    (hello,) = bench.deliver()
    assert isinstance(hello, Hello)
    assert hello.wardens == [WardenRef(kind="fenced", instance=ONE)]
    assert (hello.role, hello.host, hello.boot_id) == ("agent", "b", "boot")


def test_hello_offers_what_the_settings_allow(new_bench: type[Any]) -> None:
    settings = replace(
        SETTINGS,
        labels=("ssd",),
        modules=("acme.*",),
        allow_exec=True,
        users=("www",),
        max_worker_processes=7,
        runtimes=(RuntimeSettings(name="default"), RuntimeSettings(name="old", python="/old")),
    )
    bench = new_bench(settings)
    bench.attach(run_as=True)
    hello = bench.deliver()[0]
    assert isinstance(hello, Hello)
    assert (hello.labels, hello.modules, hello.allow_exec) == (["ssd"], ["acme.*"], True)
    assert (hello.users, hello.slots) == (["me", "www"], 7)
    assert hello.runtimes == ["default", "old"]


def test_users_are_not_offered_by_a_warden_that_cannot_become_them(new_bench: type[Any]) -> None:
    bench = new_bench(replace(SETTINGS, users=("www",)))
    bench.attach()
    hello = bench.deliver()[0]
    assert isinstance(hello, Hello)
    assert hello.users == ["me"]
    (note,) = [note for note in bench.notes if note.name == "users.unusable"]
    assert note.fields["users"] == ["www"]


def test_an_empty_host_sends_one_empty_last_page(bench: Bench) -> None:
    bench.attach(top=41)
    assert bench.open() == [Inventory(page=0, last=True, highest_token=41)]


def test_the_inventory_is_the_wardens_snapshot(
    bench: Bench, make_forked: Make, make_ended: Make
) -> None:
    first, second = (bench_start(token) for token in (1, 2))
    bench.attach(make_forked(first, 11), make_ended(make_forked(second, 12), code=3), top=2)
    (page,) = bench.open()
    assert isinstance(page, Inventory)
    assert [(w.token, w.pid, w.warden) for w in page.running] == [(1, 11, "fenced")]
    assert [(w.token, w.facts.code) for w in page.exits] == [(2, 3)]
    assert page.highest_token == 2
    assert bench.master.hello.running == bench.master.hello.exits == 1


def bench_start(token: int) -> orders.StartWorker:
    return orders.StartWorker(
        token=token,
        registry="ab" * 16,
        slot=token,
        generation=1,
        incarnation=1,
        revision=1,
        host="b",
        spec={},
    )


def test_pages_stay_within_their_bounds_and_hold_everything_once(
    bench: Bench, make_forked: Make, make_ended: Make
) -> None:
    tail = "x" * 3000
    snapshot = [make_forked(bench_start(token)) for token in range(1, 601)]
    snapshot += [
        make_ended(make_forked(bench_start(token)), code=1, output_tail=tail)
        for token in range(601, 801)
    ]
    bench.attach(*snapshot, top=800)
    pages = bench.open()
    frames = [len(frame) for frame in _frames_of(bench)]
    assert max(frames, default=0) <= limits.page_bytes_max
    assert all(isinstance(page, Inventory) for page in pages)
    assert [page.page for page in pages] == list(range(len(pages)))
    assert [page.last for page in pages] == [False] * (len(pages) - 1) + [True]
    assert all(len(p.running) + len(p.exits) <= limits.page_items_max for p in pages)
    tokens = [w.token for page in pages for w in (*page.running, *page.exits)]
    assert tokens == list(range(1, 801))


def _frames_of(bench: Bench) -> list[bytes]:
    return [e.frame for e in bench.effects if isinstance(e, effects.Transmit)]


def test_a_long_inventory_waits_for_room_and_outlives_the_silence(
    bench: Bench, make_forked: Make, make_ended: Make
) -> None:
    tail = "x" * 4000
    exits = [
        make_ended(make_forked(bench_start(token)), code=1, output_tail=tail)
        for token in range(1, 4001)
    ]
    bench.attach(*exits, top=4000)
    bench.open()
    assert len(bench.master.said) < 300  # the outbox is bounded by bytes
    for _ in range(40):  # far longer than silence_s, and no GRANT at all
        bench.acknowledge()
        bench.tick(0.4)
        bench.deliver()
        if bench.master.said[-1].last:
            break
    assert bench.core.session is not None
    assert bench.master.said[-1].last
    bench.acknowledge()
    assert sorted(bench.confirmed()) == list(range(1, 4001))
    assert bench.core.unconfirmed == []


def test_silence_after_the_inventory_ends_the_session(bench: Bench) -> None:
    bench.attach()
    bench.open()
    bench.acknowledge()
    first = bench.core.session
    for _ in range(8):
        bench.acknowledge()  # acknowledgements alone are no sign of life any more
        bench.tick(0.5)
    assert bench.core.session is None
    bench.open()
    assert bench.core.session not in (None, first)


def test_grants_keep_the_session(bench: Bench) -> None:
    bench.attach()
    bench.open()
    for _ in range(20):
        bench.tick(0.5)
        for message in bench.deliver():
            if isinstance(message, Renew):
                bench.grant(message)
    assert bench.core.session == bench.master.link.session


# --- starting ---


def test_a_start_becomes_an_order_and_a_fork_becomes_started(
    bench: Bench, make_forked: Make
) -> None:
    bench.attach()
    bench.open()
    bench.start(5, main_arg=[1, 2])
    order = bench.orders[-1]
    assert isinstance(order, orders.StartWorker)
    assert (order.token, order.slot, order.host, order.spec["main_arg"]) == (5, 5, "b", [1, 2])
    bench.report(make_forked(order, 99))
    bench.deliver()
    (told,) = bench.said(Started)
    assert (told.worker.token, told.worker.pid) == (5, 99)


def test_the_runtime_goes_into_the_order(new_bench: type[Any]) -> None:
    runtime = RuntimeSettings(name="default", path=("/srv/app",), env={"A": "1"})
    bench = new_bench(replace(SETTINGS, modules=("*",), runtimes=(runtime,)))
    bench.attach()
    bench.open()
    bench.start(1)
    assert (bench.orders[-1].path, bench.orders[-1].env) == (["/srv/app"], {"A": "1"})


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "no module is allowed by default": ({}, {}, "module_not_allowed", "modules"),
    "another module": ({"modules": ("shop.*",)}, {}, "module_not_allowed", "acme.jobs"),
    "the package itself is not below it": (
        {"modules": ("acme.*",)},
        {"main": "acme:main"},
        "module_not_allowed",
        "'acme'",
    ),
    "library counts as well": (
        {"modules": ("acme.*",)},
        {"main": None, "library": "os", "function": "abort"},
        "module_not_allowed",
        "'os'",
    ),
    "programs": (
        {"modules": ("*",)},
        {"main": "posthouse.exec", "main_arg": ["/bin/true"]},
        "exec_not_allowed",
        "allow_exec = true",
    ),
    "users": ({"modules": ("*",)}, {"run_as": "root"}, "user_not_allowed", "users"),
    "runtimes": ({"modules": ("*",)}, {"runtime": "ml"}, "unknown_runtime", "[runtime.ml]"),
    "a broken record": ({"modules": ("*",)}, {"umask": -1}, "invalid_field", "umask"),
    "an unknown field": ({"modules": ("*",)}, {"shell": "sh"}, "invalid_field", "shell"),
}


def test_an_order_carries_what_its_runtime_is_made_of(new_bench: type[Any]) -> None:
    """The warden has no configuration: it makes a zygote from the order alone."""
    runtime = RuntimeSettings(
        name="ml", python="/py", path=("/srv/ml",), env={"A": "1"}, preload=("acme",)
    )
    bench = new_bench(replace(SETTINGS, modules=("*",), runtimes=(runtime,)))
    bench.attach()
    bench.open()
    bench.start(5, runtime="ml")
    bench.deliver()
    order = bench.orders[-1]
    assert isinstance(order, orders.StartWorker)
    assert (order.runtime, order.python, order.path) == ("ml", "/py", ["/srv/ml"])
    assert (order.env, order.preload) == ({"A": "1"}, ["acme"])


@pytest.mark.parametrize("case", REFUSALS)
def test_the_hosts_own_settings_refuse_a_start(new_bench: type[Any], case: str) -> None:
    settings, spec, code, hint = REFUSALS[case]
    bench = new_bench(replace(SETTINGS, **settings))
    bench.attach()
    bench.open()
    given = len(bench.orders)
    bench.start(5, **spec)
    bench.deliver()
    (told,) = bench.said(StartFailed)
    assert (told.token, told.code, told.retry) == (5, code, False)
    assert hint in told.reason
    assert len(bench.orders) == given  # the warden never heard of it


def test_an_allowed_user_runtime_and_program_pass(new_bench: type[Any]) -> None:
    bench = new_bench(replace(SETTINGS, allow_exec=True, users=("www",)))
    bench.attach()
    bench.open()
    for token, user in enumerate(("www", "me"), 1):
        bench.start(token, main="posthouse.exec", main_arg=["/bin/true"], run_as=user)
        assert bench.orders[-1].token == token


def test_a_full_host_refuses_and_says_to_try_again(new_bench: type[Any]) -> None:
    bench = new_bench(replace(SETTINGS, modules=("*",), max_worker_processes=2))
    bench.attach()
    bench.open()
    bench.started(1)
    bench.start(2)
    bench.start(3)
    bench.deliver()
    (told,) = bench.said(StartFailed)
    assert (told.token, told.code, told.retry) == (3, "no_free_slot", True)
    assert "max_worker_processes = 2" in told.reason


def test_another_kind_of_warden_is_not_here(bench: Bench) -> None:
    bench.attach()
    bench.open()
    start = bench.start(1)
    count = len(bench.orders)
    bench.send(msgspec.structs.replace(start, token=2, warden="other"))
    bench.deliver()
    assert [told.code for told in bench.said(StartFailed)] == ["no_such_warden"]
    assert len(bench.orders) == count


def test_a_failed_fork_is_told_as_the_warden_told_it(bench: Bench) -> None:
    bench.attach()
    bench.open()
    bench.start(4)
    bench.report(
        orders.ForkFailed(
            token=4, slot=4, generation=1, incarnation=1, code="fork_failed", reason="EAGAIN",
            retry=True,
        )
    )  # fmt: skip
    bench.deliver()
    (told,) = bench.said(StartFailed)
    assert (told.code, told.reason, told.retry) == ("fork_failed", "EAGAIN", True)


def test_a_token_that_comes_again_is_not_ordered_again(bench: Bench) -> None:
    bench.attach()
    bench.open()
    bench.start(4)
    count = len(bench.orders)
    bench.start(4)
    assert len(bench.orders) == count


# --- the life of a worker, in order ---


def test_started_ready_exited_come_in_this_order(bench: Bench, make_ended: Make) -> None:
    bench.attach()
    bench.open()
    worker = bench.started(3)
    bench.feed(WorkerSaid(3, {"op": "ready", "id": 1}))
    bench.report(make_ended(worker, code=0))
    bench.deliver()
    kinds = [type(message) for message in bench.master.said]
    assert kinds == [Inventory, Started, Ready, Exited]
    assert bench.master.said[-1].worker.facts.code == 0


def test_a_process_that_kill_does_not_end_is_told_as_a_fact_of_it(bench: Bench) -> None:
    bench.attach()
    bench.open()
    bench.started(3)
    bench.report(orders.Stuck(token=3, state="in uninterruptible sleep (D)" + "x" * 9999))
    bench.report(orders.Stuck(token=99, state="nobody here"))
    bench.deliver()
    first, second = bench.said(Started)
    assert not first.worker.stuck
    assert second.worker.stuck.startswith("in uninterruptible sleep (D)xx")
    assert bench.core.running[3] == second.worker  # and stays, for the next inventory
    assert [note.name for note in bench.notes].count("worker.unkillable") == 1


def test_ready_is_noted_at_the_warden_before_it_leaves_the_channel(bench: Bench) -> None:
    bench.attach()
    bench.open()
    bench.started(3)
    done = bench.feed(WorkerSaid(3, {"op": "ready", "id": 8}))
    kinds = [type(effect) for effect in done]
    assert kinds.index(effects.Give) < kinds.index(effects.Consume)
    assert done[kinds.index(effects.Give)].order == orders.NoteReady(token=3)
    assert done[kinds.index(effects.AnswerWorker)].message == {"op": "reply", "id": 8}
    again = bench.feed(WorkerSaid(3, {"op": "ready", "id": 8}))  # seen again by the next agent
    assert [type(e) for e in again] == [effects.AnswerWorker, effects.Consume]


@pytest.mark.parametrize("message", [{"op": "fly", "id": 3}, {}, {"op": ["x"]}])
def test_an_unknown_operation_is_answered_with_an_error(
    bench: Bench, message: dict[str, Any]
) -> None:
    bench.attach()
    bench.open()
    bench.started(3)
    answer, consume = bench.feed(WorkerSaid(3, message))
    assert answer.message["id"] == message.get("id")
    assert answer.message["error"]["code"] == "unsupported"
    assert consume == effects.Consume(3)


def test_an_exit_is_confirmed_only_when_it_is_acknowledged(bench: Bench, make_ended: Make) -> None:
    bench.attach()
    bench.open()
    worker = bench.started(3)
    bench.acknowledge()
    bench.report(make_ended(worker))
    assert (bench.confirmed(), bench.core.unconfirmed) == ([], [3])
    bench.deliver()
    assert bench.confirmed() == []
    bench.acknowledge()
    assert (bench.confirmed(), bench.core.unconfirmed) == ([3], [])


def test_an_unacknowledged_exit_is_in_the_next_inventory(bench: Bench, make_ended: Make) -> None:
    bench.attach()
    bench.open()
    worker = bench.started(3)
    bench.report(make_ended(worker, signal=9, cause="signaled"))
    bench.to_master.clear()  # lost with the connection
    bench.feed(effects.ConnectionBroken("cut"))
    (page,) = bench.open()
    assert [(w.token, w.facts.signal) for w in page.exits] == [(3, 9)]
    assert bench.confirmed() == []
    bench.acknowledge()
    assert bench.confirmed() == [3]


def test_facts_out_of_bounds_do_not_lose_the_exit(bench: Bench, make_ended: Make) -> None:
    bench.attach()
    bench.open()
    worker = bench.started(3)
    bench.report(
        make_ended(
            worker,
            cause="exited",
            code=70_000,
            pid=-4,
            runtime_s=float("nan"),
            output_tail="é" * 9000,
            traceback="t" * 40_000 + "end",
            colour="red",
        )
    )
    bench.deliver()
    (told,) = bench.said(Exited)
    facts = told.worker.facts
    assert (facts.cause, facts.code, facts.pid, facts.runtime_s) == ("exited", None, None, None)
    assert len(facts.output_tail.encode()) <= limits.exit_tail_bytes_max
    assert facts.traceback.endswith("tend")


def test_reports_wait_while_the_link_has_little_room(bench: Bench, make_ended: Make) -> None:
    bench.attach()
    bench.open()
    for token in range(1, 1001):
        bench.report(make_ended(bench.started(token)))
    assert bench.core.session is not None  # 2,000 reports, an outbox of 1,024, and no LinkFull
    bench.deliver()
    # One more: the page of the inventory was acknowledged by the master's first START.
    assert len(bench.master.said) <= 1 + limits.outbox_messages_max - limits.link_room_kept
    for _ in range(5):
        bench.acknowledge()
        bench.deliver()
    assert bench.master.exits_told() == list(range(1, 1001))
    bench.acknowledge()
    assert bench.confirmed() == list(range(1, 1001))


def test_reports_that_waited_for_room_go_with_their_session(bench: Bench, make_ended: Make) -> None:
    bench.attach()
    bench.open()
    for token in range(1, 1001):
        bench.report(make_ended(bench.started(token)))
    bench.refuse()
    pages = bench.open()
    assert {type(message) for message in pages} == {Inventory}
    assert bench.master.exits_told() == list(range(1, 1001))


# --- commands ---


def test_a_stop_is_ordered_and_answered_by_the_exit(bench: Bench, make_ended: Make) -> None:
    bench.attach()
    bench.open()
    worker = bench.started(3)
    bench.send(stop(3))
    order = bench.orders[-1]
    assert order == orders.StopWorker(token=3, slot=3, reason="terminate", signal=15, grace_s=5.0)
    assert bench.core.running[3].stopping == StopReason.TERMINATE
    bench.report(replace(make_ended(worker), stop="terminate"))
    bench.deliver()
    assert bench.said(Exited)[0].worker.stop == StopReason.TERMINATE
    assert not bench.said(StopDone)


def test_a_stop_of_an_unknown_token_is_done(bench: Bench) -> None:
    bench.attach()
    bench.open()
    bench.send(stop(9))
    bench.report(orders.StopUnknown(token=9, slot=9))
    bench.deliver()
    assert bench.said(StopDone) == [StopDone(slot=9, generation=1, token=9)]


def test_signals_and_latches_reach_only_living_workers(bench: Bench) -> None:
    bench.attach()
    bench.open()
    bench.started(3)
    bench.send(Signal(slot=3, generation=1, token=3, signal=10))
    assert bench.orders[-1] == orders.SignalWorker(token=3, signal=10)
    count = len(bench.orders)
    done = bench.send(SetLatch(slot=3, generation=1, token=3))
    assert effects.SetLatch(3) in done
    done = bench.send(SetLatch(slot=4, generation=1, token=4))
    bench.send(Signal(slot=4, generation=1, token=4, signal=10))
    assert effects.SetLatch(4) not in done
    assert len(bench.orders) == count


def test_log_reads_are_answered_in_their_own_session_only(bench: Bench) -> None:
    bench.attach()
    bench.open()
    done = bench.send(ReadLog(read=77, slot=1, generation=2, offset=-1, limit=100))
    (asked,) = [e for e in done if isinstance(e, ReadLogFile)]
    assert (asked.slot, asked.generation, asked.offset, asked.limit) == (1, 2, -1, 100)
    bench.feed(effects.LogRead(asked.read, offset=5, data=b"hello", size=10, lost=2))
    bench.deliver()
    assert bench.said(LogChunk) == [LogChunk(read=77, offset=5, data=b"hello", size=10, lost=2)]
    done = bench.send(ReadLog(read=78, slot=1, generation=2, offset=0, limit=100))
    (late,) = [e for e in done if isinstance(e, ReadLogFile)]
    bench.feed(effects.ConnectionBroken("cut"))
    bench.open()
    bench.feed(effects.LogRead(late.read, data=b"old"))
    bench.deliver()
    assert not bench.said(LogChunk)


def test_too_many_log_reads_are_told_to_wait(bench: Bench) -> None:
    bench.attach()
    bench.open()
    for read in range(limits.log_reads_in_flight_max + 3):
        bench.send(ReadLog(read=read, slot=1, generation=1, offset=0, limit=1))
    begun = [e for e in bench.effects if isinstance(e, ReadLogFile)]
    assert len(begun) == limits.log_reads_in_flight_max
    bench.deliver()
    assert [bool(chunk.error) for chunk in bench.said(LogChunk)] == [True] * 3


def test_a_message_that_is_not_for_agents_ends_the_session(bench: Bench) -> None:
    bench.attach()
    bench.open()
    bench.send(Register(request=bytes(16), spec={}))
    assert bench.core.session is None


# --- sessions that end ---


@pytest.mark.parametrize("code", ["stale_session", "host_taken"])
def test_a_refused_session_is_followed_by_a_new_one(bench: Bench, code: str) -> None:
    bench.attach()
    bench.open()
    bench.refuse(code)
    assert bench.core.session is None
    (page,) = bench.open()
    assert isinstance(page, Inventory)


def test_hello_waits_for_the_answer_to_a_start_of_the_old_session(
    bench: Bench, make_forked: Make
) -> None:
    bench.attach()
    bench.open()
    bench.start(5)
    order = bench.orders[-1]
    bench.feed(effects.ConnectionBroken("cut"))
    bench.deliver()
    bench.tick(10.0)
    assert bench.deliver() == []
    bench.report(make_forked(order, 99))
    (page,) = bench.open()
    assert [w.pid for w in page.running] == [99]


def test_nothing_of_an_old_session_is_told_in_the_new_one(bench: Bench, make_ended: Make) -> None:
    bench.attach()
    bench.open()
    worker = bench.started(3)
    bench.report(make_ended(worker))
    bench.refuse()
    (page,) = bench.open()
    assert [type(message) for message in bench.master.said] == [Inventory]
    assert [w.token for w in page.exits] == [3]


def test_leaving_says_goodbye_and_never_dials_again(bench: Bench) -> None:
    bench.attach()
    bench.open()
    bench.feed(effects.Leave("SIGTERM"))
    bench.deliver()
    assert bench.said(Goodbye) == [Goodbye(reason="SIGTERM")]
    bench.tick(100.0)
    assert not bench.to_master
    assert bench.core.wake_s == float("inf")


def test_a_master_of_the_same_epoch_on_a_copy_of_the_registry_is_not_obeyed(bench: Bench) -> None:
    bench.attach()
    bench.open(epoch=5, master="aa" * 16)
    bench.refuse()
    bench.open(epoch=5, master="bb" * 16)
    assert bench.core.session is None
    assert not bench.said(Inventory)
    bench.open(epoch=5, master="aa" * 16)
    assert bench.said(Inventory)
    bench.refuse()
    bench.open(epoch=6, master="bb" * 16)  # a restart of the one, or an operator's decision
    assert bench.said(Inventory)


def test_an_older_master_of_the_same_registry_is_not_obeyed(bench: Bench) -> None:
    bench.attach()
    bench.open(epoch=5)
    assert bench.core.session
    for stale in ({"epoch": 4}, {"epoch": 6, "timeline": 0}):
        bench.refuse()
        bench.open(**stale)
        assert bench.core.session is None
        assert not bench.said(Inventory)
    bench.open(epoch=5)
    assert bench.said(Inventory)
    bench.refuse()
    bench.open(epoch=1, timeline=2)  # restored from a backup, and said so
    assert bench.said(Inventory)
    bench.refuse()
    bench.open(epoch=1, registry="cd" * 16)  # another cluster
    assert bench.said(Inventory)


# --- wardens that go ---


def test_a_dead_warden_ends_the_session_and_its_successor_begins_one(
    bench: Bench, make_forked: Make, make_ended: Make
) -> None:
    bench.attach()
    bench.open()
    worker = bench.started(3)
    bench.deliver()
    bench.acknowledge()
    bench.warden_gone()
    assert bench.core.session is None
    bench.deliver()
    assert bench.said(Goodbye)
    bench.tick(10.0)
    assert bench.deliver() == []  # no HELLO without a warden
    bench.attach(make_ended(worker, cause="warden_died"), instance=TWO, top=3)
    (page,) = bench.open()
    assert bench.master.hello.wardens[0].instance == TWO
    assert [(w.token, w.facts.cause) for w in page.exits] == [(3, "warden_died")]
    bench.acknowledge()
    assert bench.confirmed() == [3]


def test_what_a_new_warden_does_not_know_is_in_no_list(bench: Bench, make_ended: Make) -> None:
    """Its folder was lost, with the journal: the master decides about tokens that nobody has."""
    bench.attach()
    bench.open()
    bench.started(3)
    bench.report(make_ended(bench.started(4)))
    bench.warden_gone()
    bench.attach(instance=TWO)
    assert bench.open() == [Inventory(page=0, last=True)]


def test_a_start_that_a_dead_warden_never_read_is_in_no_list(bench: Bench) -> None:
    bench.attach()
    bench.open()
    bench.start(3)
    bench.warden_gone()
    bench.attach(instance=TWO)
    (page,) = bench.open()
    assert (page.running, page.exits) == ([], [])
    count = len(bench.orders)
    bench.tick(100.0)
    assert not [o for o in bench.orders[count:] if isinstance(o, orders.StartWorker)]


def test_a_warden_that_goes_while_hello_is_under_way(bench: Bench) -> None:
    bench.attach()
    bench.deliver()  # HELLO
    bench.warden_gone()
    bench.feed(effects.Frame(bench.master.welcome(bench.now_s)))
    bench.deliver()
    assert not [m for m in bench.master.said if isinstance(m, Inventory)]
    assert bench.core.session is None
    bench.attach(instance=TWO)
    bench.open()
    assert bench.master.hello.wardens[0].instance == TWO


def test_wardens_that_do_not_last_are_asked_for_ever_more_slowly(bench: Bench) -> None:
    bench.tick()
    times = []
    for _ in range(12):
        bench.needed.clear()
        bench.warden_gone("no space left on device")
        before = bench.now_s
        while not bench.needed:
            bench.tick(0.05)
            assert bench.now_s - before < 20
        times.append(bench.now_s - before)
    assert times[0] < 0.1
    assert 2.0 < times[-1] <= 1.5 * limits.warden_backoff_s_max + 0.1
    bench.attach()
    bench.tick(limits.warden_backoff_s_max)
    bench.warden_gone()  # it had lasted: the next one is asked for at once
    assert bench.needed == ["fenced"]


def test_a_warden_that_ends_on_purpose_is_replaced_at_once(bench: Bench) -> None:
    for _ in range(5):
        bench.attach()
        bench.report(orders.Forget())
        bench.warden_gone("closed")
        assert bench.needed == ["fenced"]


def test_the_next_agent_has_it_from_the_warden_which_master_was_obeyed(
    new_bench: type[Any], make_forked: Make
) -> None:
    bench = new_bench()
    bench.attach(make_forked(bench_start(3)), remembers=True)
    bench.open(epoch=7)
    (order,) = [order for order in bench.orders if isinstance(order, orders.Remember)]
    assert (order.registry, order.epoch) == (bench.master.hello.registry or order.registry, 7)
    told = {"registry": order.registry, "timeline": order.timeline, "epoch": 7, "master": "m"}
    following = new_bench()
    following.attach(make_forked(bench_start(3)), remembers=True, **told)
    following.open(epoch=6)
    hello = following.master.hello
    assert (hello.registry, hello.epoch, hello.master) == (order.registry, 7, "m")
    assert [note.fields for note in following.notes if note.name == "session.old_master"] == [
        {"epoch": 6, "known": 7}
    ]
    idle = new_bench()  # where nothing runs it may be given to anybody
    idle.attach(remembers=True, **told)
    idle.open(epoch=6)
    assert (idle.master.hello.registry, idle.master.hello.epoch) == ("", 0)
    assert idle.core.session is not None


@pytest.mark.parametrize(
    "attached",
    [
        orders.Attached(instance=ONE, kind="kept", boot_id="b", pid=7, highest_token=0),
        orders.Attached(instance=ONE, kind="fenced", boot_id="b", pid=7, highest_token=0,
                        protocol=9),
        orders.SnapshotEnd(running=0, exits=0),
    ],
)  # fmt: skip
def test_a_warden_that_cannot_be_talked_to_is_dropped(bench: Bench, attached: Any) -> None:
    bench.tick()
    bench.feed(effects.WardenUp("fenced"))
    assert effects.DropWarden("fenced") in bench.report(attached)
    bench.warden_gone("dropped")
    assert not bench.to_master


def test_the_digest_is_of_the_running_set(bench: Bench, make_ended: Make) -> None:
    bench.attach()
    empty = bench.open() and bench.master.hello.digest
    worker = bench.started(3)
    bench.tick(1.0)
    renew = [m for m in bench.deliver() if isinstance(m, Renew)][-1]
    assert renew.digest != empty
    bench.report(make_ended(worker))
    bench.tick(1.0)
    assert [m for m in bench.deliver() if isinstance(m, Renew)][-1].digest == empty


@pytest.mark.parametrize("by", ["HUP", "the master"])
def test_reload_renews_the_runtimes_and_opens_a_new_session(bench: Bench, by: str) -> None:
    """A start that was refused for good is tried again in the next session."""
    bench.attach()
    bench.open()
    bench.send(RenewRuntimes(runtime="ml")) if by == "the master" else bench.feed(effects.Reload())
    order = bench.orders[-1]
    assert order == orders.RenewRuntime(name="ml" if by == "the master" else "")
    assert any(isinstance(message, Goodbye) for message in bench.deliver())
    assert bench.core.session is None


def test_code_of_a_worker_is_told_to_the_master(bench: Bench, make_forked: Make) -> None:
    """`status` shows it: which code does this process run?"""
    bench.attach()
    bench.open()
    bench.start(5)
    bench.deliver()
    bench.report(replace(make_forked(bench.orders[-1]), code="5f0d2c9a41be"))
    bench.deliver()
    (started,) = bench.said(Started)
    assert started.worker.code == "5f0d2c9a41be"


def test_the_session_outlives_a_warden_whose_last_words_are_not_acknowledged(
    bench: Any, make_ended: Any
) -> None:
    """It ends on purpose: what it told is on its way, and would go with the connection."""
    bench.attach()
    bench.open()
    bench.acknowledge()
    running = bench.started(5)
    bench.report(replace(make_ended(running), stop="shutdown"))
    bench.report(orders.Forget())
    bench.warden_gone()
    assert bench.core.session is not None
    bench.deliver()
    bench.acknowledge()
    assert bench.master.exits_told() == [5]
    assert not bench.core.unconfirmed
    bench.tick()
    bench.attach(instance="22" * 16)
    assert bench.core.session is None, "the next inventory is the new one's"
