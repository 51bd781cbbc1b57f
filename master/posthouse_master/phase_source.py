"""Where the phase of the cluster comes from, if it is that of another server.

Owns: the thread that asks a PostgreSQL server, and the queue by which its word reaches the loop.
Must not know: what a phase lets start.

Invariant: the loop only takes what lies in a bounded queue. A server that is slow, hangs or lies
costs the thread its time and nobody else's, and each of the thread's waits has a timeout.
"""

import re
import select
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from posthouse import limits
from posthouse.errors import ConfigError
from posthouse.settings import MasterSettings
from posthouse.states import Phase
from posthouse_master.effects import PhaseChanged

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

__all__ = ["PhaseSource", "PostgresqlSource", "open_source"]

_END_S: Final = 2.0  # for the thread to end; nothing cuts short a look-up of a name
_QUESTION: Final = b"SELECT pg_catalog.pg_is_in_recovery()"
_LABEL: Final = re.compile(r"^[A-Z]+: +")


class PhaseSource(Protocol):
    """What the loop wants of a source."""

    first: PhaseChanged
    """Where the cluster is until there is a word."""

    @property
    def descriptor(self) -> int:
        """Readable when there is a word."""

    def taken(self) -> list[PhaseChanged]:
        """The words since the last call, oldest first."""

    def close(self) -> None: ...


def open_source(settings: MasterSettings) -> PhaseSource | None:
    """The source that is configured; None: the embedded database, which has but one phase.
    Raises ConfigError."""
    return None if settings.follow is None else PostgresqlSource(settings.follow)


class _Away(Exception):
    """No answer, and why."""


class _Closed(Exception):
    """The source is closed while it waits."""


class PostgresqlSource:
    """Follows one server: it is asked once a second, over one connection that is kept."""

    def __init__(self, url: str) -> None:
        given = _parameters(url)
        self._place = _place(given)
        self._password = given.get("password", "")
        # Several hosts are tried one after the other.
        hosts = given.get("hostaddr") or given.get("host") or ""
        self._connect_s = limits.phase_answer_s * (hosts.count(",") + 1)
        self._line = _Line(_conninfo(given))
        self._words: deque[PhaseChanged] = deque(maxlen=limits.phase_words_max)
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._defect: BaseException | None = None
        self.first = PhaseChanged(Phase.STARTING, self._says("has not answered yet"))
        self._last = self.first
        self._thread = threading.Thread(target=self._run, name="phase", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"PostgresqlSource({self._last.detail!r})"

    # --- the loop's side ---

    @property
    def descriptor(self) -> int:
        return self._reader.fileno()

    def taken(self) -> list[PhaseChanged]:
        with suppress(BlockingIOError):
            self._reader.recv(4096)
        if self._defect is not None:
            raise self._defect
        found = []
        while self._words:
            found.append(self._words.popleft())
        return found

    def close(self) -> None:
        self._line.stop()
        self._thread.join(_END_S)
        self._reader.close()
        self._writer.close()

    # --- the thread's side ---

    def _run(self) -> None:
        try:
            while True:
                self._tell(self._look())
                self._line.pause(limits.phase_look_s)
        except _Closed:
            pass
        except BaseException as error:  # noqa: BLE001 - a defect; the loop raises it
            self._defect = error
            self._wake()
        finally:
            self._line.close()

    def _look(self) -> PhaseChanged:
        """What the server says now. A connection that has failed is made anew before it is said
        that the server is away: it may have been restarted, or have cut off all of its clients."""
        if self._line.open:
            with suppress(_Away):
                return self._ask()
        try:
            self._line.connect(self._connect_s)
            return self._ask()
        except _Away as away:
            return PhaseChanged(Phase.STARTING, self._says(f"is not reachable: {away}"))

    def _ask(self) -> PhaseChanged:
        if self._line.in_recovery(limits.phase_answer_s):
            return PhaseChanged(Phase.HOT_STANDBY, self._says("is in recovery"))
        return PhaseChanged(Phase.RUNNING, self._says("can be written to"))

    def _tell(self, word: PhaseChanged) -> None:
        if word != self._last:
            self._last = word
            self._words.append(word)
            self._wake()

    def _wake(self) -> None:
        with suppress(BlockingIOError, OSError):  # full: enough to wake by; closed: nobody listens
            self._writer.send(b"!")

    def _says(self, what: str) -> str:
        if self._password:  # no message of libpq holds it; one that did would be shown to many
            what = what.replace(self._password, "...")
        return f"PostgreSQL at {self._place} {what}"


class _Line:
    """One connection by libpq's non-blocking calls, because those of psycopg wait for ever."""

    def __init__(self, conninfo: bytes) -> None:
        self._conninfo = conninfo
        self._server: PGconn | None = None
        self._ear, self._mouth = socket.socketpair()

    @property
    def open(self) -> bool:
        return self._server is not None

    def stop(self) -> None:
        """From another thread: whatever waits now, or would, ends with _Closed."""
        with suppress(OSError):
            self._mouth.send(b"!")

    def pause(self, seconds: float) -> None:
        self._wait(-1, 0, time.monotonic() + seconds)

    def drop(self) -> None:
        """Give the connection up, without a word to a server that may not listen."""
        if self._server is not None:
            self._server.finish()
            self._server = None

    def close(self) -> None:
        """By the thread that waits; `stop` may still be called."""
        self.drop()
        self._ear.close()
        self._mouth.close()

    def connect(self, seconds: float) -> None:
        from psycopg import pq

        self.drop()
        deadline_s = time.monotonic() + seconds
        self._server = server = pq.PGconn.connect_start(self._conninfo)
        try:
            if server.status == pq.ConnStatus.BAD:
                raise _Away(_words(server))
            state: int = pq.PollingStatus.WRITING
            while state != pq.PollingStatus.OK:
                event = select.POLLIN if state == pq.PollingStatus.READING else select.POLLOUT
                if not self._wait(server.socket, event, deadline_s):
                    raise _Away(f"no answer within {seconds:g} s")
                state = server.connect_poll()
                if state == pq.PollingStatus.FAILED:
                    raise _Away(_words(server))
            server.nonblocking = 1
        except _Away:
            self.drop()
            raise

    def in_recovery(self, seconds: float) -> bool:
        """Ask. Raises _Away, and then the connection is given up."""
        import psycopg

        assert self._server is not None
        try:
            return self._question(self._server, time.monotonic() + seconds, seconds)
        except psycopg.OperationalError as error:
            self.drop()
            raise _Away(_short(str(error))) from None
        except _Away:
            self.drop()
            raise

    def _question(self, server: "PGconn", deadline_s: float, seconds: float) -> bool:
        from psycopg import pq

        def wait(event: int) -> None:
            if not self._wait(server.socket, event, deadline_s):
                raise _Away(f"no answer within {seconds:g} s")

        server.send_query(_QUESTION)
        while server.flush():
            wait(select.POLLOUT)
        answer: bool | None = None
        while True:
            while server.is_busy():
                wait(select.POLLIN)
                server.consume_input()
            result = server.get_result()
            if result is None:
                break
            if result.status != pq.ExecStatus.TUPLES_OK:
                raise _Away(_short(result.error_message.decode(errors="replace")))
            answer = result.get_value(0, 0) == b"t"
        if answer is None:
            raise _Away("an answer without a row")
        return answer

    def _wait(self, descriptor: int, event: int, deadline_s: float) -> bool:
        """False: the time is over. Raises _Closed."""
        poll = select.poll()
        poll.register(self._ear, select.POLLIN)
        if descriptor >= 0:
            poll.register(descriptor, event)
        ready = dict(poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000))
        if self._ear.fileno() in ready:
            raise _Closed
        return bool(ready)


