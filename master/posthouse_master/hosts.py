"""CORE: hosts that join and leave, and their word about processes.

Owns: the known hosts, their sessions, the reconciliation of an inventory with what is believed.
Must not know: frames, clients, why a registration is started or stopped (lifecycle).

Invariant: a host's word counts only for workers that are placed on it, under the very token that
was drawn for it; anything else that runs there is ended, and nothing is started in its place
before it is known to be gone.
"""

from typing import Any

import msgspec

from posthouse import limits
from posthouse.errors import BadFrame
from posthouse.messages import (
    Exit,
    Exited,
    Hello,
    Inventory,
    Ready,
    RecordTold,
    Refused,
    Running,
    Started,
    StartFailed,
    StopDone,
)
from posthouse.states import EventKind, StopReason
from posthouse_master.chronicle import Chronicle, host_stream
from posthouse_master.effects import Room
from posthouse_master.groups import Groups
from posthouse_master.lifecycle import Lifecycle
from posthouse_master.obligations import check_drawn, check_page, check_word
from posthouse_master.placement import KEPT, Fleet, Host, Offer
from posthouse_master.recovery import Recovery
from posthouse_master.registry import Registration, Registry
from posthouse_master.said import check_exit, check_running, check_token
from posthouse_master.sessions import FrontDoor, Session, TimerKey
from posthouse_master.starter import Starter
from posthouse_master.store.base import HostRow, Life, PutHost
from posthouse_master.strays import Strays
from posthouse_master.timers import Timers
from posthouse_master.turn import Turn
from posthouse_master.unclaimed import Unclaimed

__all__ = ["Foreign", "Hosts"]

_TAKEN_RETRY_S = 1.0
_NOT_SEEN = ("host_lost", "host_rebooted", "warden_died")  # causes of ends that nobody saw

_pack_offer = msgspec.msgpack.Encoder().encode
_unpack_offer = msgspec.msgpack.Decoder(Offer).decode


class Foreign(Exception):
    """The host runs processes of another registry; they are none of ours to judge."""


