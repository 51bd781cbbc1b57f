"""What the members of the measured domain do: share a structure, and wait.

As little is imported as that takes: twenty of them do it at once.
"""

from posthouse import worker


def member(_: object) -> None:
    """Maps its memory, says that it is ready, waits for a latch that nobody sets."""
    from posthouse import shmem  # of the package, not the script beside this file

    shmem.init_struct("bench", 4096)
    worker.unblock_signals()
    worker.ready()
    while True:
        worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH)
        worker.latch.reset()
