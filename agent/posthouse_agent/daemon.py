"""The agent process: a plain poll loop around AgentCore.

Owns: the folder's lock, the sockets, the order in which inputs are taken and effects are done.
Must not know: why (core). Invariant: after start-up nothing on this thread waits for a disk, a
process or a terminal, because this is the thread that renews the host's session; and no effect is
done before those in front of it, but for lines of the log, which come last in a round.
"""

import contextlib
import dataclasses
import os
import resource
import select
import signal
import socket
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

import zmq

from posthouse import keys, limits, loopback, paths, systemd, transport
from posthouse.errors import ConfigError
from posthouse.records import HostUse
from posthouse.settings import AgentSettings
from posthouse_agent import admission, facts, identity, logs, stacks, vouching
from posthouse_agent.channels import Channels
from posthouse_agent.chores import Chores
from posthouse_agent.core import AgentCore
from posthouse_agent.effects import (
    AnswerWorker,
    ConnectionBroken,
    Consume,
    DropWarden,
    Effect,
    Frame,
    Give,
    Input,
    Leave,
    LogRead,
    MeasureUse,
    NeedWarden,
    Note,
    NotifyProcess,
    ReadLogFile,
    Redial,
    Reload,
    Reported,
    SetLatch,
    StacksTaken,
    TakeStacks,
    Tick,
    Transmit,
    UseMeasured,
    WardenGone,
    WardenUp,
    WorkerSaid,
)
from posthouse_agent.lock import FolderLock
from posthouse_agent.log_keeper import LogKeeper
from posthouse_agent.orders import Ended, Forked, Order
from posthouse_agent.talk import Talk
from posthouse_agent.wardens import WardenConnection, WardenLost, WardenStarter

if TYPE_CHECKING:
    from posthouse_agent.web import Server

__all__ = ["run"]

_LOCK_S = 5.0  # how often the lock's file is looked for
_POLL_S_MAX = 1.0  # libzmq's readiness is edge-triggered: look again at least this often
_GOODBYE_MS = 500  # for the last frame to leave
_SPARE_DESCRIPTORS = 64  # sockets, locks, libzmq's own, log files


def run(settings: AgentSettings) -> int:
    """Be this host's agent until TERM or INT; returns the exit status. Workers go on.

    Raises ConfigError for settings that cannot be used and RefusedError if another agent runs.
    """
    admission.check_settings(settings)
    client_keys = _keys(settings)
    lock = FolderLock(settings.runtime_dir)
    try:
        paths.private_dir(settings.log_dir, 0o750)
        _title(settings.host)
        talk = Talk(settings.log_format, host=settings.host)
        try:
            settings = _existing_users(settings, talk)
            web = _web(settings)
            starter = WardenStarter(settings, _descriptors(settings, talk))
            shell = _Shell(settings, client_keys, starter, lock, talk, web)
            try:
                return shell.run()
            finally:
                shell.close()
        finally:
            talk.close()
    finally:
        lock.close()


class _Connected:
    """What the I/O thread brings back for NeedWarden."""

    def __init__(self, kind: str, connection: WardenConnection) -> None:
        self.kind = kind
        self.connection = connection


