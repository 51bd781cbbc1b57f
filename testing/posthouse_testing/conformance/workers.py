"""Cases: what becomes of a registration on a host, from START to the last exit.

Owns: the cases of statuses, exits, restarts, stops and holds. Must not know: inventories.
Invariant: the host is the kit's own and only says that it has processes, so exits are as the case
wants them.
"""

import os
import time
from typing import Any, Final

from posthouse_testing.conformance import wire
from posthouse_testing.conformance.kit import Kit, case, expect
from posthouse_testing.conformance.requests import failed

__all__: list[str] = []

BECOMES = "Registering, and what becomes of it"
ROWS = "Following the log"
CATALOGUE = "Messages"
KILLED: Final[dict[str, Any]] = {"cause": "signaled", "signal": 9}
FAILED_1: Final[dict[str, Any]] = {"cause": "exited", "code": 1}
ENDED_0: Final[dict[str, Any]] = {"cause": "exited", "code": 0}
EARLY_S = 0.02  # clocks of two processes, and the time of a frame


def no_start(kit: Kit, span_s: float = 0.15) -> None:
    """Nothing is ordered for a while."""
    assert kit.host_now is not None
    kit.wires.idle(span_s)
    inbox = list(kit.host_now.peer.inbox)
    expect(not inbox, "no order to the host", inbox)


def final(status: dict[str, Any]) -> tuple[str, bool]:
    return status["state"], status.get("final", False)


@case("life", BECOMES, "not_yet_started, started, stopped; and the rows of one life", host=True)
def life(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client)
    order = host.ordered()
    status = kit.status(client, made["ref"])
    expect(status["state"] == "not_yet_started", "not_yet_started before STARTED", status)
    host.started(order)
    status = kit.status(client, made["ref"])
    pid = host.running[order["token"]]["pid"]
    got = tuple(status.get(name) for name in ("state", "host", "pid", "incarnation", "token"))
    wanted = ("started", host.name, pid, 1, order["token"])
    expect(got == wanted, repr(wanted), status)
    host.exit(order["token"], **ENDED_0)
    status = kit.status(client, made["ref"])
    expect(final(status) == ("stopped", True), "stopped and final", status)
    expect((status.get("last_exit") or {}).get("code") == 0, "the last exit, code 0", status)
    kit.follow(client, made["ref"])
    rows = kit.rows(client, "registered", "starting", "started", "exited", "unregistered")
    expect(rows[1]["token"] == order["token"] and rows[2]["pid"] == pid, "token and pid", rows)
    expect(rows[0]["sequence"] == made["sequence"], "the place that REGISTERED told", rows[0])


