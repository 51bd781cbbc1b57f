"""What a simulated worker is given: posthouse.worker's names, on virtual time.

Owns: the calls that a worker's body makes. Must not know: what comes of them (process, cluster).
Invariant: a call that takes time gives something to be yielded; every other call is over when it
returns, and no time has passed.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from posthouse.errors import UsageError
from posthouse.ids import HandleId
from posthouse.latch import WaitEvent
from posthouse.spec import BackgroundWorker
from posthouse.states import WorkerState
from posthouse.worker import Entry, WorkerStatus
from posthouse_testing.oracle import Hold
from posthouse_testing.virtual.process import (
    Ask,
    Sleep,
    VirtualProcess,
    Wait,
    Wanted,
    wanted_events,
)

if TYPE_CHECKING:
    from posthouse_testing.virtual.cluster import VirtualCluster

__all__ = ["SimulatedHandle", "SimulatedLatch", "SimulatedWorker"]


class SimulatedLatch:
    """As `worker.latch`; but `wait` is to be yielded."""

    def __init__(self, process: VirtualProcess) -> None:
        self._process = process

    def set(self) -> None:
        """Wake the owner."""
        self._process.set_latch()

    def reset(self) -> None:
        """Clear the flag."""
        self._process.latch = False

    def is_set(self) -> bool:
        """Whether the flag is set now; it stays as it is."""
        return self._process.latch

    def wait(self, *events: WaitEvent, timeout: float | None = None) -> Wait:
        """`found = yield me.latch.wait(timeout=1)`: a frozenset of LATCH_SET, TIMEOUT or
        POSTMASTER_DEATH; EXIT_ON_PM_DEATH among `events` ends the worker instead."""
        if timeout is not None and not 0 <= timeout <= 2**31:
            raise UsageError(f"timeout is {timeout}: must be 0 or more seconds")
        wait = Wait(wanted_events(events), timeout)
        _made(self._process, wait)
        return wait


class SimulatedHandle:
    """A registration as a simulated worker holds it, as posthouse.worker.WorkerHandle; each call is
    to be yielded, and may raise TimedOut: then the outcome is unknown."""

    def __init__(self, process: VirtualProcess, id: HandleId, name: str) -> None:  # noqa: A002
        self._process = process
        self.id = id
        self.name = name

    def __repr__(self) -> str:
        return f"<SimulatedHandle {self.name} {self.id.short}>"

    def status(self, *, timeout: float = 10.0) -> Ask:
        """`status = yield handle.status()`: a posthouse.worker.WorkerStatus."""
        return self._ask("status", timeout, _status)

    def terminate(self, *, timeout: float = 10.0) -> Ask:
        """`yield handle.terminate()`: end and unregister it; False if that has been done."""
        return self._ask("terminate", timeout, lambda answer: bool(answer.get("changed", True)))

    def set_latch(self, *, timeout: float = 10.0) -> Ask:
        """`yield handle.set_latch()`. Raises NotRunning."""
        return self._ask("set_latch", timeout, lambda _: None)

    def _ask(self, what: str, timeout: float, told: Callable[[dict[str, Any]], Any]) -> Ask:
        ask = Ask(f"handle.{what}()", what, {"ref": str(self.id)}, timeout, told)
        _made(self._process, ask)
        return ask


class SimulatedWorker:
    """The `me` of a simulated worker. What its real twin takes from `posthouse.worker` it finds
    here under the same names; waiting is yielded.

        def consume(me):
            me.unblock_signals()
            me.ready()
            while True:
                me.latch.reset()
                do_some_work(me.main_arg)
                yield me.latch.wait(timeout=1.0)
    """

    def __init__(
        self, cluster: "VirtualCluster", process: VirtualProcess, registry: str, revision: int
    ) -> None:
        self._cluster = cluster
        self._process = process
        self._entry = Entry(
            spec=BackgroundWorker.from_checked(process.spec),
            handle=HandleId(registry, process.slot, process.generation),
            host=process.host,
            incarnation=process.incarnation,
            token=process.token,
            revision=revision,
        )
        self.latch = SimulatedLatch(process)

    def __repr__(self) -> str:
        return repr(self._process)

    def __str__(self) -> str:
        return f"{self.name} on {self.host}, token {self.token}"

    # --- who it is ---

    def entry(self) -> Entry:
        """The registration, host, incarnation and token of this worker."""
        return self._entry

    @property
    def name(self) -> str:
        return self._entry.name

    @property
    def host(self) -> str:
        return self._entry.host

    @property
    def token(self) -> int:
        """Rises with every start in the cluster: check it where the data is written."""
        return self._entry.token

    @property
    def incarnation(self) -> int:
        return self._entry.incarnation

    @property
    def main_arg(self) -> Any:
        return self._entry.main_arg

    @property
    def now_s(self) -> float:
        """Virtual seconds since the cluster was made: what time.monotonic() is to a real one."""
        return self._cluster.now_s

    # --- what takes time, to be yielded ---

    def sleep(self, seconds: float) -> Sleep:
        """`yield me.sleep(2)`: as time.sleep. Signals are handled meanwhile."""
        if not 0 <= seconds <= 2**31:
            raise UsageError(f"seconds is {seconds}: must be 0 or more")
        sleep = Sleep(seconds)
        _made(self._process, sleep)
        return sleep

    def register(self, worker: BackgroundWorker, *, timeout: float = 10.0) -> Ask:
        """`handle = yield me.register(BackgroundWorker(...))`: a SimulatedHandle, as
        posthouse.worker.register gives one. What it registers stays when it ends."""
        self._cluster.program(worker.entry_point)

        def told(answer: dict[str, Any]) -> SimulatedHandle:
            handle = answer["handle"]
            found = HandleId(handle["registry"], handle["slot"], handle["generation"])
            return SimulatedHandle(self._process, found, answer.get("name", worker.name))

        spec = {"spec": worker.check().to_wire()}
        ask = Ask("me.register()", "register", spec, timeout, told)
        _made(self._process, ask)
        return ask

    def handle(self, text: str) -> SimulatedHandle:
        """The handle that a text names, as posthouse.worker.handle."""
        found = HandleId.parse(text)
        return SimulatedHandle(self._process, found, found.short)

    # --- what does not ---

    def ready(self) -> None:
        """Say that it has done its preparations; `handle.wait_for_ready()` returns."""
        self._process.channel.append({"op": "ready", "id": 1})

    def heartbeat(self) -> None:
        """Accepted; no simulated worker is ended for its silence."""

    def unblock_signals(self) -> None:
        """Let signals in. Install handlers first: TERM's default ends the worker on the spot."""
        self._process.unblock()

    def block_signals(self) -> None:
        """Keep signals waiting, except QUIT, as they were when it began."""
        self._process.blocked = True

    def signal(self, number: int, handler: Callable[[int, None], object]) -> None:
        """As signal.signal: called with (number, None) at the next yield or while it waits; what
        it raises comes up there."""
        self._process.handlers[int(number)] = handler

    def before_exit(self, callback: Callable[[], object]) -> Callable[[], object]:
        """Call this first when the worker ends in good order, last registered first."""
        self._process.before_exit.append(callback)
        return callback

    def on_exit(self, callback: Callable[[], object]) -> Callable[[], object]:
        """Call this when the worker ends in good order, after all of `before_exit`."""
        self._process.on_exit.append(callback)
        return callback

    def exclusive(self, name: str) -> Hold:
        """`with me.exclusive("shard 7"):` holds it, and fails the test if another process does.
        The hold ends with the process, whatever ends that."""
        process = self._process
        hold = self._cluster.exclusive(name).take(str(self))
        process.holds.append(hold)
        return hold


def _status(answer: dict[str, Any]) -> WorkerStatus:
    told = answer["status"]
    fields = {name: told[name] for name in WorkerStatus.__dataclass_fields__ if name in told}
    return WorkerStatus(**fields | {"state": WorkerState(told["state"])})


def _made(process: VirtualProcess, wanted: Wanted) -> None:
    if process.made is not None:
        raise UsageError(f"{process!r}: what was called before was not yielded: nobody waited")
    process.made = wanted
