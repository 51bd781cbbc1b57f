"""The master's shell: sockets and store around the core, one plain poll loop.

Owns: the process: clock, randomness, sockets, the store, signals, the log. Must not know: what a
message means.

Invariant: inputs are drained up to a bound and handled, then everything they led to is committed in
ONE transaction, and only then sent. If the commit fails nothing of the batch is sent and the
process ends; its successor and the peers settle the rest.
"""

import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import zmq

import posthouse
from posthouse import limits, loopback, systemd
from posthouse.errors import ConfigError, PosthouseError, StoreError
from posthouse.ids import Instant
from posthouse.keys import ServerKeys, load_principals, server_keys
from posthouse.settings import MasterSettings
from posthouse.states import Phase
from posthouse.transport import Context, Listener, new_context, open_router
from posthouse.without import without
from posthouse.zap import Gate
from posthouse_master.core import MasterCore, MasterPolicy
from posthouse_master.effects import (
    Configured,
    Effect,
    Halt,
    Input,
    Interrupted,
    Malformed,
    Note,
    Peer,
    PeerGone,
    Persist,
    Received,
    Reload,
    Revoked,
    Room,
    Send,
    Tick,
)
from posthouse_master.gather import gather
from posthouse_master.leases import LeasePolicy
from posthouse_master.phase_source import PhaseSource, open_source
from posthouse_master.preload import preload
from posthouse_master.store.base import Op, RegistryRefused, Store, StoreFull
from posthouse_master.store.sqlite import SqliteStore
from posthouse_master.web.meter import Meter

with without("rich"):  # for tracebacks in colour, which no daemon prints: 10 MB
    import structlog

if TYPE_CHECKING:
    from posthouse_master.web.server import Window

__all__ = ["run"]

_POLL_MS_MAX: Final = 60_000  # an idle master looks around once a minute
_FAREWELL_MS: Final = 500  # for the last frames to leave
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_FULL_S: Final = 1.0  # between two looks at a disk on which there is no room for a new term
_HEARD_S: Final = 2.0  # for whoever asked for a shutdown to acknowledge the answer
_WARNINGS: Final = frozenset(
    (
        "disk.low",
        "disk.none",
        "host.braked",
        "host.down",
        "host.lost",
        "session.refused",
        "static.skipped",
        "peer.bad_frame",
        "worker.stray",
        "worker.start_failed",
    )
)


def run(settings: MasterSettings) -> int:
    """Be the master until the process is asked to end. Returns its exit status."""
    log = _logger(settings.log_format)
    try:
        with ExitStack() as opened:
            return _serve(settings, log, opened)
    except (ConfigError, StoreError) as error:
        print(f"posthouse master: {error}", file=sys.stderr)
        return 1


def _serve(settings: MasterSettings, log: Any, opened: ExitStack) -> int:
    _title("posthouse: master")
    keys, principals = _keys(settings)
    source = open_source(settings)
    if source is not None:
        opened.callback(source.close)
    store = _open(settings, log)
    opened.callback(store.close)
    context = new_context()
    opened.callback(context.term)
    gate = opened.enter_context(Gate(context, principals)) if keys is not None else None
    listeners = _listen(settings, context, keys, opened)
    core = _begin(settings, store, source)
    meter = Meter()
    window = _window(settings, meter, opened)
    shell = _Shell(core, store, listeners, source, log, meter, window, _Principals(settings, gate))
    with _signals() as interrupts:
        try:
            shell.configure(_static(settings, interrupts, log))
        except StoreError as error:
            log.critical("master.failed", code=error.code, reason=error.message, hint=error.hint)
            return 1
        systemd.ready(f"epoch {core.term.epoch}")
        log.info(
            "master.ready",
            agents=listeners["agents"].endpoint,
            clients=listeners["clients"].endpoint,
            registry=core.term.registry,
            epoch=core.term.epoch,
            workers=core.registry.live_count,
            pid=os.getpid(),
        )
        try:
            halt = shell.loop(interrupts)
        except StoreError as error:
            # Nobody knows what is durable, so nothing may be promised or sent any more.
            log.critical("master.failed", code=error.code, reason=error.message, hint=error.hint)
            return 1
    systemd.stopping(halt.reason)
    log.info("master.ended", status=halt.status, reason=halt.reason)
    store.close()  # the next master need not wait for our last frames
    for listener in listeners.values():
        listener.socket.close(_FAREWELL_MS)
    return halt.status


