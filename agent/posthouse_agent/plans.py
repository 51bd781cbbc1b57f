"""CORE: what a host may start by itself: kept workers, from the tokens that were reserved for them.

Owns: the START that led to each kept worker, when its successor is due, how fast it may go on. Must
not know: sessions, wardens, whether the host is alone (core).

Invariant: a successor is started under the next reserved token, which belongs to no other
incarnation; after a STOP of its slot, or once the master has confirmed the end that it would
follow, there is none. The master draws the same token for the same incarnation, so that what both
begin is one and the same, and a warden runs one token once.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Any

import msgspec

from posthouse import limits
from posthouse.errors import InvalidField
from posthouse.ids import Instant
from posthouse.messages import Exit, Start, StructRequest
from posthouse.pacing import Budget, Spent, next_streak
from posthouse.restart import Repeat, decide, decide_failed_start, takes_back
from posthouse.spec import BackgroundWorker
from posthouse_agent.orders import StartWorker
from posthouse_agent.wards import KEPT

__all__ = ["Plans", "start_of"]


@dataclass(slots=True)
class _Plan:
    """The START of `token`, and of those after it what is left."""

    start: Start  # of the newest incarnation that is known here
    due_s: float | None = None  # of its successor; None: it runs, or is being started
    why: str = ""
    delay_s: float = 0.0
    streak: int = 0
    spent: Spent = field(default_factory=Spent)


class Plans:
    """One for each slot whose worker may be started again. `entropy` is for the jitter."""

    def __init__(self, entropy: Callable[[int], bytes]) -> None:
        self._entropy = entropy
        self._plans: dict[int, _Plan] = {}  # by slot

    def __repr__(self) -> str:
        return f"Plans({len(self._plans)} slots)"

    @property
    def wake_s(self) -> float:
        """When the first successor is due; infinity if none is."""
        due = [plan.due_s for plan in self._plans.values() if plan.due_s is not None]
        return min(due, default=float("inf"))

    def given(self, start: Start) -> None:
        """The master has this incarnation started, or an earlier agent had."""
        known = self._plans.get(start.slot)
        if known is not None and known.start.token >= start.token:
            return
        if not start.reserved:
            self._plans.pop(start.slot, None)
        elif known is not None and known.start.generation == start.generation:
            known.start, known.due_s = start, None
        else:
            self._plans[start.slot] = _Plan(start)

    def ended(self, exit_: Exit, now: Instant) -> None:
        """Its process has ended: whether, and when, the next one may follow."""
        plan = self._of(exit_.slot, exit_.token)
        if plan is None:
            return
        if takes_back(exit_.stop):
            del self._plans[exit_.slot]
            return
        spec = BackgroundWorker.from_wire(plan.start.spec)
        streak = next_streak(plan.streak, exit_.facts, plan.delay_s)
        decision = decide(spec, exit_.facts, exit_.stop, "", Repeat(streak - 1, self._draw()))
        if decision.kind != "restart" or not plan.start.reserved:
            del self._plans[exit_.slot]
            return
        plan.streak = streak
        self._put_off(plan, spec, decision.delay_s, decision.reason, now)

    def failed(self, slot: int, token: int, why: str, code: str, now: Instant) -> bool:
        """The successor that was tried could not be started; True if it was one of these."""
        plan = self._of(slot, token)
        if plan is None:
            return False
        spec = BackgroundWorker.from_wire(plan.start.spec)
        if not plan.start.reserved:
            del self._plans[slot]
        elif code == "stale_token":  # tried before, under an agent that has ended since
            plan.due_s = now.boot_s
        else:
            decision = decide_failed_start(spec, why, None, "", Repeat(plan.streak, self._draw()))
            plan.streak += 1
            self._put_off(plan, spec, decision.delay_s, decision.reason, now)
        return True

    def confirmed(self, slot: int, token: int) -> None:
        """The master has the end of this token: what follows it is the master's to say."""
        plan = self._plans.get(slot)
        if plan is not None and plan.due_s is not None and plan.start.token >= token:
            del self._plans[slot]

    def went_on(self, exit_: Exit) -> bool:
        """Whether the host has started, or tried to start, what follows this end."""
        plan = self._plans.get(exit_.slot)
        if plan is None or plan.start.generation != exit_.generation:
            return False
        return plan.start.token > exit_.token

    def taken_back(self, slot: int) -> None:
        """The master has asked for the end of whatever runs in this slot."""
        self._plans.pop(slot, None)

    def forget(self, *, but: Container[int] = ()) -> None:
        """The warden that these were told to is gone, and with it whatever it was told. `but`:
        tokens that no warden has been told yet."""
        plans = self._plans.items()
        self._plans = {slot: plan for slot, plan in plans if plan.start.token in but}

    def due(self, now: Instant) -> list[tuple[Start, str]]:
        """The successors whose time has come, and why each is started. Each is to be started now,
        or put back by `failed`."""
        found = []
        for plan in self._plans.values():
            if plan.due_s is None or plan.due_s > now.boot_s:
                continue
            token, *reserved = plan.start.reserved
            plan.start = msgspec.structs.replace(
                plan.start,
                token=token,
                incarnation=plan.start.incarnation + 1,
                reserved=reserved,
            )
            plan.due_s = None
            plan.spent.take(Budget.of(BackgroundWorker.from_wire(plan.start.spec)), now.boot_s)
            found.append((plan.start, plan.why))
        return found

    def _of(self, slot: int, token: int) -> _Plan | None:
        plan = self._plans.get(slot)
        return plan if plan is not None and plan.start.token == token else None

    def _put_off(
        self, plan: _Plan, spec: BackgroundWorker, delay_s: float, why: str, now: Instant
    ) -> None:
        room_s = plan.spent.room_s(Budget.of(spec), now.boot_s) - now.boot_s
        plan.delay_s = max(delay_s, room_s)
        plan.due_s, plan.why = now.boot_s + plan.delay_s, why

    def _draw(self) -> float:
        return int.from_bytes(self._entropy(2)) / 65536


def start_of(order: StartWorker) -> Start:
    """The START that led to this order, for an agent that was not there. Raises ValueError."""
    structs: list[dict[str, Any]] = [
        {**each, "crash_domain": order.spec.get("crash_domain", "default")}
        for each in order.structs
    ]
    try:
        BackgroundWorker.from_wire(order.spec)  # this version may have other rules
        return Start(
            registry=order.registry,
            slot=order.slot,
            generation=order.generation,
            incarnation=order.incarnation,
            token=order.token,
            revision=order.revision,
            spec=order.spec,
            warden=KEPT,
            structs=msgspec.convert(structs, list[StructRequest]),
            reserved=order.reserved[: limits.reserved_tokens_max],
            source=order.source,
            group=order.group,
        )
    except (msgspec.ValidationError, InvalidField) as error:
        raise ValueError(str(error)) from None
