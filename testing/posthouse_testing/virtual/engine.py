"""The test's own client: the real client core, whose waiting lets virtual time pass.

Owns: what threads and sockets are to engine.Engine: a call runs the world until it is answered.
Must not know: what is asked, who else is in the world. Invariant: as for every engine, whoever
waits is told one outcome; and time passes in a call only.
"""

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from posthouse.dial import Redial, Transmit
from posthouse.errors import PosthouseError, TimedOut, Unreachable
from posthouse.ids import Cursor
from posthouse.messages import Reply, Request
from posthouse.records import Event
from posthouse.session import (
    Broken,
    Call,
    Cancel,
    ClientCore,
    Close,
    Frame,
    Tick,
    Took,
    Unwatch,
    Watch,
)
from posthouse.settings import ClientSettings
from posthouse.switchboard import Deadline, Inbox, Silence, Switchboard, Waiter, own
from posthouse_testing.sim.network import Dealer, Network
from posthouse_testing.sim.node import Node
from posthouse_testing.sim.world import World

__all__ = ["Passing", "VirtualEngine"]

NAME = "test"


class Passing(Protocol):
    """Let time pass until something is true, or not (virtual.cluster)."""

    def __call__(self, done: Callable[[], bool], what: str) -> None: ...


class _Bell:
    """Nobody sleeps here: who waits looks again after whatever happened."""

    def notify_all(self) -> None: ...


class _Feed(Inbox[_Bell]):
    def __init__(self, engine: "VirtualEngine", subscription: int) -> None:
        super().__init__(subscription, _Bell())
        self._engine = engine

    async def take(
        self, deadline: Deadline, *, until: Cursor | None = None, until_silent: bool = False
    ) -> Event | None:
        engine = self._engine
        engine.check()

        def is_ready() -> bool:
            silent_s = engine.board.silent_s if until_silent else None
            return self.ready(deadline, until, silent_s)

        engine.passing(is_ready, "an event")
        event = self.pop()
        taken = self.settle()
        if taken:
            engine.submit(Took(self.subscription, taken))
        return event

    def close(self) -> None:
        self._engine.unwatch(self)


class VirtualEngine(Node):
    """conversation.Engine in a simulated world."""

    def __init__(self, world: World, network: Network, passing: Passing) -> None:
        super().__init__(world, f"client {NAME}", world.clock(skewed=False))
        self.passing = passing
        self.board: Switchboard[_Bell] = Switchboard(ClientSettings(master="simulated"), _Bell)
        self.board.clock = lambda: world.now_s
        self._network = network
        self._core = ClientCore(world.entropy)
        self._dealer: Dealer | None = None
        self._ids: dict[bytes, bytes] = {}

    def start(self) -> None:
        """Wait for a master's welcome. Raises Unreachable."""
        deadline = Deadline(30.0, self.board.clock)
        self.submit(Tick())
        self.passing(lambda: self.board.welcomed or deadline.passed, "the master's welcome")
        if not self.board.welcomed:
            raise self.board.unreachable(30.0)

    # --- conversation.Engine ---

    async def call(
        self, request: Request, deadline: Deadline, *, until_silent: bool = False
    ) -> Reply:
        self.check()
        # Callers draw their ids from the machine's entropy; the world must be the same each time.
        drawn = self._ids.get(request.request)
        if drawn is None:
            drawn = self._ids[request.request] = self.world.entropy(len(request.request))
            self._ids[drawn] = drawn
        request = msgspec.structs.replace(request, request=drawn)
        waiter, new = self.board.waiter(request)
        if new:
            self.submit(Call(request))
        return self._answer(waiter, deadline, until_silent)

    def _answer(self, waiter: Waiter[_Bell], deadline: Deadline, until_silent: bool) -> Reply:
        def is_over() -> bool:
            silent = until_silent and self.board.silent_s is not None
            return waiter.outcome is not None or silent or deadline.passed

        self.passing(is_over, f"an answer to {type(waiter.request).__name__}")
        if waiter.outcome is None:
            self.submit(Cancel(waiter.request.request))
            if until_silent and self.board.silent_s is not None:
                raise Silence(self.board.silent_s)
        outcome = waiter.outcome
        if outcome is None:
            raise TimedOut("no answer in time", request_id=waiter.request.request)
        if isinstance(outcome, PosthouseError):
            raise own(outcome)
        return outcome

    def watch(self, ref: str, after: Cursor | None) -> _Feed:
        self.check()
        feed = _Feed(self, self.board.next_subscription())
        self.board.add(feed)
        self.submit(Watch(feed.subscription, ref, after))
        return feed

    def unwatch(self, feed: _Feed) -> None:
        if self.board.inboxes.pop(feed.subscription, None) is not None:
            self.submit(Unwatch(feed.subscription))

    def abandon(self, event: Unwatch | Close) -> None:
        """For finalizers: what is abandoned here costs nobody anything."""

    def close(self) -> None:
        if self.board.ended is None:
            self.submit(Close())
            self.board.end(Unreachable("this simulated cluster is closed"))
            self.crash()

    def check(self) -> None:
        if self.board.ended is not None:
            raise own(self.board.ended)

    # --- Node ---

    def handle(self, event: Any) -> None:
        if isinstance(event, tuple):
            dealer, frame = event
            if dealer is not self._dealer:
                return
            event = Frame(frame)
        self.carry_out(self._core.handle(event, self.clock.boot_s))
        if self.alive:
            self.wake_at(self._core.wake_s)

    def tick(self) -> None:
        self.handle(Tick())

    def effect(self, effect: Any) -> None:
        match effect:
            case Redial():
                if self._dealer is not None:
                    self._dealer.close()
                self._dealer = self._dial()
            case Transmit(frame):
                if self._dealer is not None:
                    self._dealer.send(frame)
            case _:
                self.board.tell(effect)

    def _dial(self) -> Dealer:
        def deliver(frame: bytes) -> None:
            self.submit((dealer, frame))

        def broken(reason: str, retried: bool) -> None:
            if self._dealer is dealer:
                self.submit(Broken(reason, retried))

        # No host has this name, so no cut of a host's cable is one of ours.
        user = f"client:{NAME}"
        dealer = Dealer(self._network, "clients", f" {NAME}", user, deliver, broken)
        return dealer

    def crash(self) -> None:
        super().crash()
        if self._dealer is not None:
            self._dealer.close()
