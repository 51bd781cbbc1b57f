"""The file: its guarantees of durability, and which files are refused."""

import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from posthouse.errors import StoreError
from posthouse_master.store import schema
from posthouse_master.store.base import (
    EpochLost,
    EventRow,
    HostRow,
    Life,
    PutEvent,
    PutHost,
    PutState,
    RegistryRefused,
    StateRow,
)
from posthouse_master.store.sqlite import APPLICATION_ID, SCHEMA_VERSION, SqliteStore


def host(name: str) -> PutHost:
    return PutHost(
        HostRow(name=name, machine_id="", boot_id="", offer=b"\x80" * 2000, heard_unix_s=0.0)
    )


@pytest.fixture
def path(state_dir):
    return state_dir / "registry.sqlite"


@pytest.fixture
def filled(state_dir, path):
    """A registry with something in it, checkpointed into its one file."""
    store = SqliteStore(state_dir)
    epoch = store.begin_term().epoch
    store.commit(epoch, [host(f"h{n}") for n in range(50)])
    identity = store.load().term.registry
    store.close()
    assert not path.with_name("registry.sqlite-wal").exists()
    return identity


def refused(state_dir) -> RegistryRefused:
    with pytest.raises(RegistryRefused) as caught:
        SqliteStore(state_dir)
    assert caught.value.hint, "a refusal tells the way out"
    return caught.value


def test_the_pragmas_that_durability_rests_on(state_dir):
    store = SqliteStore(state_dir)
    database = store._database
    found = {
        name: database.execute(f"PRAGMA {name}").fetchone()[0]
        for name in (
            "journal_mode",
            "synchronous",
            "foreign_keys",
            "trusted_schema",
            "application_id",
            "user_version",
        )
    }
    store.close()
    assert found == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "trusted_schema": 0,
        "application_id": APPLICATION_ID,
        "user_version": SCHEMA_VERSION,
    }


def test_every_table_is_strict(state_dir):
    store = SqliteStore(state_dir)
    tables = store._database.execute("SELECT name, strict FROM pragma_table_list").fetchall()
    store.close()
    own = {name: strict for name, strict in tables if not name.startswith("sqlite_")}
    assert own and all(own.values()), own


def test_folder_and_files_are_private(state_dir, filled):
    assert state_dir.stat().st_mode & 0o777 == 0o700
    for name in ("registry.sqlite", "registry.lock"):
        assert (state_dir / name).stat().st_mode & 0o777 == 0o600


COMMIT_FOR_EVER = """
import os, sys
from posthouse_master.store.base import EventRow, PutEvent
from posthouse_master.store.sqlite import SqliteStore
store = SqliteStore(sys.argv[1])
epoch = store.begin_term().epoch
number = 0
while True:
    number += 1
    store.commit(epoch, [PutEvent(EventRow(sequence=2 * number + i, stream="c", body=b"x" * 500))
                         for i in (0, 1)])
    os.write(1, b"%d\\n" % number)
"""


def test_what_commit_returned_from_survives_kill_9(state_dir):
    process = subprocess.Popen(
        [sys.executable, "-c", COMMIT_FOR_EVER, str(state_dir)], stdout=subprocess.PIPE, text=True
    )
    acknowledged = 0
    for line in process.stdout:
        acknowledged = int(line)
        if acknowledged >= 50:
            process.send_signal(signal.SIGKILL)
            break
    rest, _ = process.communicate()
    acknowledged = max([acknowledged, *map(int, rest.split())])
    store = SqliteStore(state_dir)
    sequences = [row.sequence for row in store.load().events]
    store.close()
    # Every acknowledged pair is there; of the one in flight both rows or none.
    assert set(range(2, 2 * acknowledged + 2)) <= set(sequences)
    assert len(sequences) % 2 == 0
    assert len(sequences) <= 2 * acknowledged + 2


def test_the_epoch_is_checked_in_the_file(state_dir):
    store = SqliteStore(state_dir)
    epoch = store.begin_term().epoch
    # Another writer that the lock did not keep out, as on a file system without locks.
    head = schema.read_head(store._database)
    schema.write(store._database, replace(head, epoch=head.epoch + 1))
    with pytest.raises(EpochLost):
        store.commit(epoch, [host("b")])
    assert not store.load().hosts
    store.close()


def test_a_failing_operation_undoes_its_whole_commit(state_dir):
    store = SqliteStore(state_dir)
    epoch = store.begin_term().epoch
    event = PutEvent(EventRow(sequence=1, stream="c", body=b""))
    with pytest.raises(StoreError):
        store.commit(epoch, [host("b"), event, event])
    assert not store.load().hosts
    store.close()


def test_a_state_needs_its_registration(state_dir):
    store = SqliteStore(state_dir)
    epoch = store.begin_term().epoch
    with pytest.raises(StoreError):
        store.commit(epoch, [PutState(StateRow(slot=0, generation=1, life=Life.RUNNING))])
    store.close()


