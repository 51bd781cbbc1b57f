"""CORE: which host may run a worker, which one should, under which of its wardens, and for every
other host why not.

Owns: what hosts offer, the verdicts, the queue of those that no host could take yet. Must not
know: sessions, registrations beyond their key, the wire.

Invariant: a verdict is either "" (it fits) or a sentence that names what is missing; the queue
gives back the one that has waited longest among those that fit a host.
"""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from posthouse import limits
from posthouse.errors import UnknownHost
from posthouse.messages import Running
from posthouse.spec import BackgroundWorker
from posthouse.states import SHMEM_ACCESS, StartTime

__all__ = [
    "FENCED",
    "KEPT",
    "TREE",
    "Fleet",
    "Host",
    "Offer",
    "StartQueue",
    "Wants",
    "guard_of",
    "keeps",
    "wants_of",
]

FENCED = "fenced"  # the warden whose workers end with their host's lease
KEPT = "kept"  # the one whose workers go on
TREE = "tree"  # and the one that ends, with the lease, all that its workers have started
_HOSTS_SHOWN = 32

Key = tuple[int, int]
EXEC = "posthouse.exec"
_COMPACT_ABOVE = 1024  # entries of a line that may be leftovers before they are swept out


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a host said of itself in its HELLO."""

    labels: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    allow_exec: bool = False
    users: tuple[str, ...] = ()
    fences: tuple[str, ...] = ()
    no_tree: str = ""  # why "tree" is not among them
    slots: int = 0
    version: str = ""


@dataclass(slots=True, eq=False)
class Host:
    """A host that has joined at least once. Written by hosts.py."""

    name: str
    offer: Offer = Offer()
    machine_id: str = ""
    boot_id: str = ""
    up: bool = False  # the log's last word of it was HOST_UP
    draining: bool = False  # an operator wants no starts there
    heard_s: float | None = None  # on the master's clock; None: not since this master started
    session: bytes = b""  # of the agent, if there is one
    settled: bool = False  # its inventory has been taken in whole
    choked: bool = False  # no START for now: it has yet to answer many, or its link is full
    joined: bool = False  # its offer has been heard, in this term or an earlier one
    inventory: dict[int, Running] | None = None  # by token, until the last page
    pages: int = 0  # of the inventory, so far
    said_boot_id: str = ""  # of the HELLO; becomes boot_id once the inventory is settled
    # Its lease; written by leases.py.
    lease_s: float = 0.0  # the longest that it may count on, durable; 0: one without a deadline
    granted_s: float | None = None  # last, on the master's clock; at a term's begin, if not yet
    granting_s: float = 0.0  # the length of grants in this session, since the one of that stamp:
    granting_from: int = 0
    stamp: int = 0  # of the last RENEW that was granted
    unseen: int = 0  # the first one that was granted and is not known to be in force
    unseen_s: float = 0.0  # when that was granted
    lost_s: float | None = None  # when its workers were taken for dead
    braked_s: float | None = None  # since when its loss waits, because too many are lost

    def __repr__(self) -> str:
        state = "settled" if self.settled else "greeting" if self.session else "away"
        return f"Host({self.name} {state})"

    @property
    def reachable(self) -> bool:
        return bool(self.session)

    @property
    def open(self) -> bool:
        """A START may be sent to it now."""
        return bool(self.session) and self.settled and not self.choked


class Wants(NamedTuple):
    """What placement looks at, and the phase that is waited for; registrations with equal wants
    wait in one line."""

    host: str
    labels: tuple[str, ...]
    runtime: str
    fence: str
    run_as: str
    module: str
    start_time: StartTime = StartTime.POSTMASTER_START
    guard: str = ""  # the fence that it needs where leases have deadlines
    keeps: bool = False  # it goes on while its host is cut off
    firm: bool = False  # its record says so, or the contrary; else it may go with its crash domain
    domain: str = ""  # its crash domain, with SHMEM_ACCESS
    barred: frozenset[str] = frozenset()
    failing: bool = False  # it has failed more than once in a row


def wants_of(spec: BackgroundWorker, barred: frozenset[str] = frozenset()) -> Wants:
    entry_point = spec.entry_point
    return Wants(
        host=spec.host or "",
        labels=tuple(sorted(spec.labels)),
        runtime=spec.runtime,
        fence=spec.fence or "",
        run_as=spec.run_as or "",
        guard=guard_of(spec),
        keeps=keeps(spec),
        firm=spec.on_partition is not None,
        domain=spec.crash_domain if spec.flags & SHMEM_ACCESS else "",
        module=EXEC if entry_point == EXEC else entry_point.partition(":")[0],
        start_time=spec.start_time,
        barred=barred,
    )


def keeps(spec: BackgroundWorker) -> bool:
    """Whether it goes on while its host is cut off: if nothing else may run it, unless told."""
    return (spec.on_partition or ("keep" if spec.host else "stop")) == "keep"


def guard_of(spec: BackgroundWorker) -> str:
    """The fence that must end it with its host's lease, because it may run elsewhere then; "" if
    nothing else may run it. Programs, and workers of other users, can leave a process fence."""
    if keeps(spec):
        return ""
    loose = spec.entry_point == EXEC or spec.run_as is not None
    return spec.fence or (TREE if loose else "process")


def _unguarded(wants: Wants, host: Host) -> str:
    """Why its lease would not end it."""
    if not wants.guard or wants.guard in host.offer.fences:
        return ""
    return f"{_no_fence(wants.guard, host)}{_NEEDED if not wants.fence else ''}"


_NEEDED = ", which programs and run_as need (or fence = 'process')"


def _no_fence(fence: str, host: Host) -> str:
    why = f" ({host.offer.no_tree})" if fence == TREE and host.offer.no_tree else ""
    return f"it offers no fence {fence!r}{why}"


def _misfit(wants: Wants, host: Host) -> str:
    """Why a host could never run it as the host is configured now; "" if it could."""
    offer = host.offer
    missing = [label for label in wants.labels if label not in offer.labels]
    checks: tuple[tuple[bool, str], ...] = (
        (host.draining, "it is being drained"),
        (bool(wants.host) and wants.host != host.name, f"the worker is for host {wants.host}"),
        (bool(missing), f"it has not the label {', '.join(missing)}"),
        (wants.runtime not in offer.runtimes, f"it has no runtime {wants.runtime!r}"),
        # Without lease deadlines nothing can run elsewhere, so a process fence asks for nothing.
        (wants.fence == wants.guard == TREE not in offer.fences, _no_fence(TREE, host)),
        (
            bool(wants.run_as) and wants.run_as not in offer.users,
            f"it does not let workers run as {wants.run_as!r}",
        ),
        (not _module_allowed(wants.module, offer), _module_refusal(wants.module)),
    )
    return next((reason for bad, reason in checks if bad), "")


def _module_allowed(module: str, offer: Offer) -> bool:
    if module == EXEC:
        return offer.allow_exec
    return any(
        pattern in ("*", module) or (pattern.endswith(".*") and module.startswith(pattern[:-1]))
        for pattern in offer.modules
    )


def _module_refusal(module: str) -> str:
    if module == EXEC:
        return "it does not allow posthouse.exec (allow_exec)"
    return f"its modules do not allow {module}"


def _nowhere(_host: str, _domain: str) -> str:
    return ""


class Fleet:
    """All known hosts. `load(host)` tells how many of its slots are taken, `home(host, domain)`
    under which warden there members of a crash domain live, "" if there are none."""

    def __init__(
        self,
        load: Callable[[str], int],
        slots_max: int,
        home: Callable[[str, str], str] = _nowhere,
    ) -> None:
        self.hosts: dict[str, Host] = {}
        self.lease_s = 0.0  # of grants; 0: without a deadline. Written by leases.py
        self._load = load
        self._home = home
        self._slots_max = slots_max
        self._fitting: dict[Wants, list[Host]] = {}

    def __repr__(self) -> str:
        return f"Fleet({list(self.hosts.values())})"

    def known(self, name: str) -> Host:
        """The host of this name. Raises UnknownHost, which names the nearest one."""
        host = self.hosts.get(name)
        if host is None:
            known = sorted(self.hosts)[:_HOSTS_SHOWN]
            shown = f"known are {', '.join(known)}" if known else "none has joined yet"
            near = difflib.get_close_matches(name, list(self.hosts), 1)
            shown = f"did you mean {near[0]!r}? {shown}" if near else shown
            raise UnknownHost(
                f"no host named {name!r} has joined", hint=shown, hosts=known, host=name
            )
        return host

    def offer_changed(self) -> None:
        """A host is new, or offers something else than before."""
        self._fitting.clear()

    def slots(self, host: Host) -> int:
        """Workers that the host may have: its own bound or the cluster's, whichever is less."""
        return min(host.offer.slots, self._slots_max)

    def free(self, host: Host) -> int:
        return self.slots(host) - self._load(host.name)

    def fits(self, wants: Wants, host: Host) -> bool:
        free = host.name not in wants.barred and self._leased(wants, host)
        return free and bool(self.warden(wants, host)) and host in self._candidates(wants)

    def choose(self, wants: Wants) -> Host | None:
        """The least loaded open host that fits, by name among equals. A worker that names its
        host has its slot there for as long as it is registered, so it needs no free one."""
        found = [
            host
            for host in self._candidates(wants)
            if host.open and host.name not in wants.barred and self._has_room(wants, host)
            if self._leased(wants, host) and self.warden(wants, host)
        ]
        return min(found, key=lambda host: (self._load(host.name), host.name), default=None)

    def verdict(self, wants: Wants, host: Host) -> str:
        """Why this host cannot take it now; "" if it can."""
        reason = self._misfit(wants, host)
        if reason:
            return reason
        if not host.reachable:
            return "it is not reachable" if host.heard_s is not None else "it has not been heard"
        if not host.settled:
            return "its inventory is still being taken"
        if not self._leased(wants, host):
            return "its lease is not in force yet"
        if host.name in wants.barred:
            return "it failed to start it, and trying again there is of no use"
        if not self.warden(wants, host):
            home, own = self._home(host.name, wants.domain), self._own(wants)
            return (
                f"crash domain {wants.domain!r} lives under its {home} warden, and this worker "
                f"needs the {own} one ({'fence' if own == TREE else 'on_partition'})"
            )
        if not self._has_room(wants, host):
            return f"all {self.slots(host)} slots of its max_worker_processes are taken"
        return "it takes no more starts for a moment" if host.choked else ""

    def warden(self, wants: Wants, host: Host) -> str:
        """Under which warden of the host it would run; "" if its crash domain lives under another
        one. What no record says yields to that: a worker that would be kept may be fenced, and
        where nothing can run elsewhere one that would be fenced may be kept. A tree guards what a
        fenced warden guards."""
        own = self._own(wants)
        home = self._home(host.name, wants.domain) if wants.domain else ""
        if home in ("", own):
            return own
        if (home, own) == (TREE, FENCED):
            return home
        yields = not wants.firm and (wants.keeps or not self.lease_s)
        return home if yields else ""

    def _own(self, wants: Wants) -> str:
        """Where no lease has a deadline nobody needs a tree; who asks for one gets it."""
        if wants.keeps:
            return KEPT
        tree = wants.guard == TREE and bool(self.lease_s or wants.fence)
        return TREE if tree else FENCED

    def why_waiting(self, wants: Wants) -> str:
        """One sentence on why no host takes it now; "" if one does."""
        if wants.host:
            host = self.hosts.get(wants.host)
            reason = self.verdict(wants, host) if host else "no such host has joined"
            return f"host {wants.host}: {reason}" if reason else ""
        if not self.hosts:
            return "no host has joined yet"
        verdicts = {name: self.verdict(wants, self.hosts[name]) for name in sorted(self.hosts)}
        if not all(verdicts.values()):
            return ""
        shown = [f"{name}: {reason}" for name, reason in list(verdicts.items())[:3]]
        more = f", and {len(verdicts) - 3} more" if len(verdicts) > 3 else ""
        return f"no host can take it ({'; '.join(shown)}{more})"

    def _leased(self, wants: Wants, host: Host) -> bool:
        """Whether what counts for the host is of the kind that it is granted now. Else a cut just
        now would leave the worker there for good, because no time would make the host lost; or a
        host would be lost that had not been told of any end yet."""
        return not wants.guard or bool(host.lease_s) == bool(self.lease_s)

    def _misfit(self, wants: Wants, host: Host) -> str:
        return _misfit(wants, host) or (_unguarded(wants, host) if self.lease_s else "")

    def _has_room(self, wants: Wants, host: Host) -> bool:
        return bool(wants.host) or self.free(host) > 0

    def _candidates(self, wants: Wants) -> list[Host]:
        if wants.host:
            host = self.hosts.get(wants.host)
            return [host] if host is not None and not self._misfit(wants, host) else []
        # What does not concern what a host must have.
        wants = wants._replace(
            start_time=StartTime.POSTMASTER_START, barred=frozenset(), failing=False
        )
        found = self._fitting.get(wants)
        if found is None:
            found = [host for host in self.hosts.values() if not self._misfit(wants, host)]
            self._fitting[wants] = found
        return found


_Order = tuple[float, int]  # since when it waits; who came first among those of one moment


@dataclass(slots=True, eq=False)
class _Line:
    """Equal wants, oldest first. Who has left stays as an entry that is skipped."""

    entries: list[tuple[_Order, Key]] = field(default_factory=list)
    head: int = 0
    waiting: int = 0


class StartQueue:
    """Who waits for a host, in lines of equal wants. Who fails again and again counts as having
    come a second later: a storm of them keeps no other restart waiting, and is not starved."""

    def __init__(self) -> None:
        self._lines: dict[str, dict[Wants, _Line]] = {}  # by the host they name, "" for any
        self._where: dict[Key, tuple[_Order, Wants]] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, key: Key) -> bool:
        return key in self._where

    def __iter__(self) -> Iterator[Key]:
        """Who has waited longest first."""
        return iter(self._where)

    def __repr__(self) -> str:
        return f"StartQueue({len(self._where)} waiting)"

    def add(self, key: Key, wants: Wants, now_s: float) -> None:
        """Join the line of its wants, at the end; if it is there already, keep the place."""
        if key in self._where:
            if self._where[key][1] == wants:
                return
            self.discard(key)
        line = self._lines.setdefault(wants.host, {}).setdefault(wants, _Line())
        if len(line.entries) > _COMPACT_ABOVE and len(line.entries) > 2 * line.waiting:
            line.entries = [entry for entry in line.entries if self._valid(*entry)]
            line.head = 0
        self._count += 1
        since_s = now_s + limits.failing_start_later_s if wants.failing else now_s
        order = (since_s, self._count)
        self._where[key] = (order, wants)
        line.entries.append((order, key))
        line.waiting += 1

    def discard(self, key: Key) -> None:
        found = self._where.pop(key, None)
        if found is None:
            return
        wants = found[1]
        lines = self._lines[wants.host]
        line = lines[wants]
        line.waiting -= 1
        if not line.waiting:
            del lines[wants]
            if not lines:
                del self._lines[wants.host]

    def for_host(self, host: Host, fits: Callable[[Wants, Host], bool]) -> Iterator[Key]:
        """Those that this host could take, who has waited longest first. The taker discards what
        it takes, and stops asking when the host has no more room."""
        heap: list[tuple[_Order, int, _Line]] = []  # (order, place in the line, line)
        for name in (host.name, ""):
            for wants, line in self._lines.get(name, {}).items():
                if fits(wants, host):
                    line.head = self._next(line, line.head)
                    heap.append((line.entries[line.head][0], line.head, line))
        heapify(heap)
        while heap:
            order, place, line = heappop(heap)
            key = line.entries[place][1]
            if self._valid(order, key):
                yield key
            place = self._next(line, place + 1)
            if place < len(line.entries):
                heappush(heap, (line.entries[place][0], place, line))

    def _valid(self, order: _Order, key: Key) -> bool:
        found = self._where.get(key)
        return found is not None and found[0] == order

    def _next(self, line: _Line, place: int) -> int:
        while place < len(line.entries) and not self._valid(*line.entries[place]):
            place += 1
        return place
