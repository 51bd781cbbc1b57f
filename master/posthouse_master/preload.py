"""The libraries of `preload_libraries`, each in a short-lived process of its own.

Owns: these processes, their deadline and end, what they answer and print. Must not know: what
becomes of the workers (static).

Invariant: whatever a library does - raise, hang, print or register without end, die, fork, write
nonsense - costs it its own registrations and the others nothing; no later than the deadline its
process group is gone. This protects from mistakes: a library runs with the master's own rights.
"""

import os
import selectors
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from posthouse import codec, limits
from posthouse.errors import BadFrame
from posthouse.messages import Declared, DeclarePart, Done, Failed, StructRequest
from posthouse.settings import MasterSettings

__all__ = ["Answer", "Library", "preload"]

_CHUNK: Final = 65_536
_AFTER_S: Final = 2.0  # for killed processes to be gone
_LAST_READS: Final = 32  # a pipe holds 1 MiB at the most; whoever still writes then is cut off


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """What became of one. `failed`: why its workers are not known. `output`: the end of what it
    printed, `output_lost` bytes before it are not kept."""

    name: str
    workers: tuple[Declared, ...] = ()
    structs: tuple[StructRequest, ...] = ()
    failed: str = ""
    output: str = ""
    output_lost: int = 0


def preload(settings: MasterSettings, interrupt: int = -1) -> list[Library] | None:
    """Load all libraries, at the same time, within the deadline; in the order of the list. None
    once `interrupt` can be read: the master is to end, so nobody needs them any more."""
    deadline_s = time.monotonic() + settings.preload_timeout_s
    names = settings.preload_libraries or ()
    running: list[_Process] = []
    outcomes: dict[str, Library] = {}
    for name in names:
        try:
            running.append(_Process(name, settings.preload_path))
        except OSError as error:
            failed = f"library {name}: no process can be started for it: {error.strerror}"
            outcomes[name] = Library(name=name, failed=failed)
    with selectors.DefaultSelector() as selector:
        try:
            for process in running:
                process.watch(selector)
            if interrupt >= 0:
                selector.register(interrupt, selectors.EVENT_READ, None)
            interrupted = _run(selector, running, deadline_s, settings.preload_timeout_s)
        finally:
            for process in running:
                process.kill()
                process.close()
    outcomes |= {process.name: process.outcome() for process in running}
    return None if interrupted else [outcomes[name] for name in names]


def _run(
    selector: selectors.BaseSelector,
    running: Sequence["_Process"],
    deadline_s: float,
    timeout_s: float,
) -> bool:
    """Until all have ended. True if the master is to end."""
    while any(not process.over for process in running):
        now_s = time.monotonic()
        if now_s >= deadline_s + _AFTER_S:
            return False
        if now_s >= deadline_s:
            for process in running:
                process.fail(f"has not answered within {timeout_s:g} s (preload_timeout)")
        next_s = deadline_s if now_s < deadline_s else deadline_s + _AFTER_S
        for key, _ in selector.select(max(0.0, next_s - now_s)):
            if key.data is None:
                return True
            process, what = key.data
            process.handle(what, selector)
    return False


class Answer:
    """The frames of one library as they come: bounded, and decoded like those of any peer."""

    def __init__(self) -> None:
        self.workers: list[Declared] = []
        self.structs: list[StructRequest] = []
        self.finished = False
        self.failed = ""
        self._rest = bytearray()
        self._frames = 0
        self._bytes = 0

    def feed(self, data: bytes) -> None:
        """Raises BadFrame."""
        self._bytes += len(data)
        if self._bytes > limits.declaration_bytes_max:
            raise BadFrame(f"more than {limits.declaration_bytes_max} bytes")
        self._rest += data
        while len(self._rest) >= 4:
            (size,) = struct.unpack_from(">I", self._rest)
            if size > limits.client_frame_bytes_max:
                raise BadFrame(f"a frame of {size} bytes")
            if len(self._rest) < 4 + size:
                return
            frame = bytes(self._rest[4 : 4 + size])
            del self._rest[: 4 + size]
            self._frame(frame)

    def _frame(self, frame: bytes) -> None:
        self._frames += 1
        if self._frames > limits.preload_frames_max:
            raise BadFrame(f"more than {limits.declaration_workers_max} workers")
        if self.finished:
            raise BadFrame("a frame after the last one")
        message = codec.decode(frame).body
        match message:
            case DeclarePart(part=part, workers=[worker]) if part == len(self.workers):
                self.workers.append(worker)
            case DeclarePart(part=part, workers=[], structs=[_, *_]) if (
                part == len(self.workers) and not self.structs
            ):
                self.structs = message.structs
            case Done():
                self.finished = True
            case Failed():
                self.finished, self.failed = True, message.message
            case _:
                raise BadFrame(f"{type(message).__name__} is no part of it")

    def verdict(self) -> str:
        """Nothing follows. What is wrong with it, or was with the library by its own word."""
        return "its answer ends within a frame" if self._rest else self.failed


