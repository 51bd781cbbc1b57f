"""CORE: processes that run on hosts and that the registry does not know, since it was restored.

Owns: the table of them, with their records, as far as their hosts have told these. Must not know:
how a registration is made of one (lifecycle), how a host's word arrives.

Invariant: nothing but an operator's word ends one, and until it is claimed or gone, nothing of its
name is started, nor is its slot given away.
"""

from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any, Final

from posthouse import limits
from posthouse.messages import GetRecord, RecordTold, Running, Stop
from posthouse.signals import SIGNALS
from posthouse.states import StopReason
from posthouse_master.groups import is_member
from posthouse_master.placement import Fleet, Host
from posthouse_master.registry import Registry
from posthouse_master.sessions import FrontDoor
from posthouse_master.starter import Starter
from posthouse_master.turn import Turn

__all__ = ["Process", "Unclaimed"]

_GRACE_S: Final = 5.0  # of one whose record, and so whose own grace, has not been told


@dataclass(slots=True)
class Process:
    """One of them."""

    host: str
    running: Running
    record: dict[str, Any] | None = None
    source: str = ""
    group: str = ""


class Unclaimed:
    """Kept in memory only: after a restart of the master the inventories tell of them again."""

    def __init__(
        self, registry: Registry, fleet: Fleet, starter: Starter, door: FrontDoor, *, restored: bool
    ) -> None:
        self._registry = registry
        self._fleet = fleet
        self._starter = starter
        self._door = door
        self._restored = restored
        self._all: dict[int, Process] = {}  # by token
        self._on_host: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._all)

    # --- what hosts say ---

    def hold(self, turn: Turn, host: Host, running: Running) -> bool:
        """Keep a process that the registry does not know. False if it knows its registration, or
        has never been restored: then the process has no right to be."""
        if not self._restored or self._registry.get(running.slot, running.generation) is not None:
            return False
        known = self._all.get(running.token)
        if known is not None:
            known.running = running
        else:
            self._all[running.token] = Process(host.name, running)
            self._on_host[host.name] += 1
            self._starter.withheld[running.name] += 1
            self._registry.reserve(running.slot)
            turn.note(
                "worker.unclaimed",
                worker=running.name,
                host=host.name,
                handle=f"{running.slot}.{running.generation}",
                token=running.token,
                pid=running.pid,
            )
        if len(self._all) <= limits.unclaimed_records_max:
            self.ask(turn, self._all[running.token])
        return True

    def told(self, host: Host, message: RecordTold) -> None:
        """The record with which one of them was started."""
        process = self._all.get(message.token)
        if process is not None and process.host == host.name:
            process.record, process.source = message.spec, message.source
            named = str(message.spec.get("name", ""))
            process.group = message.group if is_member(message.group, named) else ""

    def gone(self, turn: Turn, host: str, token: int) -> bool:
        """Its process is gone. False if it is none of these."""
        process = self._all.get(token)
        if process is None or process.host != host:
            return False
        turn.note("worker.unclaimed_gone", worker=process.running.name, host=host, token=token)
        self.release(turn, process)
        return True

    def settled(self, turn: Turn, host: str, alive: Container[int]) -> None:
        """The host's inventory is whole: what it does not list is gone."""
        for token in [t for t, process in self._all.items() if process.host == host]:
            if token not in alive:
                self.gone(turn, host, token)

    # --- what operators say ---

    def get(self, token: int) -> Process | None:
        return self._all.get(token)

    def after(self, token: int) -> Iterator[Process]:
        """Those with higher tokens, by token."""
        return (self._all[each] for each in sorted(self._all) if each > token)

    def count(self, host: str) -> int:
        return self._on_host[host]

    def ask(self, turn: Turn, process: Process) -> bool:
        """Have the host tell its record. False if the host is not reachable."""
        running = process.running
        return self._command(
            turn,
            process,
            GetRecord(slot=running.slot, generation=running.generation, token=running.token),
        )

    def stop(self, turn: Turn, process: Process) -> bool:
        """Have it ended, as its record says. False if its host is not reachable."""
        record = process.record or {}
        running = process.running
        return self._command(
            turn,
            process,
            Stop(
                registry=running.registry,
                slot=running.slot,
                generation=running.generation,
                token=running.token,
                reason=StopReason.UNKNOWN,
                signal=SIGNALS[record.get("stop_signal", "TERM")],
                grace_s=float(record.get("stop_grace_s", _GRACE_S)),
            ),
        )

    def release(self, turn: Turn, process: Process) -> None:
        """It is claimed or gone: what waited for that may start."""
        running = process.running
        del self._all[running.token]
        self._on_host[process.host] -= 1
        self._registry.unreserve(running.slot)
        self._starter.withheld -= Counter((running.name,))
        if not self._starter.withheld[running.name]:
            for host in self._fleet.hosts.values():
                self._starter.serve(turn, host)

    def _command(self, turn: Turn, process: Process, message: GetRecord | Stop) -> bool:
        session = self._door.get(self._fleet.hosts[process.host].session)
        if session is None:
            return False
        self._door.command(turn, session, message)
        return True
