"""The warden's hands: make a spare a worker, signal it, see its end, leave nothing of it behind.

Owns: the descriptors of every worker, and the only calls of wait and kill for it. Must not know:
who may start or stop (warden_core), the journal, the agent. Invariant: signals go through pidfds
only, and a worker's pid stays taken (a zombie) until `reap`, so it names nothing else before.
"""

import os
import pwd
import resource
import signal
import socket
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from errno import EINVAL, EMFILE, EPERM
from typing import Any, Final, NamedTuple

from posthouse import channel
from posthouse.ids import Instant
from posthouse_agent import (
    cgroups,
    identity,
    memory_events,
    native,
    output,
    procfs,
    remains,
    zygote_line,
)
from posthouse_agent.cgroups import Cgroups
from posthouse_agent.domains import crash_domain
from posthouse_agent.memory import Memory
from posthouse_agent.memory_events import MemoryEvents
from posthouse_agent.namespace import Outside
from posthouse_agent.start_worker import StartWorker
from posthouse_agent.warden_core import output_bytes
from posthouse_agent.zygotes import Spare

__all__ = ["CannotFork", "Processes", "SpareGone", "WorkerProcess", "user_name"]

_POSTMASTER_GONE: Final = channel.encode({"op": "postmaster", "alive": False})
_WAIT: Final = os.WEXITED | os.WNOHANG
_TOLD: Final = tuple(name for name in StartWorker.__slots__ if name != "structs")  # of an order
_SPARE_FDS: Final = 32  # kept free for the agent's connection, the journal and reading /proc
_NEAR_PIDS: Final = 2_000  # up to this many pids are asked one by one; beyond, /proc is listed
_NEAR_S: Final = 60.0  # in this time the pids of a machine do not come round


class CannotFork(Exception):
    """There is no process. `code` and `retry` as in ForkFailed; the text is the reason."""

    def __init__(self, reason: str, *, code: str = "fork_failed", retry: bool = True) -> None:
        super().__init__(reason)
        self.code = code
        self.retry = retry


class SpareGone(Exception):
    """The spare had died; the start may have another one."""


@dataclass(slots=True, kw_only=True)
class WorkerProcess:
    """One forked worker and what the warden holds of it."""

    token: int
    pid: int  # as this warden sees it
    host_pid: int  # and as the host does
    pid_start: int
    pidfd: int
    channel_fd: int  # the agent's end
    latch_fd: int
    last_words_fd: int
    log_path: str
    log_identity: tuple[int, int]
    log_start: int
    started: Instant
    runtime: str
    code: str
    group: str = ""  # the folder of its cgroup
    killed: bool = False  # KILL was sent to it here


class _Ends(NamedTuple):
    """What is opened for a worker before it is forked."""

    log: int
    log_found: os.stat_result
    ours: int
    theirs: int
    latch: int
    last_words: int
    memory: tuple[int, int] | None  # ours and theirs, with SHMEM_ACCESS


