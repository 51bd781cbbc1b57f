"""What cases have in common: the table, a client, a host that is only played, and cleaning up.

Owns: the table of cases, running them one after the other, the names that they use. Must not know:
what a case tests. Invariant: after each case nothing of it is registered any more, and its host
has no process; a case that leaves something is reported.
"""

import fnmatch
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from posthouse_testing.conformance import wire
from posthouse_testing.conformance.wire import Keys, Mismatch, NoConnection, Peer, Wires

__all__ = [
    "CASES",
    "CASE_S",
    "Case",
    "Host",
    "Kit",
    "Outcome",
    "Target",
    "case",
    "expect",
    "run",
    "select",
]

CASE_S: Final = 12.0
CLEANUP_S: Final = 6.0
PREFIX: Final = "conformance-"  # of all names
RUNTIME: Final = "conformance"  # no real host has it, so no real worker is placed on ours
NOWHERE: Final = "posthouse-conformance/nowhere"  # a label that no host has


@dataclass(frozen=True, slots=True)
class Target:
    """Where the master is, and who we are there. agents="": only cases without a host."""

    clients: str
    agents: str = ""
    host: str = "conformance"
    client_keys: Keys | None = None
    agent_keys: Keys | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table."""

    name: str
    section: str  # heading of docs/reference/protocol.md
    statement: str
    test: Callable[["Kit"], None] = field(repr=False)
    host: bool = False  # needs the agents' endpoint


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case: "ok", "failed" (expected, got) or "skipped" (got: the reason)."""

    case: Case
    verdict: str
    took_s: float
    expected: str = ""
    got: str = ""


CASES: Final[dict[str, Case]] = {}


def case(
    name: str, section: str, statement: str, *, host: bool = False
) -> Callable[[Callable[["Kit"], None]], Callable[["Kit"], None]]:
    """Put a function into the table."""

    def enter(test: Callable[["Kit"], None]) -> Callable[["Kit"], None]:
        assert name not in CASES, name
        CASES[name] = Case(name, section, statement, test, host)
        return test

    return enter


def expect(holds: bool, expected: str, got: object) -> None:
    """Raise Mismatch unless it holds."""
    if not holds:
        raise Mismatch(expected, got)


class Host:
    """An agent without processes: it only says that it has some."""

    def __init__(self, peer: Peer, highest_token: int) -> None:
        self.peer = peer
        self.running: dict[int, dict[str, Any]] = {}
        self.exits: dict[int, dict[str, Any]] = {}
        self.highest_token = highest_token
        self.used: dict[int, int] = {}  # by slot: the highest token
        self.name = ""
        self._joined = wire.NOBODY  # the session whose inventory was told by `join`

    @property
    def joined(self) -> bool:
        """The present session is open and has had its inventory."""
        return self.peer.open_now and self._joined == self.peer.session

    def join(self, **hello: Any) -> dict[str, Any]:
        """A session with its inventory told and acknowledged; the WELCOME."""
        welcome = self.peer.open(**hello)
        self.name = welcome["principal"].partition(":")[2]
        self.tell()
        self.peer.settled()
        self._joined = self.peer.session
        return welcome

    def tell(self) -> None:
        """The inventory, in two pages."""
        running, exits = list(self.running.values()), list(self.exits.values())
        self.peer.send(wire.INVENTORY, page=0, last=False, running=running)
        self.peer.send(
            wire.INVENTORY, page=1, last=True, exits=exits, highest_token=self.highest_token
        )

    def ordered(self) -> dict[str, Any]:
        """The next message, which must be START; nothing is answered yet."""
        order = self.peer.next(wire.START)
        slot, token = order["slot"], order["token"]
        highest = self.used.get(slot, 0) if order.get("reserved") else self.highest_token
        expect(token > highest, f"START with a token above {highest}", token)
        self.used[slot] = token
        self.highest_token = max(self.highest_token, token)
        return order

    def start(self) -> dict[str, Any]:
        """Obey the next START."""
        order = self.ordered()
        self.started(order)
        return order

    def started(self, order: dict[str, Any]) -> None:
        """STARTED, acknowledged."""
        self.peer.send(wire.STARTED, worker=self.appears(order))
        self.peer.settled()

    def appears(self, order: dict[str, Any]) -> dict[str, Any]:
        """A process is there: its Running, not told yet."""
        worker = _identity(order, "incarnation", "revision")
        worker |= {"pid": 1000 + order["token"] % 30000, "pid_start": 1, "started_unix_s": 1.0}
        self.running[order["token"]] = worker
        return worker

    def stopped(self, token: int, reason: str) -> dict[str, Any]:
        """The next message, which must be STOP of this token for this reason."""
        stop = self.peer.next(wire.STOP)
        expect(
            (stop["token"], stop["reason"]) == (token, reason), f"STOP of {token}: {reason}", stop
        )
        return stop

    def has_none(self, stop: dict[str, Any]) -> None:
        """STOP_DONE, acknowledged."""
        self.peer.send(wire.STOP_DONE, **{n: stop[n] for n in ("slot", "generation", "token")})
        self.peer.settled()

    def ended(self, token: int, stop: str = "", **facts: Any) -> dict[str, Any]:
        """A process is gone: its Exit, not told yet."""
        told = _identity(self.running.pop(token), "incarnation") | {"facts": facts}
        if stop:
            told["stop"] = stop
        self.exits[token] = told
        return told

    def exit(self, token: int, stop: str = "", **facts: Any) -> None:
        """A process is gone: EXITED, acknowledged."""
        self.peer.send(wire.EXITED, worker=self.ended(token, stop, **facts))
        self.peer.settled()
        del self.exits[token]

    def serve(self) -> None:
        """Answer whatever orders there are, as a host that ends everything at once."""
        while self.peer.inbox and self.peer.open_now:
            frame = self.peer.inbox.popleft()
            body = frame.body
            if frame.kind == wire.START:
                self.peer.send(
                    wire.START_FAILED,
                    **{n: body[n] for n in ("slot", "generation", "incarnation", "token")},
                    reason="the conformance kit cleans up",
                    retry=False,
                )
            elif frame.kind == wire.STOP and body["token"] in self.running:
                facts = {"cause": "exited", "code": 0}
                gone = self.ended(body["token"], body["reason"], **facts)
                self.peer.send(wire.EXITED, worker=gone)
                self.exits.pop(body["token"])
            elif frame.kind == wire.STOP:
                names = ("slot", "generation", "token")
                self.peer.send(wire.STOP_DONE, **{n: body[n] for n in names})


