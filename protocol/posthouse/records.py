"""What posthouse tells about workers and hosts: events, exit facts, status. Typed and frozen.

Owns: the public result records, which are wire records too. Must not know: how they travel.
Invariant: a field that is absent on the wire has its default; fields are only ever added.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from posthouse.ids import Cursor, HandleId
from posthouse.signals import signal_name
from posthouse.states import EventKind, Phase, StopReason, WorkerState
from posthouse.values import SECRETS

__all__ = [
    "ClusterPhase",
    "Event",
    "ExitFacts",
    "HandleRef",
    "HostInfo",
    "HostUsage",
    "HostUse",
    "Registrant",
    "Status",
    "WorkerInfo",
    "WorkerUse",
]

Int = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Pid = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Name = Annotated[str, Meta(min_length=1, max_length=96)]
Word = Annotated[str, Meta(max_length=128)]
Text = Annotated[str, Meta(max_length=4096)]
Finite = Annotated[float, Meta(ge=-1e15, le=1e15)]


class Record(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, repr_omit_defaults=True
):
    """Base of the wire records: keyword only, immutable, defaults left out on the wire and where
    they are shown."""


class HandleRef(Record, frozen=True, kw_only=True):
    """A handle on the wire."""

    registry: Annotated[str, Meta(min_length=32, max_length=32)]
    slot: Int
    generation: Int

    @property
    def id(self) -> HandleId:
        return HandleId(self.registry, self.slot, self.generation)


class Registrant(Record, frozen=True, kw_only=True):
    """A process that wants SIGUSR1 at the starts and ends of what it registers, by the word of its
    host's agent. `mark` is the 16 bytes of BLAKE2b, with the `notify_key` of the agent's HELLO as
    its key, over host, boot_id, pid and pid_start in decimal, joined by newlines.
    """

    host: Word
    boot_id: Word
    pid: Pid
    pid_start: Int
    mark: Annotated[bytes, Meta(min_length=16, max_length=16)]


class ExitFacts(Record, frozen=True, kw_only=True):
    """How one incarnation ended, as the warden saw it before it reaped the process.

    Exactly one of `code` and `signal` is given, unless nobody saw the end: then `cause` says why
    ("warden_died", "host_rebooted", "host_lost") and both are absent. `cause` is "exited",
    "signaled", "daemonised" or "watchdog" (it was ended because it gave no heartbeat) otherwise.
    Who sent KILL ("posthouse", "kernel" for want of memory, "unknown") is in `sender`; other
    signals leave it empty.

    `lock_held`: it ended with a lock of shared memory held, which counts as a crash. With
    `crash_domain` it began, or was ended by, a reset of that domain: `domain_cause` says whose end
    that was, `domain_epoch` is the epoch that begins, `domain_resets` how many resets there were
    within a minute.

    The master adds for what it was asked to: `stop` is the request that ended the process, and `by`
    who made it; `by` without `stop` is who had posthouse send the very signal that killed it.
    """

    cause: Annotated[str, Meta(max_length=32)] = "exited"
    code: Annotated[int, Meta(ge=0, le=255)] | None = None
    signal: Annotated[int, Meta(ge=1, le=64)] | None = None
    core: bool = False
    oom: bool = False
    sender: Annotated[str, Meta(max_length=32)] = ""
    pid: Pid | None = None
    started_unix_s: Finite | None = None
    ended_unix_s: Finite | None = None
    runtime_s: Finite | None = None
    user_s: Finite | None = None
    system_s: Finite | None = None
    max_rss_bytes: Int | None = None
    lock_held: bool = False
    crash_domain: Annotated[str, Meta(max_length=64)] = ""
    domain_epoch: Int | None = None
    domain_cause: Annotated[str, Meta(max_length=512)] = ""
    domain_resets: Int = 0
    output_tail: Annotated[str, Meta(max_length=8192)] = ""
    traceback: Annotated[str, Meta(max_length=32768)] = ""
    stop: StopReason | None = None
    by: Word = ""

    def describe(self) -> str:
        """One phrase for people.

        >>> ExitFacts(cause="signaled", signal=9).describe()
        'killed by SIGKILL'
        >>> ExitFacts(cause="signaled", signal=9, oom=True, sender="kernel").describe()
        'ran out of memory, killed by SIGKILL'
        >>> ExitFacts(cause="signaled", signal=9, by="client:ann").describe()
        'killed by SIGKILL, sent by client:ann'
        """
        if self.signal is not None:
            how = "ran out of memory, " if self.oom else ""
            core = " (core dumped)" if self.core else ""
            who = ", sender unknown" if self.sender == "unknown" else ""
            if self.by and self.stop is None:
                who = f", sent by {self.by}"
            return f"{how}killed by {signal_name(self.signal)}{core}{who}"
        if self.code is not None:
            return f"exited with code {self.code}"
        return {
            "warden_died": "died with its warden",
            "host_rebooted": "ended with its host's reboot",
            "host_lost": "ended with its host's lease",
        }.get(self.cause, self.cause)


class Event(Record, frozen=True, kw_only=True):
    """One row of the life-cycle log. (timeline, sequence) is its cursor.

    `reason` says why in words, `rule` names the rule of the contract that decided, `by` the
    principal on whose request it happened. Fields that do not concern the kind are absent.
    """

    timeline: Int
    sequence: Int
    kind: EventKind
    at_unix_s: Finite
    registry: Word = ""
    slot: Int | None = None
    generation: Int | None = None
    name: Word = ""
    host: Word = ""
    revision: Int | None = None
    incarnation: Int | None = None
    token: Int | None = None
    pid: Pid | None = None
    exit: ExitFacts | None = None
    stop: StopReason | None = None
    restart_at_unix_s: Finite | None = None
    restart_in_s: Finite | None = None
    final: bool = False
    reason: Text = ""
    rule: Word = ""
    by: Word = ""
    phase: Phase | None = None
    trimmed_to: Int | None = None

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.timeline, self.sequence)

    @property
    def handle_id(self) -> HandleId | None:
        if self.slot is None or self.generation is None:
            return None
        return HandleId(self.registry, self.slot, self.generation)


class Status(Record, frozen=True, kw_only=True):
    """What a handle sees. `state` is PostgreSQL's; the rest removes its ambiguities (H3-H5).

    NOT_YET_STARTED: `reason` says what it waits for. STARTED: `host`, `pid`, `incarnation`, and
    whether the host is reachable now. STOPPED: `reason`, `final` (it will never run again), else
    `restart_in_s`. `running_revision` is that of its newest process; where `revision` is higher,
    that one has yet to be replaced. `cursor` is the place in the log at which this was true.
    """

    state: WorkerState
    handle: HandleRef | None = None
    name: Word = ""
    host: Word = ""
    pid: Pid | None = None
    incarnation: Int = 0
    token: Int | None = None
    revision: Int = 1
    running_revision: Int = 0
    runtime: Word = ""
    code: Word = ""
    ready: bool = False
    reason: Text = ""
    final: bool = False
    flapping: bool = False
    restart_in_s: Finite | None = None
    restart_at_unix_s: Finite | None = None
    started_unix_s: Finite | None = None
    stopping: StopReason | None = None
    reachable: bool = True
    last_heard_s: Finite | None = None
    dead_for_sure_in_s: Finite | None = None
    last_exit: ExitFacts | None = None
    timeline: Int = 0
    sequence: Int = 0

    @property
    def handle_id(self) -> HandleId | None:
        return self.handle.id if self.handle else None

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.timeline, self.sequence)


class ClusterPhase(Record, frozen=True, kw_only=True):
    """Where the cluster is, and so which start times are reached. `reason` says why, where the
    phase is another server's or the cluster is being shut down."""

    phase: Phase
    reason: Text = ""


