"""System calls of the disk that fail: fsync with EIO, writes with ENOSPC and EDQUOT.

The kernel itself gives the errors, by a seccomp filter that a process puts on itself in the midst
of its work; no tool and no privilege is needed. It cannot be taken off again, so each of these
processes ends with it.
"""

import errno
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import posthouse
from posthouse import BackgroundWorker
from posthouse_master.store.base import EventRow, PutEvent
from posthouse_master.store.reserve import Reserve
from posthouse_master.store.sqlite import SqliteStore

NUMBERS = {
    "x86_64": {"fsync": 74, "fdatasync": 75, "pwrite64": 18},
    "aarch64": {"fsync": 82, "fdatasync": 83, "pwrite64": 68},
}

FAILING = """
import ctypes

def fail(numbers, error):
    class Op(ctypes.Structure):
        _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte),
                    ("k", ctypes.c_uint)]
    class Program(ctypes.Structure):
        _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.POINTER(Op))]
    count = len(numbers)
    ops = [Op(0x20, 0, 0, 0)]  # the number of the call
    ops += [Op(0x15, count - place, 0, number) for place, number in enumerate(numbers)]
    ops += [Op(0x06, 0, 0, 0x7FFF0000), Op(0x06, 0, 0, 0x00050000 | error)]  # allow; or this error
    array = (Op * len(ops))(*ops)
    program = Program(len(ops), array)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(program), 0, 0):
        raise SystemExit(f"no seccomp filter: errno {ctypes.get_errno()}")
"""

COMMIT = (
    FAILING
    + """
import sqlite3, sys
from contextlib import suppress
from posthouse import limits
from posthouse.errors import StoreError
from posthouse_master.store.base import EventRow, PutEvent, StoreFull
from posthouse_master.store.sqlite import SqliteStore

folder, statement, error, ignored, *numbers = sys.argv[1:]
limits.checkpoint_rows = 30
seen = 0

class Connection(sqlite3.Connection):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.set_trace_callback(watch)

def watch(said):
    global seen
    seen += said.startswith(statement)
    if said.startswith(statement) and seen == (5 if statement == "COMMIT" else 2):
        fail([int(number) for number in numbers], int(error))

sqlite3.connect = lambda *a, **n: Connection(*a, **n)
store = SqliteStore(folder)
epoch = store.begin_term().epoch
for sequence in range(1, 100):
    try:
        store.commit(epoch, [PutEvent(EventRow(sequence=sequence, stream="c", body=b"x" * 900))])
    except StoreFull as error:
        print("full", sequence, error, flush=True)
        sys.exit(8)
    except StoreError as error:
        if ignored != "ignored":
            print("failed", sequence, error, flush=True)
            sys.exit(7)
    print("acknowledged", sequence, flush=True)
"""
)


def numbers(*names: str) -> list[str]:
    known = NUMBERS.get(platform.machine())
    if known is None:
        pytest.skip(f"system call numbers of {platform.machine()} are not known here")
    return [str(known[name]) for name in names]


