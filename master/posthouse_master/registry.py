"""CORE: registrations, their slots, generations and names, and the table of what may follow what.

Owns: the state of every registration and all indexes over it. Must not know: why a state changes
(lifecycle), hosts, sessions, the log.

Invariant: a slot has at most one live registration, and its generation rises each time it is taken
(D4), after a restore above all that the lost history can have given out, so a handle never reaches
another registration (D11). A state changes only by `move`, which raises for a step that TRANSITIONS
does not have.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import Any, Final

import msgspec

from posthouse.errors import InternalError, NoFreeSlot, NoSuchWorker
from posthouse.ids import HandleId
from posthouse.spec import BackgroundWorker
from posthouse.states import SHMEM_ACCESS, StopReason
from posthouse_master.eventlog import stream_of
from posthouse_master.store.base import Life, SpecRow, StateRow

__all__ = [
    "TRANSITIONS",
    "Key",
    "Registration",
    "Registry",
    "Step",
    "domain_of",
    "packed_tokens",
]

Key = tuple[int, int]  # (slot, generation)
_HOLDERS_SHOWN: Final = 5  # names in a refusal: enough to see a pattern
_SPECS_CACHED: Final = 4096  # records kept unpacked: about 2 KiB each, and 60 us to unpack
_NAMES_COMPARED: Final = 1000  # with a misspelt one: a comparison costs about 20 us


class Step(StrEnum):
    """What can happen to a registration."""

    START = "start"  # incarnation and token are drawn
    STARTED = "started"
    READY = "ready"
    STOP = "stop"  # an end was asked for
    REVISE = "revise"  # it is to run with other content
    PROVE = "prove"  # its process has run for so long that no rollout waits for it
    FAIL = "fail"  # never ran, to be tried again
    FAIL_FOR_GOOD = "fail_for_good"  # never ran, unregistered
    EXIT = "exit"  # ended, to be started again
    EXIT_FOR_GOOD = "exit_for_good"  # ended, unregistered
    FAIL_HELD = "fail_held"  # never ran, held
    EXIT_HELD = "exit_held"  # ended, held
    HOLD = "hold"  # held without a process
    RELEASE = "release"
    CANCEL = "cancel"  # unregistered without a process
    ADOPT = "adopt"  # after a restore: a newer process of it runs than the backup knows


# (state, step) -> state. What is not here cannot happen. Rules of section 5 of the contract.
TRANSITIONS: Final[dict[tuple[Life, Step], Life]] = {
    (Life.SUBMITTED, Step.START): Life.STARTING,  # M5
    (Life.SUBMITTED, Step.HOLD): Life.HELD,
    (Life.SUBMITTED, Step.CANCEL): Life.RETIRED,  # M3, M4
    **{(life, Step.REVISE): life for life in Life if life is not Life.RETIRED},
    (Life.STARTING, Step.STARTED): Life.RUNNING,  # M5
    (Life.STARTING, Step.STOP): Life.STARTING,  # M8: START may have left, so its end is awaited
    (Life.STARTING, Step.FAIL): Life.WAITING,  # M6
    (Life.STARTING, Step.FAIL_HELD): Life.HELD,
    (Life.STARTING, Step.FAIL_FOR_GOOD): Life.RETIRED,  # M7
    (Life.RUNNING, Step.READY): Life.RUNNING,
    (Life.RUNNING, Step.PROVE): Life.RUNNING,
    (Life.RUNNING, Step.STOP): Life.RUNNING,  # M8
    (Life.RUNNING, Step.EXIT): Life.WAITING,  # M11
    (Life.RUNNING, Step.EXIT_HELD): Life.HELD,
    (Life.RUNNING, Step.EXIT_FOR_GOOD): Life.RETIRED,  # M9, M10
    (Life.WAITING, Step.START): Life.STARTING,  # M12
    (Life.WAITING, Step.HOLD): Life.HELD,
    (Life.WAITING, Step.CANCEL): Life.RETIRED,  # M13
    (Life.HELD, Step.RELEASE): Life.WAITING,
    (Life.HELD, Step.CANCEL): Life.RETIRED,  # M13
    **{(life, Step.ADOPT): Life.RUNNING for life in Life if life is not Life.RETIRED},
}

_DOMAIN: Final = BackgroundWorker(name="x", main="x:x").crash_domain  # where a record has none

_PLACED = (Life.STARTING, Life.RUNNING)

_unpack = msgspec.msgpack.Decoder(dict[str, Any]).decode
_unpack_tokens = msgspec.msgpack.Decoder(tuple[int, ...]).decode
_pack_tokens = msgspec.msgpack.Encoder().encode


_specs: dict[bytes, BackgroundWorker] = {}  # of what was used lately: a pure function's results


def _spec_of(packed: bytes) -> BackgroundWorker:
    spec = _specs.get(packed)
    # The row's sum says that it is what was accepted, so its rules need not be applied again.
    return (
        _remember(packed, BackgroundWorker.from_checked(_unpack(packed))) if spec is None else spec
    )


def _remember(packed: bytes, spec: BackgroundWorker) -> BackgroundWorker:
    if len(_specs) >= _SPECS_CACHED:
        _specs.clear()
    _specs[packed] = spec
    return spec


@dataclass(slots=True, eq=False)
class Registration:
    """One registration, live or retired. Written by lifecycle through Registry.move only."""

    slot: int
    generation: int
    revision: int
    name: str
    packed: bytes  # the record's wire form
    pinned: str  # the host it names, or ""
    registered_unix_s: float
    by: str = ""
    source: str = ""
    order: int = 0
    group: str = ""
    max_unavailable: int = 1
    registrant: str = ""  # the process that gets SIGUSR1, as vouch.text has it
    life: Life = Life.SUBMITTED
    host: str = ""  # where it is or was last
    warden: str = "fenced"
    incarnation: int = 0
    token: int = 0
    domain: str = ""  # the crash domain of its newest process; "" without SHMEM_ACCESS
    pid: int | None = None
    pid_start: int | None = None
    started_unix_s: float | None = None
    ready: bool = False
    stopping: StopReason | None = None
    stop_by: str = ""
    stop_grace_s: float | None = None  # the shortest that its stop was asked for with
    reason: str = ""
    rule: str = ""
    signal: int = 0  # the last one that somebody had sent to its process
    signal_by: str = ""
    restart_delay_s: float | None = None  # None while WAITING: as soon as it can be placed
    starts: int = 0  # incarnations that ran
    failures: int = 0  # ends that nobody asked for, and starts that failed
    streak: int = 0  # of those, how many in a row without a healthy run between
    trimmed_to: int = 0
    ran_revision: int = 0
    proven_revision: int = 0
    awaits_ready: bool = False
    code: str = ""
    last_exit: bytes = b""
    reserved: bytes = b""  # packed `after`
    # In memory only: processes of it that should not be; no START before all are known to be gone.
    strays: int = 0
    # In memory only: what its host says of a process that KILL does not end.
    stuck: str = ""
    # In memory only: hosts that said trying again is of no use, until their next session.
    barred: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        where = f"@{self.host}" if self.host else ""
        return (
            f"Registration({self.slot}.{self.generation} {self.name!r} {self.life}{where} "
            f"incarnation={self.incarnation} token={self.token})"
        )

    @property
    def key(self) -> Key:
        return (self.slot, self.generation)

    @property
    def stream(self) -> str:
        return stream_of(self.slot, self.generation)

    @property
    def spec(self) -> BackgroundWorker:
        return _spec_of(self.packed)

    @property
    def wire(self) -> dict[str, Any]:
        """The record as START and STATUS carry it: a fresh map."""
        return _unpack(self.packed)

    @property
    def placed(self) -> bool:
        """A process of it exists, may exist, or may come into being."""
        return self.life in _PLACED

    @property
    def after(self) -> tuple[int, ...]:
        """The tokens that its host may use by itself for the incarnations that follow; nothing may
        be started elsewhere before it has given them back."""
        return _unpack_tokens(self.reserved) if self.reserved else ()

    @property
    def loose(self) -> bool:
        """It has no process that is known, and its host may start one by itself."""
        return bool(self.reserved) and self.live and not self.placed

    @property
    def outdated(self) -> bool:
        """Its process, if it comes to one, runs with the content of an older revision."""
        return self.placed and self.ran_revision < self.revision

    @property
    def ahead(self) -> bool:
        """Its process runs with a revision that a restore has lost, whose content nobody knows."""
        return self.placed and self.ran_revision > self.revision

    @property
    def live(self) -> bool:
        return self.life is not Life.RETIRED

    def spec_row(self) -> SpecRow:
        return SpecRow(
            slot=self.slot,
            generation=self.generation,
            revision=self.revision,
            name=self.name,
            spec=self.packed,
            registered_unix_s=self.registered_unix_s,
            by=self.by,
            source=self.source,
            order=self.order,
            group=self.group,
            max_unavailable=self.max_unavailable,
            registrant=self.registrant,
        )

    def state_row(self) -> StateRow:
        return StateRow(**{name: getattr(self, name) for name in _STATE_FIELDS})


_STATE_FIELDS = tuple(StateRow.__dataclass_fields__)


@dataclass(slots=True)
class _Slot:
    generation: int = 0
    live: Registration | None = None
    retired: dict[int, Registration] | None = None


class Registry:
    """All registrations of one cluster."""

    def __init__(self, identity: str, slots_max: int, first: int = 0) -> None:
        self.identity = identity
        self._first = first  # below all generations that are taken from now on
        self.slots_max = slots_max
        self.live_count = 0
        self.token = 0  # drawn last
        self.changed: dict[Key, Registration] = {}  # to be persisted; emptied by the core
        self.forgotten: list[Registration] = []  # in this turn; emptied by the core
        self._slots: list[_Slot] = []
        self._free: list[int] = []
        self._live_names: dict[str, dict[Key, Registration]] = {}
        self._retired_names: dict[str, dict[Key, Registration]] = {}
        self._retired: dict[Key, Registration] = {}  # oldest first
        self._sources: dict[str, dict[Key, Registration]] = {}  # live ones
        self._groups: dict[str, dict[Key, Registration]] = {}  # live ones
        self._placed: dict[str, dict[Key, Registration]] = {}
        self._load: Counter[str] = Counter()
        self._starting: Counter[str] = Counter()
        # By host and crash domain: how many members of it each warden there has.
        self._domains: dict[tuple[str, str], Counter[str]] = {}

    def __repr__(self) -> str:
        return (
            f"Registry({self.identity[:8]}, {self.live_count} live, {len(self._retired)} retired)"
        )

    # --- restoring ---

    def restore_slot(self, slot: int, generation: int) -> None:
        self._slot(slot).generation = generation

    def restore(self, spec: SpecRow, state: StateRow) -> Registration:
        """Take a registration back from the store. Retired ones come oldest first."""
        record = _unpack(spec.spec)
        registration = Registration(
            slot=spec.slot,
            generation=spec.generation,
            revision=spec.revision,
            name=spec.name,
            packed=spec.spec,
            pinned=str(record.get("host") or ""),
            registered_unix_s=spec.registered_unix_s,
            by=spec.by,
            source=spec.source,
            order=spec.order,
            group=spec.group,
            max_unavailable=spec.max_unavailable,
            registrant=spec.registrant,
        )
        for name in _STATE_FIELDS[2:]:
            setattr(registration, name, getattr(state, name))
        if state.domain is None:  # written before that was kept
            registration.domain = _domain_in(record)
        if not registration.proven_revision:  # written before there were revisions to roll out
            registration.ran_revision = registration.proven_revision = registration.revision
        slot = self._slot(spec.slot)
        slot.generation = max(slot.generation, spec.generation)
        if registration.live:
            assert slot.live is None, f"two live registrations in slot {spec.slot}"
            self._enter(registration)
        else:
            self._shelve(registration)
        return registration

    def redraw(self) -> None:
        """It is a copy that was put back: a host may have used the tokens that it has reserved for
        a process to come. Nothing else may use them again."""
        for registration in (slot.live for slot in self._slots):
            if registration is not None and registration.loose:
                tokens = [self.draw_token() for _ in registration.after]
                registration.reserved = packed_tokens(tokens)
                self.changed[registration.key] = registration

    def restored(self) -> None:
        """All are back: find the free slots."""
        self._free = [index for index, slot in enumerate(self._slots) if slot.live is None]
        heapify(self._free)

    # --- registering ---

    def want_slots(self, count: int, ahead: int = 0) -> None:
        """Raises NoFreeSlot if so many cannot be taken, after the `ahead` others that will be."""
        if self.live_count + ahead + count <= self.slots_max:
            return
        names = [r.name for r in self.workers(limit=_HOLDERS_SHOWN)]
        others = " and others" if self.live_count > len(names) else ""
        told = "all" if count == 1 else f"{count} are wanted, and {self.live_count} of the"
        raise NoFreeSlot(
            f"{told} {self.slots_max} slots of max_worker_processes are taken, "
            f"by {', '.join(names) or 'nobody'}{others}"
            f"{f' and by {ahead} that are declared before it' if ahead else ''}",
            hint="terminate a worker, or raise max_worker_processes of the master",
            limit="max_worker_processes",
            value=self.slots_max,
            holders=names,
        )

    def take_slot(self) -> Key:
        """The lowest free slot with its next generation (D4). Raises NoFreeSlot."""
        self.want_slots(1)
        if self._free:
            index = heappop(self._free)
        else:
            index = len(self._slots)
            self._slots.append(_Slot())
        slot = self._slots[index]
        slot.generation = max(slot.generation, self._first) + 1
        return index, slot.generation

    def take_back(self, slot: int, generation: int) -> None:
        """A slot that was given out in the history that a restore lost. Raises NoFreeSlot."""
        self.want_slots(1)
        self.reserve(slot)
        if slot >= len(self._slots):
            raise NoFreeSlot(
                f"slot {slot} is above max_worker_processes, {self.slots_max}",
                hint="raise max_worker_processes of the master",
            )
        found = self._slots[slot]
        if found.live is not None:
            raise NoFreeSlot(
                f"slot {slot} is that of {found.live.name!r} now",
                hint="terminate that one first, or end the process with `posthouse claim --stop`",
                holders=[found.live.name],
            )
        found.generation = max(found.generation, generation)

    def given(self, slot: int) -> int:
        """The newest generation of a slot, which never falls: a handle is given out once."""
        return self._slots[slot].generation

    def reserve(self, slot: int) -> None:
        """Give this slot to nobody but by `take_back`."""
        while len(self._slots) <= slot < self.slots_max:
            heappush(self._free, len(self._slots))
            self._slots.append(_Slot())
        if slot in self._free:
            self._free.remove(slot)
            heapify(self._free)

    def unreserve(self, slot: int) -> None:
        if slot < len(self._slots) and self._slots[slot].live is None and slot not in self._free:
            heappush(self._free, slot)

    def add(self, registration: Registration, spec: BackgroundWorker) -> None:
        """A new one, in the slot that was taken for it."""
        _remember(registration.packed, spec)
        self._enter(registration)
        self.changed[registration.key] = registration

    def draw_token(self) -> int:
        self.token += 1
        return self.token

    def loose_on(self, host: str) -> list[Registration]:
        """Those without a process that this host may start by itself."""
        found = (slot.live for slot in self._slots)
        return [each for each in found if each and each.loose and each.host == host]

    # --- changing ---

    def move(self, registration: Registration, step: Step, **changes: Any) -> None:
        """Take a step of TRANSITIONS and set `changes` with it. Raises InternalError."""
        after = TRANSITIONS.get((registration.life, step))
        if after is None:
            raise InternalError(f"{registration!r} cannot {step}")
        self._leave_host(registration)
        registration.life = after
        for name, value in changes.items():
            setattr(registration, name, value)
        if after is Life.RETIRED:
            self._retire(registration)
        else:
            self._enter_host(registration)
        self.changed[registration.key] = registration

    def revise(self, registration: Registration, spec: BackgroundWorker, packed: bytes) -> None:
        """Give it other content under the next revision, in its slot (its handle stays good): the
        next of all that a process of it was told, also in a history that was lost."""
        _remember(packed, spec)
        self._leave_host(registration)
        if registration.pinned:
            self._load[registration.pinned] -= 1
        registration.packed, registration.pinned = packed, spec.host or ""
        newest = (registration.revision, registration.ran_revision, registration.proven_revision)
        registration.revision = max(newest) + 1
        if registration.pinned:
            self._load[registration.pinned] += 1
        self._enter_host(registration)

    def oldest_retired(self, beyond: int) -> Registration | None:
        """The one to be forgotten next, if more than `beyond` are kept."""
        if len(self._retired) <= beyond:
            return None
        return next(iter(self._retired.values()))

    def forget(self, registration: Registration) -> None:
        """A retired registration is no longer listed; its handle stays stale for ever."""
        key = registration.key
        del self._retired[key]
        slot = self._slots[registration.slot]
        assert slot.retired is not None
        del slot.retired[registration.generation]
        slot.retired = slot.retired or None
        _discard(self._retired_names, registration.name, key)
        self.changed.pop(key, None)
        self.forgotten.append(registration)

    # --- asking ---

    def get(self, slot: int, generation: int) -> Registration | None:
        if slot >= len(self._slots):
            return None
        found = self._slots[slot]
        if found.live is not None and found.live.generation == generation:
            return found.live
        return found.retired.get(generation) if found.retired else None

    def find(self, ref: str) -> Registration | HandleId:
        """By handle, by name (a live one first, else the newest retired), by short handle.

        A handle that reaches nothing is given back: it is stale, which is an answer (D11). Raises
        NoSuchWorker for a name that means none, or more than one.
        """
        registry, colon, _ = ref.partition(":")
        if colon and len(registry) == len(self.identity):
            handle = _handle(ref)
            if handle is not None:
                return self._reach(handle)
        live = self._live_names.get(ref, {})
        if len(live) > 1:
            shown = ", ".join(f"{slot}.{generation}" for slot, generation in list(live)[:5])
            raise NoSuchWorker(
                f"{len(live)} workers are named {ref!r}",
                hint=f"say which by its handle: {shown}",
                handles=shown,
            )
        if live:
            return next(iter(live.values()))
        retired = self._retired_names.get(ref)
        if retired:
            return next(reversed(retired.values()))
        handle = _handle(f"{self.identity}:{ref}")
        if handle is not None:
            return self._reach(handle)
        raise NoSuchWorker(f"no worker is named {ref!r}", hint=self._hint(ref))

    def _reach(self, handle: HandleId) -> Registration | HandleId:
        """What a handle names, or itself if that is gone. Raises NoSuchWorker for one that this
        registry has not given yet: it may come to name somebody, so it is not stale."""
        if handle.registry != self.identity:
            return handle
        given = self._slots[handle.slot].generation if handle.slot < len(self._slots) else 0
        if not 0 < handle.generation <= given:
            raise NoSuchWorker(
                f"{handle.short} is no handle that was ever given",
                hint="`posthouse ps` lists the workers",
            )
        return self.get(handle.slot, handle.generation) or handle

    def all_named(self, name: str) -> list[Registration]:
        """The live registrations of that name, oldest first."""
        return list(self._live_names.get(name, {}).values())

    def retired_named(self, name: str) -> Registration | None:
        """The newest one of that name that has been unregistered and is still listed."""
        found = self._retired_names.get(name)
        return next(reversed(found.values())) if found else None

    def of_source(self, source: str) -> dict[Key, Registration]:
        """Live ones that this source registered. Not to be changed."""
        return self._sources.get(source, {})

    def sources(self) -> list[str]:
        """Who has registered live ones."""
        return list(self._sources)

    def of_group(self, group: str) -> dict[Key, Registration]:
        """The live members of a group. Not to be changed."""
        return self._groups.get(group, {})

    def named(self, name: str) -> Registration | None:
        """The oldest live registration of that name."""
        return next(iter(self._live_names.get(name, {}).values()), None)

    def handle(self, registration: Registration) -> HandleId:
        return HandleId(self.identity, registration.slot, registration.generation)

    def workers(
        self, after: Key = (-1, 0), *, limit: int, retired: bool = False, group: str = ""
    ) -> Iterator[Registration]:
        """In the order of (slot, generation), after a place; or the live ones of one group."""
        if group:
            members = self._groups.get(group, {})
            keys = sorted(key for key in members if key > after)[:limit]
            yield from (members[key] for key in keys)
            return
        given = 0
        for index in range(max(0, after[0]), len(self._slots)):
            slot = self._slots[index]
            found = list(slot.retired.values()) if retired and slot.retired else []
            if slot.live is not None:
                found.append(slot.live)  # its generation is the highest of the slot
            for registration in found:
                if registration.key > after:
                    if given == limit:
                        return
                    given += 1
                    yield registration

    def placed_on(self, host: str) -> dict[Key, Registration]:
        """Those that have, or may have, a process on this host. Not to be changed."""
        return self._placed.get(host, {})

    def hosts_with_workers(self) -> list[str]:
        return sorted(host for host, found in self._placed.items() if found)

    def starting(self, host: str) -> int:
        """How many STARTs the host has yet to answer."""
        return self._starting[host]

    def home(self, host: str, domain: str) -> str:
        """Under which warden of the host members of a crash domain live, or may; "" if none do."""
        return next(iter(self._domains.get((host, domain), ())), "")

    def load(self, host: str) -> int:
        """Slots of the host that are taken: by what runs there, and by what can run only there."""
        return self._load[host]

    # --- indexes ---

    def _slot(self, index: int) -> _Slot:
        while len(self._slots) <= index:
            self._slots.append(_Slot())
        return self._slots[index]

    def _enter(self, registration: Registration) -> None:
        self._slots[registration.slot].live = registration
        self._live_names.setdefault(registration.name, {})[registration.key] = registration
        for index, value in self._joined(registration):
            index.setdefault(value, {})[registration.key] = registration
        self.live_count += 1
        if registration.pinned:
            self._load[registration.pinned] += 1
        self._enter_host(registration)

    def _retire(self, registration: Registration) -> None:
        slot = self._slots[registration.slot]
        slot.live = None
        heappush(self._free, registration.slot)
        _discard(self._live_names, registration.name, registration.key)
        for index, value in self._joined(registration):
            _discard(index, value, registration.key)
        self.live_count -= 1
        if registration.pinned:
            self._load[registration.pinned] -= 1
        self._shelve(registration)

    def _joined(
        self, registration: Registration
    ) -> list[tuple[dict[str, dict[Key, Registration]], str]]:
        """The indexes of live ones that it is in, beside those of names and hosts."""
        found = [(self._sources, registration.source), (self._groups, registration.group)]
        return [(index, value) for index, value in found if value]

    def _shelve(self, registration: Registration) -> None:
        slot = self._slots[registration.slot]
        slot.retired = slot.retired or {}
        slot.retired[registration.generation] = registration
        self._retired[registration.key] = registration
        names = self._retired_names.setdefault(registration.name, {})
        names[registration.key] = registration

    def _enter_host(self, registration: Registration) -> None:
        if registration.placed:
            self._placed.setdefault(registration.host, {})[registration.key] = registration
            self._starting[registration.host] += registration.life is Life.STARTING
            if registration.domain:
                members = self._domains.setdefault(_home_of(registration), Counter())
                members[registration.warden] += 1
            if registration.pinned != registration.host:  # it may yet move to the host it names
                self._load[registration.host] += 1

    def _leave_host(self, registration: Registration) -> None:
        if registration.placed:
            del self._placed[registration.host][registration.key]
            self._starting[registration.host] -= registration.life is Life.STARTING
            if registration.domain:
                members = self._domains[_home_of(registration)]
                members[registration.warden] -= 1
                if not members[registration.warden]:
                    del members[registration.warden]
                if not members:
                    del self._domains[_home_of(registration)]
            if registration.pinned != registration.host:
                self._load[registration.host] -= 1

    def _hint(self, ref: str) -> str:
        near = get_close_matches(ref, islice(self._live_names, _NAMES_COMPARED), n=1)
        return f"did you mean {near[0]!r}?" if near else "`posthouse ps` lists the workers"


def packed_tokens(tokens: Sequence[int]) -> bytes:
    """As `Registration.reserved` has them."""
    return _pack_tokens(tokens) if tokens else b""


def domain_of(spec: BackgroundWorker) -> str:
    """Its crash domain, "" if it maps no shared memory."""
    return spec.crash_domain if spec.flags & SHMEM_ACCESS else ""


def _domain_in(record: dict[str, Any]) -> str:
    """The same of its wire form, unpacked only as far as that takes."""
    flags = record.get("flags", 0)
    return str(record.get("crash_domain", _DOMAIN)) if flags & SHMEM_ACCESS else ""


def _home_of(registration: Registration) -> tuple[str, str]:
    return registration.host, registration.domain


def _discard(index: dict[str, dict[Key, Registration]], name: str, key: Key) -> None:
    found = index[name]
    del found[key]
    if not found:
        del index[name]


def _handle(text: str) -> HandleId | None:
    registry, _, rest = text.partition(":")
    slot, dot, generation = rest.partition(".")
    plain = slot.isascii() and generation.isascii() and slot.isdecimal() and generation.isdecimal()
    if not (dot and plain and len(slot) <= 9 and len(generation) <= 18):
        return None
    return HandleId(registry, int(slot), int(generation))
