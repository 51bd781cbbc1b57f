"""Cases: bad frames. Each costs its sender the session, and nobody else anything.

Owns: one case for each way in which bytes can be wrong. Must not know: what good frames lead to.
Invariant: a second session, open all the time, answers after each bad frame, and so does a new one.
"""

import os
from collections.abc import Callable
from typing import Any, Final

import msgpack

from posthouse_testing.conformance import wire
from posthouse_testing.conformance.kit import Kit, case, expect
from posthouse_testing.conformance.sessions import stale, works
from posthouse_testing.conformance.wire import Peer, assembled, pack

__all__ = ["BAD_FRAMES"]

Bytes = Callable[[Peer], bytes]


def good(peer: Peer) -> bytes:
    """What would be the next message if nothing were wrong with it."""
    return asking(peer)


def asking(peer: Peer, kind: int = wire.LIST_HOSTS, **fields: Any) -> bytes:
    return peer.frame(kind, {"request": os.urandom(16), **fields}, 1)


def with_body(peer: Peer, body: bytes) -> bytes:
    """LIST_HOSTS with a body that is packed already."""
    return assembled(wire.LIST_HOSTS, peer.session, peer.epoch, 1, 0, body)


def with_field(peer: Peer, field: bytes, value: bytes) -> bytes:
    """LIST_HOSTS with one more field, packed already."""
    return with_body(peer, b"\x82" + pack("request") + pack(os.urandom(16)) + field + value)


def of(*values: Any) -> bytes:
    return pack(list(values))


def nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\xc0"


def twice(peer: Peer) -> bytes:
    pair = pack("request") + pack(os.urandom(16))
    return with_body(peer, b"\x82" + pair + pair)


X: Final = pack("x")  # an unknown field: it is ignored only if it is well-formed

