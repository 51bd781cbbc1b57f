"""CORE: what clients may ask to be changed.

Owns: the rules of each request (unique names, known hosts, slots, what is not offered yet). Must
not know: how a change is carried out (lifecycle), remembered (requests) or sent.
Invariant: a command either raises before it has changed anything, or succeeds.
"""

from typing import Final

import msgspec

from posthouse import limits
from posthouse.errors import (
    NoSuchWorker,
    NotRunning,
    RefusedError,
    ShuttingDown,
)
from posthouse.ids import HandleId
from posthouse.messages import (
    Claim,
    Done,
    Drain,
    Drained,
    ForgetHost,
    Hold,
    LatchWorker,
    Register,
    Registered,
    Release,
    ReloadRuntimes,
    RenewRuntimes,
    Restart,
    SetLatch,
    Signal,
    SignalWorker,
    Terminate,
)
from posthouse.records import HandleRef
from posthouse.spec import BackgroundWorker
from posthouse.states import Phase, StopReason
from posthouse_master.admit import Admit
from posthouse_master.hosts import Hosts
from posthouse_master.leases import Leases
from posthouse_master.lifecycle import Lifecycle
from posthouse_master.placement import Fleet, Host
from posthouse_master.registrants import Registrants
from posthouse_master.registry import Registration, Registry
from posthouse_master.sessions import FrontDoor, Session
from posthouse_master.starter import Starter
from posthouse_master.store.base import Life
from posthouse_master.turn import Turn
from posthouse_master.unclaimed import Process, Unclaimed

__all__ = ["Commands"]

_pack = msgspec.msgpack.Encoder().encode
_BACKLOG_MAX: Final = 1024  # commands that wait for an agent's link, before more are refused


