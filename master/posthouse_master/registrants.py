"""CORE: workers that register workers: who they are, and how they are notified.

Owns: the right of a process to ask in a registration's name, the name under which its requests are
remembered, SIGUSR1 to it. Must not know: what is asked, how it is decided.

Invariant: only the present process of a registration, on the host that its agent speaks for, asks
in its name; and only that process is notified: the token in `by` names it for ever, so a pid that
is used again is never signalled, and with its end its notifications end (N2, N3).
"""

from dataclasses import replace
from typing import Final

from posthouse.errors import NotPermitted
from posthouse.messages import Signal, WorkerAsks
from posthouse.signals import SIGNALS
from posthouse.states import EventKind
from posthouse_master.placement import Fleet
from posthouse_master.registry import Registration, Registry
from posthouse_master.sessions import FrontDoor, Session
from posthouse_master.store.base import Life
from posthouse_master.turn import Turn

__all__ = ["Registrants", "is_worker"]

_PREFIX: Final = "worker:"
_NAME_SHOWN: Final = 64  # of 96: the rest of it is what it is found by
# N1: at start, exit, and what never will start.
_TOLD: Final = (
    EventKind.STARTED,
    EventKind.EXITED,
    EventKind.START_FAILED,
    EventKind.UNREGISTERED,
)


def is_worker(principal: str) -> bool:
    """Whether a worker asks, of the host that it runs on."""
    return principal.startswith(_PREFIX)


class Registrants:
    """All of them; nothing is kept but what is durable with each registration."""

    def __init__(self, registry: Registry, fleet: Fleet, door: FrontDoor) -> None:
        self._registry = registry
        self._fleet = fleet
        self._door = door

    def admit(self, agent: Session, message: WorkerAsks) -> Session:
        """As whom the worker asks. Raises NotPermitted."""
        found = self._registry.get(message.slot, message.generation)
        if (
            found is None
            or found.life is not Life.RUNNING
            or found.token != message.token
            or found.host != agent.host
        ):
            raise NotPermitted(
                f"token {message.token} is not that of a running worker on host {agent.host}",
                hint="it was started anew, or stopped, elsewhere",
            )
        name = found.name[:_NAME_SHOWN]
        principal = f"{_PREFIX}{name}/{found.slot}.{found.generation}/{found.token}"
        return replace(agent, role="client", principal=principal)

    def told(self, turn: Turn, kind: EventKind, registration: Registration) -> None:
        """A row about it was written: notify its registrant, if it asked for that."""
        if kind not in _TOLD or not is_worker(registration.by) or not registration.spec.notify:
            return
        _, slot, token = registration.by.rsplit("/", 2)
        number, _, generation = slot.partition(".")
        registrant = self._registry.get(int(number), int(generation))
        if (
            registrant is None
            or registrant.life is not Life.RUNNING
            or registrant.token != int(token)
        ):
            return
        host = self._fleet.hosts[registrant.host]
        agent = self._door.get(host.session) if host.settled else None
        if agent is not None:
            command = Signal(
                slot=registrant.slot,
                generation=registrant.generation,
                token=registrant.token,
                signal=SIGNALS["USR1"],
                handled=True,
            )
            self._door.command(turn, agent, command)
