"""Workers at the ends of queues, for tests/process/memory."""

import os
import signal
import sys
import time

from shmem_jobs import name_of, say

from posthouse import shmem, worker
from posthouse.errors import PosthouseError
from posthouse.shmem import Queue, mq

SIZE = 4096


def _region(size=256, name="queue"):
    segment, _ = shmem.named(name, SIZE, lambda s: Queue.create(s.region(0, size)))
    return segment.region(0, size)


def alone(_):
    """Both ends in one process, without waiting."""
    segment = shmem.create(SIZE)
    sizes = [name_of(Queue.create, segment.region(0, size)) for size in (0, 71)]
    sizes.append(name_of(Queue.create, segment.region(4, 200)))
    region = Queue.create(segment.region(0, 77))  # odd bytes are dropped: a ring of 8
    region = Queue.create(segment.region(0, 64 + 32 + 5))
    sender = Queue.as_sender(region)
    early = sender.send(b"before the receiver", wait=False)
    receiver = Queue.as_receiver(region)
    results = {
        "sizes": sizes,
        "early": early,
        "third": name_of(Queue.as_sender, region),
        "first": bytes(receiver.receive()).decode(),
        "empty ring": receiver.receive(wait=False),
        "zero": [sender.send(b"", wait=False), bytes(receiver.receive(wait=False)).decode()],
    }
    kept = sender.send(bytes(range(200)), wait=False)
    results["begun"] = [kept, name_of(sender.send, b"other", wait=False)]
    parts = None
    for _ in range(100):
        parts = receiver.receive(wait=False)
        if parts is not None:
            break
        sender.send(bytes(range(200)), wait=False)
    results["larger than the ring"] = bytes(parts) == bytes(range(200))
    results["wrong end"] = [name_of(receiver.send, b""), name_of(sender.receive)]
    latch = worker.latch.is_set()
    sender.send(b"last", wait=False)
    sender.detach()
    results["delivered"] = bytes(receiver.receive()).decode()
    results["then"] = name_of(receiver.receive)
    results["detached end"] = name_of(sender.send, b"")
    say(latch=latch, **results)


def timeouts(_):
    region = _region()
    sender = Queue.as_sender(region)
    results = [name_of(sender.send, bytes(1000), timeout=0.01)]
    other = shmem.create(SIZE)
    Queue.create(other.region(0, 200))
    receiver = Queue.as_receiver(other.region(0, 200))
    results += [
        name_of(receiver.receive, timeout=0.01),
        name_of(receiver.wait_for_attach, timeout=0),
    ]
    say(results=results)


def receive_all(arg):
    size, ignore_quit = arg
    if ignore_quit:
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    receiver = Queue.as_receiver(_region(size))
    say(ready=True)
    got = []
    error = ""
    while not error:
        try:
            got.append(len(receiver.receive(timeout=30)))
        except PosthouseError as wrong:
            error = type(wrong).__name__
    say(got=got, error=error)


