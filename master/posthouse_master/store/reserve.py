"""Room on the registry's disk: how much there is, and some that is kept for the day it is full.

Owns: the file registry.reserve, the look at the free space. Must not know: what is written there.

Invariant: `look` answers AMPLE only while the reserve is held. A reserve that was spent is made
again only where there is room for it and as much again, so a full disk is not taken for one that
has room because the reserve has just been given up. A quota counts here too: the room is tried.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from posthouse import limits
from posthouse_master.effects import Room, Space

__all__ = ["Reserve"]

_FILE: Final = "registry.reserve"
_PROBE_S_MIN: Final = 1.0


class Reserve:
    """One folder's. The folder's lock is held by whoever makes one."""

    def __init__(self, state_dir: str | Path) -> None:
        self._folder = Path(state_dir)
        self._file = self._folder / _FILE
        self._room = Room.AMPLE
        self._held = self._is_whole()
        self._looked_s = float("-inf")
        self._probe_s = float("-inf")  # not tried again before
        self._pause_s = _PROBE_S_MIN

    def look(self, now_s: float) -> Space | None:
        """How the disk is, if it is time to look and there is something to be told."""
        if now_s < self._looked_s + limits.disk_look_s:
            return None
        self._looked_s = now_s
        free = self.free_bytes
        if not self._held and now_s >= self._probe_s:
            self._hold(now_s, free)
        before, self._room = self._room, self._judge(free)
        if self._room is before is Room.AMPLE:
            return None
        return Space(self._room, str(self._folder), free)

    def spend(self) -> bool:
        """Give the reserve up; False if there is none. What failed for want of room may be tried
        once more."""
        held, self._held = self._held, False
        self._looked_s = float("-inf")
        with suppress(OSError):
            self._file.unlink(missing_ok=True)
        return held

    @property
    def free_bytes(self) -> int:
        """As the file system tells it; 0 if it cannot be asked."""
        try:
            found = os.statvfs(self._folder)
        except OSError:
            return 0
        return found.f_bavail * found.f_frsize

    def _judge(self, free: int) -> Room:
        # Back over a bound only with twice the room, so that it is not crossed at every look.
        if self._held:
            bound = limits.disk_low_bytes * (1 if self._room is Room.AMPLE else 2)
            return Room.AMPLE if free >= bound else Room.LOW
        bound = limits.disk_none_bytes * (2 if self._room is Room.NONE else 1)
        return Room.LOW if free >= bound else Room.NONE

    def _hold(self, now_s: float, free: int) -> None:
        wanted = limits.reserve_bytes + 2 * limits.disk_low_bytes
        if free < wanted:
            return
        try:
            descriptor = os.open(
                self._file, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            try:
                os.posix_fallocate(descriptor, 0, wanted)
                os.ftruncate(descriptor, limits.reserve_bytes)
            finally:
                os.close(descriptor)
        except OSError:
            with suppress(OSError):
                self._file.unlink(missing_ok=True)
            self._probe_s = now_s + self._pause_s
            self._pause_s = min(self._pause_s * 2, limits.disk_probe_s_max)
            return
        self._held, self._pause_s = True, _PROBE_S_MIN

    def _is_whole(self) -> bool:
        try:
            found = self._file.lstat()
        except OSError:
            return False
        return found.st_size >= limits.reserve_bytes and found.st_blocks * 512 >= found.st_size
