"""What `posthouse_init(registry)` of a library in `preload_libraries` is given.

Owns: when static registration is possible, and the records that were made meanwhile. Must not know:
processes, pipes, the master. Invariant: a record is taken only while the library's posthouse_init
runs, in the process in which it was called; at any other time and place it is refused (S1).

    def posthouse_init(registry: posthouse.StaticRegistry) -> None:
        registry.request_struct("ingest counters", 4096)
        registry.register(BackgroundWorker(name="ingest", main="acme.ingest:main"))
"""

import os
from collections.abc import Callable
from typing import Any

from posthouse import limits
from posthouse.errors import NotPermitted, RefusedError
from posthouse.rules import refusal
from posthouse.spec import BackgroundWorker

__all__ = ["StaticRegistry"]


class StaticRegistry:
    """The master's registry, as far as a library sees it while it is being preloaded."""

    def __init__(self) -> None:
        self._open_in = 0  # the process in which posthouse_init runs
        self._wires: list[dict[str, Any]] = []
        self._structs: dict[tuple[str, str], int] = {}

    def __repr__(self) -> str:
        return f"StaticRegistry({len(self._wires)} workers)"

    def register(self, worker: BackgroundWorker) -> None:
        """Register a worker that is to be there whenever the master runs
        [RegisterBackgroundWorker]. The master has it once posthouse_init has returned;
        `cluster.handle(name)` is its handle, as of any other.

        Raises NotPermitted outside posthouse_init, InvalidField, RefusedError.
        """
        self._need_open("static registration", "posthouse.connect().register() registers a worker")
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

    def request_struct(self, name: str, size: int, crash_domain: str = "default") -> None:
        """Have a structure of `size` bytes in shared memory [RequestAddinShmemSpace]: it is there,
        of zeros, on each host before the first worker of the crash domain, and again after each
        reset. Whoever first asks for it by `shmem.init_struct(name, size)` fills it in (found is
        False).

        Raises NotPermitted outside posthouse_init, InvalidField, RefusedError if the library has
        requested that name already.
        """
        self._need_open("such a request", "shmem.init_struct() makes a structure")
        _check_struct(name, size, crash_domain)
        if (crash_domain, name) in self._structs:
            raise RefusedError(
                f"structure {name!r} of crash domain {crash_domain!r} has been requested already"
            )
        if len(self._structs) >= limits.page_items_max:
            raise RefusedError(f"a library requests at most {limits.page_items_max} structures")
        self._structs[crash_domain, name] = size

    @property
    def structs(self) -> list[tuple[str, int, str]]:
        """For the master's loader: name, size, crash domain of what was requested."""
        return [(name, size, domain) for (domain, name), size in self._structs.items()]

    def _need_open(self, what: str, otherwise: str) -> None:
        if self._open_in != os.getpid():
            raise NotPermitted(
                f"{what} is possible only in posthouse_init(registry), which the "
                "master calls as it begins, for each of its preload_libraries",
                hint=f"{otherwise} at any other time",
            )

    def collect(self, init: "Callable[[StaticRegistry], object]") -> list[dict[str, Any]]:
        """For the master's loader: call a library's posthouse_init. The wire forms of the workers
        that it has registered, in order. Raises what it raises."""
        self._open_in = os.getpid()
        try:
            init(self)
        finally:
            self._open_in = 0
        return self._wires


def _check_struct(name: str, size: int, crash_domain: str) -> None:
    """Raises InvalidField."""
    for field, value, bytes_max in (
        ("name", name, limits.segment_name_bytes_max),
        ("crash_domain", crash_domain, limits.label_bytes_max),
    ):
        shown = isinstance(value, str) and value.isprintable()
        if not shown or not 0 < len(value.encode(errors="replace")) <= bytes_max:
            raise refusal(field, value, f"a printable text of 1 to {bytes_max} bytes")
    if type(size) is not int or not 0 < size <= limits.segment_bytes_max:
        raise refusal("size", size, f"an integer from 1 to {limits.segment_bytes_max}, in bytes")
