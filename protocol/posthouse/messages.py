"""The message catalogue, version 0: one frozen record a message, one number table.

Owns: what may be said on the wire between master, agents and clients. Must not know: bytes
(codec), sessions (link), sockets. Invariant: a kind number is never reused; the fields of a
message are only ever added, with a default. docs/reference/protocol.md is generated from here.
"""

from typing import Annotated, Any

from msgspec import Meta

from posthouse import limits
from posthouse.records import (
    Event,
    ExitFacts,
    Finite,
    HandleRef,
    HostInfo,
    HostUse,
    Int,
    Name,
    Pid,
    Record,
    Registrant,
    Status,
    Text,
    UnclaimedWorker,
    Word,
    WorkerInfo,
    WorkerUse,
)
from posthouse.states import Every, Phase, ShutdownMode, StopReason

PROTOCOL_MIN = 0
PROTOCOL_MAX = 0

Bytes16 = Annotated[bytes, Meta(min_length=16, max_length=16)]
Hex32 = Annotated[str, Meta(min_length=32, max_length=32)]
Spec = Annotated[dict[str, Any], Meta(max_length=64)]
Ref = Annotated[str, Meta(min_length=1, max_length=160)]
Items = Meta(max_length=limits.page_items_max)
Members = Annotated[int, Meta(ge=0, le=limits.group_members_max)] | Every


class Message(Record, frozen=True, kw_only=True):
    """Base of all messages."""


# --- sessions: unsequenced, both endpoints -----------------------------------------------------


class WardenRef(Record, frozen=True, kw_only=True):
    """One warden of a host: its kind ("fenced", "kept" or "tree") and which process it is."""

    kind: Word
    instance: Hex32
    protocol: Int = 0


class Hello(Message, frozen=True, kw_only=True):
    """Opens a session. Sent once on a fresh socket, with the zero session; answered by WELCOME or
    REFUSED.

    `nonce` comes back in WELCOME: an answer to another HELLO is ignored. `role` is "agent" or
    "client". `host` counts only where no key names the peer. `registry`, `epoch` and `master` are
    the last ones this process knew (empty and 0 if none). An agent also tells who it is
    (`machine_id`, `boot_id`, `agent_instance`), its `wardens`, what it offers, and how much
    inventory follows.
    """

    nonce: Bytes16
    role: Word
    protocol_min: Int = PROTOCOL_MIN
    protocol_max: Int = PROTOCOL_MAX
    version: Word = ""
    registry: Word = ""
    epoch: Int = 0
    master: Word = ""
    host: Word = ""
    machine_id: Word = ""
    boot_id: Word = ""
    agent_instance: Word = ""
    wardens: Annotated[list[WardenRef], Meta(max_length=3)] = []
    labels: Annotated[list[Word], Meta(max_length=limits.labels_max)] = []
    runtimes: Annotated[list[Word], Meta(max_length=64)] = []
    modules: Annotated[list[Text], Meta(max_length=256)] = []
    allow_exec: bool = False
    users: Annotated[list[Word], Meta(max_length=64)] = []
    fences: Annotated[list[Word], Meta(max_length=4)] = []
    no_tree: Text = ""
    slots: Int = 0
    running: Int = 0
    exits: Int = 0
    digest: Annotated[bytes, Meta(max_length=32)] = b""
    notify_key: Annotated[bytes, Meta(max_length=32)] = b""


class Welcome(Message, frozen=True, kw_only=True):
    """The session is open. All later messages carry `session` and `epoch`.

    `principal` is who the master takes the peer for. `lease_s` is 0 where leases have no deadline.
    `renew_s` is the pace of RENEW; after `silence_s` without a GRANT the peer starts a new session.
    """

    nonce: Bytes16
    session: Bytes16
    epoch: Int
    timeline: Int
    registry: Hex32
    protocol: Int
    principal: Word
    master: Word = ""
    version: Word = ""
    lease_s: Finite = 0.0
    renew_s: Finite = limits.renew_s
    silence_s: Finite = limits.silence_s
    spread_s: Finite = 0.0


