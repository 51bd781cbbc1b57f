"""What the warden's core is told, what it asks for, and what it wants remembered.

Owns: inputs, effects and journal entries, as frozen records. Must not know: processes, sockets,
files. Invariant: standard library only; a journal entry holds all that the next warden needs.

Effects are ordered, and the order is the contract: what is journalled comes before the fork, the
reap or the report that rests on it.
"""

from dataclasses import dataclass, field
from typing import Any

from posthouse_agent.domains import AnswerMemory, DropSegment, MakeSegment
from posthouse_agent.orders import Attach, Order, Report, StartWorker

__all__ = [
    "AgentAttached",
    "AgentGone",
    "Arm",
    "Armed",
    "Confirmed",
    "Effect",
    "End",
    "Entry",
    "Event",
    "Exited",
    "Fork",
    "ForkDone",
    "ForkRefused",
    "Heard",
    "Intent",
    "Kill",
    "Listen",
    "Look",
    "Mark",
    "MemoryAsked",
    "MemoryFailed",
    "NotForked",
    "Ordered",
    "Orphan",
    "PostmasterGone",
    "ProcessEnded",
    "ProcessStuck",
    "ReadyNoted",
    "Reap",
    "Recall",
    "Recovered",
    "Renew",
    "Started",
    "Stopping",
    "Tell",
    "Terminating",
    "Tick",
    "WriteJournal",
]


# --- journal entries ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """A fork may happen from here on."""

    token: int
    registry: str
    slot: int
    generation: int
    incarnation: int
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NotForked:
    """The fork of this intent did not happen and never will."""

    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    token: int
    pid: int
    pid_start: int
    started_unix_s: float
    runtime: str = ""
    code: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyNoted:
    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """A stop was ordered; the exit will be judged by this, not by its code."""

    token: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """The process is dead; it is reaped after this."""

    token: int
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmed:
    """The master has these exits."""

    tokens: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """No token up to this one may start in this slot (tombstone, or what compaction left)."""

    slot: int
    token: int


Entry = Intent | NotForked | Started | ReadyNoted | Stopping | Exited | Confirmed | Mark


# --- inputs ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """A token that an earlier warden (meant to) start and did not see end. pid 0: not known."""

    intent: Intent
    pid: int = 0
    pid_start: int = 0
    started_unix_s: float = 0.0
    ready: bool = False
    stop: str = ""
    facts: dict[str, Any] | None = None  # given: it did see the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """First input of all: what the journal says, once every leftover process is known to be dead.

    `lost` become exits with cause "warden_died", or "host_rebooted" if `rebooted`; `exits` are
    those that nobody has confirmed yet.
    """

    rebooted: bool = False
    lost: tuple[Orphan, ...] = ()
    exits: tuple[Orphan, ...] = ()
    highest: dict[int, int] = field(default_factory=dict)  # slot -> token


@dataclass(frozen=True, slots=True)
class AgentAttached:
    """A new connection said Attach; the shell has closed any older one."""

    attach: Attach


@dataclass(frozen=True, slots=True)
class AgentGone:
    pass


@dataclass(frozen=True, slots=True)
class Ordered:
    """Any order but Attach, from the attached agent."""

    order: Order


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkDone:
    """Answer to Fork: the process exists. `code` is the revision of what its runtime loaded."""

    token: int
    pid: int
    pid_start: int
    runtime: str = ""
    code: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkRefused:
    """Answer to Fork: there is no process."""

    token: int
    code: str
    reason: str
    retry: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessEnded:
    """The process is a zombie; `facts` (fields of ExitFacts) are complete. Not yet reaped."""

    token: int
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStuck:
    """The process, or one that it left behind, was sent KILL and is not gone after
    limits.unkillable_s. `state`: in what it is, in words."""

    token: int
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """Answer to Listen: how long ago the worker last gave a heartbeat, or was started."""

    token: int
    silent_s: float


@dataclass(frozen=True, slots=True)
class Armed:
    """Answer to Arm: the kernel has the deadline."""

    stamp: int
    deadline_s: float


@dataclass(frozen=True, slots=True)
class MemoryAsked:
    """A message of a worker's memory line: any map."""

    token: int
    message: dict[str, Any]


@dataclass(frozen=True, slots=True)
class MemoryFailed:
    """Answer to AnswerMemory: a segment that was to be given could not be made."""

    token: int
    number: int


@dataclass(frozen=True, slots=True)
class Terminating:
    """TERM to the warden: end every worker, then end."""


@dataclass(frozen=True, slots=True)
class Tick:
    """`WardenCore.deadline()` has come (or any other moment; it does no harm)."""


Event = (
    Recovered
    | AgentAttached
    | AgentGone
    | Ordered
    | ForkDone
    | ForkRefused
    | ProcessEnded
    | ProcessStuck
    | Heard
    | Armed
    | MemoryAsked
    | MemoryFailed
    | Terminating
    | Tick
)


# --- effects ---


@dataclass(frozen=True, slots=True)
class WriteJournal:
    """Appended before any later effect of the same list is carried out."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Fork:
    """Answered by ForkDone or ForkRefused, some time later, unless Recall comes before."""

    order: StartWorker


@dataclass(frozen=True, slots=True)
class Recall:
    """Take back a Fork that is not answered. It always succeeds: there is no process."""

    token: int


@dataclass(frozen=True, slots=True)
class Arm:
    """Have the kernel kill this process at that `boot_s`, whatever it does by then; 0: never.
    Answered by Armed: at once, or when the fuse, a process of its own, has answered."""

    deadline_s: float
    stamp: int = 0  # of the renewal that gave it; 0: of none


@dataclass(frozen=True, slots=True)
class Renew:
    """The next Fork of this runtime ("": of all) is to have newly loaded code."""

    name: str


@dataclass(frozen=True, slots=True)
class Kill:
    """Send a signal by pidfd. The process may be dead already: then nothing happens."""

    token: int
    signal: int
    handled: bool = False  # not to a process that leaves it at its deadly default


@dataclass(frozen=True, slots=True)
class PostmasterGone:
    """Say to the worker that its host's lease ends: its latch reports POSTMASTER_DEATH."""

    token: int


@dataclass(frozen=True, slots=True)
class Look:
    """It should be dead by now: answered by ProcessStuck if it is not."""

    token: int


@dataclass(frozen=True, slots=True)
class Listen:
    """It may have been silent for too long: answered by Heard."""

    token: int


@dataclass(frozen=True, slots=True)
class Reap:
    token: int


@dataclass(frozen=True, slots=True)
class Tell:
    """To the attached agent; `fds_of`: send that worker's channel and latch along."""

    report: Report
    fds_of: int | None = None


@dataclass(frozen=True, slots=True)
class End:
    """The warden's process ends; last of all."""

    status: int


Effect = (
    WriteJournal
    | Fork
    | Recall
    | Arm
    | Renew
    | Kill
    | PostmasterGone
    | Look
    | Listen
    | Reap
    | Tell
    | MakeSegment
    | DropSegment
    | AnswerMemory
    | End
)
