"""CORE: what the handling of one input has led to so far.

Owns: the order of effects within one input. Must not know: what they mean.
Invariant: persist, then reply, then notify; a peer never hears of a change that is not in the ops
before it.
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
        self._replies: list[Send] = []
        self._notices: list[Send] = []
        self._notes: list[Note] = []
        self._halt: Halt | None = None

    def persist(self, op: Op) -> None:
        self.ops.append(op)

    def reply(self, peer: Peer, frame: bytes, *, urgent: bool = False) -> None:
        self._replies.append(Send(peer, frame, urgent))

    def notify(self, peer: Peer, frame: bytes) -> None:
        self._notices.append(Send(peer, frame))

    def note(self, name: str, **fields: object) -> None:
        self._notes.append(Note(name, fields))

    def halt(self, status: int, reason: str) -> None:
        self._halt = self._halt or Halt(status, reason)

    def effects(self) -> list[Effect]:
        found: list[Effect] = [Persist(op) for op in self.ops]
        found += self._replies
        found += self._notices
        found += self._notes
        if self._halt is not None:
            found.append(self._halt)
        return found
