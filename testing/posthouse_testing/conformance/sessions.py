"""Cases: how a session opens, stays and ends, and the link inside it.

Owns: the cases of "Sessions" and "The link". Must not know: registrations. Invariant: a case that
breaks a session shows that another one works afterwards, or is followed by one that does.
"""

import os

from posthouse_testing.conformance import wire
from posthouse_testing.conformance.kit import Kit, case, expect
from posthouse_testing.conformance.wire import Frame, Peer, assembled, pack

__all__: list[str] = []

OPENING = "Opening"
STAYING = "Staying: RENEW and GRANT"
ENDING = "How a session ends"
LINK = "The link"


def works(peer: Peer) -> None:
    """The session answers."""
    peer.ask(wire.LIST_HOSTS, wire.HOSTS_PAGE, limit=1)


def stale(peer: Peer, frame: bytes, session: bytes, epoch: int) -> None:
    """The frame is answered by REFUSED stale_session in an envelope that repeats these two."""
    if peer.over is not None:
        peer.session = wire.NOBODY  # so that the answer is found among the strays
    begun = len(peer.strays)
    peer.put(frame)

    def answer() -> Frame | None:
        return next((one for one in peer.strays[begun:] if one.kind == wire.REFUSED), None)

    what = "REFUSED stale_session that repeats session and epoch"
    got = peer.wires.wait(what, answer)
    same = (got.session, got.epoch) == (session, epoch)
    expect(same and got.body["code"] == "stale_session", what, got)


@case("session-welcome", OPENING, "WELCOME repeats the nonce and tells session and epoch")
def welcome(kit: Kit) -> None:
    frame = kit.stranger().greet()
    body = frame.body
    expect(frame.kind == wire.WELCOME, "WELCOME", frame)
    expect((frame.sequence, frame.acknowledged) == (0, 0), "numbers 0", frame)
    expect(len(body["session"]) == 16 and any(body["session"]), "16 bytes, not all zero", body)
    expect(
        (frame.session, frame.epoch) == (body["session"], body["epoch"]),
        "an envelope of the new session",
        frame,
    )
    expect(body["protocol"] == 0, "protocol 0", body)
    hexadecimal = len(body["registry"]) == 32 and int(body["registry"], 16) >= 0
    expect(hexadecimal and body["epoch"] >= 1, "a registry of 32 hex digits, an epoch", body)
    expect(body["principal"].startswith("client:"), "a principal client:...", body)


@case("session-new", OPENING, "Each HELLO begins another session of the same term")
def new(kit: Kit) -> None:
    one, other = kit.stranger().open(), kit.stranger().open()
    expect(one["session"] != other["session"], "two sessions", one["session"])
    for name in ("registry", "epoch", "timeline"):
        expect(one[name] == other[name], f"the same {name}", (one[name], other[name]))


@case("session-version", OPENING, "Without a version in common the answer is REFUSED protocol")
def version(kit: Kit) -> None:
    peer = kit.stranger()
    answer = peer.greet(protocol_min=2**40, protocol_max=2**63 - 1)
    refused = answer.kind == wire.REFUSED and answer.body["code"] == "protocol"
    expect(refused, "REFUSED protocol", answer)
    peer.open(protocol_min=0, protocol_max=2**40)
    works(peer)


@case("session-role", OPENING, "A role is served on its own endpoint only")
def role(kit: Kit) -> None:
    for wrong in ("agent", "master"):
        answer = kit.stranger().greet(role=wrong, host=kit.target.host)
        refused = answer.kind == wire.REFUSED and answer.body["code"] == "not_permitted"
        expect(refused, f"REFUSED not_permitted for {wrong} at the clients' endpoint", answer)


@case("session-nonce-missing", OPENING, "A HELLO without a nonce is a bad frame")
def nonce_missing(kit: Kit) -> None:
    peer = kit.stranger()
    peer.connect()
    peer.put(pack([wire.HELLO, wire.NOBODY, 0, 0, 0, {"role": "client"}]))
    got = kit.wires.wait("REFUSED bad_frame with session zero", lambda: peer.strays)[0]
    expect(
        (got.kind, got.session, got.body.get("code")) == (wire.REFUSED, wire.NOBODY, "bad_frame"),
        "REFUSED bad_frame with session zero",
        got,
    )
    peer.open()
    works(peer)


@case("session-unknown", ENDING, "A frame of an unknown session is answered REFUSED stale_session")
def unknown(kit: Kit) -> None:
    peer = kit.stranger()
    peer.connect()
    session = os.urandom(16)
    stale(peer, pack([wire.RENEW, session, 7, 0, 0, {"stamp": 1}]), session, 7)


