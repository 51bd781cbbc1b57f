"""The front door: who gets a session, what ends one, what a frame of another session does."""

import pytest

from posthouse import codec, limits
from posthouse.codec import NO_SESSION, Envelope
from posthouse.messages import (
    Done,
    Goodbye,
    Hello,
    Inventory,
    ListHosts,
    Refused,
    Register,
    ReloadRuntimes,
    Renew,
    RenewRuntimes,
    Start,
    Terminate,
    Unsupported,
    WardenRef,
    Welcome,
)
from posthouse.states import EventKind
from posthouse_master.effects import (
    Interrupted,
    Malformed,
    PeerGone,
    Received,
    Reload,
    Revoked,
)


def refusal(peer):
    assert peer.link is None
    [refused] = peer.refused
    peer.refused.clear()
    return refused


# --- opening ---


def test_welcome_says_who_the_peer_is_taken_for(town):
    client, host = town.client(), town.host("b")
    assert client.welcome.principal == "client:local"
    assert host.welcome.principal == "agent:b"
    for welcome in (client.welcome, host.welcome):
        assert (welcome.registry, welcome.epoch) == (town.core.term.registry, 1)
        assert (welcome.timeline, welcome.lease_s) == (1, 0.0)
        assert welcome.nonce == b"n" * 16
    assert client.welcome.session != host.welcome.session


def test_a_revoked_key_loses_its_sessions_and_opens_no_more(town):
    """Its connection is open still: what matters is that nothing counts that is said over it."""
    old, new = town.client("client:a", "old"), town.client("client:a", "new")
    town.handle(Revoked(frozenset([("client:a", "old"), ("client:b", "new")])))
    assert refusal(old).code == "not_permitted"
    old.hello(role="client")
    assert "no longer among" in refusal(old).message
    assert new.link is not None and new.register("w").name == "w"
    town.handle(Revoked(frozenset()))
    assert old.open().link is not None


def test_a_key_names_role_and_host_and_the_body_does_not(town):
    host = town.agent("liar", user="agent:b")
    host.open()
    assert host.welcome.principal == "agent:b"
    assert list(town.core.fleet.hosts) == ["b"]
    assert town.client("client:deploy").welcome.principal == "client:deploy"
    assert town.client("viewer:graf").welcome.principal == "viewer:graf"


@pytest.mark.parametrize(
    ("endpoint", "user", "role"),
    [
        ("clients", None, "agent"),
        ("agents", None, "client"),
        ("clients", None, "viewer"),
        ("clients", None, "root"),
        ("clients", "agent:b", "agent"),
        ("agents", "client:x", "client"),
        ("agents", "viewer:x", "client"),
        ("clients", "client:x", "agent"),
        ("agents", "agent:b", "client"),
        ("clients", "root:x", "root"),
    ],
)
def test_a_role_that_does_not_fit_is_refused(town, endpoint, user, role):
    peer = town.client() if endpoint == "clients" else town.agent("b")
    stranger = type(peer)(town, peer.peer.__class__(endpoint, b"other", user))
    town.peers[stranger.peer] = stranger
    stranger.hello(role=role, host="b")
    refused = refusal(stranger)
    assert (refused.code, refused.retry_after_s) == ("not_permitted", 0.0)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a:b", "x" * 65, "é"])
def test_a_host_needs_a_plain_name(town, name):
    host = town.agent("b")
    host.hello(role="agent", host=name)
    assert refusal(host).code == "not_permitted"


def test_another_protocol_is_refused_with_both_ranges(town):
    client = town.client()
    client.link = None
    client.hello(role="client", protocol_min=7, protocol_max=9)
    refused = refusal(client)
    assert (refused.code, refused.message) == (
        "protocol",
        "this master speaks protocol 0 to 0, the peer 7 to 9",
    )


def test_a_host_of_another_registry_is_refused(town):
    host = town.agent("b")
    host.open(settle=False, registry="cd" * 16, epoch=1)
    assert refusal(host).code == "foreign_registry"
    assert not town.core.fleet.hosts


