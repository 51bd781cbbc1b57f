"""CORE: the rows of the registry, the operations on them, and what every store promises.

Owns: the shape of what is durable. Must not know: what a change means (registry), how it is kept.
Invariant: a commit is one transaction that checks the epoch inside: all of its operations are
durable when it returns, or none is and it raised.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from posthouse.errors import StoreError
from posthouse.states import StopReason

__all__ = [
    "Counters",
    "DropGroup",
    "DropHost",
    "DropRegistration",
    "DropRequests",
    "EpochLost",
    "EventRow",
    "GroupRow",
    "HostRow",
    "Life",
    "Op",
    "PutCounters",
    "PutEvent",
    "PutGroup",
    "PutHost",
    "PutRegistration",
    "PutRequest",
    "PutSlot",
    "PutState",
    "RegistryRefused",
    "RequestRow",
    "Snapshot",
    "SpecRow",
    "StateRow",
    "Store",
    "StoreFull",
    "Term",
    "TrimEvents",
    "first_number",
]


class EpochLost(StoreError):
    """Another master has begun a newer term; this one must not write or send any more."""

    code = "epoch_lost"


class RegistryRefused(StoreError):
    """The registry cannot be opened: locked, foreign, newer, damaged. The hint is the way out."""

    code = "registry_refused"


class StoreFull(StoreError):
    """There is no room on the disk. Nothing of the transaction is durable, the store is as it was
    before it and stays usable. `detail`: path, free_bytes."""

    code = "store_full"


class Life(StrEnum):
    """Where a registration is, as the master sees it (section 5 of the contract)."""

    SUBMITTED = "submitted"  # never started: waits for a phase, a host, or its first start
    STARTING = "starting"  # incarnation and token drawn and durable; START may have left
    RUNNING = "running"
    WAITING = "waiting"  # ended, to be started again
    HELD = "held"  # not to be started before it is released
    RETIRED = "retired"  # unregistered; stays listed with its last exit


# --- rows ---


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecRow:
    """What was asked for: changes only with the revision. `spec` is the packed wire form."""

    slot: int
    generation: int
    revision: int
    name: str
    spec: bytes
    registered_unix_s: float
    by: str = ""
    source: str = ""
    order: int = 0  # sequence of the first event: who came first
    group: str = ""
    max_unavailable: int = 1  # of its source, while an apply replaces processes
    registrant: str = ""  # a process that is no worker and gets SIGUSR1


@dataclass(frozen=True, slots=True, kw_only=True)
class StateRow:
    """What has become of it. `last_exit` is a packed ExitFacts, empty if it never ended."""

    slot: int
    generation: int
    life: Life
    host: str = ""
    warden: str = "fenced"
    incarnation: int = 0
    token: int = 0
    domain: str | None = None  # the crash domain of its newest process; None: that of its record
    pid: int | None = None
    pid_start: int | None = None
    started_unix_s: float | None = None
    ready: bool = False
    stopping: StopReason | None = None
    stop_by: str = ""
    stop_grace_s: float | None = None  # asked for with the stop; None: its record's own
    reason: str = ""
    rule: str = ""
    signal: int = 0  # the last one that somebody had sent to its process
    signal_by: str = ""
    restart_delay_s: float | None = None
    starts: int = 0
    failures: int = 0
    streak: int = 0
    trimmed_to: int = 0  # sequence of the newest event of it that is no longer kept
    ran_revision: int = 0  # of the newest incarnation
    proven_revision: int = 0  # the newest one that no rollout waits for
    awaits_ready: bool = False  # the process that a rollout replaces had said ready
    code: str = ""  # revision of what the newest process's runtime had loaded
    last_exit: bytes = b""
    # packed: tokens, oldest first, that its host may use for what follows the newest incarnation
    reserved: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """One row of the log; `body` is a packed posthouse.records.Event. `stream` tells whose bound
    it counts for: "slot.generation", "host:NAME" or "cluster"."""

    sequence: int
    stream: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRow:
    """A host that has said HELLO at least once; `offer` is what it said of itself, packed."""

    name: str
    machine_id: str
    boot_id: str
    offer: bytes
    heard_unix_s: float
    up: bool = False  # the log's last word of it was HOST_UP
    lease_s: float = 0.0  # the longest lease it may still count on; 0: one without a deadline
    draining: bool = False  # an operator wants no starts there


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRow:
    """The answer to a request that changed something; `result` is a packed message of `kind`."""

    principal: str
    request: bytes
    digest: bytes
    kind: int
    result: bytes
    at_unix_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRow:
    """A record of which there are several registrations. `hosts` is a packed list: those that an
    each-host group (`replicas` -1) has been given a member on."""

    name: str
    spec: bytes
    replicas: int
    source: str = ""
    by: str = ""
    max_unavailable: int = 1
    hosts: bytes = b"\x90"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Numbers that never fall, and whether those who run are still to be found."""

    token: int = 0  # drawn last
    sequence: int = 0  # of the newest event
    trimmed_to: int = 0  # of the newest event of any stream that is no longer kept
    dropped_to: int = 0  # the same, of those whose stream no longer tells that they are missing
    # After a restore, until it is known what runs: "known" waits for the hosts of the backup, "any"
    # also so long that one that joined later has come back, or has ended what it runs.
    recovery: str = ""


