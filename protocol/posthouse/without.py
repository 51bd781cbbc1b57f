"""Imports without what they would load for nothing.

Owns: hiding a module while another is imported. Must not know: which. Invariant: afterwards
`sys.modules` is as it was, but for what the imports in the block have loaded.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["without"]


@contextmanager
def without(name: str) -> Iterator[None]:
    """In the block, importing `name` fails with ImportError, unless it is loaded already. For
    libraries that load a heavy optional one whenever they find it. In one thread.

    >>> with without("this"):
    ...     import this
    Traceback (most recent call last):
    ModuleNotFoundError: import of this halted; None in sys.modules
    """
    loaded = name in sys.modules
    if not loaded:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if not loaded:
            sys.modules.pop(name, None)
