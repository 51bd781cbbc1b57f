"""ZeroMQ as it was measured: what DEALER and ROUTER do when connections break.

Owns: connections, the frames in flight, cuts. Must not know: what a frame says.

Invariant: within one connection frames arrive in the order they were sent or not at all; between
connections nothing is promised. A frame is never made up or doubled here.

What the real thing does, and so does this one:
1. Frames in flight when a connection breaks are lost, or (an old connection's bytes in a kernel
   buffer) arrive after the new connection's first ones, under the old routing id.
2. A DEALER connects again by itself, under a new routing id. Its monitor may tell of the break,
   and may come too late.
3. A cut without FIN is silent: frames wait in TCP. If it heals before the heartbeats notice, they
   all arrive; otherwise each end gives the connection up at a time of its own.
4. Nothing is queued for nobody (IMMEDIATE=1): what is sent before a connection exists stays with
   the sender, bounded, and goes with the next connection of the same socket.
   So frames for one master may reach the next: sessions and epochs are what tells them apart.
5. A connection may be a black hole: one end holds what the other has given up, takes every frame,
   and answers the heartbeats.
6. A ROUTER refuses a frame to a routing id that has gone, or whose peer does not read
   (MANDATORY=1); a DEALER's send to such a peer fails (NOBLOCK).
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from posthouse_testing.sim.world import Knobs, Timer, Violation, World

__all__ = ["Connection", "Dealer", "Network", "Router"]

HEARTBEAT_S = (6.0, 8.0)  # when an end gives up a silent connection
RECONNECT_S = (0.1, 1.0)  # a DEALER's own redial
MONITORED = 0.6  # share of broken connections that the socket's monitor tells of
FRAMES_MAX = 20_000  # in one second, by all peers together
PENDING_MAX = 64  # frames a socket keeps until it is connected

Deliver = Callable[[bytes], None]


class Pipe:
    """One direction of one connection."""

    def __init__(self, network: "Network", deliver: Deliver, name: str) -> None:
        self.world = network.world
        self.network = network
        self.deliver = deliver
        self.name = name
        self.open = True
        self.cut = False
        self.swallows = False
        self._last_s = 0.0
        self._flying: deque[tuple[Timer, bytes]] = deque()
        self._held: deque[bytes] = deque()

    def send(self, frame: bytes) -> None:
        world = self.world
        knobs = self.network.knobs
        self.network.count()
        if not self.open:
            world.figures["frames into a dead connection"] += 1
        elif self.swallows:
            world.figures["frames into a black hole"] += 1
        elif world.chance(knobs.loss):
            world.figures["frames lost"] += 1
        else:
            if world.chance(knobs.garbage):
                world.figures["frames damaged"] += 1
                world.log(self.name, "frame damaged")
                frame = frame[: world.random.randrange(len(frame) or 1)]
            if self.cut:
                self._held.append(frame)
            else:
                self._fly(frame)

    @property
    def waiting(self) -> int:
        """Frames that the other end has not taken yet."""
        return len(self._flying) + len(self._held)

    def stall(self) -> None:
        """The cable is cut, silently: TCP keeps the bytes and tries again."""
        self.cut = True
        for timer, frame in self._flying:
            timer.cancel()
            self._held.append(frame)
        self._flying.clear()

    def heal(self) -> None:
        self.cut = False
        held, self._held = self._held, deque()
        for frame in held:
            self._fly(frame)

    def end(self, *, late: bool) -> None:
        """No more frames go in. What is on its way arrives much later, or in part, or not."""
        if not self.open:
            return
        self.open = False
        world = self.world
        frames = [frame for _, frame in self._flying] + list(self._held)
        for timer, _ in self._flying:
            timer.cancel()
        self._flying.clear()
        self._held.clear()
        if not late:
            # A prefix was already in the other side's kernel.
            frames = frames[: world.random.randint(0, len(frames))]
        if late and frames:
            world.figures["frames of a dead connection delivered late"] += len(frames)
        extra_s = world.random.uniform(0.0, 3.0) if late else 0.0
        for frame in frames:
            self._fly(frame, extra_s)

    def _fly(self, frame: bytes, extra_s: float = 0.0) -> None:
        world, knobs = self.world, self.network.knobs
        delay_s = knobs.delay_s * world.random.uniform(0.2, 1.8) + extra_s
        if world.chance(knobs.delay_tail):
            delay_s *= world.random.uniform(1.0, 100.0)
        self._last_s = max(self._last_s, world.now_s + delay_s)
        timer = world.at(self._last_s, self._arrive)
        self._flying.append((timer, frame))

    def _arrive(self) -> None:
        _, frame = self._flying.popleft()
        self.deliver(frame)


@dataclass(slots=True, eq=False)
class Connection:
    """A dealer's connection to a router. Each end learns of the other's end in its own time."""

    dealer: "Dealer"
    router: "Router"
    routing_id: bytes
    up: Pipe = field(init=False)  # dealer to router
    down: Pipe = field(init=False)
    dealer_open: bool = True
    router_open: bool = True

    def end_at_dealer(self, *, late: bool) -> None:
        """The dealer's end closes: by Redial, by a reset, by its heartbeat."""
        if not self.dealer_open:
            return
        self.dealer_open = False
        self.up.end(late=late)
        self.down.deliver = _nowhere
        network = self.router.network
        network.world.after(network.knobs.delay_s + 0.001, self._tell_router)

    def end_at_router(self, *, late: bool) -> None:
        """The router's end closes: by a reset, by its heartbeat, or because its process ended."""
        if not self.router_open:
            return
        self.router_open = False
        self.router.connections.pop(self.routing_id, None)
        self.down.end(late=late)
        network = self.router.network
        network.world.after(network.knobs.delay_s + 0.001, self._tell_dealer)

    def _tell_router(self) -> None:
        if self.router_open and not self.up.cut:
            self.end_at_router(late=False)

    def _tell_dealer(self) -> None:
        if self.dealer_open and not self.down.cut:
            self.dealer.lost(self)