def test_a_host_that_has_seen_a_newer_epoch_is_refused(town):
    host = town.agent("b")
    host.open(settle=False, registry=town.core.term.registry, epoch=2)
    assert refusal(host).code == "older_epoch"


def test_a_host_of_a_master_with_the_same_epoch_on_a_copy_is_refused(town, towns):
    other = towns.Town()
    assert other.core.term == town.core.term
    other.core.door.instance = "cd" * 16  # in a town entropy is a counter, and the same in each
    known = other.host("b").welcome
    host = town.agent("b")
    host.open(settle=False, registry=known.registry, epoch=known.epoch, master=known.master)
    refused = refusal(host)
    assert refused.code == "copied_registry" and "posthouse restore" in refused.hint
    assert not town.core.fleet.hosts
    host = town.agent("b")
    ours = town.core.door.instance
    host.open(settle=False, registry=known.registry, epoch=known.epoch, master=ours)
    assert host.welcome is not None


def test_the_table_of_sessions_is_bounded(town, monkeypatch):
    monkeypatch.setattr(limits, "peers_max", 2)
    first = town.client()
    town.client()
    third = town.client()
    refused = refusal(third)
    assert (refused.code, refused.retry_after_s) == ("too_many_peers", 5.0)
    first.say(Goodbye(reason="done"))
    third.open()
    assert third.link is not None


# --- a second agent for one host ---


def test_an_agent_that_began_anew_takes_its_host_over_and_nobody_was_away(town):
    town.host("b")
    again = town.host("b")
    assert again.link is not None
    assert town.core.fleet.hosts["b"].settled
    assert [str(event.kind) for event in town.log()] == ["host_up"]


def test_another_machine_of_the_same_name_is_refused_while_the_first_is_heard(town):
    first = town.host("b")
    thief = town.agent("b", warden="f" * 32)
    thief.open(settle=False, agent_instance="other")
    refused = refusal(thief)
    assert (refused.code, refused.retry_after_s) == ("host_taken", 1.0)
    first.renew()
    assert first.grants
    town.pass_time(limits.silence_s + 0.5, quiet=(first,))
    thief.open(agent_instance="other")
    assert thief.link is not None


def test_a_frame_of_the_session_that_was_replaced_is_stale(town):
    first = town.host("b")
    town.host("b")
    assert refusal(first).code == "stale_session"


# --- frames ---


def test_a_frame_of_an_unknown_session_is_answered_with_its_own_envelope(town):
    client = town.client()
    stray = codec.encode(Envelope(b"s" * 16, 9, 1, 0, ListHosts(request=b"r" * 16)))
    answers = []
    client.deliver = answers.append
    client.raw(stray)
    [answer] = [codec.decode(frame) for frame in answers]
    assert (answer.session, answer.epoch) == (b"s" * 16, 9)
    assert answer.body.code == "stale_session"


def test_nobody_speaks_in_another_peers_session(town):
    client, other = town.client(), town.client()
    frame = client.link.send(
        Register(request=b"r" * 16, spec={"name": "w", "main": "m:f"}), town.boot_s
    )
    other.raw(frame)
    assert not town.disk.specs
    stolen = type(client.peer)("clients", client.peer.routing_id, "client:thief")
    town.handle(Received(stolen, frame))
    assert not town.disk.specs
    client.raw(frame)  # its own session is none the worse for it
    assert town.disk.specs


def test_a_frame_of_another_epoch_is_stale(town):
    client = town.client()
    frame = codec.encode(
        Envelope(client.link.session, 99, 1, 0, Terminate(request=b"r" * 16, ref="w"))
    )
    client.raw(frame)
    assert client.refused[-1].code == "stale_session"


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"\x00" * 100,
        b"\xff" * 70_000,
        codec.encode(Envelope(NO_SESSION, 0, 0, 0, Welcome(
            nonce=b"n" * 16, session=b"s" * 16, epoch=1, timeline=1, registry="a" * 32,
            protocol=0, principal="client:local"))),
        codec.encode(Envelope(b"s" * 16, 0, 0, 0, Hello(nonce=b"n" * 16, role="client"))),
        codec.encode(Envelope(NO_SESSION, 0, 1, 0, Hello(nonce=b"n" * 16, role="client"))),
    ],
    ids=["empty", "reserved", "zeros", "large", "welcome", "hello-in-session", "hello-numbered"],
)  # fmt: skip
def test_d6_a_bad_frame_costs_the_sender_its_session_and_nobody_elses(town, frame):
    """The postmaster takes no lock and trusts nothing that others write. Kept: what a peer sends is
    judged before it is used, and costs nobody but the peer."""
    client, other = town.client(), town.client()
    client.raw(frame)
    assert refusal(client).code == "bad_frame"
    assert other.register("w").name == "w"
    client.open()
    assert client.status("w").name == "w"


