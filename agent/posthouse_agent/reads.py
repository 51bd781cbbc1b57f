"""CORE: what was asked for in this session and is being read: pages of output, stacks.

Owns: the numbers of reads. Must not know: files, processes, sessions beyond their end.
Invariant: an answer reaches only the session in which it was asked for, and no more than
limits.log_reads_in_flight_max reads and limits.stack_reads_max dumps are under way for it.
"""

from collections.abc import Iterable

from posthouse import limits
from posthouse.messages import DumpStacks, HostTold, LogChunk, Measure, ReadLog, Running
from posthouse_agent.effects import (
    LogRead,
    MeasureUse,
    ReadLogFile,
    StacksTaken,
    TakeStacks,
    UseMeasured,
)

__all__ = ["Reads"]


class Reads:
    """READ_LOG in, ReadLogFile out; LogRead in, LOG_CHUNK out. The same for stacks."""

    def __init__(self) -> None:
        self._asked: dict[int, int] = {}  # number of a file read -> the master's number
        self._dumps: dict[int, int] = {}  # ditto
        self._begun = 0  # over all sessions: a late answer of an older one finds nobody

    def ask(self, read: ReadLog) -> ReadLogFile | LogChunk:
        """The read to be done, or the answer that there are too many."""
        if len(self._asked) >= limits.log_reads_in_flight_max:
            error = f"{limits.log_reads_in_flight_max} reads are under way on this host: ask again"
            return LogChunk(read=read.read, offset=max(read.offset, 0), error=error)
        self._begun += 1
        self._asked[self._begun] = read.read
        return ReadLogFile(self._begun, read.slot, read.generation, read.offset, read.limit)

    def ask_stacks(self, dump: DumpStacks, worker: Running | None) -> TakeStacks | HostTold:
        """What is to be done, or the answer already."""
        if worker is None:
            return HostTold(read=dump.read, error="it has no process here any more")
        if len(self._dumps) >= limits.stack_reads_max:
            error = f"{limits.stack_reads_max} dumps are under way on this host: ask again"
            return HostTold(read=dump.read, error=error)
        self._begun += 1
        self._dumps[self._begun] = dump.read
        return TakeStacks(self._begun, worker.pid, worker.pid_start)

    def ask_use(self, asked: Measure, workers: Iterable[Running]) -> MeasureUse | HostTold:
        """The same for what is used: the workers after a token, as many as a page takes."""
        if len(self._dumps) >= limits.stack_reads_max:
            error = f"{limits.stack_reads_max} looks are under way on this host: ask again"
            return HostTold(read=asked.read, error=error)
        left = sorted((w for w in workers if w.token > asked.after), key=lambda w: w.token)
        self._begun += 1
        self._dumps[self._begun] = asked.read
        return MeasureUse(self._begun, tuple(left[: asked.limit]), len(left) > asked.limit)

    def done(self, read: LogRead | StacksTaken | UseMeasured) -> LogChunk | HostTold | None:
        """What to tell the master, if it is still the one that asked."""
        if isinstance(read, UseMeasured):
            number = self._dumps.pop(read.read, None)
            if number is None:
                return None
            return HostTold(read=number, host=read.host, workers=list(read.workers), more=read.more)
        if isinstance(read, StacksTaken):
            dump = self._dumps.pop(read.read, None)
            error = read.error[: limits.wide_text_bytes_max]
            return None if dump is None else HostTold(read=dump, text=read.text, error=error)
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
        self._dumps.clear()
