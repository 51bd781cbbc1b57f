"""Draining a host: no more starts there, and its workers elsewhere."""

from typing import Any

from posthouse.messages import Drain, Failed, Hold, ListHosts, Start, Stop
from posthouse.states import EventKind, StopReason, WorkerState


def test_workers_move_off_a_drained_host_and_pinned_ones_are_named(town: Any) -> None:
    host, client = town.host("b"), town.client()
    client.register("free", restart_time=60)
    free = host.run()
    client.register("pinned", host="b")
    host.run()
    drained = client.ask(Drain, host="b", grace_s=1.5)
    assert (drained.changed, drained.stopped, drained.left) == (True, 1, ["pinned"])
    stop = host.one(Stop)
    assert (stop.token, stop.reason, stop.grace_s) == (free.token, StopReason.DRAIN, 1.5)
    host.end(free, StopReason.DRAIN, code=0)
    assert not host.take(Start)
    assert "b: it is being drained" in client.status("free").reason
    other = town.host("c")
    assert other.run().spec["name"] == "free"
    assert client.status("pinned").state is WorkerState.STARTED
    assert [h.draining for h in client.ask(ListHosts).hosts] == [True, False]
    kinds = [event.kind for event in town.log() if event.host == "b" and not event.name]
    assert kinds == [EventKind.HOST_UP, EventKind.HOST_DRAINING]


def test_force_also_stops_pinned_workers_and_undo_starts_them_again(town: Any) -> None:
    host, client = town.host("b"), town.client()
    client.register("pinned", host="b")
    start = host.run()
    assert client.ask(Drain, host="b", force=True).stopped == 1
    host.obey_stop(start)
    assert "host b: it is being drained" in client.status("pinned").reason
    assert client.ask(Drain, host="b", on=False).changed
    assert host.run().incarnation == 2
    assert not client.ask(Drain, host="b", on=False).changed


def test_a_drain_outlives_the_master_and_the_agent(town: Any) -> None:
    host, client = town.host("b"), town.client()
    client.ask(Drain, host="b")
    town.crash()
    host, client = town.host("b"), town.client()
    client.register("w")
    town.pass_time(3)
    assert not host.take(Start)
    assert client.ask(Drain, host="b", on=False).changed
    host.one(Start)


def test_an_unknown_host_is_named(town: Any) -> None:
    town.host("b")
    answer = town.client().ask(Drain, host="nope")
    assert isinstance(answer, Failed)
    assert (answer.code, answer.hint) == ("unknown_host", "known are b")


def test_a_drain_of_a_host_that_is_away_is_carried_out_when_it_is_back(town: Any) -> None:
    host, client = town.host("b"), town.client()
    client.register("w")
    start = host.run()
    running = host.running(start)
    town.pass_time(5, quiet=(host,))
    assert client.ask(Drain, host="b").stopped == 1
    host = town.agent("b", warden=None).open(settle=False)
    host.settle([running])
    assert host.one(Stop).reason is StopReason.DRAIN


def test_a_deadline_outlives_the_master(town: Any) -> None:
    """Its STOP was lost with the master: the next one does not fall back to the longer grace."""
    host, client = town.host("b"), town.client()
    client.register("w", stop_grace_s=300)
    running = host.running(host.run())
    client.ask(Drain, host="b", grace_s=2.0)
    town.crash()
    host = town.agent("b", warden=None).open(settle=False)
    host.settle([running])
    assert host.one(Stop).grace_s == 2.0


def test_a_deadline_ends_with_the_process_it_was_given_for(town: Any) -> None:
    host, client = town.host("b"), town.client()
    client.register("w", stop_grace_s=300)
    start = host.run()
    client.ask(Drain, host="b", grace_s=2.0)
    host.obey_stop(start)
    other = town.host("c")
    other.run()
    client.ask(Drain, host="c")
    assert other.one(Stop).grace_s == 300


def test_a_second_drain_brings_the_end_nearer_and_never_puts_it_off(town: Any) -> None:
    """Somebody loses patience with a worker that is being stopped, for whatever reason."""
    host, client = town.host("b"), town.client()
    for name in ("w", "held"):
        client.register(name, stop_grace_s=300)
        host.run()
    client.ask(Hold, ref="held")
    client.ask(Drain, host="b")
    assert [(s.reason, s.grace_s) for s in host.take(Stop)] == [
        (StopReason.HOLD, 300),
        (StopReason.DRAIN, 300),
    ]
    client.ask(Drain, host="b", grace_s=1.0)
    assert sorted((s.reason, s.grace_s) for s in host.take(Stop)) == [
        (StopReason.DRAIN, 1.0),
        (StopReason.HOLD, 1.0),
    ]
    client.ask(Drain, host="b", grace_s=60.0)
    assert not host.take(Stop)
    assert client.status("held").stopping is StopReason.HOLD


def test_a_deadline_does_not_lengthen_a_worker_s_own_grace(town: Any) -> None:
    host, client = town.host("b"), town.client()
    client.register("w", stop_grace_s=3)
    host.run()
    client.ask(Drain, host="b", grace_s=60.0)
    assert host.one(Stop).grace_s == 3