def _nowhere(frame: bytes) -> None:
    """A closed end hears nothing."""


class Router:
    """A bound ROUTER socket. Its process may end and another take the same address."""

    def __init__(self, network: "Network", name: str) -> None:
        self.network = network
        self.name = name
        self.connections: dict[bytes, Connection] = {}
        self.receive: Callable[[bytes, str, bytes], None] | None = None  # rid, user id, frame

    def bind(self, receive: Callable[[bytes, str, bytes], None]) -> None:
        self.receive = receive

    def close(self, *, late: bool = False) -> None:
        """The process is gone, and every connection with it."""
        self.receive = None
        for connection in list(self.connections.values()):
            connection.end_at_router(late=late)

    def send(self, routing_id: bytes, frame: bytes) -> bool:
        """False: there is no such peer any more."""
        connection = self.connections.get(routing_id)
        if connection is None or connection.down.waiting >= self.network.knobs.room:
            self.network.world.figures["frames refused by the router"] += 1
            return False
        connection.down.send(frame)
        return True

    def arrived(self, connection: Connection, user_id: str, frame: bytes) -> None:
        if self.receive is not None:
            self.receive(connection.routing_id, user_id, frame)


class Dealer:
    """One DEALER socket: connects, and connects again, until it is closed."""

    def __init__(
        self,
        network: "Network",
        router: str,
        machine: str,
        user_id: str,
        deliver: Deliver,
        broken: Callable[[str, bool], None] | None = None,
    ) -> None:
        self.network = network
        self.world = network.world
        self.router = network.routers[router]
        self.machine = machine
        self.user_id = user_id
        self.deliver = deliver
        self.broken = broken  # told of a broken connection, or of a vain attempt, perhaps
        self.closed = False
        self.connection: Connection | None = None
        self.pending: deque[bytes] = deque()
        network.dealers.append(self)
        self._dial(first=True)

    def send(self, frame: bytes) -> None:
        connection = self.connection
        if connection is not None and connection.up.waiting < self.network.knobs.room:
            connection.up.send(frame)
        elif connection is not None:
            self.world.figures["frames that a full socket did not take"] += 1
        elif len(self.pending) < PENDING_MAX:
            self.pending.append(frame)

    def close(self) -> None:
        """Redial, or the end of the process: the kernel may still deliver what it was given."""
        self.closed = True
        self.pending.clear()
        if self in self.network.dealers:
            self.network.dealers.remove(self)
        if self.connection is not None:
            self.connection.end_at_dealer(late=self.world.chance(self.network.knobs.late))
            self.connection = None

    def lost(self, connection: Connection) -> None:
        """The connection is over at this end; the socket tries again by itself."""
        connection.end_at_dealer(late=self.world.chance(self.network.knobs.late))
        if self.connection is connection:
            self.connection = None
            self._dial(first=False)
            self._tell("disconnected")

    def _dial(self, *, first: bool) -> None:
        pause_s = 0.0 if first else self.world.random.uniform(*RECONNECT_S)
        self.world.after(pause_s + 3 * self.network.knobs.delay_s, self._try)

    def _try(self) -> None:
        if self.closed or self.connection is not None:
            return
        if self.router.receive is None or self.network.is_cut(self.machine):
            self._dial(first=False)
            if not self.network.is_cut(self.machine):
                self._tell("nobody listens there", retried=True)
            return
        connection = self.connection = self.network.connect(self)
        self.world.figures["frames that waited for a connection"] += len(self.pending)
        while self.pending:
            connection.up.send(self.pending.popleft())

    def _tell(self, reason: str, *, retried: bool = False) -> None:
        if self.broken is not None and self.world.chance(MONITORED):
            self.world.after(0.001, self.broken, reason, retried)


