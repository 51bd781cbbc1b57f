"""Registering and awaiting workers from inside a worker, through its host's agent.

Owns: the questions, their repetition, the handle. Must not know: sessions, ZeroMQ, how an agent
carries a question on. Invariant: standard library only; one question has one request id however
often it is said, so whatever is killed meanwhile, it has one effect.
"""

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posthouse import limits
from posthouse.errors import TimedOut, Unreachable
from posthouse.ids import HandleId
from posthouse.states import WorkerState

if TYPE_CHECKING:
    from collections.abc import Callable

    from posthouse.channel import Channel
    from posthouse.spec import BackgroundWorker

__all__ = ["WorkerHandle", "WorkerStatus", "register"]

_LOOK_S_MIN = 0.01  # between two looks of a wait, at first
_LOOK_S_MAX = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """What a worker sees of another: the fields of posthouse.Status that it may want."""

    state: WorkerState
    name: str = ""
    host: str = ""
    pid: int | None = None
    incarnation: int = 0
    ready: bool = False
    reason: str = ""
    final: bool = False


class WorkerHandle:
    """A registration as a worker holds it. As `posthouse.Handle`, with what goes over the channel:
    every method may raise TimedOut (the outcome is unknown; asking again settles it) and
    Unreachable (warden and agent of this host are gone)."""

    def __init__(self, channel: "Channel", id: HandleId, name: str) -> None:  # noqa: A002
        self._channel = channel
        self.id = id
        self.name = name

    def __repr__(self) -> str:
        return f"<WorkerHandle {self.name} {self.id.short}>"

    def status(self, *, timeout: float = 10.0) -> WorkerStatus:
        """NOT_YET_STARTED, STARTED or STOPPED, and why [GetBackgroundWorkerPid]."""
        answer = _ask(self._channel, "status", timeout, ref=str(self.id))
        told = answer["status"]
        names = WorkerStatus.__dataclass_fields__
        fields = {name: told[name] for name in names if name in told}
        return WorkerStatus(**fields | {"state": WorkerState(told["state"])})

    def pid(self, *, timeout: float = 10.0) -> int | None:
        """The process id on its host; None if it has no process."""
        return self.status(timeout=timeout).pid

    def wait_for_startup(self, *, timeout: float) -> WorkerStatus:
        """STARTED, or STOPPED if it ended already [WaitForBackgroundWorkerStartup]."""
        return self._wait(lambda _, now: now.state is not WorkerState.NOT_YET_STARTED, timeout)

    def wait_for_ready(self, *, timeout: float) -> WorkerStatus:
        """It said that it is ready, or STOPPED."""
        return self._wait(lambda _, now: now.ready or now.state is WorkerState.STOPPED, timeout)

    def wait_for_shutdown(self, *, timeout: float) -> WorkerStatus:
        """The first stop, though a restart may be due [WaitForBackgroundWorkerShutdown]. A status
        with a higher incarnation than before says that it stopped and was started again."""
        return self._wait(
            lambda first, now: (
                now.state is WorkerState.STOPPED or (0 < first.incarnation < now.incarnation)
            ),
            timeout,
        )

    def wait_until_unregistered(self, *, timeout: float) -> WorkerStatus:
        """It will never run again."""
        return self._wait(lambda _, now: now.final, timeout)

    def terminate(self, *, timeout: float = 10.0) -> bool:
        """End and unregister it [TerminateBackgroundWorker]; False if that has been done."""
        answer = _ask(self._channel, "terminate", timeout, ref=str(self.id))
        return bool(answer.get("changed", True))

    def set_latch(self, *, timeout: float = 10.0) -> None:
        """Set its latch [SetLatch]. Raises NotRunning."""
        _ask(self._channel, "set_latch", timeout, ref=str(self.id))

    def _wait(
        self, reached: "Callable[[WorkerStatus, WorkerStatus], bool]", timeout: float
    ) -> WorkerStatus:
        deadline_s = time.monotonic() + timeout
        pause_s = _LOOK_S_MIN
        first = now = self.status(timeout=timeout)
        while not reached(first, now):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimedOut(f"{self.name} is {now.state} after {timeout:g} s: {now.reason}")
            time.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _LOOK_S_MAX)
            now = self.status(timeout=max(left_s, limits.worker_repeat_s))
        return now


def named(channel: "Channel", text: str) -> WorkerHandle:
    """See posthouse.worker.handle."""
    found = HandleId.parse(text)
    return WorkerHandle(channel, found, found.short)


def register(channel: "Channel", worker: "BackgroundWorker", timeout: float) -> WorkerHandle:
    """See posthouse.worker.register."""
    answer = _ask(channel, "register", timeout, spec=worker.check().to_wire())
    handle = answer["handle"]
    found = HandleId(handle["registry"], handle["slot"], handle["generation"])
    return WorkerHandle(channel, found, answer.get("name", worker.name))


def _ask(channel: "Channel", what: str, timeout: float, **fields: Any) -> dict[str, Any]:
    """The master's answer. Said again each second under the same id: the agent that heard it may
    be gone, or have no master just now."""
    request = os.urandom(limits.request_id_bytes)
    deadline_s = time.monotonic() + timeout
    while True:
        left_s = deadline_s - time.monotonic()
        try:
            wait_s = min(max(left_s, 0.0), limits.worker_repeat_s)
            reply = channel.request(
                "ask", timeout=wait_s, what=what, request=request, fields=fields
            )
            answer: dict[str, Any] = reply["answer"]
            return answer
        except TimedOut:
            if left_s <= limits.worker_repeat_s:
                raise TimedOut(
                    f"no answer to {what!r} within {timeout:g} s",
                    hint="does this host's agent run?",
                ) from None
        except Unreachable:
            if channel.closed or left_s <= 0:
                raise
            time.sleep(min(_LOOK_S_MAX, left_s))  # it is not read: the agent is away
