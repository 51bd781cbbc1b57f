"""Workers that the command line's tests register."""

import signal
import sys
from typing import Any

from posthouse import worker


def idle(_arg: Any) -> None:
    """Runs until it is told to stop."""
    worker.unblock_signals()
    worker.ready()
    while True:
        worker.latch.wait(worker.POSTMASTER_DEATH, timeout=60.0)
        worker.latch.reset()


def deaf(_arg: Any) -> None:
    """Ignores SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    idle(None)


def speak(lines: list[str]) -> None:
    """Prints the lines, then idles."""
    for line in lines:
        print(line, flush=True)
    idle(None)


def unready(_arg: Any) -> None:
    """Never says that it is ready."""
    worker.unblock_signals()
    while True:
        worker.latch.wait(worker.POSTMASTER_DEATH, timeout=60.0)
        worker.latch.reset()


def leave(code: int) -> None:
    """Ends at once."""
    print("leaving with", code)
    sys.exit(code)


def raise_error(words: str) -> None:
    """Ends with a traceback."""
    raise RuntimeError(words)


def count(path: str) -> None:
    """Prints which of its starts this is, and fails."""
    with open(path, "a+") as file:
        file.write("x")
        file.seek(0)
        print("start", len(file.read()), flush=True)
    sys.exit(1)


def tell_environment(_arg: Any) -> None:
    """Registers another worker from inside."""
    import posthouse

    with posthouse.connect() as cluster:
        print("registry", cluster.registry, flush=True)


def tell_entry(arg: Any) -> None:
    """Prints what it was given."""
    import json
    import os
    import resource

    entry = worker.entry()
    told = {
        "arg": arg,
        "extra": entry.spec.extra.decode(),
        "environment": {name: os.environ.get(name) for name in ("A", "B")},
        "nice": os.nice(0),
        "umask": os.umask(0),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "host": entry.host,
        "incarnation": entry.incarnation,
    }
    print(json.dumps(told), flush=True)


def write(arg: dict[str, Any]) -> None:
    """Writes numbered lines to both streams, as fast as it can or so many, then idles."""
    worker.unblock_signals()
    for number in range(arg.get("count", 10**9)):
        stream = sys.stderr if number % 3 == 0 else sys.stdout
        stream.write(f"{worker.entry().host} {worker.entry().incarnation} {number} äöü\n")
        if arg.get("pause"):
            worker.latch.wait(worker.POSTMASTER_DEATH, timeout=arg["pause"])
    idle(None)


def hang(how: str) -> None:
    """Hangs with its signals blocked, in several ways; says so first."""
    import threading

    print("hangs", flush=True)
    match how:
        case "loop":
            busy_loop()
        case "C code that holds the interpreter":
            sum(range(10**13))
        case "a lock, with a thread":
            lock = threading.Lock()
            lock.acquire()
            threading.Thread(target=busy_loop, daemon=True).start()
            lock.acquire()


def busy_loop() -> None:
    while True:
        pass


def boss(arg: dict[str, Any]) -> None:
    """Registers helpers one after the other, and says what it sees of them."""
    from posthouse import BackgroundWorker
    from posthouse.errors import AlreadyRegistered

    worker.unblock_signals()
    worker.ready()
    for number in range(arg.get("helpers", 1)):
        print("registers", number, flush=True)
        spec = BackgroundWorker(
            name=f"{arg['prefix']}-{number}", main="jobs:idle", notify=arg.get("notify", False)
        )
        handle = worker.register(spec, timeout=60)
        if arg.get("notify"):
            worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH, timeout=30)
            print("woken", worker.latch.is_set(), flush=True)
        now = handle.wait_for_ready(timeout=60)
        print("sees", now.state, now.host, now.pid, now.ready, flush=True)
        print("latch", worker.latch.is_set(), flush=True)
    if arg.get("terminates"):
        print("terminates", handle.terminate(), flush=True)
        print("gone", handle.wait_until_unregistered(timeout=60).final, flush=True)
        print("again", handle.terminate(), flush=True)
        try:
            worker.register(BackgroundWorker(name=worker.entry().name, main="jobs:idle"))
        except AlreadyRegistered as error:
            print("refused", error.code, flush=True)
    idle(None)


def deadly(arg: str) -> None:
    """Registers with notify, then leaves USR1 at its deadly default."""
    from posthouse import BackgroundWorker

    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    worker.unblock_signals()
    handle = worker.register(BackgroundWorker(name=arg, main="jobs:idle", notify=True), timeout=60)
    handle.wait_for_ready(timeout=60)
    print("lives", flush=True)
    idle(None)
