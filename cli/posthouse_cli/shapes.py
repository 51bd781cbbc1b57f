"""How results look: the JSON keys of `--json` and the words of tables and event lines.

Owns: both spellings of each record. Must not know: where they are printed (render). Invariant:
JSON keys are only ever added, and every key is present in every object (null where unknown).
"""

import time
from dataclasses import fields
from typing import Any

import msgspec

from posthouse.bulk import Plan, PlannedChange
from posthouse.messages import HostVerdict
from posthouse.records import (
    Event,
    ExitFacts,
    HandleRef,
    HostInfo,
    Status,
    UnclaimedWorker,
    WorkerInfo,
)
from posthouse.states import EventKind, StopReason, WorkerState
from posthouse_cli.durations import shown
from posthouse_cli.load import HostLoad

__all__ = [
    "EVENT_HEADER",
    "EVENT_KEYS",
    "EVENT_WIDTHS",
    "HOST_HEADER",
    "HOST_KEYS",
    "PLAN_HEADER",
    "PLAN_KEYS",
    "STATUS_KEYS",
    "UNCLAIMED_HEADER",
    "UNCLAIMED_KEYS",
    "WORKER_HEADER",
    "WORKER_KEYS",
    "change_cells",
    "event_cells",
    "event_json",
    "exit_words",
    "handle_short",
    "handle_text",
    "host_cells",
    "host_json",
    "keys_text",
    "plan_json",
    "size",
    "state_word",
    "status_json",
    "unclaimed_cells",
    "unclaimed_json",
    "up_for",
    "verdict_json",
    "verdict_text",
    "worker_cells",
    "worker_json",
]


_STOPPED = {
    StopReason.TERMINATE: "terminated",
    StopReason.HOLD: "held",
    StopReason.SHUTDOWN: "shut down",
    StopReason.RESTART: "restarted",
    StopReason.APPLY: "replaced",
    StopReason.DRAIN: "drained",
    StopReason.LEASE_END: "stopped at its lease's end",
    StopReason.DOMAIN_RESET: "reset with its crash domain",
    StopReason.UNKNOWN: "stopped as unknown",
}
_CAUSE_SHOWN = 120  # characters of an error in a line of events
_ASKED = (
    EventKind.REGISTERED,
    EventKind.REVISED,
    EventKind.STOP_REQUESTED,
    EventKind.RESTART_REQUESTED,
    EventKind.HELD,
    EventKind.RELEASED,
)


def _plain(value: Any) -> Any:
    """A record with all its fields, also those that equal their defaults."""
    if isinstance(value, HandleRef):
        return str(value.id)
    if isinstance(value, msgspec.Struct):
        return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, bytes):
        return {"$bytes": value.hex()}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def event_json(event: Event) -> dict[str, Any]:
    """An event of the log."""
    values: dict[str, Any] = _plain(event)
    registry = values.pop("registry")
    slot, generation = values.pop("slot"), values.pop("generation")
    handle = None if slot is None else f"{registry}:{slot}.{generation}"
    return {"cursor": str(event.cursor), "handle": handle, **values}


def status_json(status: Status) -> dict[str, Any]:
    """What a handle sees."""
    return {"cursor": str(status.cursor), **_plain(status)}


def worker_json(info: WorkerInfo) -> dict[str, Any]:
    """A registration and its status, in one flat object."""
    values: dict[str, Any] = _plain(info)
    return {**status_json(info.status), **{k: v for k, v in values.items() if k != "status"}}


def host_json(host: HostInfo, load: HostLoad | None) -> dict[str, Any]:
    """A host; what it uses is null where it cannot be asked."""
    values: dict[str, Any] = _plain(host)
    use = None if load is None else load.use
    values["cpu_percent"] = None if load is None else load.cpu_percent
    return values | {key: getattr(use, key, None) for key in _USE_KEYS}


def plan_json(plan: Plan) -> dict[str, Any]:
    """What an apply did or would do."""
    changes = [
        {
            "name": change.name,
            "action": change.action,
            "handle": None if change.handle is None else str(change.handle),
            "fields": list(change.fields),
        }
        for change in plan.changes
    ]
    return {name: getattr(plan, name) for name in PLAN_KEYS} | {"changes": changes}


def handle_text(handle: HandleRef | None) -> str:
    """The whole handle."""
    return str(handle.id) if handle else ""


def handle_short(handle: HandleRef | None) -> str:
    """slot.generation."""
    return handle.id.short if handle else ""


def state_word(state: WorkerState) -> str:
    """As people write it: not-yet-started."""
    return str(state).replace("_", "-")


def exit_words(exit: ExitFacts | None) -> str:  # noqa: A002 - the word of the contract
    """How an incarnation ended."""
    if exit is None:
        return ""
    if exit.stop is None:
        return exit.describe()
    by = f" by {exit.by}" if exit.by else ""
    return f"{_STOPPED[exit.stop]}{by}: {exit.describe()}"


def up_for(status: Status) -> str:
    """How long it has been running."""
    if status.state is not WorkerState.STARTED or status.started_unix_s is None:
        return ""
    return shown(max(0.0, time.time() - status.started_unix_s))


WORKER_HEADER = ("NAME", "STATE", "HOST", "PID", "UP", "STARTS", "LAST EXIT")


def worker_cells(info: WorkerInfo) -> tuple[str, ...]:
    """A line of `posthouse ps`."""
    status = info.status
    running = status.state is WorkerState.STARTED
    state = state_word(status.state)
    return (
        status.name,
        state if status.reachable or not running else f"{state}, unreachable",
        status.host or str(info.spec.get("host") or ""),
        str(status.pid) if running and status.pid else "",
        up_for(status),
        str(info.starts),
        exit_words(status.last_exit) or ("" if running else status.reason),
    )


