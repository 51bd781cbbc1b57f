"""A master by script: the client's end of the protocol, played by a few lines that can be told to
misbehave. Real masters are in the tests named test_real_*.

Durable state (log, remembered requests) survives `restart`; sessions do not.
"""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from posthouse import codec, transport
from posthouse.follow import status_after
from posthouse.link import Link
from posthouse.messages import (
    MUTATING,
    Credit,
    CursorTooOld,
    Done,
    Events,
    Failed,
    GetStatus,
    Goodbye,
    Grant,
    Hello,
    HostsPage,
    ListHosts,
    ListWorkers,
    Message,
    Refused,
    Register,
    Registered,
    Renew,
    Reply,
    Request,
    StatusReply,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Welcome,
    WorkersPage,
)
from posthouse.records import Event, HandleRef, Status
from posthouse.states import EventKind, WorkerState

REGISTRY = "ab" * 16


class Subscription:
    def __init__(self, stream: int | None, sequence: int, credit: int) -> None:
        self.stream = stream  # a slot; None: everything
        self.sequence = sequence
        self.credit = credit


class Session:
    def __init__(self, link: Link) -> None:
        self.link = link
        self.subscriptions: dict[int, Subscription] = {}


class Script:
    """Pure: frames in, (peer, frame) out. `answer` may be replaced by a test."""

    def __init__(self, registry: str = REGISTRY, timeline: int = 1) -> None:
        self.registry = registry
        self.timeline = timeline
        self.epoch = 1
        self.log: list[Event] = []
        self.trimmed_to = 0
        self.answers: dict[type[Message], Callable[[Any], Reply]] = {}  # a test's own
        self.remembered: dict[bytes, Reply] = {}
        self.effects: list[bytes] = []  # ids of requests that had an effect, in order
        self.status: dict[int, Status] = {}
        self.names: dict[str, int] = {}
        self.sessions: dict[Any, Session] = {}
        self.hellos: list[Hello] = []
        self.refuse: Refused | None = None
        self.grants = True
        self.page_max = 3
        self.seen: list[Message] = []
        self.silent_to: set[type[Message]] = set()

    def restart(self) -> None:
        self.epoch += 1
        self.sessions.clear()

    # --- the registry ---

    def add(self, kind: EventKind, slot: int = 0, **fields: Any) -> Event:
        event = Event(
            timeline=self.timeline,
            sequence=len(self.log) + 1,
            kind=kind,
            at_unix_s=1000.0 + len(self.log),
            registry=self.registry,
            slot=slot,
            generation=1,
            **fields,
        )
        self.log.append(event)
        if slot in self.status:
            self.status[slot] = status_after(self.status[slot], event)
        return event

    def worker(self, name: str = "w", state: WorkerState = WorkerState.NOT_YET_STARTED) -> int:
        slot = len(self.status)
        ref = HandleRef(registry=self.registry, slot=slot, generation=1)
        self.status[slot] = Status(state=state, handle=ref, name=name)
        self.names[name] = slot
        self.add(EventKind.REGISTERED, slot, name=name)
        return slot

    def slot(self, ref: str) -> int | None:
        if ref.startswith(f"{self.registry}:"):
            return int(ref.partition(":")[2].partition(".")[0])
        return self.names.get(ref)

    # --- the protocol ---

    def receive(self, peer: Any, frame: bytes, now_s: float) -> list[tuple[Any, bytes]]:
        envelope = codec.decode(frame)
        if isinstance(envelope.body, Hello):
            return [(peer, self._hello(peer, envelope.body, now_s))]
        session = self.sessions.get(peer)
        if session is None or session.link.session != envelope.session:
            refused = Refused(code="stale_session")
            body = codec.encode_body(refused)
            return [(peer, codec.frame(3, envelope.session, envelope.epoch, 0, 0, body))]
        message = session.link.receive(envelope, now_s)
        frames: list[bytes] = []
        if message is not None:
            self.seen.append(message)
            frames = self._message(session, message, now_s)
        return [(peer, frame) for frame in frames] + self.pump(now_s)

    def pump(self, now_s: float) -> list[tuple[Any, bytes]]:
        """What is due and what is new."""
        found: list[tuple[Any, bytes]] = []
        for peer, session in list(self.sessions.items()):
            found += [(peer, frame) for frame in session.link.due(now_s)]
            for number, following in list(session.subscriptions.items()):
                for message in self._news(session, number, following):
                    if session.link.room > 0:
                        found.append((peer, session.link.send(message, now_s)))
        return found

    def _hello(self, peer: Any, hello: Hello, now_s: float) -> bytes:
        self.hellos.append(hello)
        answer: Message
        if self.refuse is not None:
            answer = self.refuse
            return codec.frame(3, codec.NO_SESSION, 0, 0, 0, codec.encode_body(answer))
        token = (self.epoch * 100_000 + len(self.hellos)).to_bytes(16, "big")
        self.sessions[peer] = Session(Link(token, self.epoch, now_s))
        answer = Welcome(
            nonce=hello.nonce,
            session=token,
            epoch=self.epoch,
            timeline=self.timeline,
            registry=self.registry,
            protocol=0,
            principal="client:local",
        )
        return codec.frame(2, codec.NO_SESSION, 0, 0, 0, codec.encode_body(answer))

    def _message(self, session: Session, message: Message, now_s: float) -> list[bytes]:
        link = session.link
        match message:
            case Request() if type(message) in self.silent_to:
                return []
            case Renew():
                return [link.loose(Grant(stamp=message.stamp))] if self.grants else []
            case Goodbye():
                return []
            case Credit():
                if message.subscription in session.subscriptions:
                    session.subscriptions[message.subscription].credit += message.credit
                return []
            case Unsubscribe():
                session.subscriptions.pop(message.subscription, None)
                return []
            case Subscribe():
                return [link.send(self._subscribe(session, message), now_s)]
            case Request():
                return [link.send(self._once(message), now_s)]
        raise AssertionError(message)

    def _once(self, request: Request) -> Reply:
        own = self.answers.get(type(request))
        if own is not None:
            return own(request)
        known = self.remembered.get(request.request)
        if known is None:
            known = self.answer(request)
            if type(request) in MUTATING:
                self.effects.append(request.request)
                self.remembered[request.request] = known
        return known

    def answer(self, request: Request) -> Reply:
        head: dict[str, int] = {"timeline": self.timeline, "sequence": len(self.log)}
        match request:
            case Register():
                slot = self.worker(request.spec["name"])
                handle = HandleRef(registry=self.registry, slot=slot, generation=1)
                return Registered(
                    request=request.request, handle=handle, name=request.spec["name"], **head
                )
            case GetStatus():
                slot_of = self.slot(request.ref)
                if slot_of is None:
                    return Failed(
                        request=request.request, code="no_such_worker", message="no such worker"
                    )
                status = msgspec.structs.replace(self.status[slot_of], **head)
                return StatusReply(request=request.request, status=status)
            case ListWorkers():
                return WorkersPage(request=request.request, workers=[], **head)
            case ListHosts():
                return HostsPage(request=request.request, hosts=[])
            case _:
                return Done(request=request.request)

    def _subscribe(self, session: Session, message: Subscribe) -> Reply:
        stream = None
        if message.ref:
            stream = self.slot(message.ref)
            if stream is None:
                return Failed(
                    request=message.request, code="no_such_worker", message="no such worker"
                )
        sequence = len(self.log) if message.sequence == -1 else message.sequence
        following = Subscription(stream, sequence, message.credit)
        if message.timeline not in (0, self.timeline):
            following.sequence = -1  # told by _news
        session.subscriptions[message.subscription] = following
        return Subscribed(
            request=message.request,
            subscription=message.subscription,
            timeline=self.timeline,
            sequence=max(following.sequence, 0),
        )

    def _news(self, session: Session, number: int, following: Subscription) -> Iterator[Message]:
        if following.sequence < self.trimmed_to:
            del session.subscriptions[number]
            yield CursorTooOld(
                subscription=number, timeline=self.timeline, sequence=self.trimmed_to
            )
            return
        while following.credit > 0 and following.sequence < len(self.log):
            rows = [
                event
                for event in self.log[following.sequence :]
                if following.stream in (None, event.slot)
            ]
            page = rows[: min(following.credit, self.page_max)]
            more = len(page) < len(rows)
            following.sequence = page[-1].sequence if more else len(self.log)
            following.credit -= len(page)
            if page:
                yield Events(
                    subscription=number,
                    events=page,
                    timeline=self.timeline,
                    sequence=following.sequence,
                )


