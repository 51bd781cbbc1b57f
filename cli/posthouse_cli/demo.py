"""The session of the README's first screen, played with real processes, printed and checked.

Owns: the script, and what must hold at each step. Must not know: how the cluster does it; it uses
the commands and the client that users have. Invariant: it succeeds only if every check held, and
leaves nothing behind unless it was asked to.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, Self

import posthouse
from posthouse import BackgroundWorker, EventKind, Handle
from posthouse.errors import PosthouseError
from posthouse_cli import examples
from posthouse_cli.screen import Screen
from posthouse_testing import sweep

__all__ = ["Demo", "Failed", "compare"]

_PATIENCE_S: Final = 15.0  # for one step; it takes milliseconds unless something is wrong
_COPIED_S: Final = 15.0  # for the last lines to be copied
_KILLS: Final = 10
_LINES_BETWEEN_KILLS: Final = 300


class Failed(Exception):
    """A step did not do what it promises."""


class Demo:
    """`run()` plays it and returns the exit status."""

    def __init__(self, say: Callable[[str], None], *, keep: bool = False) -> None:
        self._say = say
        self._keep = keep
        self._folder = Path(tempfile.mkdtemp(prefix="ph", dir=sweep.short_tmp()))
        self._house = self._folder / "house"
        self._work = self._folder / "work"
        self._env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("POSTHOUSE_")},
            "POSTHOUSE_DIR": str(self._house),
            "NO_COLOR": "1",
            "TERM": "dumb",
            "COLUMNS": "100",
        }
        self._master = f"ipc://{self._house}/clients.sock"
        self._screens: list[Screen] = []
        self._seed = random.SystemRandom().randrange(10**6)

    def run(self) -> int:
        """Everything; 0 only if all held."""
        guard = sweep.start_guard(self._folder)
        assert guard.stdin is not None
        begun_s = time.monotonic()
        kept = False
        try:
            self._prepare()
            self._play_up()
            self._play_beat()
            self._play_follow()
            self._say(f"# every step held; {time.monotonic() - begun_s:.1f} s in all")
            kept = self._keep
            return 0
        except (Failed, PosthouseError, subprocess.SubprocessError, OSError) as error:
            self._say(f"# the demo FAILED: {error} (seed {self._seed})")
            self._show_logs()
            return 1
        finally:
            if kept:
                guard.stdin.write(b"keep")
                self._tell_kept()
            else:
                self._clean_up()
            with contextlib.suppress(BrokenPipeError):
                guard.stdin.close()
            guard.wait()

    # --- the cluster ---

    def _prepare(self) -> None:
        self._house.mkdir(mode=0o700)
        self._work.mkdir()
        for path in Path(examples.__file__).parent.glob("[a-z]*.py"):
            shutil.copy(path, self._work / path.name)

    def _play_up(self) -> None:
        self._comment("one machine plays a master and two hosts, a and b")
        screen = self._begin("up", "--hosts", "a,b")
        self._say(screen.wait_for("ready:", _PATIENCE_S).partition(". ")[0])

    def _clean_up(self) -> None:
        for screen in reversed(self._screens):
            screen.end(_PATIENCE_S)
        left = sweep.writers(self._folder)
        if not sweep.sweep(self._house):
            self._say(f"# could not end {sweep.writers(self._folder)}; see {self._folder}")
            return
        if left:
            self._say(f"# ended what was left over: {left}")
        shutil.rmtree(self._folder, ignore_errors=True)

    def _tell_kept(self) -> None:
        self._say(f"# left running, as asked; to use it: export POSTHOUSE_DIR={self._house}")
        self._say(f"# to end it: kill {self._screens[0].pid}; rm -r {self._folder}")

    # --- first half: one worker, killed and terminated ---

    def _play_beat(self) -> None:
        self._comment("a function is registered here, and forked on host b")
        follower = self._begin("run", "beat:main", "--on", "b", "--restart-time", "1")
        pid = self._started(self._show_until(follower, "started"))
        self._check_forked_by_a_warden(pid, "b")

        self._comment("somebody kills it")
        self._say(f"$ kill -9 {pid}")
        os.kill(pid, signal.SIGKILL)
        self._expect(self._show_until(follower, "exited"), f" b .*{pid}.*SIGKILL.*restarts in 1 s")
        again = self._started(self._show_until(follower, "started"))
        self._check(again != pid, "the restarted worker has the pid of the killed one")
        self._check_forked_by_a_warden(again, "b")

        listed = self._play("ps")
        self._expect(listed, rf"beat +started +b +{again} .*2 +killed by SIGKILL")
        self._wait_until(lambda: "beat" in self._capture("logs", "beat"), "beat writes nothing")
        self._play("logs", "-n", "1", "beat", expect="beat")
        self._comment("terminate ends it and forgets it")
        self._play("terminate", "beat", expect="beat is unregistered")
        self._show_until(follower, "unregistered")
        self._check(follower.wait(_PATIENCE_S) == 0, "`posthouse run` did not end with status 0")
        self._check(sweep.identify(again) is None, f"process {again} is still there")
        self._check("beat" not in self._capture("ps"), "`posthouse ps` still lists beat")

    def _started(self, line: str) -> int:
        found = re.search(r" started +b +(\d+)", line)
        self._check(found is not None, f"no start on host b in {line!r}")
        assert found is not None
        return int(found[1])

    def _check_forked_by_a_warden(self, pid: int, host: str) -> None:
        locks = (self._house / "hosts" / host).glob("*/warden.lock")
        wardens = [who for lock in locks for who in sweep.holders(lock)]
        status = Path(f"/proc/{pid}/status").read_text()
        parent = re.search(r"^PPid:\s*(\d+)$", status, re.MULTILINE)
        self._check(
            parent is not None and int(parent[1]) in {who.pid for who in wardens},
            f"process {pid} is not a child of a warden of host {host}",
        )

    # --- second half: real input ---

    def _play_follow(self) -> None:
        self._comment(f"two workers copy growing files into SQLite; {_KILLS} times kill -9")
        chance = random.Random(self._seed)  # noqa: S311 - when to kill needs no secrecy
        with posthouse.connect(self._master, timeout=_PATIENCE_S) as cluster:
            since = cluster.cursor()
            handles = [self._follow(cluster, host) for host in ("a", "b")]
            for handle in handles:
                handle.wait_for_startup(timeout=_PATIENCE_S)
            writer = _Writer([self._work / "a.log", self._work / "b.log"], chance.randrange(10**6))
            with writer:
                killed = [self._kill(handle, writer, chance) for handle in handles * (_KILLS // 2)]
            compare(writer.paths, self._say)
            self._check_history(cluster, since, handles, killed)
            for handle in handles:
                handle.terminate()
            for handle in handles:
                handle.wait_until_unregistered(timeout=_PATIENCE_S)

    def _follow(self, cluster: posthouse.Cluster, host: str) -> Handle:
        arg = {"file": f"{self._work}/{host}.log", "database": f"{self._work}/{host}.db"}
        return cluster.register(
            BackgroundWorker(
                name=f"follow-{host}", main="follow:main", main_arg=arg, host=host, restart_time=0
            )
        )

    def _kill(self, handle: Handle, writer: "_Writer", chance: random.Random) -> int:
        """Kill it at a random moment while its file grows, and wait until it is back."""
        writer.wait_for(writer.count + _LINES_BETWEEN_KILLS, _PATIENCE_S)
        time.sleep(chance.random() * 0.05)
        status = handle.wait_for_startup(timeout=_PATIENCE_S)
        pid, host = status.pid, status.host
        self._check(pid is not None, f"{handle.name} is {status.state}: {status.reason}")
        assert pid is not None
        lines = writer.count
        os.kill(pid, signal.SIGKILL)
        for event in handle.events(after=status.cursor, timeout=_PATIENCE_S):
            if event.kind is EventKind.STARTED:
                self._say(
                    f"kill -9 {pid} ({handle.name} on {host}, {lines} lines written): "
                    f"back as {event.pid}"
                )
                break
        return pid

    def _check_history(
        self,
        cluster: posthouse.Cluster,
        since: posthouse.Cursor,
        handles: list[Handle],
        killed: list[int],
    ) -> None:
        """Every kill was told, once, with its cause; and nothing else ended."""
        told = [
            (event.pid, event.exit.signal if event.exit else None)
            for event in cluster.events(after=since, follow=False)
            if event.kind is EventKind.EXITED and event.handle_id in {h.id for h in handles}
        ]
        wanted = [(pid, int(signal.SIGKILL)) for pid in killed]
        self._check(sorted(told) == sorted(wanted), f"exits told: {told}; kills: {wanted}")
        self._say(f"{len(killed)} kills, {len(told)} exits told, each once and with its cause")

    # --- saying and checking ---

    def _comment(self, text: str) -> None:
        self._say(f"# {text}")

    def _check(self, held: bool, otherwise: str) -> None:
        if not held:
            raise Failed(otherwise)

    def _wait_until(self, held: Callable[[], bool], otherwise: str) -> None:
        deadline_s = time.monotonic() + _PATIENCE_S
        while not held():
            self._check(time.monotonic() < deadline_s, otherwise)
            time.sleep(0.05)

    def _expect(self, text: str, pattern: str) -> None:
        self._check(re.search(pattern, text) is not None, f"no {pattern!r} in {text!r}")

    def _begin(self, *arguments: str) -> Screen:
        """A command in the background."""
        self._say(f"$ posthouse {' '.join(arguments)} &")
        screen = Screen(arguments, self._work, self._env)
        self._screens.append(screen)
        return screen

    def _show_until(self, screen: Screen, word: str) -> str:
        """Print its lines up to the one with this word; returns that one."""
        line = ""
        while f" {word} " not in f"{line} ":
            line = screen.line(_PATIENCE_S)
            self._say(line)
        return line

    def _play(self, *arguments: str, expect: str = "") -> str:
        """A command in the foreground: print it and its output."""
        self._say(f"$ posthouse {' '.join(arguments)}")
        text = self._capture(*arguments)
        for line in text.splitlines():
            self._say(line)
        self._check(expect in text, f"`posthouse {' '.join(arguments)}` did not say {expect!r}")
        return text

    def _capture(self, *arguments: str) -> str:
        screen = Screen(arguments, self._work, self._env)
        text = screen.rest(_PATIENCE_S)
        status = screen.wait(_PATIENCE_S)
        self._check(status == 0, f"`posthouse {' '.join(arguments)}`: status {status}: {text}")
        return text

    def _show_logs(self) -> None:
        for log in sorted(self._house.glob("**/*.log")):
            self._say(f"# --- the end of {log.relative_to(self._house)}")
            for line in log.read_text(errors="replace").splitlines()[-20:]:
                self._say(f"# {line}")


def compare(files: Iterable[Path], say: Callable[[str], None]) -> None:
    """Every file's lines are in the database beside it, each once and in order. Raises Failed."""
    for path in files:
        written = path.read_bytes().splitlines(keepends=True)
        if len(set(written)) != len(written):
            raise Failed(f"{path.name} repeats a line itself")
        deadline_s = time.monotonic() + _COPIED_S
        while (copied := _copied(path.with_suffix(".db"))) != written:
            if time.monotonic() > deadline_s:
                missing = len(set(written) - set(copied))
                doubled = len(copied) - len(set(copied))
                raise Failed(
                    f"{path.name}: {len(written)} lines written, {len(copied)} copied, "
                    f"{missing} missing, {doubled} doubled"
                )
            time.sleep(0.05)
        say(f"{path.name}: {len(written)} lines written, each copied once")