class Refused(Message, frozen=True, kw_only=True):
    """No session, or no longer: `code` says why; "stale_session" asks for a new HELLO at once.

    Otherwise the peer waits, at least `retry_after_s`, before it says HELLO again.
    """

    code: Word
    message: Text = ""
    hint: Text = ""
    retry_after_s: Finite = 0.0
    nonce: Annotated[bytes, Meta(max_length=16)] = b""


class Renew(Message, frozen=True, kw_only=True):
    """The only heartbeat, sent by the thread that does the work. `stamp`: the sender's own
    CLOCK_BOOTTIME in microseconds; `granted`: the stamp of the last GRANT it received."""

    stamp: Int
    granted: Int = 0
    digest: Annotated[bytes, Meta(max_length=32)] = b""


class Grant(Message, frozen=True, kw_only=True):
    """Answers RENEW with its stamp: the lease runs `lease_s` from that stamp on the sender's clock
    (0: no deadline). To a client it says that the master is alive."""

    stamp: Int
    lease_s: Finite = 0.0


class Ack(Message, frozen=True, kw_only=True):
    """Carries nothing but the envelope's cumulative acknowledgement."""


class Unsupported(Message, frozen=True, kw_only=True):
    """The peer sent a kind that this side does not know; it was acknowledged and ignored."""

    kind: Int


# --- sequenced, both endpoints -----------------------------------------------------------------


class Goodbye(Message, frozen=True, kw_only=True):
    """The sender ends the session on purpose. `unheard`: because it has heard nothing for
    `silence_s`; then it is about to say HELLO again."""

    reason: Text = ""
    unheard: bool = False


# --- agent -> master ---------------------------------------------------------------------------


class Running(Record, frozen=True, kw_only=True):
    """One live worker process of an inventory."""

    registry: Hex32
    slot: Int
    generation: Int
    incarnation: Int
    token: Int
    revision: Int
    pid: Pid
    pid_start: Int
    started_unix_s: Finite
    ready: bool = False
    stopping: StopReason | None = None
    warden: Word = "fenced"
    code: Word = ""
    stuck: Annotated[str, Meta(max_length=limits.stuck_text_max)] = ""
    name: Word = ""


class Exit(Record, frozen=True, kw_only=True):
    """One ended worker process whose end the master has not confirmed yet. `went_on`: its host has
    used a reserved token to start the next one by itself."""

    registry: Hex32
    slot: Int
    generation: Int
    incarnation: Int
    token: Int
    facts: ExitFacts
    ready: bool = False
    stop: StopReason | None = None
    went_on: bool = False


class Inventory(Message, frozen=True, kw_only=True):
    """A page of what a host runs and of exits to be confirmed; the first sequenced messages of an
    agent's session. No START, STOP or GRANT before the page with `last`."""

    page: Int
    last: bool
    running: Annotated[list[Running], Items] = []
    exits: Annotated[list[Exit], Items] = []
    highest_token: Int = 0


class Started(Message, frozen=True, kw_only=True):
    """The process of a START exists. Sent again when it turns out that KILL does not end it:
    `worker.stuck` then says where its kernel holds it."""

    worker: Running


class StartFailed(Message, frozen=True, kw_only=True):
    """A START led to no process. `retry` is false where trying again on this host cannot help."""

    slot: Int
    generation: Int
    incarnation: Int
    token: Int
    reason: Text
    code: Word = "fork_failed"
    retry: bool = True


class Ready(Message, frozen=True, kw_only=True):
    """The worker said that it is ready."""

    slot: Int
    generation: Int
    incarnation: Int
    token: Int


class Exited(Message, frozen=True, kw_only=True):
    """The process is gone and reaped. The acknowledgement of this message confirms the exit."""

    worker: Exit


class StopDone(Message, frozen=True, kw_only=True):
    """STOP named a token that has no process here, and none will ever start under it."""

    slot: Int
    generation: Int
    token: Int


