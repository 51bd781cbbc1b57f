"""What the master's shell counts while it works. One writer, the loop; readers take what is there.

Owns: counts of frames, commits and notifications of this process. Must not know: HTTP, the core.
Invariant: counting costs an addition; nothing here grows with time.
"""

from bisect import bisect_left
from collections import Counter
from typing import Final

from posthouse.messages import KINDS

__all__ = ["BOUNDS_S", "Durations", "Meter"]

BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_OTHER: Final = "other"
_NAMES: Final = {kind: cls.__name__ for kind, cls in KINDS.items()}


class Durations:
    """A histogram: how many took at most each bound, how many in all, and their sum."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds


class Meter:
    """Everything that the loop counts."""

    def __init__(self) -> None:
        self.frames: Counter[tuple[str, str]] = Counter()
        self.commits = Durations()
        self.notifications = Durations()

    def frame(self, direction: str, frame: bytes) -> None:
        """Count a frame by its kind: the second byte, as a frame is an array of six."""
        kind = frame[1] if len(frame) > 1 else 0
        self.frames[direction, _NAMES.get(kind, _OTHER)] += 1