@case("session-epoch", ENDING, "A frame of another term is stale")
def epoch(kit: Kit) -> None:
    peer = kit.client()
    later = peer.epoch + 1
    stale(peer, pack([wire.RENEW, peer.session, later, 0, 0, {"stamp": 1}]), peer.session, later)


@case(
    "session-of-another", ENDING, "A frame of another connection's session is stale, and harmless"
)
def of_another(kit: Kit) -> None:
    owner, thief = kit.client(), kit.client()
    stolen = owner.frame(wire.LIST_HOSTS, {"request": os.urandom(16)}, 1)
    stale(thief, stolen, owner.session, owner.epoch)
    works(owner)


@case("session-second-hello", ENDING, "A second HELLO on a connection ends the first session")
def second_hello(kit: Kit) -> None:
    peer = kit.client()
    old, epoch = peer.session, peer.epoch
    again = peer.greet_again()
    expect(again.kind == wire.WELCOME, "WELCOME", again)
    peer.adopt(again)
    stale(peer, pack([wire.RENEW, old, epoch, 0, 0, {"stamp": 1}]), old, epoch)
    works(peer)


@case("session-goodbye", ENDING, "After GOODBYE the session is over")
def goodbye(kit: Kit) -> None:
    peer = kit.client()
    peer.renewing = False
    peer.send(wire.GOODBYE)
    session, epoch = peer.session, peer.epoch
    peer.session = wire.NOBODY
    stale(peer, pack([wire.RENEW, session, epoch, 0, 0, {"stamp": 1}]), session, epoch)


@case("session-silence", STAYING, "A session of which nothing is heard for 2.4 seconds is over")
def silence(kit: Kit) -> None:
    peer = kit.client()
    works(peer)
    peer.renewing = peer.acknowledging = False
    kit.wires.idle(3.3)
    if peer.over is None:
        peer.put(peer.frame(wire.RENEW, {"stamp": 1}))
    peer.ended("stale_session")


@case("session-grant", STAYING, "GRANT repeats the stamp of each RENEW")
def grant(kit: Kit) -> None:
    peer = kit.client()
    peer.renewing = False
    stamps = [1, 2, 2**40, 2**63 - 1]
    for stamp in stamps:
        peer.put(peer.frame(wire.RENEW, {"stamp": stamp}))
    kit.wires.wait(f"{len(stamps)} GRANTs", lambda: len(peer.granted) >= len(stamps))
    got = [frame.body["stamp"] for frame in peer.granted]
    expect(got == stamps, f"stamps {stamps}", got)


# --- the link ---


@case("link-numbers", LINK, "Sequenced messages are numbered 1, 2, 3 in each session")
def numbers(kit: Kit) -> None:
    peer = kit.client()
    for _ in range(3):
        works(peer)
    got = [frame.sequence for frame in peer.arrived]
    expect(got == [1, 2, 3], "1, 2, 3", got)
    peer.open()
    works(peer)
    expect(peer.arrived[0].sequence == 1, "1 in a new session", peer.arrived[0])


@case("link-acknowledged", LINK, "Everything that is sent is acknowledged, unasked")
def acknowledged(kit: Kit) -> None:
    peer = kit.client()
    peer.renewing = False
    for _ in range(3):
        peer.send(wire.LIST_HOSTS, request=os.urandom(16), limit=1)
    peer.send(wire.UNKNOWN)  # its answer is unsequenced, and acknowledges nothing
    peer.settled()


@case("link-duplicate", LINK, "A frame that comes twice is taken once")
def duplicate(kit: Kit) -> None:
    peer = kit.client()
    once, other = os.urandom(16), os.urandom(16)
    frame = peer.frame(wire.LIST_HOSTS, {"request": once}, 1)
    peer.sent = 1
    for _ in range(3):
        peer.put(frame)
    peer.send(wire.LIST_WORKERS, request=other, limit=1)
    kit.wires.wait("two answers", lambda: len(peer.inbox) >= 2)
    kit.wires.idle(0.1)
    got = [answer.body["request"] for answer in peer.inbox]
    expect(sorted(got) == sorted([once, other]), "one answer to each request", got)


