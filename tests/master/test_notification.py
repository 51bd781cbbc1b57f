"""N1-N4: who registered is told. PostgreSQL sends a bare signal to a pid; here the log tells."""

import msgspec

from posthouse import codec, vouch
from posthouse.messages import (
    KIND_OF,
    GetStatus,
    Goodbye,
    Notify,
    Register,
    Registered,
    Shutdown,
    Signal,
    Start,
    StatusReply,
    Subscribe,
    Subscribed,
    WorkerAnswer,
    WorkerAsks,
)


def test_n1_healed_every_event_is_told_with_its_facts_and_no_signal_is_promised(town):
    """PostgreSQL's SIGUSR1 coalesces and carries nothing: the receiver looks again, and two exits
    may look like one. Healed by events; who is no worker is refused the signal,
    and is told what to do."""
    client, host = town.client(), town.host("b")
    refused = client.register_failed("signalled", notify=True)
    assert refused.code == "refused"
    assert "handles, events and waits never need it" in refused.message + refused.hint
    client.register("w", restart_time=0)
    client.follow("w")
    for code in (1, 3):
        host.end(host.run(), code=code)
    told = [(str(e.kind), e.exit.code) for e in client.events() if e.exit is not None]
    assert told == [("exited", 1), ("exited", 3)]


def test_n2_healed_nothing_is_kept_for_who_has_gone(town):
    """PostgreSQL zeroes the pid of a process that ends, so that a recycled one is not signalled.
    Healed: nothing is aimed at a pid. A session that has ended is told nothing more, and another
    one in its place hears only what it asks for."""
    gone, stays, host = town.client(), town.client(), town.host("b")
    for client in (gone, stays):
        client.follow(sequence=-1)
    assert len(town.core.watchers) == 2
    gone.say(Goodbye(reason="exits"))
    assert len(town.core.watchers) == 1
    gone.inbox.clear()
    gone.open()  # the same connection, a process that takes over
    stays.register("w")
    host.run()
    assert [str(event.kind) for event in stays.events()] == ["registered", "starting", "started"]
    assert not gone.events()
    assert isinstance(gone.ask(Subscribe, subscription=1, sequence=-1), Subscribed)  # 1 is free


def test_n3_healed_what_a_worker_registered_stays_when_it_ends(town):
    """PostgreSQL clears the notifications aimed at a worker that ends. Healed: what it followed
    goes with its session, what it registered goes on, and others are told of it."""
    host, others = town.host("b"), town.client()
    others.register("registrant", restart_time=60)
    registrant = host.run()
    worker = town.client()  # its connection
    worker.register("child", restart_time=0)
    child = host.run()
    worker.follow("child")
    host.end(registrant, code=1)
    worker.say(Goodbye(reason="exits"))
    others.follow("child", sequence=-1)
    host.end(child, code=1)
    assert host.one(Start).spec["name"] == "child"
    assert [str(event.kind) for event in others.events()] == ["exited", "starting"]


# --- requests of workers, and their SIGUSR1 ---


def asks(host, start, request, **values):
    """A worker's request through its host's agent, and the answer that comes back."""
    told = {"slot": start.slot, "generation": start.generation, "token": start.token, **values}
    body = codec.encode_body(request)
    host.say(WorkerAsks(call=7, kind=KIND_OF[type(request)], body=body, **told))
    answer = host.one(WorkerAnswer)
    assert (answer.token, answer.call) == (told["token"], 7)
    return codec.decode_body(answer.kind, answer.body)


def registrant(town, host):
    town.client().register("registrant", restart_time=0, host=host.name)
    return host.run()


def test_d1_a_worker_registers_under_its_own_name_and_a_repeated_request_has_one_effect(town):
    host = town.host("b")
    start = registrant(town, host)
    request = Register(request=b"r" * 16, spec={"name": "child", "main": "acme.jobs:main"})
    first = asks(host, start, request)
    assert isinstance(first, Registered)
    assert asks(host, start, request) == first
    town.crash()
    host = town.agent("b")
    host.open(settle=False)
    host.settle([host.running(start)])
    assert asks(host, start, request) == first
    (event,) = [e for e in town.log() if e.name == "child" and str(e.kind) == "registered"]
    assert event.by == f"worker:registrant/{start.slot}.{start.generation}/{start.token}"
    status = asks(host, start, GetStatus(request=b"s" * 16, ref="child"))
    assert isinstance(status, StatusReply)


