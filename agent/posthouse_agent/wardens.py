"""Finding a warden, starting one where there is none, and talking with it.

Owns: the warden's process start and the agent's end of its socket. Must not know: what orders and
reports mean. Invariant: the peer is a process of our own user, and the agent is never more to a
warden than the process that exec'd it: own session, own files, no end of ours is its end.
"""

import array
import contextlib
import errno
import os
import resource
import select
import socket
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from posthouse import limits, paths
from posthouse.errors import PosthouseError
from posthouse.settings import AgentSettings
from posthouse_agent import homeless, orders
from posthouse_agent.journal import read_journal
from posthouse_agent.orders import Order, Report
from posthouse_agent.warden_core import recover
from posthouse_agent.wards import FENCED, KINDS

__all__ = ["WardenConnection", "WardenLost", "WardenStarter", "is_wanted", "warden_argv"]

_WANTED = "wanted"  # a file in the folder of a kind: whoever starts wardens is to start this one

_START_S = 10.0  # from exec to a listening socket; measured: 0.1 s idle, 1 s on a busy machine
_YIELD_S = 0.5
_TRY_S = 0.01
_CONNECT_S = 2.0  # a warden that is stopped does not accept, and its backlog may be full
_SOCKET_BYTES = 2 * limits.warden_frame_bytes_max
_FDS_MAX = 2  # channel and latch
_LOG_BYTES_MAX = 1024 * 1024  # of a warden's own log; emptied when the next one starts


def warden_argv(settings: AgentSettings, kind: str) -> list[str]:
    """The command that is a warden of this host."""
    argv = [sys.executable, "-P", "-m", "posthouse_agent.warden"]
    argv += ["--runtime-dir", settings.runtime_dir, "--log-dir", settings.log_dir]
    argv += ["--kind", kind, "--name", settings.host]
    if settings.users:
        argv += ["--users", ",".join(settings.users)]
    if settings.cgroups != "auto":
        argv += ["--cgroups", settings.cgroups]
    return argv


def is_wanted(runtime_dir: str, kind: str) -> bool:
    """Whether a warden of this kind is to run: the fenced one always, others once an agent that
    may not start wardens has asked for them."""
    return kind == FENCED or Path(runtime_dir, kind, _WANTED).exists()


class WardenLost(Exception):
    """The connection is over. Its text says why."""


@dataclass(frozen=True, slots=True)
class Incoming:
    report: Report
    descriptors: tuple[int, ...]