class Processes:
    """All children of this warden."""

    def __init__(
        self,
        *,
        log_dir: str,
        instance: str,
        host_lock_fd: int,
        nofile_soft: int,
        is_zygotes: Callable[[int], bool],
        log: Callable[[str], None],
        oom_score: int | None = None,
        groups: Cgroups | None = None,
        outside: Outside | None = None,
    ) -> None:
        self._log = log
        self._outside = outside  # of a PID namespace that this warden is the first process of
        self._groups = groups
        self._memory_events = MemoryEvents()
        self.memory = Memory(log)
        self._is_zygotes = is_zygotes  # a session
        self._log_dir = log_dir
        self._instance = instance
        self._host_lock_fd = host_lock_fd
        self._nofile_soft = nofile_soft  # what workers get
        self._oom_score = oom_score
        self._pid = os.getpid()
        self._user = user_name()
        self._lacking = identity.missing_capabilities()
        self._workers: dict[int, WorkerProcess] = {}  # by token
        self._tokens: dict[int, int] = {}  # pid -> token

    def __len__(self) -> int:
        return len(self._workers)

    def get(self, token: int) -> WorkerProcess | None:
        return self._workers.get(token)

    # --- starting ---

    def check(self, order: StartWorker) -> None:
        """Whether this warden may start it at all. Raises CannotFork."""
        user = self._other_user(order)
        if user is not None and self._lacking:
            raise CannotFork(
                f"this warden, of user {self._user!r}, cannot run workers as {user!r}: "
                f"it lacks {self._lacking}",
                code="bad_order",
                retry=False,
            )

    def begin(self, order: StartWorker, spare: Spare, now: Instant) -> WorkerProcess:
        """Make the spare this worker. Raises CannotFork, and then the spare was told nothing;
        SpareGone."""
        opened: list[int] = []
        try:
            return self._begin(order, spare, now, opened)
        except OSError as error:
            raise CannotFork(f"{error.filename or 'start'}: {error.strerror or error}") from None
        finally:
            for fd in opened:
                os.close(fd)

    def _begin(
        self, order: StartWorker, spare: Spare, now: Instant, opened: list[int]
    ) -> WorkerProcess:
        """`opened` holds what must be closed again; on success only what is the worker's."""
        path = f"{self._log_dir}/{output.name(order.slot, order.generation)}"
        output.begin_again(path, output_bytes(order.spec))
        ends = self._open_ends(order, path, opened)
        if max(opened) >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE_FDS:
            raise OSError(EMFILE, os.strerror(EMFILE))
        host_pid = spare.pid if self._outside is None else self._outside.pid_of(spare.pidfd)
        group = self._make_group(order.token)
        message = {
            "op": "begin",
            "order": {name: getattr(order, name) for name in _TOLD},
            "given": {
                "warden_pid": self._pid,
                "cookie": f"{self._instance}:{order.token}",
                "nofile_soft": self._nofile_soft,
                "user": self._other_user(order),
                "cgroup": group,
                "oom_score": self._oom_score,
            },
        }
        descriptors = [ends.log, ends.theirs, ends.latch, ends.last_words, self._host_lock_fd]
        if ends.memory is not None:
            descriptors.append(ends.memory[1])
        try:
            zygote_line.send(spare.socket, message, descriptors, socket.MSG_DONTWAIT)
        except OSError as error:
            self._drop_group(group)
            if isinstance(error, ConnectionError):
                raise SpareGone from None
            raise
        # From here on it is a worker, whatever becomes of it.
        spare.socket.close()
        worker = WorkerProcess(
            token=order.token,
            pid=spare.pid,
            host_pid=host_pid,
            pid_start=spare.pid_start,
            pidfd=spare.pidfd,
            channel_fd=ends.ours,
            latch_fd=ends.latch,
            last_words_fd=ends.last_words,
            log_path=path,
            log_identity=(ends.log_found.st_dev, ends.log_found.st_ino),
            log_start=ends.log_found.st_size,
            started=now,
            runtime=spare.runtime,
            code=spare.code,
            group=group,
        )
        self._workers[order.token] = worker
        self._tokens[spare.pid] = order.token
        opened[:] = [ends.log, ends.theirs]
        if ends.memory is not None:
            self.memory.add(order.token, ends.memory[0])
            opened.append(ends.memory[1])
        return worker

    def _other_user(self, order: StartWorker) -> str | None:
        wanted = order.spec.get("run_as")
        return None if wanted is None or wanted == self._user else str(wanted)

    def _open_ends(self, order: StartWorker, path: str, opened: list[int]) -> _Ends:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            log = os.open(path, flags | os.O_CLOEXEC, 0o640)
        except FileNotFoundError:  # somebody cleared the folder away, and nothing else would heal
            os.makedirs(os.path.dirname(path), 0o750, exist_ok=True)
            log = os.open(path, flags | os.O_CLOEXEC, 0o640)
        opened.append(log)
        os.set_blocking(log, True)
        log_found = os.fstat(log)
        self._own_log(log, log_found, path, to_be_given=self._other_user(order) is not None)
        ours, theirs = _socketpair()
        opened += [ours, theirs]
        latch = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        opened.append(latch)
        last_words = os.memfd_create(f"posthouse-{self._instance}-{order.token}", os.MFD_CLOEXEC)
        opened.append(last_words)
        remains.begin_beats(last_words)
        memory = _socketpair() if crash_domain(order.spec) else None
        opened += memory or ()
        return _Ends(log, log_found, ours, theirs, latch, last_words, memory)

    def _own_log(self, log: int, found: os.stat_result, path: str, *, to_be_given: bool) -> None:
        """An output file is a regular file with one name, and nobody's but the worker's.

        It is opened before anything is given away, and what is given is the open file, so that a
        link put in its place changes nobody else's file; the second name is one that the user of
        an earlier start may have made, to write in it after it is another one's.
        """
        if not stat.S_ISREG(found.st_mode):
            raise OSError(EINVAL, "not a regular file: remove it", path)
        if found.st_nlink != 1 and (to_be_given or found.st_uid != os.geteuid()):
            raise OSError(EPERM, f"has {found.st_nlink} names: remove it", path)
        given_away = found.st_uid != os.geteuid()
        if given_away and not to_be_given:
            os.fchown(log, os.geteuid(), -1)
        if found.st_size == 0 or given_away:
            kept = found.st_mode & stat.S_ISVTX  # output.py's mark
            os.fchmod(log, 0o640 | kept)  # readable by the folder's group, whatever the umask

    # --- ending ---

    def kill(self, token: int, number: int, *, handled: bool = False) -> None:
        """Send a signal; a process that is dead already does not mind. `handled`: only if it has
        seen to it that this signal does not end it."""
        worker = self._workers.get(token)
        if handled and worker is not None and not procfs.minds(worker.pid, number):
            return
        if worker is not None:
            worker.killed |= number == signal.SIGKILL
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(worker.pidfd, number)

    def tell_lost(self, token: int) -> None:
        """By the agent's end of the channel: the agent may be stopped, or gone."""
        worker = self._workers.get(token)
        if worker is None:
            return
        line = socket.socket(fileno=worker.channel_fd)
        try:
            # One that has not read for so long is not told; it has its signal.
            with suppress(OSError):
                line.send(_POSTMASTER_GONE, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        finally:
            line.detach()

    def is_dead(self, token: int) -> bool:
        """Whether the worker is a zombie."""
        return native.wait_facts(self._workers[token].pidfd) is not None

    def reap_strangers(self, *, behind: bool = False) -> None:
        """Reap what workers left behind and is dead, up to the first dead worker, whose turn comes
        when its end has been recorded. `behind`: that may take long; look behind it as well."""
        while True:
            try:
                info = os.waitid(os.P_ALL, 0, _WAIT | os.WNOWAIT)
            except ChildProcessError:
                return
            if info is None:
                return
            if info.si_pid in self._tokens:
                break
            os.waitid(os.P_PID, info.si_pid, _WAIT)
        if behind:
            for pid in procfs.pids():
                process = procfs.read(pid)
                if process is None or process.state != "Z" or process.parent != self._pid:
                    continue
                if pid not in self._tokens:
                    os.waitid(os.P_PID, pid, _WAIT)

    def left_by(self, token: int, now: Instant) -> list[int]:
        """The processes that go on though the worker which started them is dead: those of its
        cgroup, and the topmost ones that have left it, or for want of cgroups all topmost ones.

        Those are our own children, because we are the subreaper, so only they are looked at: the
        children of each become ours when it dies.
        """
        worker = self._workers[token]
        in_it = worker.group and cgroups.populated(worker.group)
        found = cgroups.members(worker.group) if in_it else []
        return found + [
            pid
            for pid in self._suspects(worker, now)
            if pid not in self._tokens
            and pid not in found
            and self._is_left_by(pid, worker)
            and procfs.is_process(pid)
        ]

    def kill_left(self, token: int, pids: Iterable[int]) -> None:
        """Those of `pids` that still are what left_by says they are."""
        worker = self._workers[token]
        if worker.group:
            cgroups.kill(worker.group)
        for pid in pids:
            pidfd = procfs.kill_if(pid, lambda p: self._is_left_by(p, worker))
            if pidfd is not None:
                os.close(pidfd)

    def silent_s(self, token: int) -> float:
        """How long ago the worker last gave a heartbeat, or was started."""
        return remains.silent_s(self._workers[token].last_words_fd)

    def predicament(self, token: int) -> str:
        """Where the kernel holds the worker; empty if it is dead."""
        return procfs.predicament(self._workers[token].pid)

    def where(self, pid: int) -> str:
        """For people: the host's pid of a process that this warden calls `pid`, and where the
        kernel holds it."""
        shown, state = pid, procfs.predicament(pid)
        with suppress(OSError):
            if self._outside is not None:
                pidfd = os.pidfd_open(pid)
                try:
                    shown = self._outside.pid_of(pidfd)
                finally:
                    os.close(pidfd)
        return f"pid {shown} {state}"

    def examine(self, token: int, now: Instant, *, daemonised: bool) -> dict[str, Any]:
        """The facts of its end, complete. `daemonised`: it left processes behind."""
        worker = self._workers[token]
        death = native.wait_facts(worker.pidfd)
        assert death is not None, "examined while alive"
        facts = remains.exit_facts(
            death,
            pid=worker.host_pid,
            started_unix_s=worker.started.unix_s,
            ended_unix_s=now.unix_s,
            runtime_s=max(0.0, now.boot_s - worker.started.boot_s),
            daemonised=daemonised,
        )
        if death.signal == signal.SIGKILL:
            facts |= self._who_killed(worker)
        tail = remains.output_tail(worker.log_path, worker.log_identity, worker.log_start)
        words = remains.last_words(worker.last_words_fd)
        if tail:
            facts["output_tail"] = tail
        if words:
            facts["traceback"] = words
        if remains.lock_held(worker.last_words_fd):
            facts["lock_held"] = True
        return facts

    def _who_killed(self, worker: WorkerProcess) -> dict[str, Any]:
        """The kernel for want of memory, we, or somebody unknown: a signal bears no name."""
        if worker.killed:
            return {"sender": "posthouse"}
        own = memory_events.kills_in(worker.group or None)
        if own or (own is None and self._memory_events.take()):
            return {"oom": True, "sender": "kernel"}
        return {"sender": "unknown"}

    def reap(self, token: int) -> None:
        """Let the zombie go, and everything that was held for it."""
        worker = self._workers.pop(token)
        del self._tokens[worker.pid]
        os.waitid(os.P_PIDFD, worker.pidfd, _WAIT)
        for fd in (worker.pidfd, worker.channel_fd, worker.latch_fd, worker.last_words_fd):
            os.close(fd)
        self.memory.close(token)
        self._drop_group(worker.group)

    def ends_of(self, token: int) -> tuple[int, int] | None:
        """Latch and pidfd of a worker."""
        worker = self._workers.get(token)
        return None if worker is None else (worker.latch_fd, worker.pidfd)

    def _make_group(self, token: int) -> str:
        if self._groups is None:
            return ""
        try:
            return self._groups.make(token)
        except OSError as error:
            # Without one its leftovers are found as on hosts that have none.
            self._log(f"cgroup: {error.filename}: {error.strerror}")
            return ""

    def _drop_group(self, group: str) -> None:
        if group and self._groups is not None:
            self._groups.remove(group)

    def _suspects(self, worker: WorkerProcess, now: Instant) -> Iterable[int]:
        """Pids that a descendant of this worker may have: later ones than its own."""
        try:
            newest = procfs.newest_pid()
        except OSError:  # out of descriptors: the next worker's end finds what this one left
            return ()
        near = 0 <= newest - worker.pid <= _NEAR_PIDS
        if near and now.boot_s - worker.started.boot_s < _NEAR_S:
            return [pid for pid in range(worker.pid + 1, newest + 1) if _exists(pid)]
        return list(procfs.pids())

    def _is_left_by(self, pid: int, worker: WorkerProcess) -> bool:
        """Whether this living child of ours, no worker, comes from `worker` or from a dead one."""
        process = procfs.read(pid)
        if process is None or process.dead or process.parent != self._pid:
            return False
        if process.session == worker.pid:
            return True
        if process.session in self._tokens or self._is_zygotes(process.session):
            return False
        token = procfs.marked_by(pid, self._instance)
        if token is None:
            # It hides where it comes from. With other workers alive it may be one of theirs.
            return len(self._workers) == 1
        return token == worker.token or token not in self._workers


def _exists(pid: int) -> bool:
    try:
        os.getsid(pid)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _socketpair() -> tuple[int, int]:
    """Channel ends, with room for one packet of the greatest size."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, channel.SOCKET_BYTES)
        end.setblocking(False)
    return pair[0].detach(), pair[1].detach()


def user_name() -> str:
    """Who this warden, and so every worker of it, is."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
