"""Find and end the processes of one cluster's folder, whoever started them.

Owns: which processes belong to a folder (proved by descriptors they hold open in it) and how they
are ended (pidfd, identity checked). Must not know: posthouse's messages, clients, settings.
Invariant: no process is signalled by a bare pid, and none without a proof that it belongs to the
folder. Standard library only: run as a file it is the guard that outlives a killed test process.
"""

import contextlib
import fnmatch
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "ProcessId",
    "end",
    "end_all",
    "holders",
    "holders_of_deleted",
    "identify",
    "open_process",
    "short_tmp",
    "start_guard",
    "sweep",
    "writers",
]


class ProcessId(NamedTuple):
    """A process and not merely its number: `start` is field 22 of /proc/PID/stat."""

    pid: int
    start: int


def identify(pid: int) -> ProcessId | None:
    """Who has this number now; None if nobody, or only a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else ProcessId(pid, int(fields[19]))


def open_process(who: ProcessId) -> int | None:
    """A pidfd that surely is of `who`; None if it is gone."""
    try:
        pidfd = os.pidfd_open(who.pid)
    except OSError:
        return None
    # The number may have been reused before the open, never after it: so ask again now.
    if identify(who.pid) == who:
        return pidfd
    os.close(pidfd)
    return None


def end(who: ProcessId, *, term_s: float, kill_s: float = 5.0) -> bool:
    """TERM, and KILL after `term_s` (0: KILL at once). True once it is gone."""
    return end_all([who], term_s=term_s, kill_s=kill_s)


def end_all(processes: Iterable[ProcessId], *, term_s: float, kill_s: float = 5.0) -> bool:
    """As `end`, all of them at the same time."""
    pidfds = [pidfd for who in processes if (pidfd := open_process(who)) is not None]
    try:
        left = pidfds
        steps = ((signal.SIGTERM, term_s), (signal.SIGKILL, kill_s))
        for number, patience_s in steps if term_s > 0 else steps[1:]:
            for pidfd in left:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, number)
            left = _wait_gone(left, patience_s)
        return not left
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


def _wait_gone(pidfds: list[int], patience_s: float) -> list[int]:
    poller = select.poll()
    left = set(pidfds)
    for pidfd in left:
        poller.register(pidfd, select.POLLIN)
    deadline_s = time.monotonic() + patience_s
    while left and (rest_s := deadline_s - time.monotonic()) > 0:
        for pidfd, _ in poller.poll(rest_s * 1000):
            poller.unregister(pidfd)
            left.discard(pidfd)
    return list(left)


def holders(path: str | Path) -> list[ProcessId]:
    """The processes, but us, that have this very file open."""
    try:
        wanted = Path(path).stat()
    except OSError:
        return []

    def is_it(descriptor: Path) -> bool:
        found = descriptor.stat()
        return (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)

    return list(_processes_with(is_it))


def holders_of_deleted(pattern: str) -> list[ProcessId]:
    """The processes, but us, that have a file open whose path matched this before it was deleted;
    with its folder, perhaps: no file that is there now leads to them. `*` matches any text."""

    def is_it(descriptor: Path) -> bool:
        return fnmatch.fnmatchcase(str(descriptor.readlink()), f"{pattern} (deleted)")

    return list(_processes_with(is_it))


def writers(folder: str | Path) -> list[ProcessId]:
    """The processes, but us, that have a file in this folder open for writing. `tail` is none."""
    prefix = f"{os.path.realpath(folder)}/"

    def writes_there(descriptor: Path) -> bool:
        return str(descriptor.readlink()).startswith(prefix) and bool(
            descriptor.lstat().st_mode & stat.S_IWUSR
        )

    return list(_processes_with(writes_there))


def _processes_with(test: Callable[[Path], bool]) -> Iterator[ProcessId]:
    for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()):
        if pid == os.getpid():
            continue
        who = identify(pid)
        if who is None:
            continue
        with contextlib.suppress(OSError):  # gone, or not ours to look at
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if test(descriptor):
                        yield who
                        break


def sweep(folder: str | Path, *, term_s: float = 2.0) -> bool:
    """End every process of a private cluster folder: agents, wardens with their workers, masters.

    Agents first, because an agent starts a warden that it misses. Then wardens by TERM, so that
    they stop their workers in order and record the exits. What is left is killed.
    """
    folder = Path(folder)
    end_all(_all_holders(folder.glob("hosts/*/agent.lock")), term_s=term_s)
    end_all(_all_holders(folder.glob("hosts/*/*/warden.lock")), term_s=term_s)
    deadline_s = time.monotonic() + 10.0
    while left := writers(folder):
        # Again and again: a process that is just being forked appears only a moment later.
        if time.monotonic() > deadline_s:
            return False
        masters = set(_all_holders(folder.glob("master/*.lock")))
        end_all(masters, term_s=term_s)
        end_all(set(left) - masters, term_s=0)
    return True


def _all_holders(paths: Iterable[Path]) -> list[ProcessId]:
    return [who for path in paths for who in holders(path)]


def start_guard(folder: str | Path) -> "subprocess.Popen[bytes]":
    """A process that clears the folder away once its standard input is closed, also because we
    were killed; unless `keep` was written there first."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(folder)],
        stdin=subprocess.PIPE,
        start_new_session=True,
        bufsize=0,
    )


def short_tmp() -> str:
    """A folder for temporary folders with sockets: a socket's path has at most 107 bytes, and some
    TMPDIRs are long."""
    short = "/tmp"  # noqa: S108 - mkdtemp makes what is put there private
    return short if os.access(short, os.W_OK) else tempfile.gettempdir()


def main(folder: str) -> None:
    """Wait until our standard input closes; unless it said `keep`, clear the folder away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if b"keep" not in sys.stdin.buffer.read() and Path(folder).exists():
        for cluster in (Path(folder), Path(folder) / "house"):
            sweep(cluster, term_s=0.5)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
