"""What a warden and its zygotes say to each other; its own protocol version.

Owns: the messages, their bytes, the descriptors beside them. Must not know: when they are said.
Invariant: standard library only, because the zygote's end runs in applications' own environments,
perhaps in another version of posthouse than the warden: unknown fields are ignored, and each side
names the versions it speaks.

One message is one SOCK_SEQPACKET packet: a JSON object with its name under "op".

    warden -> zygote   load(protocol, name, path, preload, bind_now)  fork(count, preload)
    zygote -> warden   files(files)*  ready(...)  |  refused(code, reason, retry)
                       failed(reason, missing)
    spare  -> warden   spare, over the zygote's socket, with its own one beside it
    warden -> spare    begin(order, given), with the worker's descriptors beside it

Either end that closes is the end of the other, except for what has begun as a worker.
"""

import array
import base64
import json
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from posthouse import limits
from posthouse_agent.start_worker import Inheritance, StartWorker

__all__ = [
    "BIND_NOW",
    "PROTOCOL",
    "PROTOCOL_MIN",
    "SERVES_MIN",
    "Received",
    "decode",
    "encode",
    "fit",
    "receive",
    "send",
]

PROTOCOL = 1
PROTOCOL_MIN = 1
"""The newest and the oldest version that this end speaks. 1: `begin` has databases and a descriptor
for shared memory, without which a worker would be told that it has none; `fork` has `preload`."""

SERVES_MIN = 0
"""The oldest warden's that a zygote serves: wardens outlive an upgrade of the files that zygotes
are made from, and what they do not say they do not expect either."""

BIND_NOW = "LD_BIND_NOW"
"""The loader looks symbols up when a zygote begins, not one by one in each of its children, where
each costs a page or two. It is in no worker's environment unless somebody else has put it there:
`load` carries that."""

_Record = TypeVar("_Record")

_INLINE_BYTES = 60_000  # a packet must fit into the socket's buffer; what does not is put in memory
_FDS_MAX = 8
_CREDENTIALS = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Received:
    message: dict[str, Any]
    descriptors: tuple[int, ...]
    pid: int  # the sender's, by the kernel's word; 0 where it was not asked for


def encode(message: Mapping[str, Any]) -> bytes:
    """JSON in which bytes are {"$bytes": base64} and a map that looks like that is {"$map": ...}.

    >>> encode({"op": "x", "data": b"\\x00", "odd": {"$bytes": 1}})
    b'{"op":"x","data":{"$bytes":"AA=="},"odd":{"$map":[["$bytes",1]]}}'
    >>> decode(encode({"op": "x", "odd": {"$map": b""}}))
    {'op': 'x', 'odd': {'$map': b''}}
    """
    return json.dumps(_wrapped(message), separators=(",", ":")).encode()


def decode(data: bytes) -> dict[str, Any]:
    """The inverse. Raises ValueError."""
    text = data.decode()
    scan = _scan_marked if '{"$' in text else _scan
    try:
        message, end = scan(text, 0)
    except StopIteration:
        raise ValueError("not JSON") from None
    if end != len(text):
        raise ValueError("more than one object")
    if not isinstance(message, dict) or not isinstance(message.get("op"), str):
        raise ValueError('a message is an object with a text "op"')
    return message


def fit(cls: type[_Record], values: Mapping[str, Any]) -> _Record:
    """What reads as the record, with the defaults of what another version did not send. Not an
    instance: each field of a frozen one is set by a call, in pages of the worker's own."""
    return cast("_Record", SimpleNamespace(**{**_DEFAULTS[cls], **values}))


def _defaults(cls: type[Any]) -> dict[str, Any]:
    given = {f.name: f.default for f in fields(cls) if f.default is not MISSING}
    made = {f.name: f.default_factory() for f in fields(cls) if f.default_factory is not MISSING}
    return given | made


_DEFAULTS: dict[type[Any], dict[str, Any]] = {
    cls: _defaults(cls) for cls in (StartWorker, Inheritance)
}


def _wrapped(value: Any) -> Any:
    if isinstance(value, dict):
        if len(value) == 1 and next(iter(value)) in _MARKS:
            return {"$map": [[k, _wrapped(v)] for k, v in value.items()]}
        return {k: _wrapped(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_wrapped(item) for item in value]
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    return value


def _unwrapped(value: dict[str, Any]) -> Any:
    if len(value) == 1:
        ((mark, inner),) = value.items()
        if mark == "$bytes":
            return base64.b64decode(inner, validate=True)
        if mark == "$map":
            return dict(inner)
    return value


_MARKS = ("$bytes", "$map")

# Made once, and without a call of ours for each object where no object is marked: a worker pays
# for what it touches with pages of its own, and json.loads() is sixty of them.
_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
_scan_marked = json.JSONDecoder(object_hook=_unwrapped).scan_once  # type: ignore[attr-defined]


def send(
    line: socket.socket, message: Mapping[str, Any], descriptors: Sequence[int] = (), flags: int = 0
) -> None:
    """One message. Raises OSError; BlockingIOError if `flags` say not to wait and it would."""
    data = encode(message)
    long = -1
    try:
        if len(data) > _INLINE_BYTES:
            long = os.memfd_create("posthouse-message", os.MFD_CLOEXEC)
            view = memoryview(data)
            while view:
                view = view[os.write(long, view) :]
            descriptors = (*descriptors, long)
            data = b""
        rights = array.array("i", descriptors)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else []
        # A packet of no bytes would look like the end.
        line.sendmsg([data or b"$"], ancillary, flags | socket.MSG_NOSIGNAL)
    finally:
        if long != -1:
            os.close(long)


def receive(line: socket.socket) -> Received | None:
    """The next message; None at the end. Raises OSError, BlockingIOError among them, ValueError."""
    space = socket.CMSG_SPACE(_FDS_MAX * 4) + socket.CMSG_SPACE(_CREDENTIALS.size)
    try:
        data, ancillary, _, _ = line.recvmsg(_INLINE_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        # Said once, if the other end closed without having read everything; what it had sent
        # before is still to be read.
        data, ancillary, _, _ = line.recvmsg(_INLINE_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    found = array.array("i")
    pid = 0
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(value[: len(value) - len(value) % found.itemsize])
        elif level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            pid = _CREDENTIALS.unpack(value[: _CREDENTIALS.size])[0]
    descriptors = tuple(found)
    if not data:
        return None
    try:
        if data == b"$":
            if not descriptors:
                raise ValueError("a long message without its memory")
            *rest, long = descriptors
            descriptors = tuple(rest)
            data = _read_all(long)
        return Received(decode(data), descriptors, pid)
    except ValueError:
        for fd in descriptors:
            os.close(fd)
        raise


def _read_all(fd: int) -> bytes:
    try:
        size = os.fstat(fd).st_size
        if size > limits.zygote_message_bytes_max:
            raise ValueError(f"a message of {size} bytes")
        return os.pread(fd, size, 0)
    finally:
        os.close(fd)