class Commands:
    """Each returns its answer or raises a PosthouseError that becomes FAILED."""

    def __init__(
        self,
        registry: Registry,
        fleet: Fleet,
        lifecycle: Lifecycle,
        starter: Starter,
        hosts: Hosts,
        door: FrontDoor,
        admit: Admit,
        registrants: Registrants,
        unclaimed: Unclaimed,
        leases: Leases,
    ) -> None:
        self._unclaimed = unclaimed
        self._leases = leases
        self._registry = registry
        self._fleet = fleet
        self._lifecycle = lifecycle
        self._starter = starter
        self._hosts = hosts
        self._door = door
        self._admit = admit
        self._registrants = registrants

    def register(self, turn: Turn, session: Session, message: Register) -> Registered:
        spec = BackgroundWorker.from_wire(message.spec)
        if self._starter.phase is Phase.STOPPING:
            raise ShuttingDown("the cluster is shutting down", hint="register again when it is up")
        self._admit.source(message.source)
        registrant = self._registrants.vouched(message.registrant) if spec.notify else ""
        self._admit.offered(spec, session.principal, vouched=bool(registrant))
        self._admit.unique(spec)
        self._admit.slots([spec])
        packed = _pack(spec.to_wire())
        registration, event = self._lifecycle.register(
            turn, spec, packed, session.principal, message.source, registrant=registrant
        )
        return Registered(
            request=message.request,
            handle=HandleRef(
                registry=self._registry.identity,
                slot=registration.slot,
                generation=registration.generation,
            ),
            name=registration.name,
            timeline=event.timeline,
            sequence=event.sequence,
        )

    def terminate(self, turn: Turn, session: Session, message: Terminate) -> Done:
        found = self._registry.find(message.ref)
        if isinstance(found, HandleId):  # D12: a stale handle is a silent no-op
            return Done(request=message.request, changed=False, message="no longer registered")
        changed = self._lifecycle.terminate(turn, found, session.principal)
        told = ""
        if not changed:
            told = "being terminated already" if found.live else "no longer registered"
        return Done(request=message.request, changed=changed, message=told)

    def hold(self, turn: Turn, session: Session, message: Hold) -> Done:
        found = self._registered(message.ref)
        changed = self._lifecycle.hold(turn, found, session.principal)
        told = "" if changed else "held already" if found.live else "no longer registered"
        if not changed and found.stopping is StopReason.TERMINATE:
            told = "being terminated, which a hold does not end"
        return Done(request=message.request, changed=changed, message=told)

    def release(self, turn: Turn, session: Session, message: Release) -> Done:
        changed = self._lifecycle.release(turn, self._registered(message.ref), session.principal)
        told = "" if changed else "it is not held"
        return Done(request=message.request, changed=changed, message=told)

    def restart(self, turn: Turn, session: Session, message: Restart) -> Done:
        found = self._registered(message.ref)
        if found.life is Life.HELD or found.stopping is StopReason.HOLD:
            raise RefusedError(
                f"{found.name!r} is held", hint=f"`posthouse release {found.name}` starts it"
            )
        changed = self._lifecycle.restart(turn, found, session.principal)
        told = "" if changed else f"nothing to restart: {found.reason or found.life}"
        return Done(request=message.request, changed=changed, message=told)

    def drain(self, turn: Turn, session: Session, message: Drain) -> Drained:
        host = self._admit.known_host(message.host)
        if not message.on:
            changed = self._hosts.undrain(turn, host, session.principal)
            return Drained(request=message.request, changed=changed)
        changed, stopped, left = self._hosts.drain(
            turn, host, session.principal, force=message.force, grace_s=message.grace_s
        )
        return Drained(
            request=message.request,
            changed=changed or bool(stopped),
            stopped=len(stopped),
            left_count=len(left),
            left=[registration.name for registration in left[: limits.page_items_max]],
        )

    def claim(self, turn: Turn, session: Session, message: Claim) -> Done:
        process = self._unclaimed.get(message.token)
        if process is None:
            raise RefusedError(
                f"no unclaimed process has token {message.token}",
                hint="`posthouse unclaimed` lists them",
            )
        name = process.running.name
        if message.stop:
            _told(process, told=self._unclaimed.stop(turn, process))
            turn.note("worker.unclaimed_stop", worker=name, host=process.host, by=session.principal)
            return Done(request=message.request)
        if process.record is None:
            _told(process, told=self._unclaimed.ask(turn, process))
            raise RefusedError(
                f"host {process.host} has not told the record of {name!r} yet",
                hint="ask again in a moment",
            )
        spec = BackgroundWorker.from_wire(process.record)
        self._admit.unique(spec)
        packed = _pack(spec.to_wire())
        self._lifecycle.claim(
            turn,
            spec,
            packed,
            process.running,
            process.host,
            session.principal,
            source=process.source,
            group=process.group,
        )
        self._unclaimed.release(turn, process)
        return Done(request=message.request)

    def forget_host(self, turn: Turn, session: Session, message: ForgetHost) -> Done:
        host = self._admit.known_host(message.host)
        count = self._leases.forget(
            turn, host, session.principal, confirm_dead=message.confirm_dead
        )
        self._hosts.told(turn, host.name)
        told = f"{count} workers that were placed there may run elsewhere"
        return Done(request=message.request, message=told)

    def reload_runtimes(self, turn: Turn, session: Session, message: ReloadRuntimes) -> Done:
        host = self._admit.known_host(message.host)
        if message.runtime and message.runtime not in host.offer.runtimes:
            raise RefusedError(
                f"host {host.name} has no runtime {message.runtime!r}",
                hint=f"it has {', '.join(host.offer.runtimes) or 'none'}",
            )
        agent = self._reachable(host)
        turn.note("host.reload", host=host.name, runtime=message.runtime, by=session.principal)
        self._door.command(turn, agent, RenewRuntimes(runtime=message.runtime))
        return Done(request=message.request)

    def _registered(self, ref: str) -> Registration:
        """The live registration of a ref. Raises NoSuchWorker."""
        found = self._registry.find(ref)
        if isinstance(found, HandleId) or not found.live:
            name = found.short if isinstance(found, HandleId) else repr(found.name)
            raise NoSuchWorker(
                f"{name} is no longer registered", hint="`posthouse ps --all` shows why"
            )
        return found

    def signal(self, turn: Turn, session: Session, message: SignalWorker) -> Done:
        registration, agent = self.process(message.ref)
        self._lifecycle.signalled(registration, message.signal, session.principal)
        turn.note(
            "worker.signal", worker=registration.name, signal=message.signal, by=session.principal
        )
        command = Signal(
            slot=registration.slot,
            generation=registration.generation,
            token=registration.token,
            signal=message.signal,
        )
        self._door.command(turn, agent, command)
        return Done(request=message.request)

    def latch(self, turn: Turn, _session: Session, message: LatchWorker) -> Done:
        registration, agent = self.process(message.ref)
        command = SetLatch(
            slot=registration.slot,
            generation=registration.generation,
            token=registration.token,
        )
        self._door.command(turn, agent, command)
        return Done(request=message.request)

    def process(self, ref: str) -> tuple[Registration, Session]:
        """The running worker and the session with its host's agent."""
        found = self._registry.find(ref)
        if isinstance(found, HandleId):
            raise NotRunning(f"{found.short} is no longer registered")
        if found.life is not Life.RUNNING:
            raise NotRunning(f"{found.name!r} has no process now: {found.reason or found.life}")
        return found, self._reachable(self._fleet.hosts[found.host])

    def _reachable(self, host: Host) -> Session:
        """The session with this host's agent, if it may be told something now."""
        agent = self._door.get(host.session) if host.settled else None
        if agent is None:
            raise RefusedError(
                f"host {host.name} is not reachable now", hint="`posthouse hosts` shows hosts"
            )
        if len(agent.backlog) >= _BACKLOG_MAX:
            raise RefusedError(f"host {host.name} is too busy", hint="try again in a moment")
        return agent


def _told(process: Process, *, told: bool) -> None:
    if not told:
        raise RefusedError(
            f"host {process.host} is not reachable now", hint="`posthouse hosts` shows hosts"
        )
