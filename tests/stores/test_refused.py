"""Registries that must not be opened: what is said of each, and that nothing in them is changed."""

import os
import shutil
import sqlite3
import subprocess
import sys
import zlib
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from random import Random

import msgspec
import pytest

from posthouse.errors import StoreError
from posthouse_master.store import copies, schema
from posthouse_master.store.base import (
    Counters,
    EventRow,
    GroupRow,
    HostRow,
    Life,
    PutCounters,
    PutEvent,
    PutGroup,
    PutHost,
    PutRegistration,
    PutRequest,
    PutSlot,
    PutState,
    RegistryRefused,
    RequestRow,
    SpecRow,
    StateRow,
)
from posthouse_master.store.sqlite import APPLICATION_ID, SCHEMA_VERSION, SqliteStore

FLIPS = 400
OLD = Path(__file__).with_name("schema1.sql")


@pytest.fixture
def path(state_dir: Path) -> Path:
    return state_dir / "registry.sqlite"


def fill(store: SqliteStore, count: int = 12) -> None:
    """Rows of every kind, over more than one page of each table."""
    epoch = store.begin_term().epoch
    ops = []
    for n in range(count):
        ops += [
            PutSlot(n, 2),
            PutRegistration(
                SpecRow(
                    slot=n,
                    generation=2,
                    revision=1,
                    name=f"w{n}",
                    spec=b"\x81\xa4main" + bytes(range(256)) * 3,
                    registered_unix_s=1.5 * n,
                )
            ),
            PutState(StateRow(slot=n, generation=2, life=Life.RUNNING, token=n, pid=n)),
            PutEvent(EventRow(sequence=n + 1, stream=f"{n}.2", body=b"event" * 60)),
            PutHost(
                HostRow(
                    name=f"h{n}", machine_id="m", boot_id="b", offer=b"o" * 90, heard_unix_s=1.0
                )
            ),
            PutGroup(
                GroupRow(name=f"g{n}", spec=b"\x81\xa4main" + bytes(range(256)) * 2, replicas=n)
            ),
            PutRequest(
                RequestRow(
                    principal="client:local",
                    request=n.to_bytes(16),
                    digest=b"d" * 32,
                    kind=61,
                    result=b"\x80" * 50,
                    at_unix_s=3.0,
                )
            ),
        ]
    store.commit(epoch, [*ops, PutCounters(Counters(token=77, sequence=count))])


@pytest.fixture
def filled(state_dir: Path, path: Path) -> str:
    """A registry with something of everything, in its one file. Its identity."""
    store = SqliteStore(state_dir)
    fill(store)
    identity = store.load().term.registry
    store.close()
    return identity


def content(state_dir: Path) -> dict[str, bytes]:
    """Of all files but the index of the -wal file, which each reader makes from that."""
    files = (p for p in state_dir.iterdir() if p.is_file() and not p.name.endswith("-shm"))
    return {p.name: p.read_bytes() for p in files}


def refused(state_dir: Path) -> RegistryRefused:
    """What is said; nothing in the folder may be changed by it."""
    before = content(state_dir)
    with pytest.raises(RegistryRefused) as caught:
        SqliteStore(state_dir)
    assert content(state_dir) == before
    assert caught.value.hint, "a refusal tells the way out"
    return caught.value


# --- bits that turned ---