BAD_FRAMES: Final[tuple[tuple[str, str, Bytes], ...]] = (
    ("empty", "no bytes at all", lambda _: b""),
    ("http", "bytes that are no MessagePack", lambda _: b"GET / HTTP/1.1\r\n\r\n"),
    ("reserved", "the byte that MessagePack never uses", lambda _: b"\xc1"),
    ("truncated", "a frame without its last byte", lambda p: good(p)[:-1]),
    ("trailing", "bytes after the frame", lambda p: good(p) + b"\x00"),
    ("map", "a map in the place of the array", lambda _: pack({"kind": 1})),
    (
        "five", "an array of five",
        lambda p: of(wire.LIST_HOSTS, p.session, p.epoch, 1, {"request": bytes(16)}),
    ),
    (
        "seven", "an array of seven",
        lambda p: of(wire.LIST_HOSTS, p.session, p.epoch, 1, 0, {"request": bytes(16)}, 0),
    ),
    ("body-array", "a body that is an array", lambda p: with_body(p, b"\x90")),
    ("body-nil", "a body that is nil", lambda p: with_body(p, b"\xc0")),
    (
        "session-short", "a session of 15 bytes",
        lambda p: of(wire.ACK, p.session[:15], p.epoch, 0, 0, {}),
    ),
    (
        "session-text", "a session that is text",
        lambda p: of(wire.ACK, "s" * 16, p.epoch, 0, 0, {}),
    ),
    (
        "envelope-bool", "a boolean for the sequence",
        lambda p: of(wire.LIST_HOSTS, p.session, p.epoch, True, 0, {"request": bytes(16)}),
    ),
    (
        "envelope-negative", "a negative acknowledgement",
        lambda p: of(wire.ACK, p.session, p.epoch, 0, -1, {}),
    ),
    (
        "envelope-2^63", "2^63 for the sequence",
        lambda p: of(wire.LIST_HOSTS, p.session, p.epoch, 2**63, 0, {"request": bytes(16)}),
    ),
    ("bool", "a boolean for an integer", lambda p: p.frame(wire.RENEW, {"stamp": True})),
    ("integer", "an integer for a boolean", lambda p: asking(p, wire.LIST_WORKERS, retired=1)),
    ("float", "a float for an integer", lambda p: p.frame(wire.RENEW, {"stamp": 1.0})),
    ("negative", "a negative integer", lambda p: p.frame(wire.RENEW, {"stamp": -1})),
    ("2^63", "the integer 2^63", lambda p: p.frame(wire.RENEW, {"stamp": 2**63})),
    ("nil", "nil where the type does not say so", lambda p: p.frame(wire.RENEW, {"stamp": None})),
    ("missing", "a field without a default is absent", lambda p: p.frame(wire.RENEW, {})),
    ("range", "an integer beyond its range", lambda p: asking(p, limit=257)),
    (
        "text-for-bytes", "text where bytes belong",
        lambda p: p.frame(wire.LIST_HOSTS, {"request": "r" * 16}, 1),
    ),
    ("bytes-for-text", "bytes where text belongs", lambda p: asking(p, after=b"b")),
    (
        "bytes-length", "a request id of 15 bytes",
        lambda p: p.frame(wire.LIST_HOSTS, {"request": bytes(15)}, 1),
    ),
    (
        "utf-8", "text that is not UTF-8",
        lambda p: with_field(p, pack("after"), b"\xa2\xc3\x28"),
    ),
    (
        "string", "a string longer than its field allows",
        lambda p: asking(p, wire.GET_STATUS, ref="r" * 161),
    ),
    (
        "extension", "an extension type",
        lambda p: with_field(p, X, pack(msgpack.ExtType(1, b"abc"))),
    ),
    (
        "timestamp", "MessagePack's timestamp",
        lambda p: with_field(p, X, b"\xd6\xff" + bytes(4)),
    ),
    ("key-twice", "a key that comes twice", twice),
    ("key-integer", "a key that is no text", lambda p: with_field(p, pack(1), pack(1))),
    ("deep", "nested deeper than 16", lambda p: with_field(p, X, nested(40))),
    ("deep-500", "nested 500 deep", lambda p: with_field(p, X, nested(500))),
    ("array", "an array of 4097 items", lambda p: with_field(p, X, pack([0] * 4097))),
    (
        "array-huge", "an array that says it has 2^32-1 items",
        lambda p: with_field(p, X, b"\xdd\xff\xff\xff\xff"),
    ),
    (
        "map-keys", "a map of 257 keys",
        lambda p: with_field(p, X, pack({str(n): n for n in range(257)})),
    ),
    ("master-kind", "a kind that only a master sends", lambda p: p.frame(wire.DONE, {
        "request": bytes(16)}, 1)),
    (
        "agent-kind", "an agent's message at the clients' endpoint",
        lambda p: p.frame(wire.INVENTORY, {"page": 0, "last": True}, 1),
    ),
)  # fmt: skip


def enter(name: str, what: str, made: Bytes) -> None:
    @case(f"bad-{name}", "Frames", f"Bad frame: {what}")
    def bad(kit: Kit) -> None:
        witness, peer = kit.client(), kit.client()
        session, epoch = peer.session, peer.epoch
        peer.renewing = False
        peer.put(made(peer))
        peer.ended("bad_frame")
        stale(peer, pack([wire.RENEW, session, epoch, 0, 0, {"stamp": 1}]), session, epoch)
        works(witness)
        peer.open()
        works(peer)


for row in BAD_FRAMES:
    enter(*row)


@case("bad-two-parts", "Sockets", "A message of two parts is a bad frame")
def two_parts(kit: Kit) -> None:
    peer = kit.client()
    peer.put(b"", peer.frame(wire.ACK, {}))
    peer.ended("bad_frame")
    peer.open()
    works(peer)


@case("bad-large", "Frames", "A frame above 262144 bytes costs the connection, and no more")
def large(kit: Kit) -> None:
    witness, peer = kit.client(), kit.client()
    peer.put(asking(peer, x=bytes(262145)))
    kit.wires.idle(0.1)
    answered = [frame for frame in peer.arrived if frame.kind == wire.HOSTS_PAGE]
    works(witness)
    peer.open()
    works(peer)
    expect(not answered, "no answer", answered)
