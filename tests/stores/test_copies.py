"""Backup and restore of the registry's file: online, whole or nothing, a new timeline."""

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from posthouse_master.store import copies
from posthouse_master.store.base import HostRow, PutHost, PutSlot, RegistryRefused, first_number
from posthouse_master.store.sqlite import SqliteStore

WRITER = """
import sys
from posthouse_master.store.base import PutSlot
from posthouse_master.store.sqlite import SqliteStore
store = SqliteStore(sys.argv[1])
epoch = store.begin_term().epoch
number = 0
while True:
    number += 1
    store.commit(epoch, [PutSlot(number, 1), PutSlot(100_000 + number, number)])
    print(number, flush=True)
"""


@pytest.fixture
def path(state_dir: Path) -> Path:
    return state_dir / "registry.sqlite"


@pytest.fixture
def filled(state_dir: Path) -> Path:
    """A registry with a few commits, closed."""
    commit(state_dir, 1, 2, 3)
    return state_dir


def commit(state_dir: Path, *slots: int) -> None:
    store = SqliteStore(state_dir)
    epoch = store.begin_term().epoch
    for slot in slots:
        store.commit(epoch, [PutSlot(slot, 1)])
    store.close()


def slots(state_dir: Path) -> dict[int, int]:
    store = SqliteStore(state_dir)
    found = dict(store.load().slots)
    store.close()
    return found


def test_a_backup_under_load_has_all_that_was_acknowledged_and_no_half_commit(state_dir):
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(state_dir)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert writer.stdout is not None
        for n in range(10):
            seen = int(writer.stdout.readline())
            file = state_dir.with_name(f"backup-{n}")
            copies.backup(state_dir, file)
            # Opened as a registry of its own: what was acknowledged before the backup is there.
            other = state_dir.with_name(f"other-{n}")
            copies.restore(other, file)
            found = slots(other)
            low = {slot for slot in found if slot < 100_000}
            assert max(low) >= seen
            assert {slot + 100_000 for slot in low} == {s for s in found if s >= 100_000}
            for _ in range(200):
                writer.stdout.readline()
        assert writer.poll() is None, "the master did not notice"
    finally:
        writer.kill()
        writer.communicate()


def test_a_backup_is_one_private_file_that_takes_no_others_place(filled, tmp_path):
    file = tmp_path / "b"
    made = copies.backup(filled, file)
    assert (made.timeline, made.epoch, made.commits) == (1, 1, 4)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir() if each.name != "state"] == ["b"]
    before = file.read_bytes()
    with pytest.raises(RegistryRefused, match="is there already"):
        copies.backup(filled, file)
    assert file.read_bytes() == before
    commit(filled, 4)
    assert copies.backup(filled, file, overwrite=True).commits == 6
    assert file.read_bytes() != before


def test_a_backup_never_writes_over_the_registry_or_a_folder(filled, tmp_path):
    for target in (filled / "registry.sqlite", tmp_path):
        with pytest.raises(RegistryRefused):
            copies.backup(filled, target, overwrite=True)
    assert slots(filled) == {1: 1, 2: 1, 3: 1}


def test_no_backup_is_left_of_a_registry_that_is_damaged(filled, path, tmp_path):
    database = sqlite3.connect(path)
    database.execute("UPDATE slots SET generation = 7 WHERE slot = 2")
    database.commit()
    database.close()
    with pytest.raises(RegistryRefused, match="is damaged"):
        copies.backup(filled, tmp_path / "b")
    assert not [each for each in tmp_path.iterdir() if each.is_file()]


def test_no_backup_is_made_where_acknowledged_commits_are_missing(filled, path, tmp_path):
    whole = path.read_bytes()
    commit(filled, 4)
    path.write_bytes(whole)
    with pytest.raises(RegistryRefused, match=r"commit 6 of .* was acknowledged"):
        copies.backup(filled, tmp_path / "b")


def test_a_backup_of_nothing_is_refused(tmp_path):
    with pytest.raises(RegistryRefused, match="is no file"):
        copies.backup(tmp_path / "none", tmp_path / "b")
    (tmp_path / "registry.sqlite").write_bytes(b"not a database of any kind" * 40)
    with pytest.raises(RegistryRefused, match="is no registry"):
        copies.backup(tmp_path, tmp_path / "b")


def test_a_restore_begins_a_timeline_above_all_that_was_seen(filled, tmp_path):
    copies.backup(filled, tmp_path / "b")
    commit(filled, 4)
    commit(filled, 5)
    begun = int(time.time())
    made = copies.restore(filled, tmp_path / "b")
    assert made.timeline >= begun
    store = SqliteStore(filled)
    term = store.begin_term()
    found = store.load()
    store.close()
    assert dict(found.slots) == {1: 1, 2: 1, 3: 1}
    assert (term.timeline, term.epoch) == (made.timeline, first_number(made.timeline) + 1)
    assert found.counters.token == first_number(made.timeline)
    assert found.counters.recovery == "any"
    assert made.kept is not None
    kept = filled.with_name("kept")
    kept.mkdir()
    shutil.copy(made.kept, kept / "registry.sqlite")
    assert slots(kept) == {1: 1, 2: 1, 3: 1, 4: 1, 5: 1}, "what was replaced is kept"


