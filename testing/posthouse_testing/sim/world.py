"""The simulated world: one heap of events, one source of randomness, clocks, and a trace.

Owns: virtual time, the order in which things happen, the knobs drawn for a seed, the trace and its
hash, the figures. Must not know: masters, hosts, clients, the protocol.

Invariant: the same seed gives the same trace, in every process and under every PYTHONHASHSEED.
So nothing here or above iterates over a set, orders by id() or hash(), or reads a real clock.
"""

import hashlib
import heapq
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from posthouse.ids import Instant

__all__ = ["Clock", "Knobs", "Timer", "Violation", "World"]

UNIX_EPOCH_S = 1_800_000_000.0  # where people's clocks begin; any number does
TRACE_LINES_MAX = 400  # kept for the report of a violation
LEASED = 0.4  # share of worlds in which leases have deadlines


class Violation(AssertionError):
    """An invariant does not hold. `number` is the invariant's in docs/reliability.md."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(f"invariant {number}: {text}")
        self.number = number


@dataclass(slots=True)
class Timer:
    """An entry of the heap. `cancel` makes it do nothing."""

    callback: Callable[..., None] | None
    arguments: tuple[Any, ...]

    def cancel(self) -> None:
        self.callback = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """What is drawn for a seed before anything happens: a swarm, so that every mix occurs."""

    hosts: int
    clients: int
    workers: int
    faulty_s: float  # how long faults go on
    delay_s: float  # typical one-way delay of a frame
    delay_tail: float  # share of frames that take up to 100 times as long
    loss: float  # share of frames that vanish although the connection lives
    late: float  # share of broken connections whose bytes still arrive afterwards
    garbage: float  # share of frames that arrive damaged
    fault_rate: float  # faults a second
    drift: float  # clocks run at 1 +- this
    jitter_s: float  # a tick comes up to this much late
    commit_s: float  # a transaction takes up to this
    batch: int  # inputs that a master handles before one commit, at most
    exit_rate: float  # spontaneous exits of a worker a second
    stubborn: float  # share of processes that ignore the stop signal
    unkillable: float  # share of processes that KILL ends only after seconds (state D)
    shutdowns: bool  # clients shut the cluster down and drain hosts now and then
    keyed: bool  # keys name the peers; else the sockets are open, and HELLO does
    room: int  # frames that a socket takes for a peer that does not read
    deploys: bool  # clients declare what their sources are to run
    memory: bool = False  # some workers share memory
    lease_s: float = 0.0  # of leases; 0: without deadlines
    near: bool = False  # the first host is the master's own machine
    pause_s: float = 6.0  # the longest that a process is stopped

    @staticmethod
    def draw(random: Random) -> "Knobs":
        pick = random.choice
        return Knobs(
            hosts=pick((1, 1, 1, 2, 2, 2, 3, 3, 7)),
            clients=pick((1, 1, 2, 3)),
            workers=pick((1, 1, 2, 2, 3, 3, 4, 4, 6, 6, 40)),
            faulty_s=pick((10.0, 20.0, 30.0)),
            delay_s=pick((0.0005, 0.002, 0.02, 0.1)),
            delay_tail=pick((0.0, 0.0, 0.01, 0.05)),
            loss=pick((0.0, 0.0, 0.005, 0.05)),
            late=pick((0.0, 0.5, 1.0)),
            garbage=pick((0.0, 0.0, 0.0, 0.002)),
            fault_rate=pick((0.0, 0.1, 0.3, 0.6, 1.0)),
            drift=pick((0.0, 0.002)),
            jitter_s=pick((0.001, 0.01, 0.1)),
            commit_s=pick((0.004, 0.004, 0.004, 0.05, 0.5)),
            batch=pick((1, 2, 8, 64)),
            exit_rate=pick((0.0, 0.02, 0.1, 0.3)),
            stubborn=pick((0.0, 0.2, 0.5)),
            unkillable=pick((0.0, 0.0, 0.1)),
            shutdowns=pick((False, False, True)),
            keyed=pick((True, True, False)),
            room=pick((10, 1000, 1000)),
            deploys=pick((False, True)),
        )

    @staticmethod
    def quiet(*, hosts: int = 1, clients: int = 1, length_s: float = 20.0) -> "Knobs":
        """A world in which nothing happens but what a script does."""
        return Knobs(
            hosts=hosts,
            clients=clients,
            workers=0,
            faulty_s=length_s,
            delay_s=0.001,
            delay_tail=0.0,
            loss=0.0,
            late=0.0,
            garbage=0.0,
            fault_rate=0.0,
            drift=0.0,
            jitter_s=0.001,
            commit_s=0.004,
            batch=8,
            exit_rate=0.0,
            stubborn=0.0,
            unkillable=0.0,
            shutdowns=False,
            keyed=True,
            room=1000,
            deploys=False,
        )

    def with_leases(self, random: Random) -> "Knobs":
        """The same world, but leases have deadlines, and processes are stopped for longer than
        that. A process that KILL does not end is what no lease covers, so there is none."""
        lease_s, near = random.choice((5.0, 8.0)), random.random() < 0.3
        return replace(
            self,
            lease_s=lease_s,
            near=near,
            faulty_s=max(self.faulty_s, 4 * lease_s),
            pause_s=3 * lease_s,
            unkillable=0.0,
        )

    def calm(self) -> "Knobs":
        """The same world once the faults have stopped."""
        return Knobs(
            **{name: getattr(self, name) for name in _LASTING},
            delay_tail=0.0,
            loss=0.0,
            late=0.0,
            garbage=0.0,
            fault_rate=0.0,
            jitter_s=0.001,
            commit_s=0.004,
            exit_rate=0.0,
            stubborn=0.0,
            unkillable=0.0,
            shutdowns=False,
            room=1000,
        )


_LASTING = (
    "hosts",
    "clients",
    "workers",
    "faulty_s",
    "drift",
    "batch",
    "delay_s",
    "keyed",
    "deploys",
    "memory",
    "lease_s",
    "near",
)


@dataclass(slots=True)
class Clock:
    """One machine's clock: CLOCK_BOOTTIME at a rate of its own, and a wall clock that may jump."""

    world: "World"
    rate: float
    boot_at_s: float  # world time of its boot
    wall_skew_s: float = 0.0
    uptime_s: float = 1000.0  # what it showed at `boot_at_s`

    def now(self) -> Instant:
        now_s = self.world.now_s
        return Instant(self.boot_s, UNIX_EPOCH_S + now_s + self.wall_skew_s)

    @property
    def boot_s(self) -> float:
        return self.uptime_s + (self.world.now_s - self.boot_at_s) * self.rate

    def world_s(self, boot_s: float) -> float:
        """World time at which this clock shows `boot_s`."""
        return self.boot_at_s + (boot_s - self.uptime_s) / self.rate