_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_USE_KEYS = ("cpus", "load", "memory_bytes", "available_bytes")
HOST_HEADER = ("HOST", "STATE", "WORKERS", "SLOTS", "CPU%", "LOAD", "MEMORY", "LABELS", "VERSION")


UNCLAIMED_HEADER = ("TOKEN", "NAME", "HOST", "PID", "UP", "MAIN")


def unclaimed_json(process: UnclaimedWorker) -> dict[str, Any]:
    """A process that the registry does not know."""
    values: dict[str, Any] = _plain(process)
    return values


def unclaimed_cells(process: UnclaimedWorker) -> tuple[str, ...]:
    """A line of `posthouse unclaimed`."""
    up = shown(max(0.0, time.time() - process.started_unix_s))
    name = process.name or "-"
    return (str(process.token), name, process.host, str(process.pid), up, process.main)


def host_cells(host: HostInfo, load: HostLoad | None) -> tuple[str, ...]:
    """A line of `posthouse hosts`."""
    state = "reachable" if host.reachable else "unreachable"
    if not host.reachable and host.last_heard_s is not None:
        state += f", heard {shown(host.last_heard_s)} ago"
    if host.draining:
        state += ", draining"
    if host.unclaimed:
        state += f", {host.unclaimed} unclaimed"
    if host.stuck:
        state += f", {host.stuck} that do not die"
    labels = ",".join(host.labels)
    slots = str(host.slots)
    return (host.name, state, str(host.workers), slots, *_load_cells(load), labels, host.version)


def _load_cells(load: HostLoad | None) -> tuple[str, str, str]:
    if load is None:
        return ("", "", "")
    use = load.use
    percent = "" if load.cpu_percent is None else f"{load.cpu_percent:.0f}"
    memory = f"{size(use.memory_bytes - use.available_bytes)} of {size(use.memory_bytes)}"
    return (percent, f"{use.load:.2f} of {use.cpus}", memory)


def size(count: float) -> str:
    """Bytes for people.

    >>> size(1536)
    '1.5KiB'
    """
    for unit in _UNITS[:-1]:
        if count < 1024:
            return f"{count:.1f}{unit}" if unit != "B" else f"{count:.0f}B"
        count /= 1024
    return f"{count:.1f}{_UNITS[-1]}"


def verdict_json(verdict: HostVerdict) -> dict[str, Any]:
    """Whether one host could run a worker."""
    values: dict[str, Any] = _plain(verdict)
    return values


def verdict_text(verdict: HostVerdict) -> str:
    """The same as a line."""
    return f"{verdict.host}: {verdict.reason or 'could run it'}"


PLAN_HEADER = ("ACTION", "NAME", "WHAT DIFFERS")


def change_cells(change: PlannedChange) -> tuple[str, ...]:
    """A line of `posthouse apply`."""
    return (change.action, change.name, ", ".join(change.fields))


EVENT_HEADER = ("TIME", "NAME", "EVENT", "HOST", "PID", "WHAT")
EVENT_WIDTHS = (8, 6, 14, 2, 7)


def event_cells(event: Event, *, full_time: bool) -> tuple[str, ...]:
    """A line of `posthouse events`: when, who, what, where, which process, and why."""
    when = time.localtime(event.at_unix_s)
    if full_time:
        at = time.strftime("%Y-%m-%dT%H:%M:%S%z", when)
    else:
        at = time.strftime("%H:%M:%S", when)
    pid = str(event.pid) if event.pid else ""
    return (at, event.name, str(event.kind), event.host, pid, _event_words(event))


def _event_words(event: Event) -> str:
    """Why, and what follows. The master says most of it itself in `reason`."""
    words = [event.reason] if event.reason else []
    if not words and event.exit:
        words.append(event.exit.describe())
    if event.exit and event.exit.traceback:
        words.append(_last_line(event.exit.traceback))
    if event.restart_in_s is not None and "restarts" not in event.reason:
        words.append(f"restarts in {shown(event.restart_in_s)}")
    asked = event.kind in _ASKED
    if asked and event.by and event.by not in event.reason:
        words.append(f"by {event.by}")
    return "; ".join(words)


def _last_line(text: str) -> str:
    """What a traceback comes to, as "ModuleNotFoundError: No module named 'x'"."""
    line = text.strip().rpartition("\n")[2].strip()
    return line if len(line) <= _CAUSE_SHOWN else f"{line[:_CAUSE_SHOWN]}..."


_IN_HANDLE = ("registry", "slot", "generation")
EVENT_KEYS = (
    "cursor",
    "handle",
    *(name for name in Event.__struct_fields__ if name not in _IN_HANDLE),
)
STATUS_KEYS = ("cursor", *Status.__struct_fields__)
WORKER_KEYS = (*STATUS_KEYS, *(n for n in WorkerInfo.__struct_fields__ if n != "status"))
HOST_KEYS = (*HostInfo.__struct_fields__, "cpu_percent", *_USE_KEYS)
UNCLAIMED_KEYS = UnclaimedWorker.__struct_fields__
PLAN_KEYS = tuple(field.name for field in fields(Plan))


def keys_text(keys: tuple[str, ...]) -> str:
    """The sentence of a verb's help that names the keys of its JSON."""
    return f"JSON keys: {', '.join(keys)}."