class RecordTold(Message, frozen=True, kw_only=True):
    """Answers GET_RECORD: record, `source` and `group` of the START that led to this process."""

    slot: Int
    generation: Int
    token: Int
    spec: Spec
    source: Word = ""
    group: Word = ""


class LogChunk(Message, frozen=True, kw_only=True):
    """Answers READ_LOG. `offset` is that of the first byte in `data`; `size` the file's end;
    `lost` counts bytes before `offset` that are no longer kept."""

    read: Int
    offset: Int
    data: Annotated[bytes, Meta(max_length=limits.log_read_bytes_max)] = b""
    size: Int = 0
    lost: Int = 0
    error: Text = ""


class HostTold(Message, frozen=True, kw_only=True):
    """Answers DUMP_STACKS (`text`) and MEASURE (`host`, `workers`; `more`: ask again after the last
    one's token)."""

    read: Int
    text: Annotated[str, Meta(max_length=limits.stacks_bytes_max)] = ""
    error: Text = ""
    host: HostUse | None = None
    workers: Annotated[list[WorkerUse], Items] = []
    more: bool = False


class WorkerAsks(Message, frozen=True, kw_only=True):
    """A request of a running worker, of which this is the host: `body` is the map of a REGISTER,
    GET_STATUS, TERMINATE or LATCH_WORKER (`kind`). The master answers it with WORKER_ANSWER, in
    the name of the worker, if the token is that of the registration's present process on this
    very host. A worker repeats its request, under the same id, until it is answered."""

    slot: Int
    generation: Int
    token: Int
    call: Int
    kind: Int
    body: Annotated[bytes, Meta(max_length=limits.worker_request_bytes_max)]


# --- master -> agent ---------------------------------------------------------------------------


class StructRequest(Record, frozen=True, kw_only=True):
    """A structure in shared memory that `library` requested as the master began (K1)."""

    name: Annotated[str, Meta(min_length=1, max_length=limits.segment_name_bytes_max)]
    size: Annotated[int, Meta(ge=1, le=limits.segment_bytes_max)]
    crash_domain: Word = "default"
    library: Name


class Start(Message, frozen=True, kw_only=True):
    """Start a process for this registration. Legal under the current session and epoch, if `token`
    is higher than any this host has seen for the slot. `structs`: those of its crash domain, which
    are there before the process is; only of a worker with SHMEM_ACCESS. `source` and `group`: who
    declared it and with whom; the host keeps them for RECORD_TOLD and has no other use for them.
    `reserved`: the tokens of the incarnations that follow, in order. While it has no session the
    host may start those by itself, as the worker's own restart policy says; a STOP of this slot
    takes them back, and so does the acknowledgement of the end that they would follow."""

    registry: Hex32
    slot: Int
    generation: Int
    incarnation: Int
    token: Int
    revision: Int
    spec: Spec
    warden: Word = "fenced"
    structs: Annotated[list[StructRequest], Meta(max_length=limits.domain_structs_max)] = []
    source: Word = ""
    group: Word = ""
    reserved: Annotated[list[Int], Meta(max_length=limits.reserved_tokens_max)] = []


class GetRecord(Message, frozen=True, kw_only=True):
    """Tell with which record the process of this token was started: the registry does not know it,
    since it was restored. Answered by RECORD_TOLD, or by nothing if there is no such process."""

    slot: Int
    generation: Int
    token: Int


class Stop(Message, frozen=True, kw_only=True):
    """End the process of this token: `signal` (0: KILL at once), then KILL after `grace_s`.
    Answered by EXITED, or by STOP_DONE if there is no such process."""

    registry: Hex32
    slot: Int
    generation: Int
    token: Int
    reason: StopReason
    signal: Annotated[int, Meta(ge=0, le=64)]
    grace_s: Finite


class Signal(Message, frozen=True, kw_only=True):
    """Send a signal to the process of this token. `handled`: only if the process handles, ignores
    or blocks it by the kernel's word, so that it is not ended by it; that is a notification."""

    slot: Int
    generation: Int
    token: Int
    signal: Annotated[int, Meta(ge=1, le=64)]
    handled: bool = False


