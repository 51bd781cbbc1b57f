"""Follow a growing file into SQLite, and lose or double no line whenever the worker is killed.

    posthouse run follow:main --on b --arg '{"file": "/var/log/app.log", "database": "/tmp/app.db"}'

The lines and the position up to which they were read are written in ONE transaction. So after a
kill at any moment both are there or neither, and the next incarnation goes on from the position.
The file may only grow: after each newline a line is complete and never changes again.
"""

import sqlite3
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from posthouse import worker

BATCH_BYTES = 65_536


def main(arg: dict[str, Any]) -> None:
    worker.unblock_signals()  # from here on SIGTERM ends us, between two transactions or inside one
    file = Path(arg["file"])
    database = open_database(arg["database"])
    while True:
        worker.latch.reset()
        while copy_lines(database, file, worker.entry().token):
            pass
        # Sleep in the latch, never in time.sleep(): so we also wake when our master is gone.
        if worker.POSTMASTER_DEATH in worker.latch.wait(timeout=0.1):
            sys.exit(1)


def open_database(path: str) -> sqlite3.Connection:
    # isolation_level=None: transactions begin where we say so and nowhere else.
    database = sqlite3.connect(path, isolation_level=None, timeout=30)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("CREATE TABLE IF NOT EXISTS line (file TEXT, start INTEGER, text BLOB)")
    database.execute(
        "CREATE TABLE IF NOT EXISTS position (file TEXT PRIMARY KEY, next INTEGER, token INTEGER)"
    )
    return database


def copy_lines(database: sqlite3.Connection, file: Path, token: int) -> int:
    """Copy a batch of complete lines; returns how many."""
    with transaction(database):
        row = database.execute(
            "SELECT next, token FROM position WHERE file = ?", (str(file),)
        ).fetchone()
        position, last_token = row or (0, 0)
        if last_token > token:
            sys.exit("a later incarnation of this worker has written here already")
        lines = read_lines(file, position)
        for line in lines:
            database.execute("INSERT INTO line VALUES (?, ?, ?)", (str(file), position, line))
            position += len(line)
        if lines:
            database.execute(
                "INSERT OR REPLACE INTO position VALUES (?, ?, ?)", (str(file), position, token)
            )
    return len(lines)


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")  # one writer at a time, also while we read the position
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def read_lines(file: Path, position: int) -> list[bytes]:
    """The next complete lines from there, about BATCH_BYTES of them."""
    if not file.exists():
        return []
    with file.open("rb") as opened:
        opened.seek(position)
        return complete_lines(opened)


def complete_lines(opened: Iterable[bytes]) -> list[bytes]:
    """Up to the first line that its writer has not finished: that one is left for the next look.

    Not opened.readlines(): the writer may finish the line while we read on, and then its two
    halves would come as two lines.
    """
    lines: list[bytes] = []
    size = 0
    for line in opened:
        if not line.endswith(b"\n"):
            break
        lines.append(line)
        size += len(line)
        if size >= BATCH_BYTES:
            break
    return lines
