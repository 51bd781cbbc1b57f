"""A proxy between an agent and its master, in user space, that does harm.

Owns: connections, over TCP or Unix sockets, and the bytes under way. Must not know: what they
mean. Invariant: in each direction bytes arrive in order and unchanged, until they do not arrive.
"""

import contextlib
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["MODES", "Proxy"]

CHUNK = 65_536
MODES = ("pass", "delay", "trickle", "stall", "stall to", "stall from", "refuse", "deaf")


@dataclass(eq=False)
class _Pipe:
    """One direction of one connection."""

    source: socket.socket
    target: socket.socket
    way: str  # "to" the host or "from" it
    held: deque[tuple[float, bytes]] = field(default_factory=deque)
    carried: int = 0


class Proxy:
    """mode: "pass"; "delay": each byte 150 ms later; "trickle": seven bytes at a time; "stall":
    nothing moves, in both directions or in one, and connections stay; "refuse": new connections
    are closed at once; "deaf": new ones are accepted and never answered.

    `cut(after)` breaks all connections after so many more bytes, in the middle of a frame;
    `half_open()` closes the master's side only, and the host's side is never told.
    """

    def __init__(self, listener: socket.socket, dial: Callable[[], socket.socket]) -> None:
        self.mode = "pass"
        self._listener = listener
        self._dial = dial
        self._pipes: list[_Pipe] = []
        self._orphans: list[socket.socket] = []  # ends that nobody reads any more
        self._cut_at: int | None = None
        self._lock = threading.Lock()
        self._ended = False
        listener.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def set(self, mode: str) -> None:
        assert mode in MODES, mode
        with self._lock:
            self.mode = mode

    def cut(self, after: int) -> None:
        with self._lock:
            self._cut_at = sum(pipe.carried for pipe in self._pipes) + after

    def half_open(self) -> None:
        with self._lock:
            for pipe in self._pipes:
                if pipe.way == "from":
                    pipe.target.close()
                    self._orphans.append(pipe.source)
            self._pipes = []

    def break_all(self) -> None:
        with self._lock:
            self._break_all()

    def close(self) -> None:
        self._ended = True
        self._thread.join()
        self.break_all()
        for orphan in self._orphans:
            orphan.close()
        self._listener.close()

    def _break_all(self) -> None:
        for pipe in self._pipes:
            pipe.source.close()
            pipe.target.close()
        self._pipes = []

    def _run(self) -> None:
        while not self._ended:
            with selectors.DefaultSelector() as ready, self._lock:
                ready.register(self._listener, selectors.EVENT_READ)
                for pipe in self._pipes:
                    if len(pipe.held) < 64 and self._moves(pipe):
                        with contextlib.suppress(KeyError):
                            ready.register(pipe.source, selectors.EVENT_READ)
                waits = ready.select(0)
                if not waits:
                    self._lock.release()
                    try:
                        ready.select(0.02 if self._idle() else 0.002)
                    finally:
                        self._lock.acquire()
                self._accept()
                for pipe in list(self._pipes):
                    self._carry(pipe)

    def _idle(self) -> bool:
        return not any(pipe.held for pipe in self._pipes)

    def _moves(self, pipe: _Pipe) -> bool:
        return self.mode not in ("stall", f"stall {pipe.way}")

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.mode == "refuse":
                near.close()
                continue
            if self.mode == "deaf":
                self._orphans.append(near)
                continue
            try:
                far = self._dial()
            except OSError:
                near.close()
                continue
            for end in (near, far):
                end.setblocking(False)
                if end.family != socket.AF_UNIX:
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pipes += [_Pipe(near, far, "from"), _Pipe(far, near, "to")]

    def _carry(self, pipe: _Pipe) -> None:
        if pipe not in self._pipes or not self._moves(pipe):
            return
        now_s = time.monotonic()
        size = 7 if self.mode == "trickle" else CHUNK
        if len(pipe.held) < 64:
            try:
                data = pipe.source.recv(size)
            except BlockingIOError:
                data = None
            except OSError:
                data = b""
            if data == b"":
                self._drop(pipe)
                return
            if data:
                pipe.held.append((now_s + (0.15 if self.mode == "delay" else 0.0), data))
        while pipe.held and pipe.held[0][0] <= now_s and self._push(pipe):
            pass

    def _push(self, pipe: _Pipe) -> bool:
        """Send one piece on. False if it or the next one has to wait."""
        at_s, data = pipe.held.popleft()
        if self._cut_at is not None:
            room = max(0, self._cut_at - sum(other.carried for other in self._pipes))
            if len(data) >= room:
                with contextlib.suppress(OSError):
                    pipe.target.send(data[:room])
                self._cut_at = None
                self._break_all()
                return False
        try:
            sent = pipe.target.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(pipe)
            return False
        pipe.carried += sent
        if sent < len(data):
            pipe.held.appendleft((at_s, data[sent:]))
        return sent == len(data)

    def _drop(self, pipe: _Pipe) -> None:
        """One end is closed: so is the other, and both directions."""
        ends = {pipe.source, pipe.target}
        self._pipes = [other for other in self._pipes if other.source not in ends]
        for end in ends:
            end.close()
