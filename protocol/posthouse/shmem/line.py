"""A worker's line to its warden about shared memory: one JSON object a packet, with descriptors.

Owns: the questions, their answers, what is told about the other ends of queues. Must not know: what
segments are for. Invariant: a descriptor that nobody asked for, or came too late, is closed.
"""

import array
import os
import select
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from posthouse import channel, limits, worker
from posthouse.errors import BadFrame, TimedOut, Unreachable, UsageError, from_wire

__all__ = ["MemoryLine", "Peer", "line"]

_SPACE: Final = socket.CMSG_SPACE(4 * 4)


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a queue: its token, its latch, and what is readable once it is dead."""

    token: int
    latch_fd: int
    pidfd: int


class MemoryLine:
    """One for the process. Thread-safe."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._lock = threading.RLock()
        self._next_id = 1
        self.pid = os.getpid()
        self.peers: dict[tuple[int, int, str], Peer] = {}  # (number, offset, its role)

    def fileno(self) -> int:
        return self._socket.fileno()

    def ask(
        self, op: str, timeout: float = limits.lock_wait_s, **fields: Any
    ) -> tuple[dict[str, Any], tuple[int, ...]]:
        """The answer and its descriptors. Raises TimedOut, Unreachable, and what it carries."""
        deadline_s = time.monotonic() + timeout
        with self._lock:
            number = self._next_id
            self._next_id += 1
            self._send(channel.encode({"op": op, "id": number, **fields}))
            while (found := self._receive(number)) is None:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    raise TimedOut(f"the warden has not answered {op!r} within {timeout:g} s")
                poll = select.poll()
                poll.register(self._socket.fileno(), select.POLLIN)
                poll.poll(min(left_s, 1.0) * 1000)
        message, fds = found
        if isinstance(error := message.get("error"), dict):
            _close(fds)
            raise from_wire(str(error.get("code", "refused")), str(error.get("message", "")))
        return message, fds

    def tell(self, op: str, **fields: Any) -> None:
        """Without waiting: a domain that is being reset answers none of its members."""
        with self._lock, suppress(Unreachable):
            self._send(channel.encode({"op": op, "id": 0, **fields}))

    def pump(self) -> None:
        """Take in what was told unasked."""
        with self._lock:
            self._receive(0)

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data, socket.MSG_NOSIGNAL)
        except OSError as error:
            raise Unreachable(f"the warden is gone: {os.strerror(error.errno or 0)}") from None

    def _receive(self, wanted: int) -> tuple[dict[str, Any], tuple[int, ...]] | None:
        """The answer to `wanted`, if it has come; None once nothing more is there."""
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(
                    limits.memory_message_bytes_max, _SPACE, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return None
            fds = array.array("i")
            for level, kind, value in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds.frombytes(value[: len(value) - len(value) % fds.itemsize])
            if not data:
                raise Unreachable("the warden has closed this worker's memory line")
            try:
                message = channel.decode(data)
            except BadFrame:
                _close(tuple(fds))
                continue
            if message["op"] == "reply" and message.get("id") == wanted:
                return message, tuple(fds)
            self._told(message, tuple(fds))

    def _told(self, message: dict[str, Any], fds: tuple[int, ...]) -> None:
        if message["op"] == "peer" and len(fds) == 2:
            key = (message.get("number", 0), message.get("offset", 0), message.get("role", ""))
            self.peers[key] = Peer(int(message.get("peer", 0)), *fds)
            return
        _close(fds)
        if message["op"] == "reply" and message.get("number"):  # who asked waits no longer
            self._send(channel.encode({"op": "detach", "id": 0, "number": message["number"]}))


def _close(fds: tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)


class _Made:
    line: MemoryLine | None = None


def line() -> MemoryLine:
    """This worker's. Raises UsageError where it has none."""
    fd, _ = worker.memory_fds()
    if fd == -1:
        raise UsageError(
            "this worker has no shared memory",
            hint="register it with flags=posthouse.SHMEM_ACCESS",
        )
    if _Made.line is None:
        _Made.line = MemoryLine(fd)
    return _Made.line
