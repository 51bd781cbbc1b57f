"""A worker's output file: which bytes of it are kept, and how its head is dropped.

Owns: the form of the file. Must not know: workers, who reads. Invariant: a byte keeps its position
for ever; only the oldest go, in whole lines, and the file itself tells which: all that is before
the first kept byte reads as NULs, and that byte is none (docs/decisions/0018).
"""

import contextlib
import errno
import os
import re
import stat
from typing import Final

from posthouse import limits
from posthouse_agent import native

__all__ = ["begin_again", "cannot_punch", "cut", "first_kept", "name", "open_output", "parse_name"]

_NAME: Final = re.compile(r"(\d{1,19})\.(\d{1,19})\.log")
_BLOCK_BYTES: Final = 4096
_BEGUN_AGAIN: Final = stat.S_ISVTX  # marks a file whose head is gone without a hole being told
_CANNOT_PUNCH: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)


def name(slot: int, generation: int) -> str:
    """Of the file, in the log folder."""
    return f"{slot}.{generation}.log"


def parse_name(text: str) -> tuple[int, int] | None:
    """Slot and generation, if it is the name of an output file."""
    match = _NAME.fullmatch(text)
    return (int(match[1]), int(match[2])) if match else None


def open_output(path: str, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file with one name. Raises OSError for anything else: whoever the
    worker runs as may have put it there."""
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode) and (flags == os.O_RDONLY or found.st_nlink == 1):
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, "is not a regular file with one name")


def first_kept(fd: int) -> int:
    """Position of the first byte that is kept; the file's size if none is."""
    found = os.fstat(fd)
    size = found.st_size
    try:
        at = os.lseek(fd, 0, os.SEEK_DATA) if size else 0
    except OSError as error:
        if error.errno == errno.ENXIO:  # nothing but a hole up to the end
            return size
        at = 0
    if at == 0 and found.st_mode & _BEGUN_AGAIN:
        at = _first_block(fd, size)
    elif at == 0:
        return 0
    # The hole ends with a block, the cut was within it.
    rest = os.pread(fd, 2 * _BLOCK_BYTES, at)
    return at + len(rest) - len(rest.lstrip(b"\0"))


def _first_block(fd: int, size: int) -> int:
    """The first block with something in it, where the file system tells of no holes."""
    low, high = 0, size // _BLOCK_BYTES
    while low < high:
        middle = (low + high) // 2
        if os.pread(fd, _BLOCK_BYTES, middle * _BLOCK_BYTES).strip(b"\0"):
            high = middle
        else:
            low = middle + 1
    return low * _BLOCK_BYTES


def cut(fd: int, bytes_max: int) -> int:
    """Drop the oldest lines if more than `bytes_max` are kept: then at least seven eighths of that
    stay. Returns how many bytes were dropped. Raises OSError where no holes can be punched.

    One system call: a process that is killed here has cut it or has not.
    """
    size = os.fstat(fd).st_size
    if size <= bytes_max:
        return 0
    head = first_kept(fd)
    if size - head <= bytes_max:
        return 0
    at = _line_start(fd, size - bytes_max * 7 // 8)
    begin = head - head % _BLOCK_BYTES
    native.punch(fd, begin, at - begin)
    return at - head


def cannot_punch(error: OSError) -> bool:
    """Whether it is the file system's word that it has no holes."""
    return error.errno in _CANNOT_PUNCH


def _line_start(fd: int, at: int) -> int:
    """Where the first line at or after `at` begins. A line longer than limits.log_line_bytes_max
    is cut in two. What begins there is no NUL, which would count as dropped."""
    window = os.pread(fd, limits.log_line_bytes_max + 1, at - 1)
    match = re.search(rb"\n(?=[^\0])", window) or re.search(rb".(?=[^\0])", window, re.DOTALL)
    return at - 1 + match.end() if match else at


def begin_again(path: str, bytes_max: int) -> None:
    """Before a worker starts: see to it that no more than `bytes_max` of its earlier output is
    kept. Where no holes can be punched, a new file takes the old one's place, with the last lines
    at their positions; nobody must be writing. Whatever fails leaves the file as it is."""
    with contextlib.suppress(OSError):
        if os.stat(path, follow_symlinks=False).st_size <= bytes_max:
            return
        fd = open_output(path, os.O_RDWR)
        try:
            try:
                cut(fd, bytes_max)
            except OSError as error:
                if cannot_punch(error):
                    _replace(path, fd, min(bytes_max, limits.log_copied_bytes_max))
        finally:
            os.close(fd)


def _replace(path: str, fd: int, bytes_max: int) -> None:
    found = os.fstat(fd)
    head = first_kept(fd)
    if found.st_size - head <= bytes_max:
        return
    at = _line_start(fd, found.st_size - bytes_max * 7 // 8)
    beside = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(beside)  # of a warden that was killed here
    new = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(new, at)
        while data := os.pread(fd, limits.log_read_bytes_max, at):
            at += os.pwrite(new, data, at)
        os.fchown(new, found.st_uid, found.st_gid)
        os.fchmod(new, stat.S_IMODE(found.st_mode) | _BEGUN_AGAIN)
        os.rename(beside, path)
    except OSError:
        os.unlink(beside)
        raise
    finally:
        os.close(new)
