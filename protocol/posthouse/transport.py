"""ZeroMQ: the one socket factory, the listening shell and the dialling shell.

Owns: every socket and its options. Must not know: messages, sessions, who may do what.
Invariant: no socket leaves this module without all options of its table, and none that can be
reached by others without CURVE and an enforced ZAP domain.

A `Listener` is a bound ROUTER; a `Line` is a DEALER that is replaced by a fresh one at each
redial. Both move single frames: one ZeroMQ part after the ROUTER's routing id.
"""

import contextlib
import errno
import ipaddress
import os
import stat
import struct
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

import zmq

from posthouse import limits, zap
from posthouse.errors import ConfigError
from posthouse.keys import ClientKeys, ServerKeys

__all__ = [
    "OPTIONS",
    "Endpoint",
    "Inbound",
    "Line",
    "Listener",
    "Option",
    "Trouble",
    "new_context",
    "open_dealer",
    "open_router",
    "parse_endpoint",
]

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]
ListenerRole = Literal["agents", "clients"]
Outcome = Literal["sent", "full", "gone"]


class Option(NamedTuple):
    """One socket option. A `range` is drawn from at random, anew for each socket."""

    name: str
    value: int | bytes | range
    why: str


# A whole outbox and what goes beside it unnumbered, acknowledgements among it: if a queue were full
# before the outbox is, a peer that is merely busy would be taken for one that is gone.
_BACKSTOP: Final = 2 * limits.outbox_messages_max

_EVERYWHERE: Final = (
    Option("LINGER", 0, "a process never hangs in its exit; the goodbye is acknowledged instead"),
    Option("HEARTBEAT_IVL", 2_000, "without it a silent cut is not noticed for 15 minutes"),
    Option("HEARTBEAT_TIMEOUT", 6_000, "the connection goes; a session's own silence is shorter"),
    Option("HEARTBEAT_TTL", 6_000, "as the timeout; values over 65.5 s would wrap"),
    Option("HANDSHAKE_IVL", 3_000, "half-open handshakes hold a descriptor for no longer"),
    Option("TCP_KEEPALIVE", 1, "finds dead peers below ZMTP and keeps NAT entries alive"),
    Option("TCP_KEEPALIVE_IDLE", 30, "seconds until the first probe"),
    Option("TCP_KEEPALIVE_INTVL", 5, "seconds between probes"),
    Option("TCP_KEEPALIVE_CNT", 3, "probes without an answer until the connection is dead"),
    Option("IPV6", 1, "addresses of both kinds"),
)
_ROUTER: Final = (
    *_EVERYWHERE,
    Option("ROUTER_MANDATORY", 1, "a send that cannot be delivered fails instead of vanishing"),
    Option("ROUTER_HANDOVER", 0, "else any key could take over another peer's routing id"),
    Option("SNDHWM", _BACKSTOP, "a backstop only: outboxes and credits are the flow control"),
    Option("RCVHWM", 200, "per peer; bounds what one peer can pile up here"),
    Option("BACKLOG", 1_024, "a whole fleet returns at once after a restart"),
)

OPTIONS: Final[dict[str, tuple[Option, ...]]] = {
    "agents": (
        *_ROUTER,
        Option("MAXMSGSIZE", limits.agent_frame_bytes_max, "larger frames end the connection"),
    ),
    "clients": (
        *_ROUTER,
        Option("MAXMSGSIZE", limits.client_frame_bytes_max, "larger frames end the connection"),
    ),
    "dealer": (
        *_EVERYWHERE,
        Option("IMMEDIATE", 1, "nothing is queued for a master that may never come, or be another"),
        Option("SNDHWM", _BACKSTOP, "a backstop only"),
        Option("RCVHWM", 1_000, "a backstop only"),
        Option("MAXMSGSIZE", limits.client_frame_bytes_max, "larger frames end the connection"),
        Option("RECONNECT_IVL", range(100, 501), "up to twice that: soon, and not in lockstep"),
        Option("RECONNECT_IVL_MAX", 0, "libzmq has no jitter with exponential back-off"),
    ),
}
"""What each kind of socket is set to before it binds or connects. No routing id is ever set: the
ROUTER draws one for each connection, so none can be stolen or be stale."""

