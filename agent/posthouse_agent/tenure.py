"""CORE: how long a fenced warden may keep workers without a word of the master.

Owns: the lease as it was granted last, when a worker is told to leave because of it, when starts
are over. Must not know: workers, signals, the timer of the kernel that ends what is left.

Invariant: the newest renewal counts, older ones change nothing; and within `ahead` of the deadline
nothing is started, so that what the kernel finds there is at most what could not be ended before.
"""

from posthouse import limits

__all__ = ["Tenure"]


class Tenure:
    """No deadline, until one is given."""

    def __init__(self) -> None:
        self.stamp = 0  # of the renewal that counts
        self.deadline_s = 0.0  # 0: none
        self.over = False  # the last moment for starts has passed; a renewal opens it again
        self._length_s = 0.0

    def __repr__(self) -> str:
        return f"Tenure(until {self.deadline_s}{' over' * self.over})"

    @staticmethod
    def deadline_of(deadline_us: int, now_s: float) -> float:
        """What a renewal asks for, 0 for none, but never further away than the longest lease."""
        return min(deadline_us / 1e6, now_s + limits.lease_s_max) if deadline_us > 0 else 0.0

    def renew(self, stamp: int, deadline_s: float) -> None:
        """The kernel has this deadline, of the renewal of `stamp`."""
        if stamp < self.stamp:
            return
        self.stamp, self.deadline_s, self.over = stamp, deadline_s, False
        self._length_s = max(0.0, deadline_s - stamp / 1e6)

    @property
    def last_s(self) -> float | None:
        """From then on nothing is started, and whoever is left is killed; None: never."""
        return self.deadline_s - limits.lease_ahead_s if self.deadline_s else None

    def leave_s(self, grace_s: float) -> float | None:
        """When a worker with this grace is told to leave; None: never. One with a longer grace
        than half the lease would be told so while all is well."""
        last_s = self.last_s
        return None if last_s is None else last_s - min(grace_s, self._length_s / 2)

    def ends(self, now_s: float) -> bool:
        """Whether the last moment has come."""
        last_s = self.last_s
        return last_s is not None and now_s >= last_s
