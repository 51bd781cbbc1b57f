"""Shared memory of the workers of one host: `from posthouse import shmem`, inside a worker.

Owns: the public names. Must not know: wardens, restarts. Invariant: only a worker registered with
SHMEM_ACCESS has any of it; what is read from it was written by others and is never believed.

    segment, found = shmem.init_struct("counters", 4096)     # every worker of the crash domain
    with shmem.LWLock(segment, 0):
        segment[8:16] = ...                                  # or memoryview(segment), numpy

    segment = shmem.create(1 << 20)                          # DSM: its handle is a plain number,
    worker.register(BackgroundWorker(..., main_arg=segment.handle))      # for a main_arg
    segment = shmem.attach(main_arg)                         # None if it is gone
"""

from posthouse.shmem.locks import LWLock
from posthouse.shmem.mq import Queue
from posthouse.shmem.segments import (
    Region,
    Segment,
    attach,
    create,
    epoch,
    find,
    init_struct,
    named,
    unpin,
)
from posthouse.shmem.toc import Toc
from posthouse.shmem.wrong import Abandoned, Corrupt, Detached, NoMemory, SizeMismatch, TooMany

__all__ = [
    "Abandoned",
    "Corrupt",
    "Detached",
    "LWLock",
    "NoMemory",
    "Queue",
    "Region",
    "Segment",
    "SizeMismatch",
    "Toc",
    "TooMany",
    "attach",
    "create",
    "epoch",
    "find",
    "init_struct",
    "named",
    "unpin",
]
