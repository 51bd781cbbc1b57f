"""Cases: requests, their ids, references, lists and what is refused.

Owns: the cases that need a client only. Must not know: hosts; what is registered here can be placed
nowhere. Invariant: every registration has a name of its own.
"""

import os
from typing import Any, Final

from posthouse_testing.conformance import wire
from posthouse_testing.conformance.kit import Kit, case, expect
from posthouse_testing.conformance.wire import Peer

__all__: list[str] = []

REQUESTS = "Requests"
REGISTERING = "Registering, and what becomes of it"
REFERENCES = "References"
RECORD = "The registration record"


def failed(peer: Peer, code: str, kind: int, request: bytes = b"", **body: Any) -> dict[str, Any]:
    """The body of FAILED, which must have this code."""
    got = peer.ask(kind, wire.FAILED, request, **body)
    expect(got["code"] == code, f"FAILED {code}", got)
    return got


def registered(peer: Peer, request: bytes, spec: dict[str, Any]) -> dict[str, Any]:
    return peer.ask(wire.REGISTER, wire.REGISTERED, request, spec=spec)


def of_name(kit: Kit, peer: Peer, name: str) -> list[dict[str, Any]]:
    """All entries of LIST_WORKERS with this name, retired ones too."""
    workers = kit.workers(peer, retired=True)
    return [worker for worker in workers if worker["spec"]["name"] == name]


@case("register", REGISTERING, "REGISTERED tells handle and place; the status says why it waits")
def register(kit: Kit) -> None:
    peer = kit.stranger()
    welcome = peer.open()
    made = kit.register(peer)
    handle = made["handle"]
    expect(handle["registry"] == welcome["registry"], "a handle of the registry", handle)
    place = (made["timeline"], made["sequence"] >= 1)
    expect(place == (welcome["timeline"], True), "a place in the timeline", made)
    status = kit.status(peer, made["ref"])
    expect(status["state"] == "not_yet_started", "not_yet_started", status)
    expect(bool(status.get("reason")), "a reason for waiting", status)
    expect(not status.get("final", False) and status.get("pid") is None, "not final", status)


@case("register-record", REGISTERING, "STATUS_REPLY has the record as it was registered")
def register_record(kit: Kit) -> None:
    peer = kit.client()
    spec = kit.spec(
        main_arg={"a": [1, 2.5, None, b"x", "é"]}, extra=b"\x00", env={"A": "1"}, nice=3
    )
    registered(peer, b"", spec)
    got = peer.ask(wire.GET_STATUS, wire.STATUS_REPLY, ref=spec["name"])["spec"]
    expect({name: got.get(name) for name in spec} == spec, repr(spec), got)


WRONG: Final[tuple[tuple[str, Any], ...]] = (
    ("name", ""),
    ("name", "a/b"),
    ("name", "-a"),
    ("name", "n" * 97),
    ("main", "os._exit"),
    ("main", "os:_exit"),
    ("restart_time", -2.0),
    ("restart_growth", 0.5),
    ("flags", 2),
    ("start_time", "later"),
    ("stop_signal", "KILL"),
    ("stop_grace_s", 3601.0),
    ("nice", 20),
    ("umask", 512),
    ("log_bytes", 1),
    ("labels", ["no spaces here"]),
    ("extra", bytes(65537)),
    ("cwd", "relative"),
    ("fence", "wall"),
    ("colour", "red"),
)


@case(
    "register-invalid", RECORD, "A wrong field is FAILED invalid_field with field, value and rule"
)
def register_invalid(kit: Kit) -> None:
    peer = kit.client()
    for field, value in WRONG:
        got = failed(peer, "invalid_field", wire.REGISTER, spec=kit.spec(**{field: value}))
        detail = got.get("detail", {})
        expect(detail.get("field") == field, f"detail with field {field}", got)
        expect("value" in detail and bool(detail.get("rule")), "detail with value and rule", got)


@case("register-unknown-host", RECORD, "A host that never joined is FAILED unknown_host")
def register_unknown_host(kit: Kit) -> None:
    host = f"conformance-{os.urandom(6).hex()}"
    failed(kit.client(), "unknown_host", wire.REGISTER, spec=kit.spec(host=host))


