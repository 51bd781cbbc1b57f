"""CORE: what goes into the master's core and what comes out of it.

Owns: the vocabulary between core and shell. Must not know: how an effect is carried out.
Invariant: effects are ordered, and the order is the contract: persist, then reply, then notify. A
shell may commit several batches together, but it sends nothing of a batch before its commit,
except a Send marked `urgent`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from posthouse.messages import Declared, StructRequest
from posthouse.states import Phase
from posthouse_master.store.base import Op

__all__ = [
    "BadEntry",
    "Configured",
    "Effect",
    "Halt",
    "Input",
    "Interrupted",
    "Malformed",
    "Note",
    "Peer",
    "PeerGone",
    "Persist",
    "PhaseChanged",
    "Received",
    "Reload",
    "Revoked",
    "Room",
    "Send",
    "Space",
    "StaticEntry",
    "StaticSource",
    "Tick",
]


@dataclass(frozen=True, slots=True)
class Peer:
    """Where frames come from and go to. `user` is whose `key` it is, "role:name", or None on a
    socket without keys; it is part of the identity, so nobody can speak in another's session."""

    endpoint: Literal["agents", "clients"]
    routing_id: bytes
    user: str | None = None
    key: str = ""


# --- inputs ---


@dataclass(frozen=True, slots=True)
class Received:
    """One frame came from a peer."""

    peer: Peer
    frame: bytes


@dataclass(frozen=True, slots=True)
class Malformed:
    """A peer sent what is not even one frame: more parts than one, or far too many bytes."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class PeerGone:
    """A frame to this peer could not be queued: its connection is gone, or it does not read."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; `MasterCore.wake_s` says when one is wanted."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The process is asked to end (SIGTERM, SIGINT): itself only, never the workers."""

    reason: str


@dataclass(frozen=True, slots=True)
class Reload:
    """HUP to the process: every host is to load the code of its runtimes anew."""


@dataclass(frozen=True, slots=True)
class Revoked:
    """All keys that have been taken from the principals since the master began, each with whose it
    was. Their connections outlive that; what is said over them must not count."""

    entries: frozenset[tuple[str, str]]


class Room(StrEnum):
    """How much room the registry's disk has."""

    AMPLE = "ample"
    LOW = "low"  # what is under way can be brought to its end: nothing new is begun
    NONE = "none"  # nothing can be kept, so nothing that would have to be is taken


@dataclass(frozen=True, slots=True)
class Space:
    """How the disk is now. Until the first one it is taken for AMPLE."""

    room: Room
    path: str = ""
    free_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PhaseChanged:
    """The server that the cluster's phase follows is in another one; `detail` says so in words."""

    phase: Phase
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticEntry:
    """One worker, or group, that is to be there as the master begins; `where` it says so."""

    worker: Declared
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BadEntry:
    """One that could not be read. `name` is what it calls itself, "" if that is not known."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticSource:
    """What the tables of the configuration, or one library, want. `failed`: why that is not known;
    what it wanted before then stays as it is."""

    source: str
    entries: tuple[StaticEntry, ...] = ()
    bad: tuple[BadEntry, ...] = ()
    failed: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configured:
    """The static registrations, once, before anybody is served. `libraries_named`: there are no
    other libraries than those of `sources`; else nobody has said which there are. `structs`: what
    the libraries request of the hosts' shared memory."""

    sources: tuple[StaticSource, ...]
    libraries_named: bool
    structs: tuple[StructRequest, ...] = ()


Input = (
    Received
    | Malformed
    | PeerGone
    | Tick
    | Interrupted
    | Reload
    | Revoked
    | Space
    | PhaseChanged
    | Configured
)


# --- effects ---


@dataclass(frozen=True, slots=True)
class Persist:
    """Make durable, in one transaction with all other ops of the batch."""

    op: Op


@dataclass(frozen=True, slots=True)
class Send:
    """Give a frame to a peer. `urgent`: it speaks for nothing that has to be durable first."""

    peer: Peer
    frame: bytes
    urgent: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the log: a name and fields, never main_arg, extra or environment."""

    name: str
    fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Halt:
    """The process ends with this status once everything before has been committed and sent."""

    status: int
    reason: str


Effect = Persist | Send | Note | Halt
