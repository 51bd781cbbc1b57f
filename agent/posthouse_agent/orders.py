"""What agent and warden say to each other over their Unix socket; its own protocol version.

Owns: the orders and reports, and their bytes. Must not know: sockets, processes, ZeroMQ.
Invariant: standard library and msgpack only, because the warden loads nothing else. One record is
one SOCK_SEQPACKET message: a msgpack map with its class name under "op".
"""

from dataclasses import dataclass, fields
from typing import Any, get_args, get_origin

import msgpack

from posthouse import limits
from posthouse_agent.start_worker import StartWorker

__all__ = [
    "PROTOCOL",
    "Attach",
    "Attached",
    "Confirm",
    "Ended",
    "Forget",
    "ForkFailed",
    "Forked",
    "Leased",
    "NoteReady",
    "Order",
    "Planned",
    "RecordOf",
    "Remember",
    "RenewLease",
    "RenewRuntime",
    "Report",
    "SignalWorker",
    "SnapshotEnd",
    "StartWorker",
    "StopUnknown",
    "StopWorker",
    "Stuck",
    "TellRecord",
    "pack",
    "unpack",
]

PROTOCOL = 0


# --- agent -> warden ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach:
    """First order on a connection. Answered by Attached, Forked (with `known`) for every live
    worker, Ended for every unconfirmed exit, then SnapshotEnd. An older connection is closed and
    what it had sent but the warden had not read is void."""

    protocol: int = PROTOCOL
    agent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopWorker:
    """`signal` (0: KILL at once), then KILL after `grace_s`. Answered by Ended, or by StopUnknown
    if no process has the token; a tombstone then keeps any START up to it from running."""

    token: int
    slot: int
    reason: str
    signal: int
    grace_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalWorker:
    """`handled`: only to a process that does not leave it at its deadly default."""

    token: int
    signal: int
    handled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteReady:
    """The worker said it is ready: remembered for the next agent."""

    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewRuntime:
    """The next start of this runtime ("": of all) is to have newly loaded code."""

    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewLease:
    """The host's lease, as granted for the request of `stamp`: this warden and its workers may run
    until `deadline_us` (0: without an end). Both in microseconds of CLOCK_BOOTTIME. The one of the
    newest stamp counts. Answered by Leased."""

    stamp: int
    deadline_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Remember:
    """Which master this host has obeyed last: Attached tells it to the next agent, whose own memory
    ends with it. Only to a warden that `remembers`."""

    registry: str = ""
    timeline: int = 0
    epoch: int = 0
    master: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TellRecord:
    """Answered by RecordOf, or by nothing if no process has the token."""

    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirm:
    """The master has these exits; their records may go."""

    tokens: list[int]


