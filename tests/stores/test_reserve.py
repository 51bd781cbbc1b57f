"""The reserve: how a disk is judged, and when the reserve is made, spent and made again."""

import errno
import os
from itertools import pairwise

import pytest

from posthouse import limits
from posthouse_master.effects import Room
from posthouse_master.store.reserve import Reserve

RESERVE, LOW, NONE = 64 * 1024, 16 * 1024, 8 * 1024
WANTED = RESERVE + 2 * LOW


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A disk whose free space is what the test says; files are real."""

    class Disk:
        free = 10**9
        folder = tmp_path
        now_s = 100.0

        def look(self, reserve: Reserve, after_s: float = 1.0) -> Room | None:
            self.now_s += after_s
            space = reserve.look(self.now_s)
            return space.room if space is not None else None

    disk = Disk()
    monkeypatch.setattr(limits, "reserve_bytes", RESERVE)
    monkeypatch.setattr(limits, "disk_low_bytes", LOW)
    monkeypatch.setattr(limits, "disk_none_bytes", NONE)
    monkeypatch.setattr(Reserve, "free_bytes", property(lambda _: disk.free))
    return disk


def test_a_disk_with_room_is_told_of_never(disk):
    reserve = Reserve(disk.folder)
    assert [disk.look(reserve) for _ in range(3)] == [None] * 3
    kept = (disk.folder / "registry.reserve").stat()
    assert kept.st_size == RESERVE and kept.st_blocks * 512 >= RESERVE, "it takes real room"


def test_it_is_looked_at_no_more_often_than_it_has_to_be(disk):
    reserve = Reserve(disk.folder)
    disk.look(reserve)
    disk.free = 0
    assert disk.look(reserve, limits.disk_look_s / 2) is None
    assert disk.look(reserve, limits.disk_look_s) is Room.LOW


def test_bounds_are_left_only_with_twice_the_room(disk):
    reserve = Reserve(disk.folder)
    disk.look(reserve)
    told = []
    for free in (LOW, LOW - 1, LOW, 2 * LOW - 1, 2 * LOW, LOW):
        disk.free = free
        told.append(disk.look(reserve))
    assert told == [None, Room.LOW, Room.LOW, Room.LOW, Room.AMPLE, None]


def test_without_the_reserve_the_last_of_the_room_is_not_touched(disk):
    reserve = Reserve(disk.folder)
    disk.look(reserve)
    disk.free = 0
    assert disk.look(reserve) is Room.LOW, "the reserve is there"
    assert reserve.spend() and not (disk.folder / "registry.reserve").exists()
    assert not reserve.spend()
    told = []
    for free in (NONE, NONE - 1, NONE, 2 * NONE - 1, 2 * NONE, WANTED - 1):
        disk.free = free
        told.append(disk.look(reserve, 20))
    assert told == [Room.LOW, Room.NONE, Room.NONE, Room.NONE, Room.LOW, Room.LOW]
    disk.free = WANTED
    assert disk.look(reserve, 20) is Room.AMPLE
    assert (disk.folder / "registry.reserve").exists()


def test_a_quota_is_not_taken_for_room(disk, monkeypatch):
    """The file system tells of gigabytes; what counts is whether they can be had."""
    tried = []

    def refuse(*_):
        tried.append(disk.now_s)
        raise OSError(errno.EDQUOT, "over quota")

    reserve = Reserve(disk.folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", refuse)
        told = {disk.look(reserve) for _ in range(60)}
        assert told == {Room.LOW}
        assert not (disk.folder / "registry.reserve").exists()
    waits = [later - before for before, later in pairwise(tried)]
    assert waits == sorted(waits) and waits[-1] >= limits.disk_probe_s_max
    assert disk.look(reserve, 2 * limits.disk_probe_s_max) is Room.AMPLE


def test_a_reserve_that_was_cut_short_or_has_no_room_in_it_is_made_anew(disk):
    file = disk.folder / "registry.reserve"
    file.write_bytes(b"x")
    disk.look(Reserve(disk.folder))
    assert file.stat().st_size == RESERVE
    file.unlink()
    with file.open("wb") as hole:
        hole.truncate(RESERVE)
    disk.look(Reserve(disk.folder))
    assert file.stat().st_blocks * 512 >= RESERVE
    disk.free = 0
    assert disk.look(Reserve(disk.folder)) is Room.LOW, "the next master finds it"
