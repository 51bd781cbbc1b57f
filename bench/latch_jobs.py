"""What the measured workers do: say when they were woken.

As little is imported as that takes.
"""

import os
import struct
import time

from posthouse import worker


def woken(arg: dict[str, object]) -> None:
    """Says when it was woken, each time."""
    worker.unblock_signals()
    fd = os.open(str(arg["fifo"]), os.O_WRONLY)
    worker.ready()
    while True:
        worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH)
        at_s = time.monotonic()
        worker.latch.reset()
        os.write(fd, struct.pack("=Qd", 1, at_s))


def receiver(arg: dict[str, object]) -> None:
    """Receives times, and says how long ago they were sent: the sender sets this one's latch."""
    from posthouse import shmem

    segment, _ = shmem.named("latch", 4096, lambda s: shmem.Queue.create(s.region(0, 1024)))
    queue = shmem.Queue.as_receiver(segment.region(0, 1024))
    worker.unblock_signals()
    fd = os.open(str(arg["fifo"]), os.O_WRONLY)
    while True:
        message = queue.receive()
        took_s = time.monotonic() - struct.unpack("=d", message)[0]
        os.write(fd, struct.pack("=Qd", 2, took_s))


def sender(arg: dict[str, object]) -> None:
    """Sends the time, again and again, to one that sleeps each time."""
    from posthouse import shmem

    segment, _ = shmem.named("latch", 4096, lambda s: shmem.Queue.create(s.region(0, 1024)))
    queue = shmem.Queue.as_sender(segment.region(0, 1024))
    worker.unblock_signals()
    queue.wait_for_attach(timeout=20)
    for _ in range(int(str(arg["count"]))):
        time.sleep(0.003)
        queue.send(struct.pack("=d", time.monotonic()))
    while True:
        worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH)
        worker.latch.reset()


def asker(arg: dict[str, object]) -> None:
    """Sets the latch of another worker, by way of agent and master, again and again."""
    worker.unblock_signals()
    other = worker.handle(str(arg["handle"]))
    fd = os.open(str(arg["fifo"]), os.O_WRONLY)
    for _ in range(int(str(arg["count"]))):
        time.sleep(0.005)
        os.write(fd, struct.pack("=Qd", 0, time.monotonic()))
        other.set_latch()
    time.sleep(0.2)
    os.write(fd, struct.pack("=Qd", 3, time.monotonic()))
