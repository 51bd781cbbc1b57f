"""CORE: what this host lets a master run: modules, programs, users, runtimes, slots.

Owns: the verdict over a START, by the host's own settings. Must not know: sessions, wardens.
Invariant: the master names an entry and can never add one: everything that widens what may run
comes from AgentSettings, and each refusal says which of them would have to change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from posthouse import limits
from posthouse.errors import ConfigError, InvalidField
from posthouse.messages import Start
from posthouse.settings import AgentSettings, RuntimeSettings
from posthouse.spec import BackgroundWorker
from posthouse.states import DATABASE_CONNECTION
from posthouse_agent.orders import StartWorker

__all__ = [
    "Admitted",
    "Refusal",
    "admit",
    "check_settings",
    "module_allowed",
    "offer",
]

_REASON_CHARS = 200  # of what this host cannot give


@dataclass(frozen=True, slots=True)
class Admitted:
    order: StartWorker


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a START leads to no process; fields of START_FAILED."""

    code: str
    reason: str
    retry: bool = False


def admit(start: Start, settings: AgentSettings, user: str, occupied: int) -> Admitted | Refusal:
    """The order for the warden, or the refusal. `occupied`: processes that run or are starting."""
    if occupied >= settings.max_worker_processes:
        return Refusal(
            "no_free_slot",
            f"host {settings.host} has max_worker_processes = {settings.max_worker_processes} "
            "and as many processes",
            retry=True,
        )
    try:
        spec = BackgroundWorker.from_wire(start.spec)
    except InvalidField as error:
        return Refusal("invalid_field", str(error))
    refusal = _entry_refused(spec, settings) or _user_refused(spec, settings, user)
    if refusal is not None:
        return refusal
    runtimes = {runtime.name: runtime for runtime in settings.runtimes}
    runtime = runtimes.get(spec.runtime)
    if runtime is None:
        known = ", ".join(sorted(runtimes)) or "none"
        return Refusal(
            "unknown_runtime",
            f"host {settings.host} has no runtime {spec.runtime!r} (it has: {known}): "
            f"add [runtime.{spec.runtime}] to its agent configuration",
        )
    return Admitted(_order(start, settings, runtime))


def module_allowed(patterns: Sequence[str], module: str) -> bool:
    """Whether the allow-list names this module. "acme.*" is everything below acme, not acme.

    >>> module_allowed(["acme.jobs", "shop.*"], "shop.tasks.mail")
    True
    >>> module_allowed(["acme.jobs", "shop.*"], "acme")
    False
    """
    for pattern in patterns:
        if pattern in ("*", module):
            return True
        if pattern.endswith(".*") and module.startswith(pattern[:-1]):
            return True
    return False


def offer(
    settings: AgentSettings, user: str, *, run_as: bool, fence: bool = True, no_tree: str = ""
) -> dict[str, Any]:
    """The same as fields of HELLO, so that the master need not ask in vain. `run_as`: whether the
    wardens can run workers as other users; `fence`: whether the fenced one ends with its lease;
    `no_tree`: why there can be none that ends all its workers have started, "" if there can."""
    others = settings.users if run_as else ()
    return {
        "labels": list(settings.labels),
        "runtimes": [runtime.name for runtime in settings.runtimes],
        "modules": list(settings.modules),
        "allow_exec": settings.allow_exec,
        "users": sorted({user, *others} - {""}),
        "fences": ["process"] * fence + ["tree"] * (not no_tree),
        "no_tree": no_tree[:_REASON_CHARS],
        "slots": settings.max_worker_processes,
    }


def check_settings(settings: AgentSettings) -> None:
    """Raises ConfigError for what would not fit into a HELLO or an order."""
    bounds: tuple[tuple[str, Sequence[Any], int], ...] = (
        ("labels", settings.labels, limits.labels_max),
        ("modules", settings.modules, limits.allowed_modules_max),
        ("users", settings.users, limits.allowed_users_max),
        ("runtimes", settings.runtimes, limits.runtimes_max),
    )
    for name, values, items_max in bounds:
        if len(values) > items_max:
            raise ConfigError(f"{name} has {len(values)} entries: at most {items_max} are possible")
    host = settings.host
    shown = host.isascii() and host.isprintable() and not set("/\\: ") & set(host)
    if not shown or not 0 < len(host) <= limits.label_bytes_max:
        raise ConfigError(
            f"host is {host!r}: must be 1 to {limits.label_bytes_max} printable ASCII characters "
            "without / \\ : and spaces"
        )
    for runtime in settings.runtimes:
        size = sum(len(part.encode()) for part in runtime.path)
        size += sum(len(name) + len(value.encode()) for name, value in runtime.env.items())
        size += sum(len(name) for name in runtime.preload)
        if size > limits.runtime_bytes_max:
            raise ConfigError(
                f"runtime.{runtime.name}: path, env and preload are {size} bytes: at most "
                f"{limits.runtime_bytes_max} are possible"
            )


def _entry_refused(spec: BackgroundWorker, settings: AgentSettings) -> Refusal | None:
    entry = spec.entry_point
    if entry == "posthouse.exec":
        if settings.allow_exec:
            return None
        return Refusal(
            "exec_not_allowed",
            f"host {settings.host} does not run programs (posthouse.exec): "
            "set allow_exec = true in its agent configuration",
        )
    module = entry.partition(":")[0]
    if module_allowed(settings.modules, module):
        return None
    return Refusal(
        "module_not_allowed",
        f"host {settings.host} does not run module {module!r}: "
        "add it to modules in its agent configuration",
    )


def _user_refused(spec: BackgroundWorker, settings: AgentSettings, user: str) -> Refusal | None:
    if spec.run_as is None or spec.run_as == user or spec.run_as in settings.users:
        return None
    return Refusal(
        "user_not_allowed",
        f"host {settings.host} does not run workers as {spec.run_as!r}: "
        "add it to users in its agent configuration",
    )


def _order(start: Start, settings: AgentSettings, runtime: RuntimeSettings) -> StartWorker:
    return StartWorker(
        token=start.token,
        registry=start.registry,
        slot=start.slot,
        generation=start.generation,
        incarnation=start.incarnation,
        revision=start.revision,
        host=settings.host,
        spec=start.spec,
        runtime=runtime.name,
        python=runtime.python or "",
        path=list(runtime.path),
        env=dict(runtime.env),
        preload=list(runtime.preload),
        databases=_databases(start, settings),
        structs=[{"name": s.name, "size": s.size, "library": s.library} for s in start.structs],
        source=start.source,
        group=start.group,
        reserved=list(start.reserved),
    )


def _databases(start: Start, settings: AgentSettings) -> dict[str, str]:
    """What this worker may connect to; of one without the flag, nothing."""
    if not int(start.spec.get("flags", 0)) & DATABASE_CONNECTION:
        return {}
    found = {database.name: database.url for database in settings.databases}
    main = [database.name for database in settings.databases if database.maintenance]
    if not main and len(found) == 1:
        main = list(found)
    return found | ({"": main[0]} if main else {})
