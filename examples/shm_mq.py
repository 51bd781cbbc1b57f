"""PostgreSQL's test_shm_mq: messages through a ring of queues and workers, and back, intact.

`main` is the leader. It lays out a segment (a lock, counters, one queue more than workers), has
copiers registered, waits until all are attached, and sends `loops` messages around:

    posthouse run shm_mq:main --flags shmem_access --restart-time never \
        --arg '{"queue": 1024, "sizes": [0, 0], "loops": 2000, "workers": 1}'
"""

import json
import os
import random
import time

from posthouse import NEVER_RESTART, SHMEM_ACCESS, BackgroundWorker, shmem, worker
from posthouse.errors import TimedOut, UsageError
from posthouse.shmem import LWLock, Queue, Region, Toc

MAGIC = 0x79FB2447
WAIT_S = 30.0
HEADER, FIRST_QUEUE = 0, 1  # keys; the header: lock, copiers planned, attached, ready


def main(arg: dict) -> None:
    worker.unblock_signals()
    began = time.monotonic()
    segment, queues = set_up(arg["queue"], arg["loops"], arg["workers"])
    handles = []
    segment.on_detach(lambda _: [handle.terminate() for handle in handles])  # whatever goes wrong
    me = worker.entry()
    for number in range(arg["workers"]):
        record = BackgroundWorker(
            name=f"{me.name}-copier-{number}",
            main=arg.get("copier", "shm_mq:copier"),
            main_arg=[segment.handle, str(me.handle)],
            host=me.host,
            flags=SHMEM_ACCESS,
            crash_domain=me.spec.crash_domain,
            restart_time=NEVER_RESTART,
        )
        handles.append(worker.register(record))
    wait_until_ready(segment, handles)
    started = time.monotonic()
    sender, receiver = Queue.as_sender(queues[0], handles[0]), Queue.as_receiver(queues[-1])
    (pipelined if arg.get("pipelined") else one_by_one)(sender, receiver, arg)
    ended = time.monotonic()
    sender.detach()
    receiver.detach()
    print(
        json.dumps({"ok": True, "ms": (ended - started) * 1e3, "all_ms": (ended - began) * 1e3}),
        flush=True,
    )


def set_up(queue_bytes: int, loops: int, workers: int) -> tuple[shmem.Segment, list[Region]]:
    if queue_bytes < Queue.MIN_BYTES:
        raise UsageError(f"queue size must be at least {Queue.MIN_BYTES} bytes")
    if loops < 0:
        raise UsageError("repeat count must be 0 or more")
    if workers <= 0:
        raise UsageError("number of workers must be 1 or more")
    room = 64 * (workers + 4) + (workers + 1) * (queue_bytes + 64)
    segment = shmem.create(room + 512)
    toc = Toc.create(MAGIC, segment.region())
    header = toc.allocate(32)
    header.view().cast("Q")[1] = workers
    toc.insert(HEADER, header)
    queues = []
    for number in range(workers + 1):
        queues.append(Queue.create(toc.allocate(queue_bytes)))
        toc.insert(FIRST_QUEUE + number, queues[-1])
    return segment, queues


def wait_until_ready(segment: shmem.Segment, handles: list[worker.WorkerHandle]) -> None:
    """Copiers set this latch when they are ready; one that has ended never will."""
    words = find(segment, HEADER).view().cast("Q")
    deadline = time.monotonic() + WAIT_S
    while words[3] < len(handles):
        worker.latch.reset()
        if words[3] >= len(handles):
            break
        if any(handle.status().final for handle in handles):
            raise RuntimeError("one or more background workers failed to start")
        if time.monotonic() > deadline:
            raise TimedOut("the copiers are not ready")
        worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH, timeout=0.1)
    words.release()


def find(segment: shmem.Segment, key: int) -> Region:
    toc = Toc.attach(MAGIC, segment.region())
    if toc is None:
        raise RuntimeError("bad magic number in dynamic shared memory segment")
    found = toc.lookup(key)
    assert found is not None
    return found


def messages(sizes: list[int]) -> list[bytes]:
    low, high = sizes
    return [os.urandom(random.randint(low, high)) for _ in range(16)]


def one_by_one(sender: Queue, receiver: Queue, arg: dict) -> None:
    pool = messages(arg["sizes"])
    for number in range(arg["loops"]):
        message = pool[number % len(pool)]
        sender.send(message, timeout=WAIT_S)
        if receiver.receive(timeout=WAIT_S) != message:
            raise RuntimeError(f"message {number} is corrupted")


def pipelined(sender: Queue, receiver: Queue, arg: dict) -> None:
    """Send and receive without waiting; wait only when neither gets on."""
    (message, *_) = messages(arg["sizes"])
    sent = received = 0
    while received < arg["loops"]:
        worker.latch.reset()
        went_on = False
        if sent < arg["loops"] and sender.send(message, wait=False):
            sent += 1
            went_on = True
        came = receiver.receive(wait=False)
        if came is not None:
            if came != message:
                raise RuntimeError(f"message {received} is corrupted")
            received += 1
            went_on = True
        if not went_on:
            worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH, timeout=WAIT_S)


def copier(arg: list) -> None:
    """From the queue before it to the one behind it, until there is no more."""
    worker.unblock_signals()
    handle, leader = arg
    segment = shmem.attach(handle)
    if segment is None:
        raise RuntimeError("unable to map dynamic shared memory segment")
    header = find(segment, HEADER)
    words = header.view().cast("Q")
    with LWLock(segment, header.offset):
        words[2] += 1
        number, planned = words[2], words[1]
    if number > planned:
        raise RuntimeError("too many message queue testing workers already")
    receiver = Queue.as_receiver(find(segment, FIRST_QUEUE + number - 1))
    sender = Queue.as_sender(find(segment, FIRST_QUEUE + number))
    with LWLock(segment, header.offset):
        words[3] += 1
    worker.ready()
    worker.handle(leader).set_latch()
    try:
        while True:
            sender.send(receiver.receive())  # type: ignore[arg-type]
    except shmem.Detached:
        pass


def failing_copier(arg: list) -> None:
    """The first one to come fails."""
    segment = shmem.attach(arg[0])
    assert segment is not None
    words = find(segment, HEADER).view().cast("Q")
    with LWLock(segment, find(segment, HEADER).offset):
        words[2] += 1
        first = words[2] == 1
    if first:
        raise RuntimeError("it fails before all are ready")
    worker.unblock_signals()
    worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH, timeout=WAIT_S)