class WardenConnection:
    """A SOCK_SEQPACKET connection: one record a message, descriptors beside it. Never blocks."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        # A packet must fit into the buffer as a whole, and the default is smaller than the largest.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
        self._socket = connection
        self._pending: deque[bytes] = deque()

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def events(self) -> int:
        """What to poll for."""
        return select.EPOLLIN | (select.EPOLLOUT if self._pending else 0)

    def give(self, order: Order) -> None:
        """Send the order after those before it. Raises WardenLost."""
        if len(self._pending) >= limits.warden_orders_max:
            raise WardenLost(f"it has not read {len(self._pending)} orders")
        self._pending.append(orders.pack(order))
        self.flush()

    def flush(self) -> None:
        """Send what has waited. Raises WardenLost."""
        while self._pending:
            try:
                self._socket.send(self._pending[0], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError as error:
                raise WardenLost(f"send: {error.strerror}") from None
            self._pending.popleft()

    def receive(self) -> Incoming | None:
        """The next report, or None if there is none now. Raises WardenLost."""
        space = socket.CMSG_SPACE(_FDS_MAX * array.array("i").itemsize)
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(
                limits.warden_frame_bytes_max + 1, space, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except OSError as error:
            raise WardenLost(f"receive: {error.strerror}") from None
        descriptors = _descriptors(ancillary)
        if not data:
            raise WardenLost("it closed the connection")
        try:
            if flags & socket.MSG_TRUNC:
                raise ValueError("a report that is too long")
            return Incoming(orders.unpack(data), descriptors)
        except ValueError as error:
            for descriptor in descriptors:
                os.close(descriptor)
            raise WardenLost(f"not understood: {error}") from None

    def close(self) -> None:
        self._socket.close()


class WardenStarter:
    """Connects to wardens and starts those that are missing. Blocks: for the I/O thread."""

    def __init__(self, settings: AgentSettings, descriptors_soft: int) -> None:
        self._settings = settings
        self._runtime_dir = settings.runtime_dir
        self._may_start = settings.start_wardens
        self._descriptors_soft = descriptors_soft
        self._children: dict[int, str] = {}  # wardens that we exec'd, by pid

    def there(self) -> tuple[str, ...]:
        """The kinds, beside the fenced one, of which a warden runs here, or has left workers or
        exits that only the next one can tell of."""
        return tuple(kind for kind in KINDS if kind != FENCED and self._is_there(kind))

    def _is_there(self, kind: str) -> bool:
        folder = Path(self._runtime_dir, kind)
        try:
            if not (folder / "warden.lock").exists():
                homeless.end_homeless(str(folder))
                return False
            connection = _try(str(folder / "warden.sock"))
            if connection is not None:
                connection.close()
                return True
            _, entries, _ = read_journal(str(folder / "journal"))
        except (WardenLost, OSError):
            return True  # it has the word on its own trouble
        left = recover(entries, rebooted=False)
        return bool(left.lost or left.exits)

    def connect(self, kind: str) -> WardenConnection:
        """A fresh connection. Raises WardenLost, with what the warden last wrote in its log."""
        self._reap()
        path = str(Path(self._runtime_dir, kind, "warden.sock"))
        connection = _try(path)
        if connection is not None:
            return connection
        pid = self._start(kind) if self._may_start else self._ask_for(kind)
        ended = not self._may_start
        patience_s = _YIELD_S if ended and kind == FENCED else _START_S
        deadline_s = time.monotonic() + patience_s
        while time.monotonic() < deadline_s:
            connection = _try(path)
            if connection is not None:
                return connection
            self._reap()
            if pid not in self._children and not ended:
                # Perhaps because another one has the lock, which is about to listen: a moment more.
                ended, deadline_s = True, min(deadline_s, time.monotonic() + _YIELD_S)
            time.sleep(_TRY_S)
        if not self._may_start:
            raise WardenLost(f"nobody listens at {path}, and start_wardens is false")
        what = "ended at once" if ended else f"did not listen within {_START_S:g} s"
        raise WardenLost(f"it {what}; {self._last_words(kind)}")

    def _ask_for(self, kind: str) -> int:
        """Of whoever starts wardens here. The fenced one is started without being asked for."""
        if kind != FENCED:
            try:
                paths.private_dir(Path(self._runtime_dir, kind)).joinpath(_WANTED).touch(0o600)
            except (PosthouseError, OSError) as error:
                raise WardenLost(f"its folder: {error}") from None
        return 0

    def _start(self, kind: str) -> int:
        """exec, not fork: this process has threads. The warden's log is a file of its own, because
        our standard error may be a pipe that ends with us."""
        try:
            folder = paths.private_dir(Path(self._runtime_dir, kind))
            if not (folder / "warden.lock").exists():
                homeless.end_homeless(str(folder))
            log = self._log_path(kind)
            mode = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            if log.exists() and log.stat().st_size > _LOG_BYTES_MAX:
                mode |= os.O_TRUNC
        except (PosthouseError, OSError) as error:
            raise WardenLost(f"its folder: {error}") from None
        try:
            pid = os.posix_spawn(
                sys.executable,
                warden_argv(self._settings, kind),
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, str(folder / log.name), mode, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,
                setsigmask=(),
            )
        except OSError as error:
            raise WardenLost(f"it cannot be started: {error.strerror}") from None
        self._children[pid] = kind
        # We have raised our own limit; workers are to get the one that we were started with. The
        # warden reads it tens of milliseconds from now.
        with contextlib.suppress(OSError, ValueError):
            _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (self._descriptors_soft, hard))
        return pid

    def _reap(self) -> None:
        for pid in list(self._children):
            try:
                ended = os.waitpid(pid, os.WNOHANG)[0] != 0
            except ChildProcessError:
                ended = True
            if ended:
                del self._children[pid]

    def _log_path(self, kind: str) -> Path:
        return Path(self._runtime_dir, kind, "warden.log")

    def _last_words(self, kind: str) -> str:
        path = self._log_path(kind)
        try:
            lines = path.read_text(errors="replace").splitlines()
        except OSError:
            return f"it left no log at {path}"
        return f"its log ends: {lines[-1][:500]}" if lines else f"its log {path} is empty"


def _try(path: str) -> WardenConnection | None:
    """A connection to the warden that listens at this path, if one does."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(_CONNECT_S)
        connection.connect(path)
        size = struct.calcsize("3i")
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        _, user, _ = struct.unpack("3i", peer)
        if user not in (os.geteuid(), 0):
            raise WardenLost(f"{path} is served by user {user}")
        return WardenConnection(connection)
    except TimeoutError:
        connection.close()
        raise WardenLost(f"{path}: it does not accept connections") from None
    except OSError as error:
        connection.close()
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
            return None
        raise WardenLost(f"{path}: {error.strerror}") from None
    except BaseException:
        connection.close()
        raise


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, ...]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return tuple(found)
