"""CORE: processes that register workers: who they are, and how they are notified.

Owns: the right of a process to ask in a registration's name, the name under which its requests are
remembered, SIGUSR1 to it, and to a process that is no worker. Must not know: what is asked, how it
is decided.

Invariant: only the present process of a registration, on the host that its agent speaks for, asks
in its name; and only that process is notified: the token in `by` names it for ever, so a pid that
is used again is never signalled, and with its end its notifications end (N2, N3). A process that
is no worker is named by boot, pid and start, and only by the word of its own host's agent.
"""

from dataclasses import replace
from typing import Final

from posthouse import vouch
from posthouse.errors import NotPermitted, RefusedError
from posthouse.messages import Notify, Signal, WorkerAsks
from posthouse.records import Registrant
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
        if kind not in _TOLD or not registration.spec.notify:
            return
        if is_worker(registration.by):
            self._tell_worker(turn, registration)
        elif registration.registrant:
            host, boot_id, pid, pid_start = vouch.read(registration.registrant)
            agent = self._agent(host, boot_id)
            if agent is not None:
                command = Notify(boot_id=boot_id, pid=pid, pid_start=pid_start)
                self._door.command(turn, agent, command)

    def vouched(self, word: Registrant | None) -> str:
        """The process for which an agent has given its word, as it is kept; "" without a word.
        Raises RefusedError if it is not that of the host's present agent."""
        if word is None:
            return ""
        agent = self._agent(word.host, word.boot_id)
        if agent is None:
            raise RefusedError(
                f"notify is True, and the agent of host {word.host!r} has no session now",
                hint="register again when `posthouse hosts` shows it reachable",
            )
        if not vouch.bears_mark(word, agent.notify_key):
            raise RefusedError(
                f"notify is True, and this is not the word of the agent of host {word.host!r}",
                hint="it may have been started anew: register again",
            )
        return vouch.text(word)

    def _agent(self, name: str, boot_id: str) -> Session | None:
        """The session with a host's agent, if it is there and still of this boot."""
        host = self._fleet.hosts.get(name)
        if host is None or not host.settled or host.boot_id != boot_id:
            return None
        return self._door.get(host.session)

    def _tell_worker(self, turn: Turn, registration: Registration) -> None:
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
