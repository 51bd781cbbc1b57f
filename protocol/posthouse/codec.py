"""bytes <-> envelopes. The only decoder of frames from the network.

Owns: the frame format and every limit on it. Must not know: sessions, sockets.
Invariant: decode() returns a fully typed envelope within all limits or raises BadFrame; it never
raises anything else and never allocates more than a small multiple of the frame.

A frame is one msgpack array: [kind, session, epoch, sequence, acknowledged, body]. `body` is a map
from field name to value; absent fields have their defaults, unknown fields are ignored.
"""

from typing import Any, NoReturn

import msgpack
import msgspec

from posthouse import limits
from posthouse.errors import BadFrame, InternalError
from posthouse.messages import KIND_OF, KINDS, Message

__all__ = ["NO_SESSION", "Envelope", "decode", "decode_body", "encode", "encode_body", "frame"]

NO_SESSION = bytes(limits.session_bytes)


class Envelope(msgspec.Struct, frozen=True):
    """One frame. `sequence` 0: outside the sequence. `acknowledged`: every message of the session
    up to this number has been received and, by a master, made durable. A `body` of None stands
    for a kind that this version does not know; `kind` then tells its number."""

    session: bytes
    epoch: int
    sequence: int
    acknowledged: int
    body: Message | None
    kind: int = 0


_encoder = msgspec.msgpack.Encoder()


def encode_body(message: Message) -> bytes:
    """The map of a message, packed once: a link keeps it and may send it several times."""
    return _encoder.encode(message)


def frame(
    kind: int, session: bytes, epoch: int, sequence: int, acknowledged: int, body: bytes
) -> bytes:
    """A frame around a packed body. Raises InternalError if nobody would accept it: libzmq would
    break the peer's connection over it, again at each repetition."""
    if len(body) > limits.frame_body_bytes_max:
        raise InternalError(
            f"{KINDS[kind].__name__} of {len(body)} bytes exceeds {limits.frame_body_bytes_max}"
        )
    return _encoder.encode((kind, session, epoch, sequence, acknowledged, msgspec.Raw(body)))


def encode(envelope: Envelope) -> bytes:
    """The frame of an envelope."""
    assert envelope.body is not None
    return frame(
        KIND_OF[type(envelope.body)],
        envelope.session,
        envelope.epoch,
        envelope.sequence,
        envelope.acknowledged,
        encode_body(envelope.body),
    )


def decode(data: bytes | memoryview, bytes_max: int = limits.client_frame_bytes_max) -> Envelope:
    """The envelope of a frame. Raises BadFrame, which costs the sender its session."""
    if len(data) > bytes_max:
        raise BadFrame(f"frame of {len(data)} bytes exceeds {bytes_max}")
    try:
        parts = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_unique_keys,
            ext_hook=_no_ext,
            max_array_len=limits.array_items_max,
            max_map_len=limits.map_items_max,
            max_str_len=bytes_max,
            max_bin_len=bytes_max,
            max_ext_len=0,
        )
    except BadFrame:
        raise
    except Exception as error:  # noqa: BLE001 - msgpack raises a dozen unrelated classes
        raise BadFrame(f"not msgpack within limits: {type(error).__name__}: {error}") from None
    return _envelope(parts)


def decode_body(kind: int, body: bytes) -> Message | None:
    """The message of a map that travelled inside another message, by the same rules. Raises
    BadFrame; None for a kind that is not known here."""
    return decode(frame(kind, NO_SESSION, 0, 0, 0, body)).body


def _envelope(parts: Any) -> Envelope:
    if type(parts) is not list or len(parts) != 6:
        raise BadFrame("frame is not [kind, session, epoch, sequence, acknowledged, body]")
    kind, session, epoch, sequence, acknowledged, body = parts
    if type(session) is not bytes or len(session) != limits.session_bytes:
        raise BadFrame(f"session is not {limits.session_bytes} bytes")
    for name, number in (
        ("kind", kind),
        ("epoch", epoch),
        ("sequence", sequence),
        ("acknowledged", acknowledged),
    ):
        if type(number) is not int or not 0 <= number <= limits.int_max:
            raise BadFrame(f"{name} is not an integer from 0 to 2^63-1")
    if type(body) is not dict:
        raise BadFrame("body is not a map")
    _check_depth(body)
    cls = KINDS.get(kind)
    if cls is None:
        return Envelope(session, epoch, sequence, acknowledged, None, kind)
    try:
        message = msgspec.convert(body, cls, builtin_types=(bytes,))
    except (msgspec.ValidationError, ValueError, OverflowError) as error:
        raise BadFrame(f"{cls.__name__}: {error}") from None
    return Envelope(session, epoch, sequence, acknowledged, message, kind)


def _check_depth(body: dict[str, Any]) -> None:
    level: list[Any] = [body]
    for _ in range(limits.frame_depth_max):
        deeper: list[Any] = []
        for item in level:
            values = item.values() if type(item) is dict else item
            deeper += [value for value in values if type(value) is dict or type(value) is list]
        if not deeper:
            return
        level = deeper
    raise BadFrame(f"nested deeper than {limits.frame_depth_max}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadFrame("a map has a key twice")
    for key in found:
        if type(key) is not str:
            raise BadFrame("a map has a key that is no text")
    return found


def _no_ext(code: int, _data: bytes) -> NoReturn:
    raise BadFrame(f"extension type {code} is not used")
