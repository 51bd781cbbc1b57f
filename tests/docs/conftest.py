"""Plays pages: their console blocks in real shells, with the files that they show.

A block whose first line is `# NAME.py` (or .toml, .sh, .conf) is that file in the home folder;
`# a: NAME` puts it on machine a. In a console block `$ ` stands before a command of the only
machine, `a$ ` before one of machine a, which is a network namespace; lines below are what it
prints. A command that reads is asked again until it prints that: what it tells of may take a
moment. Times, process ids and durations differ; `...` stands for any text, and alone in a line
for any lines. Blocks of text are to be read only; any other block that is not played has a line
`<!-- not run: REASON -->` above it.
"""

import os
import pty
import re
import selectors
import shutil
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from posthouse_testing.sweep import sweep

ROOT = Path(__file__).parents[2]
TWO_MACHINES = "docs/how-to/two-machines.md"
DEADLINE_S = 45.0  # for one step; others may be running on the machine
# Under CI or BUILD_NUMBER pytest's summary has whole messages; a page shows a reader's terminal.
_NOT_A_READERS = ("POSTHOUSE", "XDG", "CI", "BUILD_NUMBER", "GITHUB_", "PYTEST_", "FORCE_COLOR")
READS = {
    "ps",
    "unclaimed",
    "status",
    "logs",
    "events",
    "hosts",
    "pid",
    "top",
    "config",
    "why",
    "stacks",
}
TO_BE_READ = {"text", "mermaid", "{toctree}"}
_FENCE = re.compile(
    r"(?:^<!-- not run: ([^\n]+) -->\n)?^```([\w{}]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
_FILE = re.compile(r"[#;] (?:(\w+): )?([\w/-]+\.(?:toml|py|sh|conf))\n")
_PROMPT = re.compile(r"(\w*)\$ (.*)")
_COPY = re.compile(r"^Copy `([^`]+)` from `(\w+)` to `(\w+)`\.$", re.MULTILINE)
_ENDED = re.compile(r"^bash: line \d+: +\d+ (?:Killed|Terminated|Quit|Aborted).*\n", re.MULTILINE)
_VARIES = (
    (re.compile(r"\x1b\[[0-9;?]*[A-Za-z]"), ""),
    (re.compile(r"\d\d:\d\d:\d\d"), "TIME"),
    (re.compile(r"\b\d+(?:\.\d+)? (?:ms|s|min)\b"), "DURATION"),
    (re.compile(r"\b\d{2,7}\b"), "PID"),
    (re.compile(r" {2,}"), "  "),
)


class Block(NamedTuple):
    """One fenced block; `not_run` is why it is not played, where that is said."""

    not_run: str
    language: str
    text: str
    at: int

    @property
    def to_be_played(self) -> bool:
        return not self.not_run and self.language not in TO_BE_READ


class Step(NamedTuple):
    """One command, or one copy of a file from a machine to another."""

    machine: str
    command: str
    shown: list[str]


def blocks(page: str) -> list[Block]:
    return [Block(found[1] or "", *found.groups()[1:], found.start())
            for found in _FENCE.finditer(page)]  # fmt: skip


def steps(text: str) -> list[Step]:
    """The commands of one console block, with what they print."""
    found: list[Step] = []
    for line in text.splitlines():
        if match := _PROMPT.match(line):
            found.append(Step(match[1], match[2], []))
        elif not line.startswith("# "):
            assert found, f"output before a command: {line}"
            found[-1].shown.append(line)
    return found


def masked(text: str) -> list[str]:
    for pattern, word in _VARIES:
        text = pattern.sub(word, text)
    # Progress is drawn over itself: of such a line only what was drawn last is left to see.
    seen = [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return [line for line in seen if line]


def agrees(printed: str, shown: list[str]) -> bool:
    wanted = ""
    for line in masked("\n".join(shown)):
        if line == "...":
            wanted += r"(?:.*\n)*"
        else:
            wanted += re.escape(line).replace(r"\.\.\.", ".*") + r"\n"
    return bool(re.fullmatch(wanted, "".join(f"{line}\n" for line in masked(printed))))


class Shell:
    """One bash that stays, so that `export` and `&` mean what they mean to a reader."""

    def __init__(self, prefix: list[str], home: Path, env: dict[str, str]) -> None:
        self.home = home
        self.log = home.parent / f"{home.name}.log"
        self._screen, inside = pty.openpty()  # tables are for terminals
        termios.tcsetwinsize(inside, (50, 140))
        settings = termios.tcgetattr(inside)
        settings[1] &= ~termios.OPOST
        termios.tcsetattr(inside, termios.TCSANOW, settings)
        self.process = subprocess.Popen(
            [*prefix, "bash", "--norc", "--noprofile"],
            cwd=home,
            env={**env, "HOME": str(home)},
            stdin=subprocess.PIPE,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
        )
        os.close(inside)

    def run(self, command: str) -> tuple[str, int]:
        """What it printed, and its exit status; of one in the background nothing is read."""
        where = f">>{self.log} 2>&1" if command.endswith("&") else "2>&1"
        mark = f"mark-{os.urandom(8).hex()}"
        assert self.process.stdin is not None
        self.process.stdin.write(
            f"{{ {command}\n}} </dev/null {where}; printf '{mark} %s\\n' $?\n".encode()
        )
        self.process.stdin.flush()
        text = self._until(mark)
        # What follows the status is bash's own word on a job that it saw end, whenever it looked.
        printed, status = text.split(f"{mark} ")
        return _ENDED.sub("", printed), int(status.partition("\n")[0])

    def _until(self, mark: str) -> str:
        end = time.monotonic() + DEADLINE_S
        got = b""
        with selectors.DefaultSelector() as ready:
            ready.register(self._screen, selectors.EVENT_READ)
            while not re.search(rb"%b \d+\n" % mark.encode(), got):
                left_s = end - time.monotonic()
                assert left_s > 0 and ready.select(left_s), f"it does not end; so far: {got!r}"
                more = os.read(self._screen, 65536)
                assert more, f"the shell has ended: {got!r}"
                got += more
        return got.decode()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        os.close(self._screen)


class Player:
    """Plays one page after its files have been written."""

    def __init__(self, folder: Path, namespaces: dict[str, str]) -> None:
        self.folder = folder
        self.namespaces = namespaces
        self.shells: dict[str, Shell] = {}

    def shell(self, machine: str) -> Shell:
        if machine not in self.shells:
            home = self.folder / (machine or "home")
            home.mkdir(exist_ok=True)
            env = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_A_READERS)}
            env |= {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "LANG": "C.UTF-8"}
            env |= {"NO_COLOR": "1", "TERM": "xterm", "COLUMNS": "140", "PYTHONUNBUFFERED": "1"}
            # Plugins that our pages have no use for, and that take a second to load.
            env["PYTEST_ADDOPTS"] = "-p no:hypothesispytest -p no:anyio"
            if not machine:
                env["POSTHOUSE_DIR"] = str(self.folder / "run")
            prefix = ["ip", "netns", "exec", self.namespaces[machine]] if machine else []
            self.shells[machine] = Shell(prefix, home, env)
        return self.shells[machine]

    def write(self, block: Block) -> None:
        named = _FILE.match(block.text)
        assert named, f"neither a file nor a command, and no word why not: {block.text[:80]!r}"
        path = self.shell(named[1] or "").home / named[2]
        path.parent.mkdir(exist_ok=True)
        path.write_text(block.text)

    def play(self, step: Step) -> None:
        shell = self.shell(step.machine)
        words = step.command.split()
        reads = words[0] == "posthouse" and len(words) > 1 and words[1] in READS
        end = time.monotonic() + DEADLINE_S
        while True:
            printed, status = shell.run(step.command)
            print(f"{step.machine}$ {step.command}\n{printed}({status})")
            refused = any(line.startswith(("posthouse: ", "Error:")) for line in step.shown)
            good = (not step.shown or agrees(printed, step.shown)) and (status == 0 or refused)
            if good:
                return
            if not reads or time.monotonic() > end:
                break
            time.sleep(0.1)
        logs = "\n".join(f"{s.log.name}: {s.log.read_text()[-3000:]}" for s in self.shells.values()
                         if s.log.exists())  # fmt: skip
        wanted = "\n".join(step.shown)
        pytest.fail(f"$ {step.command}\nexit {status}, printed:\n{printed}\nnot:\n{wanted}\n{logs}")

    def page(self, text: str) -> None:
        """Everything that it shows, in its order."""
        todo: list[tuple[int, Block | re.Match[str]]] = [
            (b.at, b) for b in blocks(text) if b.to_be_played
        ]
        todo += [(copy.start(), copy) for copy in _COPY.finditer(text)]
        for _, item in sorted(todo, key=lambda one: one[0]):
            if isinstance(item, re.Match):
                shutil.copy(self.shell(item[2]).home / item[1], self.shell(item[3]).home)
            elif item.language == "console":
                for step in steps(item.text):
                    self.play(step)
            else:
                self.write(item)


