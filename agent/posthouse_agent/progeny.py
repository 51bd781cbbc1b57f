"""What a worker starts begins with no signal blocked, although the worker itself has them blocked.

Owns: the hooks on the ways in which Python starts processes. Must not know: workers. Invariant: a
thread whose mask is open starts processes exactly as without this module. Not covered: C's own
system() and fork().

The warden puts the hooks in, once, and they do nothing there; a worker switches them on. Putting
them in costs a worker a hundred pages.
"""

import _posixsubprocess
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

__all__ = ["install", "switch_on"]

# fork_exec(..., umask, preexec_fn, allow_vfork), by position, since 3.9
_PREEXEC: Final = 21


class _Hooks:
    on = False


def install() -> None:
    """In the process that forks workers. Once."""
    os.register_at_fork(after_in_child=_open)
    fork_exec = _opening_fork_exec(_posixsubprocess.fork_exec)
    _posixsubprocess.fork_exec = fork_exec
    if (loaded := sys.modules.get("subprocess")) is not None:
        loaded._fork_exec = fork_exec  # type: ignore[attr-defined]  # noqa: SLF001
    os.posix_spawn = _opening_spawn(os.posix_spawn)
    os.posix_spawnp = _opening_spawn(os.posix_spawnp)


def switch_on() -> None:
    """In a worker, for the rest of its life."""
    _Hooks.on = True


def _open() -> None:
    if _Hooks.on:  # not in a worker that is just being forked
        signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _blocked() -> bool:
    return bool(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def _opening_fork_exec(fork_exec: Callable[..., int]) -> Callable[..., int]:
    """subprocess and multiprocessing. A preexec_fn makes it use fork in place of vfork and run the
    hooks of register_at_fork, ours among them; opening the mask in the parent instead would let
    its own pending signals in."""

    @wraps(fork_exec)
    def open_and_exec(*args: Any) -> int:
        if _Hooks.on and len(args) > _PREEXEC and args[_PREEXEC] is None and _blocked():
            args = (*args[:_PREEXEC], _nothing, *args[_PREEXEC + 1 :])
        return fork_exec(*args)

    return open_and_exec


def _opening_spawn(spawn: Callable[..., int]) -> Callable[..., int]:
    @wraps(spawn)
    def open_and_spawn(*args: Any, **options: Any) -> int:
        if _Hooks.on:
            options.setdefault("setsigmask", ())
        return spawn(*args, **options)

    return open_and_spawn


def _nothing() -> None:
    pass
