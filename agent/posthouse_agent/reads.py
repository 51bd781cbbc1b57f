"""CORE: pages of output that were asked for in this session and are being read.

Owns: the numbers of reads. Must not know: files, sessions beyond their end.
Invariant: an answer reaches only the session in which it was asked for, and no more than
limits.log_reads_in_flight_max reads are under way for it.
"""

from posthouse import limits
from posthouse.messages import LogChunk, ReadLog
from posthouse_agent.effects import LogRead, ReadLogFile

__all__ = ["LogReads"]


class LogReads:
    """READ_LOG in, ReadLogFile out; LogRead in, LOG_CHUNK out."""

    def __init__(self) -> None:
        self._asked: dict[int, int] = {}  # number of a file read -> the master's number
        self._begun = 0  # over all sessions: a late answer of an older one finds nobody

    def ask(self, read: ReadLog) -> ReadLogFile | LogChunk:
        """The read to be done, or the answer that there are too many."""
        if len(self._asked) >= limits.log_reads_in_flight_max:
            error = f"{limits.log_reads_in_flight_max} reads are under way on this host: ask again"
            return LogChunk(read=read.read, offset=max(read.offset, 0), error=error)
        self._begun += 1
        self._asked[self._begun] = read.read
        return ReadLogFile(self._begun, read.slot, read.generation, read.offset, read.limit)

    def done(self, read: LogRead) -> LogChunk | None:
        """What to tell the master, if it is still the one that asked."""
        asked = self._asked.pop(read.read, None)
        if asked is None:
            return None
        return LogChunk(
            read=asked,
            offset=read.offset,
            data=read.data,
            size=read.size,
            lost=read.lost,
            error=read.error[: limits.wide_text_bytes_max],
        )

    def end(self) -> None:
        """The session is over."""
        self._asked.clear()
