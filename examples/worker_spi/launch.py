"""PostgreSQL's function worker_spi_launch: a dynamic worker, and the pid it has."""

from collections.abc import Sequence

from posthouse import NEVER_RESTART, BackgroundWorker, Cluster, WorkerState
from posthouse.errors import RefusedError, Unreachable, UsageError
from posthouse.worker import BYPASS_ALLOWCONN, BYPASS_ROLELOGINCHECK
from worker_spi import FLAGS, NAP_S

WORDS = {"ALLOWCONN": BYPASS_ALLOWCONN, "ROLELOGINCHECK": BYPASS_ROLELOGINCHECK}


def launch(
    cluster: Cluster,
    number: int,
    database: str = "postgres",
    role: str | None = None,
    flags: Sequence[str] = (),
    *,
    nap_s: float = NAP_S,
    timeout: float = 30.0,
) -> int:
    """Raises UsageError for bad flags; NoFreeSlot; RefusedError where it has stopped already;
    Unreachable where the master has died."""
    handle = cluster.register(
        BackgroundWorker(
            name=f"worker_spi dynamic worker {number}",
            type="worker_spi dynamic",
            main="worker_spi:main",
            main_arg={
                "number": number,
                "database": database,
                "role": role,
                "flags": bits(flags),
                "nap_s": nap_s,
            },
            flags=FLAGS,
            restart_time=NEVER_RESTART,
        )
    )
    status = handle.wait_for_startup(timeout=timeout)
    if status.state is WorkerState.POSTMASTER_DIED:
        raise Unreachable("cannot start background processes without postmaster")
    if status.pid is None:
        raise RefusedError(
            f"could not start background process: {status.reason}",
            hint="its output and its last exit say more: posthouse why",
        )
    return status.pid


def bits(words: Sequence[str]) -> int:
    """
    >>> bits(["ALLOWCONN", "ROLELOGINCHECK"])
    3
    """
    if isinstance(words, str) or not all(isinstance(word, str) for word in words):
        raise UsageError("flags must be a list of words, one-dimensional and without null values")
    found = 0
    for word in words:
        if word not in WORDS:
            raise UsageError(f"incorrect flag value {word!r}", hint=f"one of {', '.join(WORDS)}")
        found |= WORDS[word]
    return found