def _keys(settings: MasterSettings) -> tuple[ServerKeys | None, dict[bytes, str]]:
    if settings.key_file is None:
        if settings.principals_file is not None:
            raise ConfigError(
                "principals_file is of no use without key_file",
                hint="posthouse keygen makes the master's key",
            )
        return None, {}
    if settings.principals_file is None:
        raise ConfigError(
            "key_file needs principals_file: without it nobody would be let in",
            hint="list each public key with its principal, as agent:b or client:deploy",
        )
    return server_keys(settings.key_file), load_principals(settings.principals_file)


def _listen(
    settings: MasterSettings, context: Context, keys: ServerKeys | None, opened: ExitStack
) -> dict[str, Listener]:
    listeners: dict[str, Listener] = {}
    for role, endpoint in (
        ("agents", settings.listen_agents),
        ("clients", settings.listen_clients),
    ):
        listener = open_router(
            context,
            endpoint,
            role="agents" if role == "agents" else "clients",
            keys=keys,
            insecure=settings.insecure,
        )
        opened.callback(listener.close)
        listeners[role] = listener
    return listeners


def _window(settings: MasterSettings, meter: Meter, opened: ExitStack) -> "Window | None":
    """What HTTP sees, if it is wanted. The web's libraries are loaded only then."""
    if settings.http is None:
        return None
    from posthouse_master.web.server import Server, Window

    listening = loopback.bind(settings.http)
    window = Window(posthouse.__version__)
    opened.callback(window.close)
    opened.callback(Server(listening, window, meter).close)
    return window


def _open(settings: MasterSettings, log: Any) -> SqliteStore:
    """The registry with a new term begun. On a full disk that waits until there is room: whoever
    is asked to end meanwhile ends at once, as there is nothing yet to be brought to an end."""
    told = False
    while True:
        store = None
        try:
            store = SqliteStore(settings.state_dir)
            store.begin_term()
            return store
        except StoreFull as error:
            if store is not None:
                store.close()
            if not told:
                told = True
                log.critical("master.no_room", reason=error.message, hint=error.hint)
                systemd.status(f"no room: {error.message}")
            time.sleep(_FULL_S)


def _begin(settings: MasterSettings, store: Store, source: PhaseSource | None) -> MasterCore:
    """The term's core, from what is durable."""
    policy = MasterPolicy(
        max_worker_processes=settings.max_worker_processes,
        max_worker_processes_per_host=settings.max_worker_processes_per_host,
        version=posthouse.__version__,
        lease=_leases(settings),
        phase=source.first.phase if source is not None else Phase.RUNNING,
        phase_detail=source.first.detail if source is not None else "",
    )
    gc.disable()  # millions of objects are made here, and none of them is garbage
    try:
        core = MasterCore(store.load(), policy, os.urandom, _now())
    except (msgspec.MsgspecError, KeyError, PosthouseError) as error:
        if isinstance(error, StoreError):
            raise
        raise RegistryRefused(
            f"{store!r}: a row cannot be read: {error}",
            hint="put a backup of the registry in its place; nothing was changed",
        ) from error
    finally:
        gc.enable()
    gc.freeze()  # nor are they looked through again and again: that would stop the loop for seconds
    return core


def _leases(settings: MasterSettings) -> LeasePolicy:
    """Unless one is asked for, leases have a deadline only once there is a host that is not of
    this machine's boot."""
    asked = settings.lease_s is not None
    local = "" if asked or sys.platform != "linux" else _BOOT_ID.read_text().strip()
    return LeasePolicy(
        lease_s=settings.lease_s or limits.lease_s,
        local_boot_id=local,
        handover_s=settings.handover_s,
        mass_loss_wait_s=settings.mass_loss_wait_s,
    )


def _static(settings: MasterSettings, interrupts: "_Interrupts", log: Any) -> Configured | None:
    """The static registrations, once every library has answered or failed. None if the master is
    to end before: then none of them has failed, and none is registered."""
    if settings.preload_libraries:
        systemd.status("loading preload_libraries")
    libraries = preload(settings, interrupts.descriptor)
    if libraries is None:
        return None
    for library in libraries:
        level = log.warning if library.failed else log.info
        level(
            "library.failed" if library.failed else "library.loaded",
            library=library.name,
            workers=len(library.workers),
            structs=len(library.structs),
            reason=library.failed,
            output=library.output,
            output_lost_bytes=library.output_lost,
        )
    return gather(settings, libraries)


