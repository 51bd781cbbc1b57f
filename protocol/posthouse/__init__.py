"""posthouse: PostgreSQL's background workers, without the database and across machines.

Owns: the public names. Must not know: anything, until a name is used. Invariant: importing this
package loads no third party and starts no thread.

>>> import posthouse
>>> posthouse.BackgroundWorker(name="ingest", main="acme.ingest:main").restart_time
5.0
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from posthouse import aio, shmem, worker
    from posthouse.bulk import Plan, PlannedChange, WorkerGroup
    from posthouse.client import Cluster, connect
    from posthouse.errors import (
        AlreadyRegistered,
        BadFrame,
        CommitUnknown,
        ConfigError,
        CursorTooOld,
        DatabaseError,
        DatabaseLost,
        FencedOff,
        InternalError,
        InvalidField,
        NoFreeSlot,
        NoSuchWorker,
        NotPermitted,
        NotRunning,
        PosthouseError,
        RefusedError,
        RemoteError,
        RequestConflict,
        ResourceExhausted,
        ShuttingDown,
        StoreError,
        TimedOut,
        UnknownHost,
        Unreachable,
        UploadLost,
        UsageError,
    )
    from posthouse.handle import EventStream, Explanation, Group, Handle, Output
    from posthouse.ids import Cursor, HandleId
    from posthouse.messages import HostVerdict
    from posthouse.preload import StaticRegistry
    from posthouse.records import (
        ClusterPhase,
        Event,
        ExitFacts,
        HostInfo,
        HostUsage,
        Status,
        UnclaimedWorker,
        WorkerInfo,
    )
    from posthouse.settings import ClientSettings
    from posthouse.spec import BackgroundWorker
    from posthouse.states import (
        DATABASE_CONNECTION,
        NEVER_RESTART,
        SHMEM_ACCESS,
        EventKind,
        Flags,
        Phase,
        ShutdownMode,
        StartTime,
        StopReason,
        WorkerState,
    )

__version__: Final = "0.1.0.dev0"

__all__ = [
    "DATABASE_CONNECTION",
    "NEVER_RESTART",
    "SHMEM_ACCESS",
    "AlreadyRegistered",
    "BackgroundWorker",
    "BadFrame",
    "ClientSettings",
    "Cluster",
    "ClusterPhase",
    "CommitUnknown",
    "ConfigError",
    "Cursor",
    "CursorTooOld",
    "DatabaseError",
    "DatabaseLost",
    "Event",
    "EventKind",
    "EventStream",
    "ExitFacts",
    "Explanation",
    "FencedOff",
    "Flags",
    "Group",
    "Handle",
    "HandleId",
    "HostInfo",
    "HostUsage",
    "HostVerdict",
    "InternalError",
    "InvalidField",
    "NoFreeSlot",
    "NoSuchWorker",
    "NotPermitted",
    "NotRunning",
    "Output",
    "Phase",
    "Plan",
    "PlannedChange",
    "PosthouseError",
    "RefusedError",
    "RemoteError",
    "RequestConflict",
    "ResourceExhausted",
    "ShutdownMode",
    "ShuttingDown",
    "StartTime",
    "StaticRegistry",
    "Status",
    "StopReason",
    "StoreError",
    "TimedOut",
    "UnclaimedWorker",
    "UnknownHost",
    "Unreachable",
    "UploadLost",
    "UsageError",
    "WorkerGroup",
    "WorkerInfo",
    "WorkerState",
    "__version__",
    "aio",
    "connect",
    "shmem",
    "worker",
]

_NAMES: Final = {
    "bulk": "Plan PlannedChange WorkerGroup",
    "client": "Cluster connect",
    "handle": "EventStream Explanation Group Handle Output",
    "ids": "Cursor HandleId",
    "messages": "HostVerdict",
    "records": "ClusterPhase Event ExitFacts HostInfo HostUsage Status UnclaimedWorker WorkerInfo",
    "preload": "StaticRegistry",
    "settings": "ClientSettings",
    "spec": "BackgroundWorker",
    "states": "DATABASE_CONNECTION NEVER_RESTART SHMEM_ACCESS EventKind Flags Phase ShutdownMode "
    "StartTime StopReason WorkerState",
}
_MODULE_OF: Final = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Called at the first use of each name; loads its module."""
    if name not in __all__:
        raise AttributeError(f"module 'posthouse' has no attribute {name!r}")
    if name in ("aio", "shmem", "worker"):
        return import_module(f"posthouse.{name}")
    value = getattr(import_module(f"posthouse.{_MODULE_OF.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
