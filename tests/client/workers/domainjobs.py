"""Members of a crash domain, for tests/client/test_domains_real.py."""

import sys
from typing import Any

from posthouse import shmem, worker


def member(arg: Any) -> None:
    """Maps memory; ends with the code that is asked for, the first time."""
    segment, found = shmem.init_struct("members", 4096)
    worker.unblock_signals()
    print(f"epoch {segment.epoch} found {found} before {segment[8]}", flush=True)
    segment[8] = 1
    worker.ready()
    while True:
        worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH, timeout=60)
        if worker.latch.is_set():
            sys.exit(arg)
