"""A simulated client: an application with a notebook, and the real client core in its process.

Owns: what an application does (register, terminate, signal, watch, ask again) and what it was
told. Must not know: the master, hosts; it judges answers only through the checker.

Invariant: the notebook survives the process: a request is asked again under its id until it is
answered, and a watch goes on after the last event that the application has taken.
"""

from dataclasses import dataclass, field
from typing import Any

from posthouse.dial import Lost, Opened, Redial, Rejected, Transmit
from posthouse.errors import (
    CursorTooOld,
    PosthouseError,
    RequestConflict,
    ResourceExhausted,
    TimedOut,
    Unreachable,
    UploadLost,
)
from posthouse.ids import Cursor
from posthouse.messages import (
    IDEMPOTENT,
    MUTATING,
    Applied,
    Apply,
    DeclarePart,
    Drain,
    Explain,
    GetStatus,
    Hold,
    LatchWorker,
    ListHosts,
    ListWorkers,
    ReadOutput,
    Register,
    Registered,
    Release,
    Reply,
    Request,
    Restart,
    Shutdown,
    SignalWorker,
    StatusReply,
    Terminate,
    WorkersPage,
)
from posthouse.session import (
    FROM_START,
    Answered,
    Arrived,
    Broken,
    Call,
    Cancel,
    ClientCore,
    Frame,
    MasterBack,
    MasterSilent,
    Tick,
    Took,
    Watch,
    WatchFailed,
)
from posthouse.spec import BackgroundWorker
from posthouse.states import NEVER_RESTART, SHMEM_ACCESS, EventKind, ShutdownMode
from posthouse_testing.sim.check import Checker, Watching
from posthouse_testing.sim.deploy import Deployer
from posthouse_testing.sim.network import Dealer, Network
from posthouse_testing.sim.node import Node
from posthouse_testing.sim.world import World

__all__ = ["Client", "ClientNode"]

_ASK_AGAIN_S = (0.3, 4.0)
_TREES = 0.2  # share of registrations that ask for a tree


@dataclass(slots=True, eq=False)
class Question:
    """A request in the notebook."""

    request: Request
    answer: Reply | PosthouseError | None = None
    asked: int = 0
    again: int = 0  # times it was asked again although it had been answered

    def __str__(self) -> str:
        return f"{type(self.request).__name__} {self.request.request.hex()[:6]}"


@dataclass(slots=True, eq=False)
class Follower:
    """A watch in the notebook. `cursor` None: it began "from now on" and was told nothing yet."""

    number: int
    ref: str
    stream: str  # "": the whole log
    cursor: int | None
    given: int | None = None  # as the process at hand has it: ahead of `cursor` until taken
    subscription: int = -1
    takes_s: float = 0.0  # when it will have taken what it was given
    over: bool = False
    from_start: bool = False  # it asked for what is kept

    def __str__(self) -> str:
        return f"watch {self.number} of {self.stream or 'all'}"


class ClientNode(Node):
    """A client process."""

    def __init__(self, client: "Client") -> None:
        super().__init__(client.world, f"client {client.name}", client.clock)
        self.client = client
        self.core = ClientCore(client.world.entropy)
        self.dealer: Dealer | None = None

    def handle(self, event: Any) -> None:
        if isinstance(event, tuple):
            dealer, frame = event
            if dealer is not self.dealer:
                return
            event = Frame(frame)
        self.carry_out(self.core.handle(event, self.clock.boot_s))
        if (link := self.core._dialler.link) is not None:  # noqa: SLF001
            self.client.checker.queued(self.name, link)
        if self.alive:
            self.wake_at(self.core.wake_s)

    def tick(self) -> None:
        self.handle(Tick())

    def effect(self, effect: Any) -> None:
        match effect:
            case Redial():
                if self.dealer is not None:
                    self.dealer.close()
                self.dealer = self.client.dial(self)
            case Transmit(frame):
                if self.dealer is not None:
                    self.dealer.send(frame)
            case Answered(request_id, outcome):
                self.client.answered(request_id, outcome)
            case Arrived(subscription, events, cursor):
                self.client.arrived(self, subscription, events, cursor)
            case WatchFailed(subscription, error):
                self.client.watch_failed(self, subscription, error)
            case Opened() | Lost() | Rejected() | MasterSilent() | MasterBack():
                self.world.log(self.name, type(effect).__name__)

    def crash(self) -> None:
        if not self.alive:
            return
        super().crash()
        self.world.log(self.name, "is gone")
        if self.dealer is not None:
            self.dealer.close()
        self.client.died(self)


