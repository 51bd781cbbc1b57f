"""CORE: what the handling of one input has led to so far.

Owns: the order of effects within one input. Must not know: what they mean.
Invariant: ops come before every frame, so a peer never hears of what is not durable; frames leave
in the order in which their links numbered them. Notifications come last because the core serves
watchers last.
"""

from posthouse.ids import Instant
from posthouse_master.effects import Effect, Halt, Note, Peer, Persist, Send
from posthouse_master.store.base import Op

__all__ = ["Turn"]


class Turn:
    """Collects; `effects` gives everything in the order of the contract."""

    def __init__(self, now: Instant) -> None:
        self.now = now
        self.ops: list[Op] = []
        self.broken: list[tuple[bytes, str]] = []  # sessions that have to end, and why
        self.goodbye = ""  # why the process ends, to be told to everybody when all else is said
        self._sends: list[Send] = []
        self._notes: list[Note] = []
        self._halt: Halt | None = None

    def persist(self, op: Op) -> None:
        self.ops.append(op)

    def send(self, peer: Peer, frame: bytes, *, urgent: bool = False) -> None:
        self._sends.append(Send(peer, frame, urgent))

    def note(self, name: str, **fields: object) -> None:
        self._notes.append(Note(name, fields))

    @property
    def halted(self) -> bool:
        return self._halt is not None

    def halt(self, status: int, reason: str) -> None:
        self._halt = self._halt or Halt(status, reason)

    def effects(self) -> list[Effect]:
        found: list[Effect] = [Persist(op) for op in self.ops]
        found += self._sends
        found += self._notes
        if self._halt is not None:
            found.append(self._halt)
        return found