def test_no_turned_bit_of_the_file_is_taken_for_what_was_written(state_dir, path, filled):
    """Anywhere in the file: it is refused, or it was in a place that means nothing."""
    whole = path.read_bytes()
    store = SqliteStore(state_dir)
    true = replace(store.load(), specs=tuple(store.load().specs))
    store.close()
    random = Random(4711)
    mark = (state_dir / "registry.lock").read_bytes()
    caught = 0
    for _ in range(FLIPS):
        bit = random.randrange(len(whole) * 8)
        turned = bytearray(whole)
        turned[bit // 8] ^= 1 << bit % 8
        path.write_bytes(turned)
        (state_dir / "registry.lock").write_bytes(mark)
        for left in ("-wal", "-journal"):
            path.with_name(path.name + left).unlink(missing_ok=True)
        try:
            opened = SqliteStore(state_dir)
        except RegistryRefused as error:
            assert error.hint
            caught += 1
            continue
        try:
            found = opened.load()
        except RegistryRefused:
            caught += 1
        else:
            assert replace(found, specs=tuple(found.specs)) == true, f"bit {bit} was not noticed"
        finally:
            opened.close()
    assert caught > FLIPS // 3, "most of the file means something"


@pytest.mark.parametrize(
    "row", [SpecRow, StateRow, EventRow, HostRow, GroupRow, RequestRow, PutSlot, schema.Head]
)
def test_a_value_that_was_changed_behind_its_sum_is_refused(state_dir, path, filled, row):
    """Every column of every table, as a turned bit in the midst of a page would change it."""
    table = schema._TABLES[row].name
    whole = path.read_bytes()
    for column in schema._COLUMNS[row]:
        path.write_bytes(whole)
        database = sqlite3.connect(path)
        database.execute("PRAGMA journal_mode = DELETE")
        old = database.execute(f'SELECT max("{column.name}") FROM {table}').fetchone()[0]
        new = b"other" if isinstance(old, bytes) else "other" if isinstance(old, str) else 4711
        database.execute(
            f'UPDATE {table} SET "{column.name}" = ? '
            f"WHERE rowid = (SELECT max(rowid) FROM {table})",
            (new,),
        )
        database.commit()
        database.close()
        with ExitStack() as opened, pytest.raises(RegistryRefused, match="is damaged"):
            store = SqliteStore(state_dir)
            opened.callback(store.close)
            store.load()


def test_a_value_that_no_version_wrote_is_refused(state_dir, filled):
    store = SqliteStore(state_dir)
    row = store.load().states[0]
    schema.write(store._database, replace(row, life="undead"))
    with pytest.raises(RegistryRefused, match="undead"):
        store.load()
    store.close()


def test_tables_of_another_shape_are_refused(state_dir, path, filled):
    database = sqlite3.connect(path)
    database.execute("ALTER TABLE states RENAME COLUMN pid TO pie")
    database.close()
    assert "states has what no schema up to" in str(refused(state_dir))


def test_a_table_under_another_name_is_not_taken_for_one_that_came_later(state_dir, path, filled):
    database = sqlite3.connect(path)
    database.execute("ALTER TABLE events RENAME TO evenus")
    database.close()
    assert "it has tables that no schema up to" in str(refused(state_dir))


# --- commits that are missing ---


@pytest.fixture
def killed(state_dir: Path, path: Path, filled: str) -> Path:
    """A registry whose process was killed: its last commits are in the -wal file alone."""
    live = state_dir.with_name("live")
    state_dir.rename(live)
    store = SqliteStore(live)
    epoch = store.begin_term().epoch
    for n in range(5):
        store.commit(epoch, [PutSlot(100 + n, 1)])
    shutil.copytree(live, state_dir)
    store.close()
    return path.with_name("registry.sqlite-wal")


def test_what_a_killed_process_left_is_read(state_dir, killed):
    store = SqliteStore(state_dir)
    assert [slot for slot, _ in store.load().slots if slot >= 100] == [100, 101, 102, 103, 104]
    store.close()


def test_a_registry_without_its_wal_file_is_refused(state_dir, path, killed):
    killed.unlink()
    error = refused(state_dir)
    assert "ends with commit 2, but commit 8 was acknowledged" in str(error)
    assert "registry.sqlite-wal" in error.hint and f"posthouse restore {path}" in error.hint
    copies.restore(state_dir, path)  # the way out, for who has nothing better
    store = SqliteStore(state_dir)
    assert max(slot for slot, _ in store.load().slots) < 100
    store.close()


def test_a_wal_file_that_is_cut_off_or_has_a_turned_bit_is_refused(state_dir, path, killed):
    """SQLite takes the commits before the damage for all there were."""
    whole, file = killed.read_bytes(), path.read_bytes()
    random = Random(4711)
    damaged = [whole[: len(whole) - 4096], whole[:32], b""]
    for _ in range(40):
        turned = bytearray(whole)
        bit = random.randrange(32 * 8, len(whole) * 8)
        turned[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(turned))
    lock = (state_dir / "registry.lock").read_bytes()
    for left in damaged:
        killed.write_bytes(left)
        path.write_bytes(file)
        (state_dir / "registry.lock").write_bytes(lock)
        assert any(said in str(refused(state_dir)) for said in ("was acknowledged", "is damaged"))


def test_an_old_copy_is_refused_where_newer_commits_were_acknowledged(state_dir, path, filled):
    copy = path.read_bytes()
    store = SqliteStore(state_dir)
    store.commit(store.begin_term().epoch, [PutSlot(100, 1)])
    store.close()
    path.write_bytes(copy)
    assert "but commit 4 was acknowledged" in str(refused(state_dir))


def test_another_registry_in_its_place_is_refused(state_dir, path, filled, tmp_path):
    other = SqliteStore(tmp_path / "other")
    name = other.begin_term().registry
    other.close()
    shutil.copy(tmp_path / "other" / "registry.sqlite", path)
    error = refused(state_dir)
    assert name in str(error) and filled in str(error)


def test_a_mark_that_cannot_be_read_says_nothing(state_dir, path, filled):
    lock = state_dir / "registry.lock"
    said = lock.read_bytes()
    for wrong in (b"", said[:40], said.replace(b"commit 0", b"commit 9"), os.urandom(90)):
        lock.write_bytes(wrong)
        SqliteStore(state_dir).close()


def test_d9_the_mark_never_says_more_than_is_durable(state_dir, filled):
    """Killed between COMMIT and the mark, the registry is ahead of it, which is in order."""
    lock = state_dir / "registry.lock"
    before = lock.read_bytes()
    store = SqliteStore(state_dir)
    store.commit(store.begin_term().epoch, [PutSlot(100, 1)])
    store.close()
    lock.write_bytes(before)
    again = SqliteStore(state_dir)
    assert (100, 1) in again.load().slots
    again.close()


# --- what is no registry at all ---


def test_a_directory_or_a_link_in_its_place_is_refused(state_dir, path, filled):
    elsewhere = path.rename(state_dir / "elsewhere")
    path.symlink_to(elsewhere)
    assert "symbolic link" in str(refused(state_dir))
    path.unlink()
    path.symlink_to("nowhere")
    assert "symbolic link" in str(refused(state_dir))
    path.unlink()
    path.mkdir()
    assert "is not a file" in str(refused(state_dir))
    assert not any(path.iterdir())


READ_ONLY = """
import os, sys
from posthouse.errors import StoreError
from posthouse_master.store.sqlite import SqliteStore
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    SqliteStore(sys.argv[1])
except StoreError as error:
    print(error)
"""


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_may_not_be_written_is_refused(state_dir, path, filled, what):
    if os.geteuid() == 0:  # who may write what is read-only
        for owned in (state_dir.parent, state_dir, *state_dir.iterdir()):
            os.chown(owned, 65534, 65534)
    (path if what == "file" else state_dir).chmod(0o400 if what == "file" else 0o500)
    command = [sys.executable, "-c", READ_ONLY, str(state_dir)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "may not be written by this user" in said
    assert "owner and mode" in said
    state_dir.chmod(0o700)


def test_a_full_disk_is_not_called_damage(state_dir, path, filled, monkeypatch):
    class Full(sqlite3.Connection):
        def execute(self, statement, *rest):
            if "journal_mode" in statement:
                super().execute("PRAGMA max_page_count = 1")
                super().execute("CREATE TABLE t (x)")
            return super().execute(statement, *rest)

    monkeypatch.setattr(sqlite3, "connect", Full)
    with pytest.raises(StoreError, match="bytes are free"):
        SqliteStore(state_dir)


HOLD = """
import sys
from posthouse_master.store.base import PutSlot
from posthouse_master.store.sqlite import SqliteStore
store = SqliteStore(sys.argv[1])
epoch = store.begin_term().epoch
for line in sys.stdin:
    store.commit(epoch, [PutSlot(int(line), 1)])
    print("committed", flush=True)
"""


def test_n14_q30_a_second_master_is_refused_even_without_the_lock_file(state_dir, path, filled):
    """PostgreSQL refuses to start while any process of the old one holds its shared memory, also
    when the lock file was deleted. Ours is refused by the registry itself, then."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(state_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        for removed in (False, True):
            holder.stdin.write("200\n")
            holder.stdin.flush()
            assert holder.stdout.readline() == "committed\n"
            if removed:
                (state_dir / "registry.lock").unlink()
            with pytest.raises(RegistryRefused, match=r"another (master|program)") as caught:
                SqliteStore(state_dir)
            assert "end the other" in caught.value.hint
    finally:
        holder.kill()
        holder.communicate()
    store = SqliteStore(state_dir)
    assert (200, 1) in store.load().slots
    store.close()


# --- older and newer ---


def old_registry(path: Path) -> None:
    """As the first schema wrote it, with its last commits in the -wal file."""
    path.parent.mkdir(mode=0o700)
    database = sqlite3.connect(path, isolation_level=None)
    database.executescript(OLD.read_text())
    database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    database.execute("PRAGMA user_version = 1")
    database.execute("INSERT INTO term VALUES (1, ?, 1, 7, 90, 2, 0)", ("ab" * 16,))
    database.execute("PRAGMA journal_mode = WAL")
    spec = (0, 3, 1, "w", b"\x80", 1.5, "client:local", "", 1)
    database.execute(f"INSERT INTO specs VALUES ({','.join('?' * 9)})", spec)
    state = (0, 3, "running", "a", "fenced", 2, 90, 11, 5, 2.5, 1, None, "", "", "", None)
    state += (2, 0, 0, 0, b"")
    database.execute(f"INSERT INTO states VALUES ({','.join('?' * 21)})", state)
    database.execute("INSERT INTO slots VALUES (0, 3)")
    database.execute("INSERT INTO events VALUES (2, '0.3', x'80')")
    database.execute("INSERT INTO hosts VALUES ('a', 'm', 'b', x'80', 1.0, 1, 0)")
    database.execute("INSERT INTO requests VALUES (1, 'client:local', x'01', x'02', 61, x'80', 1)")
    wal = path.with_name(path.name + "-wal")
    left = path.read_bytes(), wal.read_bytes()
    database.close()
    path.write_bytes(left[0])
    wal.write_bytes(left[1])
    path.with_name("registry.lock").write_text(f"registry {'ab' * 16}\n")


def test_an_older_schema_is_written_anew_and_kept_beside(state_dir, path):
    old_registry(path)
    store = SqliteStore(state_dir)
    term = store.begin_term()
    found = store.load()
    assert (term.registry, term.epoch) == ("ab" * 16, 8)
    assert found.counters == Counters(token=90, sequence=2)
    assert [(row.name, row.order) for row in found.specs] == [("w", 1)]
    assert [(r.life, r.pid, r.ready, r.starts) for r in found.states] == [
        (Life.RUNNING, 11, True, 2)
    ]
    assert (found.slots, len(found.events), len(found.requests)) == ([(0, 3)], 1, 1)
    assert [(host.name, host.up) for host in found.hosts] == [("a", True)]
    store.close()
    kept = sqlite3.connect(state_dir / "registry.sqlite.schema1")
    assert kept.execute("PRAGMA user_version").fetchone() == (1,)
    assert kept.execute("SELECT epoch FROM term").fetchone() == (7,)
    kept.close()
    SqliteStore(state_dir).close()


def fewer_columns(path: Path, sum_of: int | None = None) -> None:
    """A registry from before hosts could be drained, in the same schema otherwise."""
    database = sqlite3.connect(path)
    sql = database.execute("SELECT sql FROM sqlite_schema WHERE name = 'hosts'").fetchone()[0]
    rows = database.execute("SELECT * FROM hosts").fetchall()
    database.execute("DROP TABLE hosts")
    database.execute("\n".join(line for line in sql.splitlines() if "draining" not in line))
    for *values, _, _ in rows:
        total = sum_of or zlib.crc32(msgspec.msgpack.encode(("hosts", *values)))
        marks = ", ".join("?" * (len(values) + 1))
        database.execute(f"INSERT INTO hosts VALUES ({marks})", (*values, total))
    database.execute("DROP TABLE slots")
    database.commit()
    database.execute("PRAGMA journal_mode = DELETE")
    database.close()


def test_a_registry_without_tables_and_columns_that_came_later_is_written_anew(
    state_dir, path, filled
):
    """As between two versions of one schema, none of which was released."""
    fewer_columns(path)
    store = SqliteStore(state_dir)
    found = store.load()
    assert len(found.specs) == len(found.hosts) == 12
    assert not any(host.draining for host in found.hosts) and not found.slots
    store.close()
    assert (state_dir / f"registry.sqlite.schema{SCHEMA_VERSION}").exists()


def test_older_tables_are_summed_too(state_dir, path, filled):
    fewer_columns(path, sum_of=4711)
    assert "a row of hosts is not what was written" in str(refused(state_dir))


def test_an_older_schema_that_is_damaged_is_left_alone(state_dir, path):
    old_registry(path)
    SqliteStore(state_dir).close()
    shutil.copy(state_dir / "registry.sqlite.schema1", path)
    (state_dir / "registry.lock").write_bytes(b"")
    whole = bytearray(path.read_bytes())
    whole[3 * 4096 : 3 * 4096 + 64] = b"\xff" * 64
    path.write_bytes(whole)
    assert "is damaged" in str(refused(state_dir))


def test_an_upgrade_that_was_cut_short_begins_anew(state_dir, path, monkeypatch):
    old_registry(path)

    def cut(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", cut)
        with pytest.raises(KeyboardInterrupt):
            SqliteStore(state_dir)
    store = SqliteStore(state_dir)
    assert store.begin_term().epoch == 8
    assert [row.name for row in store.load().specs] == ["w"]
    store.close()


def test_the_wal_file_does_not_grow_without_end(state_dir):
    """A backup that reads keeps the checkpoints from it only as long as it reads."""
    store = SqliteStore(state_dir)
    epoch = store.begin_term().epoch
    row = HostRow(name="h", machine_id="", boot_id="", offer=b"o" * 2000, heard_unix_s=0.0)
    wal = state_dir / "registry.sqlite-wal"
    sizes = set()

    def write() -> None:
        for _ in range(80):
            offer = os.urandom(2000)  # SQLite writes nothing where nothing has changed
            rows = [replace(row, name=f"h{n}", offer=offer) for n in range(100)]
            store.commit(epoch, [PutHost(row) for row in rows])
            sizes.add(wal.stat().st_size)

    write()
    assert max(sizes) < 8 * 1024 * 1024
    reader = sqlite3.connect(state_dir / "registry.sqlite", isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM hosts").fetchone() == (100,)
    write()
    assert max(sizes) > 8 * 1024 * 1024
    reader.close()
    write()
    sizes.clear()
    write()
    assert max(sizes) <= 8 * 1024 * 1024
    store.close()


def test_the_version_of_the_schema_is_in_the_header(state_dir, path, filled):
    assert int.from_bytes(path.read_bytes()[60:64]) == SCHEMA_VERSION
