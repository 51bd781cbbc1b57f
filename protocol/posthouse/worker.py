"""What a worker's code may ask about itself and its cluster: `from posthouse import worker`.

Owns: the worker's entry, its latch, its signal mask, its exit callbacks. Must not know: how it
was forked, ZeroMQ. Invariant: standard library only; outside a worker every call says clearly that
this process is none.

    from posthouse import worker

    def main(arg):
        me = worker.entry()
        worker.unblock_signals()
        worker.ready()
        while True:
            worker.latch.reset()
            do_some_work(arg)
            worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH, timeout=1.0)
"""

import os
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from posthouse import limits, registrant
from posthouse.channel import Channel
from posthouse.errors import UsageError
from posthouse.ids import HandleId
from posthouse.latch import (
    EXIT_ON_PM_DEATH,
    LATCH_SET,
    POSTMASTER_DEATH,
    SOCKET_READABLE,
    SOCKET_WRITEABLE,
    TIMEOUT,
    Latch,
    WaitEvent,
)
from posthouse.registrant import WorkerHandle, WorkerStatus
from posthouse.spec import BackgroundWorker
from posthouse.states import DATABASE_CONNECTION

if TYPE_CHECKING:
    from posthouse.spi import Session

__all__ = [
    "BYPASS_ALLOWCONN",
    "BYPASS_ROLELOGINCHECK",
    "EXIT_ON_PM_DEATH",
    "LATCH_SET",
    "POSTMASTER_DEATH",
    "SOCKET_READABLE",
    "SOCKET_WRITEABLE",
    "TIMEOUT",
    "Entry",
    "WaitEvent",
    "WorkerHandle",
    "WorkerStatus",
    "before_exit",
    "block_signals",
    "entry",
    "handle",
    "heartbeat",
    "initialize_connection",
    "initialize_connection_by_oid",
    "latch",
    "on_exit",
    "ready",
    "register",
    "unblock_signals",
]

latch: Final = Latch()
"""This worker's own latch. Anyone may set it: `handle.set_latch()` from any host."""

BYPASS_ALLOWCONN: Final = 0x1
"""The role need not have the right CONNECT (W11)."""

BYPASS_ROLELOGINCHECK: Final = 0x2
"""The role need not have the attribute LOGIN (W11)."""

spi: "Session"
"""The connection that `initialize_connection` has made. Raises UsageError before that."""

# QUIT (W1) is never blocked, nor what reports a fault of this very process: a block would only
# take away its handler. KILL and STOP cannot be. By name: a client may run where one is missing.
_NEVER_BLOCKED = (
    "QUIT",
    "ILL",
    "TRAP",
    "ABRT",
    "BUS",
    "FPE",
    "SEGV",
    "SYS",
    "CONT",
    "KILL",
    "STOP",
    "RTMAX",
)

STACKS_SIGNAL: Final = int(getattr(signal, "SIGRTMAX", 0))
"""Reserved: it has a worker's stacks written for `posthouse stacks`. Never blocked, so that it
works in a worker that hangs; nothing else notices."""

BLOCKED: Final = frozenset(signal.valid_signals()) - {
    getattr(signal, f"SIG{name}", None) for name in _NEVER_BLOCKED
}
"""What is blocked when main is entered (the seed: BackgroundWorkerBlockSignals)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The registration as it was made, and this start of it (the seed: MyBgworkerEntry).

    `token` rises with every start in the cluster and never falls: check it where the data is
    written, and a worker that was cut off cannot overwrite its successor.
    """

    spec: BackgroundWorker
    handle: HandleId
    host: str
    incarnation: int
    token: int
    revision: int

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def main_arg(self) -> Any:
        return self.spec.main_arg

    @property
    def extra(self) -> bytes:
        return self.spec.extra