class Notify(Message, frozen=True, kw_only=True):
    """Send SIGUSR1 to a process of the host that is no worker, if it is still that very one, and
    handles, ignores or blocks the signal by the kernel's word."""

    boot_id: Word
    pid: Pid
    pid_start: Int


class SetLatch(Message, frozen=True, kw_only=True):
    """Set the latch of the process of this token."""

    slot: Int
    generation: Int
    token: Int


class ReadLog(Message, frozen=True, kw_only=True):
    """Read a page of a registration's output. `offset` -1: the last `limit` bytes."""

    read: Int
    slot: Int
    generation: Int
    offset: Annotated[int, Meta(ge=-1, le=2**63 - 1)]
    limit: Annotated[int, Meta(ge=0, le=limits.log_read_bytes_max)]


class RenewRuntimes(Message, frozen=True, kw_only=True):
    """Load the code of this runtime (empty: of every one) anew for whatever is started from now
    on; running workers go on. The agent says goodbye and HELLO again: what a host refused for good
    it may take now."""

    runtime: Word = ""


class DumpStacks(Message, frozen=True, kw_only=True):
    """Tell where the process of this token is: the stacks of its threads."""

    read: Int
    slot: Int
    generation: Int
    token: Int


class Measure(Message, frozen=True, kw_only=True):
    """Tell what the host and its workers with tokens above `after` use now. Answered by
    HOST_TOLD."""

    read: Int
    after: Int = 0
    limit: Annotated[int, Meta(ge=1, le=limits.page_items_max)] = limits.page_items_max


class WorkerAnswer(Message, frozen=True, kw_only=True):
    """Answers WORKER_ASKS: the map of the reply, and its kind."""

    token: Int
    call: Int
    kind: Int
    body: Annotated[bytes, Meta(max_length=limits.worker_request_bytes_max)]


# --- client -> master --------------------------------------------------------------------------


class Request(Message, frozen=True, kw_only=True):
    """Base of requests: `request` is a random id; the same id again gets the same answer and has
    one effect."""

    request: Bytes16


class Register(Request, frozen=True, kw_only=True):
    """Register a worker. Answered by REGISTERED."""

    spec: Spec
    source: Word = ""
    registrant: Registrant | None = None


class Declared(Record, frozen=True, kw_only=True):
    """One entry of a declaration: a worker, or with `replicas` the group `NAME:0`, `NAME:1`, ... or
    `NAME:HOST` on every host that fits ("each-host")."""

    spec: Spec
    replicas: Members | None = None


class Apply(Request, frozen=True, kw_only=True):
    """Make the registrations of `source` what `workers` says. Answered by APPLIED; all of it is
    durable then, or FAILED and nothing has changed.

    What is not registered is created; what is registered under the same source with other content
    gets a new revision in its slot, and its process is replaced, at most `max_unavailable` of the
    source at a time; what the source registered and `workers` no longer names is terminated if
    `prune`. A declaration that does not fit one frame is sent before in parts, and `upload` names
    it. `dry_run`: only tell, from change number `skip` on.
    """

    source: Name
    workers: Annotated[list[Declared], Items] = []
    upload: Annotated[bytes, Meta(max_length=16)] = b""
    prune: bool = True
    max_unavailable: Annotated[int, Meta(ge=1, le=limits.workers_per_cluster_max)] = 1
    dry_run: bool = False
    skip: Int = 0


class DeclarePart(Request, frozen=True, kw_only=True):
    """A part of a declaration, before the APPLY that names its `upload` (16 random bytes). Parts
    are numbered from 0, in order. They belong to the session and are lost with it; part 0 of
    another upload drops those of the former. Answered by DONE. `structs` is for the master's own
    libraries; from a client it is refused."""

    upload: Bytes16
    part: Int
    workers: Annotated[list[Declared], Items]
    structs: Annotated[list[StructRequest], Items] = []


