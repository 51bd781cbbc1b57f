"""The enumerations and flags of the contract. A leaf: imports nothing of posthouse.

Invariant: values are wire and JSON spellings; they are never renamed within a protocol version.
"""

from enum import IntFlag, StrEnum
from typing import Final

__all__ = [
    "DATABASE_CONNECTION",
    "NEVER_RESTART",
    "SHMEM_ACCESS",
    "EventKind",
    "Every",
    "Flags",
    "Phase",
    "ShutdownMode",
    "StartTime",
    "StopReason",
    "WorkerState",
]

NEVER_RESTART: Final = -1
"""`restart_time` of a worker that is forgotten when it ends (the seed: BGW_NEVER_RESTART)."""


class Flags(IntFlag):
    """What a worker may do (the seed: bgw_flags)."""

    SHMEM_ACCESS = 0x1
    DATABASE_CONNECTION = 0x2


SHMEM_ACCESS: Final = Flags.SHMEM_ACCESS
DATABASE_CONNECTION: Final = Flags.DATABASE_CONNECTION


class StartTime(StrEnum):
    """The cluster phase from which a worker may be started (the seed: bgw_start_time)."""

    POSTMASTER_START = "postmaster_start"
    CONSISTENT_STATE = "consistent_state"
    RECOVERY_FINISHED = "recovery_finished"


class Phase(StrEnum):
    """Where the cluster is (G1-G4)."""

    STARTING = "starting"
    HOT_STANDBY = "hot_standby"
    RUNNING = "running"
    STOPPING = "stopping"


class WorkerState(StrEnum):
    """What a handle sees. POSTMASTER_DIED comes only from waits (H7)."""

    NOT_YET_STARTED = "not_yet_started"
    STARTED = "started"
    STOPPED = "stopped"
    POSTMASTER_DIED = "postmaster_died"


class StopReason(StrEnum):
    """On whose word an incarnation was stopped; it, never the exit code, judges the exit."""

    TERMINATE = "terminate"  # unregister
    HOLD = "hold"
    RESTART = "restart"
    APPLY = "apply"
    DRAIN = "drain"
    SHUTDOWN = "shutdown"
    LEASE_END = "lease_end"
    DOMAIN_RESET = "domain_reset"
    UNKNOWN = "unknown"  # the master does not know this incarnation


class Every(StrEnum):
    """`replicas` that are not counted."""

    HOST = "each-host"  # one on every host that fits


class ShutdownMode(StrEnum):
    SMART = "smart"
    FAST = "fast"
    IMMEDIATE = "immediate"


class EventKind(StrEnum):
    """Rows of the event log."""

    REGISTERED = "registered"
    REVISED = "revised"
    STARTING = "starting"  # an incarnation and token were drawn and committed; START may leave
    STARTED = "started"
    READY = "ready"
    STOP_REQUESTED = "stop_requested"
    RESTART_REQUESTED = "restart_requested"  # the delay of one without a process is cut short
    EXITED = "exited"  # terminal for the incarnation
    EXIT_AMENDED = "exit_amended"  # how one really ended whose host had been lost: no second end
    START_FAILED = "start_failed"  # terminal for an incarnation that never ran
    HELD = "held"
    RELEASED = "released"
    UNREGISTERED = "unregistered"  # the last event of a registration
    HOST_UP = "host_up"
    HOST_DOWN = "host_down"  # no longer heard; says nothing about its workers
    HOST_LOST = "host_lost"  # its lease is over: what ends with it may run elsewhere
    HOST_BRAKED = "host_braked"  # the same, of too many at once: nothing is moved yet
    HOST_FORGOTTEN = "host_forgotten"  # somebody says that it is dead
    HOST_DRAINING = "host_draining"  # it is given no more starts
    HOST_UNDRAINED = "host_undrained"
    SHUTDOWN = "shutdown"
    PHASE = "phase"  # the followed server is in another one
    TRIMMED = "trimmed"  # no row of the log: a reader is told of rows that are no longer kept