def first_number(timeline: int) -> int:
    """Below all epochs, tokens and generations that a timeline begun by a restore hands out, and
    above all that another did: its own number is the second in which it began, and nothing draws a
    million of them a second."""
    return timeline << 20 if timeline > 1 else 0


# --- operations ---


@dataclass(frozen=True, slots=True)
class PutRegistration:
    row: SpecRow


@dataclass(frozen=True, slots=True)
class PutState:
    row: StateRow


@dataclass(frozen=True, slots=True)
class DropRegistration:
    """A retired registration is no longer listed. Its events go by TrimEvents."""

    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class PutSlot:
    """The generation that the slot was given last; outlives its registrations."""

    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class PutEvent:
    row: EventRow


@dataclass(frozen=True, slots=True)
class TrimEvents:
    sequences: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PutRequest:
    row: RequestRow


@dataclass(frozen=True, slots=True)
class DropRequests:
    keys: tuple[tuple[str, bytes], ...]  # (principal, request)


@dataclass(frozen=True, slots=True)
class PutHost:
    row: HostRow


@dataclass(frozen=True, slots=True)
class DropHost:
    name: str


@dataclass(frozen=True, slots=True)
class PutGroup:
    row: GroupRow


@dataclass(frozen=True, slots=True)
class DropGroup:
    name: str


@dataclass(frozen=True, slots=True)
class PutCounters:
    row: Counters


Op = (
    PutRegistration
    | PutState
    | DropRegistration
    | PutSlot
    | PutEvent
    | TrimEvents
    | PutRequest
    | DropRequests
    | PutHost
    | DropHost
    | PutGroup
    | DropGroup
    | PutCounters
)


# --- the store ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One master's time in office."""

    registry: str  # 32 hex digits, for ever
    timeline: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that is durable, as one term begins."""

    term: Term
    counters: Counters = Counters()
    specs: Sequence[SpecRow] = ()
    states: Sequence[StateRow] = ()
    slots: Sequence[tuple[int, int]] = ()  # (slot, generation given last)
    events: Sequence[EventRow] = ()  # by sequence
    hosts: Sequence[HostRow] = ()
    groups: Sequence[GroupRow] = ()
    requests: Sequence[RequestRow] = field(default=())  # oldest first


class Store(Protocol):
    """A registry that is open. Any StoreError but StoreFull means that its process has to end: what
    is durable is then known only to a store that is opened anew."""

    def begin_term(self) -> Term:
        """Raise the epoch by one, durably. Whoever held the former one can commit no more."""
        ...

    def load(self) -> Snapshot:
        """Everything, as of the term that was begun."""
        ...

    def commit(self, epoch: int, ops: Sequence[Op]) -> None:
        """One durable transaction. Raises EpochLost if `epoch` is not the newest."""
        ...

    def check(self, epoch: int) -> None:
        """Raises what a commit of this epoch would raise now, and writes nothing."""
        ...

    def close(self) -> None:
        """Give the registry back."""
        ...
