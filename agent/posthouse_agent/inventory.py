"""CORE: what a host runs and what has ended there, as records and as bounded pages.

Owns: the translation from the warden's reports to wire records, the size of pages. Must not know:
sessions, when pages are sent. Invariant: every record given to `pages` is in exactly one page, and
no page exceeds limits.page_bytes_max bytes or limits.page_items_max entries.
"""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from posthouse import limits
from posthouse.messages import Exit, Inventory, Running
from posthouse.records import ExitFacts
from posthouse.states import StopReason
from posthouse_agent.orders import Ended, Forked

__all__ = ["exit_of", "facts_of", "onward", "pages", "running_of", "stop_reason"]

_HEAD_BYTES = 128  # field names and numbers of an INVENTORY around its entries
_encoder = msgspec.msgpack.Encoder()


def running_of(kind: str, forked: Forked) -> Running:
    """The wire record of a live worker."""
    return Running(
        registry=forked.registry,
        slot=forked.slot,
        generation=forked.generation,
        incarnation=forked.incarnation,
        token=forked.token,
        revision=forked.revision,
        pid=forked.pid,
        pid_start=forked.pid_start,
        started_unix_s=forked.started_unix_s,
        ready=forked.ready,
        stopping=stop_reason(forked.stopping),
        warden=kind,
        code=forked.code,
        stuck=forked.stuck[: limits.stuck_text_max],
        name=forked.name[: limits.name_bytes_max],
    )


def exit_of(ended: Ended) -> Exit:
    """The wire record of an exit."""
    return Exit(
        registry=ended.registry,
        slot=ended.slot,
        generation=ended.generation,
        incarnation=ended.incarnation,
        token=ended.token,
        facts=facts_of(ended.facts),
        ready=ended.ready,
        stop=stop_reason(ended.stop),
    )


def facts_of(facts: dict[str, Any]) -> ExitFacts:
    """The warden's facts within the bounds of the wire. An exit is never lost over a fact that is
    out of its bounds: such facts are left out one by one."""
    kept = {name: value for name, value in facts.items() if name in ExitFacts.__struct_fields__}
    for name, bytes_max in (
        ("output_tail", limits.exit_tail_bytes_max),
        ("traceback", limits.traceback_bytes_max),
    ):
        if isinstance(kept.get(name), str):
            kept[name] = _last_bytes(kept[name], bytes_max)
    try:
        return msgspec.convert(kept, ExitFacts)
    except (msgspec.ValidationError, ValueError, OverflowError):
        return msgspec.convert({n: v for n, v in kept.items() if _valid(n, v)}, ExitFacts)


def stop_reason(text: str) -> StopReason | None:
    """A warden of another version may know reasons that this one does not: asked for, anyway."""
    if not text:
        return None
    return StopReason(text) if text in set(StopReason) else StopReason.UNKNOWN


def onward(
    exits: Iterable[Exit], running: Iterable[Running], tried: Callable[[Exit], bool]
) -> list[Exit]:
    """The exits, with which of them this host went on from by itself: those that a process with a
    higher token followed, and those after which one was `tried`. The master confirms an end before
    it has the next one started, so whatever follows one of these was not the master's start."""
    ended = list(exits)
    newest: dict[tuple[int, int], int] = {}
    entries: list[Running | Exit] = [*running, *ended]
    for each in entries:
        key = (each.slot, each.generation)
        newest[key] = max(newest.get(key, 0), each.token)
    return [
        msgspec.structs.replace(each, went_on=True)
        if newest[each.slot, each.generation] > each.token or tried(each)
        else each
        for each in ended
    ]


def pages(
    running: Iterable[Running], exits: Iterable[Exit], highest_token: int
) -> list[tuple[Inventory, list[int]]]:
    """Pages in order, each with the tokens of the exits in it; at least one, the last so marked."""
    filled: list[tuple[list[Running], list[Exit]]] = [([], [])]
    room = limits.page_bytes_max - _HEAD_BYTES
    entries: list[Running | Exit] = [*running, *exits]
    for entry in entries:
        size = len(_encoder.encode(entry))
        current = filled[-1]
        count = len(current[0]) + len(current[1])
        if count and (size > room or count >= limits.page_items_max):
            current = ([], [])
            filled.append(current)
            room = limits.page_bytes_max - _HEAD_BYTES
        room -= size
        if isinstance(entry, Running):
            current[0].append(entry)
        else:
            current[1].append(entry)
    last = len(filled) - 1
    return [
        (
            Inventory(
                page=number,
                last=number == last,
                running=live,
                exits=ended,
                highest_token=highest_token,
            ),
            [entry.token for entry in ended],
        )
        for number, (live, ended) in enumerate(filled)
    ]


def _valid(name: str, value: Any) -> bool:
    try:
        msgspec.convert({name: value}, ExitFacts)
    except (msgspec.ValidationError, ValueError, OverflowError):
        return False
    return True


def _last_bytes(text: str, bytes_max: int) -> str:
    data = text.encode(errors="replace")
    return text if len(data) <= bytes_max else data[-bytes_max:].decode(errors="ignore")
