"""The worker's line to its host's agent: one JSON object a message, over one SOCK_SEQPACKET socket.

Owns: the bytes of a message, request ids, the replies that are waited for. Must not know: what an
operation means, who answers. Invariant: standard library only; a message is one packet, and a
request that is sent again (because the agent changed) carries the same id.
"""

import base64
import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

from posthouse import limits
from posthouse.errors import BadFrame, TimedOut, Unreachable, from_wire

__all__ = ["Channel", "decode", "encode"]

SOCKET_BYTES = 2 * limits.channel_frame_bytes_max  # what a packet's socket buffer must hold


def encode(message: dict[str, Any]) -> bytes:
    """The packet of a message; bytes travel as {"$bytes": base64}. Raises BadFrame.

    >>> encode({"op": "ready", "id": 1})
    b'{"op":"ready","id":1}'
    >>> decode(encode({"op": "x", "data": b"\\x00"}))
    {'op': 'x', 'data': b'\\x00'}
    """
    try:
        text = json.dumps(message, default=_wrap, separators=(",", ":"), allow_nan=False)
        data = text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise BadFrame(f"not a channel message: {error}") from None
    if len(data) > limits.channel_frame_bytes_max:
        raise BadFrame(f"a channel message of {len(data)} bytes")
    return data


def decode(data: bytes) -> dict[str, Any]:
    """The inverse of encode. Raises BadFrame."""
    try:
        message = json.loads(data, object_hook=_unwrap)
    except (TypeError, ValueError, RecursionError) as error:  # TypeError: {"$bytes": 1}
        raise BadFrame(f"not a channel message: {error}") from None
    if not isinstance(message, dict) or not isinstance(message.get("op"), str):
        raise BadFrame('a channel message is a map with a text "op"')
    return message


def _wrap(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    raise TypeError(f"{type(value).__name__} cannot travel")


def _unwrap(value: dict[str, Any]) -> Any:
    if value.keys() == {"$bytes"}:
        return base64.b64decode(value["$bytes"], validate=True)
    return value


class Channel:
    """The worker's end. Thread-safe: one thread reads at a time, the others find their replies."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.RLock()
        self._next_id = 1
        self._awaited: set[int] = set()
        self._replies: dict[int, dict[str, Any]] = {}
        self._closed = False
        self.on_notice: Callable[[dict[str, Any]], None] = lambda _: None

    def fileno(self) -> int:
        return self._fd

    @cached_property
    def _socket(self) -> socket.socket:
        """Not before it is needed: most workers say nothing, and each would pay for it with pages
        of its own. Nobody closes it but the process's end."""
        made = socket.socket(fileno=self._fd)
        made.setblocking(False)
        return made

    @property
    def closed(self) -> bool:
        """Nobody holds the other end: the warden and every agent are gone."""
        return self._closed

    def send(self, op: str, **fields: Any) -> int:
        """Say something without waiting for the reply. Returns its id."""
        with self._lock:
            number = self._next_id
            self._next_id += 1
            self._transmit(encode({"op": op, "id": number, **fields}))
            return number

    def request(self, op: str, *, timeout: float | None, **fields: Any) -> dict[str, Any]:
        """Ask, and wait for the reply with the same id. Raises TimedOut, Unreachable, and the
        error that the reply carries."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            self._awaited.add(number := self.send(op, **fields))
        try:
            while (reply := self._replies.pop(number, None)) is None:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimedOut(f"no answer to {op!r} within {timeout} s")
                if self._closed:
                    raise Unreachable("the host's warden and agent are gone")
                # Another thread may take our reply out of the socket, so no wait is unbounded.
                self._wait_readable(0.05 if left is None else min(left, 0.05))
                self.pump()
        finally:
            self._awaited.discard(number)
        if isinstance(error := reply.get("error"), dict):
            raise from_wire(
                str(error.get("code", "refused")),
                str(error.get("message", "")),
                str(error.get("hint", "")),
                error.get("detail") if isinstance(error.get("detail"), dict) else None,
            )
        return reply

    def pump(self) -> None:
        """Take in everything that has arrived: replies are kept, notices are passed on."""
        if not self._lock.acquire(blocking=False):
            time.sleep(0.001)  # another thread is reading; poll() would report readable again
            return
        try:
            while (data := self._receive()) is not None:
                try:
                    message = decode(data)
                except BadFrame:
                    continue  # an agent of another version; what it meant is asked for again
                number = message.get("id")
                if message["op"] != "reply":
                    self.on_notice(message)
                elif isinstance(number, int) and number in self._awaited:
                    self._replies[number] = message
        finally:
            self._lock.release()

    def _wait_readable(self, timeout_s: float) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.poll(timeout_s * 1000)

    def _receive(self) -> bytes | None:
        try:
            data = self._socket.recv(SOCKET_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data:
            self._closed = True
            return None
        return data

    def _transmit(self, data: bytes) -> None:
        try:
            self._socket.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            raise Unreachable(
                "the host's agent has not read this worker's messages for long",
                hint="is the agent running?",
            ) from None
        except OSError as error:
            raise Unreachable(
                f"the host's agent is gone: {os.strerror(error.errno or 0)}"
            ) from None
