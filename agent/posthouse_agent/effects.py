"""What the agent core is told, and what it asks for: the whole vocabulary between core and shell.

Owns: inputs and effects of AgentCore. Must not know: how a shell carries them out.
Invariant: effects are carried out in the order of the list. Where one says to the warden what
another takes from a worker's channel (Give, then Consume), an agent that dies in between does the
first one again and nothing is lost.
"""

from dataclasses import dataclass
from typing import Any

from posthouse.dial import Redial, Transmit
from posthouse.messages import Running
from posthouse.records import HostUse, WorkerUse
from posthouse_agent.orders import Order, Report

__all__ = [
    "AnswerWorker",
    "ConnectionBroken",
    "Consume",
    "DropWarden",
    "Effect",
    "Frame",
    "Give",
    "HostFacts",
    "Input",
    "Leave",
    "LogRead",
    "MeasureUse",
    "NeedWarden",
    "Note",
    "NotifyProcess",
    "ReadLogFile",
    "Redial",
    "Reload",
    "Reported",
    "SetLatch",
    "StacksTaken",
    "TakeStacks",
    "Tick",
    "Transmit",
    "UseMeasured",
    "WardenGone",
    "WardenUp",
    "WorkerSaid",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What does not change while an agent lives. `instance`: 32 hex digits, new with every agent
    process; `user`: whom its workers run as by default."""

    boot_id: str
    machine_id: str
    instance: str
    user: str = ""
    version: str = ""
    notify_key: bytes = b""  # new with every agent process, too, and told to the master alone


# --- inputs ---


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame came from the master, on the socket of the last Redial."""

    frame: bytes


@dataclass(frozen=True, slots=True)
class ConnectionBroken:
    """The transport says that the connection to the master is gone for good; or, `retried`, that
    there is none yet, and that it tries again by itself."""

    reason: str
    retried: bool = False


@dataclass(frozen=True, slots=True)
class WardenUp:
    """NeedWarden succeeded: a connection to that warden is open and nothing was said on it yet."""

    kind: str


@dataclass(frozen=True, slots=True)
class WardenGone:
    """The connection to that warden is lost, or NeedWarden failed. Orders that were given and not
    answered are void: the warden has read them, and its next snapshot shows what came of them, or
    it never will. The shell has closed the descriptors of that warden's workers."""

    kind: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Reported:
    """The warden said something. Descriptors that came with it stay with the shell, by token."""

    kind: str
    report: Report


@dataclass(frozen=True, slots=True)
class WorkerSaid:
    """The oldest message in a worker's channel, seen but not yet taken out of it. Given again
    until it is answered by Consume."""

    token: int
    message: dict[str, Any]


@dataclass(frozen=True, slots=True)
class LogRead:
    """What became of a ReadLogFile; fields as in LOG_CHUNK. `read` is ReadLogFile's."""

    read: int
    offset: int = 0
    data: bytes = b""
    size: int = 0
    lost: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class StacksTaken:
    """What became of a TakeStacks."""

    read: int
    text: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class UseMeasured:
    """What became of a MeasureUse."""

    read: int
    host: HostUse
    workers: tuple[WorkerUse, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; due at AgentCore.wake_s, harmless at any time."""


@dataclass(frozen=True, slots=True)
class Reload:
    """HUP to the agent: what is started from now on has newly loaded code."""


@dataclass(frozen=True, slots=True)
class Leave:
    """This agent ends on purpose. Its workers go on."""

    reason: str


Input = (
    Frame
    | ConnectionBroken
    | WardenUp
    | WardenGone
    | Reported
    | WorkerSaid
    | LogRead
    | StacksTaken
    | UseMeasured
    | Tick
    | Reload
    | Leave
)


# --- effects (and dial.Redial, dial.Transmit) ---


@dataclass(frozen=True, slots=True)
class NeedWarden:
    """Connect to the warden of this kind, starting it if there is none. Answered, at any time
    later, by WardenUp or WardenGone."""

    kind: str


@dataclass(frozen=True, slots=True)
class DropWarden:
    """Close the connection to this warden: it cannot be talked to. Answered by WardenGone."""

    kind: str


@dataclass(frozen=True, slots=True)
class Give:
    """Send this order to the warden."""

    kind: str
    order: Order


@dataclass(frozen=True, slots=True)
class SetLatch:
    """Write to the latch of this worker."""

    token: int


@dataclass(frozen=True, slots=True)
class NotifyProcess:
    """SIGUSR1 to a process that is no worker, if it is still this one and is not ended by it."""

    pid: int
    pid_start: int


@dataclass(frozen=True, slots=True)
class ReadLogFile:
    """Read a page of an output file, not on the thread that renews. Answered by LogRead."""

    read: int
    slot: int
    generation: int
    offset: int
    limit: int


@dataclass(frozen=True, slots=True)
class TakeStacks:
    """Have this worker's process write its stacks; it may take its time. Answered by
    StacksTaken."""

    read: int
    pid: int
    pid_start: int


@dataclass(frozen=True, slots=True)
class MeasureUse:
    """Look what the host and these workers use. Answered by UseMeasured."""

    read: int
    workers: tuple[Running, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class AnswerWorker:
    """Put this message into the worker's channel."""

    token: int
    message: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Consume:
    """Take the oldest message out of the worker's channel: it has been acted on."""

    token: int


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the log: a name and its fields."""

    name: str
    fields: dict[str, Any]


Effect = (
    Redial
    | Transmit
    | NeedWarden
    | DropWarden
    | Give
    | SetLatch
    | NotifyProcess
    | ReadLogFile
    | TakeStacks
    | MeasureUse
    | AnswerWorker
    | Consume
    | Note
)
