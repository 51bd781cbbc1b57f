"""The bounds fit together: what is accepted at one place fits through the next."""

import base64
import json
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final, get_type_hints

import msgpack
import msgspec
import pytest

from posthouse import codec, limits
from posthouse.messages import (
    Message,
    Register,
    Start,
    StatusReply,
    StructRequest,
    WorkersPage,
)
from posthouse.records import HandleRef, Status, WorkerInfo
from posthouse.settings import RuntimeSettings
from posthouse.spec import BackgroundWorker
from posthouse.states import DATABASE_CONNECTION, SHMEM_ACCESS, WorkerState

STRUCTS: Final = [
    StructRequest(
        name="n" * limits.segment_name_bytes_max,
        size=limits.segment_bytes_max,
        crash_domain="c" * limits.label_bytes_max,
        library="l" * limits.name_bytes_max,
    )
] * limits.domain_structs_max


def nested(depth: int) -> Any:
    return {"k": nested(depth - 1)} if depth else 1


@pytest.fixture(scope="module")
def largest() -> BackgroundWorker:
    """Every field as long as its rule allows."""
    value_bytes = limits.env_bytes_max // limits.env_items_max - 20
    return BackgroundWorker(
        name="n" * limits.name_bytes_max,
        type="t" * limits.type_bytes_max,
        main="m" * limits.library_bytes_max + ":" + "f" * limits.function_bytes_max,
        library="l" * limits.library_bytes_max,
        function="f" * limits.function_bytes_max,
        main_arg=b"a" * (limits.main_arg_bytes_max - 3),
        extra=b"e" * limits.extra_bytes_max,
        flags=SHMEM_ACCESS | DATABASE_CONNECTION,
        host="h" * limits.label_bytes_max,
        labels=tuple("l" * limits.label_bytes_max for _ in range(limits.labels_max)),
        runtime="r" * limits.label_bytes_max,
        crash_domain="c" * limits.label_bytes_max,
        run_as="u" * limits.label_bytes_max,
        cwd="/" + "d" * (limits.path_bytes_max - 1),
        env={f"V{i:018}": "x" * value_bytes for i in range(limits.env_items_max)},
        rlimits={"NOFILE": limits.int_max, "CORE": limits.int_max},
        log_bytes=2**40,
    ).check()


def through_the_codec(message: Message, bytes_max: int) -> Message:
    body = codec.encode_body(message)
    envelope = codec.Envelope(b"s" * 16, limits.int_max, limits.int_max, limits.int_max, message)
    frame = codec.encode(envelope)
    assert len(body) < len(frame) <= bytes_max
    found = codec.decode(frame, bytes_max).body
    assert found is not None
    return found


def info(spec: BackgroundWorker) -> WorkerInfo:
    handle = HandleRef(registry="9f" * 16, slot=2**40, generation=2**40)
    status = Status(state=WorkerState.STOPPED, handle=handle, reason="r" * 4096)
    return WorkerInfo(status=status, spec=spec.to_wire())


def test_the_largest_record_fits_every_frame_it_travels_in(largest: BackgroundWorker) -> None:
    wire = largest.to_wire()
    register = Register(request=b"r" * 16, spec=wire)
    assert through_the_codec(register, limits.client_frame_bytes_max) == register
    numbers: dict[str, Any] = dict.fromkeys(("slot", "generation", "incarnation", "token"), 2**62)
    start = Start(registry="9f" * 16, revision=2**62, spec=wire, structs=STRUCTS, **numbers)
    assert through_the_codec(start, limits.agent_frame_bytes_max) == start
    page = WorkersPage(request=b"r" * 16, workers=[info(largest)])
    assert through_the_codec(page, limits.client_frame_bytes_max) == page


def test_the_largest_record_fits_the_warden_with_a_runtime(largest: BackgroundWorker) -> None:
    """agent/orders: the order to start carries the runtime's path and environment besides."""
    runtime = RuntimeSettings(
        name="r", path=("/" + "p" * 100,) * 64, env={f"E{i}": "x" * 100 for i in range(128)}
    )
    structs = [msgspec.structs.asdict(struct) for struct in STRUCTS]
    order = {"op": "StartWorker", "spec": largest.to_wire(), "structs": structs, **asdict(runtime)}
    assert len(msgpack.packb(order)) < limits.warden_frame_bytes_max


def test_a_full_main_arg_fits_the_worker_channel() -> None:
    """JSON, bytes as base64: a third longer."""
    argument = b"a" * (limits.main_arg_bytes_max - 3)
    encoded = base64.b64encode(argument).decode()
    spec = {"name": "n" * 96, "main": "m" * 1120, "main_arg": {"$bytes": encoded}}
    assert len(json.dumps({"op": "register", "id": 1, "spec": spec})) < (
        limits.channel_frame_bytes_max
    )


def test_the_deepest_value_fits_the_deepest_message() -> None:
    spec = BackgroundWorker(name="w", main="m:f", main_arg=nested(limits.value_depth_max)).check()
    page = WorkersPage(request=b"r" * 16, workers=[info(spec)] * 3)
    assert through_the_codec(page, limits.client_frame_bytes_max) == page
    reply = StatusReply(
        request=b"r" * 16, status=Status(state=WorkerState.STARTED), spec=spec.to_wire()
    )
    assert through_the_codec(reply, limits.client_frame_bytes_max) == reply


def test_a_record_has_fewer_fields_than_a_map_may_have_keys() -> None:
    assert len(fields(BackgroundWorker)) < 64 <= limits.map_items_max


def test_pages_leave_room_in_a_frame() -> None:
    assert limits.page_bytes_max * 2 <= limits.client_frame_bytes_max
    assert limits.page_items_max <= limits.array_items_max
    assert limits.log_read_bytes_max < limits.client_frame_bytes_max


def test_times_are_in_the_order_that_makes_sense() -> None:
    assert limits.ack_delay_s < limits.renew_s <= limits.resend_s < limits.silence_s
    assert limits.silence_s - limits.renew_s >= 1.9  # what a busy peer may be late
    assert limits.silence_s + limits.renew_s < 3.0  # a host that is lost is told by then
    assert limits.dial_backoff_s_min < limits.dial_backoff_s_max < limits.silence_s
    assert limits.silence_s < limits.lease_s_min < limits.lease_s_max


def test_every_bound_has_its_reason_and_a_positive_value() -> None:
    text = Path(limits.__file__).read_text()
    names = [name for name, hint in get_type_hints(limits).items() if hint is Final]
    names = names or re.findall(r"^(\w+): Final", text, re.MULTILINE)
    assert len(names) > 50
    for name in names:
        assert getattr(limits, name) > 0, name
        definition = re.search(rf"^{name}: Final = [^#]*?#\s*\S+", text, re.MULTILINE)
        assert definition, f"{name} has no reason"
        assert definition[0].count("Final") == 1, f"{name} has no reason"


def test_units_come_last() -> None:
    text = Path(limits.__file__).read_text()
    for name in re.findall(r"^(\w+): Final", text, re.MULTILINE):
        for unit in ("bytes", "s"):
            parts = name.split("_")
            if unit in parts:
                assert set(parts[parts.index(unit) + 1 :]) <= {"max", "min"}, name
