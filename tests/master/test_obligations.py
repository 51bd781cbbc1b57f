"""What a host must not say: it costs the session, it is told in the log, and it changes nothing."""

import msgspec
import pytest

from posthouse import codec
from posthouse.messages import (
    AGENT_TO_MASTER,
    KIND_OF,
    Ack,
    Exited,
    Goodbye,
    Hello,
    HostTold,
    Inventory,
    LogChunk,
    Output,
    ReadLog,
    ReadOutput,
    Ready,
    RecordTold,
    Renew,
    Started,
    StartFailed,
    Stop,
    StopDone,
    Terminate,
    Unsupported,
    WorkerAnswer,
    WorkerAsks,
)

change = msgspec.structs.replace


def _named(start):
    return {"slot": start.slot, "generation": start.generation, "token": start.token}


def _born(start):
    return _named(start) | {"incarnation": start.incarnation}


LIES = {
    # what is said: (the words about the START that host b was given, what the log tells)
    "code and signal": (
        lambda host, start: Exited(worker=host.exit(start, code=0, signal=9)),
        "exited with a code and a signal",
    ),
    "another incarnation": (
        lambda host, start: Exited(worker=change(host.exit(start, code=0), incarnation=7)),
        "is incarnation 1, not 7",
    ),
    "a token never drawn": (
        lambda host, start: StopDone(**_named(start) | {"token": start.token + 5}),
        "was never drawn",
    ),
}

OTHERS = {
    # of the START that host b was given, from host c
    "exited": lambda host, start: Exited(worker=host.exit(start, code=0)),
    "started": lambda host, start: Started(worker=host.running(start)),
    "ready": lambda _host, start: Ready(**_born(start)),
    "start_failed": lambda _host, start: StartFailed(**_born(start), reason="no"),
    "stop_done": lambda _host, start: StopDone(**_named(start)),
    "record_told": lambda _host, start: RecordTold(**_named(start), spec={"main": "evil:main"}),
}
ABOUT_NO_PROCESS = {Hello, Renew, Ack, Unsupported, Goodbye}


def _thrown_out(town, host, told):
    assert [refused.code for refused in host.refused] == ["bad_frame"]
    assert host.link is None
    [note] = [note for note in town.notes if note.name == "peer.bad_frame"]
    assert told in note.fields["reason"]


@pytest.mark.parametrize("lie", LIES)
def test_inv14_a_host_that_contradicts_itself_loses_its_session(town, lie):
    host, client = town.host("b"), town.client()
    client.register("w", restart_time=60)
    start = host.run()
    say, told = LIES[lie]
    before = town.kinds("0.1")
    host.say(say(host, start))
    _thrown_out(town, host, told)
    assert town.kinds("0.1") == before
    assert str(client.status("w").state) == "started"
    # The truth is taken in the next session.
    host.open(settle=False)
    host.settle(exits=[host.exit(start, code=1)])
    assert town.kinds("0.1") == [*before, "exited"]


@pytest.mark.parametrize("word", OTHERS)
def test_inv14_a_host_is_believed_only_about_its_own_workers(town, word):
    b, c, client = town.host("b"), town.host("c"), town.client()
    client.register("w", host="b", restart_time=60)
    start = b.run()
    before = town.kinds("0.1")
    c.say(OTHERS[word](c, start))
    _thrown_out(town, c, "was drawn for host b, not for c")
    assert town.kinds("0.1") == before
    assert (client.status("w").host, client.status("w").ready) == ("b", False)
    assert not b.take(Stop)


def test_inv14_a_host_answers_no_question_that_another_was_asked(town):
    b, c, client = town.host("b"), town.host("c"), town.client()
    client.register("w", host="b")
    b.run()
    client.say(ReadOutput(request=b"r" * 16, ref="w"))
    read = b.one(ReadLog).read
    for lie in (LogChunk(read=read, offset=0, data=b"lie"), HostTold(read=read, text="lie")):
        c.say(lie)
        assert not client.take(Output)
    b.say(LogChunk(read=read, offset=0, data=b"truth"))
    assert client.one(Output).data == b"truth"


def test_inv14_a_host_asks_for_nothing_in_the_name_of_anothers_worker(town):
    b, c, client = town.host("b"), town.host("c"), town.client()
    client.register("w", host="b")
    start = b.run()
    body = codec.encode_body(Terminate(request=b"r" * 16, ref="w"))
    asks = WorkerAsks(**_named(start), call=1, kind=KIND_OF[Terminate], body=body)
    c.say(asks)
    assert b"not_permitted" in c.one(WorkerAnswer).body
    assert client.status("w").stopping is None
    b.say(asks)
    assert b.one(WorkerAnswer)
    assert client.status("w").stopping is not None


def test_inv14_no_word_of_an_agent_is_left_out_here():
    told = {Exited, Started, Ready, StartFailed, StopDone, RecordTold}
    assert len(told) == len(OTHERS)
    asked = {LogChunk, HostTold, WorkerAsks, Inventory}
    assert told | asked | ABOUT_NO_PROCESS == AGENT_TO_MASTER


@pytest.mark.parametrize("kind", ["running", "exits"])
def test_inv14_nor_in_an_inventory_of_which_nothing_counts(town, kind):
    b, client = town.host("b"), town.client()
    client.register("w", host="b", restart_time=60)
    client.register("v", labels=("c",))
    start = b.run()
    c = town.host("c", labels=["c"])
    own = c.run()
    c.link = None
    c.open(settle=False, labels=["c"])
    c.refused.clear()
    before = town.kinds("1.1")
    entry = c.running(start) if kind == "running" else c.exit(start, code=0)
    truth = {"running": [], "exits": [c.exit(own, code=1)]}
    c.settle(**truth | {kind: [*truth[kind], entry]})
    _thrown_out(town, c, "was drawn for host b, not for c")
    assert town.kinds("1.1") == before
    assert str(client.status("w").state) == "started"


def test_a_word_before_the_last_page_of_the_inventory(town):
    host, client = town.host("b"), town.client()
    client.register("w", restart_time=60)
    start = host.run()
    host.link = None
    host.open(settle=False)
    host.refused.clear()
    host.end(start, code=0)
    _thrown_out(town, host, "before the inventory's last page")
    assert str(client.status("w").state) == "started"


def test_an_inventory_with_a_token_that_was_never_drawn(town):
    host, client = town.host("b"), town.client()
    client.register("w", restart_time=60)
    start = host.run()
    host.link = None
    host.open(settle=False)
    host.refused.clear()
    host.settle(running=[host.running(start), change(host.running(start), slot=9, token=500)])
    _thrown_out(town, host, "token 500 was never drawn, the highest one is 1")
    assert not host.take(Stop)


def test_an_inventory_that_lists_a_token_twice(town):
    host, client = town.host("b"), town.client()
    client.register("w", restart_time=60)
    start = host.run()
    host.link = None
    host.open(settle=False)
    host.refused.clear()
    host.settle(running=[host.running(start)], exits=[host.exit(start, code=0)])
    _thrown_out(town, host, "lists one token twice")
    assert str(client.status("w").state) == "started"
