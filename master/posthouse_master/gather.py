"""Settings and what the libraries have answered -> the static registrations that are wanted.

Owns: their order. Must not know: processes (preload), what becomes of them (static).
Invariant: what could not be read is handed on as such; nothing is left out in silence.
"""

from collections.abc import Iterable

from posthouse.messages import Declared
from posthouse.settings import MasterSettings
from posthouse.states import Every
from posthouse.worker_tables import BadWorker, DeclaredWorker
from posthouse_master.effects import BadEntry, Configured, StaticEntry, StaticSource
from posthouse_master.preload import Library
from posthouse_master.static import CONFIG, LIBRARY
from posthouse_master.structs import Structs

__all__ = ["gather"]


def gather(settings: MasterSettings, libraries: Iterable[Library]) -> Configured:
    """What the configuration wants: its own tables first, then the libraries in their order."""
    sources = [] if settings.workers is None else [_tables(settings.workers)]
    structs = Structs()
    for library in libraries:
        where = f"library {library.name}"
        failed = library.failed or structs.take(library)
        sources.append(
            StaticSource(
                source=LIBRARY + library.name,
                entries=tuple(StaticEntry(worker=made, where=where) for made in library.workers),
                failed=failed,
            )
        )
    named = settings.preload_libraries is not None
    return Configured(
        sources=tuple(sources), libraries_named=named, structs=tuple(structs.requested.values())
    )


def _tables(workers: Iterable[DeclaredWorker | BadWorker]) -> StaticSource:
    entries: list[StaticEntry] = []
    bad: list[BadEntry] = []
    for worker in workers:
        if isinstance(worker, BadWorker):
            bad.append(BadEntry(name=worker.name, reason=str(worker.error)))
            continue
        replicas = Every(worker.replicas) if isinstance(worker.replicas, str) else worker.replicas
        declared = Declared(spec=worker.worker.to_wire(), replicas=replicas)
        entries.append(StaticEntry(worker=declared, where=worker.where))
    return StaticSource(source=CONFIG, entries=tuple(entries), bad=tuple(bad))