class RegisterGroup(Request, frozen=True, kw_only=True):
    """Register a group from one record: all of its members or none. Answered by
    GROUP_REGISTERED."""

    spec: Spec
    replicas: Members


class Terminate(Request, frozen=True, kw_only=True):
    """End the worker and forget it. Answered by DONE once it is recorded, before the worker is
    gone. `ref` is a name or a handle's text."""

    ref: Ref


class SignalWorker(Request, frozen=True, kw_only=True):
    """Send a signal to the worker's process. Answered by DONE."""

    ref: Ref
    signal: Annotated[int, Meta(ge=1, le=64)]


class LatchWorker(Request, frozen=True, kw_only=True):
    """Set the worker's latch. Answered by DONE."""

    ref: Ref


class Hold(Request, frozen=True, kw_only=True):
    """End the worker's process, if any, and keep it from being started until RELEASE. Answered by
    DONE once that is durable, before the process is gone."""

    ref: Ref


class Release(Request, frozen=True, kw_only=True):
    """End a hold: the worker is started as soon as it can be placed. Answered by DONE."""

    ref: Ref


class Restart(Request, frozen=True, kw_only=True):
    """End the worker's process and start it again at once when its end is confirmed; one that
    waits for its delay is started now. Answered by DONE; refused for a held worker."""

    ref: Ref


class Shutdown(Request, frozen=True, kw_only=True):
    """Shut the cluster down: stop every worker as `mode` says; registrations stay. Answered by
    DONE when it is over; once that is acknowledged the master ends."""

    mode: ShutdownMode
    grace_s: Finite | None = None


class Drain(Request, frozen=True, kw_only=True):
    """Give a host no more starts (`on`), or give it some again. Workers that may run elsewhere are
    stopped there and started elsewhere; those pinned to it are left running unless `force`.
    `grace_s` bounds each worker's own stop grace, from when its host hears of it, and is durable.
    Asked again with a shorter one, it holds also for those whose end is asked for already. Answered
    by DRAINED."""

    host: Name
    on: bool = True
    force: bool = False
    grace_s: Finite | None = None


class ReloadRuntimes(Request, frozen=True, kw_only=True):
    """Have a host load the code of this runtime (empty: of every one) anew for whatever is started
    from now on; running workers go on. Answered by DONE once the host is being told."""

    host: Name
    runtime: Word = ""


class Claim(Request, frozen=True, kw_only=True):
    """Make an unclaimed process a registration again, under its old handle, with the record that
    it was started with; or (`stop`) have it ended. Answered by DONE."""

    token: Int
    stop: bool = False


class ForgetHost(Request, frozen=True, kw_only=True):
    """The host is gone for good: what was placed there may run elsewhere, and it is listed no more.
    Refused while the host is heard; and, unless `confirm_dead` says that its machine is known to be
    off, while workers may run there. Answered by DONE."""

    host: Name
    confirm_dead: bool = False


class GetStatus(Request, frozen=True, kw_only=True):
    """Answered by STATUS_REPLY; a stale handle answers STOPPED, an unknown name an error."""

    ref: Ref


class ListWorkers(Request, frozen=True, kw_only=True):
    """Answered by WORKERS_PAGE: registrations in slot order after (`slot`, `generation`), of one
    group if `group` is given."""

    slot: Annotated[int, Meta(ge=-1, le=2**63 - 1)] = -1
    generation: Int = 0
    retired: bool = False
    group: Word = ""
    limit: Annotated[int, Meta(ge=1, le=limits.page_items_max)] = limits.page_items_max


class ListHosts(Request, frozen=True, kw_only=True):
    """Answered by HOSTS_PAGE: hosts by name after `after`."""

    after: Word = ""
    limit: Annotated[int, Meta(ge=1, le=limits.page_items_max)] = limits.page_items_max


class ListUnclaimed(Request, frozen=True, kw_only=True):
    """Answered by UNCLAIMED_PAGE: processes that run and that the registry does not know, since it
    was restored, by token after `after`."""

    after: Int = 0
    limit: Annotated[int, Meta(ge=1, le=limits.page_items_max)] = limits.page_items_max