@dataclass(slots=True)
class _Process:
    """What a worker process knows of itself; None in any other process."""

    make_entry: Callable[[], Entry]
    pid: int
    channel: Channel
    beat_fd: int
    memory_fd: int = -1
    databases: Callable[[], dict[str, str]] = dict
    entry: Entry | None = None
    session: "Session | None" = None
    ready: bool = False


@dataclass(slots=True)
class _Interrupts:
    """What posthouse.shmem and the code that ends a worker tell each other: locks that are held
    (TERM's default waits for their release), and what is to be left on the way out."""

    held: int = 0
    pending: bool = False
    fire: Callable[[], None] = lambda: None
    leave: Callable[..., None] = lambda **_: None


interrupts: Final = _Interrupts()

_BEAT: Final = struct.Struct("=q")

_process: _Process | None = None
_before_exit: Final[list[Callable[[], object]]] = []
_on_exit: Final[list[Callable[[], object]]] = []


def entry() -> Entry:
    """The registration, host, incarnation and token of this worker. Raises UsageError."""
    me = _me()
    if me.entry is None:
        me.entry = me.make_entry()
    return me.entry


def unblock_signals() -> None:
    """Let signals in. Install your handlers first: TERM's default ends the process on the spot."""
    _me()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)


def block_signals() -> None:
    """Keep signals waiting, except QUIT, as they were when main was entered."""
    _me()
    signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)


def ready() -> None:
    """Say that this worker has done its preparations; `handle.wait_for_ready()` returns.

    Returns at once, and does nothing when called again. It is not lost if the agent restarts.
    """
    me = _me()
    if not me.ready:
        me.channel.send("ready")
        me.ready = True


def register(worker: BackgroundWorker, *, timeout: float = 10.0) -> WorkerHandle:
    """Register another worker, through this host's agent [RegisterDynamicBackgroundWorker].

    It acts with the rights of a client, under this worker's name, and has exactly one effect even
    if agent or master are killed meanwhile. With `notify=True` this process gets SIGUSR1 whenever
    that worker starts or stops, which sets its latch, for as long as it lives; handles and waits
    need no such signal. What it registers stays when it ends (D9).
    """
    return registrant.register(_me().channel, worker, timeout)


def handle(text: str) -> WorkerHandle:
    """The handle that a text names, such as another worker's `str(worker.entry().handle)` in a
    main_arg. Raises InvalidField if it is none."""
    return registrant.named(_me().channel, text)


def initialize_connection(
    dbname: str | None, username: str | None = None, *, flags: int = 0
) -> "Session":
    """Connect to a database; from then on `worker.spi` is there, and is what this returns.
    [BackgroundWorkerInitializeConnection]

    `dbname` is a table [databases.NAME] of the host's agent.toml; None: the maintenance database,
    read-only. `username`: the role to be, None for the URL's own. Once, and then there is no
    switching. Raises UsageError (without DATABASE_CONNECTION, a second time), DatabaseError.
    """
    from posthouse import spi as found

    me = _may_connect(flags)
    asked = found.Asked(
        database=dbname, role=username, flags=flags, name=entry().name, token=entry().token
    )
    me.session = found.connect(me.databases(), asked)
    return me.session


def initialize_connection_by_oid(dboid: int, useroid: int = 0, *, flags: int = 0) -> "Session":
    """As `initialize_connection`, with oids of the maintenance database's server; 0 is none.
    [BackgroundWorkerInitializeConnectionByOid]"""
    from posthouse import spi as found

    me = _may_connect(flags)
    asked = found.Asked(
        database=dboid, role=useroid, flags=flags, name=entry().name, token=entry().token
    )
    me.session = found.connect(me.databases(), asked)
    return me.session


