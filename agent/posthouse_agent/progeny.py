"""What a worker starts begins with no signal blocked, although the worker itself has them blocked.

Owns: the hooks on the ways in which Python starts processes. Must not know: workers. Invariant: a
thread whose mask is open starts processes exactly as without this module. Not covered: C's own
system() and fork().
"""

import _posixsubprocess
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

__all__ = ["install"]

# fork_exec(..., umask, preexec_fn, allow_vfork), by position, since 3.9
_PREEXEC: Final = 21


def install() -> None:
    """For the rest of this process. Once."""
    os.register_at_fork(after_in_child=_open)
    fork_exec = _opening_fork_exec(_posixsubprocess.fork_exec)
    _posixsubprocess.fork_exec = fork_exec
    if (loaded := sys.modules.get("subprocess")) is not None:
        loaded._fork_exec = fork_exec  # type: ignore[attr-defined]  # noqa: SLF001
    os.posix_spawn = _opening_spawn(os.posix_spawn)
    os.posix_spawnp = _opening_spawn(os.posix_spawnp)


def _open() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _blocked() -> bool:
    return bool(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def _opening_fork_exec(fork_exec: Callable[..., int]) -> Callable[..., int]:
    """subprocess and multiprocessing. A preexec_fn makes it use fork in place of vfork and run the
    hooks of register_at_fork, ours among them; opening the mask in the parent instead would let
    its own pending signals in."""

    @wraps(fork_exec)
    def open_and_exec(*args: Any) -> int:
        if len(args) > _PREEXEC and args[_PREEXEC] is None and _blocked():
            args = (*args[:_PREEXEC], _nothing, *args[_PREEXEC + 1 :])
        return fork_exec(*args)

    return open_and_exec


def _opening_spawn(spawn: Callable[..., int]) -> Callable[..., int]:
    @wraps(spawn)
    def open_and_spawn(*args: Any, **options: Any) -> int:
        options.setdefault("setsigmask", ())
        return spawn(*args, **options)

    return open_and_spawn


def _nothing() -> None:
    pass