class Explain(Request, frozen=True, kw_only=True):
    """Why a worker is where it is, or nowhere. Answered by EXPLAINED."""

    ref: Ref


class ReadOutput(Request, frozen=True, kw_only=True):
    """Read a page of a worker's output. Answered by OUTPUT. `host`: one that it ran on earlier,
    whose file has positions of its own; "" is the one that it runs on or ran on last."""

    ref: Ref
    offset: Annotated[int, Meta(ge=-1, le=2**63 - 1)] = -1
    limit: Annotated[int, Meta(ge=0, le=limits.log_read_bytes_max)] = limits.log_read_bytes_max
    host: Word = ""


class GetStacks(Request, frozen=True, kw_only=True):
    """Ask a worker's host where its process is now, whether or not the worker answers anything.
    Answered by STACKS."""

    ref: Ref


class GetUsage(Request, frozen=True, kw_only=True):
    """Ask a host what it and its workers use: processors, memory, descriptors. Answered by a page
    (USAGE) of workers by token, after `after`."""

    host: Name
    after: Int = 0
    limit: Annotated[int, Meta(ge=1, le=limits.page_items_max)] = limits.page_items_max


class Subscribe(Request, frozen=True, kw_only=True):
    """Follow the event log after (`timeline`, `sequence`), of one registration if `ref` is given.
    Answered by SUBSCRIBED, then EVENTS while there is credit. `sequence` 0: from the oldest row
    that is kept; -1: from now on."""

    subscription: Int
    ref: Annotated[str, Meta(max_length=160)] = ""
    timeline: Int = 0
    sequence: Annotated[int, Meta(ge=-1, le=2**63 - 1)] = 0
    credit: Annotated[int, Meta(ge=1, le=limits.credit_max)] = 256


class Credit(Message, frozen=True, kw_only=True):
    """`credit` more events may be sent on this subscription."""

    subscription: Int
    credit: Annotated[int, Meta(ge=1, le=limits.credit_max)]


class Unsubscribe(Message, frozen=True, kw_only=True):
    """Ends a subscription."""

    subscription: Int


# --- master -> client --------------------------------------------------------------------------


class Reply(Message, frozen=True, kw_only=True):
    """Base of answers."""

    request: Bytes16


class Registered(Reply, frozen=True, kw_only=True):
    """The registration is durable. (`timeline`, `sequence`) is the place of its first event."""

    handle: HandleRef
    name: Name
    timeline: Int
    sequence: Int


class Change(Record, frozen=True, kw_only=True):
    """What an APPLY does about one name. `action`: "create", "update" (`fields` differ), "prune",
    or "finished": it has ended by itself with this very content, and is left so."""

    name: Name
    action: Word
    handle: HandleRef | None = None
    fields: Annotated[list[Word], Meta(max_length=64)] = []


class Applied(Reply, frozen=True, kw_only=True):
    """The numbers of all changes, and the changes themselves from `skip` on, as many as fit;
    `more`: there are others. Names that need no change are only counted."""

    created: Int = 0
    updated: Int = 0
    pruned: Int = 0
    finished: Int = 0
    unchanged: Int = 0
    changes: Annotated[list[Change], Items] = []
    more: bool = False


class GroupRegistered(Reply, frozen=True, kw_only=True):
    """The group is durable; LIST_WORKERS with `group` tells its members."""

    name: Name
    members: Int


class Done(Reply, frozen=True, kw_only=True):
    """It is durable. `changed` is false where there was nothing to do."""

    changed: bool = True
    message: Text = ""


class Drained(Reply, frozen=True, kw_only=True):
    """It is durable. `stopped` workers are being stopped there, `left` are pinned to the host and
    go on (names, the first of them)."""

    changed: bool
    stopped: Int = 0
    left_count: Int = 0
    left: Annotated[list[Name], Items] = []


