"""What a dead worker leaves: the kernel's word, the end of its output, its traceback.

Owns: the exit facts. Must not know: tokens, the journal. Invariant: everything here is bounded and
printable, whatever the worker wrote; a file that cannot be read costs its text, never the record.
"""

import os
import re
import struct
import time
from typing import Any, Final

from posthouse import limits
from posthouse_agent.native import Death

__all__ = ["begin_beats", "exit_facts", "last_words", "lock_held", "output_tail", "silent_s"]

_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|.)?")
_BEAT: Final = struct.Struct("=q")  # as posthouse.worker writes it
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def exit_facts(
    death: Death,
    *,
    pid: int,
    started_unix_s: float,
    ended_unix_s: float,
    runtime_s: float,
    daemonised: bool,
) -> dict[str, Any]:
    """The fields of ExitFacts that the kernel knows. A worker that ends with 0 and leaves
    processes behind has daemonised, which counts as 1."""
    facts: dict[str, Any] = {
        "cause": "exited" if death.signal is None else "signaled",
        "pid": pid,
        "started_unix_s": started_unix_s,
        "ended_unix_s": ended_unix_s,
        "runtime_s": runtime_s,
        "user_s": death.user_s,
        "system_s": death.system_s,
        "max_rss_bytes": death.max_rss_bytes,
    }
    if death.signal is not None:
        facts |= {"signal": death.signal, "core": death.core}
    elif daemonised and death.code == 0:
        facts |= {"cause": "daemonised", "code": 1}
    else:
        facts["code"] = death.code
    return facts


def output_tail(path: str, identity: tuple[int, int], start: int) -> str:
    """The last lines after byte `start`, if the file is still the same one."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        found = os.fstat(fd)
        if (found.st_dev, found.st_ino) != identity:
            return ""
        begin = max(start, found.st_size - limits.exit_tail_bytes_max)
        data = os.pread(fd, limits.exit_tail_bytes_max, begin)
    except OSError:
        return ""
    finally:
        os.close(fd)
    if begin > start:  # cut off in the middle of a line, unless that line is all there is
        data = data.partition(b"\n")[2] or data
    lines = printable(data).splitlines(keepends=True)
    return _bounded("".join(lines[-limits.exit_tail_lines_max :]), limits.exit_tail_bytes_max)


def last_words(fd: int) -> str:
    """The traceback that the worker wrote into its memfd, if it did."""
    try:
        data = os.pread(fd, limits.traceback_bytes_max, 0).rstrip(b"\0")
    except OSError:
        return ""
    return _bounded(printable(data), limits.traceback_bytes_max)


def begin_beats(fd: int) -> None:
    """A worker's silence begins with its start."""
    beat, held = _BEAT.pack(time.monotonic_ns()), _BEAT.pack(0)
    os.pwrite(fd, beat + held, limits.traceback_bytes_max)


def lock_held(fd: int) -> bool:
    """Whether the worker ended with a lock of shared memory held, by its own record."""
    data = os.pread(fd, _BEAT.size, limits.traceback_bytes_max + _BEAT.size)
    return len(data) == _BEAT.size and _BEAT.unpack(data)[0] != 0


def silent_s(fd: int) -> float:
    """Since its last heartbeat, by the clock that stands still while the machine sleeps. What the
    worker has broken of its own record counts as no heartbeat at all."""
    data = os.pread(fd, _BEAT.size, limits.traceback_bytes_max)
    beat_ns = _BEAT.unpack(data)[0] if len(data) == _BEAT.size else 0
    now_ns = time.monotonic_ns()
    return (now_ns - beat_ns) / 1e9 if beat_ns <= now_ns else float("inf")


def printable(data: bytes) -> str:
    """Text without terminal escapes and control characters but tab and newline."""
    text = data.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


def _bounded(text: str, bytes_max: int) -> str:
    """Its end; a byte that was no UTF-8 became a character of three."""
    data = text.encode()
    return text if len(data) <= bytes_max else data[-bytes_max:].decode(errors="ignore")
