"""What `posthouse_init(registry)` of a library in `preload_libraries` is given.

Owns: when static registration is possible, and the records that were made meanwhile. Must not know:
processes, pipes, the master. Invariant: a record is taken only while the library's posthouse_init
runs, in the process in which it was called; at any other time and place it is refused (S1).

    def posthouse_init(registry: posthouse.StaticRegistry) -> None:
        registry.register(BackgroundWorker(name="ingest", main="acme.ingest:main"))
"""

import os
from collections.abc import Callable
from typing import Any

from posthouse import limits
from posthouse.errors import NotPermitted, RefusedError
from posthouse.spec import BackgroundWorker

__all__ = ["StaticRegistry"]


class StaticRegistry:
    """The master's registry, as far as a library sees it while it is being preloaded."""

    def __init__(self) -> None:
        self._open_in = 0  # the process in which posthouse_init runs
        self._wires: list[dict[str, Any]] = []

    def __repr__(self) -> str:
        return f"StaticRegistry({len(self._wires)} workers)"

    def register(self, worker: BackgroundWorker) -> None:
        """Register a worker that is to be there whenever the master runs
        [RegisterBackgroundWorker]. The master has it once posthouse_init has returned;
        `cluster.handle(name)` is its handle, as of any other.

        Raises NotPermitted outside posthouse_init, InvalidField, RefusedError.
        """
        if self._open_in != os.getpid():
            raise NotPermitted(
                "static registration is possible only in posthouse_init(registry), which the "
                "master calls as it begins, for each of its preload_libraries",
                hint="posthouse.connect().register() registers a worker at any other time",
            )
        if len(self._wires) >= limits.declaration_workers_max:
            raise RefusedError(
                f"a library registers at most {limits.declaration_workers_max} workers",
                hint="is this a loop without an end? else make two libraries of it",
            )
        if not isinstance(worker, BackgroundWorker):
            raise RefusedError(
                f"a {type(worker).__name__} was given", hint="give a posthouse.BackgroundWorker"
            )
        self._wires.append(worker.check(static=True).to_wire())

    def collect(self, init: "Callable[[StaticRegistry], object]") -> list[dict[str, Any]]:
        """For the master's loader: call a library's posthouse_init. The wire forms of the workers
        that it has registered, in order. Raises what it raises."""
        self._open_in = os.getpid()
        try:
            init(self)
        finally:
            self._open_in = 0
        return self._wires
