"""With what a worker is started: the agent's order, and what the warden adds to it.

Owns: the two records. Must not know: how they travel. Invariant: standard library only, no I/O:
agent, warden and, in an application's own environment, the worker itself use them.
"""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Inheritance", "StartWorker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartWorker:
    """Fork. Refused (ForkFailed, code "stale_token") if the token is not higher than every token
    this warden has seen for the slot, started or stopped. `runtime` is the name of the host's
    runtime; the rest of it is what its zygote is made from."""

    token: int
    registry: str
    slot: int
    generation: int
    incarnation: int
    revision: int
    host: str
    spec: dict[str, Any]
    runtime: str = "default"
    python: str = ""  # "": the warden's own interpreter
    path: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    preload: list[str] = field(default_factory=list)
    # name, size, library of the structures that its crash domain has before the worker is there
    structs: list[dict[str, Any]] = field(default_factory=list)
    # Who declared it, and with whom: only to be told again, after the master's registry was lost.
    source: str = ""
    group: str = ""
    # Name -> URL; "" -> the name of the maintenance database. Only of a worker with
    # DATABASE_CONNECTION: the URLs may hold passwords.
    databases: dict[str, str] = field(default_factory=dict, repr=False)
    # Tokens of the incarnations that the host may start after it by itself; of a kept worker.
    reserved: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inheritance:
    """What the warden hands to a worker: descriptors, and what it must check or restore."""

    warden_pid: int
    cookie: str
    nofile_soft: int  # the limit before the warden raised its own
    log_fd: int
    channel_fd: int
    latch_fd: int
    last_words_fd: int
    host_lock_fd: int
    user: str | None = None  # whom it becomes; None: it stays who the warden is
    cgroup: str = ""  # the folder of the one it joins, if any
    memory_fd: int = -1  # its end of the memory line, with SHMEM_ACCESS only
    oom_score: int | None = None  # in place of the warden's own; None: it has that one anyway