def pages() -> dict[str, list[Block]]:
    """The README and all of docs, each with its blocks."""
    found = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    return {
        str(path.relative_to(ROOT)): blocks(path.read_text())
        for path in found
        if not path.name.endswith(".in.md")  # what is made of it is played
    }


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `played_page` has each page on which there is something to play."""
    if "played_page" in metafunc.fixturenames:
        played = [
            page
            for page, found in pages().items()
            if page != TWO_MACHINES and any(b.to_be_played for b in found)
        ]
        metafunc.parametrize("played_page", played)


@pytest.fixture
def not_run() -> dict[str, list[str]]:
    """Why, for each block that is neither played nor only to be read."""
    found = {page: [b.not_run for b in of if b.not_run] for page, of in pages().items()}
    return {page: reasons for page, reasons in found.items() if reasons}


@pytest.fixture
def player() -> Iterator[Callable[..., Player]]:
    """Makes players; ends all that they have begun."""
    made: list[Player] = []

    def make(namespaces: dict[str, str] | None = None) -> Player:
        folder = Path(tempfile.mkdtemp(prefix="ph", dir="/tmp"))
        made.append(Player(folder, namespaces or {}))
        return made[-1]

    yield make
    for one in made:
        assert sweep(one.folder)
        for shell in one.shells.values():
            shell.close()
        shutil.rmtree(one.folder)


@pytest.fixture
def namespaces() -> Iterator[dict[str, str]]:
    """Machines a (10.77.0.1) and b (10.77.0.2), with one cable between them."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    names = {machine: f"ph{os.getpid()}{machine}" for machine in "ab"}

    def ip(*words: str) -> None:
        ran = subprocess.run(["ip", *words], capture_output=True, text=True)
        if ran.returncode:
            pytest.skip(f"no network namespaces here: ip {' '.join(words)}: {ran.stderr.strip()}")

    made: list[str] = []
    try:
        for name in names.values():
            ip("netns", "add", name)
            made.append(name)
        a, b = names.values()
        ip("link", "add", a, "netns", a, "type", "veth", "peer", "name", b, "netns", b)
        for number, name in enumerate(names.values(), 1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=True)
