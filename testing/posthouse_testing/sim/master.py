"""The simulated master: the real core, a store that survives it, and deaths at every boundary.

Owns: the batch (drain, handle, commit, send), when the process ends and is started again. Must
not know: what is checked, what a frame says.

Invariant: as in the real shell, nothing of a batch is sent before its commit but what is urgent;
and what was not committed when the process died is gone with it.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from posthouse import limits
from posthouse.errors import StoreError
from posthouse.link import Link
from posthouse_master.core import MasterCore, MasterPolicy
from posthouse_master.effects import (
    Halt,
    Interrupted,
    Malformed,
    Note,
    Peer,
    PeerGone,
    Persist,
    Received,
    Room,
    Send,
    Space,
    Tick,
)
from posthouse_master.store.base import Op, Snapshot, Store, StoreFull
from posthouse_master.store.memory import MemoryDisk, MemoryStore
from posthouse_testing.sim.network import Network, Router
from posthouse_testing.sim.node import Node
from posthouse_testing.sim.world import Clock, World

__all__ = ["MasterNode", "MasterSeat"]


class Auditor(Protocol):
    """Who is told of what is durable (ledger.Ledger)."""

    def committed(self, epoch: int, ops: Sequence[Op]) -> None: ...
    def loaded(self, snapshot: Snapshot) -> None: ...


class Watcher(Protocol):
    """Who looks at what a master says (check.Checker)."""

    def master_said(self, frame: bytes, endpoint: str, *, doubtful: bool) -> None: ...
    def queued(self, who: str, link: Link, backlog: int = 0) -> None: ...


class MasterNode(Node):
    """One master process."""

    def __init__(self, seat: "MasterSeat") -> None:
        super().__init__(seat.world, "master", seat.clock)
        self.seat = seat
        if seat.room is Room.NONE:
            raise StoreFull("no room for a new term")
        self.store = seat.open_store()
        self.knows = Room.AMPLE  # what the core has been told of its disk
        self.epoch = self.store.begin_term().epoch
        snapshot = self.store.load()
        seat.auditor.loaded(snapshot)
        self.core = MasterCore(snapshot, seat.policy, self.world.entropy, self.clock.now())
        self.busy = False  # a batch is being committed
        self._inbox: deque[Any] = deque()
        self._due = False
        self._sends: list[Send] = []
        self._ops: list[Op] = []
        self._halt: Halt | None = None
        self.deposed = False  # another has begun a term; its sockets are not bound any more

    def begin(self) -> None:
        self.world.log(self.name, f"begins epoch {self.epoch}")
        for endpoint, router in self.seat.network.routers.items():
            router.bind(self._receiver(endpoint))
        if self.seat.room is not Room.AMPLE:
            self.submit(Space(self.seat.room))
        self.submit(Tick())

    def _receiver(self, endpoint: Any) -> Callable[[bytes, str, bytes], None]:
        def receive(routing_id: bytes, user: str, frame: bytes) -> None:
            peer = Peer(endpoint, routing_id, user if self.world.knobs.keyed else None)
            if len(frame) > limits.client_frame_bytes_max:
                self.submit(Malformed(peer))
            else:
                self.submit(Received(peer, frame))

        return receive

    # --- one batch ---

    def handle(self, event: Any) -> None:
        self._inbox.append(event)
        if not self._due and not self.busy:
            self._due = True
            self.world.after(0.0001, self._batch)

    def _batch(self) -> None:
        self._due = False
        if not self.alive:
            return
        if self.paused:
            self._due = True
            self.world.at(self._paused_to_s, self._batch)
            return
        self.busy = True
        for _ in range(min(len(self._inbox), self.world.knobs.batch)):
            event = self._inbox.popleft()
            self.knows = event.room if isinstance(event, Space) else self.knows
            self.carry_out(self.core.handle(event, self.clock.now()))
            if not self.alive:
                return
        commit_s = self.world.random.uniform(0.0001, self.world.knobs.commit_s)
        commit_s = commit_s if self._ops else 0.0
        self.world.after(commit_s, self._commit)

    def effect(self, effect: Any) -> None:
        match effect:
            case Persist(op):
                self._ops.append(op)
            case Send(urgent=True):
                self._send(effect)
            case Send():
                self._sends.append(effect)
            case Note(name, fields):
                self.world.log(self.name, f"{name} {dict(fields)}")
            case Halt():
                self._halt = effect

    def _commit(self) -> None:
        if not self.alive:
            return
        if self.paused:
            self.world.at(self._paused_to_s, self._commit)
            return
        if self.burn():
            return
        if self._ops:
            try:
                self.seat.commit(self, self._ops)
            except StoreError as error:
                self.world.log(self.name, f"cannot commit: {error}")
                self.crash()
                return
            self._ops = []
        sends, self._sends = self._sends, []
        for send in sends:
            if self.burn():
                return
            self._send(send)
        if self._halt is not None:
            self.world.log(self.name, f"halts: {self._halt.reason}")
            self.crash()
            return
        self.busy = False
        for session in self.core.door:
            self.seat.watcher.queued("master", session.link, len(session.backlog))
        if self._inbox:
            self._due = True
            self.world.after(0.0001, self._batch)
        self.wake_at(self.core.wake_s)

    def _send(self, send: Send) -> None:
        if self.deposed:
            return
        router: Router = self.seat.network.routers[send.peer.endpoint]
        self.seat.watcher.master_said(send.frame, send.peer.endpoint, doubtful=self.seat.doubtful)
        if not router.send(send.peer.routing_id, send.frame):
            self.submit(PeerGone(send.peer))

    def tick(self) -> None:
        self.handle(Tick())

    def crash(self) -> None:
        if not self.alive:
            return
        super().crash()
        self._inbox.clear()
        self.store.close()
        self.seat.died(self)

    def interrupt(self) -> None:
        self.submit(Interrupted("SIGTERM"))


class MasterSeat:
    """The machine a master runs on, its registry, and whoever runs there now."""

    def __init__(
        self,
        world: World,
        network: Network,
        auditor: Auditor,
        watcher: Watcher,
        policy: MasterPolicy,
    ) -> None:
        self.world = world
        self.network = network
        self.auditor = auditor
        self.watcher = watcher
        self.policy = policy
        self.clock: Clock = world.clock()
        self.disk = MemoryDisk(registry=world.entropy(16).hex())
        self.open_store: Callable[[], Store] = lambda: MemoryStore(self.disk, steal=True)
        self.doubtful = False  # its disk lied, and nobody has restored the registry yet
        self.node: MasterNode | None = None
        self.restart_s: Callable[[], float] = lambda: world.random.uniform(0.05, 4.0)
        self.store_fails: str = ""  # "before" or "after": the next commit ends the process
        self.room = Room.AMPLE

    def start(self) -> None:
        if self.node is not None:
            return
        try:
            self.node = MasterNode(self)
        except StoreError as error:
            self.world.log("master", f"cannot begin: {error}")
            self.world.after(self.restart_s(), self.start)
            return
        self.node.begin()

    def calm(self) -> None:
        """Faults stop."""
        self.store_fails = ""
        self.fill(Room.AMPLE)
        if self.node is not None:
            self.node.fuse = None

    def commit(self, node: MasterNode, ops: Sequence[Op]) -> None:
        failing, self.store_fails = self.store_fails, ""
        if failing == "before":
            raise StoreError("an error of the disk")
        if node.knows is Room.NONE:
            self.world.figures["commits without room"] += 1
            raise StoreFull("the reserve is spent")
        node.store.commit(node.epoch, ops)
        self.auditor.committed(node.epoch, ops)
        if failing == "after":
            raise StoreError("the answer of the store was lost")

    def fill(self, room: Room) -> None:
        """The disk is fuller or emptier; its master is told, if one runs."""
        if room is self.room:
            return
        self.room = room
        self.world.log("master", f"has a disk with {room} room")
        if self.node is not None:
            self.node.submit(Space(room))

    def usurp(self) -> None:
        """The master stops for so long that another one begins a term; then it goes on."""
        old = self.node
        if old is None:
            return
        self.world.log("master", f"of epoch {old.epoch} is deposed")
        old.deposed = True
        old.pause(self.world.random.uniform(0.01, 5.0))
        self.died(old)

    def died(self, node: MasterNode) -> None:
        if self.node is not node:
            return
        self.node = None
        if not node.deposed:
            self.world.log("master", "is gone")
        for router in self.network.routers.values():
            router.close(late=self.world.chance(self.world.knobs.late))
        if self.world.chance(0.2):
            self.clock = self.world.clock()  # the machine was started anew
        self.world.after(self.restart_s(), self.start)