class Kit:
    """What a case is given."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.wires = Wires()
        self.host_now: Host | None = None
        self.cleanup_s = CLEANUP_S
        self._instance = os.urandom(16).hex()
        self._warden = os.urandom(16).hex()
        self._highest_token = 0

    # --- peers ---

    def stranger(self) -> Peer:
        """A client that has not connected yet."""
        return self.wires.peer(self.target.clients, self.target.client_keys, role="client")

    def client(self) -> Peer:
        """A client with a session."""
        peer = self.stranger()
        peer.open()
        return peer

    def agent(self, **hello: Any) -> Peer:
        """A peer at the agents' endpoint that has not connected yet; our host unless changed."""
        fields = {
            "role": "agent", "host": self.target.host, "machine_id": "conformance",
            "boot_id": "boot-1", "agent_instance": self._instance,
            "wardens": [{"kind": "fenced", "instance": self._warden}],
            "runtimes": [RUNTIME], "modules": ["conformance"], "slots": 64, "fences": ["process"],
            **hello,
        }  # fmt: skip
        return self.wires.peer(self.target.agents, self.target.agent_keys, **fields)

    def apart(self) -> Host:
        """Our host, not joined yet."""
        if self.host_now is not None:
            self._highest_token = max(self._highest_token, self.host_now.highest_token)
        self.host_now = Host(self.agent(), self._highest_token)
        return self.host_now

    def host(self) -> Host:
        """Our host, joined, without processes."""
        made = self.apart()
        made.join()
        return made

    # --- registrations ---

    def spec(self, **fields: Any) -> dict[str, Any]:
        """A record with a name of its own, for our host if it has joined, else for no host."""
        made = {
            "name": f"{PREFIX}{os.urandom(6).hex()}",
            "main": "conformance:idle",
            "runtime": RUNTIME,
            "restart_time": 0.0,
        }
        if self.host_now is not None and self.host_now.name:
            made["host"] = self.host_now.name
        else:
            made["labels"] = [NOWHERE]
        return made | fields

    def register(self, client: Peer, **fields: Any) -> dict[str, Any]:
        """REGISTER and its REGISTERED, with `ref` added: the handle as text."""
        made = client.ask(wire.REGISTER, wire.REGISTERED, spec=self.spec(**fields))
        return {**made, "ref": handle_text(made["handle"])}

    def status(self, client: Peer, ref: str) -> dict[str, Any]:
        """GET_STATUS."""
        found: dict[str, Any] = client.ask(wire.GET_STATUS, wire.STATUS_REPLY, ref=ref)["status"]
        return found

    def follow(self, client: Peer, ref: str, number: int = 1, credit: int = 256) -> None:
        """SUBSCRIBE to a worker from its first row."""
        client.ask(wire.SUBSCRIBE, wire.SUBSCRIBED, subscription=number, ref=ref, credit=credit)

    def rows(self, client: Peer, *kinds: str, number: int = 1) -> list[dict[str, Any]]:
        """The next rows of a subscription, which must be of these kinds."""
        found: list[dict[str, Any]] = []
        while len(found) < len(kinds):
            events = client.next(wire.EVENTS)
            expect(events["subscription"] == number, f"EVENTS of subscription {number}", events)
            found += events["events"]
        got = [row["kind"] for row in found]
        expect(got == list(kinds), f"rows {', '.join(kinds)}", ", ".join(got))
        return found

    def workers(self, client: Peer, **fields: Any) -> list[dict[str, Any]]:
        """All entries of LIST_WORKERS."""
        found: list[dict[str, Any]] = []
        place: dict[str, Any] = {}
        while True:
            page = client.ask(wire.LIST_WORKERS, wire.WORKERS_PAGE, **fields, **place)
            found += page["workers"]
            if not page.get("more", False):
                return found
            last = found[-1]["status"]["handle"]
            place = {"slot": last["slot"], "generation": last["generation"]}

    # --- before the first case and after each ---

    def sweep(self) -> None:
        """Terminate what a run that was killed has left on our host."""
        self.wires.begin(self.cleanup_s)
        host, client = self.host(), self.client()
        self.wires.handles += [
            worker["status"]["handle"]
            for worker in self.workers(client)
            if worker["spec"].get("host") == host.name and worker["spec"]["name"].startswith(PREFIX)
        ]
        self.tidy()

    def tidy(self) -> None:
        """Terminate what the case registered and leave. Raises Mismatch if something stays."""
        self.wires.begin(self.cleanup_s)
        refs = {handle_text(handle) for handle in self.wires.handles}
        host, self.host_now = self.host_now, None
        keep = host.peer if host is not None and host.joined and refs else None
        self.wires.close(keep)
        self.wires.handles.clear()
        if host is not None:
            self._highest_token = max(self._highest_token, host.highest_token)
        if not refs:
            return
        client = self.client()
        if host is not None and keep is None:
            self.wires.peers.append(host.peer)
            host.peer.hello = self.agent().hello
            host.exits.clear()
            host.join()
        for ref in refs:
            client.ask(wire.TERMINATE, wire.DONE, ref=ref)
        while left := [ref for ref in refs if not self.status(client, ref).get("final", False)]:
            if host is not None:
                host.serve()
            self.wires.turn()
            expect(time.monotonic() < self.wires.end_s, "an end of terminated workers", left)
        if host is not None:
            self._highest_token = max(self._highest_token, host.highest_token)
        self.wires.close()


