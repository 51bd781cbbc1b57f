"""What each public call asks a master, and what it makes of the answers: the same for both clients.

Owns: requests, pages, the ids of repeated requests. Must not know: threads, event loops, sockets,
handles' classes. Invariant: each call that changes something carries one request id, its caller's
if one is given; all that a call asks is asked within one deadline.
"""

import hashlib
import signal as platform
from collections.abc import Iterable
from dataclasses import dataclass

from posthouse import limits
from posthouse.conversation import Connection, Engine, new_request_id
from posthouse.errors import InternalError, NoSuchWorker, PosthouseError, UsageError
from posthouse.ids import HandleId
from posthouse.messages import (
    Claim,
    Done,
    Drain,
    Drained,
    Explain,
    Explained,
    ForgetHost,
    GetStacks,
    GetStatus,
    GetUsage,
    GroupRegistered,
    Hold,
    HostsPage,
    HostVerdict,
    LatchWorker,
    ListHosts,
    ListUnclaimed,
    ListWorkers,
    ReadOutput,
    Register,
    Registered,
    RegisterGroup,
    Release,
    ReloadRuntimes,
    Restart,
    Shutdown,
    SignalWorker,
    Stacks,
    StatusReply,
    Terminate,
    UnclaimedPage,
    Usage,
    WorkersPage,
)
from posthouse.messages import Output as OutputReply
from posthouse.notified import vouched
from posthouse.records import (
    ClusterPhase,
    HostInfo,
    HostUsage,
    Status,
    UnclaimedWorker,
    WorkerInfo,
    WorkerUse,
)
from posthouse.signals import signal_number
from posthouse.spec import BackgroundWorker
from posthouse.states import Every, ShutdownMode
from posthouse.switchboard import Deadline
from posthouse.worker_tables import read_replicas

__all__ = ["Explanation", "Output"]

Talk = Connection[Engine]
Timeout = float | Deadline | None
Change = type[Terminate | Hold | Release | Restart | LatchWorker]
_LAST_TOKEN = 2**63 - 1  # no worker has a higher one


@dataclass(frozen=True, slots=True)
class Output:
    """A page of a worker's output. `offset` is the place of its first byte, `size` the end of what
    there is now, `lost` how many bytes before `offset` are no longer kept."""

    host: str
    offset: int
    data: bytes
    size: int
    lost: int

    @property
    def text(self) -> str:
        return self.data.decode(errors="replace")

    @property
    def next_offset(self) -> int:
        return self.offset + len(self.data)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a worker is where it is, or nowhere; and for each host whether it could run it."""

    reason: str
    verdicts: tuple[HostVerdict, ...]


def reference(ref: str | HandleId) -> str:
    """A name or a handle's text. Raises UsageError."""
    text = str(ref)
    if not 0 < len(text) <= 160:
        raise UsageError(f"{text[:40]!r}: a worker's name or handle has 1 to 160 characters")
    return text


# --- making registrations ---


async def register(
    talk: Talk, worker: BackgroundWorker, timeout: Timeout, request_id: bytes | None
) -> tuple[HandleId, str]:
    spec = worker.check().to_wire()
    registrant = vouched(talk.engine.board.settings) if worker.notify else None
    request = Register(request=new_request_id(request_id), spec=spec, registrant=registrant)
    answer = await talk.ask(request, Registered, timeout)
    return answer.handle.id, answer.name


async def register_group(
    talk: Talk,
    worker: BackgroundWorker,
    replicas: int | str,
    timeout: Timeout,
    request_id: bytes | None,
) -> tuple[str, list[tuple[HandleId, str]]]:
    given = read_replicas(replicas)
    if given is None:
        raise UsageError('replicas is None: must be a number or "each-host"')
    request = RegisterGroup(
        request=new_request_id(request_id),
        spec=worker.check().to_wire(),
        replicas=Every(given) if isinstance(given, str) else given,
    )
    deadline = talk.deadline(timeout)
    answer = await talk.ask(request, GroupRegistered, deadline)
    try:
        return answer.name, await members(talk, answer.name, deadline)
    except PosthouseError as error:
        error.detail["request_id"] = request.request  # it is done; asking again tells the members
        raise