@dataclass(slots=True)
class World:
    """Everything that happens, happens through `at`."""

    seed: int
    echo: Callable[[str], None] | None = None
    leases: bool | None = None  # whether they have deadlines; None: as it is drawn
    now_s: float = 0.0
    random: Random = field(init=False)
    aside: Random = field(init=False)  # what is drawn from it does not change the other draws
    fences: Random = field(init=False)  # nor these, of who has a tree and how slow its fuse is
    knobs: Knobs = field(init=False)
    figures: Counter[str] = field(default_factory=Counter)
    trace: deque[str] = field(default_factory=lambda: deque(maxlen=TRACE_LINES_MAX))
    lines: int = 0
    _heap: list[tuple[float, int, Timer]] = field(default_factory=list)
    _tie: int = 0
    _hash: Any = field(init=False)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)  # noqa: S311 - a simulation, not a secret
        self.aside = Random(f"aside {self.seed}")  # noqa: S311
        self.fences = Random(f"fences {self.seed}")  # noqa: S311
        self.knobs = replace(Knobs.draw(self.random), memory=self.aside.random() < 0.3)
        drawn, leased = self.aside.random() < LEASED, self.knobs.with_leases(self.aside)
        if drawn if self.leases is None else self.leases:
            self.knobs = leased
        self._hash = hashlib.blake2b(digest_size=16)

    @property
    def trace_hash(self) -> str:
        return str(self._hash.hexdigest())

    def at(self, time_s: float, callback: Callable[..., None], *arguments: Any) -> Timer:
        """Call at a time; what is due at the same time happens in the order of the asking."""
        timer = Timer(callback, arguments)
        self._tie += 1
        heapq.heappush(self._heap, (max(time_s, self.now_s), self._tie, timer))
        return timer

    def after(self, delay_s: float, callback: Callable[..., None], *arguments: Any) -> Timer:
        return self.at(self.now_s + delay_s, callback, *arguments)

    def run(self, until_s: float) -> None:
        """Let everything happen that is due up to `until_s`."""
        while self.step(until_s):
            pass

    def step(self, until_s: float) -> bool:
        """Let the next thing happen. False: nothing more is due, and it is `until_s`."""
        while self._heap and self._heap[0][0] <= until_s:
            time_s, _, timer = heapq.heappop(self._heap)
            if timer.callback is None:
                continue
            self.now_s = time_s
            self.figures["events"] += 1
            timer.callback(*timer.arguments)
            return True
        self.now_s = until_s
        return False

    def log(self, who: str, text: str) -> None:
        """A line of the trace."""
        line = f"{self.now_s:10.4f} {who:<12} {text}"
        self.lines += 1
        self._hash.update(line.encode())
        self.trace.append(line)
        if self.echo is not None:
            self.echo(line)

    def chance(self, share: float) -> bool:
        return share > 0 and self.random.random() < share

    def entropy(self, count: int) -> bytes:
        """What a node gets for os.urandom."""
        return self.random.randbytes(count)

    def clock(self, skewed: bool = True) -> Clock:
        """A machine's clock."""
        drift = self.knobs.drift if skewed else 0.0
        return Clock(
            self,
            rate=1.0 + self.random.uniform(-drift, drift),
            boot_at_s=self.now_s,
            wall_skew_s=self.random.uniform(-2.0, 2.0),
            uptime_s=self.random.uniform(10.0, 100_000.0),
        )
