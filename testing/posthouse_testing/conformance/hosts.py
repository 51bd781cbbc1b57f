"""Cases: how a host joins, what its inventory leads to, and how it comes back.

Owns: the cases of agents' sessions. Must not know: requests beyond registering. Invariant: the host
tells the truth as the protocol asks for it, except where a case says otherwise.
"""

import os
from typing import Any

from posthouse_testing.conformance import wire
from posthouse_testing.conformance.kit import Host, Kit, case, expect
from posthouse_testing.conformance.wire import Peer
from posthouse_testing.conformance.workers import FAILED_1, KILLED, no_start

__all__: list[str] = []

OPENING = "Opening as an agent"
INVENTORY = "The inventory"
RESERVED = "Reserved tokens"
NEVER = "What a host must never say"
LIFE = ("registered", "starting", "started")


def in_list(client: Peer, name: str) -> dict[str, Any]:
    """The host's entry in LIST_HOSTS."""
    after = ""
    while True:
        page = client.ask(wire.LIST_HOSTS, wire.HOSTS_PAGE, after=after)
        for host in page["hosts"]:
            if host["name"] == name:
                return dict(host)
        expect(page.get("more", False), f"host {name} in the list", page)
        after = page["hosts"][-1]["name"]


def refused(host: Host, code: str, **hello: Any) -> None:
    answer = host.peer.greet(**hello)
    good = answer.kind == wire.REFUSED and answer.body["code"] == code
    expect(good, f"REFUSED {code}", answer)


