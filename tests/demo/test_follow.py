"""examples/follow.py: whole lines only, each once, from where the last transaction ended."""

import importlib.util
import io
import sqlite3
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def follow():
    spec = importlib.util.spec_from_file_location("follow", EXAMPLES / "follow.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def database(follow, tmp_path):
    opened = follow.open_database(str(tmp_path / "lines.db"))
    yield opened
    opened.close()


def copied(database):
    return [text for (text,) in database.execute("SELECT text FROM line ORDER BY rowid")]


def test_a_file_that_is_not_there_yet(follow, database, tmp_path):
    assert follow.copy_lines(database, tmp_path / "none", 1) == 0


def test_half_a_line_is_left_for_later(follow, database, tmp_path):
    file = tmp_path / "log"
    file.write_bytes(b"one\ntw")
    assert follow.copy_lines(database, file, 1) == 1
    assert follow.copy_lines(database, file, 1) == 0
    with file.open("ab") as growing:
        growing.write(b"o\n\nthree")
    assert follow.copy_lines(database, file, 1) == 2
    assert copied(database) == [b"one\n", b"two\n", b"\n"]


def test_any_bytes_and_lines_longer_than_a_batch(follow, database, tmp_path):
    file = tmp_path / "log"
    lines = [b"\xff\x00\r\n", b"x" * (3 * follow.BATCH_BYTES) + b"\n", b"end\n"]
    file.write_bytes(b"".join(lines))
    while follow.copy_lines(database, file, 1):
        pass
    assert copied(database) == lines


def test_an_error_between_two_lines_leaves_neither(follow, database, tmp_path):
    file = tmp_path / "log"
    file.write_bytes(b"one\ntwo\n")
    database.execute(
        "CREATE TRIGGER fail BEFORE INSERT ON line WHEN new.text = CAST('two\n' AS BLOB) "
        "BEGIN SELECT RAISE(ABORT, 'disk full'); END"
    )
    with pytest.raises(sqlite3.IntegrityError, match="disk full"):
        follow.copy_lines(database, file, 1)
    assert copied(database) == []
    database.execute("DROP TRIGGER fail")
    assert follow.copy_lines(database, file, 1) == 2
    assert copied(database) == [b"one\n", b"two\n"]


def test_an_earlier_incarnation_may_no_longer_write(follow, database, tmp_path):
    file = tmp_path / "log"
    file.write_bytes(b"one\n")
    follow.copy_lines(database, file, 7)
    with file.open("ab") as growing:
        growing.write(b"two\n")
    with pytest.raises(SystemExit, match="later incarnation"):
        follow.copy_lines(database, file, 6)
    assert copied(database) == [b"one\n"]
    assert follow.copy_lines(database, file, 8) == 1


class _Growing(io.RawIOBase):
    """A file that ends in the middle of a line when it is read, and is longer a moment later."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._pieces.pop(0) if self._pieces else b""
        buffer[: len(piece)] = piece
        return len(piece)


def test_a_line_that_is_finished_while_we_read_is_not_two(follow: Any) -> None:
    opened = io.BufferedReader(_Growing(b"one\ntw", b"", b"o\nthree\n"))
    assert follow.complete_lines(opened) == [b"one\n"]