class _Shell:
    def __init__(
        self,
        settings: AgentSettings,
        client_keys: keys.ClientKeys | None,
        starter: WardenStarter,
        lock: FolderLock,
        talk: Talk,
        web: "Server | None",
    ) -> None:
        self._settings = settings
        self._talk = talk
        about = facts.host_facts()
        self._core = AgentCore(settings, about, os.urandom, starter.there())
        self._line = transport.Line(settings.master, keys=client_keys, insecure=settings.insecure)
        # zmq's poller hands its whole list to the kernel each time: the workers' channels are in
        # an epoll set, of which it sees one descriptor.
        self._epoll = select.epoll()
        self._poller = zmq.Poller()
        self._poller.register(self._epoll.fileno(), zmq.POLLIN)
        self._line.watch(self._poller)
        self._channels = Channels(self._epoll)
        self._chores = Chores("io", limits.chores_queued_max)
        self._looks = Chores("stacks", limits.stack_reads_max * 2)
        self._threads = {chores.fileno(): chores for chores in (self._chores, self._looks)}
        for descriptor in self._threads:
            self._epoll.register(descriptor, select.EPOLLIN)
        self._web = web
        if web is not None:
            self._epoll.register(web.fileno(), select.EPOLLIN)
        self._desk = vouching.Desk(
            settings.runtime_dir, settings.host, about.notify_key, about.boot_id
        )
        self._epoll.register(self._desk.fileno(), select.EPOLLIN)
        self._keeper = LogKeeper(settings, self._chores.submit)
        self._starter = starter
        self._lock = lock
        self._lock_due_s = 0.0
        self._watchdog_s = systemd.watchdog_interval_s()
        self._watchdog_due_s = 0.0
        self._poll_s_max = min(_POLL_S_MAX, (self._watchdog_s or 4 * _POLL_S_MAX) / 4)
        self._wardens: dict[str, WardenConnection] = {}
        self._inputs: deque[Input] = deque()
        self._notes: list[Note] = []
        self._signals = socket.socketpair()
        for end in self._signals:
            end.setblocking(False)
        self._epoll.register(self._signals[0].fileno(), select.EPOLLIN)
        self._end = ""
        self._reload = False
        self._dialled = False

    def run(self) -> int:
        previous_fd = signal.set_wakeup_fd(self._signals[1].fileno(), warn_on_full_buffer=False)
        previous = {number: signal.signal(number, self._told_to_end) for number in _ENDING}
        previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._told_to_reload)
        systemd.ready(f"agent of {self._settings.host}")
        self._talk.say("agent.started", pid=os.getpid(), master=self._settings.master)
        try:
            self._feed(Tick())
            while not self._end:
                self._round()
            systemd.stopping()
            # Wardens that were told to end before us have told how their workers ended: TERM may
            # have come while that lies in their sockets.
            for kind, connection in list(self._wardens.items()):
                self._talk_with(kind, connection)
            self._feed(Leave(self._end))
            self._say_notes()
            self._talk.say("agent.ended", reason=self._end)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(previous_fd)
        return 0

    def close(self) -> None:
        if self._web is not None:
            self._web.close()
        self._desk.close()
        self._line.close(_GOODBYE_MS)
        for connection in self._wardens.values():
            connection.close()
        self._channels.close()
        for chores in self._threads.values():
            chores.close(0.5)
        self._epoll.close()
        for end in self._signals:
            end.close()

    def _told_to_end(self, number: int, _frame: Any) -> None:
        self._end = signal.Signals(number).name

    def _told_to_reload(self, _number: int, _frame: Any) -> None:
        self._reload = True

    # --- inputs ---

    def _round(self) -> None:
        wait_s = min(self._core.wake_s - facts.instant().boot_s, self._poll_s_max)
        ready = dict(self._poller.poll(max(0, int(wait_s * 1000) + 1)))
        # What the master says comes first. The trouble is read last: it is of the same socket.
        for frame in self._line.receive():
            self._feed(Frame(frame))
        trouble = self._line.trouble()
        if trouble is not None:
            self._feed(ConnectionBroken(*trouble))
        if self._epoll.fileno() in ready:
            for descriptor, events in self._epoll.poll(0):
                self._ready(descriptor, events)
        if self._reload:
            self._reload = False
            self._feed(Reload())
        self._feed(Tick())
        self._look_after()
        self._say_notes()

    def _say_notes(self) -> None:
        # Last in a round: the thread that writes them would take the interpreter from this one
        # before it has told the master.
        notes, self._notes = self._notes, []
        for note in notes:
            self._note(note.name, note.fields)

    def _look_after(self) -> None:
        now_s = facts.instant().boot_s
        if self._watchdog_s is not None and now_s >= self._watchdog_due_s:
            systemd.watchdog()
            self._watchdog_due_s = now_s + self._watchdog_s / 4
        if now_s >= self._lock_due_s and self._chores.submit(self._renew_lock):
            self._lock_due_s = now_s + _LOCK_S
        self._keeper.look(now_s)

    def _renew_lock(self) -> Note | None:
        # In the I/O thread.
        happened = self._lock.renew()
        return Note("folder.gone", {"reason": happened}) if happened else None

    def _ready(self, descriptor: int, events: int) -> None:
        token = self._channels.token_of(descriptor)
        if token is not None:
            if events & select.EPOLLOUT:
                self._channels.writable(token)
            self._hear(token)  # one message a worker and round: a flood starves nobody else
            return
        if descriptor in self._threads:
            for result in self._threads[descriptor].collect():
                self._done(result)
            return
        if self._web is not None and descriptor == self._web.fileno():
            self._web.answer(lambda: self._core.view(facts.instant()))
            return
        if descriptor == self._desk.fileno():
            self._desk.serve()
            return
        if descriptor == self._signals[0].fileno():
            with contextlib.suppress(BlockingIOError):
                self._signals[0].recv(64)
            return
        for kind, connection in list(self._wardens.items()):
            if connection.fileno() == descriptor:
                self._talk_with(kind, connection)

    def _hear(self, token: int) -> bool:
        message = self._channels.peek(token)
        if message is None:
            return False
        self._feed(WorkerSaid(token, message))
        return True

    def _talk_with(self, kind: str, connection: WardenConnection) -> None:
        try:
            connection.flush()
            for _ in range(limits.drain_messages_max):
                incoming = connection.receive()
                if incoming is None:
                    break
                report = incoming.report
                if isinstance(report, Forked):
                    if not self._channels.add(report.token, kind, incoming.descriptors):
                        self._talk.say("descriptors.lost", token=report.token)
                    self._keeper.began(report)
                elif isinstance(report, Ended):
                    self._last_messages(report.token)
                    self._keeper.ended(report)
                self._feed(Reported(kind, report))
                if isinstance(report, Ended):
                    self._channels.drop(report.token)
                if self._wardens.get(kind) is not connection:
                    return
        except WardenLost as lost:
            self._lose(kind, connection, str(lost))
        else:
            self._watch(connection)
        self._drain()

    def _last_messages(self, token: int) -> None:
        # What a worker said before it ended comes before its end.
        for _ in range(limits.last_messages_max):
            if not self._hear(token):
                return

    def _done(self, result: Any) -> None:
        if isinstance(result, _Connected):
            self._wardens[result.kind] = result.connection
            self._epoll.register(result.connection.fileno(), select.EPOLLIN)
            self._feed(WardenUp(result.kind))
        elif isinstance(result, WardenGone | LogRead | StacksTaken | UseMeasured):
            self._feed(result)
        elif isinstance(result, logs.Looked):
            for note in self._keeper.looked(result):
                self._note(note.name, note.fields)
        elif isinstance(result, Note):
            self._note(result.name, result.fields)

    def _feed(self, event: Input) -> None:
        self._inputs.append(event)
        self._drain()

    def _drain(self) -> None:
        while self._inputs:
            answered = True
            for effect in self._core.handle(self._inputs.popleft(), facts.instant()):
                if isinstance(effect, AnswerWorker):
                    answered = self._channels.answer(effect.token, effect.message)
                elif isinstance(effect, Consume):
                    if answered:  # else the worker says it again when there is room for the answer
                        self._channels.consume(effect.token)
                else:
                    self._do(effect)

    # --- effects ---

    def _do(self, effect: Effect) -> None:
        match effect:
            case Transmit(frame):
                self._line.transmit(frame)
            case Redial():
                self._redial()
            case Give(kind, order):
                self._give(kind, order)
            case NeedWarden(kind):
                self._submit(partial(self._connect, kind))
            case DropWarden(kind):
                if kind in self._wardens:
                    self._lose(kind, self._wardens[kind], "dropped")
            case ReadLogFile():
                self._submit(partial(logs.read_page, self._settings.log_dir, effect))
            case TakeStacks() | MeasureUse():
                self._look_at(effect)
            case SetLatch(token):
                self._channels.set_latch(token)
            case NotifyProcess(pid, pid_start):
                vouching.notify(pid, pid_start)
            case Note():
                self._notes.append(effect)

    def _look_at(self, effect: TakeStacks | MeasureUse) -> None:
        # A thread of its own: a process that is stopped writes nothing for seconds.
        if isinstance(effect, TakeStacks):
            taken = self._looks.submit(partial(stacks.take, effect))
        else:
            taken = self._looks.submit(partial(_measure, effect))
        assert taken, "bounded by the core"

    def _give(self, kind: str, order: Order) -> None:
        connection = self._wardens.get(kind)
        if connection is None:
            return  # WardenGone is on its way to the core
        try:
            connection.give(order)
        except WardenLost as lost:
            self._lose(kind, connection, str(lost))
        else:
            self._watch(connection)

    def _note(self, name: str, fields: dict[str, Any]) -> None:
        self._talk.say(name, **fields)
        if name.startswith("session."):
            systemd.status(f"agent of {self._settings.host}: {name}")

    def _submit(self, chore: Any) -> None:
        # Never refused: reads are bounded by the core, and each warden is asked for once.
        assert self._chores.submit(chore), "more chores than their queue may hold"

    def _connect(self, kind: str) -> _Connected | WardenGone:
        # In the I/O thread.
        try:
            return _Connected(kind, self._starter.connect(kind))
        except WardenLost as lost:
            return WardenGone(kind, str(lost))

    def _redial(self) -> None:
        try:
            self._line.redial()
        except ConfigError as error:
            if not self._dialled:
                raise
            # It was right when we started; somebody is changing the folder. Dialling goes on.
            self._talk.say("line.trouble", reason=str(error))
        self._dialled = True

    def _watch(self, connection: WardenConnection) -> None:
        self._epoll.modify(connection.fileno(), connection.events)

    def _lose(self, kind: str, connection: WardenConnection, reason: str) -> None:
        if self._wardens.get(kind) is not connection:
            return
        del self._wardens[kind]
        self._epoll.unregister(connection.fileno())
        connection.close()
        self._channels.drop_kind(kind)
        self._inputs.append(WardenGone(kind, reason))


