"""N1-N4: who registered is told. PostgreSQL sends a bare signal to a pid; here the log tells."""

from posthouse.messages import Goodbye, Start, Subscribe, Subscribed


def test_n1_healed_every_event_is_told_with_its_facts_and_no_signal_is_promised(town):
    """PostgreSQL's SIGUSR1 coalesces and carries nothing: the receiver looks again, and two exits
    may look like one. Healed by events; the signal itself is not offered, and that is said."""
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
