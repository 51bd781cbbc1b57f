"""Segments: memory that several workers of one host have at the same time (K1-K8).

Owns: the mappings of this process, their detach callbacks. Must not know: locks, queues. Invariant:
a segment's size is the kernel's word and cannot change (it is sealed), so no view of it ever ends
in a bus error; all of its memory is taken before the maker has it, so nor does a full host.
"""

import fcntl
import mmap
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from posthouse import limits, worker
from posthouse.errors import UsageError
from posthouse.shmem.line import line
from posthouse.shmem.wrong import Corrupt, NoMemory

__all__ = [
    "Region",
    "Segment",
    "attach",
    "create",
    "epoch",
    "find",
    "init_struct",
    "named",
    "unpin",
]

_SEALED: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_mapped: Final[dict[int, "Segment"]] = {}  # by handle
_mutex: Final = threading.RLock()


class _Mine:
    """What the first segment brings along."""

    locks_fd = -1
    epoch = 0


class Segment(mmap.mmap):
    """A mapped segment: bytes that others may change at any time. It is a buffer: memoryview(it),
    numpy.frombuffer(it), slices. `handle` names it, until its crash domain is reset."""

    number: int
    handle: int
    name: str
    epoch: int
    _callbacks: list[Callable[["Segment"], object]]

    def begin(self, answer: dict[str, Any], name: str) -> None:
        """Once, by this module."""
        self.number, self.handle = int(answer["number"]), int(answer["handle"])
        self.name, self.epoch, self._callbacks = name, int(answer["epoch"]), []

    def __repr__(self) -> str:
        return f"<Segment {self.name or self.handle} epoch={self.epoch}>"

    def __exit__(self, *_: object) -> None:
        self.detach()

    def region(self, offset: int = 0, size: int | None = None) -> "Region":
        """A part of it. Raises UsageError if that is not inside."""
        whole = len(self)
        size = whole - offset if size is None else size
        if offset < 0 or size < 0 or offset + size > whole:
            raise UsageError(f"bytes {offset} to {offset + size} of a segment of {whole} bytes")
        return Region(self, offset, size)

    def on_detach(self, callback: Callable[["Segment"], object]) -> None:
        """Call it before the memory is unmapped, last registered first; also on the way out of the
        worker, after an error too, but not when it is killed (K7)."""
        if len(self._callbacks) >= limits.segment_seats_max:
            raise UsageError(f"at most {limits.segment_seats_max} detach callbacks")
        self._callbacks.append(callback)

    def cancel_on_detach(self, callback: Callable[["Segment"], object]) -> None:
        """Take a callback back; nothing happens if it is not registered."""
        with suppress(ValueError):
            self._callbacks.remove(callback)

    def pin(self) -> None:
        """Keep it when nobody has it attached. Raises RefusedError if it is pinned."""
        line().ask("pin", number=self.number)

    def unpin(self) -> None:
        """Take that back. Raises RefusedError if it is not pinned."""
        line().ask("unpin", number=self.number)

    def detach(self) -> None:
        """Run the detach callbacks and unmap it. Views that are left keep their memory alive."""
        with _mutex:
            if _mapped.get(self.handle) is not self:
                return
            try:
                while self._callbacks:
                    self._callbacks.pop()(self)
            finally:
                del _mapped[self.handle]
                with suppress(BufferError):
                    self.close()
                line().tell("detach", number=self.number)


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a segment: what a queue or a table of contents is laid out in."""

    segment: Segment
    offset: int
    size: int

    def view(self) -> memoryview:
        return memoryview(self.segment)[self.offset : self.offset + self.size]


def init_struct(name: str, size: int, *, timeout: float = 10.0) -> tuple[Segment, bool]:
    """The structure of that name in this crash domain, made of zeros if it was not there (found is
    False: fill it in) [ShmemInitStruct]. Raises SizeMismatch, TooMany, NoMemory."""
    return _named("struct", name, size, None, timeout)


def named(
    name: str,
    size: int,
    init: Callable[[Segment], object] | None = None,
    *,
    timeout: float = 10.0,
) -> tuple[Segment, bool]:
    """A segment by name; whoever makes it runs `init` on it, once, and others wait for that
    [GetNamedDSMSegment]. If `init` fails, the next one who asks is the maker."""
    return _named("dsm", name, size, init, timeout)


def create(size: int, *, timeout: float = 10.0) -> Segment:
    """New memory of zeros, for whoever is told its handle [dsm_create]. It goes with the last one
    who has it attached, unless it is pinned. Raises TooMany, NoMemory."""
    _check_size(size)
    answer, fds = line().ask("create", timeout, size=size)
    return _make(answer, fds, "", None)


def attach(handle: int, *, timeout: float = 10.0) -> Segment | None:
    """The segment of that handle; None if it is gone, or was never one of this crash domain of
    this host [dsm_attach]. Raises UsageError if it is attached already."""
    if type(handle) is not int:
        raise UsageError(f"handle is {handle!r}: must be the number of a segment")
    with _mutex:
        if handle in _mapped:
            raise UsageError(f"segment {handle} is attached already", hint="shmem.find(handle)")
        if not 0 < handle < 2**63:
            return None
        answer, fds = line().ask("attach", timeout, handle=handle)
        return _found(answer, fds, "") if answer.get("number") else None


def find(handle: int) -> Segment | None:
    """The mapping that this process has of it [dsm_find_mapping]."""
    return _mapped.get(handle)


def unpin(handle: int, *, timeout: float = 10.0) -> None:
    """Unpin a segment that need not be attached. Raises RefusedError if it is not pinned."""
    line().ask("unpin", timeout, handle=handle)


def epoch() -> int:
    """Of this worker's crash domain, as of its first segment; 0 before it has one."""
    return _Mine.epoch


