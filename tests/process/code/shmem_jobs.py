"""Workers with shared memory, for tests/process/memory. Each says what it found as JSON."""

import json
import mmap
import os
import resource
import select
import signal
import socket
import time
from pathlib import Path

from posthouse import shmem, worker
from posthouse.errors import PosthouseError


def say(**what):
    print(json.dumps(what), flush=True)


def name_of(call, *args, **kwargs):
    """The error's name, or the result."""
    try:
        return call(*args, **kwargs)
    except PosthouseError as error:
        return type(error).__name__
    except (ValueError, PermissionError, OSError) as error:
        return type(error).__name__


def stay(_=None):
    worker.unblock_signals()
    while True:
        worker.latch.reset()
        worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH)


def none_of_it(_):
    maps = Path("/proc/self/maps").read_text()
    links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is(fd)]
    say(
        error=name_of(shmem.create, 64),
        mapped="posthouse-segment" in maps,
        open=any("posthouse-segment" in link for link in links),
    )


def _is(fd):
    try:
        os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return False
    return True


def struct(arg):
    name, size, value = arg
    found = name_of(shmem.init_struct, name, size)
    if isinstance(found, str):
        say(error=found)
        return
    segment, there = found
    before = segment[0]
    if value:
        segment[0] = value
    say(found=there, before=before, size=len(segment), epoch=shmem.epoch())
    stay()


def bad_structs(_):
    shmem.init_struct("first", 64)
    results = [
        name_of(shmem.init_struct, *args)
        for args in [
            ("first", 65),
            ("x", 0),
            ("x", -1),
            ("x", 2**40),
            ("x", True),
            ("x", "1"),
            ("", 8),
            ("n" * 64, 8),
            (7, 8),
        ]
    ]
    say(errors=results, again=shmem.init_struct("first", 64)[1])


def sealed(_):
    segment = shmem.create(4096)
    errors = [name_of(segment.resize, size) for size in (1, 8192)]
    file = f"/proc/self/map_files/{maps_of('posthouse-segment')}"
    try:
        fd = os.open(file, os.O_RDWR)
    except OSError:
        fd = -1
    if fd != -1:
        errors += [name_of(os.ftruncate, fd, size) for size in (1, 8192)]
    say(errors=errors, size=len(segment))


def maps_of(word):
    return next(
        line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if word in line
    )


def buffers(_):
    segment = shmem.create(64)
    view = memoryview(segment)
    view.cast("Q")[1] = 7
    region = segment.region(8, 8)
    say(
        zeros=bytes(segment[:8]) == bytes(8),
        same=region.view()[0],
        readonly=view.readonly,
        kind=isinstance(segment, mmap.mmap),
        outside=name_of(segment.region, 60, 8),
        written=array_written(segment),
    )


def array_written(segment):
    """What numpy.frombuffer does: memory of the buffer itself, not of a copy."""
    import ctypes

    there = (ctypes.c_uint64 * 8).from_buffer(segment)
    there[2] = 9
    result = segment[16]
    del there
    return result


def named_maker(arg):
    calls = []

    def init(segment):
        calls.append(1)
        time.sleep(0.05)  # the others ask meanwhile
        segment[0] = 5

    segment, found = shmem.named("once", 64, init)
    say(found=found, calls=len(calls), value=segment[0])
    stay()


def named_fails(arg):
    """The first maker fails, the second is the maker."""

    def bad(_):
        raise ValueError("no")

    first = name_of(shmem.named, "shaky", 64, bad)
    segment, found = shmem.named("shaky", 64, lambda s: s.__setitem__(0, 3))
    say(first=first, found=found, value=segment[0])


def dsm_maker(arg):
    segment = shmem.create(arg)
    segment[0] = 77
    say(
        handle=segment.handle,
        twice=name_of(shmem.attach, segment.handle),
        same=shmem.find(segment.handle) is segment,
        none=shmem.find(1) is None,
    )
    stay()


def dsm_user(arg):
    segment = shmem.attach(arg)
    say(value=None if segment is None else segment[0])
    if segment is not None:
        stay()


def dsm_attach_and_leave(arg):
    segment = shmem.attach(arg)
    say(value=None if segment is None else segment[0])


def pins(_):
    segment = shmem.create(64)
    handle = segment.handle
    segment.pin()
    double = name_of(segment.pin)
    segment.detach()
    segment = shmem.attach(handle)
    kept = segment is not None
    segment.unpin()
    unpinned = name_of(segment.unpin)
    segment.detach()
    other = shmem.create(64)
    other.pin()
    other_handle = other.handle
    other.detach()
    shmem.unpin(other_handle)
    say(
        double=double,
        kept=kept,
        unpinned=unpinned,
        gone=shmem.attach(handle) is None,
        gone_too=shmem.attach(other_handle) is None,
        unknown=name_of(shmem.unpin, 5),
    )


def bad_handles(_):
    say(results=[name_of(shmem.attach, handle) for handle in (0, -1, 1, 2**63, 2**70, "x", None)])


def bad_sizes(_):
    say(results=[name_of(shmem.create, size) for size in (0, -1, 2**70, 1.5, "8", None)])


def too_many(count):
    made = []
    try:
        while True:
            made.append(shmem.create(8))
    except PosthouseError as error:
        say(error=type(error).__name__, message=str(error), made=len(made))
    made.pop().detach()
    say(again=name_of(shmem.create, 8) != "TooMany")


