"""Golden frames: the bytes of every message kind, as they are and as they stay.

Each file in tests/wire/golden holds one frame in hexadecimal (lines that begin with # explain).
They must decode to exactly the message below and that must encode to exactly them.

While the protocol is version 0 a frame may be rewritten, with the reason in the commit message:

    POSTHOUSE_REWRITE=1 uv run pytest tests/wire/test_golden.py

From version 1 on, files are only ever added.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from posthouse import codec, limits
from posthouse.codec import NO_SESSION, Envelope, decode, encode
from posthouse.messages import (
    KIND_OF,
    KINDS,
    UNSEQUENCED,
    Ack,
    Applied,
    Apply,
    Change,
    Claim,
    Credit,
    CursorTooOld,
    Declared,
    DeclarePart,
    Done,
    Drain,
    Drained,
    DumpStacks,
    Events,
    Exit,
    Exited,
    Explain,
    Explained,
    Failed,
    ForgetHost,
    GetRecord,
    GetStacks,
    GetStatus,
    GetUsage,
    Goodbye,
    Grant,
    GroupRegistered,
    Hello,
    Hold,
    HostsPage,
    HostTold,
    HostVerdict,
    Inventory,
    LatchWorker,
    ListHosts,
    ListUnclaimed,
    ListWorkers,
    LogChunk,
    Measure,
    Message,
    Missing,
    Notify,
    Output,
    ReadLog,
    ReadOutput,
    Ready,
    RecordTold,
    Refused,
    Register,
    Registered,
    RegisterGroup,
    Release,
    ReloadRuntimes,
    Renew,
    RenewRuntimes,
    Restart,
    Running,
    SetLatch,
    Shutdown,
    Signal,
    SignalWorker,
    Stacks,
    Start,
    Started,
    StartFailed,
    StatusReply,
    Stop,
    StopDone,
    StructRequest,
    Subscribe,
    Subscribed,
    Terminate,
    UnclaimedPage,
    Unsubscribe,
    Unsupported,
    Usage,
    WardenRef,
    Welcome,
    WorkerAnswer,
    WorkerAsks,
    WorkersPage,
)
from posthouse.records import (
    Event,
    ExitFacts,
    HandleRef,
    HostInfo,
    HostUse,
    Registrant,
    Status,
    UnclaimedWorker,
    WorkerInfo,
    WorkerUse,
)
from posthouse.spec import BackgroundWorker
from posthouse.states import (
    EventKind,
    Every,
    Phase,
    ShutdownMode,
    StartTime,
    StopReason,
    WorkerState,
)

FOLDER = Path(__file__).parent / "golden"
REWRITE = os.environ.get("POSTHOUSE_REWRITE") == "1"

REGISTRY = "9f3ac0de5b1e4f7788d21c6a40e5b3f7"
WARDEN = "0a1b2c3d4e5f60718293a4b5c6d7e8f9"
BOOT = "3e1d5b0c-7c55-4b6e-9a43-0f4c2f1f9d11"
NONCE = bytes.fromhex("00112233445566778899aabbccddeeff")
SESSION = bytes.fromhex("5e5510a0b1c2d3e4f5061728394a5b6c")
REQUEST = bytes.fromhex("7e9e57d0c1b2a3948576675849302112")
DIGEST = bytes(range(32))
AT = 1795400000.25

HANDLE = HandleRef(registry=REGISTRY, slot=3, generation=1)
SPEC = BackgroundWorker(
    name="ingest",
    main="acme.ingest:main",
    main_arg={"topic": "orders", "shards": [1, 2, 3]},
    restart_time=5.0,
    host="b",
).to_wire()
FULL_SPEC = BackgroundWorker(
    name="report 1",
    library="acme.report",
    function="main",
    main_arg={"none": None, "yes": True, "big": 2**63 - 1, "low": -(2**63), "raw": b"\0\xff"},
    extra=b"\x01\x02",
    type="report",
    flags=3,
    start_time=StartTime.CONSISTENT_STATE,
    restart_time=0.5,
    restart_growth=2.0,
    restart_time_max=60.0,
    restart_jitter=0.25,
    restart_budget=(5, 300.0),
    notify=True,
    unique=False,
    host="b",
    labels=("gpu", "rack=7"),
    runtime="py312",
    fence="process",
    on_partition="keep",
    crash_domain="reports",
    unblock_signals=True,
    stop_signal="INT",
    stop_grace_s=12.5,
    reload_signal="USR1",
    watchdog_s=30.0,
    run_as="www-data",
    env={"TZ": "UTC"},
    cwd="/srv/report",
    rlimits={"NOFILE": 1024},
    nice=5,
    umask=0o027,
    log_bytes=1048576,
).to_wire()
KILLED = ExitFacts(
    cause="signaled",
    signal=9,
    core=True,
    oom=True,
    sender="kernel",
    lock_held=True,
    crash_domain="orders",
    domain_epoch=3,
    domain_cause="worker w (pid 4242) ended by signal 9 while it held a lock",
    domain_resets=1,
    pid=4242,
    started_unix_s=AT,
    ended_unix_s=AT + 2.5,
    runtime_s=2.5,
    user_s=0.5,
    system_s=0.25,
    max_rss_bytes=12_345_678,
    output_tail="last line\n",
    traceback="",
)
MASTER = "5e" * 16
FAILED = ExitFacts(cause="exited", code=1, traceback="ValueError: orders\n")
RUNNING = Running(
    registry=REGISTRY,
    slot=3,
    generation=1,
    incarnation=2,
    token=77,
    revision=1,
    pid=4242,
    pid_start=123_456,
    started_unix_s=AT,
    code="5f0d2c9a41be",
    name="ingest",
)
STATUS = Status(
    state=WorkerState.STARTED,
    handle=HANDLE,
    name="ingest",
    host="b",
    pid=4242,
    incarnation=2,
    token=77,
    ready=True,
    started_unix_s=AT,
    last_heard_s=0.5,
    timeline=1,
    sequence=42,
)
STOPPED = Status(
    state=WorkerState.STOPPED,
    handle=HANDLE,
    name="ingest",
    host="b",
    incarnation=2,
    token=77,
    revision=2,
    running_revision=1,
    runtime="default",
    code="5f0d2c9a41be",
    reason="killed by SIGKILL; restarts in 4.2 s",
    final=True,
    flapping=True,
    restart_in_s=4.25,
    restart_at_unix_s=AT,
    stopping=StopReason.HOLD,
    reachable=False,
    dead_for_sure_in_s=12.5,
    last_exit=msgspec.structs.replace(KILLED, stop=StopReason.HOLD, by="client:ann"),
    timeline=1,
    sequence=43,
)
EVENT = Event(
    timeline=1,
    sequence=43,
    kind=EventKind.EXITED,
    at_unix_s=AT,
    registry=REGISTRY,
    slot=3,
    generation=1,
    name="ingest",
    host="b",
    revision=1,
    incarnation=2,
    token=77,
    pid=4242,
    exit=KILLED,
    stop=StopReason.TERMINATE,
    restart_at_unix_s=AT,
    restart_in_s=5.0,
    final=True,
    reason="killed by SIGKILL",
    rule="E3",
    by="client:local",
)
REGISTERED = Event(
    timeline=1, sequence=40, kind=EventKind.REGISTERED, at_unix_s=AT, registry=REGISTRY, slot=3,
    generation=1, name="ingest",
)  # fmt: skip

MESSAGES: dict[str, Message] = {
    "hello.client": Hello(nonce=NONCE, role="client", version="0.1.0"),
    "hello.agent": Hello(
        nonce=NONCE, role="agent", protocol_min=1, protocol_max=2, version="0.1.0",
        registry=REGISTRY, epoch=6, master=MASTER, host="b",
        machine_id="4c4c4544003957108052b4c04f384833",
        boot_id=BOOT, agent_instance=WARDEN,
        wardens=[WardenRef(kind="fenced", instance=WARDEN, protocol=1)], labels=["gpu"],
        runtimes=["default", "py312"], modules=["acme.*"], allow_exec=True, users=["www-data"],
        fences=["process"], no_tree="no CAP_SYS_ADMIN", slots=1000, running=1, exits=2,
        digest=DIGEST, notify_key=b"k" * 32,
    ),
    "welcome": Welcome(
        nonce=NONCE, session=SESSION, epoch=7, timeline=1, registry=REGISTRY, protocol=0,
        principal="client:local", version="0.1.0",
    ),
    "welcome.agent": Welcome(
        nonce=NONCE, session=SESSION, epoch=7, timeline=1, registry=REGISTRY, protocol=0,
        principal="agent:b", master=MASTER, version="0.1.0", lease_s=30.0, renew_s=6.0,
        silence_s=12.0, spread_s=2.5,
    ),
    "refused": Refused(
        code="host_taken", message="host b has a live session", hint="is it started twice?",
        retry_after_s=1.0, nonce=NONCE,
    ),
    "refused.session": Refused(code="stale_session", message="this session has ended"),
    "renew": Renew(stamp=1_234_567_890, granted=1_233_567_890, digest=DIGEST),
    "grant": Grant(stamp=1_234_567_890),
    "grant.lease": Grant(stamp=1_234_567_890, lease_s=30.0),
    "ack": Ack(),
    "unsupported": Unsupported(kind=99),
    "goodbye": Goodbye(reason="the agent ends"),
    "goodbye.unheard": Goodbye(reason="it hears nothing", unheard=True),
    "inventory": Inventory(page=0, last=True),
    "inventory.full": Inventory(
        page=1, last=False,
        running=[
            RUNNING,
            msgspec.structs.replace(
                RUNNING, slot=4, ready=True, stopping=StopReason.DRAIN, warden="kept"
            ),
        ],
        exits=[
            Exit(registry=REGISTRY, slot=5, generation=2, incarnation=1, token=78, facts=FAILED,
                 ready=True, stop=StopReason.SHUTDOWN),
        ],
        highest_token=78,
    ),
    "started": Started(worker=RUNNING),
    "started.stuck": Started(
        worker=msgspec.structs.replace(
            RUNNING, stopping=StopReason.HOLD,
            stuck="KILL has not ended it: in uninterruptible sleep (D)",
        )
    ),
    "start_failed": StartFailed(
        slot=3, generation=1, incarnation=2, token=77, reason="module acme is not on the list",
        code="not_allowed", retry=False,
    ),
    "ready": Ready(slot=3, generation=1, incarnation=2, token=77),
    "exited": Exited(
        worker=Exit(
            registry=REGISTRY, slot=3, generation=1, incarnation=2, token=77, facts=KILLED
        )
    ),
    "exited.lost": Exited(
        worker=Exit(
            registry=REGISTRY, slot=3, generation=1, incarnation=2, token=77,
            facts=ExitFacts(cause="warden_died"), went_on=True,
        )
    ),
    "stop_done": StopDone(slot=3, generation=1, token=77),
    "record_told": RecordTold(slot=3, generation=1, token=77, spec=SPEC),
    "record_told.declared": RecordTold(
        slot=3, generation=1, token=77, spec=SPEC, source="shop", group="web"
    ),
    "get_record": GetRecord(slot=3, generation=1, token=77),
    "log_chunk": LogChunk(
        read=5, offset=4096, data=b"line\n", size=4101, lost=100, error="no such file"
    ),
    "start": Start(
        registry=REGISTRY, slot=3, generation=1, incarnation=2, token=77, revision=1, spec=SPEC
    ),
    "start.full": Start(
        registry=REGISTRY, slot=4, generation=9, incarnation=1, token=79, revision=3,
        spec=FULL_SPEC, warden="kept", reserved=[81, 82, 90],
    ),
    "start.memory": Start(
        registry=REGISTRY, slot=5, generation=1, incarnation=1, token=80, revision=1, spec=SPEC,
        structs=[StructRequest(name="counters", size=4096, library="acme.ingest")],
    ),
    "start.declared": Start(
        registry=REGISTRY, slot=6, generation=1, incarnation=1, token=81, revision=1, spec=SPEC,
        source="shop", group="web",
    ),
    "stop": Stop(
        registry=REGISTRY, slot=3, generation=1, token=77, reason=StopReason.TERMINATE, signal=15,
        grace_s=5.0,
    ),
    "signal": Signal(slot=3, generation=1, token=77, signal=10),
    "set_latch": SetLatch(slot=3, generation=1, token=77),
    "worker_asks": WorkerAsks(
        slot=3,
        generation=1,
        token=78,
        call=4,
        kind=KIND_OF[GetStatus],
        body=codec.encode_body(GetStatus(request=REQUEST, ref="ingest")),
    ),
    "worker_answer": WorkerAnswer(
        token=78, call=4, kind=KIND_OF[Done], body=codec.encode_body(Done(request=REQUEST))
    ),
    "signal.handled": Signal(slot=3, generation=1, token=78, signal=10, handled=True),
    "host_told": HostTold(read=5, text="process 4242, sleeping\n", error=""),
    "host_told.error": HostTold(read=5, error="it has no process here any more"),
    "host_told.use": HostTold(
        read=5,
        host=HostUse(cpus=2, load=0.5, memory_bytes=8_000_000_000, available_bytes=6_000_000_000),
        workers=[
            WorkerUse(
                slot=3,
                generation=1,
                token=78,
                pid=4242,
                cpu_s=1.5,
                rss_bytes=20_000_000,
                pss_bytes=3_000_000,
                descriptors=8,
                threads=1,
            )
        ],
        more=True,
    ),
    "measure": Measure(read=5, after=77, limit=100),
    "get_usage": GetUsage(request=REQUEST, host="b", after=77, limit=100),
    "usage": Usage(
        request=REQUEST,
        host="b",
        use=HostUse(cpus=2, busy_s=12.5),
        workers=[WorkerUse(slot=3, generation=1, token=78, pid=4242)],
        more=True,
    ),
    "dump_stacks": DumpStacks(read=5, slot=3, generation=1, token=78),
    "get_stacks": GetStacks(request=REQUEST, ref="ingest"),
    "stacks": Stacks(request=REQUEST, host="b", text="process 4242, sleeping\n"),
    "read_log": ReadLog(read=5, slot=3, generation=1, offset=-1, limit=4096),
    "renew_runtimes": RenewRuntimes(runtime="ml"),
    "register": Register(request=REQUEST, spec=SPEC),
    "register.full": Register(
        request=REQUEST, spec=FULL_SPEC, source="posthouse.toml",
        registrant=Registrant(
            host="b", boot_id=BOOT, pid=4242, pid_start=123456, mark=b"m" * 16
        ),
    ),
    "notify": Notify(boot_id=BOOT, pid=4242, pid_start=123456),
    "apply": Apply(
        request=REQUEST, source="shop.toml",
        workers=[Declared(spec=SPEC), Declared(spec=SPEC, replicas=3)],
    ),
    "apply.upload": Apply(
        request=REQUEST, source="shop.toml", upload=b"u" * 16, prune=False, max_unavailable=5,
        dry_run=True, skip=256,
    ),
    "declare_part": DeclarePart(
        request=REQUEST, upload=b"u" * 16, part=2,
        workers=[Declared(spec=SPEC, replicas=Every.HOST)],
    ),
    "declare_part.library": DeclarePart(
        request=REQUEST, upload=b"u" * 16, part=0, workers=[],
        structs=[
            StructRequest(name="counters", size=4096, crash_domain="ingest", library="acme.ingest")
        ],
    ),
    "applied": Applied(
        request=REQUEST, created=1, updated=1, pruned=1, finished=1, unchanged=4, more=True,
        changes=[
            Change(name="old", action="prune", handle=HANDLE),
            Change(name="ingest", action="update", handle=HANDLE, fields=["env", "nice"]),
        ],
    ),
    "register_group": RegisterGroup(request=REQUEST, spec=SPEC, replicas=3),
    "group_registered": GroupRegistered(request=REQUEST, name="web", members=3),
    "terminate": Terminate(request=REQUEST, ref="ingest"),
    "hold": Hold(request=REQUEST, ref="ingest"),
    "release": Release(request=REQUEST, ref="ingest"),
    "restart": Restart(request=REQUEST, ref="ingest"),
    "drain": Drain(request=REQUEST, host="b", on=False, force=True, grace_s=2.5),
    "reload_runtimes": ReloadRuntimes(request=REQUEST, host="b", runtime="ml"),
    "forget_host": ForgetHost(request=REQUEST, host="b", confirm_dead=True),
    "drained": Drained(request=REQUEST, changed=True, stopped=3, left_count=1, left=["ingest"]),
    "signal_worker": SignalWorker(request=REQUEST, ref=f"{REGISTRY}:3.1", signal=10),
    "latch_worker": LatchWorker(request=REQUEST, ref="3.1"),
    "shutdown": Shutdown(request=REQUEST, mode=ShutdownMode.FAST),
    "shutdown.grace": Shutdown(request=REQUEST, mode=ShutdownMode.SMART, grace_s=60.0),
    "get_status": GetStatus(request=REQUEST, ref="ingest"),
    "list_workers": ListWorkers(request=REQUEST),
    "list_workers.more": ListWorkers(
        request=REQUEST, slot=255, generation=1, retired=True, limit=100
    ),
    "list_workers.group": ListWorkers(request=REQUEST, group="web"),
    "list_hosts": ListHosts(request=REQUEST, after="a", limit=100),
    "claim": Claim(request=REQUEST, token=77),
    "claim.stop": Claim(request=REQUEST, token=77, stop=True),
    "list_unclaimed": ListUnclaimed(request=REQUEST, after=77, limit=100),
    "unclaimed_page": UnclaimedPage(
        request=REQUEST,
        processes=[
            UnclaimedWorker(
                token=77, host="b", name="ingest", handle=HANDLE, incarnation=2, pid=4242,
                started_unix_s=AT, main="acme.ingest:main",
            ),
        ],
        more=True,
    ),
    "explain": Explain(request=REQUEST, ref="ingest"),
    "read_output": ReadOutput(request=REQUEST, ref="ingest", offset=4096, limit=1024),
    "read_output.host": ReadOutput(request=REQUEST, ref="ingest", offset=0, host="b"),
    "subscribe": Subscribe(request=REQUEST, subscription=1),
    "subscribe.one": Subscribe(
        request=REQUEST, subscription=2, ref="ingest", timeline=1, sequence=39, credit=16
    ),
    "credit": Credit(subscription=1, credit=128),
    "unsubscribe": Unsubscribe(subscription=1),
    "registered": Registered(
        request=REQUEST, handle=HANDLE, name="ingest", timeline=1, sequence=40
    ),
    "done": Done(request=REQUEST),
    "done.nothing": Done(request=REQUEST, changed=False, message="has ended already"),
    "status_reply": StatusReply(request=REQUEST, status=STATUS, spec=SPEC),
    "status_reply.stopped": StatusReply(request=REQUEST, status=STOPPED),
    "workers_page": WorkersPage(
        request=REQUEST,
        workers=[
            WorkerInfo(status=STATUS, spec={"name": "ingest"}),
            WorkerInfo(
                status=STOPPED, spec={"name": "ingest"}, registered_unix_s=AT, by="client:local",
                source="posthouse.toml", group="ingest", retired=True, starts=2, failures=1,
            ),
        ],
        more=True, timeline=1, sequence=43,
    ),
    "hosts_page": HostsPage(
        request=REQUEST,
        hosts=[
            HostInfo(name="a", reachable=False),
            HostInfo(
                name="b", reachable=True, boot_id=BOOT, machine_id="4c4c4544", last_heard_s=0.5,
                labels=["gpu"], runtimes=["default"], fences=["process"], slots=1000, workers=2,
                version="0.1.0", draining=True, stuck=1,
                unclaimed=1,
            ),
        ],
        more=True,
    ),
    "explained": Explained(
        request=REQUEST,
        verdicts=[
            HostVerdict(host="a", fits=False, reason="has not the label gpu"),
            HostVerdict(host="b", fits=True),
        ],
        reason="runs on b",
    ),
    "output": Output(request=REQUEST, host="b", offset=4096, data=b"line\n", size=4101, lost=100),
    "subscribed": Subscribed(
        request=REQUEST, subscription=1, timeline=1, sequence=39, missing_to=7
    ),
    "failed": Failed(
        request=REQUEST, code="already_registered", message="a worker is named 'ingest'",
        hint="terminate it first", detail={"handle": f"{REGISTRY}:3.1"},
    ),
    "events": Events(subscription=1, events=[REGISTERED, EVENT], timeline=1, sequence=43),
    "hosts_page.phase": HostsPage(
        request=REQUEST, hosts=[], phase=Phase.HOT_STANDBY, phase_detail="it is in recovery"
    ),
    "hosts_page.reports": HostsPage(
        request=REQUEST, hosts=[], reports=["skipped: library:acme.jobs: ImportError: x"]
    ),
    "events.phase": Events(
        subscription=1,
        events=[
            Event(
                timeline=1, sequence=44, kind=EventKind.PHASE, at_unix_s=AT, registry=REGISTRY,
                reason="it is in recovery", phase=Phase.HOT_STANDBY,
            )
        ],
        timeline=1, sequence=44,
    ),
    "events.missing": Events(
        subscription=1, events=[EVENT], timeline=1, sequence=43,
        missing=[Missing(slot=3, generation=1, sequence=41)],
    ),
    "cursor_too_old": CursorTooOld(
        subscription=1, timeline=1, sequence=43, reason="rows up to 41 were trimmed"
    ),
}  # fmt: skip
"""File name (without .hex) to message. Before the dot: the kind, as docs/reference spells it."""


def envelope(name: str) -> Envelope:
    message = MESSAGES[name]
    kind = KIND_OF[type(message)]
    if isinstance(message, Hello) or name == "refused":  # there is no session yet
        return Envelope(NO_SESSION, 0, 0, 0, message, kind)
    if type(message) in UNSEQUENCED:
        acknowledged = 12 if isinstance(message, Ack) else 0
        return Envelope(SESSION, 7, 0, acknowledged, message, kind)
    return Envelope(SESSION, 7, 3, 12, message, kind)


def path(name: str) -> Path:
    return FOLDER / f"{name}.hex"


def read(name: str) -> bytes:
    lines = path(name).read_text().splitlines()
    return bytes.fromhex("".join(line for line in lines if not line.startswith("#")))


def write(name: str) -> None:
    frame = encode(envelope(name))
    rows = [frame[at : at + 32].hex() for at in range(0, len(frame), 32)]
    head = f"# {name}: {type(MESSAGES[name]).__name__}, {len(frame)} bytes"
    path(name).write_text("\n".join((head, *rows)) + "\n")


@pytest.mark.parametrize("name", list(MESSAGES))
def test_golden(name: str) -> None:
    if REWRITE:
        write(name)
    assert path(name).exists(), f"no {path(name).name}: see the head of this file"
    frame = read(name)
    assert decode(frame) == envelope(name)
    assert encode(envelope(name)) == frame
    assert len(frame) <= limits.client_frame_bytes_max


def test_no_frame_is_left_over() -> None:
    assert {file.stem for file in FOLDER.glob("*.hex")} == set(MESSAGES)


def test_every_kind_has_a_golden_frame() -> None:
    assert {type(message) for message in MESSAGES.values()} == set(KINDS.values())


def test_golden_registrations_are_good() -> None:
    for name in ("register", "register.full", "start", "start.full"):
        spec = MESSAGES[name].spec  # type: ignore[attr-defined]
        assert BackgroundWorker.from_wire(spec).to_wire() == spec
    names = {field for field in BackgroundWorker.__dataclass_fields__ if field != "main"}
    assert set(FULL_SPEC) == names


def optional_fields(cls: Any) -> Iterator[tuple[str, str]]:
    info = inspect.type_info(cls)
    assert isinstance(info, inspect.StructType)
    for field in info.fields:
        if not field.required:
            yield cls.__name__, field.name


def given_fields(value: Any) -> Iterator[tuple[str, str]]:
    """Fields that are not at their default anywhere within."""
    if isinstance(value, msgspec.Struct):
        for field in msgspec.structs.fields(value):
            inner = getattr(value, field.name)
            default = field.default
            if default is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
                default = field.default_factory()
            if inner != default:
                yield type(value).__name__, field.name
            yield from given_fields(inner)
    elif isinstance(value, list):
        for item in value:
            yield from given_fields(item)


def test_every_field_is_in_some_golden_frame() -> None:
    records = (
        WardenRef,
        Running,
        Exit,
        ExitFacts,
        Event,
        Status,
        WorkerInfo,
        HostInfo,
        WorkerUse,
        HostUse,
    )
    expected = {
        found for cls in (*KINDS.values(), *records, HostVerdict) for found in optional_fields(cls)
    }
    seen = {found for message in MESSAGES.values() for found in given_fields(message)}
    # What a client makes of an entry of `missing` for its readers; no master sends it.
    assert expected - seen == {("Event", "trimmed_to")}
