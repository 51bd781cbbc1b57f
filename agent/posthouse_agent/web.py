"""/livez, /readyz and /metrics of a host, in threads of their own beside the agent's loop.

Owns: the HTTP server, the bridge by which it asks the loop for a view. Must not know: what a
metric is called, how a view comes about.

Invariant: only the loop's thread touches the core, and it never waits for a reader: the threads ask
through a bounded queue, with a deadline, so a slow reader costs the host nothing, and a loop that
hangs is seen: /livez then answers 503. What reads /proc runs one at a time.
"""

import contextlib
import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from posthouse import limits
from posthouse_agent.metrics import expose
from posthouse_agent.view import HostView

__all__ = ["Server"]

_ENDS: Final = b"\r\n\r\n"
_HUNG: Final = "the agent's loop does not answer"
_WORDS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    503: "Service Unavailable",
}
_JSON: Final = "application/json"


class Server:
    """Serves until `close`. `answer` is the loop's part: due when `fileno` is readable."""

    def __init__(self, listening: socket.socket, runtime_dir: str) -> None:
        self._listening = listening
        self._runtime_dir = runtime_dir
        self._asked: queue.Queue[Future[HostView]] = queue.Queue(limits.host_web_connections_max)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._slots = threading.BoundedSemaphore(limits.host_web_connections_max)
        self._measuring = threading.Lock()
        self._closed = False
        threading.Thread(target=self._accept, name="web", daemon=True).start()

    def fileno(self) -> int:
        return self._wake

    def answer(self, view: Callable[[], HostView]) -> None:
        """On the loop's thread: one view for everybody who asks now."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        waiting = []
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.append(self._asked.get_nowait())
        now = view() if waiting else None
        for asked in waiting:
            if asked.set_running_or_notify_cancel() and now is not None:
                asked.set_result(now)

    def close(self) -> None:
        """Nobody is served any more. The wake-up's descriptor stays: a thread may still use it."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    # --- the threads ---

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                if not self._closed:
                    time.sleep(0.1)  # no descriptors: later
                continue
            if not self._slots.acquire(blocking=False):
                connection.close()
                continue
            try:
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
            except RuntimeError:  # no thread to be had
                connection.close()
                self._slots.release()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, contextlib.suppress(OSError):
                status, kind, body = self._reply(_request(connection))
                head = (
                    f"HTTP/1.1 {status} {_WORDS[status]}\r\nContent-Type: {kind}\r\n"
                    f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                )
                connection.settimeout(limits.host_web_s)
                connection.sendall(head.encode() + body)
        finally:
            self._slots.release()

    def _reply(self, request: bytes) -> tuple[int, str, bytes]:
        lines = request.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _json(400, {"reasons": ["not a request of HTTP/1"]})
        if words[0] not in ("GET", "HEAD"):
            return _json(405, {"reasons": [f"{words[0][:16]!r} is not served: GET"]})
        page = self._pages.get(words[1].partition("?")[0])
        if page is None:
            return _json(404, {"reasons": ["there are /livez, /readyz and /metrics"]})
        accept = [line[7:].strip() for line in lines[1:] if line.lower().startswith("accept:")]
        status, kind, body = page(self, self._view(), ",".join(accept))
        return status, kind, b"" if words[0] == "HEAD" else body

    def _view(self) -> HostView | None:
        asked: Future[HostView] = Future()
        try:
            self._asked.put_nowait(asked)
            os.eventfd_write(self._wake, 1)
            return asked.result(limits.host_web_s)
        except (queue.Full, TimeoutError):
            asked.cancel()
            return None

    def _livez(self, view: HostView | None, _accept: str) -> tuple[int, str, bytes]:
        """200 if the loop answers."""
        if view is None:
            return _json(503, {"live": False, "reasons": [_HUNG]})
        return _json(200, {"live": True, "host": view.host})

    def _readyz(self, view: HostView | None, _accept: str) -> tuple[int, str, bytes]:
        """200 if the master can have workers run here, else 503 and why not."""
        reasons = [_HUNG] if view is None else view.not_ready
        body: dict[str, Any] = {"ready": not reasons, "reasons": reasons}
        if view is not None:
            body |= {"host": view.host, "workers": len(view.workers)}
        return _json(503 if reasons else 200, body)

    def _metrics(self, view: HostView | None, accept: str) -> tuple[int, str, bytes]:
        if view is None:
            return _json(503, {"reasons": [_HUNG]})
        with self._measuring:
            body, kind = expose(view, self._runtime_dir, accept)
        return 200, kind, body

    _pages: Final = {"/livez": _livez, "/readyz": _readyz, "/metrics": _metrics}


def _request(connection: socket.socket) -> bytes:
    """The head of a request. Whoever takes too long or says too much is left with what it said."""
    deadline_s = time.monotonic() + limits.host_web_s
    said = b""
    while _ENDS not in said and len(said) < limits.host_web_request_bytes_max:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        connection.settimeout(left_s)
        more = connection.recv(limits.host_web_request_bytes_max - len(said))
        if not more:
            break
        said += more
    return said if _ENDS in said else b""


def _json(status: int, body: object) -> tuple[int, str, bytes]:
    return status, _JSON, json.dumps(body).encode() + b"\n"
