"""The inventory: what is believed and what runs are made one, and never two."""

import pytest

from posthouse import limits
from posthouse.messages import (
    Explain,
    Failed,
    Inventory,
    ListHosts,
    LogChunk,
    Output,
    ReadLog,
    ReadOutput,
    Start,
    Started,
    Stop,
)
from posthouse.states import NEVER_RESTART, StopReason, WorkerState

OTHER = "cd" * 16


@pytest.fixture
def client(town):
    return town.client()


def refusals(peer):
    found = [refused.code for refused in peer.refused]
    peer.refused.clear()
    return found


def renewed(host, **values):
    """The host's next session, up to its inventory."""
    host.link = None
    host.inbox.clear()
    host.open(settle=False, **values)
    host.refused.clear()
    return host


# --- what was believed is there ---


def test_a_running_worker_is_adopted_and_nothing_is_told(town, client):
    host = town.host("b")
    client.register("w")
    start = host.run()
    before = town.kinds("0.1")
    renewed(host).settle(running=[host.running(start)])
    assert town.kinds("0.1") == before
    assert client.status("w").incarnation == 1
    assert not host.inbox


def test_a_start_that_was_obeyed_is_heard_of_by_inventory(town, client):
    host = town.host("b")
    client.register("w")
    start = host.one(Start)
    renewed(host).settle(running=[host.running(start, pid=5, ready=True)])
    assert town.kinds("0.1") == ["registered", "starting", "started", "ready"]
    assert client.status("w").pid == 5
    assert not host.inbox


def test_an_exit_in_the_inventory_is_told_once(town, client):
    host = town.host("b")
    client.register("w", restart_time=60)
    start = host.run()
    ended = host.exit(start, cause="signaled", signal=9)
    renewed(host).settle(exits=[ended])
    renewed(host).settle(exits=[ended])
    assert town.kinds("0.1") == ["registered", "starting", "started", "exited"]


def test_a_worker_that_ended_after_its_page_was_written(town, client):
    host = town.host("b")
    client.register("w", restart_time=60)
    start = host.run()
    renewed(host)
    host.say(Inventory(page=0, last=False, running=[host.running(start)]))
    host.say(Inventory(page=1, last=True, exits=[host.exit(start, code=1)]))
    assert town.kinds("0.1")[-1] == "exited"
    assert not host.take(Stop)


# --- what was believed is not there ---


def test_a_start_that_never_arrived_is_drawn_anew_at_once(town, client):
    host = town.host("b")
    client.register("w", restart_time=60)
    lost = host.one(Start)
    renewed(host).settle()
    again = host.run()
    assert (again.incarnation, again.token > lost.token) == (2, True)
    assert town.kinds("0.1") == ["registered", "starting", "start_failed", "starting", "started"]
    assert "did not reach host b" in town.log("0.1")[2].reason
    assert str(client.status("w").state) == "started"


def test_a_start_that_never_arrived_is_no_failure_of_one_never_restarted(town, client):
    host = town.host("b")
    client.register("w", restart_time=NEVER_RESTART)
    host.one(Start)
    renewed(host).settle()
    assert host.run().incarnation == 2


def test_a_terminate_settles_a_start_that_never_arrived(town, client):
    host = town.host("b")
    client.register("w")
    host.one(Start)
    client.terminate("w")
    renewed(host).settle()
    assert not host.inbox
    assert client.status("w").final
    kinds = town.kinds("0.1")
    assert kinds[-3:] == ["stop_requested", "start_failed", "unregistered"]


@pytest.mark.parametrize(
    ("boot_id", "cause"), [("boot-1", "warden_died"), ("boot-2", "host_rebooted")]
)
def test_a_worker_that_vanished_unseen_has_ended(town, client, boot_id, cause):
    host = town.host("b")
    client.register("w", restart_time=0)
    host.run()
    host.boot_id = boot_id
    renewed(host).settle()
    exited = town.log("0.1")[3]
    assert (exited.kind, exited.exit.cause, exited.exit.code) == ("exited", cause, None)
    assert host.run().incarnation == 2


def test_a_start_before_a_reboot_may_have_run(town, client):
    host = town.host("b")
    client.register("w", restart_time=NEVER_RESTART)
    host.one(Start)
    host.boot_id = "boot-2"
    renewed(host).settle()
    assert town.kinds("0.1")[1:] == ["starting", "started", "exited", "unregistered"]
    assert not host.take(Start)


def test_the_boot_id_is_compared_over_a_master_restart_and_a_broken_inventory(town, client):
    host = town.host("b")
    client.register("w", restart_time=60)
    host.run()
    town.crash()
    host = town.agent("b")
    host.boot_id = "boot-2"
    host.open(settle=False)  # and the master dies before the inventory
    town.crash()
    host = town.agent("b")
    host.boot_id = "boot-2"
    host.open()
    assert town.log("0.1")[-1].exit.cause == "host_rebooted"