def test_only_the_present_process_of_a_worker_on_that_very_host_is_heard(town):
    """Its token is what it is: an older process of it, or another host, asks in vain."""
    host, other = town.host("b"), town.host("c")
    start = registrant(town, host)
    request = Register(request=b"r" * 16, spec={"name": "child", "main": "acme.jobs:main"})
    refused = [
        asks(other, start, request),
        asks(host, start, request, token=start.token + 1),
        asks(host, start, request, generation=start.generation + 1),
    ]
    host.end(start, code=1)
    again = host.run()
    refused.append(asks(host, start, request))
    assert {answer.code for answer in refused} == {"not_permitted"}
    assert isinstance(asks(host, again, request), Registered)


def test_what_no_worker_may_ask_costs_the_agent_its_session(town):
    host = town.host("b")
    start = registrant(town, host)
    request = Shutdown(request=b"r" * 16, mode="immediate")
    body = codec.encode_body(request)
    where = {"slot": start.slot, "generation": start.generation, "token": start.token}
    host.say(WorkerAsks(call=7, kind=KIND_OF[Shutdown], body=body, **where))
    assert not host.take(WorkerAnswer)
    assert not town.core.fleet.hosts["b"].settled


def test_n1_a_worker_that_asked_for_it_is_signalled_at_start_and_exit(town):
    """PostgreSQL: SIGUSR1 at start and exit. Here as well, to a worker, after the row is durable;
    only if it does not leave that signal at its deadly default (its warden looks)."""
    host, elsewhere = town.host("b"), town.host("c")
    start = registrant(town, host)
    spec = {
        "name": "child",
        "main": "acme.jobs:main",
        "notify": True,
        "restart_time": 60.0,
        "host": "c",
    }
    asks(host, start, Register(request=b"r" * 16, spec=spec))
    child = elsewhere.run()
    expected = Signal(
        slot=start.slot, generation=start.generation, token=start.token, signal=10, handled=True
    )
    assert host.take(Signal) == [expected]
    elsewhere.end(child, code=1)
    assert host.take(Signal) == [expected]


def test_n2_n3_with_the_registrants_end_its_notifications_end(town):
    """PostgreSQL: they are cleared, so that a recycled pid is never signalled. Here: the process
    is named by its token, which no other one ever has; its next incarnation is another process."""
    host = town.host("b")
    start = registrant(town, host)
    spec = {
        "name": "child",
        "main": "acme.jobs:main",
        "notify": True,
        "restart_time": 0.0,
        "host": "b",
    }
    asks(host, start, Register(request=b"r" * 16, spec=spec))
    child = host.run()
    host.take(Signal)
    host.end(start, code=1)
    host.run()
    host.end(child, code=1)
    assert host.take(Signal) == []


def test_n1_a_process_with_its_agents_word_is_notified_whatever_is_started_anew(town):
    """PostgreSQL: any backend. Here any process on a host with an agent, named by boot, pid and
    start, by the word of that agent alone; it is kept over masters and agents."""
    key, boot = b"k" * 32, "boot-b"
    home, away = town.agent("b"), town.host("c")
    home.boot_id = boot
    home.open(notify_key=key)
    word = vouch.marked(key, "b", boot, 4242, 99)
    spec = {"name": "w", "main": "acme.jobs:main", "notify": True, "restart_time": 0.0, "host": "c"}

    def register(client, word):
        return client.ask(Register, spec=spec, registrant=word)

    client = town.client()
    for wrong in (
        None,
        vouch.marked(b"x" * 32, "b", boot, 4242, 99),
        vouch.marked(key, "c", boot, 4242, 99),
        vouch.marked(key, "b", "boot-0", 4242, 99),
        vouch.marked(key, "nowhere", boot, 4242, 99),
        msgspec.structs.replace(word, pid=1),
    ):
        assert register(client, wrong).code == "refused"
    assert isinstance(register(client, word), Registered)
    start = away.run()
    expected = Notify(boot_id=boot, pid=4242, pid_start=99)
    assert home.take(Notify) == [expected]

    town.crash()
    home, away = town.agent("b"), town.agent("c")
    home.boot_id = boot
    home.open(notify_key=b"another agent" * 2)
    away.open(settle=False)
    away.settle([away.running(start)])
    away.end(start, code=1)
    assert home.take(Notify) == [expected]
    again = away.run()
    home.take(Notify)
    home.boot_id = "the next one"
    home.open()
    away.end(again, code=1)
    assert home.take(Notify) == []


def test_w8_healed_every_worker_is_seen_and_can_be_ended(town):
    """PostgreSQL: one without a database session is in no view, and cannot be terminated by pid.
    Healed: lists and handles know all of them; none needs a database."""
    client, host = town.client(), town.host("b")
    client.register("w")
    start = host.run(pid=77)
    status = client.status("w")
    assert (str(status.state), status.pid) == ("started", 77)
    assert client.terminate("w").changed
    host.obey_stop(start)
    assert client.status("w").final
