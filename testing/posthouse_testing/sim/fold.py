"""What a registration is, as its rows in the log alone tell it.

Owns: the meaning of each row. Must not know: the registry, how a master keeps its state.
Invariant (21): the durable state of a registration is this fold over its durable rows, and every
status that a client was told is the fold up to the place in the log that the status names.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from posthouse.records import Event, Status
from posthouse.states import EventKind, StopReason, WorkerState
from posthouse_master.store.base import Life, StateRow

__all__ = ["Fold", "fold"]


@dataclass(slots=True)
class Fold:
    """A registration after some of its rows."""

    life: Life = Life.SUBMITTED
    host: str = ""
    incarnation: int = 0
    token: int = 0
    pid: int | None = None
    ready: bool = False
    stopping: StopReason | None = None
    ran: bool = False
    hastened: bool = False  # an operator cut a delay short

    def apply(self, row: Event) -> None:
        """The next row."""
        match row.kind:
            case EventKind.STARTING:
                self.life, self.host = Life.STARTING, row.host
                self.incarnation, self.token = row.incarnation or 0, row.token or 0
                self.pid, self.ready, self.stopping = None, False, None
            case EventKind.STARTED:
                self.life, self.pid, self.ran = Life.RUNNING, row.pid, True
            case EventKind.READY:
                self.ready = True
            case EventKind.STOP_REQUESTED:
                self.stopping = row.stop
            case EventKind.EXITED | EventKind.START_FAILED:
                self.life, self.pid, self.ready, self.stopping = Life.WAITING, None, False, None
                # A hastened start that never reached its host is tried again at once.
                self.hastened = self.hastened and row.kind is EventKind.START_FAILED
            case EventKind.HELD:
                self.life = Life.HELD
            case EventKind.REVISED:
                # A delay was earned by what it was.
                self.hastened = self.hastened or self.life is Life.WAITING
            case EventKind.RELEASED if self.stopping is StopReason.HOLD:
                self.stopping = StopReason.RESTART  # STOP had left: it comes to a restart
            case EventKind.RELEASED:
                self.life, self.hastened = Life.WAITING, True
            case EventKind.RESTART_REQUESTED:
                self.hastened = True
            case EventKind.UNREGISTERED:
                self.life = Life.RETIRED

    def differs(self, state: StateRow) -> str:
        """In what the durable state is another, or nothing."""
        stopping = state.stopping
        if stopping is None and self.stopping is StopReason.SHUTDOWN:
            stopping = self.stopping  # a new master forgets the shutdown of the old one
        pairs = {
            "life": (self.life, state.life),
            "host": (self.host, state.host),
            "incarnation": (self.incarnation, state.incarnation),
            "token": (self.token, state.token),
            "pid": (self.pid, state.pid),
            "ready": (self.ready, state.ready),
            "stopping": (self.stopping, stopping),
        }
        return _differences(pairs, "log", "state")

    def lies(self, status: Status) -> str:
        """In what a status is not true, or nothing (H1-H5)."""
        pairs = {
            "state": (self.state, status.state),
            "final": (self.life is Life.RETIRED, status.final),
            "incarnation": (self.incarnation, status.incarnation),
            "pid": (self.pid, status.pid),
            "ready": (self.ready, status.ready),
        }
        return _differences(pairs, "log", "status")

    @property
    def state(self) -> WorkerState:
        """What a handle has to see."""
        if self.life is Life.RUNNING:
            return WorkerState.STARTED
        if self.life is Life.RETIRED or self.ran:
            return WorkerState.STOPPED
        return WorkerState.NOT_YET_STARTED


def fold(rows: Iterable[Event]) -> Fold:
    """The registration after these rows."""
    found = Fold()
    for row in rows:
        found.apply(row)
    return found


def _differences(pairs: dict[str, tuple[object, object]], left: str, right: str) -> str:
    return "; ".join(
        f"{name}: {left} {first!s}, {right} {second!s}"
        for name, (first, second) in pairs.items()
        if first != second
    )
