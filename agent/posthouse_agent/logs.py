"""Pages of workers' output files, for READ_LOG.

Owns: reading; runs only in the I/O thread. Must not know: who asked.
Invariant: never follows a link, never reads anything but a regular file of the log folder, and
never returns more than limits.log_read_bytes_max bytes.
"""

import errno
import os
import stat

from posthouse import limits
from posthouse_agent.effects import LogRead, ReadLogFile

__all__ = ["read_page"]


def read_page(log_dir: str, asked: ReadLogFile) -> LogRead:
    """The page, or why there is none. A worker that has written nothing has an empty output."""
    name = f"{asked.slot}.{asked.generation}.log"
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(os.path.join(log_dir, name), flags)  # noqa: PTH118
    except FileNotFoundError:
        return LogRead(asked.read, offset=max(asked.offset, 0))
    except OSError as error:
        return _failed(asked, name, error)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return LogRead(asked.read, error=f"{name} is not a regular file")
        return _read(descriptor, asked, found.st_size)
    except OSError as error:
        return _failed(asked, name, error)
    finally:
        os.close(descriptor)


def _read(descriptor: int, asked: ReadLogFile, size: int) -> LogRead:
    limit = min(asked.limit, limits.log_read_bytes_max)
    wanted = max(0, size - limit) if asked.offset < 0 else asked.offset
    start = _first_kept(descriptor, wanted, size)
    data = os.pread(descriptor, limit, start) if limit and start < size else b""
    return LogRead(asked.read, offset=start, data=data, size=size, lost=start - wanted)


def _first_kept(descriptor: int, offset: int, size: int) -> int:
    """Output is bounded by punching holes at the head: what is in a hole is no longer kept."""
    if offset >= size:
        return offset
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:  # nothing but a hole up to the end
            return size
        return offset  # a file system that knows no holes has none


def _failed(asked: ReadLogFile, name: str, error: OSError) -> LogRead:
    return LogRead(asked.read, offset=max(asked.offset, 0), error=f"{name}: {error.strerror}")