def test_a_second_process_is_refused_while_the_first_lives(state_dir):
    script = (
        "import sys\nfrom posthouse_master.store.sqlite import SqliteStore\n"
        "store = SqliteStore(sys.argv[1])\nprint('open', flush=True)\nsys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(state_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "open\n"
    error = refused(state_dir)
    assert "another master has this registry open" in str(error)
    process.kill()
    process.communicate()
    SqliteStore(state_dir).close()  # the lock goes with the process


def test_a_truncated_registry_is_refused_and_left_alone(state_dir, path, filled):
    whole = path.read_bytes()
    for size in (0, 10, 60, 4096, len(whole) // 2, len(whole) - 4096):
        path.write_bytes(whole[:size])
        assert "damaged" in str(refused(state_dir)), size
        assert path.read_bytes() == whole[:size]
    path.write_bytes(whole)
    SqliteStore(state_dir).close()


def test_a_torn_page_is_refused(state_dir, path, filled):
    whole = bytearray(path.read_bytes())
    for page in range(1, len(whole) // 4096):
        torn = whole.copy()
        torn[page * 4096 : page * 4096 + 64] = b"\xff" * 64
        path.write_bytes(torn)
        assert "damaged" in str(refused(state_dir)), page


def test_a_foreign_file_is_refused(state_dir, path):
    state_dir.mkdir()
    path.write_bytes(b"not a database of any kind" * 40)
    assert "is no registry of posthouse" in str(refused(state_dir))
    path.unlink()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE t (x)")
    other.close()
    assert "database of another program" in str(refused(state_dir))


def test_a_newer_schema_is_refused(state_dir, path, filled):
    newer = sqlite3.connect(path)
    newer.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    newer.close()
    error = refused(state_dir)
    assert f"schema version {SCHEMA_VERSION + 1}" in str(error)
    assert "newer posthouse" in error.hint


def test_no_empty_registry_is_put_where_one_was(state_dir, path, filled):
    path.unlink()
    error = refused(state_dir)
    assert filled in str(error)
    assert "registry.lock" in error.hint
    assert not path.exists()
    (state_dir / "registry.lock").unlink()
    SqliteStore(state_dir).close()  # on purpose, it may be begun anew


def test_a_log_without_its_file_is_refused(state_dir, path):
    state_dir.mkdir()
    path.with_name("registry.sqlite-wal").write_bytes(b"\0" * 32)
    assert "is gone" in str(refused(state_dir))


def test_a_crash_while_it_is_made_leaves_nothing_half(state_dir, path):
    state_dir.mkdir()
    path.with_name("registry.sqlite.new").write_bytes(b"half of it")
    store = SqliteStore(state_dir)
    assert store.begin_term().epoch == 1
    store.close()


OPEN_AS_NOBODY = """
import os, sys
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
from posthouse.errors import StoreError
try:
    SqliteStore(sys.argv[1])
except StoreError as error:
    print(error)
"""


def test_a_read_only_registry_is_refused(state_dir, path, filled):
    path.chmod(0o400)
    if os.geteuid() == 0:  # who may write what is read-only
        for owned in (state_dir.parent, state_dir, *state_dir.iterdir()):
            os.chown(owned, 65534, 65534)
    script = "from posthouse_master.store.sqlite import SqliteStore\n" + OPEN_AS_NOBODY
    command = [sys.executable, "-c", script, str(state_dir)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "may not be written by this user" in said


def test_a_state_dir_that_is_a_file_is_refused(state_dir):
    state_dir.write_text("")
    assert "cannot be opened" in str(refused(state_dir))


def test_a_disk_that_is_full_is_an_error_that_ends_the_process(state_dir):
    store = SqliteStore(state_dir)
    epoch = store.begin_term().epoch
    pages = store._database.execute("PRAGMA page_count").fetchone()[0]
    store._database.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(StoreError, match="full"):
        store.commit(epoch, [host(f"h{n}") for n in range(50)])
    store.close()
    again = SqliteStore(state_dir)
    assert not again.load().hosts
    again.close()


@pytest.mark.parametrize("name", ["registry.sqlite", "registry.lock"])
@pytest.mark.parametrize("replaced", [False, True])
def test_n15_nothing_is_acknowledged_into_a_file_that_is_gone(tmp_path, name, replaced):
    """PostgreSQL ends when its lock file is removed or another's; SQLite would write to a removed
    file, and nobody would find it again."""
    store = SqliteStore(tmp_path / "r")
    term = store.begin_term()
    path = tmp_path / "r" / name
    copy = path.read_bytes()
    path.unlink()
    if replaced:
        path.write_bytes(copy)
    with pytest.raises(StoreError, match="removed or replaced"):
        store.commit(term.epoch, [])
    store.close()


KILLED = """
import os, sys
from posthouse import limits
from posthouse_master.store.base import HostRow, PutHost
from posthouse_master.store.sqlite import SqliteStore

store = SqliteStore(sys.argv[1])
epoch = store.begin_term().epoch
store.load()
for number in range(10):
    names = [f"h{number}.{row}" for row in range(limits.checkpoint_rows // 20)]
    rows = [HostRow(name=name, machine_id="", boot_id="", offer=os.urandom(3000), heard_unix_s=1.0)
            for name in names]
    store.commit(epoch, [PutHost(row) for row in rows])
os._exit(9)
"""


def test_the_wal_file_of_masters_that_are_killed_does_not_grow(state_dir: Path) -> None:
    """None of them lives until it has written enough for a checkpoint of its own."""
    sizes = []
    for _ in range(8):
        ran = subprocess.run([sys.executable, "-c", KILLED, str(state_dir)])
        assert ran.returncode == 9
        sizes.append((state_dir / "registry.sqlite-wal").stat().st_size)
    assert max(sizes[4:]) <= max(sizes[:4]), sizes