async def members(talk: Talk, name: str, timeout: Timeout) -> list[tuple[HandleId, str]]:
    """Ids and names of the live members of a group."""
    found = await workers(talk, retired=False, group=name, timeout=timeout)
    return [
        (info.status.handle.id, info.status.name)
        for info in found
        if info.status.handle is not None
    ]


# --- looking ---


async def status(talk: Talk, ref: str | HandleId, timeout: Timeout) -> Status:
    request = GetStatus(request=new_request_id(), ref=reference(ref))
    return (await talk.ask(request, StatusReply, timeout)).status


async def find(talk: Talk, ref: str | HandleId, timeout: Timeout) -> tuple[HandleId, str]:
    found = await status(talk, ref, timeout)
    if found.handle is None:
        raise NoSuchWorker(f"no worker {str(ref)!r}", ref=str(ref))
    return found.handle.id, found.name


async def workers(talk: Talk, *, retired: bool, group: str, timeout: Timeout) -> list[WorkerInfo]:
    deadline = talk.deadline(timeout)
    found: list[WorkerInfo] = []
    slot, generation, more = -1, 0, True
    while more:
        request = ListWorkers(
            request=new_request_id(), slot=slot, generation=generation, retired=retired, group=group
        )
        page = await talk.ask(request, WorkersPage, deadline)
        found += page.workers
        more = page.more and bool(page.workers)
        if more:
            last = page.workers[-1].status.handle
            if last is None:
                raise InternalError("the master listed a worker without a handle")
            slot, generation = last.slot, last.generation
    return found


async def hosts(talk: Talk, timeout: Timeout) -> list[HostInfo]:
    deadline = talk.deadline(timeout)
    found: list[HostInfo] = []
    after, more = "", True
    while more:
        request = ListHosts(request=new_request_id(), after=after)
        page = await talk.ask(request, HostsPage, deadline)
        found += page.hosts
        more = page.more and bool(page.hosts)
        after = page.hosts[-1].name if page.hosts else after
    return found


async def unclaimed(talk: Talk, timeout: Timeout) -> list[UnclaimedWorker]:
    deadline = talk.deadline(timeout)
    found: list[UnclaimedWorker] = []
    after, more = 0, True
    while more:
        request = ListUnclaimed(request=new_request_id(), after=after)
        page = await talk.ask(request, UnclaimedPage, deadline)
        found += page.processes
        more = page.more and bool(page.processes)
        after = page.processes[-1].token if page.processes else after
    return found


async def claim(
    talk: Talk, token: int, stop: bool, timeout: Timeout, request_id: bytes | None
) -> None:
    request = Claim(request=new_request_id(request_id), token=token, stop=stop)
    await talk.ask(request, Done, timeout)


async def usage(talk: Talk, host: str, workers: bool, timeout: Timeout) -> HostUsage:
    deadline = talk.deadline(timeout)
    found: list[WorkerUse] = []
    after, more = 0 if workers else _LAST_TOKEN, True
    while more:
        request = GetUsage(request=new_request_id(), host=host, after=after)
        page = await talk.ask(request, Usage, deadline)
        found += page.workers
        more = page.more and bool(page.workers)
        after = page.workers[-1].token if page.workers else after
    return HostUsage(page.host, page.use, tuple(found))


async def _first_hosts(talk: Talk, timeout: Timeout) -> HostsPage:
    return await talk.ask(ListHosts(request=new_request_id(), limit=1), HostsPage, timeout)


async def phase(talk: Talk, timeout: Timeout) -> ClusterPhase:
    page = await _first_hosts(talk, timeout)
    return ClusterPhase(phase=page.phase, reason=page.phase_detail)


async def reports(talk: Talk, timeout: Timeout) -> list[str]:
    return (await _first_hosts(talk, timeout)).reports


async def explain(talk: Talk, ref: str | HandleId, timeout: Timeout) -> Explanation:
    request = Explain(request=new_request_id(), ref=reference(ref))
    answer = await talk.ask(request, Explained, timeout)
    return Explanation(answer.reason, tuple(answer.verdicts))


