"""What a host may start without its master: the tokens that were reserved for it, and how soon.

Owns: whose reserved tokens are, and on which host. Must not know: the cores' own state; it reads
rows. Invariant: a reserved token is used for the registration and on the host that it was reserved
for, in its order, by whoever is first; and by the host itself only while it has no session.
"""

from dataclasses import dataclass, field

import msgspec

from posthouse.records import Event
from posthouse.states import SHMEM_ACCESS
from posthouse_agent.orders import StartWorker
from posthouse_master.store.base import StateRow
from posthouse_testing.sim.process import Process
from posthouse_testing.sim.world import Violation

__all__ = ["ALONE", "Reserves", "reserved_in"]

ALONE = "E-ALONE"  # the rule of rows about what a host does by itself
_CLOCKS = 0.005  # as in check.py

_unpack = msgspec.msgpack.Decoder(list[int]).decode


def reserved_in(row: StateRow | None) -> list[int]:
    """The tokens of this row, oldest first."""
    return _unpack(row.reserved) if row is not None and row.reserved else []


@dataclass(slots=True)
class Reserves:
    """Told of every durable state."""

    owners: dict[int, tuple[tuple[int, int], str]] = field(default_factory=dict)

    def put(self, key: tuple[int, int], old: StateRow | None, row: StateRow) -> int:
        """A state is durable. The highest token that it reserves, 0 for none."""
        tokens = reserved_in(row)
        if tokens != sorted(set(tokens)) or (tokens and tokens[0] <= row.token):
            raise Violation(3, f"{key} has token {row.token} and reserves {tokens}")
        kept = set(reserved_in(old))
        for token in tokens:
            if self.owners.setdefault(token, (key, row.host)) != (key, row.host):
                raise Violation(3, f"token {token} is reserved for {key}, and {self.owners[token]}")
            if token not in kept and old is not None and token <= old.token:
                raise Violation(3, f"{key} reserves token {token} again")
        return max(tokens, default=0)

    def starts(self, key: tuple[int, int], event: Event) -> bool:
        """Whether a STARTING row uses a reserved token; rightly so."""
        owner = self.owners.get(event.token or 0)
        if owner is not None and owner != (key, event.host):
            raise Violation(3, f"token {event.token} starts {key} on {event.host}, not {owner}")
        return owner is not None

    def may_fork(self, machine: str, order: StartWorker, row: StateRow) -> bool:
        """Whether this token is one that its host may come to from what is durable."""
        return row.host == machine and order.token in reserved_in(row)

    def alone(
        self, machine: str, order: StartWorker, last: Process | None, now_s: float, *, open_: bool
    ) -> bool:
        """Whether an agent may start this without being told to."""
        key = (order.slot, order.generation)
        if self.owners.get(order.token) != (key, machine):
            return False
        if open_:
            raise Violation(6, f"{machine} starts {key} token {order.token} by itself in a session")
        if last is None or last.died_s is None or int(last.spec.get("flags", 0)) & SHMEM_ACCESS:
            return True  # a crash domain's first reset restarts its members at once
        if now_s - last.died_s < last.spec.get("restart_time", 5.0) * (1 - _CLOCKS):
            raise Violation(12, f"{machine} starts {key} after {now_s - last.died_s:.3f} s")
        return True
