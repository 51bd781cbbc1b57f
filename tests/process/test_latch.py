"""The latch (L1-L10) and the worker's channel, between real processes."""

import json
import os
import socket

import pytest

from posthouse import channel, limits
from posthouse.errors import BadFrame, UsageError
from posthouse.latch import LATCH_SET, POSTMASTER_DEATH, Latch
from posthouse_agent.orders import Ended, Forked


@pytest.fixture(name="host")
def _host(shared_host):
    return shared_host


@pytest.fixture(name="agent")
def _agent(shared_agent):
    return shared_agent


def test_l1_l2_l5_l6_l7_l10_rules(host, agent):
    """PostgreSQL's rules of the latch: a flag that stays, which only its owner waits for; a wait
    names the postmaster's death; a set latch wins; time counts from the call; an end
    is readable."""
    ended = host.run(agent, "latch_rules")
    assert ended.facts["code"] == 0, ended.facts
    results = host.said(ended.slot)[0]["results"]
    assert results == {
        "timeout 0": ["TIMEOUT"],
        "set first": ["LATCH_SET"],
        "set stays": ["LATCH_SET"],
        "many sets are one": False,
        "nothing to read": ["TIMEOUT"],
        "writeable": ["SOCKET_WRITEABLE"],
        "readable": ["SOCKET_READABLE"],
        "both": ["SOCKET_READABLE", "SOCKET_WRITEABLE"],
        "latch wins": ["LATCH_SET"],
        "latch not asked": ["SOCKET_READABLE", "SOCKET_WRITEABLE"],
        "end of file": ["SOCKET_READABLE"],
        "no death event": "UsageError",
        "timeout without time": "UsageError",
        "socket event without socket": "UsageError",
        "negative": "UsageError",
        "no event": "UsageError",
        "own again": "UsageError",
    }


def test_l7_l9_set_in_a_signal_handler_and_interrupted_waits(host, agent):
    """PostgreSQL: SetLatch is for handlers and never fails, cheap where it is set; an interrupted
    wait goes on with the time that is left. So here."""
    ended = host.run(agent, "set_in_handler")
    assert ended.facts["code"] == 0, ended.facts
    assert host.said(ended.slot) == [
        {"why": ["LATCH_SET"], "calls": 1},
        {"why": ["TIMEOUT"], "interrupted": True, "full": True},
    ]


def test_l1_l3_set_before_the_worker_waits_is_kept(host, agent, eventually):
    """PostgreSQL: set before the wait, it returns at once, so a loop that resets, looks and waits
    loses nothing. So here, from another process."""
    order = host.order("late_waiter")
    agent.give(order)
    agent.expect(Forked)
    for _ in range(3):
        agent.set_latch(order.token)
    open(host.folder / "go", "w").close()
    ended = agent.expect(Ended, order.token)
    assert host.said(ended.slot) == [{"why": ["LATCH_SET"]}, {"why": ["TIMEOUT"]}]


def test_n12_postmaster_death_is_told_through_the_channel(host, agent):
    forked = host.begin(agent, "postmaster_death")
    end = agent.channel(forked.token)
    end.send(channel.encode({"op": "postmaster", "alive": False}))
    ended = agent.expect(Ended, forked.token)
    assert host.said(ended.slot)[1:] == [{"why": ["POSTMASTER_DEATH"]}]
    assert ended.facts["code"] == 1  # EXIT_ON_PM_DEATH
    end.close()


def test_ready_stays_in_the_channel_until_somebody_takes_it(empty_host):
    host = empty_host.start()
    agent = host.agent()
    forked = host.begin(agent, "say_ready")
    agent.close()
    second = host.agent()
    end = second.channel(forked.token)
    data = end.recv(1000, socket.MSG_PEEK)
    assert json.loads(data) == {"op": "ready", "id": 1}
    assert end.recv(1000) == data
    end.setblocking(False)
    with pytest.raises(BlockingIOError):
        end.recv(1000)  # said twice, sent once
    end.close()


def test_requests_and_replies(host, agent):
    order = host.order("ask")
    agent.give(order)
    agent.expect(Forked)
    end = agent.channel(order.token)
    for _ in range(3):
        message = channel.decode(end.recv(100_000))
        number = message.pop("id")
        end.send(channel.encode({"op": "reply", "id": number + 1000}))  # nobody asked for it
        end.send(b"nonsense")
        if message["op"] == "echo":
            end.send(channel.encode({"op": "reply", "id": number, "got": message}))
        elif message["op"] == "refuse":
            error = {"code": "not_permitted", "message": "no", "hint": "ask for it"}
            end.send(channel.encode({"op": "reply", "id": number, "error": error}))
    ended = agent.expect(Ended, order.token)
    end.close()
    assert ended.facts["code"] == 0, ended.facts
    said = host.log_path(ended.slot).read_text().splitlines()
    assert json.loads(said[0]) == {
        "reply": repr(
            {"op": "reply", "id": 0, "got": {"op": "echo", "text": "hi", "data": b"\0\xff"}}
        )
    }
    assert json.loads(said[1]) == {"error": "NotPermitted", "text": "no (ask for it)"}
    assert json.loads(said[2])["error"] == "TimedOut"
    assert json.loads(said[3]) == {"kept": 0}


def test_channel_that_nobody_reads(host, agent):
    ended = host.run(agent, "flood_channel")
    assert ended.facts["code"] == 0, ended.facts
    assert host.said(ended.slot)[0]["error"] == "Unreachable"
    assert host.said(ended.slot)[0]["sent"] > 10


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"1",
        b'{"id":1}',
        b'{"op":1}',
        b"\xff",
        b'{"op":"x","d":{"$bytes":"!"}}',
        b"[" * 100_000,
    ],
)
def test_bad_messages(data):
    with pytest.raises(BadFrame):
        channel.decode(data)


@pytest.mark.parametrize(
    "message",
    [{"op": "x", "v": object()}, {"op": "x", "v": float("nan")}, {"op": "x", "v": "y" * 200_000}],
)
def test_messages_that_cannot_be_sent(message):
    with pytest.raises(BadFrame):
        channel.encode(message)


def test_greatest_message_passes():
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, channel.SOCKET_BYTES)
    room = limits.channel_frame_bytes_max - len(channel.encode({"op": "x", "v": ""}))
    data = channel.encode({"op": "x", "v": "y" * room})
    assert a.send(data) == limits.channel_frame_bytes_max
    assert b.recv(channel.SOCKET_BYTES) == data
    a.close()
    b.close()


def test_latch_without_a_worker():
    latch = Latch()
    for call in (latch.set, latch.reset, latch.is_set, latch.wait):
        with pytest.raises(UsageError, match="there is no latch in this process"):
            call()


def test_l2_latch_owned_by_this_process():
    """PostgreSQL: one owner. So here."""
    latch = Latch()
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    latch.own(fd)
    latch.set()
    assert latch.wait(LATCH_SET | POSTMASTER_DEATH, timeout=0) == {LATCH_SET}
    os.eventfd_write(fd, 2**64 - 2 - 1)  # full: it is set, and set() does not mind
    latch.set()
    latch.reset()
    assert not latch.is_set()
    os.close(fd)