def commit(
    folder: Path, statement: str, error: int, *names: str, ignored: bool = False
) -> tuple[int, list[list[str]]]:
    """The exit status of a process that commits row by row until it cannot, and what it said."""
    command = [sys.executable, "-c", COMMIT, str(folder), statement, str(error)]
    command += ["ignored" if ignored else "", *numbers(*names)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "no seccomp filter" in done.stderr:
        pytest.skip(done.stderr.strip())
    return done.returncode, [line.split(" ", 2) for line in done.stdout.splitlines()]


def missing(folder: Path, said: list[list[str]]) -> set[int]:
    """Rows that were acknowledged and are not there for the next process."""
    store = SqliteStore(folder)
    found = {row.sequence for row in store.load().events}
    store.close()
    return {int(line[1]) for line in said if line[0] == "acknowledged"} - found


@pytest.mark.parametrize("statement", ["COMMIT", "PRAGMA wal_checkpoint"])
def test_an_fsync_that_fails_is_never_tried_again(state_dir, statement):
    """The kernel may have thrown the pages away, and a second fsync would say that all is well."""
    status, said = commit(state_dir, statement, errno.EIO, "fsync", "fdatasync")
    assert status == 7, said
    assert said[-1][0] == "failed" and "disk I/O error" in said[-1][2]
    assert len(said) > 2
    assert not missing(state_dir, said)


def test_an_fsync_error_that_is_ignored_is_found_out(state_dir):
    """The check above is worth something: whoever goes on acknowledges what is not kept."""
    status, said = commit(state_dir, "COMMIT", errno.EIO, "fsync", "fdatasync", ignored=True)
    assert status == 0
    assert missing(state_dir, said)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_write_without_room_is_told_from_a_broken_disk(state_dir, error):
    status, said = commit(state_dir, "COMMIT", error, "pwrite64")
    assert status == 8, said
    assert "bytes are free" in said[-1][2] and "make room there" in said[-1][2]
    assert not missing(state_dir, said)


def test_a_write_error_that_is_no_want_of_room_ends_the_process(state_dir):
    status, said = commit(state_dir, "COMMIT", errno.EIO, "pwrite64")
    assert status == 7, said
    assert not missing(state_dir, said)


def test_the_reserve_makes_room_for_what_failed(state_dir, monkeypatch):
    """The commit that found no room is made once the reserve has been given up."""
    store = SqliteStore(state_dir)
    epoch = store.begin_term().epoch
    pages = store._database.execute("PRAGMA page_count").fetchone()[0]
    store._database.execute(f"PRAGMA max_page_count = {pages + 1}")
    spent = []

    def spend(_self):
        spent.append(True)
        store._database.execute("PRAGMA max_page_count = 100000")
        return True

    monkeypatch.setattr(Reserve, "spend", spend)
    row = PutEvent(EventRow(sequence=1, stream="c", body=b"x" * 50_000))
    store.commit(epoch, [row])
    assert spent == [True]
    assert [event.sequence for event in store.load().events] == [1]
    store.close()


MASTER = (
    FAILING
    + """
import json, os, sqlite3, sys
from posthouse.settings import MasterSettings
from posthouse_master.daemon import run
settings = json.loads(sys.argv[1])
begun = False

class Connection(sqlite3.Connection):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.set_trace_callback(watch)

def watch(said):
    global begun
    if said == "COMMIT" and not begun and os.path.exists(settings["state_dir"] + "/now"):
        begun = True
        fail([int(number) for number in sys.argv[2:]], 5)

sqlite3.connect = lambda *a, **n: Connection(*a, **n)
sys.exit(run(MasterSettings(**settings)))
"""
)


def test_a_master_whose_fsync_fails_ends_and_its_successor_has_all(state_dir):
    """Nothing of the batch is sent; whoever asked asks the next master under the same id."""
    state_dir.mkdir()
    settings = {
        "state_dir": str(state_dir),
        "listen_agents": f"ipc://{state_dir.parent}/agents",
        "listen_clients": f"ipc://{state_dir.parent}/clients",
    }

    def launch(*arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", MASTER, json.dumps(settings), *arguments]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert '"master.ready"' in process.stderr.readline()
        return process

    master = launch(*numbers("fsync", "fdatasync"))
    with posthouse.connect(settings["listen_clients"], timeout=20) as cluster:
        known = [cluster.register(BackgroundWorker(name=f"w{n}", main="m:f")) for n in range(5)]
        (state_dir / "now").touch()
        with pytest.raises(posthouse.PosthouseError):
            cluster.register(BackgroundWorker(name="unkept", main="m:f"), timeout=3)
        _, said = master.communicate(timeout=20)
        assert master.returncode == 1, said
        assert '"master.failed"' in said and "disk I/O error" in said
        (state_dir / "now").unlink()
        master = launch()
        names = {worker.status.name for worker in cluster.workers(timeout=20)}
        assert {handle.name for handle in known} <= names
    master.terminate()
    master.communicate(timeout=20)
