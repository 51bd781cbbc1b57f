"""CORE: what is due when.

Owns: one due time for each key. Must not know: what a key stands for, clocks.
Invariant: `pop` never gives a key before its time, and setting a key again replaces its time.
"""

from collections.abc import Hashable, Iterator
from heapq import heappop, heappush
from typing import Generic, TypeVar

__all__ = ["Timers"]

Key = TypeVar("Key", bound=Hashable)


class Timers(Generic[Key]):
    """A heap of due times with one entry a key at most in force."""

    def __init__(self) -> None:
        self._due: dict[Key, float] = {}
        self._queued: dict[Key, float] = {}  # the earliest heap entry of the key
        self._heap: list[tuple[float, int, Key]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._due)

    def __repr__(self) -> str:
        return f"Timers({len(self._due)} due, next {self.wake_s})"

    def set(self, key: Key, due_s: float) -> None:
        """`key` is due at `due_s`, and not at any time it was given before."""
        self._due[key] = due_s
        # A later time is only noted: the entry in the heap is moved when it comes up. So a
        # silence timer that every frame puts off costs no heap operation.
        queued = self._queued.get(key)
        if queued is None or due_s < queued:
            self._push(key, due_s)

    def cancel(self, key: Key) -> None:
        self._due.pop(key, None)

    def due_of(self, key: Key) -> float | None:
        return self._due.get(key)

    @property
    def wake_s(self) -> float | None:
        """When something may be due; it may turn out that it was put off."""
        return self._heap[0][0] if self._heap else None

    def pop(self, now_s: float) -> Iterator[Key]:
        """Every key whose time has come, earliest first; each is forgotten as it is given."""
        while self._heap and self._heap[0][0] <= now_s:
            at_s, _, key = heappop(self._heap)
            if self._queued.get(key) != at_s:
                continue  # an earlier entry took its place
            del self._queued[key]
            due_s = self._due.get(key)
            if due_s is None:
                continue
            if due_s > at_s:
                self._push(key, due_s)
                continue
            del self._due[key]
            yield key

    def _push(self, key: Key, due_s: float) -> None:
        self._count += 1  # breaks ties: first come, first served
        self._queued[key] = due_s
        heappush(self._heap, (due_s, self._count, key))
