"""The warden's end of its Unix socket: who may connect, and one agent at a time.

Owns: the listening socket, the connections, what waits to be sent. Must not know: what orders
mean. Invariant: of two agents the newer one is served; what the older had sent but was not read
is never carried out.
"""

import array
import errno
import os
import select
import socket
import struct
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

from posthouse import limits
from posthouse_agent import orders
from posthouse_agent.orders import Attach, Order, Report

__all__ = ["AgentLine"]

_BACKLOG = 128  # a connect() beyond it fails at once
_SOCKET_BYTES = 2 * limits.warden_frame_bytes_max  # the kernel lets a packet be nearly as long
_NO_FDS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


@dataclass(slots=True)
class _Waiting:
    report: Report
    descriptors: tuple[int, ...]  # duplicates of our own, closed once they are sent


class AgentLine:
    """`receive` yields what the attached agent says; `send` never blocks."""

    def __init__(self, path: str, epoll: select.epoll) -> None:
        self._path = path
        self._epoll = epoll
        self._callers: dict[int, socket.socket] = {}  # connected, not attached
        self._agent: socket.socket | None = None
        self._queue: deque[_Waiting] = deque()
        self._spare_fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        with suppress(FileNotFoundError):
            os.unlink(path)  # the lock says that its owner is dead
        self._listener = self._listen()

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            listener.bind(self._path)
            os.chmod(self._path, 0o600)
            listener.listen(_BACKLOG)
            listener.setblocking(False)
            self._epoll.register(listener.fileno(), select.EPOLLIN)
        except OSError:
            listener.close()
            raise
        return listener

    def listen_again(self) -> bool:
        """Make the socket's file anew if somebody has deleted it: the next agent looks for it.
        Whether that was so. Raises OSError."""
        if os.path.lexists(self._path):
            return False
        listener = self._listen()
        self._epoll.unregister(self._listener.fileno())
        self._listener.close()
        self._listener = listener
        return True

    # --- incoming ---

    def take(self, fd: int) -> list[Order] | None:
        """What the events of `fd` brought: Attach from a caller, or the agent's next order. None:
        the agent is gone; [] also for a descriptor that is not ours."""
        if fd == self._listener.fileno():
            self._accept()
        elif fd in self._callers:
            return self._hear_caller(fd)
        elif self._agent is not None and fd == self._agent.fileno():
            return self._hear_agent(self._agent)
        return []

    def _accept(self) -> None:
        try:
            caller, _ = self._listener.accept()
        except OSError as error:
            if error.errno in _NO_FDS:
                self._turn_away()
            return
        size = struct.calcsize("3i")
        _, user, _ = struct.unpack(
            "3i", caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        )
        if user not in (os.geteuid(), 0):
            caller.close()
            return
        if len(self._callers) >= limits.warden_callers_max:
            self._drop_caller(next(iter(self._callers)))
        caller.setblocking(False)
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
        self._callers[caller.fileno()] = caller
        self._epoll.register(caller.fileno(), select.EPOLLIN)

    def _turn_away(self) -> None:
        """Out of descriptors: take the caller with the spare one and hang up, or it would keep
        the listener readable, and this loop busy, for ever."""
        if self._spare_fd != -1:
            os.close(self._spare_fd)
            self._spare_fd = -1
        with suppress(OSError):
            self._listener.accept()[0].close()
        with suppress(OSError):
            self._spare_fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def _hear_caller(self, fd: int) -> list[Order]:
        order = _read(self._callers[fd])
        if order is None:
            return []
        if not isinstance(order, Attach):
            self._drop_caller(fd)
            return []
        self.hang_up()
        self._agent = self._callers.pop(fd)
        return [order]

    def _hear_agent(self, agent: socket.socket) -> list[Order] | None:
        order = _read(agent)
        if order is None:
            return []
        if isinstance(order, Attach | None) or not isinstance(order, Order):
            self.hang_up()
            return None
        return [order]

    def _drop_caller(self, fd: int) -> None:
        self._epoll.unregister(fd)
        self._callers.pop(fd).close()

    def hang_up(self) -> None:
        """Close the agent's connection; what it sent and we have not read is void."""
        if self._agent is not None:
            self._epoll.unregister(self._agent.fileno())
            self._agent.close()
            self._agent = None
        while self._queue:
            _close(self._queue.popleft())

    # --- outgoing ---

    def send(self, report: Report, descriptors: tuple[int, ...] = ()) -> bool:
        """Send after what waits. False: the agent does not read, and was hung up on."""
        if self._agent is None:
            return True
        duplicates: tuple[int, ...] = ()
        with suppress(OSError):  # out of descriptors: the agent sees that they are missing
            duplicates = tuple(os.dup(fd) for fd in descriptors)
        self._queue.append(_Waiting(report, duplicates))
        if len(self._queue) > limits.warden_reports_max:
            self.hang_up()
            return False
        return self.flush()

    def flush(self) -> bool:
        """Send what waits, as far as there is room. False: the agent was hung up on."""
        while self._queue and self._agent is not None:
            waiting = self._queue[0]
            try:
                _write(self._agent, waiting)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                if error.errno in (errno.ETOOMANYREFS, errno.ENOBUFS):
                    break  # the agent must take descriptors out of its socket first
                self.hang_up()
                return False
            self._queue.popleft()
            _close(waiting)
        if self._agent is not None:
            events = select.EPOLLIN | (select.EPOLLOUT if self._queue else 0)
            self._epoll.modify(self._agent.fileno(), events)
        return True

    @property
    def waiting(self) -> int:
        """Reports that are not sent yet."""
        return len(self._queue)

    def close(self) -> None:
        """No more callers; the socket's file goes too."""
        self.hang_up()
        self._listener.close()
        with suppress(OSError):
            os.unlink(self._path)


def _read(connection: socket.socket) -> Order | object | None:
    """The next record; None if there is none now; anything that is no order means the end."""
    try:
        data, _, flags, _ = connection.recvmsg(limits.warden_frame_bytes_max + 1)
    except BlockingIOError:
        return None
    except OSError:
        return _END
    if not data or flags & socket.MSG_TRUNC:
        return _END
    try:
        return orders.unpack(data)  # type: ignore[no-any-return]
    except ValueError:
        return _END


_END = object()


def _write(connection: socket.socket, waiting: _Waiting) -> None:
    ancillary = []
    if waiting.descriptors:
        rights = array.array("i", waiting.descriptors)
        ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, rights))
    connection.sendmsg([orders.pack(waiting.report)], ancillary, socket.MSG_NOSIGNAL)


def _close(waiting: _Waiting) -> None:
    for fd in waiting.descriptors:
        os.close(fd)