def callbacks(how):
    order = []
    worker.before_exit(lambda: order.append("before_exit"))
    worker.on_exit(lambda: say(order=[*order, "on_exit"]))
    segment = shmem.create(64)
    segment.on_detach(lambda s: order.append(f"first {s[0]}"))
    segment.on_detach(lambda s: order.append("second"))
    taken = lambda s: order.append("cancelled")  # noqa: E731
    segment.on_detach(taken)
    segment.cancel_on_detach(taken)
    segment[0] = 4
    if how == "detach":
        segment.detach()
        order.append("detached")
    if how == "error":
        raise ValueError("an error")


def toc(_):
    segment = shmem.create(4096)
    table = shmem.Toc.create(0x1234, segment.region())
    one, two = table.allocate(100), table.allocate(8)
    table.insert(1, one)
    table.insert(2, two)
    table.insert(1, two)
    one.view()[0] = 42
    again = shmem.Toc.attach(0x1234, segment.region())
    found = again.lookup(1)
    results = {
        "first wins": found.size,
        "value": found.view()[0],
        "aligned": (one.offset % 8, two.offset % 8),
        "other magic": shmem.Toc.attach(0x1235, segment.region()) is None,
        "missing": name_of(again.lookup, 9),
        "missing ok": again.lookup(9, missing_ok=True),
        "too big": name_of(table.allocate, 4096),
    }
    count = 2
    try:
        while True:
            table.insert(count, two)
            count += 1
    except PosthouseError as error:
        results["full"] = type(error).__name__
    words = memoryview(segment)[:80].cast("Q")
    kept = list(words)
    for what, at, value in [
        ("version", 1, 2),
        ("size", 2, 2**63),
        ("entries", 4, 2**40),
        ("offset", 6, 2**50),
    ]:
        words[at] = value
        results[what] = name_of(lambda: shmem.Toc.attach(0x1234, segment.region()).lookup(1))
        words[at] = kept[at]
    say(**results)


def say_and_stay(_):
    say(here=True)
    stay()


def leave(code):
    segment, _ = shmem.init_struct("s", 64)
    say(value=segment[0])
    os._exit(code)


def deaf(_):
    """It heeds neither QUIT nor TERM."""
    for number in (signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    shmem.init_struct("s", 64)
    say(deaf=True)
    worker.unblock_signals()
    while True:
        signal.pause()


def scribble(epoch):
    """Writes the epoch all over; says if it ever sees another one's."""
    segment, _ = shmem.init_struct("all", 1 << 20)
    worker.unblock_signals()
    size = len(segment)
    foreign = len(set(segment[:]) - {0, epoch})
    segment[: size // 2] = bytes([epoch]) * (size // 2)
    say(foreign=foreign, epoch=shmem.epoch())
    while True:
        segment[:] = bytes([epoch]) * size
        if set(segment[::4096]) != {epoch}:
            say(foreign=1)


def hostile(_):
    """What no worker of ours would say to its warden, on its memory line."""
    shmem.init_struct("s", 64)
    fd, _ = worker.memory_fds()
    odd = [None, True, -1, 2**70, 1.5, "", "x" * 200, "\ud800", [], {}, {"$bytes": 1}]
    lines = [b"{", b"[]", b"\xff", b"[" * 4000, b'{"op":1}', b'{"op":"x"}' + b" " * 8000]
    ops = "named create attach locks made failed detach pin unpin sit nonsense"
    for op in ops.split():
        for field in ("id", "key", "size", "handle", "number", "offset", "role"):
            for value in odd:
                fields = {"id": 1, "key": "struct:s", "size": 64, "number": 2, "offset": 0}
                lines.append(json.dumps({**fields, "op": op, field: value}).encode())
    line = socket.socket(fileno=os.dup(fd))
    line.setblocking(True)
    for data in lines:
        line.send(data)
        while select.select([line], [], [], 0)[0]:
            line.recv(4096)
    say(said=len(lines), answers=shmem.create(8).handle > 0)


def short_of_addresses(_):
    """Nothing half made is left, and all of it works again later."""
    kept, _ = shmem.init_struct("kept", 64)
    kept[0] = 5
    used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), hard))
    results = [text_of(shmem.create, 8 << 20), text_of(shmem.init_struct, "large", 8 << 20)]
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    large, found = shmem.init_struct("large", 8 << 20)
    say(errors=results, kept=kept[0], found=found, size=len(large), ends=large[-1])


def short_of_addresses_for_what_is_there(handle):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), hard))
    error = text_of(shmem.attach, handle)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    say(error=error, there=shmem.attach(handle) is not None)


def more_than_there_is(_):
    say(error=text_of(shmem.init_struct, "vast", 1 << 30))


def make(arg):
    """What it is told of each name and size, while the host is in some need."""
    say(results=[text_of(shmem.init_struct, name, size) for name, size in arg])
    stay()


def lock_when_woken(_):
    """Asks for memory each time that it is woken, until it has had a lock in it."""
    say(here=True)
    while True:
        worker.latch.wait(timeout=60)
        worker.latch.reset()
        error = text_of(shmem.init_struct, "s", 64)
        if error:
            say(error=error)
            continue
        segment, _ = shmem.init_struct("s", 64)
        with shmem.LWLock(segment, 8) as lock:
            say(locked=lock.held_by_me())
        stay()


def text_of(call, *args):
    """The error that it raises; "" for none."""
    try:
        call(*args)
    except PosthouseError as error:
        return f"{type(error).__name__}: {error}"
    return ""