@dataclass(eq=False)
class Client:
    """The application."""

    world: World
    network: Network
    checker: Checker
    name: str
    hosts: list[str]
    calm: bool = False  # no more mischief
    node: ClientNode | None = None
    questions: dict[bytes, Question] = field(default_factory=dict)
    followers: list[Follower] = field(default_factory=list)
    handles: list[str] = field(default_factory=list)
    _subscriptions: int = 0
    _tags: int = 0

    def __post_init__(self) -> None:
        self.clock = self.world.clock()
        declared = self.checker.ledger.declared
        self.deployer = Deployer(self.world, declared, self.hosts, self.ask)

    # --- its process ---

    def start(self) -> None:
        if self.node is not None:
            return
        self.node = ClientNode(self)
        self.world.log(f"client {self.name}", "begins")
        self.node.submit(Tick())
        for question in list(self.questions.values()):
            if question.answer is None:
                self._ask(question)
        for follower in list(self.followers):
            if not follower.over:
                self._watch(follower)

    def died(self, node: ClientNode) -> None:
        if self.node is node:
            self.node = None
            self.world.after(self.world.random.uniform(0.05, 3.0), self.start)

    def forget(self) -> None:
        """What it was told is no longer so: it begins anew, but for its handles."""
        self.questions.clear()
        self.followers.clear()
        if self.node is not None:
            self.node.crash()

    def dial(self, node: ClientNode) -> Dealer:
        def deliver(frame: bytes) -> None:
            node.submit((dealer, frame))

        def broken(reason: str, retried: bool) -> None:
            if node.dealer is dealer:
                node.submit(Broken(reason, retried))

        user = f"client:{self.name}"
        dealer = Dealer(self.network, "clients", self.name, user, deliver, broken)
        return dealer

    # --- what it does ---

    def act(self) -> None:
        """One step of its life."""
        random = self.world.random
        choice = random.random()
        if choice < 0.45 or not self.handles:
            self.register()
        elif choice < 0.6:
            self.terminate(self._some_ref())
        elif choice < 0.68:
            ref, signal = self._some_ref(), random.choice((1, 10, 15, 9))
            self.ask(SignalWorker(request=self._id(), ref=ref, signal=signal))
        elif choice < 0.73:
            verb, ref = random.choice((Hold, Hold, Release, Restart, Restart)), self._some_ref()
            self.ask(verb(request=self._id(), ref=ref))
            if verb is Hold and random.random() < 0.7:
                release = Release(request=self._id(), ref=ref)
                self.world.after(random.uniform(0.01, 5.0), self.ask, release)
        elif choice < 0.75 and self.world.knobs.shutdowns:
            self.drain(random.choice(self.hosts), on=random.random() < 0.5)
        elif choice < 0.77:
            self.ask(LatchWorker(request=self._id(), ref=random.choice(self.handles)))
        elif choice < 0.85:
            asked = random.choice((GetStatus, GetStatus, GetStatus, Explain, ReadOutput))
            self.ask(asked(request=self._id(), ref=self._some_ref()))
        elif choice < 0.9:
            self.ask(random.choice((ListWorkers, ListHosts))(request=self._id()))
        elif choice < 0.92 and self.world.knobs.shutdowns:
            mode = random.choice((ShutdownMode.FAST, ShutdownMode.IMMEDIATE))
            self.ask(Shutdown(request=self._id(), mode=mode))
        else:
            self.follow("" if random.random() < 0.5 else random.choice(self.handles))

    def _some_ref(self) -> str:
        """A handle, mostly; or a short handle, or a name."""
        random = self.world.random
        handle = random.choice(self.handles)
        short = handle.partition(":")[2]
        return random.choice((handle, handle, handle, short, f"w{random.randint(1, 12)}"))

    def register(self, **fields: Any) -> None:
        """Register a worker; fields that are not given are drawn."""
        random = self.world.random
        self._tags += 1
        drawn: dict[str, Any] = {
            "name": f"w{random.randint(1, 12)}",
            "restart_time": random.choice((0, 0.3, 1.0, 2.5, NEVER_RESTART)),
            "stop_grace_s": random.choice((0.0, 0.3, 1.5)),
            "host": random.choice((None, None, *self.hosts)),
            "unique": random.random() < 0.8,
        }
        if random.random() < 0.3:
            drawn["restart_growth"] = random.choice((1.0, 3.0))
            drawn["restart_time_max"] = 4.0
            drawn["restart_jitter"] = random.choice((0.0, 0.5))
            drawn["restart_budget"] = random.choice((None, (2, 5.0)))
        aside = self.world.aside
        if self.world.knobs.memory and aside.random() < 0.7:
            drawn |= {"flags": SHMEM_ACCESS, "crash_domain": aside.choice(("x", "x", "y"))}
        if self.world.fences.random() < _TREES:
            drawn["fence"] = "tree"
        worker = BackgroundWorker(
            main="acme.jobs:main",
            main_arg={"tag": f"{self.name}-{self._tags}"},
            **(drawn | fields),
        )
        self.ask(Register(request=self._id(), spec=worker.to_wire()))

    def drain(self, host: str, *, on: bool) -> None:
        """Take a host out of service, with or without those pinned to it, or back into it."""
        random = self.world.random
        grace_s = random.choice((None, 0.0, 0.5))
        force = random.random() < 0.5
        self.ask(Drain(request=self._id(), host=host, on=on, force=force, grace_s=grace_s))

    def terminate_all(self) -> None:
        """The end of the run: everything that was ever registered goes."""
        for handle in self.handles:
            self.terminate(handle)

    def terminate(self, handle: str) -> None:
        self.ask(Terminate(request=self._id(), ref=handle))

    def _id(self) -> bytes:
        return self.world.entropy(16)

    # --- questions ---

    def ask(self, request: Request) -> None:
        question = Question(request)
        self.questions[request.request] = question
        self.world.log(f"client {self.name}", f"asks {question}")
        self._ask(question)

    def _ask(self, question: Question) -> None:
        if self.node is None or self.questions.get(question.request.request) is not question:
            return  # its next process will, or it is forgotten
        question.asked += 1
        node = self.node
        node.submit(Call(question.request))
        self.world.after(self.world.random.uniform(*_ASK_AGAIN_S), self._impatient, node, question)

    def _impatient(self, node: ClientNode, question: Question) -> None:
        """Give the call up, and ask again under the same id."""
        if question.answer is None and node is self.node and node.alive:
            node.submit(Cancel(question.request.request))

    def answered(self, request_id: bytes, outcome: Reply | PosthouseError) -> None:
        question = self.questions[request_id]
        if isinstance(outcome, TimedOut | Unreachable | ResourceExhausted):
            self.world.figures[f"asked again: {outcome.code}"] += 1
            self.world.after(self.world.random.uniform(0.0, 1.0), self._retry, question)
            return
        told = getattr(outcome, "code", "") or type(outcome).__name__
        self.world.log(f"client {self.name}", f"{question} answered: {told}")
        self.world.figures[f"answer {told}"] += 1
        mutating = type(question.request) in MUTATING - IDEMPOTENT
        if isinstance(outcome, RequestConflict) and question.answer is not None:
            return  # it was abused
        if question.answer is not None:
            if mutating and not _same(question.answer, outcome):
                self.checker.fail(10, f"{question}: first {question.answer!r}, then {outcome!r}")
            return
        question.answer = outcome
        if isinstance(question.request, Apply | DeclarePart):
            self.deployer.answered(question.request, outcome)
            if isinstance(question.request, DeclarePart) or isinstance(outcome, UploadLost):
                return  # it is said again as another one
        self._heard(question, outcome)
        if mutating and not self.calm and self.world.chance(0.2):
            act = self.doubt if self.world.chance(0.8) else self.abuse
            self.world.after(self.world.random.uniform(0.0, 3.0), act, question)

    def _heard(self, question: Question, outcome: Reply | PosthouseError) -> None:
        """What the first answer tells."""
        if isinstance(outcome, Applied):
            self.handles += [
                str(change.handle.id) for change in outcome.changes if change.handle is not None
            ]
        if isinstance(outcome, Registered):
            assert isinstance(question.request, Register)
            self.checker.registered(self.name, question.request, outcome)
            handle = str(outcome.handle.id)
            self.handles.append(handle)
            if not self.calm and self.world.chance(0.5):
                self.follow(handle)
            if not self.calm and self.world.chance(0.1):
                self.terminate(handle)  # while its START is on the way
        if isinstance(outcome, StatusReply):
            self.checker.told(self.name, outcome.status)
        elif isinstance(outcome, WorkersPage):
            for worker in outcome.workers:
                self.checker.told(self.name, worker.status)

    def _retry(self, question: Question) -> None:
        if question.answer is None:
            self._ask(question)

    def abuse(self, question: Question) -> None:
        """The id of an answered request is used for another one: a conflict, and no effect."""
        other = Terminate(request=question.request.request, ref="a worker that is not there")
        known = self.questions.get(question.request.request) is question
        if self.node is not None and known and question.request != other:
            self.node.submit(Call(other))

    def doubt(self, question: Question) -> None:
        """An answered request is asked again: one effect, the same answer."""
        question.again += 1
        if self.node is not None and self.questions.get(question.request.request) is question:
            self.world.log(f"client {self.name}", f"doubts {question}")
            self.node.submit(Call(question.request))

    # --- watches ---

    def follow(self, handle: str) -> None:
        """Begin a watch, of one registration or of all, from the start or from now on."""
        random = self.world.random
        stream = handle.partition(":")[2]
        cursor = 0 if handle or random.random() < 0.7 else None
        follower = Follower(len(self.followers), handle, stream, cursor)
        self.followers.append(follower)
        self._watch(follower)

    def _watch(self, follower: Follower) -> None:
        if self.node is None:
            return
        self._subscriptions += 1
        follower.subscription = self._subscriptions
        follower.given = follower.cursor
        follower.from_start = follower.cursor == 0
        after: Cursor | None = None
        if follower.cursor == 0:
            after = FROM_START
        elif follower.cursor is not None:
            after = Cursor(self.checker.ledger.timeline, follower.cursor)
        window = self.world.random.choice((1, 2, 5, 256))
        self.node.submit(Watch(follower.subscription, follower.ref, after, window))

    def arrived(
        self, node: ClientNode, subscription: int, events: tuple[Any, ...], cursor: Cursor
    ) -> None:
        follower = self._follower(subscription)
        if follower is None:
            self.checker.fail(8, f"{self.name} is told of a watch that is over")
        if follower.given is None:
            # Began from now on: the first word tells where that was.
            rows = [event for event in events if event.kind is not EventKind.TRIMMED]
            follower.given = rows[0].sequence - 1 if rows else cursor.sequence
        assert node.core.welcome is not None
        placed = not follower.from_start
        session = node.core.welcome.session
        watch = Watching(follower.stream, session, subscription, placed)
        self.checker.watched(
            f"{self.name} {follower}", watch, follower.given, events, cursor.sequence
        )
        follower.given = cursor.sequence
        self.world.figures["events told"] += len(events)
        slow_s = self.world.random.choice((0.0, 0.0, 0.2, 1.0)) * (not self.calm)
        follower.takes_s = max(follower.takes_s, self.world.now_s + slow_s)
        self.world.at(
            follower.takes_s, self._take, node, follower, subscription, len(events), cursor
        )

    def _take(
        self, node: ClientNode, follower: Follower, subscription: int, count: int, cursor: Cursor
    ) -> None:
        if node is self.node and node.alive and follower.subscription == subscription:
            follower.cursor = cursor.sequence
            node.submit(Took(subscription, count))

    def watch_failed(self, node: ClientNode, subscription: int, error: PosthouseError) -> None:
        follower = self._follower(subscription)
        assert follower is not None
        self.world.log(f"client {self.name}", f"{follower} ends: {error.code}")
        self.world.figures[f"watch ended: {error.code}"] += 1
        if not isinstance(error, CursorTooOld):
            follower.over = True
            self.checker.watch_refused(f"{self.name} {follower}", follower.stream, error)
            return
        self.checker.missed(f"{self.name} {follower}", follower.stream, follower.given or 0)
        if self.checker.forgotten(follower.stream):
            follower.over = True  # its status says that it is no longer registered
            return
        again: Cursor = error.detail["cursor"]
        follower.cursor = again.sequence
        self.world.after(0.1, self._watch_again, node, follower)

    def _watch_again(self, node: ClientNode, follower: Follower) -> None:
        if node is self.node:
            self._watch(follower)

    def _follower(self, subscription: int) -> Follower | None:
        for follower in self.followers:
            if follower.subscription == subscription and not follower.over:
                return follower
        return None

    # --- at the end ---

    @property
    def asking(self) -> bool:
        """A request of it is under way."""
        open_ = any(question.answer is None for question in self.questions.values())
        return open_ or self.deployer.busy

    def unsettled(self) -> list[str]:
        """What it still waits for."""
        waits = [
            f"client {self.name}: {question} is not answered"
            for question in self.questions.values()
            if question.answer is None
        ]
        if self.deployer.busy:
            waits.append(f"client {self.name}: a deployment is under way")
        return waits + self.behind()

    def behind(self) -> list[str]:
        """The watches that have not been told everything yet."""
        waits = []
        for follower in self.followers:
            newest = self.checker.ledger.newest(follower.stream)
            if not follower.over and follower.cursor is not None and follower.cursor < newest:
                waits.append(
                    f"client {self.name}: {follower} is at {follower.cursor}, the log at {newest}"
                )
        return waits


def _same(first: Reply | PosthouseError, second: Reply | PosthouseError) -> bool:
    if isinstance(first, PosthouseError) and isinstance(second, PosthouseError):
        return (first.code, first.message) == (second.code, second.message)
    return first == second
