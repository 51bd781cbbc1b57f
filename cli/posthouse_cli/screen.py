"""A `posthouse` command on a terminal of its own, read line by line.

Owns: the pseudo-terminal, so that a command prints what a person would see. Must not know: what
the lines mean. Invariant: every wait has a deadline, and an ended screen leaves no process.
"""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from posthouse.errors import TimedOut
from posthouse_testing.cluster import command

__all__ = ["Screen"]

_ROWS, _COLUMNS = 40, 100


class Screen:
    """Starts the command at once."""

    def __init__(self, arguments: Sequence[str], folder: Path, env: Mapping[str, str]) -> None:
        self._shown = f"posthouse {' '.join(arguments)}"
        self._fd, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
        try:
            self._process = subprocess.Popen(
                [*command(), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=inner,
                stderr=inner,
                cwd=folder,
                env=dict(env),
                start_new_session=True,
            )
        except BaseException:
            os.close(self._fd)
            raise
        finally:
            os.close(inner)
        self._text = b""
        self._ended = False
        self._changed = threading.Condition()
        # Always read, or the command stops when the terminal's small buffer is full.
        self._reader = threading.Thread(target=self._read, name="screen", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def line(self, patience_s: float) -> str:
        """The next line. Raises TimedOut, also at the end of the output."""
        with self._changed:
            if not self._changed.wait_for(lambda: b"\n" in self._text or self._ended, patience_s):
                raise TimedOut(f"`{self._shown}` went silent; last: {self._text[-300:]!r}")
            line, newline, self._text = self._text.partition(b"\n")
        if not newline:
            raise TimedOut(f"`{self._shown}` ended without the awaited line: {_clean(line)!r}")
        return _clean(line)

    def wait_for(self, words: str, patience_s: float) -> str:
        """The next line with these words in it. Raises TimedOut."""
        deadline_s = time.monotonic() + patience_s
        while words not in (line := self.line(max(0.0, deadline_s - time.monotonic()))):
            pass
        return line

    def until(self, words: str, patience_s: float) -> None:
        """Return once these words are shown, though their line may not be complete; nothing is
        taken out. Raises TimedOut."""
        wanted = words.encode()
        with self._changed:
            if not self._changed.wait_for(lambda: wanted in self._text, patience_s):
                raise TimedOut(f"`{self._shown}` shows no {words!r}: {self._text[-300:]!r}")

    def rest(self, patience_s: float) -> str:
        """All that is left until the output ends."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._ended, patience_s):
                raise TimedOut(f"`{self._shown}` did not end; last: {self._text[-300:]!r}")
            text, self._text = self._text, b""
        return _clean(text)

    def wait(self, patience_s: float) -> int:
        """Its exit status. Raises TimedOut."""
        try:
            return self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            raise TimedOut(f"`{self._shown}` did not end within {patience_s:g} s") from None

    def signal(self, number: int) -> None:
        """Send a signal to the command."""
        self._process.send_signal(number)

    def end(self, patience_s: float) -> None:
        """TERM, and KILL if that does not help."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(patience_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(1.0)

    def _read(self) -> None:
        with os.fdopen(self._fd, "rb", buffering=0) as terminal:
            while True:
                try:
                    data = terminal.read(65_536)
                except OSError:  # Linux: EIO once the last process has closed its end
                    data = b""
                with self._changed:
                    self._text += data or b""
                    self._ended = not data
                    self._changed.notify_all()
                if not data:
                    return


def _clean(text: bytes) -> str:
    return text.decode(errors="replace").replace("\r", "")
