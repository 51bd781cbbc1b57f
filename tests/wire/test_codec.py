"""Bytes to envelopes: every limit and every field of the catalogue, by table and by hypothesis.

What is tried for a field is derived from its declared type, so a new message is covered at once.
"""

import math
import tracemalloc
from collections.abc import Iterator
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec import inspect

from posthouse import codec, limits, messages
from posthouse.codec import NO_SESSION, Envelope, decode, encode
from posthouse.errors import BadFrame, InternalError
from posthouse.messages import KIND_OF, KINDS, Grant, Message, Register, Renew
from posthouse.states import WorkerState

SESSION = b"\x5e" * 16
REQUEST = b"\x0e" * 16


def raw(*parts: Any) -> bytes:
    packed: bytes = msgpack.packb(list(parts))
    return packed


def grant(body: Any = None, **changes: Any) -> bytes:
    """A GRANT frame with parts exchanged."""
    parts = {"kind": 5, "session": SESSION, "epoch": 1, "sequence": 0, "acknowledged": 0}
    parts |= changes
    return raw(*parts.values(), {"stamp": 7} if body is None else body)


def reason(data: bytes) -> str:
    with pytest.raises(BadFrame) as bad:
        decode(data)
    return str(bad.value)


# --- the envelope ---


def test_a_frame_is_one_array() -> None:
    message = Renew(stamp=5)
    data = encode(Envelope(SESSION, 3, 0, 9, message))
    assert msgpack.unpackb(data) == [4, SESSION, 3, 0, 9, {"stamp": 5}]
    assert decode(data) == Envelope(SESSION, 3, 0, 9, message, 4)
    assert decode(memoryview(data)) == decode(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc0",
        b"\xc1",
        b"\x96",
        b"GET / HTTP/1.1\r\n\r\n",
        raw(),
        raw(5, SESSION, 1, 0, 0),
        raw(5, SESSION, 1, 0, 0, {"stamp": 7}, 0),
        msgpack.packb({"kind": 5}),
        msgpack.packb("hello"),
        msgpack.packb(7),
    ],
)
def test_what_is_no_frame(data: bytes) -> None:
    reason(data)


@pytest.mark.parametrize("name", ["kind", "epoch", "sequence", "acknowledged"])
@pytest.mark.parametrize(
    "value", [-1, -(2**63), 2**63, 2**64 - 1, True, False, 1.0, math.nan, "1", b"1", None, [], {}]
)
def test_numbers_of_the_envelope(name: str, value: Any) -> None:
    assert reason(grant(**{name: value})) == f"{name} is not an integer from 0 to 2^63-1"


@pytest.mark.parametrize("name", ["epoch", "sequence", "acknowledged"])
@pytest.mark.parametrize("value", [0, 1, 2**63 - 1])
def test_numbers_at_their_bounds(name: str, value: int) -> None:
    assert getattr(decode(grant(**{name: value})), name) == value


@pytest.mark.parametrize("session", [b"", b"x" * 15, b"x" * 17, "x" * 16, None, 5])
def test_sessions(session: Any) -> None:
    assert reason(grant(session=session)) == "session is not 16 bytes"
    assert decode(grant(session=NO_SESSION)).session == NO_SESSION


@pytest.mark.parametrize("body", [[], "x", b"x", 1, [["stamp", 7]]])
def test_bodies(body: Any) -> None:
    assert reason(grant(body=body)) == "body is not a map"


def test_trailing_bytes() -> None:
    assert decode(grant())
    reason(grant() + b"\x00")
    reason(grant() + grant())


def test_every_truncation_is_bad() -> None:
    data = grant()
    for length in range(len(data)):
        reason(data[:length])


def test_unknown_kinds() -> None:
    for kind in (0, 9, 99, 2**63 - 1):
        assert kind not in KINDS
        assert decode(grant(kind=kind, body={"x": [1]}, sequence=4)) == Envelope(
            SESSION, 1, 4, 0, None, kind
        )
    # They are within all limits none the less.
    deep: Any = {}
    for _ in range(limits.frame_depth_max):
        deep = {"x": deep}
    reason(grant(kind=99, body=deep))


def test_unknown_fields_are_ignored() -> None:
    body = {"stamp": 7, "lease_s": 1.5, "of_a_later_version": {"a": [None, True]}}
    assert decode(grant(body=body)).body == Grant(stamp=7, lease_s=1.5)