def send_some(arg):
    """Then end in some way, perhaps in the middle of a message."""
    size, lengths, ending = arg
    sender = Queue.as_sender(_region(size))
    sender.wait_for_attach(timeout=30)
    for length in lengths:
        sender.send(bytes(length), timeout=30)
    if ending.startswith("partial"):
        sender.send(bytes(10_000), wait=False)
    say(sent=True)
    if ending.endswith("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if ending.endswith("exit"):
        os._exit(0)


def send_until_detached(arg):
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    sender = Queue.as_sender(_region())
    say(ready=True)
    error = ""
    count = 0
    while not error:
        try:
            sender.send(bytes(16), timeout=30)
            count += 1
        except PosthouseError as wrong:
            error = type(wrong).__name__
    say(error=error)


def receive_some(arg):
    count, ending = arg
    receiver = Queue.as_receiver(_region())
    for _ in range(count):
        receiver.receive(timeout=30)
    say(received=True)
    if ending == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if ending == "exit":
        os._exit(0)


def pings(arg):
    """A latch that others set meanwhile is set at the end (L8), and messages come in order."""
    size, count = arg
    receiver = Queue.as_receiver(_region(size))
    say(ready=True)
    worker.latch.set()
    good = all(
        bytes(receiver.receive(timeout=30)) == bytes([n % 251]) * (n % 97) for n in range(count)
    )
    say(good=good, latch=worker.latch.is_set())


def ponger(arg):
    size, count = arg
    sender = Queue.as_sender(_region(size))
    for n in range(count):
        sender.send(bytes([n % 251]) * (n % 97), timeout=30)
    say(done=True)


def corrupt(_):
    """Every word of the header and every length, overwritten by whatever."""
    results = {}
    for name, at, value in [
        ("magic", 0, 1),
        ("ring", 1, 2**40),
        ("written beyond", 2, 2**50),
        ("written odd", 2, 3),
        ("length", 8, 2**62),
    ]:
        segment = shmem.create(SIZE)
        region = Queue.create(segment.region(0, 200))
        sender = Queue.as_sender(region)
        sender.send(b"x" * 40, wait=False)
        words = memoryview(segment).cast("Q")
        if at < 2:
            words[at] = value
            results[name] = name_of(Queue.as_receiver, region)
            continue
        receiver = Queue.as_receiver(region)
        words[at] = value
        results[name] = name_of(receiver.receive, timeout=1)
    segment = shmem.create(SIZE)
    region = Queue.create(segment.region(0, 200))
    sender, receiver = Queue.as_sender(region), Queue.as_receiver(region)
    sender.send(b"x" * 40, wait=False)
    receiver.receive()
    receiver.receive(wait=False)
    sender.send(b"", wait=False)
    memoryview(segment).cast("Q")[3] = 0
    results["read fell"] = name_of(sender.send, b"", wait=False)
    memoryview(segment).cast("Q")[3] = 2**40
    results["read beyond"] = name_of(sender.send, b"", wait=False)
    results["no queue"] = name_of(Queue.as_sender, shmem.create(SIZE).region(0, 200))
    say(**results)


def never_comes(arg):
    """K12: a peer that never comes is waited for as long as asked."""
    started = time.monotonic()
    receiver = Queue.as_receiver(_region())
    error = name_of(receiver.receive, timeout=0.02)
    say(error=error, waited=time.monotonic() - started >= 0.02, attached=receiver.peer_attached())


def _die_after(lines):
    """KILL this process before the next line of the queue's own code, once it has run so many."""
    left = lines

    def trace(frame, event, _):
        nonlocal left
        if frame.f_code.co_filename != mq.__file__:
            return None
        if event == "line":
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        return trace

    sys.settrace(trace)


def _pattern(number, length):
    return bytes((number + at) % 251 for at in range(length))


def send_and_die(arg):
    name, size, lengths, lines = arg
    sender = Queue.as_sender(_region(size, name))
    sender.wait_for_attach(timeout=30)
    _die_after(lines)
    for number, length in enumerate(lengths):
        sender.send(_pattern(number, length), timeout=30)
    sender.detach()
    sys.settrace(None)
    say(alive=True)


def receive_intact(arg):
    """Whatever comes must be what was sent, whole and in order."""
    name, size, lengths = arg
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)  # to tell what it saw
    receiver = Queue.as_receiver(_region(size, name))
    got = 0
    error = ""
    while not error:
        try:
            message = receiver.receive(timeout=30)
            assert bytes(message) == _pattern(got, lengths[got]), "torn"
            got += 1
        except PosthouseError as wrong:
            error = type(wrong).__name__
    say(got=got, error=error)


def receive_and_die(arg):
    name, size, lengths, lines = arg
    receiver = Queue.as_receiver(_region(size, name))
    receiver.wait_for_attach(timeout=30)
    _die_after(lines)
    for _ in lengths:
        receiver.receive(timeout=30)
    receiver.detach()
    sys.settrace(None)
    say(alive=True)


def send_to_the_dying(arg):
    """The messages that it receives, and more of them without end."""
    name, size, lengths = arg
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    sender = Queue.as_sender(_region(size, name))
    error = ""
    while not error:
        try:
            for number, length in enumerate(lengths):
                sender.send(_pattern(number, length), timeout=30)
        except PosthouseError as wrong:
            error = type(wrong).__name__
    say(error=error)
