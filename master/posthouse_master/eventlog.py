"""CORE: the life-cycle log: appended, bounded for each stream, read after a cursor.

Owns: which rows exist and which no longer do. Must not know: who reads, what a row leads to.

Invariant: rows are in the order of their sequence without a gap but for trimmed ones, and no reader
passes over one without being told: a registration that is listed knows up to where its rows are
gone, and `dropped_to` stands for all other rows. A stream (one registration, one host) trims only
itself, so a storm of one worker never evicts another worker's terminal event.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from posthouse import limits
from posthouse.records import Event
from posthouse_master.store.base import EventRow

__all__ = ["EventLog", "Page", "Trim", "stream_of"]

_TRIM_SLACK = 16  # rows over the bound before a trim: one delete statement for several rows
_BOUND_MIN = 8  # rows a stream keeps however full the whole log is: a life's worth

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Event)


def stream_of(slot: int, generation: int) -> str:
    """The stream of a registration."""
    return f"{slot}.{generation}"


@dataclass(frozen=True, slots=True)
class Page:
    """Rows in order; everything that matches up to `sequence` is in this page or before it."""

    events: list[Event]
    sequence: int


@dataclass(frozen=True, slots=True)
class Trim:
    """Rows of a registration up to `sequence` are no longer kept. `number` counts trims of all."""

    slot: int
    generation: int
    sequence: int
    number: int


@dataclass(slots=True)
class _Stream:
    sequences: list[int] = field(default_factory=list)
    trimmed_to: int = 0


class EventLog:
    """All rows, packed, in memory; the store has the same rows."""

    def __init__(self, timeline: int, sequence: int, trimmed_to: int, dropped_to: int = 0) -> None:
        self.timeline = timeline
        self.sequence = sequence  # of the newest row, ever
        self.trimmed_to = trimmed_to  # of the newest row that is no longer kept, in any stream
        self.dropped_to = dropped_to  # of the newest one that no `Trim` tells of
        self.trims = 0  # so far, in this term
        self._trims: dict[str, Trim] = {}  # of registrations that are listed, newest last
        self._rows: dict[int, bytes] = {}
        self._streams: dict[str, _Stream] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"EventLog({self.timeline}/{self.sequence}, {len(self._rows)} rows)"

    def restore(self, row: EventRow) -> None:
        """Take a row back from the store; rows come by sequence."""
        self._rows[row.sequence] = row.body
        self._streams.setdefault(row.stream, _Stream()).sequences.append(row.sequence)

    def restore_trim(self, stream: str, trimmed_to: int) -> None:
        if trimmed_to:
            self._streams.setdefault(stream, _Stream()).trimmed_to = trimmed_to
            self._tell(stream, trimmed_to)

    def append(self, stream: str, event: Event) -> EventRow:
        """Add a row; the event carries the sequence that `next_sequence` told."""
        assert event.sequence == self.sequence + 1
        self.sequence = event.sequence
        row = EventRow(sequence=event.sequence, stream=stream, body=_encoder.encode(event))
        self._rows[row.sequence] = row.body
        self._streams.setdefault(stream, _Stream()).sequences.append(row.sequence)
        return row

    def overflow(self, stream: str) -> tuple[int, ...]:
        """Trim the stream to its bound; the sequences that went."""
        kept = self._streams[stream].sequences
        bound = limits.events_per_registration_max
        if len(self._rows) > limits.events_total_max:
            bound = max(_BOUND_MIN, limits.events_total_max // len(self._streams))
        if len(kept) <= bound + _TRIM_SLACK:
            return ()
        return self._trim(stream, len(kept) - bound)

    def drop(self, stream: str) -> tuple[int, ...]:
        """Forget a stream with all its rows; the sequences that went."""
        if stream not in self._streams:
            return ()
        gone = self._trim(stream, len(self._streams[stream].sequences))
        self.dropped_to = max(self.dropped_to, self._streams[stream].trimmed_to)
        del self._streams[stream]
        self._trims.pop(stream, None)
        return gone

    def trimmed_in(self, stream: str | None) -> int:
        """The newest row that a reader of one stream, or of all, cannot be told of as missing."""
        if stream is None:
            return self.dropped_to
        found = self._streams.get(stream)
        return found.trimmed_to if found else self.sequence

    def trims_since(self, number: int, after: int) -> list[Trim]:
        """Trims after the one of that number, of rows after a place."""
        found: list[Trim] = []
        for trim in reversed(self._trims.values()):
            if trim.number <= number:
                break
            if trim.sequence > after:
                found.append(trim)
        return found

    def last_of(self, stream: str) -> int:
        """The newest row of the stream; 0 if it has none."""
        found = self._streams.get(stream)
        return found.sequences[-1] if found and found.sequences else 0

    def read(self, after: int, stream: str | None, count: int, bytes_max: int) -> Page:
        """Up to `count` rows after a place, of one stream or of all, within `bytes_max`."""
        events: list[Event] = []
        size = 0
        for sequence in self._after(after, stream):
            body = self._rows.get(sequence)
            if body is None:
                continue
            size += len(body)
            if len(events) == count or (events and size > bytes_max):
                return Page(events, events[-1].sequence if events else after)
            events.append(self._event(body))
        return Page(events, self.sequence)

    def _event(self, body: bytes) -> Event:
        """A timeline has the history from which it was begun as its own: one order of cursors."""
        event = _decoder.decode(body)
        if event.timeline != self.timeline:
            event = msgspec.structs.replace(event, timeline=self.timeline)
        return event

    def _after(self, after: int, stream: str | None) -> Iterator[int]:
        if stream is None:
            return iter(range(after + 1, self.sequence + 1))
        found = self._streams.get(stream)
        kept = found.sequences if found else []
        return iter(kept[bisect_right(kept, after) :])

    def _trim(self, stream: str, count: int) -> tuple[int, ...]:
        found = self._streams[stream]
        gone = tuple(found.sequences[:count])
        del found.sequences[:count]
        for sequence in gone:
            del self._rows[sequence]
        if gone:
            found.trimmed_to = gone[-1]
            self.trimmed_to = max(self.trimmed_to, gone[-1])
            self._tell(stream, gone[-1])
        return gone

    def _tell(self, stream: str, trimmed_to: int) -> None:
        """Readers of everything are to be told. Only a registration keeps over a restart up to
        where its rows are gone."""
        slot, dot, generation = stream.partition(".")
        if not (dot and slot.isdecimal() and generation.isdecimal()):
            self.dropped_to = max(self.dropped_to, trimmed_to)
            return
        self.trims += 1
        self._trims.pop(stream, None)
        self._trims[stream] = Trim(int(slot), int(generation), trimmed_to, self.trims)
