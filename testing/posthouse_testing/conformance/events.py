"""Cases: following the log by cursor and credit.

Owns: the cases of subscriptions. Must not know: what the rows say. Invariant: rows are counted on
the side of the reader.
"""

from typing import Any

from posthouse_testing.conformance import wire
from posthouse_testing.conformance.kit import Kit, case, expect
from posthouse_testing.conformance.wire import Peer
from posthouse_testing.conformance.workers import FAILED_1

__all__: list[str] = []

ROWS = "Following the log"
FIRST = ("registered", "starting", "started")


def place(row: dict[str, Any]) -> dict[str, int]:
    return {"timeline": row["timeline"], "sequence": row["sequence"]}


def subscribe(peer: Peer, number: int, ref: str, credit: int, **after: Any) -> dict[str, Any]:
    return peer.ask(
        wire.SUBSCRIBE, wire.SUBSCRIBED, subscription=number, ref=ref, credit=credit, **after
    )


def count(peer: Peer, number: int = 1) -> int:
    """Rows of a subscription that came in this session."""
    pages = {frame.sequence: frame.body for frame in peer.arrived if frame.kind == wire.EVENTS}
    return sum(len(body["events"]) for body in pages.values() if body["subscription"] == number)


@case("events-gapless", ROWS, "All rows after a cursor come in order, without gaps", host=True)
def gapless(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client)
    before = {"timeline": made["timeline"], "sequence": made["sequence"] - 1}
    subscribe(client, 1, "", 4096, **before)
    token = host.start()["token"]
    for _ in range(3):
        host.exit(token, **FAILED_1)
        token = host.start()["token"]
    last = kit.status(client, made["ref"])["sequence"]
    rows: list[dict[str, Any]] = []
    while not rows or rows[-1]["sequence"] < last:
        page = client.next(wire.EVENTS)
        rows += page["events"]
        told = page["sequence"]
        expect(not rows or told >= rows[-1]["sequence"], "a cursor not before the rows", page)
    got = [row["sequence"] for row in rows]
    wanted = list(range(made["sequence"], made["sequence"] + len(rows)))
    expect(got == wanted, f"{wanted[0]} to {wanted[-1]} without gaps", got)


@case("events-once", ROWS, "One worker's rows come in order, each once", host=True)
def once(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client)
    kit.follow(client, made["ref"])
    host.exit(host.start()["token"], **FAILED_1)
    host.start()
    rows = kit.rows(client, *FIRST, "exited", "starting", "started")
    got = [row["sequence"] for row in rows]
    expect(got == sorted(set(got)), "rising places", got)
    handles = {(row["slot"], row["generation"]) for row in rows}
    wanted = {(made["handle"]["slot"], made["handle"]["generation"])}
    expect(handles == wanted, f"rows of {wanted}", handles)


@case(
    "events-terminal", ROWS, "Each starting has one terminal row, none before its start", host=True
)
def terminal(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client)
    order = host.ordered()
    identity = {n: order[n] for n in ("slot", "generation", "incarnation", "token")}
    host.peer.send(wire.START_FAILED, **identity, reason="no")
    host.peer.settled()
    for _ in range(2):
        host.exit(host.start()["token"], **FAILED_1)
    # An exit without a STARTED before it: the row is there all the same.
    order = host.ordered()
    host.running[order["token"]] = dict(order)
    host.exit(order["token"], pid=77, **FAILED_1)
    kit.follow(client, made["ref"])
    rows: list[dict[str, Any]] = []
    while not any(row["kind"] == "exited" and row["incarnation"] == 4 for row in rows):
        rows += client.next(wire.EVENTS)["events"]
    for number in range(1, 5):
        kinds = [row["kind"] for row in rows if row.get("incarnation") == number]
        wanted = ["starting", "start_failed"] if number == 1 else ["starting", "started", "exited"]
        expect(kinds == wanted, f"incarnation {number}: {wanted}", kinds)


@case("events-credit", ROWS, "No more rows than credit, and none is lost", host=True)
def credit(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client)
    host.start()
    subscribe(client, 1, made["ref"], 2)
    kit.rows(client, *FIRST[:2])
    kit.wires.idle(0.15)
    expect(count(client) == 2, "2 rows for 2 credits", count(client))
    client.send(wire.CREDIT, subscription=1, credit=1)
    kit.rows(client, FIRST[2])
    kit.wires.idle(0.1)
    expect(count(client) == 3, "3 rows for 3 credits", count(client))


@case("events-cursor", ROWS, "After a cursor, in a new session, only what is later", host=True)
def cursor(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client)
    host.start()
    kit.follow(client, made["ref"])
    rows = kit.rows(client, *FIRST)
    client.open()
    told = subscribe(client, 7, made["ref"], 9, **place(rows[1]))
    expect(told["sequence"] == rows[1]["sequence"], "SUBSCRIBED after the cursor", told)
    again = kit.rows(client, FIRST[2], number=7)
    expect(place(again[0]) == place(rows[2]), repr(rows[2]), again)


@case("events-new", ROWS, "Sequence -1 follows only what is new", host=True)
def new(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client)
    order = host.ordered()
    subscribe(client, 1, made["ref"], 9, sequence=-1)
    host.started(order)
    kit.rows(client, FIRST[2])


@case("events-timeline", ROWS, "A cursor of another timeline is CURSOR_TOO_OLD")
def timeline(kit: Kit) -> None:
    client = kit.client()
    made = kit.register(client)
    other = made["timeline"] + 10**6
    subscribe(client, 1, "", 9, timeline=other, sequence=made["sequence"])
    got = client.next(wire.CURSOR_TOO_OLD)
    expect(got["subscription"] == 1 and got["timeline"] == made["timeline"], "its timeline", got)
    # Nothing is missing after the place that it names.
    subscribe(client, 1, "", 9, **place(got))
    client.send(wire.UNSUBSCRIBE, subscription=1)
    client.settled()


@case("events-unsubscribe", ROWS, "After UNSUBSCRIBE no row comes", host=True)
def unsubscribe(kit: Kit) -> None:
    host, client = kit.host(), kit.client()
    made = kit.register(client)
    order = host.ordered()
    kit.follow(client, made["ref"])
    kit.rows(client, *FIRST[:2])
    client.send(wire.UNSUBSCRIBE, subscription=1)
    client.settled()
    before = count(client)
    host.started(order)
    kit.wires.idle(0.15)
    expect(count(client) == before, f"{before} rows", count(client))


@case("events-two", ROWS, "Two subscriptions of a session have credit and rows of their own")
def two(kit: Kit) -> None:
    client = kit.client()
    made = [kit.register(client) for _ in range(2)]
    for number, one in enumerate(made):
        subscribe(client, number, one["ref"], 1)
    kit.wires.wait("a row of each", lambda: count(client, 0) and count(client, 1))
    kit.wires.idle(0.1)
    got = (count(client, 0), count(client, 1))
    expect(got == (1, 1), "one row each", got)
