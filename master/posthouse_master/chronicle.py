"""CORE: rows of the event log: who they are about, what is kept of them, who is told.

Owns: the identity that every row of a registration carries, the streams whose bounds they count
for. Must not know: why something happened.

Invariant: a row, and the loss of an old one that it leads to, are in the same transaction as what
it tells of.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from posthouse.records import Event, ExitFacts
from posthouse.states import EventKind
from posthouse_master.eventlog import EventLog
from posthouse_master.notify import Watchers
from posthouse_master.registry import Registration, Registry
from posthouse_master.store.base import PutEvent, TrimEvents
from posthouse_master.turn import Turn

__all__ = ["CLUSTER_STREAM", "Chronicle", "host_stream", "pack_facts", "unpack_facts"]

CLUSTER_STREAM: Final = "cluster"

pack_facts = msgspec.msgpack.Encoder().encode
unpack_facts = msgspec.msgpack.Decoder(ExitFacts).decode


def host_stream(host: str) -> str:
    return f"host:{host}"


class Chronicle:
    """Writes the rows."""

    def __init__(self, registry: Registry, log: EventLog, watchers: Watchers) -> None:
        self._registry = registry
        self._log = log
        self._watchers = watchers
        self.on_row: Callable[[Turn, EventKind, Registration], None] | None = None

    @property
    def next_sequence(self) -> int:
        """Of the row that is written next."""
        return self._log.sequence + 1

    def record(
        self,
        turn: Turn,
        kind: EventKind,
        registration: Registration | None = None,
        *,
        stream: str = CLUSTER_STREAM,
        **values: Any,
    ) -> Event:
        """Append a row. Rows of a registration carry its identity, place and incarnation."""
        if registration is not None:
            stream = registration.stream
            identity = {
                "registry": self._registry.identity,
                "slot": registration.slot,
                "generation": registration.generation,
                "name": registration.name,
                "host": registration.host,
                "revision": registration.revision,
                "incarnation": registration.incarnation or None,
                "token": registration.token or None,
            }
            values = identity | values
        event = Event(
            timeline=self._log.timeline,
            sequence=self.next_sequence,
            kind=kind,
            at_unix_s=turn.now.unix_s,
            **values,
        )
        turn.persist(PutEvent(self._log.append(stream, event)))
        gone = self._log.overflow(stream)
        if gone:
            turn.persist(TrimEvents(gone))
            if registration is not None:
                registration.trimmed_to = gone[-1]
                self._registry.changed[registration.key] = registration
        self._watchers.grown(stream)
        if registration is not None and self.on_row is not None:
            self.on_row(turn, kind, registration)
        return event

    def only_lost(self, registration: Registration, token: int, host: str) -> bool:
        """Whether all that is told of this incarnation's end is that this host was lost."""
        page = self._log.read(0, registration.stream, self._log.sequence, 2**62)
        rows = [event for event in page.events if event.token == token and event.host == host]
        ends = [event.exit for event in rows if event.kind is EventKind.EXITED]
        amended = any(event.kind is EventKind.EXIT_AMENDED for event in rows)
        return not amended and [end and end.cause for end in ends] == ["host_lost"]

    def forget(self, turn: Turn, registration: Registration) -> None:
        """The registration is no longer listed: its rows go with it."""
        last = self._log.last_of(registration.stream)
        gone = self._log.drop(registration.stream)
        if gone:
            turn.persist(TrimEvents(gone))
        self._watchers.forgotten(registration.stream, last)
