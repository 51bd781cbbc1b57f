"""Who may connect: ZeroMQ's authentication handler (RFC 27), one thread for a context.

Owns: the table public key -> principal, and the answers at inproc://zeromq.zap.01. Must not know:
files, sessions. Invariant: only the CURVE mechanism with a key in the table gets 200 and a
User-Id; everything else, and everything while no handler runs, is refused.

ZAP is asked at the handshake only: whoever is removed while connected stays connected until the
application refuses him. So that it can tell one key of a principal from another, the User-Id is
"role:name KEY".
"""

import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

import zmq
from zmq.utils import z85

from posthouse.errors import ConfigError
from posthouse.keys import check_principal

__all__ = ["DOMAIN", "ENDPOINT", "Gate", "answer"]

DOMAIN: Final = b"posthouse"
ENDPOINT: Final = "inproc://zeromq.zap.01"

_VERSION = b"1.0"


def answer(parts: list[bytes], table: Mapping[bytes, str]) -> list[bytes]:
    """The reply to one ZAP request."""
    request = parts[1] if len(parts) > 1 else b""
    refused = [_VERSION, request, b"400", b"refused", b"", b""]
    if len(parts) != 7 or parts[0] != _VERSION:
        return refused
    domain, mechanism, key = parts[2], parts[5], parts[6]
    if domain != DOMAIN or mechanism != b"CURVE" or len(key) != 32:
        return refused
    principal = table.get(key)
    if principal is None:
        return refused
    return [_VERSION, request, b"200", b"", f"{principal} {z85.encode(key).decode()}".encode(), b""]


class Gate:
    """The handler of one context. Start it before the first socket binds; close it after the last.

    Owner: `_table` is replaced as a whole by the owner's thread and only read by the handler's, so
    a look-up sees the old table or the new one, never half of one.
    """

    def __init__(self, context: zmq.Context[Any], principals: Mapping[bytes, str]) -> None:
        self._lock = threading.Lock()  # two writers must not lose each other's change
        self._table: dict[bytes, str] = {}
        self.replace(principals)
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._control = context.socket(zmq.PAIR)
        self._far = context.socket(zmq.PAIR)
        control = f"inproc://posthouse.zap.{id(self)}"
        try:
            self._socket.bind(ENDPOINT)
        except zmq.ZMQError as error:
            for socket in (self._socket, self._control, self._far):
                socket.close(0)
            raise ConfigError(f"this context has a ZAP handler already: {error}") from None
        self._far.bind(control)
        self._control.connect(control)
        self._thread = threading.Thread(target=self._run, name="posthouse-zap", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """False if the thread has ended: from then on nobody new gets in."""
        return self._thread.is_alive()

    def replace(self, principals: Mapping[bytes, str]) -> None:
        """Make this the whole table. Raises ConfigError for a bad principal."""
        for principal in principals.values():
            check_principal(principal)
        with self._lock:
            self._table = dict(principals)

    def add(self, key: bytes, principal: str) -> None:
        """Let a key in from now on. Raises ConfigError for a bad principal."""
        check_principal(principal)
        with self._lock:
            self._table = {**self._table, key: principal}

    def remove(self, key: bytes) -> None:
        """Let a key in no longer."""
        with self._lock:
            self._table = {k: v for k, v in self._table.items() if k != key}

    @property
    def entries(self) -> frozenset[tuple[str, str]]:
        """Each principal with each of its keys, as a User-Id names them."""
        return frozenset((who, z85.encode(key).decode()) for key, who in self._table.items())

    def close(self) -> None:
        """End the thread."""
        if self._control.closed:
            return
        self._control.send(b"")
        self._thread.join()
        self._control.close(0)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._far, zmq.POLLIN)
        try:
            while True:
                ready = dict(poller.poll())
                if self._far in ready:
                    return
                self._socket.send_multipart(answer(self._socket.recv_multipart(), self._table))
        except zmq.ContextTerminated:
            pass  # the context went first; what is not answered is refused
        finally:
            self._socket.close(0)
            self._far.close(0)
