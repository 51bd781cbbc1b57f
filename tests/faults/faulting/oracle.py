"""Who really ran, from when to when: asked of nobody but the workers and the kernel.

Owns: a resource that only one process per worker's name may hold, and what the workers write into
one append-only file. Must not know: posthouse, except to compare its event log with this.
Invariant: a hold ends when the kernel closes the holder's socket, so a process that still runs,
stopped or cut off or forgotten by everybody, still holds.
"""

import contextlib
import json
import socket
import threading
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posthouse import Event, EventKind

TERMINAL = (EventKind.EXITED, EventKind.START_FAILED)
LIFE = (EventKind.STARTING, EventKind.STARTED, EventKind.READY, *TERMINAL)


@dataclass
class Hold:
    """One incarnation, as it introduced itself."""

    name: str
    incarnation: int
    token: int
    pid: int
    host: str
    ended: bool = False


class Oracle:
    """The resource server. `folder` gets its socket, the file and the lock files."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        self.folder = folder
        self.file = folder / "lives"
        self.holds: list[Hold] = []
        self.overlaps: list[str] = []
        self._lock = threading.Condition()
        self._connections: dict[int, tuple[socket.socket, Hold]] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(folder / "resource"))
        self._listener.listen(1024)
        self._thread = threading.Thread(target=self._accept, name="oracle", daemon=True)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._listener.close()
        with self._lock:
            for connection, _ in self._connections.values():
                connection.close()

    # --- the resource ---

    def _accept(self) -> None:
        import selectors

        ready = selectors.DefaultSelector()
        ready.register(self._listener, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fileobj is self._listener:
                    try:
                        connection, _ = self._listener.accept()
                    except OSError:
                        ready.close()
                        return
                    ready.register(connection, selectors.EVENT_READ)
                    continue
                connection = key.fileobj  # type: ignore[assignment]
                try:
                    said = connection.recv(4096)
                except OSError:
                    said = b""
                with self._lock:
                    if said:
                        self._take(connection, json.loads(said))
                    else:
                        ready.unregister(connection)
                        self._release(connection)
                    self._lock.notify_all()

    def _take(self, connection: socket.socket, said: dict[str, Any]) -> None:
        hold = Hold(**said)
        for other_connection, other in list(self._connections.values()):
            if other.name != hold.name or other.ended:
                continue
            # Its end may lie unread beside this beginning: the kernel closed it before it told
            # anybody that the process is dead.
            with contextlib.suppress(BlockingIOError):
                if not other_connection.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK):
                    other.ended = True
                    continue
            self.overlaps.append(f"{hold} while {other} holds")
        self.holds.append(hold)
        self._connections[connection.fileno()] = (connection, hold)
        with contextlib.suppress(OSError):
            connection.send(b"yours")

    def _release(self, connection: socket.socket) -> None:
        if found := self._connections.pop(connection.fileno(), None):
            found[1].ended = True
        connection.close()

    # --- asked by the tests ---

    def of(self, name: str) -> list[Hold]:
        with self._lock:
            return [hold for hold in self.holds if hold.name == name]

    def living(self, prefix: str = "") -> list[Hold]:
        with self._lock:
            return [h for h in self.holds if not h.ended and h.name.startswith(prefix)]

    def written(self) -> list[list[str]]:
        """The file's lines: begin|end|taken, name, incarnation, token, pid."""
        if not self.file.exists():
            return []
        return [line.split() for line in self.file.read_text().splitlines()]

    def forget(self, prefix: str) -> None:
        """What is compared is not kept: a soak would grow without it."""
        with self._lock:
            self.holds = [h for h in self.holds if not (h.ended and h.name.startswith(prefix))]

    # --- compared ---

    def problems(self, prefix: str, events: Iterable[Event], *, ended: bool = True) -> list[str]:
        """What the workers of this prefix did that the event log does not tell exactly once, and
        the other way round. `ended`: all of them are gone."""
        found = list(self.overlaps)
        lives: dict[tuple[str, int], list[Event]] = defaultdict(list)
        last: dict[str, int] = {}
        for event in events:
            if not event.name.startswith(prefix) or event.kind not in LIFE:
                continue
            assert event.incarnation is not None
            key = (event.name, event.incarnation)
            lives[key].append(event)
            if event.kind is EventKind.STARTING:
                earlier = last.get(event.name, 0)
                if event.incarnation <= earlier:
                    found.append(f"{key} starts after incarnation {earlier}")
                if earlier and lives[event.name, earlier][-1].kind not in TERMINAL:
                    found.append(f"{key} starts before {earlier} was told to have ended")
                last[event.name] = event.incarnation
        for key, life in lives.items():
            found += self._life_problems(key, [event.kind for event in life], ended)
        for hold in self.of_prefix(prefix):
            found += _hold_problems(hold, lives.get((hold.name, hold.incarnation), []), ended)
        return found + self._file_problems(prefix)

    def of_prefix(self, prefix: str) -> list[Hold]:
        with self._lock:
            return [hold for hold in self.holds if hold.name.startswith(prefix)]

    @staticmethod
    def _life_problems(key: tuple[str, int], kinds: list[EventKind], ended: bool) -> list[str]:
        wrong = []
        if kinds[0] is not EventKind.STARTING or len(kinds) != len(set(kinds)):
            wrong.append(f"{key} is told as {kinds}")
        ends = [kind for kind in kinds if kind in TERMINAL]
        if len(ends) > 1 or (ended and not ends) or (ends and kinds[-1] not in TERMINAL):
            wrong.append(f"{key} is told to end {len(ends)} times: {kinds}")
        return wrong

    def _file_problems(self, prefix: str) -> list[str]:
        wrong = []
        begun: set[tuple[str, str]] = set()
        held: dict[str, str] = {}
        for what, name, _, token, pid in self.written():
            if not name.startswith(prefix):
                continue
            if what == "begin":
                if (name, token) in begun:
                    wrong.append(f"{name}: token {token} ran twice")
                begun.add((name, token))
                held[name] = pid
            elif what == "taken":
                wrong.append(f"{name}: pid {pid} found the lock of pid {held.get(name)} held")
            elif held.get(name) != pid:
                wrong.append(f"{name}: pid {pid} ends after pid {held.get(name)} has begun")
        asked = {(hold.name, str(hold.token)) for hold in self.of_prefix(prefix)}
        wrong += [f"{name}: token {t} never held" for name, t in begun - asked]
        return wrong


def _hold_problems(hold: Hold, life: list[Event], ended: bool) -> list[str]:
    """`hold` ran: the log has to know that, and where."""
    if not life:
        return [f"{hold} is not in the log"]
    wrong = []
    if ended and not hold.ended:
        wrong.append(f"{hold} still runs")
    kinds = [event.kind for event in life]
    if EventKind.START_FAILED in kinds:
        wrong.append(f"{hold} ran, and is told as a start that failed")
    for event in life:
        if event.token != hold.token or (event.host and event.host != hold.host):
            wrong.append(f"{hold} is told as {event}")
        if event.kind is EventKind.STARTED and event.pid not in (None, hold.pid):
            wrong.append(f"{hold} is told with pid {event.pid}")
    if ended and EventKind.STARTED not in kinds:
        wrong.append(f"{hold} ran, and is not told to have started: {kinds}")
    return wrong
