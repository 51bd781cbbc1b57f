"""What a power cut leaves: of what was written and not yet synced, any sectors in any order.

The files before and after are real; in between, each trial keeps some of the changed sectors.
"""

import shutil
from pathlib import Path
from random import Random

import pytest

from posthouse import limits
from posthouse_master.store.base import HostRow, PutHost, PutSlot
from posthouse_master.store.sqlite import SqliteStore

SECTOR = 512
TRIALS = 40


class Live:
    """A registry that is open, and copies of its folder as it was."""

    def __init__(self, folder: Path) -> None:
        self.store = SqliteStore(folder)
        self.epoch = self.store.begin_term().epoch
        self.count = 0
        self._folder = folder

    def commit(self) -> None:
        """Some rows, over several pages."""
        self.count += 1
        rows = [
            PutHost(
                HostRow(
                    name=f"h{self.count}-{n}",
                    machine_id="",
                    boot_id="",
                    offer=bytes([self.count]) * 1500,
                    heard_unix_s=1.0,
                )
            )
            for n in range(6)
        ]
        self.store.commit(self.epoch, [PutSlot(self.count, 1), *rows])

    def copy(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self._folder.iterdir()}


@pytest.fixture
def live(tmp_path):
    made = Live(tmp_path / "live")
    yield made
    made.store.close()


def torn(random: Random, before: bytes, after: bytes) -> bytes:
    """`after`, of which only some of the changed sectors have reached the disk."""
    size = random.choice((len(after), max(len(before), random.randrange(len(after) + 1))))
    found = bytearray(before.ljust(size, b"\0")[:size])
    changed = [
        at for at in range(0, size, SECTOR) if before[at : at + SECTOR] != after[at : at + SECTOR]
    ]
    share = random.random()
    first = random.choice((True, False))  # a prefix, or any
    for number, at in enumerate(changed):
        if (number < share * len(changed)) if first else (random.random() < share):
            found[at : at + SECTOR] = after[at : min(at + SECTOR, size)]
    return bytes(found)


def found(folder: Path, files: dict[str, bytes]) -> list[int]:
    """The commits that the next master finds."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    store = SqliteStore(folder)
    try:
        snapshot = store.load()
    finally:
        store.close()
    slots = [slot for slot, _ in snapshot.slots]
    assert len(snapshot.hosts) == 6 * len(slots), "all of a commit or nothing"
    return slots


def test_a_commit_in_a_power_cut_is_whole_or_nothing(live, tmp_path):
    for _ in range(3):
        live.commit()
    before = live.copy()
    live.commit()
    after = live.copy()
    random = Random(4711)
    seen = set()
    for _ in range(TRIALS):
        wal = "registry.sqlite-wal"
        files = before | {wal: torn(random, before[wal], after[wal])}
        seen.add(len(found(tmp_path / "cut", files)))
    assert seen <= {3, 4} and 3 in seen
    assert found(tmp_path / "cut", after) == [1, 2, 3, 4]


def test_a_checkpoint_in_a_power_cut_loses_nothing(live, tmp_path, monkeypatch):
    for _ in range(3):
        live.commit()
    monkeypatch.setattr(limits, "checkpoint_rows", 1)
    before = live.copy()
    live.commit()  # and moves everything into the registry
    after = live.copy()
    name = "registry.sqlite"
    assert len(after[name]) > len(before[name])
    random = Random(4711)
    for _ in range(TRIALS):
        files = after | {name: torn(random, before[name], after[name])}
        assert found(tmp_path / "cut", files) == [1, 2, 3, 4]


def test_a_registry_that_was_being_made_in_a_power_cut_is_made_anew(tmp_path):
    store = SqliteStore(tmp_path / "live")
    whole = (tmp_path / "live" / "registry.sqlite").read_bytes()
    store.close()
    random = Random(4711)
    for _ in range(TRIALS):
        files = {"registry.sqlite.new": torn(random, b"", whole), "registry.lock": b""}
        assert found(tmp_path / "cut", files) == []