async def output(
    talk: Talk, ref: HandleId, offset: int, limit: int, host: str, timeout: Timeout
) -> Output:
    request = ReadOutput(
        request=new_request_id(),
        ref=str(ref),
        offset=max(offset, -1),
        limit=min(max(limit, 0), limits.log_read_bytes_max),
        host=host,
    )
    answer = await talk.ask(request, OutputReply, timeout)
    return Output(answer.host, answer.offset, answer.data, answer.size, answer.lost)


async def stacks(talk: Talk, ref: HandleId, timeout: Timeout) -> str:
    request = GetStacks(request=new_request_id(), ref=str(ref))
    return (await talk.ask(request, Stacks, timeout)).text


# --- changing one, or a group ---


async def change(
    talk: Talk, kind: Change, ref: HandleId, timeout: Timeout, request_id: bytes | None
) -> bool:
    """Ask for what needs no more than a reference. False: there was nothing to do."""
    request = kind(request=new_request_id(request_id), ref=str(ref))
    return (await talk.ask(request, Done, timeout)).changed


async def change_each(
    talk: Talk,
    kind: Change,
    refs: Iterable[HandleId],
    timeout: Timeout,
    request_id: bytes | None,
) -> int:
    """One after another, within one deadline; how many there were to change. Each has an id that
    follows from the caller's, so that the same call again does what is left."""
    deadline = talk.deadline(timeout)
    request = new_request_id(request_id)
    changed = 0
    for ref in refs:
        try:
            changed += await change(talk, kind, ref, deadline, _member_id(request, ref))
        except PosthouseError as error:
            error.detail["request_id"] = request
            raise
    return changed


def _member_id(request_id: bytes, ref: HandleId) -> bytes:
    return hashlib.sha256(request_id + str(ref).encode()).digest()[: limits.request_id_bytes]


async def signal(
    talk: Talk,
    ref: HandleId,
    given: "int | str | platform.Signals",
    timeout: Timeout,
    request_id: bytes | None,
) -> None:
    request = SignalWorker(
        request=new_request_id(request_id), ref=str(ref), signal=signal_number(given)
    )
    await talk.ask(request, Done, timeout)


async def reload(talk: Talk, ref: HandleId, timeout: Timeout, request_id: bytes | None) -> None:
    identity = new_request_id(request_id)
    deadline = talk.deadline(timeout)
    asked = GetStatus(request=new_request_id(), ref=str(ref))
    spec = (await talk.ask(asked, StatusReply, deadline)).spec
    number = spec.get("reload_signal", BackgroundWorker.reload_signal)
    await signal(talk, ref, number, deadline, identity)


# --- hosts and the cluster ---


async def drain(
    talk: Talk,
    host: str,
    *,
    on: bool,
    force: bool = False,
    grace_s: float | None = None,
    timeout: Timeout,
    request_id: bytes | None,
) -> Drained:
    request = Drain(
        request=new_request_id(request_id), host=host, on=on, force=force, grace_s=grace_s
    )
    return await talk.ask(request, Drained, timeout)


async def forget_host(
    talk: Talk, host: str, *, confirm_dead: bool, timeout: Timeout, request_id: bytes | None
) -> str:
    request = ForgetHost(request=new_request_id(request_id), host=host, confirm_dead=confirm_dead)
    return (await talk.ask(request, Done, timeout)).message


async def reload_runtimes(
    talk: Talk, host: str, runtime: str, timeout: Timeout, request_id: bytes | None
) -> None:
    request = ReloadRuntimes(request=new_request_id(request_id), host=host, runtime=runtime)
    await talk.ask(request, Done, timeout)


async def shutdown(
    talk: Talk,
    mode: ShutdownMode | str,
    grace_s: float | None,
    timeout: Timeout,
    request_id: bytes | None,
) -> str:
    if mode not in set(ShutdownMode):
        raise UsageError(f"mode is {mode!r}: must be one of {', '.join(ShutdownMode)}")
    request = Shutdown(request=new_request_id(request_id), mode=ShutdownMode(mode), grace_s=grace_s)
    return (await talk.ask(request, Done, timeout)).message