def _parameters(url: str) -> dict[str, str]:
    """The parts of the URL. Raises ConfigError, which shows nothing of it."""
    try:
        import psycopg
        from psycopg.conninfo import conninfo_to_dict
    except ImportError as error:
        raise ConfigError(
            f"cluster.follow names a PostgreSQL, and psycopg cannot be loaded: {error}",
            hint="pip install 'posthouse[postgres]' on the machine of the master",
        ) from None
    try:
        found: dict[str, Any] = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise ConfigError(
            "cluster.follow is no URL that libpq can read (not shown: it may hold a password)",
            hint="postgresql://user@host:port/dbname; other characters have to be %-encoded",
        ) from None
    return {name: str(value) for name, value in found.items() if value is not None}


def _conninfo(given: dict[str, str]) -> bytes:
    from psycopg.conninfo import make_conninfo

    return make_conninfo("", **({"application_name": "posthouse"} | given)).encode()


def _place(given: dict[str, str]) -> str:
    """Which server, for people, with libpq's own defaults."""
    from psycopg import pq

    known = {
        option.keyword.decode(): option.val.decode()
        for option in pq.Conninfo.get_defaults()
        if option.val
    } | given
    hosts = (known.get("host") or known.get("hostaddr") or "its socket").split(",")
    ports = (known.get("port") or "5432").split(",")
    ports = ports if len(ports) == len(hosts) else ports[:1] * len(hosts)
    return ",".join(f"{host}:{port}" for host, port in zip(hosts, ports, strict=True))


def _words(server: "PGconn") -> str:
    return _short(server.get_error_message())


def _short(message: str) -> str:
    """What the last attempt came to, out of a message of libpq: its first line, and any detail."""
    lines = message.rpartition(" failed: ")[2].strip().splitlines() or ["no reason was given"]
    detail = [_LABEL.sub("", line.strip()) for line in lines if line.startswith("DETAIL:")]
    shown = _LABEL.sub("", lines[0].strip()) + "".join(f" ({text.rstrip('.')})" for text in detail)
    return shown[: limits.phase_detail_chars_max // 2]
