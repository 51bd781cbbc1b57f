"""Cases: what operators ask of a host, and what its workers ask through it.

Owns: the cases of DRAIN, RELOAD_RUNTIMES, GET_STACKS, GET_USAGE, WORKER_ASKS and NOTIFY. Must not
know: how a host carries them out. Invariant: what a host tells about a request reaches whoever
asked.
"""

import os
from hashlib import blake2b
from typing import Any

import msgpack

from posthouse_testing.conformance import wire
from posthouse_testing.conformance.hosts import in_list
from posthouse_testing.conformance.kit import Host, Kit, case, expect, handle_text
from posthouse_testing.conformance.workers import no_start

__all__: list[str] = []

ELSE = "Everything else"
REQUESTS = "Requests"


@case("drain", ELSE, "DRAIN keeps starts from a host until it is ended", host=True)
def drain(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    told = client.ask(wire.DRAIN, wire.DRAINED, host=host.name)
    expect(told["changed"] is True, "changed", told)
    try:
        kit.register(client)
        no_start(kit)
        again = client.ask(wire.DRAIN, wire.DRAINED, host=host.name)
        expect(again["changed"] is False, "not changed again", again)
    finally:
        client.ask(wire.DRAIN, wire.DRAINED, host=host.name, on=False)
    host.start()
    expect(not in_list(client, host.name).get("draining", False), "no drain", host.name)


@case("drain-pinned", ELSE, "A drain leaves pinned workers running unless forced", host=True)
def drain_pinned(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client)
    token = host.start()["token"]
    try:
        told = client.ask(wire.DRAIN, wire.DRAINED, host=host.name)
        got = (told.get("stopped", 0), told.get("left_count", 0), told.get("left", []))
        expect(got == (0, 1, [made["name"]]), "left: the worker", told)
        told = client.ask(wire.DRAIN, wire.DRAINED, host=host.name, force=True)
        expect(told.get("stopped", 0) == 1, "stopped: 1", told)
        stop = host.stopped(token, "drain")
        host.exit(token, stop["reason"], cause="exited", code=0)
        no_start(kit)
    finally:
        client.ask(wire.DRAIN, wire.DRAINED, host=host.name, on=False)
    host.start()


@case("reload", ELSE, "RELOAD_RUNTIMES is RENEW_RUNTIMES to the host, once an id", host=True)
def reload(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    request, runtime = os.urandom(16), "conformance"
    for _ in range(2):
        client.ask(wire.RELOAD_RUNTIMES, wire.DONE, request, host=host.name, runtime=runtime)
    order = host.peer.next(wire.RENEW_RUNTIMES)
    expect(order.get("runtime", "") == runtime, f"runtime {runtime}", order)
    client.ask(wire.RELOAD_RUNTIMES, wire.DONE, host=host.name)
    order = host.peer.next(wire.RENEW_RUNTIMES)
    expect(order.get("runtime", "") == "", "the second one is of all runtimes", order)


@case("reload-unknown", ELSE, "RELOAD_RUNTIMES of what is not there is FAILED", host=True)
def reload_unknown(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    client.ask(wire.RELOAD_RUNTIMES, wire.FAILED, host=host.name, runtime="no-such")
    client.ask(wire.RELOAD_RUNTIMES, wire.FAILED, host="no-such-host")
    kit.wires.idle(0.1)
    expect(not host.peer.inbox, "no message to the host", list(host.peer.inbox))


@case("stacks", REQUESTS, "GET_STACKS is DUMP_STACKS to the worker's host", host=True)
def stacks(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client)
    token = host.start()["token"]
    for text, error in (("Thread 1: idle", ""), ("", "it is a zombie")):
        request = os.urandom(16)
        client.send(wire.GET_STACKS, request=request, ref=made["ref"])
        order = host.peer.next(wire.DUMP_STACKS)
        expect(order["token"] == token, f"DUMP_STACKS of {token}", order)
        host.peer.send(wire.HOST_TOLD, read=order["read"], text=text, error=error)
        if text:
            told = client.answer(wire.STACKS, request)
            expect((told["host"], told["text"]) == (host.name, text), "the host's text", told)
        else:
            told = client.answer(wire.FAILED, request)
            expect(error in told["message"], "the host's reason", told)


@case("usage", REQUESTS, "GET_USAGE is MEASURE to the host, page by page", host=True)
def usage(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    kit.register(client)
    worker = host.start()
    names = ("slot", "generation", "token")
    entry = {n: worker[n] for n in names} | {"pid": 1234, "rss_bytes": 5_000_000, "threads": 3}
    request = os.urandom(16)
    client.send(wire.GET_USAGE, request=request, host=host.name, after=7, limit=1)
    order = host.peer.next(wire.MEASURE)
    expect((order.get("after"), order.get("limit")) == (7, 1), "after 7, limit 1", order)
    host.peer.send(
        wire.HOST_TOLD,
        read=order["read"],
        host={"cpus": 4, "memory_bytes": 8_000_000_000},
        workers=[entry],
        more=True,
    )
    told = client.answer(wire.USAGE, request)
    got = (told["use"]["cpus"], [one["pid"] for one in told["workers"]], told["more"])
    expect(got == (4, [1234], True), "what the host told", told)


@case("usage-gone", REQUESTS, "What a host is asked when it is away is FAILED", host=True)
def usage_gone(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    name = host.name
    host.peer.leave()
    kit.wires.wait("a host that is not reachable", lambda: not in_list(client, name)["reachable"])
    client.ask(wire.GET_USAGE, wire.FAILED, host=name)


def asks(host: Host, worker: dict[str, Any], call: int, kind: int, **body: Any) -> dict[str, Any]:
    """WORKER_ASKS and the answer to it, its body unpacked under "answer"."""
    host.peer.send(
        wire.WORKER_ASKS,
        **{name: worker[name] for name in ("slot", "generation", "token")},
        call=call,
        kind=kind,
        body=msgpack.packb(body),
    )
    told: dict[str, Any] = host.peer.next(wire.WORKER_ANSWER)
    expect((told["token"], told["call"]) == (worker["token"], call), f"answer to {call}", told)
    return {**told, "answer": msgpack.unpackb(told["body"])}


def _remember(kit: Kit, answer: dict[str, Any]) -> str:
    """What a worker has registered is the case's, too: the kit terminates it."""
    kit.wires.handles.append(answer["handle"])
    return handle_text(answer["handle"])


@case("worker-asks", ELSE, "A worker registers through its host, once an id", host=True)
def worker_asks(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    kit.register(client)
    worker = host.start()
    request, spec = os.urandom(16), kit.spec(labels=["posthouse-conformance/nowhere"])
    first = asks(host, worker, 1, wire.REGISTER, request=request, spec=spec)
    expect(first["kind"] == wire.REGISTERED, "REGISTERED", first)
    ref = _remember(kit, first["answer"])
    again = asks(host, worker, 2, wire.REGISTER, request=request, spec=spec)
    expect(again["answer"]["handle"] == first["answer"]["handle"], "the same handle", again)
    status = asks(host, worker, 3, wire.GET_STATUS, request=os.urandom(16), ref=ref)
    expect(status["kind"] == wire.STATUS_REPLY, "STATUS_REPLY", status)


@case("worker-asks-stale", ELSE, "Nobody asks in the name of a process that is gone", host=True)
def worker_asks_stale(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    kit.register(client)
    worker = host.start()
    stale = {**worker, "token": worker["token"] + 1_000_000}
    spec = kit.spec(labels=["posthouse-conformance/nowhere"])
    told = asks(host, stale, 1, wire.REGISTER, request=os.urandom(16), spec=spec)
    if told["kind"] == wire.REGISTERED:
        _remember(kit, told["answer"])
    expect(told["kind"] == wire.FAILED, "FAILED", told)


def _word(host: Host, key: bytes) -> dict[str, Any]:
    """A Registrant, with its mark."""
    said = f"{host.name}\nboot-1\n4242\n99".encode()
    mark = blake2b(said, key=key, digest_size=16).digest()
    return {"host": host.name, "boot_id": "boot-1", "pid": 4242, "pid_start": 99, "mark": mark}


@case("notify", ELSE, "A process with its agent's word hears of each start and end", host=True)
def notify(kit: Kit) -> None:
    host, client, key = kit.apart(), kit.client(), os.urandom(32)
    host.join(notify_key=key)
    word, spec = _word(host, key), kit.spec(notify=True)
    kit.wires.handles.append(
        client.ask(wire.REGISTER, wire.REGISTERED, spec=spec, registrant=word)["handle"]
    )
    process = {name: word[name] for name in ("boot_id", "pid", "pid_start")}
    worker = host.start()
    expect(host.peer.next(wire.NOTIFY) == process, f"NOTIFY of {process}", "another")
    host.exit(worker["token"], cause="exited", code=0)
    for row in ("exited", "unregistered"):
        expect(host.peer.next(wire.NOTIFY) == process, f"NOTIFY of {process}: {row}", "another")


@case("notify-forged", ELSE, "No process is notified on anybody else's word", host=True)
def notify_forged(kit: Kit) -> None:
    host, client, key = kit.apart(), kit.client(), os.urandom(32)
    host.join(notify_key=key)
    spec = kit.spec(notify=True)
    for registrant in (
        _word(host, os.urandom(32)),
        {**_word(host, key), "pid": 1},
        {**_word(host, key), "boot_id": "boot-0"},
        None,
    ):
        told = client.ask(wire.REGISTER, wire.FAILED, spec=spec, registrant=registrant)
        expect(told["code"] == "refused", "refused", told)