def test_a_message_for_the_other_endpoint_is_a_bad_frame(town):
    client, host = town.client(), town.host("b")
    client.say(Inventory(page=0, last=True))
    assert refusal(client).code == "bad_frame"
    host.say(Terminate(request=b"r" * 16, ref="w"))
    assert refusal(host).code == "bad_frame"


def test_a_message_of_two_parts_is_a_bad_frame(town):
    client = town.client()
    town.handle(Malformed(client.peer))
    assert refusal(client).code == "bad_frame"


def test_a_bad_frame_without_a_session_is_answered(town):
    client = town.client()
    client.say(Goodbye(reason="done"))
    client.link = None
    client.raw(b"\xc1")
    assert refusal(client).code == "bad_frame"


def test_an_unknown_kind_is_answered_and_ignored(town):
    client = town.client()
    client.raw(codec.frame(999, client.link.session, client.link.epoch, 1, 0, b"\x80"))
    assert client.one(Unsupported).kind == 999
    client.link.send(Goodbye(), town.boot_s)  # the number that the unknown message had
    assert client.register("w").name == "w"


def test_a_repeated_message_has_one_effect(town):
    client = town.client()
    frame = client.link.send(
        Register(request=b"r" * 16, spec={"name": "w", "main": "m:f", "unique": False}),
        town.boot_s,
    )
    for _ in range(3):
        client.raw(frame)
    assert len(town.disk.specs) == 1


def test_a_gap_is_not_handled_until_it_is_filled(town):
    client = town.client()
    frames = [
        client.link.send(
            Register(request=bytes([n] * 16), spec={"name": f"w{n}", "main": "m:f"}), 0
        )
        for n in range(3)
    ]
    for frame in (frames[2], frames[1]):
        client.raw(frame)
    assert not town.disk.specs
    for frame in frames:
        client.raw(frame)
    assert [row.name for row in town.disk.specs.values()] == ["w0", "w1", "w2"]


# --- grants and silence ---


def test_a_renewal_is_granted_with_its_stamp_and_acknowledges_nothing(town):
    host = town.host("b")
    frames = []
    host.deliver = frames.append
    host.loose(Renew(stamp=123))
    [grant] = [codec.decode(frame) for frame in frames]
    assert (grant.body.stamp, grant.body.lease_s, grant.acknowledged) == (123, 0.0, 0)


def test_no_grant_before_the_last_page_of_the_inventory(town):
    host = town.host("b", settle=False)
    host.renew()
    assert not host.grants
    host.say(Inventory(page=0, last=False))
    host.renew()
    assert not host.grants
    host.say(Inventory(page=1, last=True))
    host.renew()
    assert len(host.grants) == 1


def test_a_silent_client_is_dropped_with_what_it_followed(town):
    client = town.client()
    client.follow()
    town.pass_time(limits.silence_s - 0.5, quiet=(client,))
    assert len(town.core.door) == 1
    town.pass_time(1, quiet=(client,))
    assert len(town.core.door) == 0
    assert len(town.core.watchers) == 0
    assert client.refused[-1].code == "stale_session"


def test_a_client_that_renews_stays(town):
    client = town.client()
    town.pass_time(20)
    assert client.status is not None
    assert len(town.core.door) == 1
    assert len(client.grants) >= 20


