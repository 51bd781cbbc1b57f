"""The hooks of register_at_fork that a zygote's forks can do without.

Owns: taking them off in a zygote, and putting them back in a worker. Must not know: what a zygote
forks for. Invariant: a process with one thread, which holds no lock, is the same after a fork
without these hooks as with them; a worker has all of them, in their order, before its main can
fork.

`threading` and `logging` make their locks anew in each child, because threads that are not there
may have held them. A zygote has one thread and holds none. In each process it would touch, and so
unshare, a hundred pages for nothing.
"""

import gc
import os
import sys
from collections.abc import Callable
from typing import Any, Final

__all__ = ["put_back", "take_off"]

_Hook = Callable[[], object]
_KINDS: Final = ("before", "after_in_parent", "after_in_child")

_taken: list[tuple[list[_Hook], int, _Hook]] = []


def take_off(*modules: str) -> None:
    """Those of these modules, in a zygote, once. Without effect in an interpreter that keeps its
    hooks elsewhere than in lists that its garbage collector knows."""
    for kind in _KINDS:
        listed = _listed(kind)
        found = [at for at, hook in enumerate(listed) if _module(hook) in modules]
        _taken.extend((listed, at, listed.pop(at)) for at in reversed(found))


def put_back() -> None:
    """In a worker, once."""
    while _taken:
        listed, at, hook = _taken.pop()
        listed.insert(at, hook)


def _module(hook: _Hook) -> str | None:
    """Where it is from. A method of a lock, which logging has for hooks, is from nowhere."""
    logging = sys.modules.get("logging")
    lock = getattr(logging, "_lock", None)
    if lock is not None and getattr(hook, "__self__", None) is lock:
        return "logging"
    return getattr(hook, "__module__", None)


def _listed(kind: str) -> list[Any]:
    """The interpreter's own list of such hooks, which has no name in Python: the one that has a
    hook that was put there just now."""

    def probe() -> None:
        pass

    os.register_at_fork(**{kind: probe})
    for found in gc.get_referrers(probe):
        if isinstance(found, list) and found and found[-1] is probe:
            del found[-1]
            return found
    return []
