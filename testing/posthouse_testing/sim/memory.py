"""Shared memory of one simulated warden: files that know whether a death has spoilt them.

Owns: the truth about memory: which worker has mapped which file, and what each asks for. Must not
know: how the core decides who is reset (domains).

Invariant (24): a worker that has mapped a file and is killed, or fails, spoils it. Once the warden
knows, nobody is given it; nobody has memory of the next epoch beside a living one that has spoilt
memory; and whoever is ended for it, or began it, is told of the reset.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from posthouse_agent.domains import AnswerMemory, DropSegment, MakeSegment, crash_domain
from posthouse_agent.orders import Ended
from posthouse_agent.warden_effects import MemoryAsked
from posthouse_testing.sim.process import Process
from posthouse_testing.sim.world import Violation, World

__all__ = ["Memory"]


@dataclass(slots=True, eq=False)
class File:
    """One segment, as the kernel has it."""

    spoilt: bool = False  # somebody who had mapped it died in the middle of something
    known: bool = False  # and the warden has been told


class Memory:
    """The files of a warden, and the workers that may have them mapped."""

    def __init__(self, world: World, host: str, submit: Callable[[Any], None]) -> None:
        self._world = world
        self._host = host
        self._submit = submit
        self._files: dict[int, File] = {}
        self._mapped: dict[Process, list[File]] = {}
        self._spoilers: set[Process] = set()
        self._ours: set[Process] = set()  # of this warden
        self._members: set[Process] = set()  # who was given some, alive or not

    def _fail(self, text: str) -> None:
        raise Violation(24, f"{self._host}: {text}")

    def begin(self, process: Process) -> None:
        """It asks for the structure of its crash domain some time after its start."""
        self._ours.add(process)
        if crash_domain(process.spec):
            pause_s = self._world.aside.choice((0.001, 0.01, 0.3))
            message = {"op": "named", "id": 1, "key": "struct:s", "size": 64}
            self._world.after(pause_s, self._ask, process, message)

    def _ask(self, process: Process, message: dict[str, Any]) -> None:
        if process.live and not process.orphaned:
            self._submit(MemoryAsked(process.token, message))

    def effect(
        self, effect: MakeSegment | DropSegment | AnswerMemory, processes: dict[int, Process]
    ) -> None:
        match effect:
            case MakeSegment(number=number):
                self._files[number] = File()
            case DropSegment(number=number):
                del self._files[number]
            case AnswerMemory(token=token, message=message, gives=gives):
                for give in gives:
                    self._given(processes[token], self._files[give.which])
                if message.get("found") is False:
                    made = {"op": "made", "id": 2, "number": message["number"]}
                    self._world.after(0.002, self._ask, processes[token], made)

    def _given(self, process: Process, file: File) -> None:
        self._members.add(process)
        if not process.live:
            return
        if file.known:
            self._fail(f"{process} is given memory that a reset has ended")
        for other, files in self._mapped.items():
            same = crash_domain(other.spec) == crash_domain(process.spec)
            if same and other.live and not file.spoilt and any(old.spoilt for old in files):
                self._fail(f"{process} has new memory while {other} has the old")
        self._world.figures["segments mapped"] += 1
        self._mapped.setdefault(process, []).append(file)

    # --- ends ---

    def died(self, process: Process) -> None:
        """The moment of its death, of which the warden hears later."""
        files = self._mapped.get(process, [])
        if files and (process.cause != "exited" or process.code not in (0, 1)):
            self._spoilers.add(process)
            for file in files:
                file.spoilt = True

    def reaped(self, process: Process) -> None:
        """The warden knows of its death, and has decided what comes of it."""
        if process in self._spoilers:
            self._world.figures["deaths that spoil memory"] += 1
            for file in self._mapped[process]:
                file.known = True

    def told(self, process: Process, report: Ended) -> None:
        """The warden says what its end was."""
        if process not in self._ours:
            return  # an earlier warden's
        domain = report.facts.get("crash_domain", "")
        if report.stop == "domain_reset" and process not in self._members:
            self._fail(f"{process} is ended by a reset, and had no memory")
        due = report.stop == "domain_reset" or (process in self._spoilers and not report.stop)
        if due and (domain != crash_domain(process.spec) or not report.facts["domain_cause"]):
            self._fail(f"{process} is not told that its crash domain was reset")

    def old(self) -> list[str]:
        """Who lives on with spoilt memory."""
        return [
            f"{process} has memory of an old epoch"
            for process, files in self._mapped.items()
            if process.live and any(file.spoilt for file in files)
        ]