def test_what_a_host_was_granted_after_the_backup_is_not_known_by_the_restored_one(
    state_dir, tmp_path
):
    """And stays unknown over restarts of the master: a longer lease may have been granted."""
    store = SqliteStore(state_dir)
    host = HostRow(name="b", machine_id="m", boot_id="1", offer=b"", heard_unix_s=1.0, lease_s=30.0)
    store.commit(store.begin_term().epoch, [PutHost(host)])
    store.close()
    copies.backup(state_dir, tmp_path / "b")
    copies.restore(state_dir, tmp_path / "b")
    for _ in range(2):
        store = SqliteStore(state_dir)
        store.begin_term()
        (found,) = store.load().hosts
        store.close()
        assert (found.name, found.lease_s) == ("b", 0.0)


def test_the_same_backup_restored_twice_gives_two_timelines(filled, tmp_path):
    copies.backup(filled, tmp_path / "b")
    first = copies.restore(filled, tmp_path / "b", complete=True)
    commit(filled, 9)
    second = copies.restore(filled, tmp_path / "b", complete=True)
    assert second.timeline > first.timeline
    assert second.epoch > first.epoch + 1
    assert second.commits > first.commits
    assert slots(filled) == {1: 1, 2: 1, 3: 1}


def test_what_a_killed_master_left_in_its_wal_file_is_kept_with_it(state_dir, tmp_path):
    commit(state_dir, 1)
    copies.backup(state_dir, tmp_path / "b")
    live = tmp_path / "live"
    state_dir.rename(live)
    store = SqliteStore(live)
    store.commit(store.begin_term().epoch, [PutSlot(7, 1)])
    shutil.copytree(live, state_dir)  # as it is the moment before a kill
    store.close()
    made = copies.restore(state_dir, tmp_path / "b")
    assert made.kept is not None
    database = sqlite3.connect(made.kept)
    assert database.execute("SELECT slot FROM slots WHERE slot = 7").fetchone() == (7,)
    database.close()
    assert slots(state_dir) == {1: 1}


def test_a_registry_that_lost_commits_can_be_gone_on_with_as_a_new_timeline(filled, path):
    whole = path.read_bytes()
    commit(filled, 4)
    path.write_bytes(whole)
    with pytest.raises(RegistryRefused, match="was acknowledged") as caught:
        SqliteStore(filled)
    assert f"posthouse restore {path}" in caught.value.hint
    copies.restore(filled, path)
    assert slots(filled) == {1: 1, 2: 1, 3: 1}


def test_a_restore_is_refused_while_a_master_runs(filled, path, tmp_path):
    copies.backup(filled, tmp_path / "b")
    store = SqliteStore(filled)
    with pytest.raises(RegistryRefused, match="another master") as caught:
        copies.restore(filled, tmp_path / "b")
    assert "end the other" in caught.value.hint
    store.commit(store.begin_term().epoch, [PutSlot(8, 1)])
    store.close()
    assert 8 in slots(filled)


def test_a_restore_of_what_is_no_good_changes_nothing(filled, path, tmp_path):
    copies.backup(filled, tmp_path / "b")
    whole = (tmp_path / "b").read_bytes()
    other = tmp_path / "other"
    commit(other, 1)
    copies.backup(other, tmp_path / "foreign")
    for name, content, said in (
        ("torn", whole[: len(whole) // 2], "damaged|is no registry|cannot be restored"),
        ("turned", whole.replace(b"slots", b"sl0ts"), "damaged|cannot be restored"),
        ("rubbish", b"x" * 5000, "is no registry"),
        ("foreign", (tmp_path / "foreign").read_bytes(), "is of registry"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RegistryRefused, match=said):
            copies.restore(filled, tmp_path / name)
        assert slots(filled) == {1: 1, 2: 1, 3: 1}, name
    assert not list(filled.glob("*.before-*"))


def test_a_restore_into_an_empty_folder_makes_the_registry(filled, tmp_path):
    row = HostRow(name="h", machine_id="", boot_id="", offer=b"\x80", heard_unix_s=0.0)
    store = SqliteStore(filled)
    store.commit(store.begin_term().epoch, [PutHost(row)])
    registry = store.load().term.registry
    store.close()
    copies.backup(filled, tmp_path / "b")
    made = copies.restore(tmp_path / "fresh", tmp_path / "b")
    assert (made.registry, made.kept) == (registry, None)
    opened = SqliteStore(tmp_path / "fresh")
    assert [host.name for host in opened.load().hosts] == ["h"]
    opened.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_cannot_copy_it(filled, tmp_path):
    script = (
        "import os, sys\n"
        "from posthouse_master.store import copies\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: copies.backup(sys.argv[1], sys.argv[2])\n"
        "except Exception as error: print(type(error).__name__)"
    )
    free = tmp_path / "free"
    free.mkdir(mode=0o777)
    command = [sys.executable, "-c", script, str(filled), str(free / "b")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.strip() in ("RegistryRefused", "PermissionError")