@case("link-gap", LINK, "A frame after a gap is not taken before the gap is filled")
def gap(kit: Kit) -> None:
    peer = kit.client()
    first, second = os.urandom(16), os.urandom(16)
    late = peer.frame(wire.LIST_WORKERS, {"request": second, "limit": 1}, 2)
    peer.sent = 2
    peer.put(late)
    kit.wires.idle(0.15)
    expect(not peer.inbox and peer.acked == 0, "no answer and no acknowledgement", peer.inbox)
    peer.put(peer.frame(wire.LIST_HOSTS, {"request": first, "limit": 1}, 1))
    peer.put(late)
    peer.answer(wire.HOSTS_PAGE, first)
    peer.answer(wire.WORKERS_PAGE, second)
    peer.settled()
    works(peer)


@case("link-repeats", LINK, "What is not acknowledged comes again with the same number")
def repeats(kit: Kit) -> None:
    peer = kit.client()
    peer.acknowledging = False
    peer.put(peer.frame(wire.LIST_HOSTS, {"request": os.urandom(16), "limit": 1}, 1))
    peer.sent = 1
    kit.wires.wait("a repetition of the answer", lambda: len(peer.arrived) >= 2)
    first, again = peer.arrived[:2]
    same = (first.sequence, first.kind, first.body) == (again.sequence, again.kind, again.body)
    expect(same, f"the same again as {first}", again)
    peer.acknowledging = True
    kit.wires.idle(0.2)
    count = len(peer.arrived)
    kit.wires.idle(1.2)
    expect(len(peer.arrived) == count, "no repetition once it is acknowledged", peer.arrived[-1])


@case("link-ack-unsent", LINK, "Acknowledging what was never sent ends the session")
def ack_unsent(kit: Kit) -> None:
    peer = kit.client()
    peer.put(peer.frame(wire.ACK, {}, 0, 99))
    peer.ended("bad_frame")
    peer.open()
    works(peer)


@case("link-number-zero", LINK, "A sequenced message with number 0 is a bad frame")
def number_zero(kit: Kit) -> None:
    peer = kit.client()
    peer.put(peer.frame(wire.LIST_HOSTS, {"request": os.urandom(16)}, 0))
    peer.ended("bad_frame")


@case("link-number-unwanted", LINK, "An unsequenced message with a number is a bad frame")
def number_unwanted(kit: Kit) -> None:
    peer = kit.client()
    peer.put(peer.frame(wire.RENEW, {"stamp": 1}, 1))
    peer.ended("bad_frame")


@case("link-unknown-kind", "Unknown kinds", "An unknown kind is acknowledged, named and harmless")
def unknown_kind(kit: Kit) -> None:
    peer = kit.client()
    peer.send(wire.UNKNOWN, anything=[1, {"x": 2}])
    got = peer.next_of(wire.UNSUPPORTED)
    expect(got.body["kind"] == wire.UNKNOWN, f"UNSUPPORTED {wire.UNKNOWN}", got)
    peer.settled()
    peer.put(peer.frame(wire.UNKNOWN + 1, {}))  # outside the sequence: ignored
    works(peer)


@case("link-unknown-fields", "Frames", "Unknown fields are ignored")
def unknown_fields(kit: Kit) -> None:
    peer = kit.client()
    peer.renewing = False
    peer.put(peer.frame(wire.RENEW, {"stamp": 5, "colour": "red", "more": {"x": [1]}}))
    peer.ask(wire.LIST_HOSTS, wire.HOSTS_PAGE, limit=1, colour="red")
    kit.wires.wait("GRANT", lambda: peer.granted)


@case("link-any-width", "Frames", "Integers, strings, arrays and maps may be of any width")
def any_width(kit: Kit) -> None:
    peer = kit.client()
    request = os.urandom(16)
    body = b"\xdf\x00\x00\x00\x02"  # map 32
    body += b"\xda\x00\x07request\xc6\x00\x00\x00\x10" + request  # str 16, bin 32
    body += b"\xdb\x00\x00\x00\x05limit\xcf" + (3).to_bytes(8, "big")  # str 32, uint 64
    numbers = b"".join(b"\xd3" + n.to_bytes(8, "big") for n in (peer.epoch, 1, 0))  # int 64
    head = b"\xdd\x00\x00\x00\x06\xcd\x00" + bytes([wire.LIST_HOSTS])  # array 32, uint 16
    peer.sent = 1
    peer.put(head + b"\xc5\x00\x10" + peer.session + numbers + body)
    expect(peer.next(wire.HOSTS_PAGE)["request"] == request, "its answer", peer.arrived)
    # And the same once more in a fixed form, as the next message.
    peer.sent = 2
    fixed = pack({"request": request, "limit": 3})
    peer.put(assembled(wire.LIST_HOSTS, peer.session, peer.epoch, 2, 1, fixed))
    peer.next(wire.HOSTS_PAGE)