class MasterThread:
    """A script behind a real socket. `stop` and `start` again is a master's restart."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.script = Script()
        self._lock = threading.Lock()
        self._quit = threading.Event()
        self._thread: threading.Thread | None = None
        self.deaf = False

    def start(self) -> None:
        self._quit.clear()
        context = transport.new_context()
        listener = transport.open_router(context, self.endpoint, role="clients", keys=None)
        self._thread = threading.Thread(target=self._run, args=(context, listener))
        self._thread.start()

    def stop(self) -> None:
        if self._thread is not None:
            self._quit.set()
            self._thread.join()
            self._thread = None
            self.script.restart()

    def restart(self) -> None:
        self.stop()
        self.start()

    @contextmanager
    def scripting(self) -> Iterator[Script]:
        """Change the script while the thread does not look."""
        with self._lock:
            yield self.script

    def add(self, kind: EventKind, slot: int = 0, **fields: Any) -> Event:
        with self._lock:
            return self.script.add(kind, slot, **fields)

    def seen(self, kind: type[Message]) -> int:
        with self._lock:
            return sum(isinstance(message, kind) for message in self.script.seen)

    def _run(self, context: transport.Context, listener: transport.Listener) -> None:
        poller = zmq.Poller()
        poller.register(listener.socket, zmq.POLLIN)
        try:
            while not self._quit.is_set():
                poller.poll(10)
                with self._lock:
                    now_s = time.monotonic()
                    frames: list[tuple[Any, bytes]] = []
                    for inbound in listener.receive():
                        if not self.deaf:
                            frames += self.script.receive(inbound.routing_id, inbound.frame, now_s)
                    frames += self.script.pump(now_s)
                    for peer, frame in frames:
                        listener.send(peer, frame)
        finally:
            listener.close()
            context.term()


@pytest.fixture(scope="session")
def script() -> type[Script]:
    return Script


@pytest.fixture
def folder() -> Iterator[Path]:
    """A private folder with a path short enough for Unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="ph", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def master(folder: Path) -> Iterator[MasterThread]:
    """A scripted master that listens."""
    thread = MasterThread(f"ipc://{folder}/clients.sock")
    thread.start()
    yield thread
    thread.stop()


@pytest.fixture
def eventually() -> Callable[[Callable[[], Any]], Any]:
    """Waits until something is true, with a deadline."""

    def wait(condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
        end_s = time.monotonic() + timeout_s
        while not (found := condition()):
            assert time.monotonic() < end_s, f"never true: {condition}"
            time.sleep(0.005)
        return found

    return wait