class _Principals:
    """Who is let in, by a file that is read anew at HUP."""

    def __init__(self, settings: MasterSettings, gate: Gate | None) -> None:
        self._file = settings.principals_file
        self._gate = gate
        self._revoked: frozenset[tuple[str, str]] = frozenset()

    def read_again(self) -> Revoked | None:
        """What the core has to know of it. Raises ConfigError; then everything stays as it was."""
        if self._gate is None or self._file is None:
            return None
        before = self._gate.entries
        self._gate.replace(load_principals(self._file))
        now = self._gate.entries
        self._revoked = (self._revoked | before) - now
        return Revoked(self._revoked)


class _Shell:
    """Runs the effects of one core. One thread."""

    def __init__(
        self,
        core: MasterCore,
        store: SqliteStore,
        listeners: dict[str, Listener],
        source: PhaseSource | None,
        log: Any,
        meter: Meter,
        window: "Window | None",
        principals: _Principals,
    ) -> None:
        self._core = core
        self._principals = principals
        self._store = store
        self._room = Room.AMPLE
        self._listeners = listeners
        self._source = source
        self._log = log
        self._meter = meter
        self._window = window
        self._gone: dict[Peer, None] = {}  # peers that a frame did not reach
        self._leads_s = 0.0  # when the registry was last seen to be that of this term

    def configure(self, configured: Configured | None) -> None:
        """Make the static registrations durable, before anybody is heard (S5)."""
        if configured is None:
            return
        now = _now()
        space = self._store.reserve.look(now.boot_s)
        effects: list[Effect] = []
        if space is not None:
            self._room = space.room
            effects += self._core.handle(space, now)
        self._carry_out([*effects, *self._core.handle(configured, now)])

    def loop(self, interrupts: "_Interrupts") -> Halt:
        poller = zmq.Poller()
        for listener in self._listeners.values():
            poller.register(listener.socket, zmq.POLLIN)
        poller.register(interrupts.descriptor, zmq.POLLIN)
        if self._source is not None:
            poller.register(self._source.descriptor, zmq.POLLIN)
        if self._window is not None:
            poller.register(self._window.descriptor, zmq.POLLIN)
        watchdog_s = systemd.watchdog_interval_s()
        while True:
            poller.poll(self._timeout_ms(watchdog_s))
            halt = self._batch(interrupts.taken())
            if halt is not None:
                self._farewell(poller)
                return halt
            if self._window is not None:
                self._window.look(self._core, _now())
            if watchdog_s is not None:
                systemd.watchdog()

    def _farewell(self, poller: zmq.Poller) -> None:
        """Let the answer to a shutdown be heard before the sockets go."""
        end_s = _now().boot_s + _HEARD_S
        while self._core.unheard and _now().boot_s < end_s:
            poller.poll(_FAREWELL_MS // 10)
            self._batch("")

    def _batch(self, interrupt: str) -> Halt | None:
        """Drain, handle, commit once, send."""
        now = _now()
        if now.boot_s >= self._leads_s + limits.lead_look_s:
            # Grants wait for no commit, and a master to which nothing happens makes none.
            self._store.check(self._core.term.epoch)
            self._leads_s = now.boot_s
        effects: list[Effect] = []
        for event in self._inputs(now, interrupt):
            effects += self._core.handle(event, now)
        told = self._meter.frames["out", "Events"]
        halt = self._carry_out(effects)
        if self._meter.frames["out", "Events"] != told:
            self._meter.notifications.observe(_now().boot_s - now.boot_s)
        return halt

    def _inputs(self, now: Instant, interrupt: str) -> Iterator[Input]:
        space = self._store.reserve.look(now.boot_s)
        if space is not None:
            self._room = space.room
            yield space
        if self._source is not None:
            yield from self._source.taken()
        gone, self._gone = self._gone, {}
        for peer in gone:
            yield PeerGone(peer)
        for role, listener in self._listeners.items():
            for inbound in listener.receive(limits.drain_messages_max):
                endpoint = "agents" if role == "agents" else "clients"
                peer = Peer(endpoint, inbound.routing_id, inbound.user_id, inbound.key)  # type: ignore[arg-type]
                self._meter.frame("in", inbound.frame)
                yield Malformed(peer) if inbound.malformed else Received(peer, inbound.frame)
        wake_s = self._core.wake_s
        if wake_s is not None and wake_s <= now.boot_s:
            yield Tick()
        if interrupt == "SIGHUP":
            yield from self._reloaded()
        elif interrupt:
            yield Interrupted(interrupt)

    def _reloaded(self) -> Iterator[Input]:
        try:
            revoked = self._principals.read_again()
        except ConfigError as error:
            self._log.warning("principals.kept", reason=error.message, hint=error.hint)
        else:
            if revoked is not None:
                self._log.info("principals.read", revoked=len(revoked.entries))
                yield revoked
        yield Reload()

    def _carry_out(self, effects: list[Effect]) -> Halt | None:
        halt: Halt | None = None
        ops: list[Op] = []
        sends: list[Send] = []
        notes: list[Note] = []
        for effect in effects:
            match effect:
                case Persist(op):
                    ops.append(op)
                case Send(urgent=True):
                    self._send(effect)
                case Send():
                    sends.append(effect)
                case Note():
                    notes.append(effect)
                case Halt():
                    halt = halt or effect
        if ops:
            before_s = time.monotonic()
            self._store.commit(self._core.term.epoch, ops)
            self._meter.commits.observe(time.monotonic() - before_s)
        for send in sends:
            self._send(send)
        for note in notes:
            level = self._log.warning if note.name in _WARNINGS else self._log.info
            level(note.name, **note.fields)
        return halt

    def _send(self, send: Send) -> None:
        # A peer that is gone or does not read loses its session: its link would never recover.
        self._meter.frame("out", send.frame)
        outcome = self._listeners[send.peer.endpoint].send(send.peer.routing_id, send.frame)
        if outcome != "sent":
            self._gone[send.peer] = None

    def _timeout_ms(self, watchdog_s: float | None) -> int:
        if self._gone or (self._window is not None and self._window.busy):
            return 0
        wake_s = self._core.wake_s
        wait_ms = _POLL_MS_MAX if wake_s is None else (wake_s - _now().boot_s) * 1000
        if watchdog_s is not None:
            wait_ms = min(wait_ms, watchdog_s * 500)
        if self._room is not Room.AMPLE:
            wait_ms = min(wait_ms, limits.disk_look_s * 1000)
        return min(_POLL_MS_MAX, max(0, int(wait_ms) + 1))


class _Interrupts:
    """SIGTERM, SIGINT and SIGHUP as something a poller can wait for."""

    def __init__(self, reader: socket.socket) -> None:
        self._reader = reader

    @property
    def descriptor(self) -> int:
        return self._reader.fileno()

    def taken(self) -> str:
        """Which signal came, if one did; one that ends the process before one that does not."""
        try:
            data = self._reader.recv(64)
        except BlockingIOError:
            return ""
        names = [signal.Signals(number).name for number in data]
        return min(names, key=lambda name: name == "SIGHUP", default="")


@contextmanager
def _signals() -> Iterator[_Interrupts]:
    reader, writer = socket.socketpair()
    restore: list[Callable[[], object]] = []
    try:
        reader.setblocking(False)
        writer.setblocking(False)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                before = signal.signal(number, _ignore)
                restore.append(lambda n=number, b=before: signal.signal(n, b))  # type: ignore[misc]
            before_descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            restore.append(lambda: signal.set_wakeup_fd(before_descriptor))
        yield _Interrupts(reader)
    finally:
        for undo in reversed(restore):
            undo()
        reader.close()
        writer.close()


def _ignore(_number: int, _frame: object) -> None:
    """The signal's number arrives at the wakeup descriptor; a handler is needed for it to."""


def _now() -> Instant:
    return Instant(time.clock_gettime(time.CLOCK_BOOTTIME), time.time())


def _title(text: str) -> None:
    import setproctitle

    setproctitle.setproctitle(text)


def _logger(log_format: str) -> Any:
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    renderer = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if console
        else structlog.processors.JSONRenderer()
    )
    return structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.BoundLogger,
    ).bind()  # once; else at each line
