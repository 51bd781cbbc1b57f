"""What is durable, and the rules between durable things.

Owns: a copy of everything that was committed, built from the operations alone; the checks of each
transaction, each row of the log and each new master's snapshot. Must not know: frames, hosts,
clients, the master's own state.

Invariant: the copy is what a perfect store would hold; a row of the log is compared with the
process it speaks of (`processes`, which the fake hosts fill) at the moment it becomes durable.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import msgspec

from posthouse.records import Event, ExitFacts
from posthouse.states import NEVER_RESTART, EventKind, StopReason
from posthouse_master.store.base import (
    Counters,
    DropGroup,
    DropHost,
    DropRegistration,
    DropRequests,
    GroupRow,
    HostRow,
    Life,
    Op,
    PutCounters,
    PutEvent,
    PutGroup,
    PutHost,
    PutRegistration,
    PutRequest,
    PutSlot,
    PutState,
    RequestRow,
    Snapshot,
    SpecRow,
    StateRow,
    TrimEvents,
    first_number,
)
from posthouse_master.store.memory import MemoryDisk
from posthouse_testing.sim.alone import ALONE, Reserves, reserved_in
from posthouse_testing.sim.declared import Declarations
from posthouse_testing.sim.fold import Fold
from posthouse_testing.sim.process import Process
from posthouse_testing.sim.world import Violation, World

__all__ = ["Key", "Ledger", "Run", "line_of"]

Key = tuple[int, int]  # (slot, generation)


@dataclass(slots=True)
class Run:
    """What the log says of one incarnation."""

    token: int
    starting: int = 0  # sequences of its rows; 0: not there
    started: int = 0
    terminal: int = 0
    revision: int = 0
    ready: bool = False
    ended_s: float | None = None  # when its end became durable
    restart_s: float = 0.0  # what counted then


@dataclass(slots=True)
class Ledger:
    """`committed` and `loaded` are told of everything; they raise Violation."""

    world: World
    workers_max: int
    processes: dict[int, Process]  # by token: what really ran
    registry: str = ""
    timeline: int = 1
    epoch: int = 0
    workers_per_host_max: dict[str, int] = field(default_factory=dict)
    specs: dict[Key, SpecRow] = field(default_factory=dict)
    wires: dict[Key, dict[str, Any]] = field(default_factory=dict)
    states: dict[Key, StateRow] = field(default_factory=dict)
    dropped: dict[Key, StateRow] = field(default_factory=dict)
    gone: dict[Key, SpecRow] = field(default_factory=dict)  # dropped by this very transaction
    slots: dict[int, int] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)  # every one, also those trimmed later
    streams: dict[str, list[Event]] = field(default_factory=lambda: defaultdict(list))
    bodies: dict[int, bytes] = field(default_factory=dict)  # as the store must have them
    requests: dict[tuple[str, bytes], RequestRow] = field(default_factory=dict)
    hosts: dict[str, HostRow] = field(default_factory=dict)
    groups: dict[str, GroupRow] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    runs: dict[Key, dict[int, Run]] = field(default_factory=lambda: defaultdict(dict))
    tags: dict[str, list[Key]] = field(default_factory=lambda: defaultdict(list))
    folds: dict[Key, Fold] = field(default_factory=lambda: defaultdict(Fold))
    finished: dict[Key, Event] = field(default_factory=dict)  # UNREGISTERED rows
    barred: dict[int, str] = field(default_factory=dict)  # tokens never to be forked: why
    newest_token: int = 0
    reserves: Reserves = field(default_factory=Reserves)
    # Of histories that a restore has lost: what was drawn, and who was there.
    lost: dict[int, Key] = field(default_factory=dict)
    lost_keys: dict[Key, None] = field(default_factory=dict)
    declared: Declarations = field(init=False)

    def __post_init__(self) -> None:
        self.declared = Declarations(self.world, self)

    def fail(self, number: int, text: str) -> NoReturn:
        raise Violation(number, text)

    # --- histories ---

    def history(self) -> dict[str, Any]:
        """What a copy of the registry has to be, as of now."""
        return {name: _copied(getattr(self, name)) for name in _HISTORY}

    def put_back(self, history: dict[str, Any], disk: MemoryDisk) -> None:
        """The registry is now that copy, with what `disk` says of numbers and hosts. The present
        history is lost; what processes did in it is true all the same."""
        known = {run.token for runs in history["runs"].values() for run in runs.values()}
        for key, runs in self.runs.items():
            self.lost |= {run.token: key for run in runs.values() if run.token not in known}
        known.update(token for row in history["states"].values() for token in reserved_in(row))
        for key, row in self.states.items():
            self.lost |= {token: key for token in reserved_in(row) if token not in known}
        gone = [*self.specs, *self.dropped]
        self.lost_keys |= dict.fromkeys(
            key for key in gone if key not in history["specs"] and key not in history["dropped"]
        )
        for name, value in history.items():
            setattr(self, name, _copied(value))
        self.epoch, self.counters, self.hosts = disk.epoch, disk.counters, dict(disk.hosts)
        if disk.timeline != self.timeline:
            self._renumber(disk.timeline)

    def _renumber(self, timeline: int) -> None:
        """The history in the copy is that of the new timeline, too."""
        self.timeline = timeline
        self.events = [msgspec.structs.replace(row, timeline=timeline) for row in self.events]
        streams: dict[str, list[Event]] = defaultdict(list)
        place = {row.sequence: row for row in self.events}
        for stream, rows in self.streams.items():
            streams[stream] = [place[row.sequence] for row in rows]
        self.streams = streams

    # --- commits ---

    def committed(self, epoch: int, ops: Sequence[Op]) -> None:
        """A transaction of this term is durable."""
        if epoch != self.epoch:
            self.fail(5, f"a master of epoch {epoch} commits in epoch {self.epoch}")
        self.gone.clear()
        for op in ops:
            _APPLY[type(op)](self, op)
        self._limits()
        self._agree(ops)
        self.declared.whole()

    def loaded(self, snapshot: Snapshot) -> None:
        """What a new master finds must be what was committed."""
        if snapshot.term.epoch <= self.epoch:
            self.fail(4, f"epoch {snapshot.term.epoch} begins after epoch {self.epoch}")
        self.epoch, self.registry = snapshot.term.epoch, snapshot.term.registry
        found: dict[str, Any] = {
            "registrations": {(row.slot, row.generation): row for row in snapshot.specs},
            "states": {(row.slot, row.generation): row for row in snapshot.states},
            "slots": dict(snapshot.slots),
            "events": {row.sequence: row.body for row in snapshot.events},
            "requests": {(row.principal, row.request): row for row in snapshot.requests},
            "hosts": {row.name: row for row in snapshot.hosts},
            "groups": {row.name: row for row in snapshot.groups},
            "counters": snapshot.counters,
        }
        wanted: dict[str, Any] = {
            "registrations": self.specs,
            "states": self.states,
            "slots": self.slots,
            "events": self.bodies,
            "requests": self.requests,
            "hosts": self.hosts,
            "groups": self.groups,
            "counters": self.counters,
        }
        for what, value in wanted.items():
            if found[what] != value:
                self.fail(9, f"the snapshot's {what} are not what was committed")

    def on_counters(self, op: PutCounters) -> None:
        row = op.row
        old = self.counters
        numbers = ("token", "sequence", "trimmed_to", "dropped_to")
        if any(getattr(row, name) < getattr(old, name) for name in numbers):
            self.fail(3, f"counters fall from {old} to {row}")
        self.counters = row

    def on_registration(self, op: PutRegistration) -> None:
        row = op.row
        key = (row.slot, row.generation)
        wire: dict[str, Any] = msgspec.msgpack.decode(row.spec)
        self.wires[key] = wire
        if key in self.specs:
            self.declared.revised(key, self.specs[key], row)
        else:
            given = wire.get("main_arg")
            tag = given.get("tag", "") if isinstance(given, dict) else ""
            self.tags[tag].append(key)
            if tag and len(self.tags[tag]) > 1:
                self.fail(10, f"request {tag} registered twice: {self.tags[tag]}")
            newest = self.slots.get(row.slot, 0)  # PutSlot may come first
            first = first_number(self.timeline)
            again = key in self.lost_keys or newest < first < row.generation
            if row.generation not in (newest, newest + 1) and not again:
                self.fail(3, f"slot {row.slot} jumps to generation {row.generation}")
        self.specs[key] = row

    def on_state(self, op: PutState) -> None:
        row = op.row
        key = (row.slot, row.generation)
        old = self.states.get(key)
        if old is not None:
            # Two histories count the same incarnations; tokens tell them apart.
            falls = row.incarnation < old.incarnation and row.token not in self.lost
            if falls or row.token < old.token:
                self.fail(3, f"{key} falls from incarnation {old.incarnation} token {old.token}")
            if old.life is Life.RETIRED and row.life is not Life.RETIRED:
                self.fail(11, f"{key} was unregistered and is {row.life} again")
            asked = row.stopping is old.stopping or row.life is Life.RETIRED
            kept = row.token in self.lost and asked  # a newer process was found, and has to end
            kept = kept or row.token in reserved_in(old)  # its host may have come to that by itself
            if old.stopping is StopReason.TERMINATE and row.token != old.token and not kept:
                self.fail(11, f"{key} gets a new token after terminate")
        if self.counters.recovery and row.token == (old.token if old is not None else 0):
            # Drawn anew: the host may have used the old ones in the history that was lost.
            gone = set(reserved_in(old)) - set(reserved_in(row))
            self.lost |= dict.fromkeys(gone, key)
        self.newest_token = max(self.newest_token, self.reserves.put(key, old, row))
        self.declared.state(key, old, row)
        self.states[key] = row

    def on_request(self, op: PutRequest) -> None:
        row = op.row
        old = self.requests.get((row.principal, row.request))
        if old is not None and old != row:
            self.fail(10, f"request {row.request.hex()[:8]} of {row.principal} answered twice")
        self.requests[(row.principal, row.request)] = row
        self.declared.answered(row)

    def on_slot(self, op: PutSlot) -> None:
        if op.generation < self.slots.get(op.slot, 0):
            self.fail(3, f"generation of slot {op.slot} falls to {op.generation}")
        self.slots[op.slot] = op.generation

    def on_drop(self, op: DropRegistration) -> None:
        key = (op.slot, op.generation)
        if key not in self.finished:
            self.fail(9, f"{key} is dropped while it is {self.states[key].life}")
        self.declared.dropped(key)
        self.dropped[key] = self.states.pop(key)
        self.gone[key] = self.specs.pop(key)

    def on_trim(self, op: TrimEvents) -> None:
        for sequence in op.sequences:
            del self.bodies[sequence]

    def on_forget(self, op: DropRequests) -> None:
        for request in op.keys:
            self.requests.pop(request, None)

    def on_host(self, op: PutHost) -> None:
        self.hosts[op.row.name] = op.row

    def on_host_end(self, op: DropHost) -> None:
        self.hosts.pop(op.name, None)

    def on_group(self, op: PutGroup) -> None:
        self.groups[op.row.name] = op.row

    def on_group_end(self, op: DropGroup) -> None:
        self.groups.pop(op.name, None)

    def _limits(self) -> None:
        live = [state for state in self.states.values() if state.life is not Life.RETIRED]
        if len(live) > self.workers_max:
            self.fail(13, f"{len(live)} registrations, at most {self.workers_max}")
        slots: dict[int, Key] = {}
        placed: dict[str, int] = defaultdict(int)
        names: dict[str, Key] = {}
        for state in live:
            key = (state.slot, state.generation)
            if state.slot in slots:
                self.fail(13, f"slot {state.slot} holds {slots[state.slot]} and {key}")
            slots[state.slot] = key
            # A restored registry finds what its hosts had been given before, beside its own.
            given = state.token > first_number(self.timeline)
            # What a host does by itself it does within its own bound.
            given = given and state.rule != ALONE
            if given and state.life in (Life.STARTING, Life.RUNNING):
                placed[state.host] += 1
            wire = self.wires[key]
            if wire.get("unique", True):
                if wire["name"] in names:
                    self.fail(10, f"{key} and {names[wire['name']]} are both {wire['name']!r}")
                names[wire["name"]] = key
        for host, count in placed.items():
            if count > self.workers_per_host_max.get(host, count):
                self.fail(13, f"host {host} was given {count} workers")

    def _agree(self, ops: Sequence[Op]) -> None:
        """Rows that speak of one registration say the same once the transaction is whole."""
        for op in ops:
            if not isinstance(op, PutState):
                continue
            key = (op.row.slot, op.row.generation)
            state = self.states.get(key)
            if state is None:
                continue
            if difference := self.folds[key].differs(state):
                self.fail(21, f"{key} is not what its log says: {difference}")
            run = self.runs[key].get(state.incarnation)
            if (
                state.life in (Life.WAITING, Life.HELD, Life.RETIRED)
                and run is not None
                and not run.terminal
            ):
                self.fail(7, f"{key} is {state.life}, incarnation {state.incarnation} never ended")

    # --- the log ---

    def on_event(self, op: PutEvent) -> None:
        sequence, stream, body = op.row.sequence, op.row.stream, op.row.body
        event = msgspec.msgpack.decode(body, type=Event)
        if sequence != len(self.events) + 1 or event.sequence != sequence:
            self.fail(8, f"row {sequence} ({event.sequence}) follows row {len(self.events)}")
        self.events.append(event)
        self.streams[stream].append(event)
        self.bodies[sequence] = body
        self.world.log("log", line_of(event))
        self.world.figures[f"event {event.kind}"] += 1
        if event.slot is None or event.generation is None:
            return
        key = (event.slot, event.generation)
        if key in self.finished:
            self.fail(7, f"{line_of(event)} after UNREGISTERED")
        self.declared.event(key, event)
        self.folds[key].apply(event)
        match event.kind:
            case EventKind.STARTING:
                self._starting(key, event)
            case EventKind.STARTED | EventKind.READY:
                self._started(key, event)
            case EventKind.EXITED | EventKind.START_FAILED:
                self._terminal(key, event)
            case EventKind.EXIT_AMENDED:
                self._amended(key, event)
            case EventKind.UNREGISTERED:
                self.finished[key] = event

    def _starting(self, key: Key, event: Event) -> None:
        assert event.incarnation is not None and event.token is not None
        runs = self.runs[key]
        newest = max(runs, default=0)
        if event.incarnation != newest + 1 and event.token not in self.lost:
            self.fail(3, f"{key} goes from incarnation {newest} to {event.incarnation}")
        if newest and not runs[newest].terminal:
            self.fail(7, f"{key} incarnation {event.incarnation} starts, {newest} never ended")
        if event.token in self.lost:
            self._adopted(key, event)
            return
        alone = event.rule == ALONE
        if self.terminated(key) and not alone:
            self.fail(11, f"{key} is started after terminate")
        host = self.hosts.get(event.host)
        if host is not None and host.draining and not alone:
            self.fail(13, f"{key} is started on {event.host}, which is drained")
        reserved = self.reserves.starts(key, event)
        if alone and not reserved:
            self.fail(3, f"{key} may be started by {event.host} with token {event.token}: why?")
        if event.token <= (runs[newest].token if reserved and newest else self.newest_token):
            self.fail(3, f"{key} is given token {event.token} after {self.newest_token}")
        self.newest_token = max(self.newest_token, event.token)
        revision = self.states[key].ran_revision if alone else self.specs[key].revision
        runs[event.incarnation] = Run(event.token, starting=event.sequence, revision=revision)

    def _adopted(self, key: Key, event: Event) -> None:
        """The process of a history that was lost is taken over as it is, or its end."""
        assert event.incarnation is not None and event.token is not None
        if self.lost[event.token] != key:
            self.fail(3, f"{line_of(event)}: the token was drawn for {self.lost[event.token]}")
        self.world.figures["processes taken over after a restore"] += 1
        revision, runs = self.specs[key].revision, self.runs[key]
        for incarnation in [each for each in runs if each > event.incarnation]:
            del runs[incarnation]  # of a history that went another way
        runs[event.incarnation] = Run(event.token, starting=event.sequence, revision=revision)

    def _started(self, key: Key, event: Event) -> None:
        run = self.runs[key].get(event.incarnation or 0)
        if run is None or run.terminal:
            self.fail(7, f"{line_of(event)}: before its start or after its end")
        process = self.processes.get(run.token)
        if event.kind is EventKind.READY:
            run.ready = True
            return
        if run.started:
            self.fail(7, f"{line_of(event)}: started twice")
        run.started = event.sequence
        if process is not None:
            run.revision = process.revision  # its START may have gone out once more, or never
        # A process that its warden did not live to write down was started all the same.
        if process is not None and event.pid not in (None, process.pid):
            self.fail(7, f"{line_of(event)}: the process has pid {process.pid}")

    def _terminal(self, key: Key, event: Event) -> None:
        run = self.runs[key].get(event.incarnation or 0)
        if run is None or run.terminal or run.token != event.token:
            self.fail(7, f"{line_of(event)}: not the end of a live incarnation ({run})")
        run.terminal, run.ended_s = event.sequence, self.world.now_s
        run.restart_s = self.wires[key].get("restart_time", 5.0)
        process = self.processes.get(run.token)
        unseen = event.exit is None or event.exit.cause in ("warden_died", "host_rebooted")
        if unseen and run.token <= first_number(self.timeline):
            # It may have been seen, and confirmed, in a history that a restore has lost.
            if process is not None and process.live:
                self.fail(17, f"{line_of(event)}: it lives")
            return
        if event.kind is EventKind.START_FAILED:
            if process is not None:
                self.fail(7, f"{line_of(event)}: but it ran with pid {process.pid}")
            self.barred[run.token] = "the log says that its start failed"
            return
        if not run.started:
            self.fail(7, f"{line_of(event)}: ended without a STARTED row")
        self.barred[run.token] = "the log says that it ended"
        self._true_end(event, process)
        self._decision(key, event)

    def _true_end(self, event: Event, process: Process | None) -> None:
        facts = event.exit
        if facts is None:
            self.fail(7, f"{line_of(event)}: an exit without facts")
        if facts.cause in ("warden_died", "host_rebooted"):
            if process is not None and (process.live or not process.orphaned):
                self.fail(17, f"{line_of(event)}: its warden did not die")
            return
        if facts.cause == "host_lost":
            if process is not None and process.live:
                self.fail(2, f"{line_of(event)}: it lives, with its lease over")
            self.world.figures["processes that were lost with their hosts"] += 1
            return
        if process is None:
            self.fail(7, f"{line_of(event)}: it never ran")
        if process.live or not (process.reaped or process.orphaned):
            self.fail(17, f"{line_of(event)}: it is not reaped")
        if (facts.code, facts.signal) != (process.code, process.signal):
            self.fail(7, f"{line_of(event)}: truly code {process.code} signal {process.signal}")

    def _amended(self, key: Key, event: Event) -> None:
        """Only of a loss, only once, and only the truth."""
        rows = [row for row in self.streams[f"{key[0]}.{key[1]}"] if row.token == event.token]
        ends = [row.exit.cause for row in rows if row.kind is EventKind.EXITED and row.exit]
        amended = sum(row.kind is EventKind.EXIT_AMENDED for row in rows)
        if ends != ["host_lost"] or amended != 1:
            self.fail(7, f"{line_of(event)}: it ended by {ends}, amended {amended} times")
        process = self.processes.get(event.token or 0)
        facts = event.exit or ExitFacts()
        if process is None or (facts.code, facts.signal) != (process.code, process.signal):
            self.fail(7, f"{line_of(event)}: that is not how it ended")

    def _decision(self, key: Key, event: Event) -> None:
        """E1, E2, E3: exit 0, NEVER_RESTART and terminate unregister; nothing else does."""
        if event.rule == ALONE and not event.final:
            return  # its host goes on, whatever was asked for meanwhile
        facts = event.exit or ExitFacts()
        never = self.wires[key].get("restart_time", 5.0) == NEVER_RESTART
        if event.stop is StopReason.TERMINATE or self.terminated(key):
            final = True
        elif event.stop is not None:
            final = event.final  # kept, or as its kind of stop says
        else:
            final = never or (facts.cause == "exited" and facts.code == 0)
        if event.final != final:
            self.fail(11, f"{line_of(event)}: final is {event.final}, must be {final}")

    def terminated(self, key: Key) -> bool:
        """Whether somebody, or a prune, has asked for its end."""
        return any(
            row.kind is EventKind.STOP_REQUESTED and row.stop is StopReason.TERMINATE
            for row in self.streams[f"{key[0]}.{key[1]}"]
        )

    # --- asking ---

    def exit_of(self, process: Process) -> Event | None:
        """The EXITED row of a process."""
        rows = self.streams[f"{process.slot}.{process.generation}"]
        return next(
            (r for r in rows if r.kind is EventKind.EXITED and r.token == process.token), None
        )

    def untold(self, process: Process) -> bool:
        """Whether its host has started it by itself and lost its power before anybody was told of
        it: then nobody ever is, and its incarnation, not its token, is counted once more."""
        with_power = process.orphaned or process.cause == "reboot"
        if not with_power or process.token not in self.reserves.owners:
            return False
        runs = self.runs[process.slot, process.generation]
        return all(run.token != process.token for run in runs.values())

    def newest(self, stream: str) -> int:
        """The newest row of a stream ("": of the log)."""
        rows = self.streams.get(stream, []) if stream else self.events
        return rows[-1].sequence if rows else 0

    def rows(self, stream: str, after: int, up_to: int) -> list[Event]:
        """The rows of a stream between two places."""
        if not stream:
            return self.events[after:up_to]
        rows = self.streams.get(stream, [])
        first = bisect_right(rows, after, key=lambda row: row.sequence)
        last = bisect_right(rows, up_to, key=lambda row: row.sequence)
        return rows[first:last]


# All that is told by a copy of the registry; the rest is true whatever happens to it.
_HISTORY = (
    "specs",
    "wires",
    "states",
    "dropped",
    "gone",
    "slots",
    "events",
    "streams",
    "bodies",
    "requests",
    "groups",
    "runs",
    "tags",
    "folds",
    "finished",
    "newest_token",
)  # reserves stay: a token is reserved once, in whatever history


def _copied(value: Any) -> Any:
    """Two levels deep, and a step more for what changes there: Run, Fold."""
    if isinstance(value, dict):
        found = value.copy()
        found.update((key, _copied(each)) for key, each in value.items())
        return found
    if isinstance(value, list):
        return list(value)
    return replace(value) if isinstance(value, Run | Fold) else value


_APPLY: dict[type, Callable[[Ledger, Any], None]] = {
    PutCounters: Ledger.on_counters,
    PutRegistration: Ledger.on_registration,
    PutState: Ledger.on_state,
    PutEvent: Ledger.on_event,
    PutRequest: Ledger.on_request,
    PutSlot: Ledger.on_slot,
    DropRegistration: Ledger.on_drop,
    TrimEvents: Ledger.on_trim,
    DropRequests: Ledger.on_forget,
    PutHost: Ledger.on_host,
    DropHost: Ledger.on_host_end,
    PutGroup: Ledger.on_group,
    DropGroup: Ledger.on_group_end,
}


def line_of(event: Event) -> str:
    """A row in short, for the trace and for violations."""
    parts = [f"{event.sequence} {event.kind}"]
    if event.slot is not None:
        parts.append(f"{event.slot}.{event.generation}")
    if event.incarnation is not None:
        parts.append(f"#{event.incarnation} token {event.token}")
    if event.host:
        parts.append(f"on {event.host}")
    if event.exit is not None:
        parts.append(event.exit.describe())
    if event.stop is not None:
        parts.append(f"stop {event.stop}")
    if event.final:
        parts.append("final")
    return " ".join(parts)