@case("register-taken", REGISTERING, "A name in use is FAILED already_registered with the handle")
def register_taken(kit: Kit) -> None:
    peer = kit.client()
    made = kit.register(peer)
    spec = kit.spec(name=made["name"], restart_time=1.0)
    got = failed(peer, "already_registered", wire.REGISTER, spec=spec)
    expect(got.get("detail", {}).get("handle") == made["ref"], f"handle {made['ref']}", got)


@case("register-not-unique", REFERENCES, "Several of one name: the name alone means none of them")
def register_not_unique(kit: Kit) -> None:
    peer = kit.client()
    one = kit.register(peer, unique=False)
    other = kit.register(peer, name=one["name"], unique=False)
    expect(one["ref"] != other["ref"], "two handles", one["ref"])
    failed(peer, "no_such_worker", wire.GET_STATUS, ref=one["name"])
    kit.status(peer, other["ref"])


@case("reference-forms", REFERENCES, "Handle, name and short handle mean the same worker")
def reference_forms(kit: Kit) -> None:
    peer = kit.client()
    made = kit.register(peer)
    short = made["ref"].partition(":")[2]
    for ref in (made["ref"], made["name"], short):
        status = kit.status(peer, ref)
        expect(status["handle"] == made["handle"], f"{made['handle']} for {ref}", status)


@case("reference-unknown", REFERENCES, "A name that nobody has or had is FAILED no_such_worker")
def reference_unknown(kit: Kit) -> None:
    peer = kit.client()
    ref = f"conformance-{os.urandom(6).hex()}"
    for kind in (wire.GET_STATUS, wire.TERMINATE, wire.HOLD, wire.RELEASE, wire.RESTART):
        failed(peer, "no_such_worker", kind, ref=ref)


@case("reference-retired", REFERENCES, "A name without a live owner means the newest retired one")
def reference_retired(kit: Kit) -> None:
    peer = kit.client()
    one = kit.register(peer)
    peer.ask(wire.TERMINATE, wire.DONE, ref=one["ref"])
    other = kit.register(peer, name=one["name"])
    expect(kit.status(peer, one["name"])["handle"] == other["handle"], "the live one", other)
    peer.ask(wire.TERMINATE, wire.DONE, ref=other["ref"])
    status = kit.status(peer, one["name"])
    expect(status["handle"] == other["handle"], "the newest retired one", status)


@case("reference-stale", REFERENCES, "A stale handle answers stopped and final, and is no error")
def reference_stale(kit: Kit) -> None:
    peer = kit.client()
    made = kit.register(peer)
    handle = made["handle"]
    other = f"{int(handle['registry'][0], 16) ^ 1:x}{handle['registry'][1:]}"
    ref = f"{other}:{handle['slot']}.{handle['generation']}"
    status = kit.status(peer, ref)
    answer = (status["state"], status.get("final", False))
    expect(answer == ("stopped", True), "stopped and final", status)
    done = peer.ask(wire.TERMINATE, wire.DONE, ref=ref)
    expect(done.get("changed", True) is False, "DONE without a change", done)
    peer.ask(wire.SUBSCRIBE, wire.SUBSCRIBED, subscription=1, ref=ref)
    peer.next(wire.CURSOR_TOO_OLD)
    failed(peer, "not_running", wire.SIGNAL_WORKER, ref=ref, signal=10)
    expect(kit.status(peer, made["ref"])["state"] == "not_yet_started", "the other unharmed", made)


@case(
    "reference-not-given", REFERENCES, "A handle that was never given is refused, not called final"
)
def reference_not_given(kit: Kit) -> None:
    peer = kit.client()
    handle = kit.register(peer)["handle"]
    ref = f"{handle['registry']}:{handle['slot']}.{handle['generation'] + 10**9}"
    failed(peer, "no_such_worker", wire.GET_STATUS, ref=ref)
    failed(peer, "no_such_worker", wire.TERMINATE, ref=ref)


@case("not-running", REFERENCES, "What needs a process is FAILED not_running without one")
def not_running(kit: Kit) -> None:
    peer = kit.client()
    made = kit.register(peer)
    failed(peer, "not_running", wire.SIGNAL_WORKER, ref=made["ref"], signal=10)
    failed(peer, "not_running", wire.LATCH_WORKER, ref=made["ref"])