def test_absent_fields_have_their_defaults() -> None:
    assert decode(grant()).body == Grant(stamp=7, lease_s=0.0)
    assert "lease_s" not in msgpack.unpackb(encode(decode(grant())))[5]
    assert "stamp" in reason(grant(body={}))


# --- limits ---


def test_frame_size() -> None:
    def padded(size: int) -> bytes:
        pad = size - len(grant(body={"stamp": 7, "pad": b"x" * 70_000})) + 70_000
        return grant(body={"stamp": 7, "pad": b"x" * pad})

    assert len(padded(limits.client_frame_bytes_max)) == limits.client_frame_bytes_max
    decode(padded(limits.client_frame_bytes_max))
    assert "exceeds 262144" in reason(padded(limits.client_frame_bytes_max + 1))
    assert decode(grant(), bytes_max=len(grant()))
    with pytest.raises(BadFrame, match="exceeds"):
        decode(grant(), bytes_max=len(grant()) - 1)


def test_nothing_is_sent_that_nobody_accepts() -> None:
    def register(size: int) -> Register:
        return Register(request=REQUEST, spec={"main_arg": bytes(size)})

    small = limits.frame_body_bytes_max - len(codec.encode_body(register(70_000))) + 70_000
    widest = Envelope(SESSION, 2**63 - 1, 2**63 - 1, 2**63 - 1, register(small))
    assert len(codec.encode_body(register(small))) == limits.frame_body_bytes_max
    assert len(encode(widest)) <= limits.client_frame_bytes_max
    assert decode(encode(widest)).body == register(small)
    with pytest.raises(InternalError, match="Register of 262081 bytes"):
        encode(Envelope(SESSION, 1, 1, 0, register(small + 1)))


@pytest.mark.parametrize("kind", ["map", "array"])
def test_depth(kind: str) -> None:
    def nested(levels: int) -> Any:
        value: Any = {} if kind == "map" else []
        for _ in range(levels - 1):
            value = {"x": value} if kind == "map" else [value]
        return value

    decode(grant(body={"stamp": 7, "x": nested(limits.frame_depth_max - 1)}))
    assert "nested deeper" in reason(grant(body={"stamp": 7, "x": nested(limits.frame_depth_max)}))
    for levels in (500, 1000, 100_000):
        opener = b"\x81\xa1x" if kind == "map" else b"\x91"
        deep = b"\x96\x05\xc4\x10" + SESSION + b"\x01\x00\x00\x82\xa5stamp\x07\xa1x"
        reason(deep + opener * levels + b"\xc0")


def test_a_registration_may_nest_as_deep_as_its_rule_says() -> None:
    arg: Any = 1
    for _ in range(limits.value_depth_max):
        arg = [arg]
    info = messages.WorkerInfo(
        status=messages.Status(state=WorkerState.STARTED), spec={"main_arg": arg}
    )
    page = messages.WorkersPage(request=REQUEST, workers=[info])
    assert decode(encode(Envelope(SESSION, 1, 1, 0, page))).body == page
    for cls in (Register, messages.StatusReply, messages.Start):
        body: dict[str, Any] = {"spec": {"main_arg": arg}}
        body |= {"request": REQUEST} if cls is not messages.Start else {"registry": "9f" * 16}
        body |= {"status": {"state": "started"}} if cls is messages.StatusReply else {}
        if cls is messages.Start:
            body |= dict.fromkeys(("slot", "generation", "incarnation", "token", "revision"), 1)
        decoded = decode(grant(kind=KIND_OF[cls], body=body)).body
        assert decoded.spec["main_arg"] == arg  # type: ignore[union-attr]


def test_array_length() -> None:
    decode(grant(body={"stamp": 7, "x": [None] * limits.array_items_max}))
    reason(grant(body={"stamp": 7, "x": [None] * (limits.array_items_max + 1)}))
    head = b"\x96\x05\xc4\x10" + SESSION + b"\x01\x00\x00\x82\xa5stamp\x07\xa1x"
    reason(head + b"\xdd\xff\xff\xff\xff")  # claims four thousand million items


def test_map_length() -> None:
    def keys(count: int) -> dict[str, int]:
        return {f"k{number}": 1 for number in range(count)}

    decode(grant(body={"stamp": 7, "x": keys(limits.map_items_max)}))
    reason(grant(body={"stamp": 7, "x": keys(limits.map_items_max + 1)}))
    head = b"\x96\x05\xc4\x10" + SESSION + b"\x01\x00\x00\x82\xa5stamp\x07\xa1x"
    reason(head + b"\xdf\xff\xff\xff\xff")