def test_a_silent_host_is_down_and_comes_back_up(town):
    client, host = town.client(), town.host("b")
    client.register("w")
    start = host.run()
    town.pass_time(limits.silence_s + 0.5, quiet=(host,))
    assert not client.ask(ListHosts).hosts[0].reachable
    assert not client.status("w").reachable
    host.link = None
    host.open(settle=False)
    host.settle(running=[host.running(start)])
    status = client.status("w")
    assert (str(status.state), status.reachable, status.incarnation) == ("started", True, 1)
    kinds = [str(event.kind) for event in town.log()]
    assert kinds == [
        "host_up",
        "registered",
        "starting",
        "started",
        "host_down",
        "host_up",
    ]


def test_a_host_that_does_not_return_after_a_master_restart_is_down(town):
    town.host("b")
    town.crash()
    town.pass_time(limits.return_s - 1)
    assert [str(event.kind) for event in town.log()] == ["host_up"]
    town.pass_time(2)
    assert [str(event.kind) for event in town.log()] == ["host_up", "host_down"]
    town.crash()
    town.pass_time(10)
    assert [str(event.kind) for event in town.log()] == ["host_up", "host_down"]


def test_a_host_that_returns_after_a_master_restart_was_never_down(town):
    town.host("b")
    town.crash()
    town.host("b")
    town.pass_time(20)
    assert [str(event.kind) for event in town.log()] == ["host_up"]


def test_a_peer_that_cannot_be_sent_to_loses_its_session(town):
    client, host = town.client(), town.host("b")
    town.handle(PeerGone(client.peer))
    town.handle(PeerGone(host.peer))
    town.handle(PeerGone(host.peer))
    client.link = host.link = None
    assert len(town.core.door) == 0
    assert not town.client().ask(ListHosts).hosts[0].reachable
    assert [str(event.kind) for event in town.log()] == ["host_up"]
    town.pass_time(limits.silence_s + 0.5)
    assert [str(event.kind) for event in town.log()] == ["host_up", "host_down"]


def test_a_host_whose_session_breaks_and_that_is_back_in_time_was_never_down(town):
    """Its HELLO was in a socket that it had given up: 1. the master begins a session, 2. WELCOME
    finds nobody, 3. the next HELLO comes."""
    for _ in range(3):
        first = town.agent("b")
        first.open(settle=False)
        town.handle(PeerGone(first.peer))
        town.pass_time(limits.silence_s - 1, quiet=(first,))
        first.link = None
        town.host("b")
    town.pass_time(10)
    assert [str(event.kind) for event in town.log()] == ["host_up"]


def test_a_host_that_hears_nothing_is_down_as_soon_as_it_says_so(town):
    host = town.host("b")
    town.pass_time(2)
    host.deaf = True
    stamp = host.grants[-1].stamp
    for _ in range(3):  # it is granted, again and again, and does not know
        town.boot_s += limits.renew_s
        host.loose(Renew(stamp=int(town.boot_s * 1e6), granted=stamp))
    host.say(Goodbye(unheard=True))
    assert [str(event.kind) for event in town.log()] == ["host_up", "host_down"]


def test_a_master_that_was_stopped_takes_no_host_for_down_that_heard_nothing(town):
    """All that the host has said meanwhile comes at once."""
    host = town.host("b")
    town.pass_time(2)
    stamp = host.grants[-1].stamp
    town.boot_s += 10
    for late_s in (8, 7, 6):
        host.loose(Renew(stamp=int((town.boot_s - late_s) * 1e6), granted=stamp))
    host.say(Goodbye(unheard=True))
    host.link = None
    town.host("b")
    town.pass_time(10)
    assert [str(event.kind) for event in town.log()] == ["host_up"]


def test_a_peer_that_acknowledges_nothing_loses_its_session(town):
    client = town.client()
    client.deliver = lambda frame: client.refused.extend(
        body for body in [codec.decode(frame).body] if isinstance(body, Refused)
    )
    bound = limits.outbox_messages_max + limits.answers_waiting_max
    for number in range(bound + 10):
        envelope = Envelope(
            client.welcome.session, 1, number + 1, 0, ListHosts(request=number.to_bytes(16))
        )
        client.raw(codec.encode(envelope))
        if client.refused:
            break
    assert number == bound
    assert [refused.code for refused in client.refused] == ["stale_session"]
    assert len(town.core.door) == 0