def _may_connect(flags: int) -> _Process:
    me = _me()
    if not entry().spec.flags & DATABASE_CONNECTION:
        raise UsageError(
            "database connection requirement not indicated during registration",
            hint="flags=SHMEM_ACCESS | DATABASE_CONNECTION",
        )
    if me.session is not None:
        raise UsageError(
            f"this worker is connected to {me.session.database!r}: it is not possible to switch "
            "databases"
        )
    if flags & ~(BYPASS_ALLOWCONN | BYPASS_ROLELOGINCHECK):
        raise UsageError(
            f"flags is {flags}: must be of BYPASS_ALLOWCONN (1) and BYPASS_ROLELOGINCHECK (2)"
        )
    return me


def __getattr__(name: str) -> Any:
    if name != "spi":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if (session := _me().session) is None:
        raise UsageError("no database is connected", hint="worker.initialize_connection(...) first")
    return session


def heartbeat() -> None:
    """Say that this worker gets on with its work, where its registration has a `watchdog_s`.

    The host ends a worker that is silent for longer, by ABRT (its stacks are then the last lines
    of its output) and KILL after its stop grace. Call it where the work is done, as often as one
    likes: it costs about a microsecond, and takes no part of agent or master.
    """
    me = _me()
    os.pwrite(me.beat_fd, _BEAT.pack(time.monotonic_ns()), limits.traceback_bytes_max)


def before_exit(callback: Callable[[], object]) -> Callable[[], object]:
    """Call this first when the worker ends (the seed: before_shmem_exit), last registered first.

    At most 20. They run after main has returned, after an uncaught error, after sys.exit and after
    TERM's default handler; not after os._exit, QUIT or a signal that kills. May be a decorator.
    """
    return _add(_before_exit, callback, "before_exit")


def on_exit(callback: Callable[[], object]) -> Callable[[], object]:
    """Call this when the worker ends (the seed: on_proc_exit): after all of `before_exit` and
    after threads that are not daemons have ended, before `atexit`. At most 20."""
    return _add(_on_exit, callback, "on_exit")


def _add(
    callbacks: list[Callable[[], object]], callback: Callable[[], object], name: str
) -> Callable[[], object]:
    _me()
    if not callable(callback):
        raise UsageError(f"{name} takes a function, not {callback!r}")
    if len(callbacks) >= limits.exit_callbacks_max:
        raise UsageError(f"out of {name} slots: at most {limits.exit_callbacks_max}")
    callbacks.append(callback)
    return callback


def _me() -> _Process:
    if _process is None:
        raise UsageError(
            "this process is not a background worker",
            hint='register it: posthouse run NAME "module:function"',
        )
    if os.getpid() != _process.pid:
        raise UsageError(
            f"this process is not a background worker but was forked by one (pid {_process.pid})"
        )
    return _process


def memory_fds() -> tuple[int, int]:
    """The memory line (-1: without SHMEM_ACCESS), and the file of the record of held locks. For
    posthouse.shmem."""
    me = _me()
    return me.memory_fd, me.beat_fd


def begin(
    make_entry: Callable[[], Entry],
    channel_fd: int,
    latch_fd: int,
    beat_fd: int,
    memory_fd: int = -1,
    databases: Callable[[], dict[str, str]] = dict,
) -> None:
    """Make this process a worker. Called once, by the code that forked it. `beat_fd`: the memory
    file that the warden looks into, behind the place of the traceback. `databases`: URLs by name,
    and under "" the name of the maintenance database."""
    global _process  # noqa: PLW0603 - the process's own identity; there is one
    channel = Channel(channel_fd)
    channel.on_notice = _on_notice
    latch.own(latch_fd, channel)
    _process = _Process(make_entry, os.getpid(), channel, beat_fd, memory_fd, databases)


def _on_notice(message: dict[str, Any]) -> None:
    """What the agent says unasked. Others are for a later version of this module."""
    if message["op"] == "postmaster":
        latch.note_postmaster(dead=message.get("alive") is False)


def exit_callbacks() -> tuple[list[Callable[[], object]], list[Callable[[], object]]]:
    """The lists of before_exit and on_exit, to be emptied from their ends. For the forking code."""
    return _before_exit, _on_exit