@case("host-joins", OPENING, "A host that joins is listed as it described itself", host=True)
def joins(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    found = in_list(client, host.name)
    expect(found["reachable"] is True and found.get("slots") == 64, "reachable, 64 slots", found)
    expect(found.get("runtimes") == ["conformance"], "its runtimes", found)
    expect(found.get("boot_id") == "boot-1", "its boot", found)


@case(
    "host-leaves", "Everything else", "A host's GOODBYE says nothing about its workers", host=True
)
def leaves(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client)
    host.start()
    host.peer.leave()
    kit.wires.wait(
        "a host that is not reachable", lambda: not in_list(client, host.name)["reachable"]
    )
    status = kit.status(client, made["ref"])
    got = (status["state"], status.get("reachable", True))
    expect(got == ("started", False), "started, not reachable", status)


@case("host-grant", INVENTORY, "No GRANT before the last page of the inventory", host=True)
def grant(kit: Kit) -> None:
    peer = kit.apart().peer
    peer.open()
    peer.send(wire.INVENTORY, page=0, last=False)
    peer.settled()
    peer.put(peer.frame(wire.RENEW, {"stamp": 5}))
    kit.wires.idle(0.2)
    expect(not peer.granted, "no GRANT", peer.granted)
    peer.send(wire.INVENTORY, page=1, last=True)
    peer.settled()
    peer.put(peer.frame(wire.RENEW, {"stamp": 2**50}))
    kit.wires.wait("GRANT", lambda: [one for one in peer.granted if one.body["stamp"] == 2**50])


@case("host-waits", INVENTORY, "No START before the last page of the inventory", host=True)
def waits(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    host.peer.open()
    kit.register(client)
    host.peer.send(wire.INVENTORY, page=0, last=False)
    host.peer.settled()
    no_start(kit)
    host.peer.send(wire.INVENTORY, page=1, last=True, highest_token=host.highest_token)
    host.start()


@case("host-taken", OPENING, "Another agent with another warden is REFUSED host_taken", host=True)
def taken(kit: Kit) -> None:
    kit.host()
    warden = {"kind": "fenced", "instance": os.urandom(16).hex()}
    twin = kit.agent(agent_instance=os.urandom(16).hex(), wardens=[warden])
    answer = twin.greet()
    good = answer.kind == wire.REFUSED and answer.body["code"] == "host_taken"
    expect(good, "REFUSED host_taken", answer)


@case(
    "host-again", OPENING, "A second HELLO with the same warden ends the first session", host=True
)
def again(kit: Kit) -> None:
    host = kit.host()
    twin = kit.agent(agent_instance=os.urandom(16).hex())
    twin.open()
    twin.send(wire.INVENTORY, page=0, last=True, highest_token=host.highest_token)
    twin.settled()
    if host.peer.over is None:
        host.peer.put(host.peer.frame(wire.RENEW, {"stamp": 1}))
    kit.wires.wait("the end of the first session", lambda: host.peer.over)


@case(
    "host-registry",
    OPENING,
    "A host of another registry, of a later term, or of another master in this term is refused",
    host=True,
)
def registry(kit: Kit) -> None:
    host = kit.apart()
    refused(host, "foreign_registry", registry="f" * 32)
    welcome = kit.stranger().open()
    known = {"registry": welcome["registry"], "epoch": welcome["epoch"] + 1000}
    refused(host, "older_epoch", **known)
    known = {"registry": welcome["registry"], "epoch": welcome["epoch"], "master": "f" * 32}
    refused(host, "copied_registry", **known)


@case(
    "host-bad-frame",
    "How a session ends",
    "A client's message at the agents' endpoint is a bad frame",
    host=True,
)
def bad_frame(kit: Kit) -> None:
    host = kit.host()
    host.peer.send(wire.LIST_HOSTS, request=os.urandom(16))
    host.peer.ended("bad_frame")
    host.join()


@case("host-enumeration", "Frames", "An unknown value of an enumeration is a bad frame", host=True)
def enumeration(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    kit.register(client)
    token = host.start()["token"]
    gone = host.ended(token, "whim", **KILLED)
    host.peer.send(wire.EXITED, worker=gone)
    host.peer.ended("bad_frame")
    del host.exits[token]["stop"]
    host.join()


@case("inventory-unknown", INVENTORY, "A process that should not be is answered by STOP", host=True)
def unknown(kit: Kit) -> None:
    host = kit.host()
    token = host.highest_token = host.highest_token + 1
    host.running[token] = {
        "registry": host.peer.open()["registry"], "slot": 10**6, "generation": 1,
        "incarnation": 1, "token": token, "revision": 1, "pid": 77, "pid_start": 1,
        "started_unix_s": 1.0,
    }  # fmt: skip
    host.join()
    host.stopped(token, "unknown")
    host.exit(token, "unknown", **KILLED)


@case(
    "inventory-foreign",
    INVENTORY,
    "A process of another registry: REFUSED foreign_registry",
    host=True,
)
def foreign(kit: Kit) -> None:
    host = kit.host()
    host.peer.open()
    worker = {
        "registry": "f" * 32, "slot": 0, "generation": 1, "incarnation": 1, "token": 1,
        "revision": 1, "pid": 77, "pid_start": 1, "started_unix_s": 1.0,
    }  # fmt: skip
    host.peer.send(wire.INVENTORY, page=0, last=True, running=[worker])
    host.peer.ended("foreign_registry")
    host.join()


@case(
    "inventory-running",
    INVENTORY,
    "A process that is listed again goes on, without a row",
    host=True,
)
def running(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client)
    order = host.start()
    host.join()
    no_start(kit)
    status = kit.status(client, made["ref"])
    got = (status["state"], status.get("token"))
    expect(got == ("started", order["token"]), "started under the same token", status)
    kit.follow(client, made["ref"])
    kit.rows(client, *LIFE)


@case(
    "inventory-exit",
    INVENTORY,
    "An exit in the inventory is acknowledged and recorded once",
    host=True,
)
def exit_listed(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client, restart_time=3600.0)
    token = host.start()["token"]
    host.peer.drop()
    host.ended(token, pid=77, **FAILED_1)
    host.join()  # waits for the acknowledgement
    host.join()  # told again: as if the acknowledgement had been lost
    host.exits.clear()
    kit.follow(client, made["ref"])
    *_, row = kit.rows(client, *LIFE, "exited")
    expect((row["token"], row["exit"].get("code")) == (token, 1), f"code 1 of {token}", row)
    kit.wires.idle(0.1)
    more = [frame for frame in client.inbox if frame.body.get("events")]
    expect(not more, "no further row", more)


@case(
    "inventory-absent",
    INVENTORY,
    "A process that is not listed ended unseen: warden_died",
    host=True,
)
def absent(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client)
    host.running.pop(host.start()["token"])
    host.join()
    host.start()
    kit.follow(client, made["ref"])
    rows = kit.rows(client, *LIFE, "exited", "starting", "started")
    expect(rows[3]["exit"].get("cause") == "warden_died", "warden_died", rows[3])


@case("inventory-boot", INVENTORY, "After another boot, what ran there: host_rebooted", host=True)
def boot(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client)
    host.running.pop(host.start()["token"])
    warden = {"kind": "fenced", "instance": os.urandom(16).hex()}
    host.peer.leave()
    host.peer.hello |= {"boot_id": "boot-2", "wardens": [warden]}
    host.join()
    host.start()
    kit.follow(client, made["ref"])
    rows = kit.rows(client, *LIFE, "exited", "starting", "started")
    expect(rows[3]["exit"].get("cause") == "host_rebooted", "host_rebooted", rows[3])


@case("reserved", RESERVED, "A kept worker's next START uses the next reserved token", host=True)
def reserved(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    kit.register(client, on_partition="keep")
    first = host.start()
    tokens = first.get("reserved", [])
    expect(bool(tokens) and tokens == sorted(set(tokens)), "rising reserved tokens", tokens)
    expect(tokens[0] > first["token"], "reserved tokens above its own", first)
    host.exit(first["token"], **FAILED_1)
    second = host.start()
    got = (second["token"], second["incarnation"])
    expect(got == (tokens[0], first["incarnation"] + 1), f"token {tokens[0]}", got)
    expect(second["reserved"][:-1] == tokens[1:], "the others as they were", second["reserved"])


@case("reserved-went-on", RESERVED, "What a host did by itself is told by incarnation", host=True)
def went_on(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client, on_partition="keep")
    order = host.start()
    kit.follow(client, made["ref"])
    kit.rows(client, "registered", "starting", "started")
    next_ = order | {"token": order["reserved"][0], "incarnation": order["incarnation"] + 1}
    host.ended(order["token"], **FAILED_1)["went_on"] = True
    host.appears(next_)
    host.join()
    rows = kit.rows(client, "exited", "starting", "started")
    got = [row["incarnation"] for row in rows]
    wanted = [order["incarnation"], next_["incarnation"], next_["incarnation"]]
    expect(got == wanted, f"incarnations {wanted}", got)
    no_start(kit)


@case(
    "inventory-lost-start", INVENTORY, "A kept worker's lost START comes again as it was", host=True
)
def said_again(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client, on_partition="keep")
    lost = host.ordered()
    host.join()
    order = host.peer.next(wire.START)
    same = ("token", "incarnation", "reserved")
    expect(all(order[n] == lost[n] for n in same), "the same token", order)
    host.started(order)
    status = kit.status(client, made["ref"])
    expect(status["state"] == "started", "started", status)


@case("reserved-stop", RESERVED, "A kept worker that waits is asked for before it ends", host=True)
def asked_for(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client, on_partition="keep", restart_time=30.0)
    order = host.start()
    host.exit(order["token"], **FAILED_1)
    client.ask(wire.TERMINATE, wire.DONE, ref=made["ref"])
    stop = host.stopped(order["reserved"][0], "terminate")
    expect(not kit.status(client, made["ref"]).get("final", False), "not final yet", stop)
    host.has_none(stop)
    status = kit.status(client, made["ref"])
    expect(status.get("final", False), "final", status)
    no_start(kit)


@case("inventory-tokens", "Tokens", "Tokens go on beyond every one that a host has seen", host=True)
def tokens(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    host.highest_token += 5
    host.join()
    kit.register(client)
    host.start()  # fails unless its token is higher


@case(
    "inventory-stop",
    INVENTORY,
    "A terminate that was missed follows the inventory as STOP",
    host=True,
)
def stop(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client)
    token = host.start()["token"]
    host.peer.leave()
    client.ask(wire.TERMINATE, wire.DONE, ref=made["ref"])
    host.join()
    host.stopped(token, "terminate")
    host.exit(token, "terminate", **KILLED)
    status = kit.status(client, made["ref"])
    expect(status.get("final", False), "final", status)


def thrown_out(kit: Kit, host: Host, client: Peer, made: dict[str, Any]) -> None:
    """The session is over, nothing has changed, and the truth is taken in the next one."""
    host.peer.ended("bad_frame")
    status = kit.status(client, made["ref"])
    expect(status["state"] == "started", "nothing changed: started", status)
    host.join()
    status = kit.status(client, made["ref"])
    expect(status.get("reachable", True), "the host heard again", status)


@case("lie-exit", NEVER, "An exit with both a code and a signal is a bad frame", host=True)
def lie_exit(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client)
    token = host.start()["token"]
    worker = dict(host.running[token])
    gone = host.ended(token, **FAILED_1, signal=9)
    host.peer.send(wire.EXITED, worker=gone)
    del host.exits[token]
    host.running[token] = worker
    thrown_out(kit, host, client, made)


@case("lie-unseen", NEVER, "An end that nobody saw has no code", host=True)
def lie_unseen(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client)
    token = host.start()["token"]
    worker = dict(host.running[token])
    gone = host.ended(token, cause="warden_died", code=0)
    host.peer.send(wire.EXITED, worker=gone)
    del host.exits[token]
    host.running[token] = worker
    thrown_out(kit, host, client, made)


@case("lie-incarnation", NEVER, "A token belongs to one incarnation", host=True)
def lie_incarnation(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client)
    order = host.start()
    named = {name: order[name] for name in ("slot", "generation", "token")}
    host.peer.send(wire.READY, incarnation=order["incarnation"] + 1, **named)
    thrown_out(kit, host, client, made)


@case("lie-token", NEVER, "A token that was never drawn is a bad frame", host=True)
def lie_token(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client)
    order = host.start()
    named = {name: order[name] for name in ("slot", "generation")}
    host.peer.send(wire.STOP_DONE, token=order["token"] + 1000, **named)
    thrown_out(kit, host, client, made)


@case("lie-early", NEVER, "Before its last page a host tells nothing but inventory", host=True)
def lie_early(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client)
    order = host.start()
    named = {name: order[name] for name in ("slot", "generation", "token")}
    host.peer.leave()
    host.peer.open()
    host.peer.send(wire.STOP_DONE, **named)
    thrown_out(kit, host, client, made)


@case("lie-warden", NEVER, "A warden of an unknown kind is REFUSED bad_frame", host=True)
def lie_warden(kit: Kit) -> None:
    warden = {"kind": "whim", "instance": os.urandom(16).hex()}
    refused(kit.apart(), "bad_frame", wardens=[warden])