class StatusReply(Reply, frozen=True, kw_only=True):
    """The status, and the registration as it was made."""

    status: Status
    spec: Spec = {}


class WorkersPage(Reply, frozen=True, kw_only=True):
    """`more`: ask again with the last entry's slot and generation."""

    workers: Annotated[list[WorkerInfo], Items]
    more: bool = False
    timeline: Int = 0
    sequence: Int = 0


class HostsPage(Reply, frozen=True, kw_only=True):
    """`more`: ask again with the last entry's name. `phase` is that of the whole cluster, and
    `reports` say what of the master's own configuration was skipped when it began."""

    hosts: Annotated[list[HostInfo], Items]
    more: bool = False
    phase: Phase = Phase.RUNNING
    phase_detail: Text = ""
    reports: Annotated[list[Text], Items] = []


class UnclaimedPage(Reply, frozen=True, kw_only=True):
    """`more`: ask again with the last entry's token."""

    processes: Annotated[list[UnclaimedWorker], Items]
    more: bool = False


class HostVerdict(Record, frozen=True, kw_only=True):
    """Whether one host could run a worker, and why not."""

    host: Name
    fits: bool
    reason: Text = ""


class Explained(Reply, frozen=True, kw_only=True):
    """One verdict a host, and the outcome in words."""

    verdicts: Annotated[list[HostVerdict], Meta(max_length=limits.hosts_max)]
    reason: Text = ""


class Output(Reply, frozen=True, kw_only=True):
    """See LOG_CHUNK."""

    host: Word = ""
    offset: Int = 0
    data: Annotated[bytes, Meta(max_length=limits.log_read_bytes_max)] = b""
    size: Int = 0
    lost: Int = 0


class Stacks(Reply, frozen=True, kw_only=True):
    """The stacks of a process, as text for people."""

    host: Word
    text: Annotated[str, Meta(max_length=limits.stacks_bytes_max)]


class Usage(Reply, frozen=True, kw_only=True):
    """See HOST_TOLD."""

    host: Name
    use: HostUse
    workers: Annotated[list[WorkerUse], Items] = []
    more: bool = False


class Subscribed(Reply, frozen=True, kw_only=True):
    """EVENTS follow after this place. Rows up to `missing_to` may be missing, because sequence 0
    asks for what is kept; 0: none is."""

    subscription: Int
    timeline: Int
    sequence: Int
    missing_to: Int = 0


class Failed(Reply, frozen=True, kw_only=True):
    """The request had no effect, or its effect was refused. `code` is one of docs/reference/errors;
    `detail` holds what a program may want."""

    code: Word
    message: Text
    hint: Text = ""
    detail: Annotated[dict[str, Any], Meta(max_length=16)] = {}


class Missing(Record, frozen=True, kw_only=True):
    """Rows of a registration up to `sequence` are no longer kept."""

    slot: Int
    generation: Int
    sequence: Int


class Events(Message, frozen=True, kw_only=True):
    """Rows of the log in order. Everything of the subscription up to (`timeline`, `sequence`) has
    now been sent, but for what `missing` says: rows of these registrations, after this
    subscription's place so far and up to the `sequence` given there, were trimmed before they could
    be sent. It comes to subscriptions of everything only; one of a registration ends with
    CURSOR_TOO_OLD instead."""

    subscription: Int
    events: Annotated[list[Event], Items]
    timeline: Int
    sequence: Int
    missing: Annotated[list[Missing], Items] = []


class CursorTooOld(Message, frozen=True, kw_only=True):
    """Rows after the asked place were trimmed and cannot be told of by EVENTS, or it is of another
    timeline. The subscription is over; the snapshot (GET_STATUS, LIST_WORKERS) tells the state, and
    following may begin again at (`timeline`, `sequence`)."""

    subscription: Int
    timeline: Int
    sequence: Int
    reason: Text = ""


