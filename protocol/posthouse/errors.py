"""The error tree: whose fault it was, a stable code, a hint, and the command line's exit status.

Owns: every error that crosses posthouse's public boundary. Must not know: transport, processes.
Invariant: a code is never reused for another meaning; `from_wire` gives back the class it names.

>>> error = NoSuchWorker("no worker is named 'ingset'", hint="did you mean 'ingest'?")
>>> error.code, error.exit_status
('no_such_worker', 3)
"""

from collections.abc import Mapping
from typing import Any, ClassVar

__all__ = [
    "AlreadyRegistered",
    "BadFrame",
    "CommitUnknown",
    "ConfigError",
    "CursorTooOld",
    "DatabaseError",
    "DatabaseLost",
    "FencedOff",
    "InternalError",
    "InvalidField",
    "NoFreeSlot",
    "NoSuchWorker",
    "NotPermitted",
    "NotRunning",
    "PosthouseError",
    "RefusedError",
    "RemoteError",
    "RequestConflict",
    "ResourceExhausted",
    "ShuttingDown",
    "StoreError",
    "TimedOut",
    "UnknownHost",
    "Unreachable",
    "UploadLost",
    "UsageError",
    "from_wire",
]


class PosthouseError(Exception):
    """Base of all. `detail` holds what a program may want: limit, value, handle, holders."""

    code: ClassVar[str] = "internal"
    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", **detail: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail: dict[str, Any] = detail

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(PosthouseError):
    """The caller asked for something that has no meaning."""

    code = "usage"
    exit_status = 2


class InvalidField(UsageError):
    """A field of a record is out of its rule. `detail`: field, value (as text), rule."""

    code = "invalid_field"
    exit_status = 1


class ConfigError(UsageError):
    """A configuration file is wrong; the message begins with file:line."""

    code = "config"


class RefusedError(PosthouseError):
    """Understood, and refused by a rule of the cluster."""

    code = "refused"


class AlreadyRegistered(RefusedError):
    """A live registration has this name. `detail["handle"]` is its identity."""

    code = "already_registered"


class NoFreeSlot(RefusedError):
    """max_worker_processes is reached. `detail`: limit, value, holders."""

    code = "no_free_slot"


class UnknownHost(RefusedError):
    """No host of that name has ever joined. `detail["hosts"]` lists those that have."""

    code = "unknown_host"


class NotPermitted(RefusedError):
    """The principal's role does not allow it."""

    code = "not_permitted"


class ShuttingDown(RefusedError):
    """The cluster is in a shutdown and takes no new work."""

    code = "shutting_down"


class ResourceExhausted(RefusedError):
    """The master's disk has no room for anything new; nothing that it acknowledged is lost. Asking
    again when there is room is a first request. `detail`: path, free_bytes."""

    code = "resource_exhausted"


class RequestConflict(RefusedError):
    """A request id came again with another body."""

    code = "request_conflict"


class UploadLost(RefusedError):
    """Parts of a declaration are gone, with the session that they came in. Nothing has happened;
    the client sends all of it again."""

    code = "upload_lost"


class CursorTooOld(RefusedError):
    """Events after the asked cursor are gone. `detail["cursor"]`: where following may begin again,
    None if only from now on; a snapshot tells the state there."""

    code = "cursor_too_old"


class NoSuchWorker(RefusedError):
    """No registration by that name or handle."""

    code = "no_such_worker"
    exit_status = 3


class NotRunning(RefusedError):
    """The worker has no process now."""

    code = "not_running"
    exit_status = 3


class RemoteError(PosthouseError):
    """The other side broke the protocol or speaks another version."""

    code = "protocol"


class BadFrame(RemoteError):
    """Bytes that are no message of the catalogue. Costs the sender its session."""

    code = "bad_frame"


class Unreachable(PosthouseError):
    """No master answered."""

    code = "unreachable"
    exit_status = 4


class TimedOut(PosthouseError):
    """The wait ended first. The outcome is unknown; asking again settles it."""

    code = "timed_out"
    exit_status = 5


class DatabaseError(PosthouseError):
    """The database of a worker refused a connection or a statement. `detail["sqlstate"]`: its own
    code (with SQLite the name of its error, as "SQLITE_BUSY"); the driver's error is the cause."""

    code = "database"


class DatabaseLost(DatabaseError):
    """The connection to the database is over, and so is its use: a worker has but one. What was
    not committed is undone; let the worker end, and its restart makes a new one."""

    code = "database_lost"


class CommitUnknown(DatabaseLost):
    """The connection was lost after COMMIT was sent and before its answer: the transaction is
    either committed or not. Look for its effect in the database before you do it again."""

    code = "commit_unknown"


class FencedOff(DatabaseError):
    """A later start has been in the database already: this worker is out of date."""

    code = "fenced_off"


class StoreError(PosthouseError):
    """The registry cannot be read or written."""

    code = "store"


class InternalError(PosthouseError):
    """A defect of posthouse."""

    code = "internal"


def _tree(cls: type[PosthouseError]) -> dict[str, type[PosthouseError]]:
    found = {cls.code: cls} if "code" in vars(cls) else {}
    for child in cls.__subclasses__():
        found.update(_tree(child))
    return found


def from_wire(
    code: str, message: str, hint: str = "", detail: Mapping[str, Any] | None = None
) -> PosthouseError:
    """The error that a FAILED message stands for. An unknown code (of a newer master) becomes
    RefusedError, with the code in `detail["code"]`."""
    cls = _tree(PosthouseError).get(code)
    error = (cls or RefusedError)(message, hint=hint)
    error.detail.update(detail or {})  # not as keywords: a peer may call a key "hint"
    if cls is None:
        error.detail.setdefault("code", code)
    return error
