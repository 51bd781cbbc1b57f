"""What a client's calls are written against, be it blocking or on an event loop.

Owns: what an engine has to offer, the connection that a cluster and its handles share, `drive`.
Must not know: threads, event loops, sockets, what a call means (calls, waits). Invariant: a call is
written once, as a coroutine; `drive` runs it to its end where the engine blocks.
"""

import weakref
from collections.abc import Coroutine
from os import urandom
from typing import Any, Generic, Protocol, TypeVar, cast

from posthouse import limits
from posthouse.errors import InternalError, UsageError
from posthouse.ids import Cursor
from posthouse.messages import Reply, Request
from posthouse.records import Event
from posthouse.session import Close, Unwatch
from posthouse.switchboard import Deadline, Switchboard

__all__ = ["Connection", "Engine", "Feed", "drive", "new_request_id"]

Answer = TypeVar("Answer", bound=Reply)
Result = TypeVar("Result")


class Feed(Protocol):
    """The events of one watch."""

    @property
    def subscription(self) -> int: ...
    async def take(
        self, deadline: Deadline, *, until: Cursor | None = None, until_silent: bool = False
    ) -> Event | None: ...
    def close(self) -> None: ...


class Engine(Protocol):
    """A session with a master that mends itself; see engine and aio_engine."""

    @property
    def board(self) -> Switchboard[Any]: ...
    async def call(
        self, request: Request, deadline: Deadline, *, until_silent: bool = False
    ) -> Reply: ...
    def watch(self, ref: str, after: Cursor | None) -> Feed: ...
    def abandon(self, event: Unwatch | Close) -> None: ...
    def close(self) -> None: ...


AnyEngine_co = TypeVar("AnyEngine_co", bound=Engine, covariant=True)


class Connection(Generic[AnyEngine_co]):
    """What a Cluster, its handles and its streams hold in common: the engine ends when the last of
    them is gone."""

    def __init__(self, engine: AnyEngine_co) -> None:
        self.engine = engine
        self._finalizer = weakref.finalize(self, engine.abandon, Close("forgotten"))
        self._finalizer.atexit = False  # nothing is to be waited for

    def __repr__(self) -> str:
        board = self.engine.board
        who = board.welcome
        return f"{board.settings.master} {who.registry[:8]} as {who.principal}: {board.state}"

    def close(self) -> None:
        self._finalizer.detach()
        self.engine.close()

    def deadline(self, timeout: float | Deadline | None) -> Deadline:
        """That of a call: None stands for the connection's own timeout."""
        return self.patience(self.engine.board.settings.timeout_s if timeout is None else timeout)

    def patience(self, timeout: float | Deadline | None) -> Deadline:
        """That of a wait: None stands for ever."""
        if isinstance(timeout, Deadline):
            return timeout
        return Deadline(timeout, self.engine.board.clock)

    async def ask(
        self,
        request: Request,
        answer: type[Answer],
        timeout: float | Deadline | None,
        *,
        until_silent: bool = False,
    ) -> Answer:
        """The answer, of the class that belongs to the request."""
        deadline = self.deadline(timeout)
        reply = await self.engine.call(request, deadline, until_silent=until_silent)
        if not isinstance(reply, answer):
            raise InternalError(
                f"the master answered {type(request).__name__} with {type(reply).__name__}"
            )
        return reply


def drive(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a call whose engine blocks: it never suspends.

    >>> async def three() -> int:
    ...     return 3
    >>> drive(three())
    3
    """
    try:
        work.send(None)
    except StopIteration as done:
        return cast("Result", done.value)
    work.close()
    raise InternalError("a blocking call was suspended")


def new_request_id(given: bytes | None = None) -> bytes:
    """A random id, unless the caller repeats a request."""
    if given is None:
        return urandom(limits.request_id_bytes)
    if not isinstance(given, bytes) or len(given) != limits.request_id_bytes:
        raise UsageError(f"request_id is {given!r}: must be {limits.request_id_bytes} bytes")
    return given