KINDS: dict[int, type[Message]] = {
    1: Hello, 2: Welcome, 3: Refused, 4: Renew, 5: Grant, 6: Ack, 7: Unsupported, 8: Goodbye,
    10: Inventory, 11: Started, 12: StartFailed, 13: Ready, 14: Exited, 15: StopDone, 16: LogChunk,
    18: HostTold, 19: WorkerAsks,
    20: Start, 21: Stop, 22: Signal, 23: SetLatch, 24: ReadLog, 25: RenewRuntimes,
    26: DumpStacks, 27: WorkerAnswer, 28: Measure, 29: Notify,
    30: Register, 31: Terminate, 32: SignalWorker, 33: LatchWorker, 34: Shutdown,
    35: Hold, 36: Release, 37: Restart, 38: Drain, 39: ReloadRuntimes,
    40: GetStatus, 41: ListWorkers, 42: ListHosts, 43: Explain, 44: ReadOutput,
    45: Subscribe, 46: Credit, 47: Unsubscribe,
    50: Apply, 51: RegisterGroup, 52: DeclarePart, 53: ForgetHost,
    54: GetStacks, 55: GetUsage,
    60: Registered, 61: Done, 62: StatusReply, 63: WorkersPage, 64: HostsPage, 65: Explained,
    66: Output, 67: Subscribed, 68: Failed, 69: Events, 70: CursorTooOld,
    71: Drained, 72: Applied, 73: GroupRegistered,
    76: Stacks, 77: Usage,
    90: RecordTold, 91: GetRecord, 92: Claim, 93: ListUnclaimed, 94: UnclaimedPage,
}  # fmt: skip
KIND_OF: dict[type[Message], int] = {cls: kind for kind, cls in KINDS.items()}

UNSEQUENCED: frozenset[type[Message]] = frozenset(
    (Hello, Welcome, Refused, Renew, Grant, Ack, Unsupported)
)
"""Sent with sequence 0: not numbered, not acknowledged, not repeated by the link."""

AGENT_TO_MASTER = frozenset(
    (Hello, Renew, Ack, Unsupported, Goodbye, Inventory, Started, StartFailed, Ready, Exited,
     StopDone, RecordTold, LogChunk, HostTold, WorkerAsks)
)  # fmt: skip
MASTER_TO_AGENT = frozenset(
    (
        Welcome,
        Refused,
        Grant,
        Ack,
        Unsupported,
        Goodbye,
        Start,
        Stop,
        Signal,
        SetLatch,
        ReadLog,
        RenewRuntimes,
        DumpStacks,
        WorkerAnswer,
        Measure,
        Notify,
        GetRecord,
    )
)
CLIENT_TO_MASTER = frozenset(
    (Hello, Renew, Ack, Unsupported, Goodbye, Register, Terminate, SignalWorker, LatchWorker,
     Apply, RegisterGroup, DeclarePart, Shutdown, Hold, Release, Restart, Drain, ReloadRuntimes,
     Claim, ForgetHost, GetStatus, ListWorkers, ListHosts, ListUnclaimed, Explain, ReadOutput,
     GetStacks, GetUsage, Subscribe, Credit, Unsubscribe)
)  # fmt: skip
MASTER_TO_CLIENT = frozenset(
    (Welcome, Refused, Grant, Ack, Unsupported, Goodbye, Registered, Applied, GroupRegistered,
     Done, Drained, StatusReply, WorkersPage, HostsPage, UnclaimedPage, Explained, Output, Stacks,
     Usage, Subscribed,
     Failed, Events, CursorTooOld)
)  # fmt: skip

MUTATING = frozenset(
    (
        Register,
        Apply,
        RegisterGroup,
        Terminate,
        SignalWorker,
        LatchWorker,
        Shutdown,
        Hold,
        Release,
        Restart,
        Drain,
        Claim,
        ReloadRuntimes,
        ForgetHost,
    )
)
"""Requests that change something: a viewer may not send them. Their result is remembered with
their id, in the same transaction as the effect."""

IDEMPOTENT = frozenset((LatchWorker,))
"""Those of them that are not remembered: twice is once (L1), and a latch cannot wait for a disk."""