@case("retry", REQUESTS, "The same request again has the same answer and no second effect")
def retry(kit: Kit) -> None:
    peer = kit.client()
    request, spec = os.urandom(16), kit.spec(unique=False)
    first = registered(peer, request, spec)
    again = registered(peer, request, spec)
    expect(again == first, repr(first), again)
    found = of_name(kit, peer, spec["name"])
    expect(len(found) == 1, "one registration", found)


@case("retry-session", REQUESTS, "A retry in a new session has the same answer, and one effect")
def retry_session(kit: Kit) -> None:
    peer = kit.client()
    request, spec = os.urandom(16), kit.spec(unique=False)
    first = registered(peer, request, spec)
    peer.open()
    again = registered(peer, request, spec)
    expect(again == first, repr(first), again)
    other = registered(kit.client(), request, spec)  # the same principal
    expect(other == first, repr(first), other)
    expect(len(of_name(kit, peer, spec["name"])) == 1, "one registration", spec["name"])


@case("retry-failed", REQUESTS, "FAILED is remembered too, though it would go well by now")
def retry_failed(kit: Kit) -> None:
    peer = kit.client()
    made = kit.register(peer)
    request, spec = os.urandom(16), kit.spec(name=made["name"])
    first = failed(peer, "already_registered", wire.REGISTER, request, spec=spec)
    peer.ask(wire.TERMINATE, wire.DONE, ref=made["ref"])
    again = failed(peer, "already_registered", wire.REGISTER, request, spec=spec)
    expect(again == first, repr(first), again)


@case(
    "retry-conflict", REQUESTS, "The same request id with another body is FAILED request_conflict"
)
def retry_conflict(kit: Kit) -> None:
    peer = kit.client()
    request, spec = os.urandom(16), kit.spec()
    first = registered(peer, request, spec)
    other = {**spec, "restart_time": 9.0}
    failed(peer, "request_conflict", wire.REGISTER, request, spec=other)
    failed(peer, "request_conflict", wire.TERMINATE, request, ref=spec["name"])
    peer.open()
    failed(peer, "request_conflict", wire.REGISTER, request, spec=other)
    expect(registered(peer, request, spec) == first, "the first answer still", first)


@case("terminate-waiting", REGISTERING, "TERMINATE of what never ran unregisters it at once")
def terminate_waiting(kit: Kit) -> None:
    peer = kit.client()
    made = kit.register(peer)
    kit.follow(peer, made["ref"])
    kit.rows(peer, "registered")
    done = peer.ask(wire.TERMINATE, wire.DONE, ref=made["ref"])
    expect(done.get("changed", True), "DONE with a change", done)
    rows = peer.next(wire.EVENTS)["events"]
    expect(rows[-1]["kind"] == "unregistered", "unregistered as the last row", rows)
    status = kit.status(peer, made["ref"])
    final = (status["state"], status.get("final", False))
    expect(final == ("stopped", True), "stopped and final", status)
    done = peer.ask(wire.TERMINATE, wire.DONE, ref=made["ref"])
    expect(done.get("changed", True) is False, "a second one without a change", done)
    live = [one for one in of_name(kit, peer, made["name"]) if not one.get("retired", False)]
    expect(live == [], "no live registration", live)


@case("pages", "Pages", "LIST_WORKERS goes on after the last entry of a page")
def pages(kit: Kit) -> None:
    peer = kit.client()
    made = sorted(
        (one["slot"], one["generation"]) for one in (kit.register(peer)["handle"] for _ in range(3))
    )
    slot, generation = made[0][0] - 1, 2**62
    seen: list[tuple[int, int]] = []
    while made[-1] not in seen:
        page = peer.ask(
            wire.LIST_WORKERS, wire.WORKERS_PAGE, slot=slot, generation=generation, limit=1
        )
        got = [worker["status"]["handle"] for worker in page["workers"]]
        expect(len(got) == 1, "one entry", got)
        slot, generation = got[0]["slot"], got[0]["generation"]
        expect(not seen or (slot, generation) > seen[-1], f"an entry after {seen}", got)
        seen.append((slot, generation))
    expect(set(made) <= set(seen), f"all of {made}", seen)