# --- warden -> agent ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    instance: str  # 32 hex digits, new with every warden process
    kind: str  # fenced | kept | tree
    boot_id: str
    pid: int
    highest_token: int
    protocol: int = PROTOCOL
    run_as: bool = False  # it can run workers as other users, and end them
    fence: bool = True  # it has a timer of the kernel that would end it with its lease
    leased: bool = False  # and that timer is set
    remembers: bool = False  # it takes Remember; the rest is what it was told
    registry: str = ""
    timeline: int = 0
    epoch: int = 0
    master: str = ""
    # why this host can have no tree warden; the fenced one knows
    no_tree: str = "its warden is of a version without"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forked:
    """A worker process exists. The message carries two descriptors: its channel and its latch."""

    token: int
    registry: str
    slot: int
    generation: int
    incarnation: int
    revision: int
    pid: int
    pid_start: int  # field 22 of /proc/PID/stat
    started_unix_s: float
    runtime: str = ""
    code: str = ""  # revision of what its runtime has loaded
    ready: bool = False
    stopping: str = ""
    known: bool = False  # part of a snapshot
    stuck: str = ""  # as in Stuck
    log_bytes: int = limits.log_bytes_max  # the bound of its output
    name: str = ""  # for people


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkFailed:
    token: int
    slot: int
    generation: int
    incarnation: int
    code: str  # fork_failed, stale_token, stopping, recalled, bad_order, too_many_exits, runtime_*,
    # preload_failed
    reason: str
    retry: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A worker is gone and reaped. `facts`: fields of posthouse.records.ExitFacts."""

    token: int
    registry: str
    slot: int
    generation: int
    incarnation: int
    revision: int
    facts: dict[str, Any]
    ready: bool = False
    stop: str = ""
    known: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stuck:
    """KILL was sent and something of this worker lives on: it keeps its slot. `state` says where
    the kernel holds it. Its Ended follows if it ever ends."""

    token: int
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Leased:
    """The lease of this stamp is in force: the kernel ends the warden at its deadline."""

    stamp: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOf:
    """With which record the worker was started, and who had declared it."""

    token: int
    spec: dict[str, Any]
    source: str = ""
    group: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """Part of a snapshot, before its end: this token is that of a worker, or of an exit, which the
    host may start again by itself. `order` is the StartWorker that led to it, packed."""

    token: int
    order: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StopUnknown:
    token: int
    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotEnd:
    running: int
    exits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """The warden ends on purpose (TERM): its workers have ended, no more orders are taken."""


Order = (
    Attach
    | TellRecord
    | StartWorker
    | StopWorker
    | SignalWorker
    | NoteReady
    | RenewRuntime
    | RenewLease
    | Remember
    | Confirm
)
Report = (
    Attached
    | Forked
    | ForkFailed
    | Ended
    | Stuck
    | Leased
    | RecordOf
    | Planned
    | StopUnknown
    | SnapshotEnd
    | Forget
)

_CLASSES: dict[str, type[Any]] = {
    cls.__name__: cls
    for cls in (
        *(Attach, StartWorker, StopWorker, SignalWorker, NoteReady, RenewRuntime, RenewLease),
        *(Confirm, Attached, Forked, ForkFailed, Ended, Stuck, Leased, StopUnknown, SnapshotEnd),
        *(TellRecord, RecordOf, Forget, Remember, Planned),
    )
}


def pack(record: Order | Report) -> bytes:
    """The bytes of one message. Raises ValueError if they exceed the frame's bound."""
    # not asdict(): its deep copies would be most of a warden's work
    values = {name: getattr(record, name) for name in record.__slots__}
    data: bytes = msgpack.packb({"op": type(record).__name__, **values})
    if len(data) > limits.warden_frame_bytes_max:
        raise ValueError(f"{type(record).__name__} of {len(data)} bytes")
    return data


def unpack(data: bytes) -> Any:
    """The record of one message. Raises ValueError; unknown fields are ignored, so that an agent
    and a warden of neighbouring versions understand each other."""
    try:
        values = msgpack.unpackb(data, raw=False, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise ValueError(f"not msgpack: {error}") from None
    cls = _CLASSES.get(str(values.pop("op", ""))) if isinstance(values, dict) else None
    if cls is None:
        raise ValueError("not an order or report")
    known = {f.name for f in fields(cls)}
    for f in fields(cls):
        if f.name in values and not _fits(values[f.name], f.type):
            raise ValueError(f"{cls.__name__}.{f.name} is no {f.type}")
    try:
        return cls(**{name: value for name, value in values.items() if name in known})
    except TypeError as error:
        raise ValueError(str(error)) from None


def _fits(value: Any, kind: Any) -> bool:
    """Exact types only (True is no int), one level into lists and maps."""
    if kind is Any:
        return True
    base = get_origin(kind) or kind
    if base is float and type(value) is int:
        return True
    if type(value) is not base:
        return False
    if base is list:
        return all(_fits(item, get_args(kind)[0]) for item in value)
    if base is dict:
        key_kind, value_kind = get_args(kind)
        return all(_fits(k, key_kind) and _fits(v, value_kind) for k, v in value.items())
    return True