def locks_fd() -> int:
    """The file that the locks of this crash domain are kept on. One descriptor, never closed: to
    close any of them would drop all locks of this process."""
    with _mutex:
        if _Mine.locks_fd == -1:
            _, (_Mine.locks_fd,) = line().ask("locks")
        return _Mine.locks_fd


# --- inside ---


def _named(
    kind: str,
    name: str,
    size: int,
    init: Callable[[Segment], object] | None,
    timeout: float,
) -> tuple[Segment, bool]:
    _check_size(size)
    shown = isinstance(name, str) and name.isprintable()
    if not shown or not 0 < len(name.encode()) <= limits.segment_name_bytes_max:
        most = limits.segment_name_bytes_max
        raise UsageError(f"name is {name!r}: must be 1 to {most} bytes of printable text")
    key = f"{kind}:{name}"
    with _mutex:
        for known in _mapped.values():
            if known.name == key:
                if len(known) != size:
                    raise UsageError(f"{name!r} has {len(known)} bytes here, not {size}")
                return known, True
        answer, fds = line().ask("named", timeout, key=key, size=size)
        if answer.get("found"):
            return _found(answer, fds, key), True
        return _make(answer, fds, key, init), False


def _check_size(size: int) -> None:
    if type(size) is not int or not 0 < size <= limits.segment_bytes_max:
        raise UsageError(f"size is {size!r}: must be 1 to {limits.segment_bytes_max} bytes")


def _make(
    answer: dict[str, Any],
    fds: tuple[int, ...],
    name: str,
    init: Callable[[Segment], object] | None,
) -> Segment:
    """Take all of its memory, fill it, and let others have it."""
    number = answer["number"]
    segment = None
    try:
        segment = _map(answer, fds, name, reserve=True)
        if init is not None:
            init(segment)
    except BaseException:
        line().ask("failed", number=number)
        if segment is not None:
            _mapped.pop(segment.handle, None)
            with suppress(BufferError):
                segment.close()
        raise
    line().ask("made", number=number)
    return segment


def _reserve(fd: int, size: int, shown: str) -> None:
    """All of its pages, now and on this worker's account. Raises NoMemory."""
    with open("/proc/meminfo", encoding="ascii") as table:
        fields = {row.partition(":")[0]: row.split()[1] for row in table}
    available = int(fields.get("MemAvailable", "0")) * 1024
    if size > available:
        raise NoMemory(f"no memory for {shown}: {available} bytes are available")
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        raise NoMemory(f"no memory for {shown}: {error.strerror}") from None


def _found(answer: dict[str, Any], fds: tuple[int, ...], name: str) -> Segment:
    """Map what others have made. Raises NoMemory; then this worker does not have it."""
    try:
        return _map(answer, fds, name)
    except BaseException:
        line().tell("detach", number=answer["number"])
        raise


def _map(
    answer: dict[str, Any], fds: tuple[int, ...], name: str, *, reserve: bool = False
) -> Segment:
    what = f"segment {name.partition(':')[2]!r}" if name else "a segment"
    shown = f"{what} of {answer['size']} bytes"
    try:
        size = os.fstat(fds[0]).st_size
        if size != answer["size"] or fcntl.fcntl(fds[0], fcntl.F_GET_SEALS) & _SEALED != _SEALED:
            raise Corrupt("a segment's file has not the size that was told, or is not sealed")
        try:
            segment = Segment(fds[0], size)
        except OSError as error:  # of addresses, and for the table of pages
            raise NoMemory(f"no memory to map {shown}: {error.strerror}") from None
        if reserve:
            try:
                _reserve(fds[0], size, shown)
            except NoMemory:
                segment.close()
                raise
        segment.begin(answer, name)
        _Mine.epoch = segment.epoch
        worker.interrupts.leave = leave
    finally:
        for fd in fds:
            os.close(fd)
    _mapped[segment.handle] = segment
    return segment


_leavers: Final[list[Callable[[], object]]] = []


def leave(*, locks: bool) -> None:
    """On the way out of the worker (W6): locks first, and later all segments, last one first."""
    if locks:
        for leaver in _leavers:
            leaver()
        return
    while _mapped:
        next(reversed(_mapped.values())).detach()


def on_leave(leaver: Callable[[], object]) -> None:
    """For posthouse.shmem.locks."""
    if leaver not in _leavers:
        _leavers.append(leaver)