def test_claims_of_length_allocate_nothing() -> None:
    head = b"\x96\x05\xc4\x10" + SESSION + b"\x01\x00\x00\x82\xa5stamp\x07\xa1x"
    tracemalloc.start()
    try:
        for claim in (b"\xdb", b"\xc6", b"\xdd", b"\xdf", b"\xc9"):
            reason(head + claim + b"\x7f\xff\xff\xff" + b"\x01" * 100)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_the_worst_frame_is_a_small_multiple_in_memory() -> None:
    chunk: Any = [[] for _ in range(4000)]
    body = {"stamp": 7, "x": [chunk] * 60}
    data = grant(body=body)
    assert 200_000 < len(data) <= limits.client_frame_bytes_max
    tracemalloc.start()
    try:
        decode(data)
        assert tracemalloc.get_traced_memory()[1] < 100 * len(data)
    finally:
        tracemalloc.stop()


def test_duplicate_keys() -> None:
    head = b"\x96\x05\xc4\x10" + SESSION + b"\x01\x00\x00"
    assert reason(head + b"\x82\xa5stamp\x07\xa5stamp\x08") == "a map has a key twice"
    nested = b"\x82\xa5stamp\x07\xa1x\x82\xa1a\x01\xa1a\x01"
    assert reason(head + nested) == "a map has a key twice"


@pytest.mark.parametrize("key", [b"stamp", b"x", 1, None, 1.5, True])
def test_keys_are_text(key: Any) -> None:
    reason(grant(body={"stamp": 7, key: 1}))
    reason(grant(body={"stamp": 7, "x": {key: 1}}))
    reason(grant(kind=30, body={"request": REQUEST, "spec": {"main_arg": {"x": [{key: 1}]}}}))


@pytest.mark.parametrize(
    "extension",
    [
        b"\xd4\x05\x00",  # fixext 1
        b"\xd8\x05" + bytes(16),  # fixext 16
        b"\xc7\x00\x05",  # ext 8 of no length
        b"\xc8\x00\x00\x05",
        b"\xc9\x00\x00\x00\x00\x05",
        b"\xc7\x03\x05abc",
        b"\xd6\xff\x00\x00\x00\x00",  # timestamp 32
        b"\xd7\xff" + bytes(8),  # timestamp 64
        b"\xc7\x0c\xff" + bytes(12),  # timestamp 96
        b"\xc7\x00\xff",  # a timestamp of no length
    ],
)
def test_extension_types(extension: bytes) -> None:
    head = b"\x96\x05\xc4\x10" + SESSION + b"\x01\x00\x00"
    reason(head + b"\x81\xa5stamp" + extension)
    reason(head + b"\x82\xa5stamp\x07\xa1x" + extension)
    reason(head + extension)
    reason(b"\x96" + extension + b"\xc4\x10" + SESSION + b"\x01\x00\x00\x81\xa5stamp\x07")


def test_text_is_utf_8() -> None:
    for text in (b"\xa1\xff", b"\xa3\xed\xa0\x80", b"\xa2\xc0\x80"):
        head = b"\x96\x05\xc4\x10" + SESSION + b"\x01\x00\x00\x82\xa5stamp\x07\xa1x"
        reason(head + text)


# --- every field of every message ---


def structs(cls: type[msgspec.Struct]) -> Iterator[tuple[str, inspect.Field]]:
    info = inspect.type_info(cls)
    assert isinstance(info, inspect.StructType)
    for field in info.fields:
        yield field.encode_name, field


def values(kind: inspect.Type) -> st.SearchStrategy[Any]:  # noqa: C901 - one match, all types
    """Good values of a declared type."""
    match kind:
        case inspect.IntType():
            low = -(2**63) if kind.ge is None else kind.ge
            return st.integers(low, 2**63 - 1 if kind.le is None else kind.le)
        case inspect.FloatType():
            return st.floats(kind.ge, kind.le, allow_nan=False)
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
        case inspect.StrType():
            top = min(kind.max_length or 40, 40)
            low = kind.min_length or 0
            return st.text(st.characters(codec="utf-8"), min_size=low, max_size=max(low, top))
        case inspect.BytesType():
            low = kind.min_length or 0
            return st.binary(min_size=low, max_size=max(low, min(kind.max_length or 40, 40)))
        case inspect.EnumType():
            return st.sampled_from(list(kind.cls))
        case inspect.ListType():
            return st.lists(values(kind.item_type), max_size=3)
        case inspect.DictType():
            return st.dictionaries(values(kind.key_type), values(kind.value_type), max_size=3)
        case inspect.AnyType():
            return any_value
        case inspect.UnionType():
            return st.one_of(*(values(one) for one in kind.types))
        case inspect.StructType():
            return messages_of(kind.cls)
        case _:
            raise AssertionError(kind)


