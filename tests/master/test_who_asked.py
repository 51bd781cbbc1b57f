"""Who asked for what is known to the next master, and what was asked for is done by it."""

from dataclasses import replace

import pytest

from posthouse.messages import (
    Apply,
    Declared,
    Done,
    Hold,
    Restart,
    SignalWorker,
    Start,
    Stop,
    Terminate,
)
from posthouse.spec import BackgroundWorker
from posthouse.states import EventKind, WorkerState

ANN = "client:ann"


def last(town, kind):
    return [event for event in town.log() if event.kind is kind][-1]


@pytest.fixture(params=["the same master", "the next master"])
def met(town, request):
    """The host as it meets the master again, which may be another one by now."""

    def meet(host, *running):
        if request.param == "the same master":
            return host
        town.crash()
        host = town.agent(host.name)
        host.open(settle=False, slots=1)
        host.settle(running=list(running))
        return host

    return meet


@pytest.mark.parametrize("by", ["client:ann", "client:bob"])
def test_who_sent_the_signal_that_ended_a_worker_is_told(town, met, by):
    host = town.host("b", slots=1)
    town.client().register("w", restart_time=60)
    start = host.run()
    asked = town.client(user=by).ask(SignalWorker, ref="w", signal=12)
    assert isinstance(asked, Done)
    host = met(host, host.running(start))
    host.end(start, cause="signaled", signal=12)
    ended = last(town, EventKind.EXITED)
    assert ended.exit is not None
    assert (ended.exit.by, by in ended.reason) == (by, True), ended
    town.pass_time(61)
    again = host.run()
    host.end(again, cause="signaled", signal=12)
    ended = last(town, EventKind.EXITED)
    assert ended.exit is not None and not ended.exit.by, "that was for the process before"
    assert by not in ended.reason


def test_the_last_of_several_signals_is_the_one_that_is_told(town, met):
    host = town.host("b", slots=1)
    town.client().register("w")
    start = host.run()
    town.client(user="client:bob").ask(SignalWorker, ref="w", signal=12)
    town.client(user=ANN).ask(SignalWorker, ref="w", signal=10)
    host = met(host, host.running(start))
    host.end(start, cause="signaled", signal=12)
    ended = last(town, EventKind.EXITED)
    assert ended.exit is not None and not ended.exit.by, "10 was sent last; 12 may be anybody's"


@pytest.mark.parametrize(("kind", "stop"), [(Hold, "hold"), (Restart, "restart"), (Terminate, "t")])
def test_who_asked_for_a_stop_is_told_with_the_end(town, met, kind, stop):
    host = town.host("b", slots=1)
    town.client().register("w")
    start = host.run()
    assert isinstance(town.client(user=ANN).ask(kind, ref="w"), Done)
    host.take(Stop)  # it is lost on the way
    host = met(host, host.running(start))
    host.end(start, code=0)
    ended = last(town, EventKind.EXITED)
    assert (ended.by, ended.exit.by if ended.exit else "") == (ANN, ANN), ended
    assert ANN in ended.reason and str(ended.stop).startswith(stop)


def declared(**changes):
    spec = BackgroundWorker(name="w", main="acme.jobs:main", restart_time=3600)
    return [Declared(spec=replace(spec, **changes).to_wire())]


@pytest.mark.parametrize("asked", ["restart", "apply"])
def test_what_ends_a_delay_ends_it_also_for_the_next_master(town, met, asked):
    """It waited for an hour, and was to start at once; there was no room at that moment."""
    host = town.host("b", slots=1)
    ann = town.client(user=ANN)
    ann.ask(Apply, source="shop", workers=declared())
    host.end(host.run(), code=1)
    ann.register("other")
    other = host.run()
    assert ann.status("w").state is not WorkerState.STARTED
    if asked == "restart":
        assert ann.ask(Restart, ref="w").changed
        assert last(town, EventKind.RESTART_REQUESTED).by == ANN
    else:
        assert ann.ask(Apply, source="shop", workers=declared(main_arg=1)).updated == 1
    host = met(host, host.running(other))
    assert not host.take(Start)
    host.end(other, code=0)
    assert host.run().spec["name"] == "w"