_CURVE_SERVER: Final = (
    Option("ZAP_DOMAIN", zap.DOMAIN, "the handler is asked about every handshake"),
    Option("ZAP_ENFORCE_DOMAIN", 1, "without a handler nobody gets in, instead of everybody"),
    Option("CURVE_SERVER", 1, "CURVE or nothing"),
)


def new_context() -> Context:
    """A context of one I/O thread. Never carried over a fork: its sockets go dead there."""
    return zmq.Context(io_threads=1)


# --- endpoints ---


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address that posthouse listens on or dials: ipc:///absolute/path or tcp://host:port."""

    text: str
    path: str = ""  # of ipc
    host: str = ""  # of tcp

    @property
    def folder(self) -> str:
        return str(Path(self.path).parent)

    @property
    def loopback(self) -> bool:
        """True if no other machine can reach it."""
        if self.path or self.host == "localhost":
            return True
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)  # how a socket of both kinds says IPv4
        return (mapped or address).is_loopback


def parse_endpoint(text: str) -> Endpoint:
    """Raises ConfigError for anything but ipc:///absolute/path and tcp://host:port.

    >>> parse_endpoint("tcp://[::1]:7400").loopback
    True
    """
    scheme, separator, rest = text.partition("://")
    if scheme == "ipc" and separator:
        if rest.startswith("@"):
            raise ConfigError(f"{text}: must be a path; abstract sockets have no permissions")
        if not rest.startswith("/") or rest.endswith("/") or "\0" in rest:
            raise ConfigError(f"{text}: must be ipc:// and the absolute path of a socket")
        bytes_max = limits.socket_path_bytes_max
        if len(os.fsencode(rest)) > bytes_max:
            raise ConfigError(
                f"{text}: the path of a Unix socket must be at most {bytes_max} bytes"
            )
        return Endpoint(text, path=rest)
    host, colon, port = rest.rpartition(":")
    if scheme == "tcp" and colon and host and (port == "*" or port.isdecimal()):
        return Endpoint(text, host=host.removeprefix("[").removesuffix("]"))
    raise ConfigError(f"{text!r}: must be ipc:///absolute/path or tcp://host:port")


def _check_unkeyed(endpoint: Endpoint, *, insecure: bool) -> None:
    if endpoint.path:
        return
    if not insecure:
        raise ConfigError(
            f"{endpoint.text}: TCP needs CURVE keys",
            hint="posthouse keygen makes them; --insecure serves the loopback address without",
        )
    if not endpoint.loopback:
        raise ConfigError(f"{endpoint.text}: without keys only a loopback address is allowed")


def _open_folder(folder: str) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _check_listen_folder(folder: str) -> os.stat_result:
    """Only we may put anything there, and nobody outside our group may reach it."""
    try:
        descriptor = _open_folder(folder)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot hold a socket: {error.strerror}") from None
    try:
        found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"{folder}: belongs to user {found.st_uid}: the folder of a socket must belong to "
            f"user {os.geteuid()}, who listens"
        )
    _check_private(folder, found)
    return found