_ENDING = (signal.SIGTERM, signal.SIGINT)


def _measure(asked: MeasureUse) -> UseMeasured:
    """In a thread. psutil is loaded when somebody asks: a tenth of a second and 5 MB, which no
    agent needs before. Without a descriptor for that, nothing can be measured."""
    try:
        from posthouse_agent import usage
    except (ImportError, OSError):
        return UseMeasured(asked.read, HostUse(), (), asked.more)
    return usage.measure(asked)


def _keys(settings: AgentSettings) -> keys.ClientKeys | None:
    endpoint = transport.parse_endpoint(settings.master)
    if settings.key_file is not None:
        return keys.client_keys(settings.key_file, settings.master_key)
    if not endpoint.path and os.geteuid() == 0:
        raise ConfigError(
            f"{settings.master}: an agent that runs as root does not dial TCP without keys",
            hint="posthouse keygen makes them; insecure is for other users' experiments",
        )
    return None


def _web(settings: AgentSettings) -> "Server | None":
    """Health and metrics, if they are wanted. Their libraries are loaded only then."""
    if settings.http is None:
        return None
    from posthouse_agent.web import Server

    return Server(loopback.bind(settings.http), settings.runtime_dir)


def _existing_users(settings: AgentSettings, talk: Talk) -> AgentSettings:
    """Only those that a worker can become; the others are told, and not offered to the master."""
    known = identity.known_users(settings.users)
    unknown = [name for name in settings.users if name not in known]
    if unknown:
        talk.say("users.unknown", users=unknown, reason="this host has no such users")
    return dataclasses.replace(settings, users=known)


def _title(host: str) -> None:
    try:
        import setproctitle
    except ImportError:
        return
    setproctitle.setproctitle(f"posthouse: agent {host}")


def _descriptors(settings: AgentSettings, talk: Talk) -> int:
    """Two descriptors a worker: as many as we may have, and a word if that is too few. Returns
    the limit as it was."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * settings.max_worker_processes + _SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < needed:
        talk.say(
            "descriptors.few",
            limit=soft,
            needed=needed,
            hint=f"raise the limit of open files, or set max_worker_processes to "
            f"{max(1, (soft - _SPARE_DESCRIPTORS) // 2)}",
        )
    return before