any_value: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"), max_size=10)
    | st.binary(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def messages_of(cls: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    required, optional = {}, {}
    for name, field in structs(cls):
        (required if field.required else optional)[name] = values(field.type)
    return st.fixed_dictionaries(required, optional=optional).map(lambda given: cls(**given))


SOME_MESSAGE = st.one_of(*(messages_of(cls) for cls in KINDS.values()))
ENVELOPES = st.builds(
    Envelope,
    st.binary(min_size=16, max_size=16),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**63 - 1),
    SOME_MESSAGE,
).map(lambda e: msgspec.structs.replace(e, kind=KIND_OF[type(e.body)]))
thorough = settings(
    max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


@pytest.mark.parametrize("cls", list(KINDS.values()), ids=lambda cls: cls.__name__)
def test_round_trip(cls: type[Message]) -> None:
    @thorough
    @given(messages_of(cls))
    def check(message: Message) -> None:
        envelope = Envelope(SESSION, 1, 1, 0, message, KIND_OF[cls])
        data = encode(envelope)
        assert decode(data) == envelope
        assert encode(decode(data)) == data

    check()


def small(kind: inspect.Type) -> Any:
    """One good value of a declared type, as it is on the wire."""
    match kind:
        case inspect.IntType():
            return max(kind.ge or 0, 1)
        case inspect.FloatType():
            return 1.5
        case inspect.BoolType():
            return True
        case inspect.StrType():
            return "a" * (kind.min_length or 1)
        case inspect.BytesType():
            return b"b" * (kind.min_length or 0)
        case inspect.EnumType():
            return next(iter(kind.cls)).value
        case inspect.ListType():
            return []
        case inspect.DictType():
            return {}
        case inspect.UnionType():
            return next(small(one) for one in kind.types if not isinstance(one, inspect.NoneType))
        case inspect.StructType():
            return {f.encode_name: small(f.type) for f in kind.fields if f.required}
        case _:
            raise AssertionError(kind)


def wrong(kind: inspect.Type) -> Iterator[Any]:  # noqa: C901 - one match, all types
    """Values that a declared type must refuse."""
    match kind:
        case inspect.IntType():
            assert kind.le is not None and kind.ge is not None, "an integer without bounds"
            yield from (True, False, 1.0, math.nan, "1", b"1", [], {}, None, 2**64 - 1, -(2**63))
            yield from (kind.le + 1, kind.ge - 1)
        case inspect.FloatType():
            assert kind.le is not None and kind.ge is not None, "a number without bounds"
            yield from (True, math.nan, math.inf, -math.inf, 1e300, "1.0", b"1", [], {}, None)
        case inspect.BoolType():
            yield from (0, 1, "true", b"", None, [], {})
        case inspect.StrType():
            assert kind.max_length is not None, "text without a bound"
            yield from (b"text", 1, True, None, [], {}, "x" * (kind.max_length + 1))
            if kind.min_length:
                yield "x" * (kind.min_length - 1)
        case inspect.BytesType():
            assert kind.max_length is not None, "bytes without a bound"
            yield from ("text", "", 1, None, [], b"x" * (kind.max_length + 1))
            if kind.min_length:
                yield b"x" * (kind.min_length - 1)
        case inspect.EnumType():
            yield from ("of another version", "", b"", 0, None, [], True)
        case inspect.ListType():
            assert kind.max_length is not None, "a list without a bound"
            yield from ({}, "x", b"x", 1, None)
            yield [small(kind.item_type)] * (kind.max_length + 1)
            yield from ([value] for value in wrong(kind.item_type))
        case inspect.DictType():
            yield from ([], "x", b"x", 1, None)
            if kind.max_length is not None:  # codec's own bound holds for the rest
                yield {f"k{number}": 1 for number in range(kind.max_length + 1)}
        case inspect.UnionType():
            whole = any(isinstance(one, inspect.IntType) for one in kind.types)
            for one in kind.types:
                if isinstance(one, inspect.NoneType):
                    continue
                for value in wrong(one):
                    counts = whole and not isinstance(one, inspect.IntType) and type(value) is int
                    if value is not None and not counts:  # which another type of the union takes
                        yield value
        case inspect.StructType():
            yield from ([], "x", b"x", 1, None)
            good = small(kind)
            for field in kind.fields:
                for value in wrong(field.type):
                    yield {**good, field.encode_name: value}
                if field.required:
                    yield {name: good[name] for name in good if name != field.encode_name}


def fields_of_all() -> Iterator[Any]:
    for cls in KINDS.values():
        for name, field in structs(cls):
            yield pytest.param(cls, name, field, id=f"{cls.__name__}.{name}")


@pytest.mark.parametrize(("cls", "name", "field"), list(fields_of_all()))
def test_a_field_refuses_what_it_is_not(
    cls: type[Message], name: str, field: inspect.Field
) -> None:
    kind = KIND_OF[cls]
    good = {n: small(f.type) for n, f in structs(cls) if f.required}
    decode(grant(kind=kind, body=good))
    decode(grant(kind=kind, body={**good, name: small(field.type)}))
    tried = 0
    for value in wrong(field.type):
        with pytest.raises(BadFrame):
            decode(grant(kind=kind, body={**good, name: value}))
            pytest.fail(f"{cls.__name__}.{name} accepted {value!r:.100}")
        tried += 1
    assert tried >= 5
    if field.required:
        with pytest.raises(BadFrame):
            decode(grant(kind=kind, body={n: v for n, v in good.items() if n != name}))


# --- whatever comes ---


def survives(data: bytes) -> None:
    """decode() returns an envelope that has a frame, or raises BadFrame; nothing else."""
    try:
        envelope = decode(data)
    except BadFrame:
        return
    assert len(envelope.session) == limits.session_bytes
    if envelope.body is not None:
        assert decode(encode(envelope)).body is not None


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(ENVELOPES, st.data())
def test_a_mutated_frame_is_bad_or_another_message(envelope: Envelope, data: st.DataObject) -> None:
    frame = bytearray(encode(envelope))
    place = data.draw(st.integers(0, len(frame) - 1))
    match data.draw(st.sampled_from(("set", "cut", "insert", "drop", "swap"))):
        case "set":
            frame[place] = data.draw(st.integers(0, 255))
        case "cut":
            del frame[place:]
        case "insert":
            frame.insert(place, data.draw(st.integers(0, 255)))
        case "drop":
            del frame[place]
        case "swap":
            other = data.draw(st.integers(0, len(frame) - 1))
            frame[place], frame[other] = frame[other], frame[place]
    survives(bytes(frame))


def test_every_single_byte_of_some_frames() -> None:
    register = Register(request=REQUEST, spec={"name": "w", "main": "m:f", "restart_time": 1.0})
    for message in (register, Grant(stamp=7, lease_s=1.0), messages.Goodbye(reason="end")):
        frame = encode(Envelope(SESSION, 1, 1, 0, message))
        for place in range(len(frame)):
            for value in range(256):
                survives(frame[:place] + bytes((value,)) + frame[place + 1 :])


@settings(max_examples=600, deadline=None)
@example(b"\x96" + b"\xc7\x00\x05" * 6)
@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    survives(data)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(KINDS)), st.dictionaries(st.text(max_size=12), any_value, max_size=5))
def test_random_bodies(kind: int, body: dict[str, Any]) -> None:
    survives(grant(kind=kind, body=body))


# --- the catalogue ---


def test_kinds_are_what_they_were() -> None:
    assert len(set(KINDS.values())) == len(KINDS)
    everything = (
        messages.AGENT_TO_MASTER
        | messages.MASTER_TO_AGENT
        | messages.CLIENT_TO_MASTER
        | messages.MASTER_TO_CLIENT
    )
    assert everything == set(KINDS.values())
    assert set(KINDS.values()) >= messages.UNSEQUENCED | messages.MUTATING


def test_every_declared_message_has_a_number() -> None:
    bases = {Message, messages.Request, messages.Reply}
    declared = {
        found
        for found in vars(messages).values()
        if isinstance(found, type) and issubclass(found, Message) and found not in bases
    }
    assert declared == set(KINDS.values())
    assert all(cls.__doc__ for cls in declared)