def test_a_host_that_renews_and_acknowledges_nothing_is_told_as_down(town):
    """Its agent's core is stuck; what it was asked to do is done once it says HELLO again."""
    client, host = town.client(), town.host("b")
    client.register("w")
    start = host.run()
    town.hold(host)
    client.terminate("w")
    for _ in range(int(limits.repetitions_max * limits.resend_s * 2) - 2):
        town.pass_time(0.5, quiet=(host,))
        host.renew()
    assert host.grants and host.link is not None, "it may be slow"
    for _ in range(6):
        town.pass_time(0.5, quiet=(host,))
        if host.link is not None:
            host.renew()
    refused = refusal(host)
    assert refused.code == "stale_session" and "acknowledges nothing" in refused.message
    down = town.log()[-1]
    assert (down.kind, down.reason) == (EventKind.HOST_DOWN, refused.message)
    assert not client.status("w").reachable
    host.inbox.clear()
    host.open(settle=False)
    host.settle(running=[host.running(start)])
    assert town.log()[-1].kind is EventKind.HOST_UP
    host.obey_stop(start)
    assert client.status("w").final


def test_a_master_that_was_stopped_takes_nobody_for_one_that_acknowledges_nothing(town):
    client, host = town.client(), town.host("b")
    client.register("w")
    town.boot_s += 2 * limits.repetitions_max * limits.resend_s
    for late_s in range(40, 0, -1):  # all that it said meanwhile
        host.loose(Renew(stamp=int((town.boot_s - late_s) * 1e6)))
        town.tick()
    assert host.run().incarnation == 1


def test_the_commands_that_wait_for_a_host_are_bounded(town, monkeypatch):
    monkeypatch.setattr(limits, "commands_waiting_max", 10)
    client, host = town.client(), town.host("b")
    town.hold(host)
    kinds = limits.outbox_messages_max + 10
    for _ in range(kinds):
        assert isinstance(client.ask(ReloadRuntimes, host="b"), Done)
    assert host.link is not None
    client.ask(ReloadRuntimes, host="b")
    assert "too many commands" in refusal(host).message


def test_what_is_not_acknowledged_is_sent_again(town):
    client, host = town.client(), town.host("b")
    host.deaf = True
    client.register("w")
    assert not host.take(Start)
    host.deaf = False
    town.pass_time(limits.resend_s + 0.6)
    assert host.run().incarnation == 1


def test_a_start_that_stays_unanswered_ends_the_session(town):
    client, host = town.client(), town.host("b")
    client.register("w")
    start = host.one(Start)
    town.pass_time(limits.start_attempt_s + 1)
    assert refusal(host).code == "stale_session"
    host.open(settle=False)
    host.settle(running=[host.running(start)])
    assert str(client.status("w").state) == "started"
    assert client.status("w").incarnation == 1


# --- the end of the process ---


def test_sigterm_ends_the_master_and_no_worker(town):
    client, host = town.client(), town.host("b")
    client.register("w")
    host.run()
    host.inbox.clear()
    town.handle(Interrupted("SIGTERM"))
    assert town.halted.status == 0
    assert [type(message) for message in host.inbox] == [Goodbye]
    assert client.one(Goodbye).reason == "SIGTERM"
    assert town.kinds("0.1") == ["registered", "starting", "started"]


def test_hello_with_a_list_of_wardens_is_remembered(town):
    host = town.agent("b")
    wardens = [WardenRef(kind=kind, instance=kind[0] * 32) for kind in ("fenced", "kept")]
    host.open(wardens=wardens)
    again = town.agent("b")
    again.open(wardens=wardens[1:], agent_instance="new")
    assert again.link is not None


def test_hangup_has_every_host_load_its_runtimes_anew(town):
    """HUP to the master; the hosts' own HUP is `posthouse reload`."""
    client = town.client()
    hosts = [town.host("a"), town.host("b")]
    town.handle(Reload())
    assert [host.take(RenewRuntimes) for host in hosts] == [[RenewRuntimes()], [RenewRuntimes()]]
    assert not client.take(RenewRuntimes)