def handle_text(handle: dict[str, Any]) -> str:
    """registry:slot.generation."""
    return f"{handle['registry']}:{handle['slot']}.{handle['generation']}"


def select(patterns: Iterable[str]) -> list[Case]:
    """The cases of these names or patterns (`link-*`), all if there are none. Raises KeyError."""
    patterns = list(patterns)
    for pattern in patterns:
        if not fnmatch.filter(CASES, pattern):
            raise KeyError(pattern)
    return [
        found
        for found in CASES.values()
        if not patterns or any(fnmatch.fnmatchcase(found.name, one) for one in patterns)
    ]


def run(
    target: Target,
    cases: Sequence[Case],
    tell: Callable[[Outcome], None] = lambda _: None,
    span_s: float = CASE_S,
) -> list[Outcome]:
    """Run them in order, none for longer than `span_s`; `tell` hears each outcome at once. After a
    lost master the rest is skipped."""
    kit = Kit(target)
    outcomes: list[Outcome] = []
    lost = ""
    try:
        kit.cleanup_s = min(CLEANUP_S, span_s)
        if target.agents and any(one.host for one in cases):
            _attempt(kit.sweep)  # what is wrong with it, the cases will say
            kit.wires.close()
        for one in cases:
            if lost or (one.host and not target.agents):
                outcome = Outcome(one, "skipped", 0.0, got=lost or "no agents' endpoint was given")
            else:
                outcome = _run(kit, one, span_s)
                lost = "the master was lost before" if outcome.got.startswith(_LOST) else ""
            outcomes.append(outcome)
            tell(outcome)
    finally:
        kit.wires.term()
    return outcomes


_LOST: Final = "no connection: "


def _run(kit: Kit, one: Case, span_s: float) -> Outcome:
    begun_s = time.monotonic()
    kit.wires.begin(span_s)
    failure = _attempt(lambda: one.test(kit))
    untidy = _attempt(kit.tidy)
    if untidy is not None:
        kit.wires.close()
        untidy = (f"(cleaning up) {untidy[0]}", untidy[1])
    failure = failure or untidy
    took_s = time.monotonic() - begun_s
    if failure is None:
        return Outcome(one, "ok", took_s)
    return Outcome(one, "failed", took_s, *failure)


def _attempt(step: Callable[[], None]) -> tuple[str, str] | None:
    """What was expected and what came, if the step fails."""
    try:
        step()
    except Mismatch as mismatch:
        return mismatch.expected, mismatch.got
    except NoConnection as error:
        return "a master that takes frames", f"{_LOST}{error}"
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        return "a body as in the catalogue", repr(error)
    return None


def _identity(source: dict[str, Any], *more: str) -> dict[str, Any]:
    return {name: source[name] for name in ("registry", "slot", "generation", "token", *more)}