def _copied(database: Path) -> list[Any]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        try:
            rows = connection.execute("SELECT text FROM line ORDER BY start, rowid")
            return [text for (text,) in rows]
        except sqlite3.OperationalError:
            return []


class _Writer:
    """Appends lines to the files, in uneven pieces, until the `with` block ends."""

    def __init__(self, paths: list[Path], seed: int) -> None:
        self.paths = paths
        self.count = 0
        self._chance = random.Random(seed)  # noqa: S311 - lengths of lines need no secrecy
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write, name="writer")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for(self, count: int, patience_s: float) -> None:
        """Wait until so many lines have been written."""
        deadline_s = time.monotonic() + patience_s
        while self.count < count:
            if time.monotonic() > deadline_s or not self._thread.is_alive():
                raise Failed(f"the writer is stuck at line {self.count}")
            time.sleep(0.005)

    def _write(self) -> None:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(path.open("ab", buffering=0)) for path in self.paths]
            while not self._stop.is_set():
                for file in files:
                    words = f"line {self.count} " + "x" * self._chance.randrange(200) + "\n"
                    line = words.encode()
                    cut = self._chance.randrange(len(line))
                    file.write(line[:cut])  # a reader may see half a line
                    if self.count % 10 == 0:
                        time.sleep(0.001)
                    file.write(line[cut:])
                    self.count += 1