def _check_dial_folder(folder: str) -> None:
    """Whoever listens there must be us, root, or somebody who shares a group with us on purpose.
    A folder that is not there yet is nobody's: the connection is tried until it is."""
    if sys.platform == "win32":
        return  # no owners and modes of this kind
    try:
        descriptor = _open_folder(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be reached: {error.strerror}") from None
    try:
        found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    groups = {os.getegid(), *os.getgroups()}
    if found.st_uid not in (os.geteuid(), 0) and found.st_gid not in groups:
        raise ConfigError(
            f"{folder}: belongs to user {found.st_uid}: the folder of a socket must belong to user "
            f"{os.geteuid()}, root, or a group of ours"
        )
    _check_private(folder, found)


def _check_private(folder: str, found: os.stat_result) -> None:
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o027:
        raise ConfigError(
            f"{folder}: has mode {mode:04o}: the folder of a socket must have mode 0700 or 0750",
            hint=f"chmod 0700 {folder}",
        )


# --- the factory ---


def _set(socket: Socket, option: Option, entropy: Callable[[int], bytes]) -> None:
    value = option.value
    if isinstance(value, range):
        value = value[int.from_bytes(entropy(4)) % len(value)]
    socket.setsockopt(getattr(zmq, option.name), value)


def open_dealer(
    context: Context,
    endpoint: str,
    *,
    keys: ClientKeys | None,
    entropy: Callable[[int], bytes],
    insecure: bool = False,
) -> Socket:
    """A DEALER that is connecting. Raises ConfigError for an address that may not be dialled."""
    address = parse_endpoint(endpoint)
    if keys is None:
        _check_unkeyed(address, insecure=insecure)
        if address.path:
            _check_dial_folder(address.folder)
    socket = context.socket(zmq.DEALER)
    try:
        for option in OPTIONS["dealer"]:
            _set(socket, option, entropy)
        if keys is not None:
            socket.curve_publickey = keys.public.encode()
            socket.curve_secretkey = keys.secret.encode()
            socket.curve_serverkey = keys.server.encode()
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        socket.close(0)
        raise ConfigError(f"{endpoint}: cannot be dialled: {error}") from None
    return socket


def open_router(
    context: Context,
    endpoint: str,
    *,
    role: ListenerRole,
    keys: ServerKeys | None,
    insecure: bool = False,
) -> "Listener":
    """A bound ROUTER. Raises ConfigError for an address that may not be served, or is taken."""
    address = parse_endpoint(endpoint)
    if keys is None:
        _check_unkeyed(address, insecure=insecure)
    lock: int | None = None
    folder: os.stat_result | None = None
    if address.path:
        folder = _check_listen_folder(address.folder)
        _check_path(address.path)
        lock = _take_path(address)
    socket = context.socket(zmq.ROUTER)
    try:
        for option in OPTIONS[role]:
            _set(socket, option, os.urandom)
        if keys is not None:
            for option in _CURVE_SERVER:
                _set(socket, option, os.urandom)
            socket.curve_secretkey = keys.secret.encode()
        socket.bind(endpoint)
        if folder is not None:
            # bind leaves the mode to the umask; those who may enter the folder may connect.
            Path(address.path).chmod(0o660 if folder.st_mode & 0o010 else 0o600)
    except (zmq.ZMQError, OSError) as error:
        socket.close(0)
        if lock is not None:
            os.close(lock)
        raise ConfigError(f"{endpoint}: cannot be listened on: {error}") from None
    return Listener(socket, keyed=keys is not None, lock=lock)


def _check_path(path: str) -> None:
    """bind removes whatever is there: only a socket may go. Raises ConfigError."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ConfigError(
                f"{path} is there and is no socket", hint="move it away, or listen elsewhere"
            )


def _take_path(address: Endpoint) -> int:
    """Lock the socket's path: binding would steal it from a living listener without an error."""
    import fcntl  # only where something is served; clients run where it does not exist

    path = f"{address.path}.lock"
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be locked: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno != errno.EWOULDBLOCK:
            raise ConfigError(f"{path}: cannot be locked: {error.strerror}") from None
        raise ConfigError(f"{address.text}: another process listens there") from None
    return descriptor


# --- the listening shell ---


class Inbound(NamedTuple):
    """One message. `user_id` is the ZAP handler's word ("role:name") and `key` the public key that
    it goes by; None and "" on a key-less socket. `malformed` says why `frame` is not to be decoded;
    it is empty for a well-formed message."""

    routing_id: bytes
    user_id: str | None
    frame: bytes
    malformed: str = ""
    key: str = ""


class Listener:
    """A bound ROUTER and the lock on its path. Owned by one thread."""

    def __init__(self, socket: Socket, *, keyed: bool, lock: int | None) -> None:
        self.socket = socket
        self.keyed = keyed
        self.nameless = 0  # messages on a keyed socket without a User-Id: never delivered
        self._lock = lock

    @property
    def endpoint(self) -> str:
        """The address, with the port that was drawn for tcp://host:*."""
        return self.socket.get_string(zmq.LAST_ENDPOINT)

    def receive(self, messages_max: int = limits.drain_messages_max) -> list[Inbound]:
        """What has arrived, at most so many messages. Never blocks."""
        found: list[Inbound] = []
        while len(found) < messages_max:
            try:
                routing_id = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            if not self.socket.getsockopt(zmq.RCVMORE):
                found.append(Inbound(routing_id, None, b"", "a message without a frame"))
                continue
            inbound = self._rest(routing_id)
            if inbound is not None:
                found.append(inbound)
        return found

    def _rest(self, routing_id: bytes) -> Inbound | None:
        # Messages are atomic: the other parts are here. They are dropped one at a time, because a
        # peer may have sent a million.
        user_id: str | None = None
        key = ""
        if self.keyed:
            # Only zmq's own Frame tells the User-Id; plain bytes have lost it.
            part = self.socket.recv(zmq.NOBLOCK, copy=False)
            frame, more = part.bytes, part.more
            try:
                user_id, _, key = str(part.get("User-Id")).partition(" ")
            except zmq.ZMQError:
                user_id = None
        else:
            frame = self.socket.recv(zmq.NOBLOCK)
            more = bool(self.socket.getsockopt(zmq.RCVMORE))
        parts = 1
        while more:
            self.socket.recv(zmq.NOBLOCK)
            more = bool(self.socket.getsockopt(zmq.RCVMORE))
            parts += 1
        if self.keyed and not user_id:
            self.nameless += 1
            return None
        if parts > 1:
            return Inbound(routing_id, user_id, b"", f"a message of {parts} frames", key)
        return Inbound(routing_id, user_id, frame, key=key)

    def send(self, routing_id: bytes, frame: bytes) -> Outcome:
        """ "full": the peer does not read, the frame was not taken. "gone": no such peer now."""
        try:
            self.socket.send_multipart((routing_id, frame), zmq.NOBLOCK)
        except zmq.Again:
            return "full"
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return "gone"
            raise
        return "sent"

    def close(self) -> None:
        """Stop listening; then give the path free."""
        self.socket.close(0)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


# --- the dialling shell ---

_POLLIN: Final = int(zmq.POLLIN)

_TROUBLE: Final = {
    zmq.Event.CONNECT_RETRIED: "nobody listens there",
    zmq.Event.DISCONNECTED: "disconnected",
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL: "the handshake failed",
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL: "the handshake failed: wrong protocol or keys",
    zmq.Event.HANDSHAKE_FAILED_AUTH: "the master does not accept our key",
}
_EXPLAINS_LITTLE: Final = (zmq.Event.DISCONNECTED, zmq.Event.CONNECT_RETRIED)


class Trouble(NamedTuple):
    """What a connection suffers. `retried`: there is none yet, and the socket tries again by itself
    soon; what is to be sent waits for it."""

    reason: str
    retried: bool = False


class Line:
    """The socket of a Dialler: its effects Redial and Transmit, and what comes back.

    Owned by one thread. The loop polls `poller`-registered sockets (see `watch`), then calls
    `receive` and `trouble`, whatever was ready.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        keys: ClientKeys | None = None,
        insecure: bool = False,
        entropy: Callable[[int], bytes] = os.urandom,
        context: Context | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.dropped = 0  # frames that found the pending list full; the link sends them again
        self._keys = keys
        self._insecure = insecure
        self._entropy = entropy
        self._own_context = context is None
        self._context = context or new_context()
        self._socket: Socket | None = None
        self._monitor: Socket | None = None
        self._poller: zmq.Poller | None = None
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0
        self._failed = ""  # this socket's handshake, and why: nothing later explains as much

    @property
    def socket(self) -> Socket | None:
        """The present DEALER; another one after each redial."""
        return self._socket

    @property
    def pending(self) -> int:
        """Frames that wait for the connection."""
        return len(self._pending)

    def watch(self, poller: zmq.Poller) -> None:
        """Keep `poller` up to date with the socket, its monitor and whether there is something to
        be written, through all redials."""
        self._poller = poller
        self._register()

    def redial(self) -> None:
        """Close the socket with all that is queued in it; connect a new one. Raises ConfigError."""
        self._hang_up()
        self._failed = ""
        self._socket = open_dealer(
            self._context,
            self.endpoint,
            keys=self._keys,
            entropy=self._entropy,
            insecure=self._insecure,
        )
        self._monitor = self._socket.get_monitor_socket(sum(_TROUBLE))
        self._register()

    def transmit(self, frame: bytes) -> None:
        """Send the frame, or keep it until the socket can. Never blocks."""
        if self._socket is None:
            return
        if not self._pending:
            try:
                self._socket.send(frame, zmq.NOBLOCK)
                return
            except zmq.Again:
                pass
        room = self._pending_bytes + len(frame) <= limits.line_bytes_max
        if not room or len(self._pending) >= limits.line_frames_max:
            self.dropped += 1
            return
        self._pending.append(frame)
        self._pending_bytes += len(frame)
        self._register()

    def receive(self, frames_max: int = limits.drain_messages_max) -> list[bytes]:
        """Frames that have arrived, at most so many; also sends what waited. Never blocks."""
        if self._socket is None:
            return []
        self._flush()
        frames: list[bytes] = []
        while len(frames) < frames_max:
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            # A master sends one part; several cannot be a frame, and the empty one is none.
            frames.append(parts[0] if len(parts) == 1 else b"")
        return frames

    def trouble(self) -> Trouble | None:
        """Why the connection broke or could not be made, if it did since the last call."""
        said: Trouble | None = None
        while self._monitor is not None and _readable(self._monitor):
            event = _monitored(self._monitor.recv_multipart(zmq.NOBLOCK))
            if event not in _TROUBLE:
                continue
            # A failed handshake is followed by a disconnection, which explains less, perhaps only
            # after the next call, and that by another try.
            if event not in _EXPLAINS_LITTLE:
                self._failed = _TROUBLE[event]
            if event is not zmq.Event.CONNECT_RETRIED:
                said = Trouble(self._failed or _TROUBLE[event])
            elif said is None:
                said = Trouble(self._failed or _TROUBLE[event], retried=True)
        return said

    def close(self, goodbye_ms: int = 0) -> None:
        """Close the socket, and the context if it is the line's own. What was sent last gets
        `goodbye_ms` to leave, if there is a connection."""
        if goodbye_ms and self._socket is not None:
            self._flush()
        self._hang_up(goodbye_ms)
        if self._own_context:
            self._context.term()

    def _flush(self) -> None:
        assert self._socket is not None
        if not self._pending:
            return
        while self._pending:
            try:
                self._socket.send(self._pending[0], zmq.NOBLOCK)
            except zmq.Again:
                return
            self._pending_bytes -= len(self._pending.popleft())
        self._register()

    def _register(self) -> None:
        if self._poller is None or self._socket is None:
            return
        # POLLOUT only while frames wait: it is ready nearly always and would spin the loop.
        self._poller.register(
            self._socket, zmq.POLLIN | zmq.POLLOUT if self._pending else zmq.POLLIN
        )
        if self._monitor is not None:
            self._poller.register(self._monitor, zmq.POLLIN)

    def _hang_up(self, linger_ms: int = 0) -> None:
        self._pending.clear()
        self._pending_bytes = 0
        for socket in (self._monitor, self._socket):
            if socket is not None and self._poller is not None and socket in self._poller:
                self._poller.unregister(socket)
        if self._socket is not None:
            self._socket.disable_monitor()
            self._socket.close(linger_ms)
        if self._monitor is not None:
            self._monitor.close(0)
        self._socket = self._monitor = None


def _readable(socket: Socket) -> bool:
    """As poll(0), which makes a poller of its own for each call."""
    return bool(int(socket.get(zmq.EVENTS)) & _POLLIN)


def _monitored(parts: list[bytes]) -> zmq.Event:
    """What a monitor's message is about: zmq_socket_monitor(3). pyzmq's own reader of it loads
    asyncio and ssl, 7 MB that neither daemon nor client needs."""
    (event,) = struct.unpack_from("=H", parts[0])
    return zmq.Event(event)
