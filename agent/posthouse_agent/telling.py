"""CORE: what waits to be told to the master in this session, and which exits it carries.

Owns: the queue in front of the link, the way from an acknowledged frame to the exits in it. Must
not know: what the messages mean otherwise, wardens.
Invariant: a token comes out of `acknowledged` only if the master has acknowledged the very frame
that carried its exit, in the session in which it was sent.
"""

from collections import deque

from posthouse import limits
from posthouse.dial import Dialler, Transmit
from posthouse.messages import Inventory, Message

__all__ = ["Telling"]


class Telling:
    """First in, first out. Nothing raises LinkFull: what finds no room waits here."""

    def __init__(self) -> None:
        self._queue: deque[tuple[Message, list[int]]] = deque()
        self._carried: deque[tuple[int, list[int]]] = deque()  # sequence -> exits in that frame
        self._pages = 0  # of the inventory: the session's first sequence numbers
        self._progress = 0  # of them, acknowledged

    def begin(self, pages: list[tuple[Inventory, list[int]]]) -> None:
        """A session is open, and these are the first things said in it."""
        self._queue.extend(pages)
        self._pages = len(pages)

    def end(self) -> None:
        """The session is over, with everything that was not sent or not acknowledged."""
        self._queue.clear()
        self._carried.clear()
        self._pages = self._progress = 0

    @property
    def told(self) -> bool:
        """Whether the master has acknowledged the whole inventory of this session."""
        return 0 < self._pages <= self._progress

    def add(self, message: Message, carries: list[int]) -> None:
        self._queue.append((message, carries))

    def pump(self, dialler: Dialler, now_s: float) -> list[Transmit]:
        """Frames for which the link has room."""
        link = dialler.link
        frames: list[Transmit] = []
        while self._queue and link is not None and link.room > limits.link_room_kept:
            message, carries = self._queue.popleft()
            frames.append(dialler.send(message, now_s))
            if carries:
                self._carried.append((link.sent, carries))
        return frames

    def acknowledged(self, dialler: Dialler, now_s: float) -> list[int]:
        """Tokens of exits that the master has now. Progress of the inventory counts as a sign of
        life, because it is answered by nothing else before its last page."""
        link = dialler.link
        if link is None:
            return []
        if self._progress < min(link.acknowledged, self._pages):
            self._progress = min(link.acknowledged, self._pages)
            dialler.extend(now_s)
        tokens: list[int] = []
        while self._carried and self._carried[0][0] <= link.acknowledged:
            tokens += self._carried.popleft()[1]
        return tokens