class Network:
    """All sockets and cables. A machine's cable leads to the master's."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.routers = {name: Router(self, name) for name in ("agents", "clients")}
        self.dealers: list[Dealer] = []
        self._cuts: dict[str, tuple[bool, bool, int]] = {}  # machine: up cut, down cut, number
        self._numbers = 0
        self._second = -1
        self._frames = 0

    @property
    def knobs(self) -> Knobs:
        return self.world.knobs

    def is_cut(self, machine: str) -> bool:
        return machine in self._cuts

    def connect(self, dealer: Dealer) -> Connection:
        self._numbers += 1
        router = dealer.router
        connection = Connection(dealer, router, b"\0" + self._numbers.to_bytes(4, "big"))

        def to_router(frame: bytes) -> None:
            router.arrived(connection, dealer.user_id, frame)

        def to_dealer(frame: bytes) -> None:
            if not dealer.closed:
                dealer.deliver(frame)

        connection.up = Pipe(self, to_router, f"{dealer.user_id}>")
        connection.down = Pipe(self, to_dealer, f"{dealer.user_id}<")
        router.connections[connection.routing_id] = connection
        return connection

    def count(self) -> None:
        """Every frame passes here: a storm among so few peers is a defect of somebody."""
        second = int(self.world.now_s)
        self._frames = self._frames + 1 if second == self._second else 1
        self._second = second
        self.world.figures["frames"] += 1
        if self._frames > FRAMES_MAX:
            raise Violation(19, f"{self._frames} frames within a second")

    # --- faults ---

    def reset(self, machine: str) -> None:
        """Every connection of the machine breaks, and both ends are told."""
        for connection in self._connections(machine):
            late = self.world.chance(self.knobs.late)
            connection.end_at_router(late=False)
            connection.up.end(late=late)
            connection.dealer.lost(connection)

    def cut(self, machine: str, *, up: bool, down: bool) -> None:
        """Nothing passes in these directions, silently, until `heal`."""
        self._numbers += 1
        number = self._numbers
        self._cuts[machine] = (up, down, number)
        for connection in self._connections(machine):
            if up:
                connection.up.stall()
            if down:
                connection.down.stall()
            # Without the other's PONG both ends give up, each by its own timer.
            for end in (self._give_up_dealer, self._give_up_router):
                pause_s = self.world.random.uniform(*HEARTBEAT_S)
                self.world.after(pause_s, end, machine, number, connection)

    def heal(self, machine: str) -> None:
        if self._cuts.pop(machine, None) is None:
            return
        for connection in self._connections(machine):
            connection.up.heal()
            connection.down.heal()
            if not connection.router_open:
                connection.dealer.lost(connection)
            elif not connection.dealer_open:
                connection.end_at_router(late=False)

    def heal_all(self) -> None:
        for machine in list(self._cuts):
            self.heal(machine)
        for dealer in self.dealers:
            self.swallow(dealer.machine, up=False, down=False)

    def swallow(self, machine: str, *, up: bool, down: bool) -> None:
        """The connections that the machine has now are black holes in these directions: nobody
        is told, no heartbeat is missed, and nothing arrives. Both False: no longer."""
        for connection in self._connections(machine):
            connection.up.swallows, connection.down.swallows = up, down

    def _connections(self, machine: str) -> list[Connection]:
        found = [d.connection for d in self.dealers if d.machine == machine and d.connection]
        for router in self.routers.values():
            for connection in router.connections.values():
                if connection.dealer.machine == machine and connection not in found:
                    found.append(connection)
        return found

    def _still_cut(self, machine: str, number: int) -> bool:
        return self._cuts.get(machine, (False, False, -1))[2] == number

    def _give_up_dealer(self, machine: str, number: int, connection: Connection) -> None:
        if self._still_cut(machine, number) and connection.dealer_open:
            self.world.figures["heartbeats missed"] += 1
            connection.dealer.lost(connection)

    def _give_up_router(self, machine: str, number: int, connection: Connection) -> None:
        if self._still_cut(machine, number) and connection.router_open:
            self.world.figures["heartbeats missed"] += 1
            connection.end_at_router(late=self.world.chance(self.knobs.late))
