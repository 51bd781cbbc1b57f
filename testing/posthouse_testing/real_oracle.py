"""The oracle of a real cluster: a server that each holder has an open connection to.

Owns: the socket, the thread, whose connection is whose. Must not know: posthouse, processes.
Invariant: a hold ends when the kernel closes the holder's end of its socket, so a process that
still runs, stopped or cut off or forgotten by everybody, still holds.
"""

import contextlib
import json
import selectors
import socket
import threading
import time
from pathlib import Path

from posthouse_testing.oracle import DoubleRun, Exclusive, Hold

__all__ = ["OracleServer"]

_WORD_BYTES = 4096  # of what a holder says of itself


class OracleServer:
    """Serves `inside.exclusive` until `close`. Its Exclusives may be read from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begun_s = time.monotonic()
        self._exclusives: dict[str, Exclusive] = {}
        self._holds: dict[socket.socket, Hold] = {}
        self._lock = threading.RLock()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen(128)
        self._wake_in, self._wake_out = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="oracle", daemon=True)
        self._thread.start()

    def exclusive(self, name: str) -> Exclusive:
        """What only one may hold, the same one for each name."""
        with self._lock:
            if name not in self._exclusives:
                now = lambda: time.monotonic() - self._begun_s  # noqa: E731
                self._exclusives[name] = Exclusive(name, now)
            return self._exclusives[name]

    def broken(self) -> list[DoubleRun]:
        with self._lock:
            return [error for one in self._exclusives.values() for error in one.broken]

    def close(self) -> None:
        self._wake_in.send(b"\0")
        self._thread.join()
        for end in (self._wake_in, self._wake_out, self._listener, *self._holds):
            end.close()

    def _run(self) -> None:
        with selectors.DefaultSelector() as ready:
            for served in (self._listener, self._wake_out):
                ready.register(served, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select():
                    end = key.fileobj
                    assert isinstance(end, socket.socket)
                    if end is self._wake_out:
                        return
                    if end is self._listener:
                        with contextlib.suppress(OSError):
                            ready.register(end.accept()[0], selectors.EVENT_READ)
                    elif not self._heard(end):
                        ready.unregister(end)
                        end.close()

    def _heard(self, end: socket.socket) -> bool:
        """False: this holder is gone."""
        try:
            word = end.recv(_WORD_BYTES)
        except OSError:
            word = b""
        with self._lock:
            if not word:
                if end in self._holds:
                    self._holds.pop(end).release()
                return False
            said = json.loads(word)
            # The end of the last holder may lie unread beside this beginning: the kernel closed it
            # before anybody was told that the process is dead.
            for other in list(self._holds):
                if _is_closed(other):
                    self._holds[other].release()
            try:
                self._holds[end] = self.exclusive(str(said["name"])).take(str(said["who"]))
                answer = ""
            except DoubleRun as error:
                answer = str(error)
        with contextlib.suppress(OSError):
            end.send(json.dumps(answer).encode())
        return True


def _is_closed(end: socket.socket) -> bool:
    try:
        return not end.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
