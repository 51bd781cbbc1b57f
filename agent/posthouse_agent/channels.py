"""The agent's ends of its workers' channels and latches.

Owns: two descriptors a worker, and which of them are polled for what. Must not know: what the
messages mean. Invariant: a message leaves a channel only by `consume`; whatever an agent has seen
and not acted on is seen again by the next one.
"""

import contextlib
import os
import select
import socket
from dataclasses import dataclass
from typing import Any

from posthouse import channel, limits
from posthouse.errors import BadFrame

__all__ = ["Channels"]


@dataclass(slots=True)
class _Ends:
    kind: str
    channel: socket.socket
    latch: int
    watched: bool = True


class Channels:
    """All of them, by token. None of the methods blocks."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self._ends: dict[int, _Ends] = {}
        self._tokens: dict[int, int] = {}  # descriptor of a channel -> token
        self._buffer = bytearray(limits.channel_frame_bytes_max + 1)

    def __len__(self) -> int:
        return len(self._ends)

    def token_of(self, descriptor: int) -> int | None:
        """Whose channel this is."""
        return self._tokens.get(descriptor)

    def add(self, token: int, kind: str, descriptors: tuple[int, ...]) -> bool:
        """Take over what came with a Forked. False if descriptors are missing (none were free)."""
        self.drop(token)
        if len(descriptors) != 2:
            for descriptor in descriptors:
                os.close(descriptor)
            return False
        end = socket.socket(fileno=descriptors[0])
        end.setblocking(False)
        self._ends[token] = _Ends(kind, end, descriptors[1])
        self._tokens[end.fileno()] = token
        self._epoll.register(end.fileno(), select.EPOLLIN)
        return True

    def drop(self, token: int) -> None:
        """Close what belongs to this worker."""
        ends = self._ends.pop(token, None)
        if ends is None:
            return
        self._unwatch(ends)
        ends.channel.close()
        os.close(ends.latch)

    def drop_kind(self, kind: str) -> None:
        """Close what belongs to the workers of this warden."""
        for token in [token for token, ends in self._ends.items() if ends.kind == kind]:
            self.drop(token)

    def peek(self, token: int) -> dict[str, Any] | None:
        """The oldest message, which stays where it is; None if there is none. One that cannot
        be understood is an empty one: the core answers that it knows no such operation."""
        ends = self._ends.get(token)
        if ends is None:
            return None
        try:
            size, _, flags, _ = ends.channel.recvmsg_into([self._buffer], 0, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except OSError:
            size, flags = 0, 0
        if size == 0:
            # The worker has closed its end: epoll would report that for ever.
            self._unwatch(ends)
            return None
        if flags & socket.MSG_TRUNC or size > limits.channel_frame_bytes_max:
            return {}
        try:
            return channel.decode(bytes(self._buffer[:size]))
        except BadFrame:
            return {}

    def consume(self, token: int) -> None:
        """Take the oldest message out, unless its answer still waits for room (see `answer`)."""
        ends = self._ends.get(token)
        if ends is None:
            return
        with contextlib.suppress(OSError):
            ends.channel.recv_into(self._buffer, 1)

    def answer(self, token: int, message: dict[str, Any]) -> bool:
        """Put a message into the channel. False if there is no room: the worker does not read its
        answers. Its requests then wait too; `writable` ends that."""
        ends = self._ends.get(token)
        if ends is None:
            return True
        try:
            ends.channel.send(channel.encode(message), socket.MSG_NOSIGNAL)
        except BlockingIOError:
            if ends.watched:
                self._epoll.modify(ends.channel.fileno(), select.EPOLLOUT)
            return False
        except OSError:
            pass  # it is gone; its exit is on the way
        return True

    def writable(self, token: int) -> None:
        """There is room for answers again: read on."""
        ends = self._ends.get(token)
        if ends is not None and ends.watched:
            self._epoll.modify(ends.channel.fileno(), select.EPOLLIN)

    def set_latch(self, token: int) -> bool:
        """False if this worker is not here."""
        ends = self._ends.get(token)
        if ends is None:
            return False
        with contextlib.suppress(BlockingIOError):  # a counter that is full is set
            os.eventfd_write(ends.latch, 1)
        return True

    def close(self) -> None:
        for token in list(self._ends):
            self.drop(token)

    def _unwatch(self, ends: _Ends) -> None:
        if ends.watched:
            ends.watched = False
            self._tokens.pop(ends.channel.fileno(), None)
            self._epoll.unregister(ends.channel.fileno())