@case("start", "Carrying out START", "START carries the record and the identity", host=True)
def start(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    spec = kit.spec(main_arg=["x", 1], extra=b"\xff", env={"B": "2"}, stop_grace_s=1.5)
    made = client.ask(wire.REGISTER, wire.REGISTERED, spec=spec)
    order = host.start()
    handle = {name: order[name] for name in ("registry", "slot", "generation")}
    expect(handle == made["handle"], repr(made["handle"]), order)
    got = (order["incarnation"], order["revision"])
    expect(got == (1, 1), "incarnation 1, revision 1", order)
    record = {name: order["spec"].get(name) for name in spec}
    expect(record == spec, repr(spec), order["spec"])


@case("tokens", "Tokens", "Tokens only rise, over incarnations and over workers", host=True)
def tokens(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    kit.register(client)
    seen = [host.start()["token"]]
    for number in range(2, 5):
        host.exit(seen[-1], **KILLED)
        order = host.start()  # fails unless its token is the highest so far
        expect(order["incarnation"] == number, f"incarnation {number}", order)
        seen.append(order["token"])
    kit.register(client)
    host.start()


@case("exit-0", BECOMES, "Code 0 unregisters, whatever restart_time says", host=True)
def exit_0(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client, restart_time=0.0)
    kit.follow(client, made["ref"])
    host.exit(host.start()["token"], **ENDED_0)
    *_, gone, last = kit.rows(client, "registered", "starting", "started", "exited", "unregistered")
    expect(gone.get("final", False), "an exited row that is final", (gone, last))
    no_start(kit)
    kit.register(client, name=made["name"])  # its name is free


@case("exit-1", BECOMES, "Code 1 restarts it, not sooner than restart_time", host=True)
def exit_1(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client, restart_time=0.4)
    token = host.start()["token"]
    begun_s = time.monotonic()
    host.exit(token, **FAILED_1)
    status = kit.status(client, made["ref"])
    expect(final(status) == ("stopped", False), "stopped, not final", status)
    left_s = status.get("restart_in_s")
    expect(left_s is not None and 0 <= left_s <= 0.4, "restart_in_s of at most 0.4", status)
    host.start()
    took_s = time.monotonic() - begun_s
    expect(took_s >= 0.4 - EARLY_S, "START after 0.4 s", f"START after {took_s:.3f} s")
    kit.follow(client, made["ref"])
    rows = kit.rows(client, *("registered", "starting", "started", "exited", "starting", "started"))
    got = (rows[3].get("final", False), rows[3].get("restart_in_s"), rows[3]["exit"]["code"])
    expect(got == (False, 0.4, 1), "an exited row with code 1, restart_in_s 0.4", rows[3])


@case("exit-signal", BECOMES, "A signal restarts it, and the row names the signal", host=True)
def exit_signal(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client, restart_time=0.1)
    begun_s = time.monotonic()
    host.exit(host.start()["token"], **KILLED)
    host.start()
    took_s = time.monotonic() - begun_s
    expect(took_s >= 0.1 - EARLY_S, "START after 0.1 s", f"START after {took_s:.3f} s")
    kit.follow(client, made["ref"])
    rows = kit.rows(client, *("registered", "starting", "started", "exited", "starting", "started"))
    expect(rows[3]["exit"].get("signal") == 9, "signal 9", rows[3])


@case("never-restart", BECOMES, "restart_time -1 unregisters it whatever happens", host=True)
def never_restart(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client, restart_time=-1)
    host.exit(host.start()["token"], **FAILED_1)
    status = kit.status(client, made["ref"])
    expect(final(status) == ("stopped", True), "stopped and final", status)
    no_start(kit)


@case("start-failed", "Carrying out START", "A failed start is told, and tried again", host=True)
def start_failed(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client, restart_time=0.1)
    order = host.ordered()
    identity = {n: order[n] for n in ("slot", "generation", "incarnation", "token")}
    host.peer.send(wire.START_FAILED, **identity, reason="no memory")
    host.peer.settled()
    status = kit.status(client, made["ref"])
    expect(status["state"] == "not_yet_started", "not_yet_started: it never ran", status)
    host.start()
    kit.follow(client, made["ref"])
    rows = kit.rows(client, "registered", "starting", "start_failed", "starting", "started")
    expect(rows[2]["token"] == order["token"], "the token of the attempt", rows[2])


@case("exited-twice", "Exits", "An exit that is told twice is one row", host=True)
def exited_twice(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client, restart_time=-1)
    gone = host.ended(host.start()["token"], **KILLED)
    for _ in range(2):
        host.peer.send(wire.EXITED, worker=gone)
    host.peer.settled()
    host.exits.clear()
    kit.follow(client, made["ref"])
    kit.rows(client, "registered", "starting", "started", "exited", "unregistered")
    kit.wires.idle(0.1)
    more = [frame for frame in client.inbox if frame.body.get("events")]
    expect(not more, "no further row", more)


@case("ready", "Carrying out START", "READY is a row, and stands in the status", host=True)
def ready(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client)
    order = host.start()
    identity = {n: order[n] for n in ("slot", "generation", "incarnation", "token")}
    host.peer.send(wire.READY, **identity)
    host.peer.settled()
    status = kit.status(client, made["ref"])
    expect(status.get("ready", False) is True, "ready", status)
    kit.follow(client, made["ref"])
    kit.rows(client, "registered", "starting", "started", "ready")


@case("terminate", BECOMES, "TERMINATE stops and unregisters, whatever the code", host=True)
def terminate(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    for facts in (ENDED_0, FAILED_1, KILLED):
        made = kit.register(client, stop_grace_s=2.5)
        token = host.start()["token"]
        client.ask(wire.TERMINATE, wire.DONE, ref=made["ref"])
        stop = host.stopped(token, "terminate")
        wanted = (15, 2.5)
        expect((stop["signal"], stop["grace_s"]) == wanted, "signal 15, grace_s 2.5", stop)
        status = kit.status(client, made["ref"])
        got = (status["state"], status.get("stopping"))
        expect(got == ("started", "terminate"), "started, stopping: terminate", status)
        host.exit(token, "terminate", **facts)
        status = kit.status(client, made["ref"])
        expect(final(status) == ("stopped", True), "stopped and final", status)
    no_start(kit)


@case("terminate-delay", BECOMES, "TERMINATE during the delay ends the delay for ever", host=True)
def terminate_delay(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client, restart_time=0.3)
    order = host.start()
    host.exit(order["token"], **FAILED_1)
    client.ask(wire.TERMINATE, wire.DONE, ref=made["ref"])
    host.has_none(host.stopped(order["reserved"][0], "terminate"))
    status = kit.status(client, made["ref"])
    expect(final(status) == ("stopped", True), "stopped and final", status)
    no_start(kit, 0.4)


@case(
    "terminate-row", ROWS, "A terminated life has one terminal row; unregistered is last", host=True
)
def terminate_row(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client)
    kit.follow(client, made["ref"])
    token = host.start()["token"]
    client.ask(wire.TERMINATE, wire.DONE, ref=made["ref"])
    host.stopped(token, "terminate")
    host.exit(token, "terminate", **KILLED)
    kit.rows(
        client, *("registered", "starting", "started", "stop_requested", "exited", "unregistered")
    )
    kit.wires.idle(0.1)
    more = [frame for frame in client.inbox if frame.body.get("events")]
    expect(not more, "no row after unregistered", more)


@case("stop-done", "Carrying out STOP", "STOP_DONE ends a start that never arrived", host=True)
def stop_done(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client)
    order = host.ordered()
    client.ask(wire.TERMINATE, wire.DONE, ref=made["ref"])
    stop = host.stopped(order["token"], "terminate")
    identity = {n: stop[n] for n in ("slot", "generation", "token")}
    host.peer.send(wire.STOP_DONE, **identity)
    host.peer.settled()
    status = kit.status(client, made["ref"])
    expect(status.get("final", False), "final", status)
    no_start(kit)


@case("signal", "Everything else", "SIGNAL_WORKER and LATCH_WORKER reach the token", host=True)
def signal(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client)
    token = host.start()["token"]
    client.ask(wire.SIGNAL_WORKER, wire.DONE, ref=made["ref"], signal=10)
    order = host.peer.next(wire.SIGNAL)
    expect((order["token"], order["signal"]) == (token, 10), f"signal 10 for {token}", order)
    client.ask(wire.LATCH_WORKER, wire.DONE, ref=made["ref"])
    order = host.peer.next(wire.SET_LATCH)
    expect(order["token"] == token, f"SET_LATCH for {token}", order)


@case(
    "output",
    "Registering, and what becomes of it",
    "READ_OUTPUT is READ_LOG to the host",
    host=True,
)
def output(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client)
    host.start()
    request = os.urandom(16)
    client.send(wire.READ_OUTPUT, request=request, ref=made["ref"], offset=2, limit=9)
    read = host.peer.next(wire.READ_LOG)
    expect((read["offset"], read["limit"]) == (2, 9), "offset 2, limit 9", read)
    host.peer.send(wire.LOG_CHUNK, read=read["read"], offset=2, data=b"hello", size=7)
    got = client.answer(wire.OUTPUT, request)
    facts = (got.get("host"), got.get("data"), got.get("size"))
    expect(facts == (host.name, b"hello", 7), "the host's bytes", got)


@case("hold", CATALOGUE, "HOLD stops it and keeps it, until RELEASE", host=True)
def hold(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client)
    token = host.start()["token"]
    client.ask(wire.HOLD, wire.DONE, ref=made["ref"])
    host.stopped(token, "hold")
    host.exit(token, "hold", **ENDED_0)
    status = kit.status(client, made["ref"])
    expect(final(status) == ("stopped", False), "stopped, not final", status)
    done = client.ask(wire.HOLD, wire.DONE, ref=made["ref"])
    expect(done.get("changed", True) is False, "a second HOLD without a change", done)
    no_start(kit)
    client.ask(wire.RELEASE, wire.DONE, ref=made["ref"])
    host.start()
    done = client.ask(wire.RELEASE, wire.DONE, ref=made["ref"])
    expect(done.get("changed", True) is False, "a second RELEASE without a change", done)


@case("hold-delay", CATALOGUE, "HOLD during the delay keeps it from being started", host=True)
def hold_delay(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client, restart_time=0.2)
    order = host.start()
    host.exit(order["token"], **FAILED_1)
    client.ask(wire.HOLD, wire.DONE, ref=made["ref"])
    host.has_none(host.stopped(order["reserved"][0], "hold"))
    no_start(kit, 0.3)
    failed(client, "refused", wire.RESTART, ref=made["ref"])
    client.ask(wire.RELEASE, wire.DONE, ref=made["ref"])
    host.start()


@case("restart", CATALOGUE, "RESTART starts it again without the delay", host=True)
def restart(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client, restart_time=3600.0)
    token = host.start()["token"]
    client.ask(wire.RESTART, wire.DONE, ref=made["ref"])
    host.stopped(token, "restart")
    host.exit(token, "restart", **ENDED_0)
    token = host.start()["token"]
    host.exit(token, **FAILED_1)
    client.ask(wire.RESTART, wire.DONE, ref=made["ref"])
    host.start()


@case("retry-terminate", "Requests", "A retried TERMINATE ends one life, not the next", host=True)
def retry_terminate(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client)
    request = os.urandom(16)
    first = client.ask(wire.TERMINATE, wire.DONE, request, ref=made["name"])
    order = host.ordered()
    host.stopped(order["token"], "terminate")
    host.peer.send(wire.STOP_DONE, **{n: order[n] for n in ("slot", "generation", "token")})
    host.peer.settled()
    again = kit.register(client, name=made["name"])
    host.start()
    got = client.ask(wire.TERMINATE, wire.DONE, request, ref=made["name"])
    expect(got == first, repr(first), got)
    status = kit.status(client, again["ref"])
    expect(status["state"] == "started", "the second one started still", status)
