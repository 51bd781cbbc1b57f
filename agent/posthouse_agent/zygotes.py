"""The warden's zygotes: one a runtime, the spares that come from them, the starts that wait.

Owns: which zygote serves, when another is made, who waits for a spare. Must not know: the journal,
the agent, what a worker is beyond its order. Invariant: a spare is given out only if everything
that its zygote has loaded is still the same on disk, and then it is our child, alive when last
heard of, and has been told nothing.
"""

import os
import select
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from errno import EMFILE
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import posthouse
from posthouse import limits
from posthouse_agent import procfs, zygote_line
from posthouse_agent.domains import crash_domain
from posthouse_agent.start_worker import StartWorker
from posthouse_agent.zygote_line import PROTOCOL, PROTOCOL_MIN

__all__ = ["Refused", "Spare", "Zygotes"]

_BOOT: Final = f"{os.path.dirname(os.path.abspath(__file__))}/boot.py"
_POSTHOUSE: Final = os.path.dirname(os.path.abspath(posthouse.__file__))
_LOST_S: Final = 2.0  # a spare that was asked for and does not come by then was killed
_SESSIONS_KEPT: Final = 256  # of zygotes that are gone: their last spares may still come
_BIND_NOW: Final = zygote_line.BIND_NOW
_SHARED_MEMORY: Final = ("posthouse.shmem",)  # 8 ms of each worker's CPU, if it has to import it
_UNFIT: Final = ("PYTHONHOME", "PYTHONPATH")  # of one interpreter, wrong for another

# What belongs to the daemons: keys, and systemd's messages to the one service it started.
_NOT_INHERITED: Final = frozenset(
    (
        "CREDENTIALS_DIRECTORY",
        "INVOCATION_ID",
        "JOURNAL_STREAM",
        "LISTEN_FDNAMES",
        "LISTEN_FDS",
        "LISTEN_PID",
        "MAINPID",
        "NOTIFY_SOCKET",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
    )
)
_NOT_INHERITED_PREFIX: Final = "POSTHOUSE_KEY"


class Spare(NamedTuple):
    """A process that waits to be told which worker it is."""

    pid: int
    pid_start: int
    pidfd: int
    socket: socket.socket
    runtime: str
    code: str  # revision of what it has loaded

    def close(self) -> None:
        """It ends by that."""
        self.socket.close()
        os.close(self.pidfd)


@dataclass(frozen=True, slots=True)
class Refused:
    """This start gets no process; fields as in ForkRefused."""

    order: StartWorker
    code: str
    reason: str
    retry: bool


class _Recipe(NamedTuple):
    """What makes a zygote; another recipe makes another zygote."""

    python: str
    path: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    preload: tuple[str, ...]

    @classmethod
    def of(cls, order: StartWorker) -> "_Recipe":
        env = tuple(sorted(order.env.items()))
        return cls(order.python, tuple(order.path), env, tuple(order.preload))


@dataclass(slots=True, kw_only=True)
class _Zygote:
    """One process."""

    pid: int
    pidfd: int
    line: socket.socket
    since_s: float
    ready: bool = False
    files: list[list[Any]] = field(default_factory=list)
    asked: int = 0  # spares that are on their way
    asked_s: float = 0.0
    again_s: float = 0.0  # no forks before this: the last one failed


@dataclass(slots=True)
class _Seat:
    """A runtime by its name, and whoever serves it."""

    name: str
    recipe: _Recipe | None = None  # of the last start that was wanted
    late: tuple[str, ...] = ()  # what its workers have come to need, and a bare one does not
    zygote: _Zygote | None = None
    code: str = ""  # revision of what the spares, and those of the next fork, have loaded
    files: list[list[Any]] = field(default_factory=list)  # and what it is made of
    checked: int = -1  # the round in which these files were last looked at
    spares: deque[Spare] = field(default_factory=deque)
    waiting: deque[tuple[StartWorker, float]] = field(default_factory=deque)  # and until when
    failures: int = 0
    again_s: float = 0.0  # no new zygote before this
    trouble: tuple[str, str, bool] | None = None  # code, reason, retry of the last one that failed