class _Process:
    """One library's."""

    def __init__(self, name: str, folders: Sequence[str]) -> None:
        self.name = name
        self.over = False
        self._answer = Answer()
        self._failed = ""
        self._output = bytearray()
        self._output_lost = 0
        self._pidfd = -1
        self._reader, writer = os.pipe()
        os.set_blocking(self._reader, False)
        try:
            # A new interpreter, never a fork of the master: it has threads and open sockets.
            self._popen: subprocess.Popen[bytes] = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "posthouse_master.preload_child"),
                    *(name, str(writer), str(os.getpid()), *folders),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(writer,),
                start_new_session=True,
            )
            self._pidfd = os.pidfd_open(self._popen.pid)
        finally:
            os.close(writer)
        assert self._popen.stdout is not None
        self._stdout = self._popen.stdout.fileno()
        os.set_blocking(self._stdout, False)

    def watch(self, selector: selectors.BaseSelector) -> None:
        for what, descriptor in self._descriptors():
            selector.register(descriptor, selectors.EVENT_READ, (self, what))

    def handle(self, what: str, selector: selectors.BaseSelector) -> None:
        """A descriptor can be read, or the process has ended."""
        if self.over:
            return
        if what != "end":
            if self._read(what) is False:
                selector.unregister(dict(self._descriptors())[what])
            return
        # What it left in the pipes; not until they are closed: a process that it started may hold
        # them for ever. Its group is killed before its pid can be anybody else's.
        self._kill_group()
        for pipe in ("answer", "output"):
            for _ in range(_LAST_READS):
                if not self._read(pipe):
                    break
        self.over = True
        code = self._popen.wait()
        for _, descriptor in self._descriptors():
            with suppress(KeyError):
                selector.unregister(descriptor)
        self._failed = self._failed or self._answer.verdict()
        if not self._failed and (code != 0 or not self._answer.finished):
            self._failed = f"{_ended(code)} before it had answered"

    def fail(self, reason: str) -> None:
        """Its workers are not wanted any more."""
        if not self.over and not self._failed:
            self._failed = reason
            self.kill()

    def kill(self) -> None:
        if not self.over:
            self._kill_group()
            self._popen.kill()  # it may have left its group

    def close(self) -> None:
        if not self.over:
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(_AFTER_S)
        for _, descriptor in self._descriptors():
            if descriptor != self._stdout:
                os.close(descriptor)
        assert self._popen.stdout is not None
        self._popen.stdout.close()

    def outcome(self) -> Library:
        failed = self._failed or ("" if self.over else "does not end, not even killed")
        return Library(
            name=self.name,
            workers=() if failed else tuple(self._answer.workers),
            structs=() if failed else tuple(self._answer.structs),
            failed=failed and f"library {self.name}: {failed}",
            output=self._output.decode(errors="replace"),
            output_lost=self._output_lost,
        )

    def _descriptors(self) -> list[tuple[str, int]]:
        return [("answer", self._reader), ("output", self._stdout), ("end", self._pidfd)]

    def _read(self, what: str) -> bool | None:
        """Take what has come. None if nothing has, False if nothing more can."""
        try:
            data = os.read(self._reader if what == "answer" else self._stdout, _CHUNK)
        except BlockingIOError:
            return None
        if not data:
            return False
        if what == "output":
            self._output += data
            surplus = max(0, len(self._output) - limits.preload_output_bytes_max)
            del self._output[:surplus]
            self._output_lost += surplus
        elif not self._failed:
            try:
                self._answer.feed(data)
            except BadFrame as error:
                self.fail(f"its answer is not one: {error.message}")
        return True

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)


def _ended(code: int) -> str:
    if code >= 0:
        return f"exited with status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
