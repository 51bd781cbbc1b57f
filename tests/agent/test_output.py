"""The bounds of workers' output: files, real ones, of every file system that is here."""

import errno
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from posthouse import limits
from posthouse_agent import logs, native, output
from posthouse_agent.effects import ReadLogFile

KIB = 1024
BOUND = 64 * KIB


@pytest.fixture(params=["/tmp", "/dev/shm"])
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="ph", dir=request.param) as name:
        yield Path(name)


def lines(first: int, last: int) -> bytes:
    return b"".join(b"line %d %s\n" % (n, b"x" * (n % 97)) for n in range(first, last))


def bounded(path: Path, bytes_max: int = BOUND) -> int:
    fd = output.open_output(str(path), os.O_RDWR)
    try:
        return output.cut(fd, bytes_max)
    finally:
        os.close(fd)


def kept(path: Path) -> tuple[int, bytes]:
    """The first kept position, and all from there, read as a client does it: page by page."""
    slot, generation = output.parse_name(path.name) or (0, 0)
    at, data, first = 0, b"", None
    while True:
        page = logs.read_page(
            str(path.parent), ReadLogFile(1, slot, generation, at, limits.log_read_bytes_max)
        )
        assert not page.error
        first = page.offset if first is None else first
        if not page.data:
            return first, data
        data += page.data
        at = page.offset + len(page.data)


def test_only_the_oldest_whole_lines_go_and_positions_stay(folder: Path) -> None:
    path, written = folder / "3.1.log", b""
    for n in range(0, 20_000, 500):
        more = lines(n, n + 500)
        with path.open("ab") as file:
            file.write(more)
        written += more
        bounded(path)
        first, data = kept(path)
        assert data == written[first:]
        assert first == 0 or written[first - 1 : first] == b"\n"
        assert len(data) <= BOUND
        assert first == 0 or len(data) >= BOUND * 7 // 8 - 200
    assert first > 10 * BOUND
    assert os.stat(path).st_blocks * 512 <= 2 * BOUND
    page = logs.read_page(str(folder), ReadLogFile(1, 3, 1, 100, 10))
    assert (page.offset, page.lost, page.size) == (first, first - 100, len(written))


@pytest.mark.parametrize("seed", range(10))
def test_any_bytes_are_given_back_as_written(folder: Path, seed: int) -> None:
    """Empty lines, lines that begin with NULs, lines without an end: what is kept is exact."""
    dice = random.Random(seed)
    path, written = folder / "3.1.log", b""
    for _ in range(60):
        size = dice.choice((0, 1, 5, 80, 4095, 4096, 20_000))
        more = dice.choice((b"\n", b"", b"\r\n")) + bytes(dice.choices(range(256), k=size))
        written += more
        with path.open("ab") as file:
            file.write(more)
        bounded(path)
        first, data = kept(path)
        assert data == written[first:]
        assert len(data) <= BOUND


def test_a_line_without_an_end_is_bounded_too(folder: Path) -> None:
    (folder / "3.1.log").write_bytes(b"y" * 10 * BOUND)
    assert bounded(folder / "3.1.log")
    first, data = kept(folder / "3.1.log")
    assert set(data) == {ord("y")}
    assert first + len(data) == 10 * BOUND
    assert len(data) <= BOUND


def test_a_writer_notices_nothing(folder: Path) -> None:
    """It appends while its head is dropped again and again; no byte of the rest is touched."""
    path = folder / "3.1.log"
    code = "import os\nfor n in range(40_000): os.write(1, b'line %d\\n' % n)"
    with path.open("ab") as file, subprocess.Popen([sys.executable, "-c", code], stdout=file) as p:
        while p.poll() is None:
            bounded(path)
    bounded(path)
    expected = b"".join(b"line %d\n" % n for n in range(40_000))
    first, data = kept(path)
    assert first > 0
    assert data == expected[first:]


def test_where_no_holes_can_be_punched_a_new_file_takes_over_before_a_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(native, "punch", refuse)
    path, written = folder / "3.1.log", b""
    for n in range(0, 20_000, 4_000):
        more = lines(n, n + 4_000)
        with path.open("ab") as file:
            file.write(more)
        written += more
        (looked,) = logs.look(str(folder), {(3, 1): BOUND}, frozenset()).notes
        assert looked.name == "log.unbounded"
        assert not logs.look(str(folder), {(3, 1): BOUND}, frozenset({(3, 1)})).notes
        output.begin_again(str(path), BOUND)
        for known in (True, False):  # a file system that tells of holes, and one that does not
            if not known:
                monkeypatch.setattr(os, "lseek", lambda *_: 0)
            first, data = kept(path)
            monkeypatch.undo()
            monkeypatch.setattr(native, "punch", refuse)
            assert data == written[first:]
            assert len(data) <= BOUND
    assert [p.name for p in folder.iterdir()] == ["3.1.log"]


def test_a_second_name_is_not_written_to(folder: Path) -> None:
    """Whoever a worker runs as can link another file into its place."""
    victim = folder / "victim"
    victim.write_bytes(lines(0, 9_000))
    os.link(victim, folder / "3.1.log")
    with pytest.raises(OSError, match="one name"):
        bounded(folder / "3.1.log")
    output.begin_again(str(folder / "3.1.log"), BOUND)
    assert victim.read_bytes() == lines(0, 9_000)


# --- the folder ---


def fill(folder: Path, *keys: tuple[int, int]) -> None:
    for age, key in enumerate(reversed(keys)):
        path = folder / output.name(*key)
        path.write_bytes(lines(0, 4_000))
        os.utime(path, (1e9 - age, 1e9 - age))


def left(folder: Path) -> dict[str, int]:
    return {p.name: len(kept(p)[1]) for p in folder.iterdir()}


def test_a_full_folder_loses_what_is_retired_first_and_what_runs_last(folder: Path) -> None:
    keys = (1, 1), (2, 1), (1, 2), (2, 2), (3, 1)
    fill(folder, *keys)
    (folder / "not-ours.txt").write_bytes(b"x" * 1_000_000)
    whole = len(lines(0, 4_000))
    used = sum((folder / output.name(*k)).stat().st_blocks * 512 for k in keys)
    one = used // len(keys)
    assert logs.tidy(str(folder), frozenset(), used, 0) == ()

    logs.tidy(str(folder), frozenset({(1, 2)}), used - 1, 0)
    assert sorted(left(folder)) == ["1.2.log", "2.1.log", "2.2.log", "3.1.log", "not-ours.txt"]
    logs.tidy(str(folder), frozenset({(1, 2)}), 3 * one - 1, 0)
    now = left(folder)
    assert "2.1.log" not in now
    assert now["1.2.log"] == whole  # it runs
    assert now["2.2.log"] <= limits.log_bytes_min < now["3.1.log"]
    (note,) = logs.tidy(str(folder), frozenset({(1, 2)}), 1, 0)
    assert note.name == "logs.tidied"
    now = left(folder)
    assert all(now[output.name(*k)] <= limits.log_bytes_min for k in keys if k in keys[2:])
    assert (folder / "not-ours.txt").stat().st_size == 1_000_000


def test_a_full_disk_is_a_full_folder(folder: Path) -> None:
    fill(folder, (1, 1), (1, 2))
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    assert logs.tidy(str(folder), frozenset(), 2**50, free // 2) == ()
    assert logs.tidy(str(folder), frozenset(), 2**50, 2 * free + 2**30)
    assert "1.1.log" not in left(folder)
