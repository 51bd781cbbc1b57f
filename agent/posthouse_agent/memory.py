"""The warden's shared memory: the files behind segments, and the lines to those who may ask.

Owns: a memfd a segment, the warden's end of each memory line. Must not know: who may have what
(domains). Invariant: a segment is sealed against every change of its size before anybody has it,
so no worker can take memory away from under another; nothing here waits for a worker.
"""

import array
import fcntl
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from posthouse import channel, limits
from posthouse.errors import BadFrame
from posthouse_agent.domains import AnswerMemory, Give

__all__ = ["Memory"]

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Memory:
    """All segments of this warden, by number, and all memory lines, by token."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._segments: dict[int, int] = {}  # number -> memfd
        self._failed: dict[int, str] = {}
        self._lines: dict[int, socket.socket] = {}
        self._tokens: dict[int, int] = {}  # descriptor of a line -> token

    def __len__(self) -> int:
        return len(self._segments)

    # --- lines ---

    def add(self, token: int, line_fd: int) -> int:
        """Take over the warden's end. Returns the descriptor to poll."""
        line = socket.socket(fileno=line_fd)
        line.setblocking(False)
        self._lines[token] = line
        self._tokens[line_fd] = token
        return line_fd

    def token_of(self, fd: int) -> int | None:
        return self._tokens.get(fd)

    def line_of(self, token: int) -> int | None:
        """The descriptor of its line, while it has one."""
        line = self._lines.get(token)
        return None if line is None else line.fileno()

    def take(self, token: int) -> dict[str, Any] | None:
        """One message, {} for one without sense; None: nothing more will come."""
        try:
            data = self._lines[token].recv(limits.memory_message_bytes_max)
        except BlockingIOError:
            return {}
        except OSError:
            return None
        if not data:
            return None
        try:
            return channel.decode(data)
        except BadFrame:
            return {}

    def close(self, token: int) -> None:
        line = self._lines.pop(token, None)
        if line is not None:
            del self._tokens[line.fileno()]
            line.close()

    # --- segments ---

    def make(self, number: int, size: int, name: str) -> None:
        shown = f"segment {name.partition(':')[2]!r}" if name else "a segment"
        shown = f"{shown} of {size} bytes"
        try:
            fd = os.memfd_create(
                f"posthouse-segment-{number}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
            )
        except OSError as error:
            self._failed[number] = f"{shown}: memfd_create: {error.strerror}"
            return
        try:
            os.ftruncate(fd, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except OSError as error:
            os.close(fd)
            self._failed[number] = f"{shown}: {error.strerror}"
            return
        self._segments[number] = fd

    def drop(self, number: int) -> None:
        fd = self._segments.pop(number, None)
        self._failed.pop(number, None)
        if fd is not None:
            os.close(fd)

    def answer(
        self, effect: AnswerMemory, ends_of: Callable[[int], tuple[int, int] | None]
    ) -> int | None:
        """Send it. `ends_of`: latch and pidfd of a worker. Returns the number of a segment that
        could not be made, if it was to be given."""
        line = self._lines.get(effect.token)
        fds: list[int] = []
        message, lost = effect.message, None
        for give in effect.gives:
            fd = self._descriptor(give, ends_of)
            if fd is not None:
                fds.append(fd)
            elif give.what == "segment":
                lost = give.which
        if lost is not None:
            why = self._failed.pop(lost, "a segment that is gone")
            error = {"code": "no_memory", "message": f"no memory for {why}"}
            message, fds = {"op": "reply", "id": message.get("id"), "error": error}, []
        if line is not None:
            self._send(effect.token, line, message, fds)
        return lost

    def _descriptor(
        self, give: Give, ends_of: Callable[[int], tuple[int, int] | None]
    ) -> int | None:
        if give.what == "segment":
            return self._segments.get(give.which)
        ends = ends_of(give.which)
        return None if ends is None else ends[give.what == "pidfd"]

    def _send(
        self, token: int, line: socket.socket, message: dict[str, Any], fds: list[int]
    ) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            line.sendmsg([channel.encode(message)], rights, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            # It has asked without reading for long; it would wait for ever for what is lost now.
            self._log(f"memory: worker {token} does not read its answers")
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended
