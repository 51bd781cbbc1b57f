"""CORE: whether a record may be registered now.

Owns: the rules that need more than the record: what is offered to whom, names that are taken, known
hosts, slots. Must not know: who asks, what is done then.
Invariant: it only looks; what it refuses it refuses before anything has changed.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Final

from posthouse.errors import (
    AlreadyRegistered,
    NoFreeSlot,
    NotPermitted,
    RefusedError,
)
from posthouse.spec import BackgroundWorker
from posthouse_master.placement import Fleet, Host, guard_of
from posthouse_master.registrants import is_worker
from posthouse_master.registry import Registration, Registry

__all__ = ["Admit"]

_RESERVED: Final = ("config", "library:")
_HOLDERS_SHOWN: Final = 5


class Admit:
    """Asked before a registration."""

    def __init__(self, registry: Registry, fleet: Fleet) -> None:
        self._registry = registry
        self._fleet = fleet

    def offered(self, spec: BackgroundWorker, by: str = "", *, vouched: bool = False) -> None:
        """Raises RefusedError for a field that is not offered to `by`. `vouched`: an agent has
        given its word for the process that asks."""
        if spec.notify and not is_worker(by) and not vouched:
            raise RefusedError(
                "notify is True: only a process for which its host's agent gives its word can be "
                "signalled: one that registers a single worker, on a host with an agent",
                hint="leave notify out: handles, events and waits never need it",
                field="notify",
                value="True",
                rule="only for a single registration by a process on a host with an agent",
            )

        lease_s = self._fleet.lease_s
        if lease_s and guard_of(spec) and spec.stop_grace_s > lease_s / 2:
            raise RefusedError(
                f"stop_grace_s is {spec.stop_grace_s:g}: at most half the lease of "
                f"{lease_s:g} s, for a worker that may be moved",
                hint="choose a shorter grace, name its host, or set a longer lease",
                field="stop_grace_s",
                value=f"{spec.stop_grace_s:g}",
                rule="at most half the lease",
            )

    def source(self, name: str) -> None:
        """Raises NotPermitted for one that only the master's own configuration has (S1)."""
        if name.startswith(_RESERVED):
            raise NotPermitted(
                f"source {name!r} is the master's own configuration: static registration is "
                "possible only in its [[worker]] tables and in posthouse_init(registry) of its "
                "preload_libraries, as it begins",
                hint=f"sources that begin with {' or '.join(_RESERVED)} are reserved",
            )

    def unique(self, spec: BackgroundWorker) -> None:
        """Raises AlreadyRegistered."""
        holder = self._registry.named(spec.name) if spec.unique else None
        if holder is not None:
            raise self.taken(holder)

    def ending(self, holder: Registration) -> AlreadyRegistered:
        """The refusal of a name whose process has yet to end. What was asked for stands, so it
        cannot be had back."""
        handle = self._registry.handle(holder)
        return AlreadyRegistered(
            f"worker {holder.name!r} was terminated by {holder.stop_by or 'somebody'} and has not "
            f"ended yet: {handle.short}",
            hint=f"`posthouse wait {holder.name} --for gone`, then apply again",
            handle=str(handle),
        )

    def taken(self, holder: Registration) -> AlreadyRegistered:
        """The refusal of a name that somebody has."""
        handle = self._registry.handle(holder)
        whose = f" by source {holder.source!r}" if holder.source else ""
        return AlreadyRegistered(
            f"a worker named {holder.name!r} is registered already{whose}: {handle.short}",
            hint="terminate it first, choose another name, or register with unique=False",
            handle=str(handle),
        )

    def known_host(self, name: str) -> Host:
        """Raises UnknownHost."""
        return self._fleet.known(name)

    def slots(
        self, specs: Iterable[BackgroundWorker], moved: Iterable[BackgroundWorker] = ()
    ) -> None:
        """Raises NoFreeSlot or UnknownHost if not all of these can be registered together.
        `moved`: registered already, and about to name a host on which they have no slot yet."""
        pinned: Counter[str] = Counter(spec.host for spec in moved if spec.host is not None)
        count = 0
        for spec in specs:
            count += 1
            if spec.host is not None:
                pinned[spec.host] += 1
        self._registry.want_slots(count)
        for name, wanted in pinned.items():
            host = self.known_host(name)
            if self._fleet.free(host) < wanted:
                raise self._full(host, wanted)

    def surplus(self, claims: Iterable[tuple[BackgroundWorker, bool]]) -> dict[int, NoFreeSlot]:
        """Those for which no slot is left if they are registered, or moved (False), in this order
        (S3), by their place. A host that has not joined yet has room for any number."""
        refused: dict[int, NoFreeSlot] = {}
        pinned: Counter[str] = Counter()
        count = 0
        for at, (spec, new) in enumerate(claims):
            host = self._fleet.hosts.get(spec.host or "")
            try:
                self._registry.want_slots(int(new), ahead=count)
                if host is not None and self._fleet.free(host) <= pinned[host.name]:
                    raise self._full(host, 1)
            except NoFreeSlot as error:
                refused[at] = error
                continue
            count += new
            if host is not None:
                pinned[host.name] += 1
        return refused

    def _full(self, host: Host, wanted: int) -> NoFreeSlot:
        placed = self._registry.placed_on(host.name).values()
        holders = [r.name for r, _ in zip(placed, range(_HOLDERS_SHOWN), strict=False)]
        slots = self._fleet.slots(host)
        free = max(0, self._fleet.free(host))
        told = "all" if wanted == 1 else f"{wanted} are wanted, and {slots - free} of the"
        return NoFreeSlot(
            f"{told} {slots} slots of host {host.name} are taken",
            hint="terminate a worker there, or raise max_worker_processes of the host",
            limit=f"max_worker_processes of host {host.name}",
            value=slots,
            holders=holders,
        )