class WorkerInfo(Record, frozen=True, kw_only=True):
    """A line of `posthouse ps`: a registration and its status."""

    status: Status
    spec: dict[str, Any]
    registered_unix_s: Finite = 0.0
    by: Word = ""
    source: Text = ""
    group: Word = ""
    retired: bool = False
    starts: Int = 0
    failures: Int = 0

    def __repr__(self) -> str:
        shown = [(key, "..." if key in SECRETS else repr(self.spec[key])) for key in self.spec]
        spec = ", ".join(f"{key!r}: {value}" for key, value in shown)
        more = f", by={self.by!r}" + (", retired=True" if self.retired else "")
        return f"WorkerInfo(status={self.status!r}, spec={{{spec}}}{more})"


class WorkerUse(Record, frozen=True, kw_only=True):
    """What one worker's process uses now. `cpu_s` is the processor time since its start;
    `pss_bytes` its share of memory, absent where the host may not look."""

    slot: Int
    generation: Int
    token: Int
    pid: Pid
    cpu_s: Finite = 0.0
    rss_bytes: Int = 0
    pss_bytes: Int | None = None
    descriptors: Int | None = None
    threads: Int = 0


class HostUse(Record, frozen=True, kw_only=True):
    """What a host has and what of it is in use. `load` is the mean of runnable processes over
    one minute; `busy_s` the processor time spent since the host was started."""

    cpus: Int = 0
    busy_s: Finite = 0.0
    load: Finite = 0.0
    memory_bytes: Int = 0
    available_bytes: Int = 0


class HostUsage(msgspec.Struct, frozen=True):
    """What a host and its workers use, as `Cluster.usage` tells it."""

    host: str
    use: HostUse
    workers: tuple[WorkerUse, ...]


class UnclaimedWorker(Record, frozen=True, kw_only=True):
    """A process that runs and that the registry does not know since it was restored. `token` names
    it for `claim`; `main` is what it runs, once its host has told."""

    token: Int
    host: Name
    name: Word
    handle: HandleRef
    incarnation: Int
    pid: Pid
    started_unix_s: Finite
    main: Word = ""


class HostInfo(Record, frozen=True, kw_only=True):
    """A line of `posthouse hosts`. `stuck` counts the workers that KILL does not end, `unclaimed`
    the processes there that the registry does not know since it was restored."""

    name: Name
    reachable: bool
    boot_id: Word = ""
    machine_id: Word = ""
    last_heard_s: Finite | None = None
    labels: Annotated[list[Word], Meta(max_length=32)] = []
    runtimes: Annotated[list[Word], Meta(max_length=64)] = []
    fences: Annotated[list[Word], Meta(max_length=4)] = []
    slots: Int = 0
    workers: Int = 0
    stuck: Int = 0
    draining: bool = False
    version: Word = ""
    unclaimed: Int = 0