def test_a_worker_of_a_host_that_is_away_stays_where_it_is(town, client):
    away = town.host("b")
    client.register("w", restart_time=0)
    away.run()
    other = town.host("c")
    town.pass_time(120, quiet=(away,))
    assert not other.take(Start)
    status = client.status("w")
    assert (str(status.state), status.host, status.reachable) == ("started", "b", False)


# --- what is there was not believed: strays ---


def test_a_process_of_no_registration_is_stopped(town, client):
    host = town.host("b")
    client.register("w")
    start = host.run()
    host.end(start, code=0)
    ghost = host.running(start)
    renewed(host).settle(running=[ghost])
    stop = host.one(Stop)
    assert (stop.token, stop.reason) == (start.token, StopReason.UNKNOWN)
    host.end(start, StopReason.UNKNOWN, code=1)
    assert town.kinds("0.1")[-1] == "unregistered"
    assert town.kinds("0.1").count("exited") == 1


def test_never_two_a_stray_is_gone_before_its_registration_starts(town, client):
    host = town.host("b")
    client.register("w", restart_time=0)
    first = host.run()
    host.end(first, code=1)
    second = host.one(Start)
    # The host says that the first lives, against its own word, and knows nothing of the second.
    renewed(host).settle(running=[host.running(first)])
    stop = host.one(Stop)
    assert stop.token == first.token
    assert not host.take(Start)
    assert "should not exist" in client.status("w").reason
    town.pass_time(5)
    assert not host.take(Start)
    host.end(first, StopReason.UNKNOWN, code=1)
    third = host.run()
    assert third.token > second.token
    assert town.kinds("0.1").count("exited") == 1


def test_a_stray_that_is_not_listed_any_more_is_gone(town, client):
    host = town.host("b")
    client.register("w", restart_time=0)
    first = host.run()
    host.end(first, code=1)
    host.one(Start)
    renewed(host).settle(running=[host.running(first)])
    assert not host.take(Start)
    renewed(host).settle()
    assert host.run().token > first.token


def test_a_process_that_kill_does_not_end_keeps_its_slot_and_says_where_it_is(town, client):
    host = town.host("b")
    client.register("w", restart_time=0)
    start = host.run()
    stuck = host.running(start, stuck="KILL has not ended it: in uninterruptible sleep (D)")
    host.say(Started(worker=stuck))
    host.say(Started(worker=stuck))
    status = client.status("w")
    assert status.reason.endswith("KILL has not ended it: in uninterruptible sleep (D)")
    assert (status.state, status.pid) == (WorkerState.STARTED, stuck.pid)
    assert not host.take(Start)
    assert town.kinds("0.1").count("started") == 1
    # also to a master that hears it in an inventory only
    host = renewed(host)
    host.settle(running=[stuck])
    assert "uninterruptible" in client.status("w").reason
    assert client.ask(ListHosts).hosts[0].stuck == 1
    host.end(start, signal=9, cause="signaled")
    assert "uninterruptible" not in client.status("w").reason
    assert client.ask(ListHosts).hosts[0].stuck == 0


def test_a_stray_that_had_ended_already_is_settled_by_stop_done(town, client):
    host = town.host("b")
    client.register("w", restart_time=0)
    first = host.run()
    host.end(first, code=1)
    host.one(Start)
    renewed(host).settle(running=[host.running(first)])
    host.no_such_process(host.one(Stop))
    assert host.run().token > first.token


def test_a_worker_of_an_unknown_generation_is_stopped(town, client):
    host = town.host("b")
    client.register("w")
    start = host.run()
    ghost = host.running(start)
    ghost = type(ghost)(
        **{name: getattr(ghost, name) for name in ghost.__struct_fields__}
        | {"slot": 77, "generation": 5, "token": 900}
    )
    renewed(host).settle(running=[host.running(start), ghost], highest_token=900)
    stop = host.one(Stop)
    assert (stop.slot, stop.generation, stop.token) == (77, 5, 900)
    client.register("v")
    assert host.one(Start).token > 900


def test_a_host_of_workers_of_another_registry_is_left_alone(town, client):
    host = town.host("b")
    client.register("w")
    start = host.run()
    ghost = type(start)(
        **{n: getattr(start, n) for n in start.__struct_fields__} | {"registry": OTHER}
    )
    renewed(host).settle(running=[host.running(ghost)])
    assert refusals(host) == ["foreign_registry"]
    assert not host.take(Stop)


def test_tokens_jump_ahead_of_what_a_host_has_seen(town, client):
    host = town.host("b", settle=False)
    host.settle(highest_token=5000)
    client.register("w")
    assert host.one(Start).token == 5001
    town.crash()
    client = town.client()
    client.register("v")
    host = town.host("b")
    assert min(start.token for start in host.take(Start)) > 5001


# --- stops over sessions ---


def test_a_stop_is_sent_again_in_the_next_session_if_the_host_never_heard_it(town, client):
    host = town.host("b")
    client.register("w")
    start = host.run()
    host.deaf = True
    client.terminate("w")
    host.deaf = False
    renewed(host).settle(running=[host.running(start)])
    assert host.one(Stop).reason is StopReason.TERMINATE
    heard = host.running(start, stopping=StopReason.TERMINATE)
    renewed(host).settle(running=[heard])
    assert not host.take(Stop)


