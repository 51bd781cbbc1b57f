"""What can go wrong with shared memory.

Owns: the errors. Must not know: who raises them. Invariant: as in posthouse.errors, a code is never
used again for another meaning.
"""

from posthouse.errors import RefusedError, RemoteError

__all__ = ["Abandoned", "Corrupt", "Detached", "NoMemory", "SizeMismatch", "TooMany"]


class NoMemory(RefusedError):
    """The host has not so much memory. Nothing was made."""

    code = "no_memory"


class TooMany(RefusedError):
    """The crash domain has all the segments, or bytes, that it may have."""

    code = "too_many_segments"


class SizeMismatch(RefusedError):
    """A segment of that name exists with another size."""

    code = "size_mismatch"


class SeatTaken(RefusedError):
    """The queue has its sender, or its receiver, already."""

    code = "seat_taken"


class Corrupt(RemoteError):
    """What stands in shared memory is not what should stand there: magic, version or a bound."""

    code = "corrupt_memory"


class Detached(RefusedError):
    """The other end of the queue is gone, and what it sent whole has been received."""

    code = "detached"


class Abandoned(RefusedError):
    """Whoever held the lock has died with it: its memory is not to be trusted, and this worker is
    about to be ended with its crash domain."""

    code = "abandoned"