class Hosts:
    """All hosts that ever joined this cluster."""

    def __init__(
        self,
        registry: Registry,
        fleet: Fleet,
        lifecycle: Lifecycle,
        starter: Starter,
        groups: Groups,
        strays: Strays,
        unclaimed: Unclaimed,
        recovery: Recovery,
        chronicle: Chronicle,
        door: FrontDoor,
        timers: Timers[TimerKey],
    ) -> None:
        self._registry = registry
        self._fleet = fleet
        self._lifecycle = lifecycle
        self._starter = starter
        self._groups = groups
        self._strays = strays
        self._unclaimed = unclaimed
        self._recovery = recovery
        self._chronicle = chronicle
        self._door = door
        self._timers = timers
        self.resumes = 0  # sessions of hosts that had been heard before, in this term

    # --- joining and leaving ---

    def restore(self, row: HostRow, now_s: float) -> None:
        """A host of an earlier term. One that was up has a while to say HELLO."""
        self._fleet.hosts[row.name] = Host(
            name=row.name,
            offer=_unpack_offer(row.offer),
            machine_id=row.machine_id,
            boot_id=row.boot_id,
            up=row.up,
            draining=row.draining,
            joined=True,
            lease_s=row.lease_s,
        )
        if row.up:
            self._timers.set(("host", row.name), now_s + limits.return_s)

    def admit(self, turn: Turn, hello: Hello, name: str) -> Session | Refused | None:
        """Whether this agent may speak for the host. The session that it replaces, if any."""
        if self._starter.room is Room.NONE:
            return Refused(
                code="resource_exhausted",
                message="the master's disk is full: it cannot take in what a host reports",
                hint="make room on the master's disk",
                retry_after_s=_TAKEN_RETRY_S,
                nonce=hello.nonce,
            )
        host = self._fleet.hosts.get(name)
        if host is None and len(self._fleet.hosts) >= limits.hosts_max:
            return Refused(
                code="too_many_hosts",
                message=f"{limits.hosts_max} hosts have joined already",
                nonce=hello.nonce,
            )
        held = self._door.get(host.session) if host is not None else None
        if host is not None and self._another_machine(host, hello):
            return Refused(
                code="host_taken",
                message=f"host {name} is another machine, and workers are placed on it",
                hint="two hosts must not have one name; the first has to come back, or its "
                "workers to be ended",
                retry_after_s=_TAKEN_RETRY_S,
                nonce=hello.nonce,
            )
        if held is None:
            return None
        same = hello.agent_instance == held.agent_instance or not held.wardens.isdisjoint(
            warden.instance for warden in hello.wardens
        )
        silent = turn.now.boot_s - held.link.heard_s >= limits.silence_s
        if same or silent:
            return held
        return Refused(
            code="host_taken",
            message=f"another agent speaks for host {name}, with another warden",
            hint="two hosts must not have one name",
            retry_after_s=_TAKEN_RETRY_S,
            nonce=hello.nonce,
        )

    def _another_machine(self, host: Host, hello: Hello) -> bool:
        """Whether what this agent knows proves nothing about the workers of the host. Only a new
        boot of the very machine that ran them proves that they are gone."""
        known = (host.machine_id, host.boot_id)
        said = (hello.machine_id, hello.boot_id)
        differs = known[0] != said[0] and known[1] != said[1]
        return bool(host.boot_id) and differs and bool(self._registry.placed_on(host.name))

    def joined(self, turn: Turn, hello: Hello, session: Session) -> None:
        """A session with the host's agent is open; its inventory is awaited."""
        host = self._fleet.hosts.setdefault(session.host, Host(name=session.host))
        offer = Offer(
            labels=tuple(hello.labels),
            runtimes=tuple(hello.runtimes),
            modules=tuple(hello.modules),
            allow_exec=hello.allow_exec,
            users=tuple(hello.users),
            fences=tuple(hello.fences),
            no_tree=hello.no_tree,
            slots=hello.slots,
            version=hello.version,
        )
        changed = offer != host.offer or hello.machine_id != host.machine_id or not host.up
        self.resumes += host.heard_s is not None
        host.session = session.identity
        host.settled = host.choked = False
        host.inventory, host.pages = {}, 0
        host.heard_s = turn.now.boot_s
        host.said_boot_id = hello.boot_id
        host.granting_from = host.stamp = host.unseen = 0
        self._timers.cancel(("host", host.name))
        if offer != host.offer or not host.joined:
            host.offer, host.joined = offer, True
            self._fleet.offer_changed()
        host.machine_id = hello.machine_id
        if not host.up:
            host.up = True
            reason = "its agent said HELLO"
            self._record(turn, EventKind.HOST_UP, host, reason)
        if changed:
            self.persist(turn, host)
        self._starter.unbar(turn, host.name)

    def left(self, turn: Turn, session: Session, reason: str, *, back: bool) -> None:
        """The session is over, and no other took its place. Says nothing about the workers. `back`:
        its agent lives, for all that is known, and is about to begin another one; whether it is
        down shows when it has been silent as long as others may."""
        host = self._fleet.hosts[session.host]
        if host.session != session.identity:
            return
        host.session, host.settled, host.inventory = b"", False, None
        host.heard_s = session.link.heard_s
        if back:
            self._timers.set(("host", host.name), host.heard_s + limits.silence_s)
        else:
            self._down(turn, host, reason)

    def replaced(self, session: Session) -> None:
        """The agent has begun another session: nobody was away."""
        host = self._fleet.hosts[session.host]
        if host.session == session.identity:
            host.session, host.settled, host.inventory = b"", False, None

    def not_back(self, turn: Turn, name: str) -> None:
        """A host that was up, or whose end could not be told, has not said HELLO."""
        host = self._fleet.hosts[name]
        if not host.reachable and host.up:
            self._down(turn, host, "not heard for too long")

    def _down(self, turn: Turn, host: Host, reason: str) -> None:
        if host.up and self._starter.room is Room.NONE:
            self._timers.set(("host", host.name), turn.now.boot_s + _TAKEN_RETRY_S)
        elif host.up:
            host.up = False
            self._record(turn, EventKind.HOST_DOWN, host, reason)
            self.persist(turn, host)

    def _record(self, turn: Turn, kind: EventKind, host: Host, reason: str) -> None:
        self._chronicle.record(
            turn,
            kind,
            stream=host_stream(host.name),
            registry=self._registry.identity,
            host=host.name,
            reason=reason,
        )
        turn.note(str(kind).replace("_", "."), host=host.name, reason=reason)

    def persist(self, turn: Turn, host: Host) -> None:
        """Write its row anew."""
        turn.persist(
            PutHost(
                HostRow(
                    name=host.name,
                    machine_id=host.machine_id,
                    boot_id=host.boot_id,
                    offer=_pack_offer(host.offer),
                    heard_unix_s=turn.now.unix_s,
                    up=host.up,
                    draining=host.draining,
                    lease_s=host.lease_s,
                )
            )
        )

    def drain(
        self, turn: Turn, host: Host, by: str, *, force: bool, grace_s: float | None
    ) -> tuple[bool, list[Registration], list[Registration]]:
        """No more starts there. Whether that is news, who is being stopped, who is left."""
        news = not host.draining
        if news:
            self._draining(turn, host, EventKind.HOST_DRAINING, by)
        stopped, left = [], []
        for registration in list(self._registry.placed_on(host.name).values()):
            if registration.pinned and not force:
                left.append(registration)
                continue
            if registration.stopping is None:
                self._lifecycle.stop(turn, registration, StopReason.DRAIN, by, grace_s=grace_s)
            elif grace_s is not None:
                self._lifecycle.hasten(turn, registration, grace_s)
            stopped.append(registration)
        return news, stopped, left

    def undrain(self, turn: Turn, host: Host, by: str) -> bool:
        """Starts there again; whoever waits for it is started. False if it was not drained."""
        if not host.draining:
            return False
        self._draining(turn, host, EventKind.HOST_UNDRAINED, by)
        self._starter.serve(turn, host)
        if host.settled:
            self._groups.host_settled(turn, host)
        return True

    def _draining(self, turn: Turn, host: Host, kind: EventKind, by: str) -> None:
        host.draining = kind is EventKind.HOST_DRAINING
        self._fleet.offer_changed()
        self.persist(turn, host)
        self._chronicle.record(
            turn,
            kind,
            stream=host_stream(host.name),
            registry=self._registry.identity,
            host=host.name,
            by=by,
        )

    # --- the inventory ---

    def inventory(self, turn: Turn, session: Session, page: Inventory) -> None:
        """A page. Exits count at once; what runs is judged when the last page is here, because
        before it nothing may be started or stopped. Raises BadFrame, Foreign."""
        host = self._fleet.hosts[session.host]
        seen = host.inventory
        if seen is None or page.page != host.pages:
            raise BadFrame(f"inventory page {page.page}, expected {host.pages}")
        if len(seen) + len(page.running) > limits.exit_records_max:
            raise BadFrame("an inventory without end")
        entries: list[Running | Exit] = [*page.running, *page.exits]
        for entry in entries:
            if entry.registry != self._registry.identity:
                raise Foreign(
                    f"host {host.name} has workers of registry {entry.registry}, "
                    f"this is {self._registry.identity}"
                )
        for running in page.running:
            check_running(running, self._registry.token)
        for ended in page.exits:
            check_exit(ended, self._registry.token)
        check_token(page.highest_token, self._registry.token)
        check_page(self._registry, host.name, page)
        token = max(self._registry.token, page.highest_token)
        if page.last:
            check_drawn(token, [*seen, *(entry.token for entry in entries)])
        host.pages += 1
        self._registry.token = token
        for running in page.running:
            seen[running.token] = running
        for ended in page.exits:
            self._exited(turn, host, ended)
        if page.last:
            self._settle(turn, host, seen)

    def _settle(self, turn: Turn, host: Host, seen: dict[int, Running]) -> None:
        """The whole inventory is here: believed and seen are made one."""
        rebooted = bool(host.boot_id) and host.said_boot_id != host.boot_id
        host.settled, host.inventory, host.pages = True, None, 0
        host.choked = True  # nothing is started here before everything is settled
        # 1. Processes of which nothing is believed: they hold up starts, here and elsewhere.
        for running in seen.values():
            self._running(turn, host, running, settling=True)
        self._strays.settled(turn, host.name, seen)
        self._unclaimed.settled(turn, host.name, seen)
        # 2. What is believed to run there and does not: it ended unseen, or its START was lost.
        for registration in list(self._registry.placed_on(host.name).values()):
            if registration.token in seen:
                continue
            if not self._recovery.doubt(registration, rebooted=rebooted):
                self._missing(turn, host, registration, rebooted=rebooted)
        self._boot_known(turn, host)
        turn.note("host.settled", host=host.name, running=len(seen))
        # 3. Who waits for this host.
        host.choked = False
        self.told(turn, host.name)
        self._starter.serve(turn, host)
        self._groups.host_settled(turn, host)

    def _boot_known(self, turn: Turn, host: Host) -> None:
        """What ran in an earlier boot is settled. After a restore only once all is known: the next
        master has to see, too, that the host has rebooted."""
        if not self._recovery.mode and host.settled and host.said_boot_id != host.boot_id:
            host.boot_id = host.said_boot_id
            self.persist(turn, host)

    def told(self, turn: Turn, name: str) -> None:
        """The host has said what it runs, or is forgotten."""
        if self._recovery.settled(name):
            self.recovered(turn)

    def recovered(self, turn: Turn) -> None:
        """After a restore: all that can be known of what runs is known."""
        for registration, rebooted in self._recovery.end(turn):
            host = self._fleet.hosts[registration.host]
            self._missing(turn, host, registration, rebooted=rebooted)
        for host in self._fleet.hosts.values():
            self._boot_known(turn, host)
            self._starter.serve(turn, host)

    def _meant(self, turn: Turn, host: Host, word: Running | Exit) -> Registration | None:
        """The registration that a host's word is about, brought up to what the host knows of it."""
        found = self._believed(host.name, word)
        return found or self._went_on(turn, host, word) or self._newer(turn, host, word)

    def _went_on(self, turn: Turn, host: Host, word: Running | Exit) -> Registration | None:
        """The registration of a token that the host has used by itself."""
        registration = self._registry.get(word.slot, word.generation)
        if registration is None or registration.host != host.name:
            return None
        if word.token not in registration.after:
            return None
        self._lifecycle.reach(turn, registration, word.token)
        return registration

    def _newer(self, turn: Turn, host: Host, word: Running | Exit) -> Registration | None:
        """The registration that a restore has set back, brought up to what its host says of it."""
        registration = self._registry.get(word.slot, word.generation)
        if registration is None or not self._recovery.newer(registration, word.token):
            return None
        self._lifecycle.adopt(turn, registration, host.name, word)
        return registration

    def _missing(
        self, turn: Turn, host: Host, registration: Registration, *, rebooted: bool
    ) -> None:
        starting = registration.life is Life.STARTING and not rebooted
        lost = self._recovery.lost(registration.token)
        if starting and registration.warden == KEPT and not lost:
            # As long as an end before it is not confirmed, the host may come to it by itself.
            if registration.stopping is not None:
                self._lifecycle.send_stop(turn, registration)
            else:
                self._starter.resend(turn, registration, host)
            return
        if starting:
            # The wardens of one boot remember every START they obeyed.
            why = f"the START did not reach host {host.name}"
            self._lifecycle.never_reached(turn, registration, why)
            return
        # A START just before a reboot may have run: like an end that nobody saw.
        cause = "host_rebooted" if rebooted else "warden_died"
        self._lifecycle.lost(turn, registration, cause)

    # --- the word of a settled host ---

    def started(self, turn: Turn, session: Session, message: Started) -> None:
        host = self._obliged(session, message.worker)
        check_running(message.worker, self._registry.token)
        self._running(turn, host, message.worker, settling=False)

    def ready(self, turn: Turn, session: Session, message: Ready) -> None:
        self._obliged(session, message)
        registration = self._believed(session.host, message)
        if registration is not None:
            self._lifecycle.ready(turn, registration)

    def exited(self, turn: Turn, session: Session, message: Exited) -> None:
        check_exit(message.worker, self._registry.token)
        self._exited(turn, self._obliged(session, message.worker), message.worker)

    def start_failed(self, turn: Turn, session: Session, message: StartFailed) -> None:
        self._obliged(session, message)
        registration = self._believed(session.host, message)
        if registration is not None and registration.life is Life.STARTING:
            self._lifecycle.start_failed(
                turn, registration, message.reason, message.code, retry=message.retry
            )

    def record(self, _turn: Turn, session: Session, message: RecordTold) -> None:
        self._unclaimed.told(self._obliged(session, message), message)

    def stop_done(self, turn: Turn, session: Session, message: StopDone) -> None:
        """No process has the token, and none ever will."""
        self._obliged(session, message)
        registration = self._believed(session.host, message)
        if registration is None:
            self._strays.gone(turn, session.host, message.token)
        elif registration.life is Life.STARTING:
            why = "it was stopped before it was started"
            self._lifecycle.never_reached(turn, registration, why)
        else:
            self._lifecycle.lost(turn, registration, "warden_died")

    def _obliged(self, session: Session, word: Any) -> Host:
        """The host, if it may say this at all. Raises BadFrame, and nothing has changed."""
        host = self._fleet.hosts[session.host]
        if not host.settled:
            raise BadFrame("a word about a process before the inventory's last page")
        check_drawn(self._registry.token, [word.token])
        check_word(self._registry, host.name, word)
        return host

    def _running(self, turn: Turn, host: Host, running: Running, *, settling: bool) -> None:
        registration = self._meant(turn, host, running)
        if registration is None:
            known = self._strays.holds(host.name, running.token)
            if not known and not self._unclaimed.hold(turn, host, running):
                self._strays.stop(turn, host, running)
            return
        if registration.life is Life.STARTING:
            self._lifecycle.started(turn, registration, running)
        elif running.ready:
            self._lifecycle.ready(turn, registration)
        self._lifecycle.stuck(turn, registration, running.stuck)
        if settling and registration.stopping is not None and running.stopping is None:
            # Its STOP was void, or never sent. In the session that carried it, it is on its way.
            self._lifecycle.send_stop(turn, registration)

    def _exited(self, turn: Turn, host: Host, ended: Exit) -> None:
        if host.inventory:
            host.inventory.pop(ended.token, None)  # it was listed as running a moment ago
        registration = self._meant(turn, host, ended)
        if registration is not None:
            self._lifecycle.exited(turn, registration, ended)
        elif self._unclaimed.gone(turn, host.name, ended.token):
            pass
        elif not self._strays.gone(turn, host.name, ended.token):
            if self._amend(turn, host, ended):
                return
            handle = f"{ended.slot}.{ended.generation}"
            turn.note("worker.exit_known", host=host.name, handle=handle, token=ended.token)

    def _amend(self, turn: Turn, host: Host, ended: Exit) -> bool:
        """The host was taken for lost, and knows how this one really ended: told once, beside the
        terminal row, which stands with all that was decided by it."""
        registration = self._registry.get(ended.slot, ended.generation)
        if registration is None or not registration.live or ended.facts.cause in _NOT_SEEN:
            return False
        if not self._chronicle.only_lost(registration, ended.token, host.name):
            return False
        self._chronicle.record(
            turn,
            EventKind.EXIT_AMENDED,
            registration,
            host=host.name,
            incarnation=ended.incarnation,
            token=ended.token,
            pid=ended.facts.pid,
            exit=ended.facts,
            reason=f"its host is back: it had {ended.facts.describe()}",
        )
        return True

    def _believed(self, host: str, word: Any) -> Registration | None:
        """The registration that a host's word is about, if it has, or may have, this process."""
        registration = self._registry.get(word.slot, word.generation)
        if registration is None or not registration.placed:
            return None
        if registration.host != host or registration.token != word.token:
            return None
        return registration