class Zygotes:
    """`want` a start; `next_settled` says what has come of it."""

    def __init__(self, epoll: select.epoll, host_lock_fd: int, log: Callable[[str], None]) -> None:
        self._epoll = epoll
        self._host_lock_fd = host_lock_fd
        self._log = log
        self._pid = os.getpid()
        self._seats: dict[str, _Seat] = {}
        self._by_fd: dict[int, _Seat] = {}  # lines and pidfds of living zygotes
        self._sessions: deque[int] = deque(maxlen=_SESSIONS_KEPT)
        self._refused: deque[Refused] = deque()
        self._round = 0
        self._withheld = frozenset(
            name
            for name in os.environ
            if name in _NOT_INHERITED or name.startswith(_NOT_INHERITED_PREFIX)
        )

    # --- what the warden asks ---

    def want(self, order: StartWorker, now_s: float) -> None:
        """Queue a start. `next_settled` gives it back, with a spare or refused."""
        seat = self._seats.setdefault(order.runtime, _Seat(order.runtime))
        if seat.recipe != (recipe := _Recipe.of(order)):
            seat.recipe = recipe
            self._renew(seat, "its configuration has changed")
        if crash_domain(order.spec):
            seat.late = _SHARED_MEMORY
        seat.waiting.append((order, now_s + limits.zygote_wait_s))

    def recall(self, token: int) -> None:
        """Take a start back that still waits."""
        for seat in self._seats.values():
            seat.waiting = deque(entry for entry in seat.waiting if entry[0].token != token)
        self._refused = deque(gone for gone in self._refused if gone.order.token != token)

    def again(self, order: StartWorker, now_s: float) -> None:
        """The spare for this start was dead: the next one."""
        self._seats[order.runtime].waiting.appendleft((order, now_s + limits.zygote_wait_s))

    def give_back(self, spare: Spare) -> None:
        """It was not told anything."""
        self._seats[spare.runtime].spares.appendleft(spare)

    def begin_round(self) -> None:
        """What was loaded is compared with the disk once a round."""
        self._round += 1

    def next_settled(self, now_s: float) -> tuple[StartWorker, Spare] | Refused | None:
        """A start that has a spare now, or that gets none."""
        for seat in self._seats.values():
            settled = self._serve(seat, now_s)
            if settled is not None:
                return settled
        return self._refused.popleft() if self._refused else None

    def restock(self, now_s: float) -> bool:
        """Have the next spares made before they are needed. True if starts were refused by it."""
        for seat in self._seats.values():
            self._restock(seat, now_s)
        return bool(self._refused)

    def renew(self, name: str = "") -> None:
        """Have the next start of this runtime, or of all, come from a new zygote."""
        for seat in self._seats.values():
            if name in ("", seat.name):
                self._renew(seat, "it is to be loaded anew")

    def deadline(self) -> float | None:
        """When to look again."""
        due: list[float] = []
        for seat in self._seats.values():
            if seat.waiting:
                due.append(seat.waiting[0][1])
                if seat.zygote is None:
                    due.append(seat.again_s)
                else:
                    due.append(max(seat.zygote.again_s, seat.zygote.asked_s + _LOST_S))
            if seat.zygote is not None and not seat.zygote.ready:
                due.append(seat.zygote.since_s + limits.zygote_load_s)
        return min(due, default=None)

    def owns(self, session: int) -> bool:
        """Whether the processes of this session are zygotes, or spares that are not known yet."""
        return session in self._sessions

    # --- starts ---

    def _serve(self, seat: _Seat, now_s: float) -> tuple[StartWorker, Spare] | Refused | None:
        if not seat.waiting:
            return None
        self._renew_if_changed(seat)
        if seat.spares:
            return seat.waiting.popleft()[0], seat.spares.popleft()
        if seat.zygote is None and now_s < seat.again_s and seat.trouble and not seat.trouble[2]:
            self._refuse_all(seat, *seat.trouble)
        elif seat.waiting[0][1] <= now_s:
            reason = f"runtime {seat.name!r} gave no process within {limits.zygote_wait_s:g} s"
            return Refused(seat.waiting.popleft()[0], "runtime_slow", reason, retry=True)
        return None

    def _refuse_all(self, seat: _Seat, code: str, reason: str, retry: bool) -> None:
        self._refused += [Refused(order, code, reason, retry) for order, _ in seat.waiting]
        seat.waiting.clear()

    def _restock(self, seat: _Seat, now_s: float) -> None:
        zygote = seat.zygote
        if zygote is None:
            if seat.waiting and now_s >= seat.again_s:
                self._make(seat, now_s)
            return
        if not zygote.ready:
            if now_s >= zygote.since_s + limits.zygote_load_s:
                reason = f"it has not loaded within {limits.zygote_load_s:g} s"
                self._failed(seat, "runtime_slow", reason, True, now_s)
            return
        if zygote.asked and now_s >= zygote.asked_s + _LOST_S:
            zygote.asked = 0
        here = len(seat.spares) + zygote.asked - len(seat.waiting)
        if here < limits.spares_min and now_s >= zygote.again_s:
            count = min(limits.spares_max - here, limits.spares_at_once_max)
            with suppress(OSError):  # it is dead: its pidfd says so next
                zygote_line.send(
                    zygote.line,
                    {"op": "fork", "count": count, "preload": list(seat.late)},
                    flags=socket.MSG_DONTWAIT,
                )
                zygote.asked += count
                zygote.asked_s = now_s

    def _renew_if_changed(self, seat: _Seat) -> None:
        """Look at the files behind what was loaded; once a round is often enough, because nothing
        was forked for an order of this round before."""
        if seat.checked == self._round:
            return
        seat.checked = self._round
        for path, mtime_ns, size, inode in seat.files:
            try:
                found = os.stat(path)
            except OSError:
                self._retire(seat, f"{path} is gone")
                return
            if (found.st_mtime_ns, found.st_size, found.st_ino) != (mtime_ns, size, inode):
                self._retire(seat, f"{path} has changed")
                return

    # --- zygotes ---

    def _make(self, seat: _Seat, now_s: float) -> None:
        recipe = seat.recipe
        assert recipe is not None
        try:
            pid, line = self._spawn(recipe)
            pidfd = os.pidfd_open(pid)  # our child, and nobody has reaped it
        except OSError as error:
            reason = f"{recipe.python or sys.executable}: {error.strerror}"
            self._failed(seat, "runtime_unusable", reason, True, now_s)
            return
        zygote = _Zygote(pid=pid, pidfd=pidfd, line=line, since_s=now_s)
        seat.zygote = zygote
        for fd in (pidfd, line.fileno()):
            self._by_fd[fd] = seat
            self._epoll.register(fd, select.EPOLLIN)
        self._sessions.append(pid)
        message = {
            "op": "load",
            "protocol": [PROTOCOL_MIN, PROTOCOL],
            "name": seat.name,
            "path": list(recipe.path),
            "preload": list(recipe.preload),
            "bind_now": dict(recipe.env).get(_BIND_NOW, os.environ.get(_BIND_NOW)),
        }
        with suppress(OSError):
            zygote_line.send(line, message, flags=socket.MSG_DONTWAIT)

    def _spawn(self, recipe: _Recipe) -> tuple[int, socket.socket]:
        """exec, in a session of its own: it has nothing of ours but the end of a socket and the
        lock. Symbols are bound at once there, for all its children."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        python = recipe.python or sys.executable
        withheld = self._withheld | (frozenset(_UNFIT) if recipe.python else frozenset())
        env = {name: value for name, value in os.environ.items() if name not in withheld}
        env |= dict(recipe.env) | {_BIND_NOW: "1"}
        argv = [python, "-P", _BOOT] if not recipe.python else [python, _BOOT]
        argv += [str(theirs.fileno()), str(self._pid), _POSTHOUSE]
        try:
            ours.setblocking(False)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            theirs.set_inheritable(True)
            os.set_inheritable(self._host_lock_fd, True)
            pid = _execute(argv, env)
        except OSError:
            ours.close()
            raise
        finally:
            os.set_inheritable(self._host_lock_fd, False)
            theirs.close()
        return pid, ours

    def hear(self, fd: int, now_s: float) -> bool:
        """What the events of `fd` brought; False if it is none of a zygote's."""
        seat = self._by_fd.get(fd)
        zygote = seat.zygote if seat is not None else None
        if seat is None or zygote is None:
            return False
        while seat.zygote is zygote:
            try:
                received = zygote_line.receive(zygote.line)
            except BlockingIOError:
                break
            except (OSError, ValueError) as error:
                self._failed(seat, "runtime_failed", f"not understood: {error}", True, now_s)
                return True
            if received is None:
                break  # its pidfd tells
            try:
                self._on_message(seat, zygote, received, now_s)
            except (KeyError, TypeError, ValueError) as error:
                reason = f"not understood: {received.message['op']}: {error}"
                self._failed(seat, "runtime_failed", reason, True, now_s)
        if seat.zygote is zygote and fd == zygote.pidfd:
            self._on_death(seat, zygote, now_s)
        return True

    def _on_message(
        self, seat: _Seat, zygote: _Zygote, received: zygote_line.Received, now_s: float
    ) -> None:
        message = received.message
        match message["op"]:
            case "files":
                room = limits.runtime_files_max - len(zygote.files)
                zygote.files += message["files"][:room]
            case "ready":
                zygote.ready = True
                code = _revision(message, zygote.files)
                if code != seat.code:  # else what is left of one that died is as good
                    _close_all(seat.spares)
                seat.code, seat.files, seat.trouble = code, zygote.files, None
                seat.checked = -1
                self._log(
                    f"runtime {seat.name}: pid {zygote.pid}, Python {message['python']}, posthouse "
                    f"{message['version']}, revision {code}, {len(zygote.files)} files"
                )
            case "refused":
                text = str(message["reason"])
                self._failed(seat, str(message["code"]), text, bool(message["retry"]), now_s)
            case "failed":
                zygote.asked = max(0, zygote.asked - int(message["missing"]))
                zygote.again_s = now_s + limits.warden_backoff_s_min
                if not zygote.asked and not seat.spares:
                    self._refuse_all(seat, "fork_failed", str(message["reason"]), retry=True)
            case "spare":
                zygote.asked = max(0, zygote.asked - 1)
                self._on_spare(seat, received)

    def _on_spare(self, seat: _Seat, received: zygote_line.Received) -> None:
        if not received.descriptors:
            reason = os.strerror(EMFILE)
            self._refuse_all(seat, "fork_failed", reason, retry=True)
            return
        line = socket.socket(fileno=received.descriptors[0])
        line.setblocking(False)
        try:
            pidfd = os.pidfd_open(received.pid)
        except OSError:
            line.close()
            return
        # 1. it is our child and its pid its own until we reap it; 2. it may have died, been reaped
        # as a stranger, and another one got its pid before the line above; 3. then its socket has
        # ended. What has not ended now had not ended when the pidfd was made.
        process = procfs.read(received.pid)
        spare = Spare(
            pid=received.pid,
            pid_start=process.start if process else 0,
            pidfd=pidfd,
            socket=line,
            runtime=seat.name,
            code=seat.code,
        )
        if process is None or process.parent != self._pid or _ended(line):
            spare.close()
        else:
            seat.spares.append(spare)

    def _on_death(self, seat: _Seat, zygote: _Zygote, now_s: float) -> None:
        with suppress(ChildProcessError):
            info = os.waitid(os.P_PIDFD, zygote.pidfd, os.WEXITED | os.WNOHANG)
            if info is None:
                return
        reason = f"runtime {seat.name}: its zygote (pid {zygote.pid}) has died"
        if zygote.ready and now_s - zygote.since_s >= limits.warden_backoff_s_max:
            seat.failures = 0
        self._failed(seat, "runtime_failed", reason, True, now_s)

    def _failed(self, seat: _Seat, code: str, reason: str, retry: bool, now_s: float) -> None:
        """No more of this zygote. One that had lived is made again at once and starts wait for it;
        of one that could not, they are told, and the next one takes its time."""
        zygote = seat.zygote
        lived = zygote is not None and zygote.ready
        self._retire(seat, reason, keep_spares=True)
        seat.failures += 1
        pause_s = 0.0
        if not lived or seat.failures > 1:
            exponent = min(seat.failures - (2 if lived else 1), 10)
            pause_s = min(limits.warden_backoff_s_min * 2.0**exponent, limits.warden_backoff_s_max)
        seat.again_s = now_s + pause_s
        if not lived:
            seat.trouble = (code, f"runtime {seat.name!r}: {reason}", retry)
            self._refuse_all(seat, *seat.trouble)

    def _renew(self, seat: _Seat, reason: str) -> None:
        self._retire(seat, reason)
        seat.failures, seat.again_s, seat.trouble = 0, 0.0, None

    def _retire(self, seat: _Seat, reason: str, *, keep_spares: bool = False) -> None:
        """Close everything that comes from this zygote; what has begun as a worker goes on."""
        if not keep_spares:
            _close_all(seat.spares)
            seat.files = []
        zygote = seat.zygote
        if zygote is None:
            return
        self._log(f"runtime {seat.name}: {reason}")
        seat.zygote = None
        for fd in (zygote.pidfd, zygote.line.fileno()):
            del self._by_fd[fd]
            self._epoll.unregister(fd)
        zygote.line.close()
        # Loading may take long, and nobody hears of the end of its line meanwhile.
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(zygote.pidfd, signal.SIGKILL)
        os.close(zygote.pidfd)  # reaped with the strangers


def _execute(argv: list[str], env: dict[str, str]) -> int:
    """A child that is this program, in a session of its own. Raises the OSError of its exec.

    Not by posix_spawn: glibc leaves two signals ignored there, and programs that workers become
    would find them so."""
    reads, writes = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                os.dup2(2, 1)
                os.execve(argv[0], argv, env)  # noqa: S606 - no shell
            except OSError as error:
                os.write(writes, str(error.errno).encode())
            finally:
                os._exit(1)
        os.close(writes)
        writes = -1
        failed = os.read(reads, 16)
    finally:
        os.close(reads)
        if writes != -1:
            os.close(writes)
    if failed:
        os.waitpid(pid, 0)
        raise OSError(int(failed), os.strerror(int(failed)), argv[0])
    return pid


def _close_all(spares: deque[Spare]) -> None:
    while spares:
        spares.popleft().close()


def _ended(line: socket.socket) -> bool:
    try:
        return not line.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _revision(ready: dict[str, Any], files: list[list[Any]]) -> str:
    """Of the code that a zygote has loaded: 12 hex digits, the same as long as its files are."""
    text = repr((ready["python"], ready["version"], sorted(map(tuple, files))))
    return blake2b(text.encode(), digest_size=6).hexdigest()
