"""Workers that hold locks, for tests/process/memory."""

import os
import signal
import sys
import threading
import time

from shmem_jobs import name_of, say, stay

from posthouse import shmem, worker
from posthouse.errors import PosthouseError
from posthouse.shmem import locks


def _lock(offset=0):
    segment, _ = shmem.init_struct("locks", 4096)
    return segment, shmem.LWLock(segment, offset)


def alone(_):
    segment, lock = _lock()
    other = shmem.LWLock(segment, 8)
    results = {"free": lock.held_by_me()}
    with lock, other:
        results["held"] = lock.held_by_me()
        results["twice"] = name_of(lock.acquire)
        results["not another's"] = name_of(shmem.LWLock(segment, 0).release)
    results["not held"] = name_of(lock.release)
    with lock.shared():
        results["shared twice"] = name_of(lock.try_acquire, shared=True)
    results["offsets"] = [name_of(shmem.LWLock, segment, at) for at in (4, -8, 4096)]
    many = [shmem.LWLock(segment, 8 * at) for at in range(201)]
    for one in many[:200]:
        one.acquire()
    results["too many"] = name_of(many[200].acquire)
    for one in many[:200]:
        one.release()
    seen = []
    lock.acquire()
    thread = threading.Thread(
        target=lambda: (lock.acquire(timeout=20), seen.append(1), lock.release())
    )
    thread.start()
    time.sleep(0.02)
    before = list(seen)
    lock.release()
    thread.join()
    results["thread"] = [before, seen]
    say(**results)


def hold(arg):
    """Until the latch is set; then it is let go, or not."""
    shared, ending = arg
    _, lock = _lock()
    worker.unblock_signals()
    lock.acquire(shared=shared)
    say(holds=True, pid=os.getpid())
    worker.latch.wait(timeout=60)
    if ending == "release":
        lock.release()
    elif ending == "exit":
        raise SystemExit(0)
    elif ending == "die":
        os._exit(0)
    elif ending == "error":
        raise ValueError("with a lock held")


def hold_and_be_told(_):
    """TERM comes while the lock is held, and counts only after its release."""
    _, lock = _lock()
    worker.unblock_signals()
    with lock:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        say(still=True)
    say(never=True)


def attempt(arg):
    shared, timeout = arg
    _, lock = _lock()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGQUIT})  # to tell what it saw
    at_once = lock.try_acquire(shared=shared)
    if at_once:
        lock.release()
    say(ready=True)
    error = ""
    try:
        lock.acquire(shared=shared, timeout=timeout)
        lock.release()
    except PosthouseError as wrong:
        error = f"{type(wrong).__name__}: {wrong}"
    say(at_once=at_once, error=error)
    if error.startswith("Abandoned"):  # the reset ends it: who went first would not belong to it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGQUIT})
        time.sleep(30)


def count(arg):
    """Adds to a counter, without an atomic instruction."""
    rounds, readers = arg
    segment, lock = _lock()
    cells = memoryview(segment)[64:128].cast("Q")
    worker.unblock_signals()
    torn = 0
    for number in range(rounds):
        if readers and number % 3 == 0:
            with lock.shared(30):
                torn += cells[0] != cells[1]
            continue
        lock.acquire(timeout=30)
        cells[0] = cells[0] + 1
        time.sleep(0)
        cells[1] = cells[0]
        lock.release()
    say(done=True, torn=torn)
    stay()


def counted(_):
    segment, _ = shmem.init_struct("locks", 4096)
    say(count=list(memoryview(segment)[64:80].cast("Q")))


def term_at_line(lines):
    """TERM, with its default handler, before the line of the lock's own code that has this number,
    while two cells are changed that always change together."""
    segment, lock = _lock()
    cells = memoryview(segment)[64:80].cast("Q")
    worker.unblock_signals()
    left = lines

    def trace(frame, event, _):
        nonlocal left
        if frame.f_code.co_filename != locks.__file__:
            return None
        if event == "line":
            left -= 1
            if left == -1:
                os.kill(os.getpid(), signal.SIGTERM)
        return trace

    sys.settrace(trace)
    with lock:
        cells[0] += 1
        cells[1] += 1
    sys.settrace(None)
    say(survived=True)


def hold_for_ever(_):
    _, lock = _lock()
    worker.unblock_signals()
    lock.acquire()
    say(holds=True)
    while True:
        time.sleep(60)


def wait_for_it(_):
    """TERM ends a wait for a lock at once: nothing is held."""
    _, lock = _lock()
    worker.unblock_signals()
    say(waits=True)
    lock.acquire(timeout=60)
