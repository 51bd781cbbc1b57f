"""Workers that read what somebody has written over, for tests/process/memory/test_fuzz.py."""

from shmem_jobs import say

from posthouse import shmem, worker
from posthouse.errors import PosthouseError

VALUES = (0, 1, 7, 0x7F, 0x80, 0xFF)


def _each_byte(segment, end, look):
    """What comes of `look` for each byte up to `end`, overwritten by each of the values: the names
    of the errors, "fine", and what else was raised."""
    kept = bytes(segment[:end])
    outcomes = {}
    for at in range(end):
        for value in VALUES:
            segment[:end] = kept
            segment[at] = value
            try:
                look()
                outcome = "fine"
            except PosthouseError as error:
                outcome = type(error).__name__
            except Exception as error:  # noqa: BLE001 - it is what the test is about
                outcome = f"{at} {value}: {error!r}"
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    segment[:end] = kept
    return outcomes


def toc(_):
    segment = shmem.create(4096)
    table = shmem.Toc.create(0x1234, segment.region(0, 1024))
    table.insert(1, table.allocate(100))
    table.insert(2, table.allocate(8))
    outside = []

    def look():
        found = shmem.Toc.attach(0x1234, segment.region(0, 1024))
        if found is None:
            return
        for key in (1, 2, 3):
            region = found.lookup(key, missing_ok=True)
            if region is not None and region.offset + region.size > 1024:
                outside.append(repr(region))
        made = found.allocate(16)
        made.view()[:] = bytes(16)
        found.insert(9, made)

    say(outcomes=_each_byte(segment, 5 * 8 + 2 * 24, look), outside=outside)


def lock(_):
    segment, _ = shmem.init_struct("locks", 64)

    def look():
        with shmem.LWLock(segment, 0):
            pass

    outcomes = _each_byte(segment, 8, look)
    with shmem.LWLock(segment, 0):
        say(outcomes=outcomes, held=True)


def queue(arg):
    """Both ends are attached and one message is under way; `arg` says what is done next."""
    outcomes = {}
    for at in range(64 + 8):
        for value in VALUES:
            segment = shmem.create(4096)
            region = shmem.Queue.create(segment.region(0, 64 + 128))
            sender, receiver = shmem.Queue.as_sender(region), shmem.Queue.as_receiver(region)
            sender.send(bytes(range(40)), wait=False)
            segment[at] = value
            outcome = _one(arg, sender, receiver)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            segment.detach()
    say(outcomes=outcomes)


def _one(what, sender, receiver):
    try:
        if what == "receive":
            message = receiver.receive(timeout=0.002)
            return "fine" if len(message) <= 128 else f"{len(message)} bytes"
        for _ in range(4):
            sender.send(bytes(40), wait=False)
        return "fine"
    except PosthouseError as error:
        return type(error).__name__
    except Exception as error:  # noqa: BLE001 - as above
        return repr(error)


def queue_attach(_):
    """A header that was written over before anybody came."""
    outcomes = {}
    for at in range(64):
        for value in VALUES:
            segment = shmem.create(4096)
            region = shmem.Queue.create(segment.region(0, 64 + 128))
            segment[at] = value
            try:
                receiver = shmem.Queue.as_receiver(region)
                receiver.receive(timeout=0.002)
                outcome = "fine"
            except PosthouseError as error:
                outcome = type(error).__name__
            except Exception as error:  # noqa: BLE001 - as above
                outcome = repr(error)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            segment.detach()
    say(outcomes=outcomes)
    worker.latch.reset()


def array(handle):
    """numpy over a segment: its memory itself, in both directions."""
    import numpy

    segment = shmem.attach(handle)
    cells = numpy.frombuffer(segment, dtype=numpy.int64, count=8, offset=64)
    seen = cells.tolist()
    cells += 1
    part = numpy.frombuffer(segment.region(128, 64).view(), dtype=numpy.uint8)
    part[:] = 3
    say(
        seen=seen,
        copies=cells.base is None,
        writeable=bool(cells.flags.writeable),
        shares=bool(numpy.shares_memory(cells, numpy.frombuffer(segment, dtype=numpy.uint8))),
    )


def array_maker(_):
    import numpy

    segment = shmem.create(4096)
    cells = numpy.frombuffer(segment, dtype=numpy.int64, count=8, offset=64)
    cells[:] = range(8)
    worker.unblock_signals()
    say(handle=segment.handle)
    worker.latch.wait(timeout=60)
    say(cells=cells.tolist(), part=sorted(set(segment[128:192])))
    segment.detach()  # the array keeps the memory alive
    say(still=cells.tolist())