def test_a_terminate_while_the_host_is_away_is_done_when_it_is_back(town, client):
    host = town.host("b")
    client.register("w")
    start = host.run()
    town.pass_time(5, quiet=(host,))
    assert client.terminate("w").changed
    assert "its end is awaited" in client.status("w").reason
    town.crash()
    client, host = town.client(), town.agent("b")
    host.open(settle=False)
    host.settle(running=[host.running(start)])
    host.obey_stop(start)
    assert client.status("w").final


def test_stop_done_for_a_start_that_came_second(town, client):
    host = town.host("b")
    client.register("w")
    start = host.one(Start)
    client.terminate("w")
    host.no_such_process(host.one(Stop))
    assert client.status("w").final
    assert town.kinds("0.1") == [
        "registered",
        "starting",
        "stop_requested",
        "start_failed",
        "unregistered",
    ]
    assert start.token == town.log("0.1")[3].token


# --- pages ---


def test_nothing_is_started_before_the_last_page(town, client):
    client.register("w")
    host = town.host("b", settle=False)
    assert not host.take(Start)
    host.say(Inventory(page=0, last=False))
    assert not host.take(Start)
    host.say(Inventory(page=1, last=True))
    assert host.one(Start)


@pytest.mark.parametrize("pages", [(1,), (0, 0), (0, 2)])
def test_pages_out_of_order_cost_the_session(town, pages):
    host = town.host("b", settle=False)
    for page in pages:
        host.say(Inventory(page=page, last=False))
    assert refusals(host) == ["bad_frame"]


def test_an_inventory_after_the_last_page_costs_the_session(town):
    host = town.host("b")
    host.settle()
    assert refusals(host) == ["bad_frame"]


# --- explain ---


def test_explain_has_a_verdict_for_every_host(town, client):
    town.host("a", labels=["gpu"])
    town.host("b")
    c = town.host("c", labels=["gpu"])
    town.pass_time(5, quiet=(c,))
    client.register("w", labels=("gpu",), main="acme.x:main")
    answer = client.ask(Explain, ref="w")
    assert [(v.host, v.fits, v.reason) for v in answer.verdicts] == [
        ("a", True, "it is there"),
        ("b", False, "it has not the label gpu"),
        ("c", False, "it is not reachable"),
    ]


# --- output ---


def test_output_is_relayed_from_the_host(town, client):
    host = town.host("b")
    client.register("w")
    host.run()
    client.say(ReadOutput(request=b"o" * 16, ref="w", offset=10, limit=5))
    read = host.one(ReadLog)
    assert (read.slot, read.generation, read.offset, read.limit) == (0, 1, 10, 5)
    assert not client.inbox
    host.say(LogChunk(read=read.read, offset=10, data=b"hello", size=15, lost=3))
    output = client.one(Output)
    assert (output.request, output.host, output.data) == (b"o" * 16, "b", b"hello")
    assert (output.offset, output.size, output.lost) == (10, 15, 3)
    host.say(LogChunk(read=read.read, offset=10, data=b"again"))
    assert not client.inbox


def test_output_that_cannot_be_had_says_why(town, client):
    host = town.host("b", slots=1)
    client.register("w")
    host.run()
    client.register("v")
    assert client.ask(ReadOutput, ref="v").code == "not_running"
    assert client.ask(ReadOutput, ref="u").code == "no_such_worker"
    client.say(ReadOutput(request=b"o" * 16, ref="w"))
    read = host.one(ReadLog)
    host.say(LogChunk(read=read.read, offset=0, error="no such file"))
    [answer] = client.inbox
    assert answer.message == "host b: no such file"
    client.inbox.clear()
    client.say(ReadOutput(request=b"p" * 16, ref="w"))
    town.pass_time(5, quiet=(host,))
    [answer] = [m for m in client.inbox if getattr(m, "request", b"") == b"p" * 16]
    assert "session with host b ended" in answer.message
    answer = client.ask(ReadOutput, ref="w")
    assert (answer.code, "not reachable now" in answer.message) == ("refused", True)


def test_output_of_a_retired_worker_can_still_be_read(town, client):
    host = town.host("b")
    client.register("w")
    host.end(host.run(), code=0)
    client.say(ReadOutput(request=b"o" * 16, ref="w"))
    assert host.one(ReadLog).generation == 1


def test_a_host_that_does_not_answer_a_read_costs_its_asker_a_bounded_wait(town):
    client, host = town.client(), town.host()
    client.register("w")
    host.run()
    request = b"q" * 16
    client.say(ReadOutput(request=request, ref="w"))
    host.take(ReadLog)
    town.pass_time(limits.read_output_s - 0.5)
    assert not client.take(Failed)
    town.pass_time(0.6)
    told = client.one(Failed)
    assert told.request == request
    assert f"not answered for {limits.read_output_s:g} s" in told.message
    host.say(LogChunk(read=1, offset=0, data=b"late"))  # is nobody's any more
    assert not client.take(Output)
