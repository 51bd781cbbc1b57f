"""A table of contents at the head of a segment (K9): what is where, by number.

Owns: the layout of the table. Must not know: what the entries are. Invariant: whatever others have
written there, no region that it gives out reaches beyond the segment.

Layout, in words of 8 bytes: magic, version, size, allocated (from the end), number of entries; then
three words an entry: key, offset, size.
"""

from posthouse.errors import UsageError
from posthouse.shmem.segments import Region
from posthouse.shmem.wrong import Corrupt, NoMemory

__all__ = ["Toc"]

_VERSION = 1
_HEAD_WORDS = 5
_ENTRY_WORDS = 3
_ALIGN = 64  # of what is allocated: a cache line
_WORD_MAX = 2**64 - 1


class Toc:
    """`Toc.create` once, by whoever makes the segment; `Toc.attach` by the others."""

    def __init__(self, region: Region) -> None:
        self._region = region
        usable = region.size & ~7
        self._words = region.view()[:usable].cast("Q")

    @classmethod
    def create(cls, magic: int, region: Region) -> "Toc":
        """Lay out an empty table over the region. Raises UsageError."""
        if not 0 < magic <= _WORD_MAX:
            raise UsageError(f"magic is {magic}: must be 1 to {_WORD_MAX}")
        if region.size < 8 * _HEAD_WORDS:
            raise UsageError(f"a table of contents needs {8 * _HEAD_WORDS} bytes at least")
        toc = cls(region)
        words = toc._words
        words[1], words[2], words[3], words[4] = _VERSION, region.size, 0, 0
        words[0] = magic  # last: before, it is none
        return toc

    @classmethod
    def attach(cls, magic: int, region: Region) -> "Toc | None":
        """The table in it; None if it has another magic. Raises Corrupt."""
        if region.size < 8 * _HEAD_WORDS:
            return None
        toc = cls(region)
        if toc._words[0] != magic:
            return None
        version, size = toc._words[1], toc._words[2]
        if version != _VERSION:
            raise Corrupt(f"a table of contents of version {version}")
        if size > region.size:
            raise Corrupt(f"a table of contents of {size} bytes in {region.size}")
        return toc

    def allocate(self, size: int) -> Region:
        """Room for something, from the end; there is no way back. One process at a time may
        allocate and insert: the maker, or whoever holds a lock for it. Raises NoMemory."""
        if type(size) is not int or size <= 0:
            raise UsageError(f"size is {size!r}: must be 1 or more bytes")
        taken = self._taken() + (size + _ALIGN - 1) // _ALIGN * _ALIGN
        offset = (self._region.size - taken) // _ALIGN * _ALIGN
        if offset < self._end_of(self._count()):
            raise NoMemory(f"no room for {size} bytes in this segment")
        self._words[3] = self._region.size - offset
        return Region(self._region.segment, self._region.offset + offset, size)

    def insert(self, key: int, region: Region) -> None:
        """List it. Of two entries of one key the first is found. Raises NoMemory."""
        if not 0 <= key <= _WORD_MAX:
            raise UsageError(f"key is {key}: must be 0 to {_WORD_MAX}")
        offset = region.offset - self._region.offset
        if region.segment is not self._region.segment or not 0 <= offset <= self._region.size:
            raise UsageError("the region is none of this table's")
        count = self._count()
        if self._end_of(count + 1) > self._region.size - self._taken():
            raise NoMemory("no room for another entry in this table of contents")
        at = _HEAD_WORDS + count * _ENTRY_WORDS
        self._words[at], self._words[at + 1], self._words[at + 2] = key, offset, region.size
        self._words[4] = count + 1  # last: a reader without a lock sees whole entries only

    def lookup(self, key: int, *, missing_ok: bool = False) -> Region | None:
        """What was listed under the key. Raises UsageError if nothing was, unless `missing_ok`;
        Corrupt."""
        for number in range(self._count()):
            at = _HEAD_WORDS + number * _ENTRY_WORDS
            if self._words[at] == key:
                offset, size = self._words[at + 1], self._words[at + 2]
                if offset + size > self._region.size:
                    raise Corrupt(f"entry {key} of a table of contents is beyond its segment")
                return Region(self._region.segment, self._region.offset + offset, size)
        if missing_ok:
            return None
        raise UsageError(f"could not find key {key} in the table of contents")

    def _count(self) -> int:
        count = self._words[4]
        if self._end_of(count) > self._region.size:
            raise Corrupt(f"a table of contents with {count} entries")
        return count

    def _taken(self) -> int:
        taken = self._words[3]
        if taken > self._region.size:
            raise Corrupt(f"a table of contents with {taken} bytes allocated")
        return taken

    @staticmethod
    def _end_of(count: int) -> int:
        return 8 * (_HEAD_WORDS + _ENTRY_WORDS * count)
