"""Cases: APPLY, its parts, REGISTER_GROUP: many registrations by one request.

Owns: the cases of declarations and groups. Must not know: how a master carries a rollout out.
Invariant: every case has a source and names of its own, and leaves nothing of them registered.
"""

import os
from typing import Any, Final

from posthouse_testing.conformance import wire
from posthouse_testing.conformance.kit import PREFIX, Kit, case, expect
from posthouse_testing.conformance.requests import failed
from posthouse_testing.conformance.wire import Peer

__all__: list[str] = []

DECLARING: Final = "Declaring many workers"


def fresh() -> str:
    return f"{PREFIX}{os.urandom(6).hex()}"


def apply(peer: Peer, source: str, *workers: dict[str, Any], **body: Any) -> Any:
    return peer.ask(wire.APPLY, wire.APPLIED, source=source, workers=list(workers), **body)


def actions(answer: dict[str, Any]) -> list[tuple[str, str]]:
    return [(change["action"], change["name"]) for change in answer.get("changes", [])]


def entry(kit: Kit, **fields: Any) -> dict[str, Any]:
    return {"spec": kit.spec(**fields)}


@case("apply", DECLARING, "APPLY creates what is new; the same content again is nothing")
def apply_twice(kit: Kit) -> None:
    peer, source = kit.client(), fresh()
    workers = [entry(kit), entry(kit)]
    names = [worker["spec"]["name"] for worker in workers]
    answer = apply(peer, source, *workers)
    wanted = [("create", name) for name in names]
    expect(actions(answer) == wanted and answer.get("created") == 2, repr(wanted), answer)
    again = apply(peer, source, *workers)
    expect(not again.get("changes") and again.get("unchanged") == 2, "2 unchanged", again)
    found = [w for w in kit.workers(peer) if w.get("source") == source]
    expect(len(found) == 2, "2 workers of the source", found)


@case("apply-revision", DECLARING, "Other content is the next revision under the same handle")
def apply_revision(kit: Kit) -> None:
    peer, source = kit.client(), fresh()
    worker = entry(kit)
    handle = apply(peer, source, worker)["changes"][0]["handle"]
    changed = {"spec": worker["spec"] | {"nice": 3, "env": {"A": "1"}}}
    (change,) = apply(peer, source, changed)["changes"]
    expect(change["action"] == "update" and change["handle"] == handle, "update in place", change)
    expect(change.get("fields") == ["env", "nice"], "the names of the fields that differ", change)
    status = kit.status(peer, worker["spec"]["name"])
    expect(status.get("revision") == 2, "revision 2", status)


@case("apply-replaces", DECLARING, "A process of an older revision is replaced", host=True)
def apply_replaces(kit: Kit) -> None:
    host, peer, source = kit.host(), kit.client(), fresh()
    worker = entry(kit)
    apply(peer, source, worker)
    first = host.start()
    apply(peer, source, {"spec": worker["spec"] | {"nice": 3}})
    host.stopped(first["token"], "apply")
    status = kit.status(peer, worker["spec"]["name"])
    got = (status["state"], status.get("revision"), status.get("running_revision"))
    expect(got == ("started", 2, 1), "started, revision 2, running_revision 1", status)
    host.exit(first["token"], "apply", cause="exited", code=0)
    second = host.start()
    got = (second["revision"], second["spec"].get("nice"), second["slot"])
    expect(got == (2, 3, first["slot"]), "START with revision 2 in the same slot", second)


@case("apply-width", DECLARING, "No more than max_unavailable are replaced at a time", host=True)
def apply_width(kit: Kit) -> None:
    host, peer, source = kit.host(), kit.client(), fresh()
    workers = [entry(kit) for _ in range(3)]
    apply(peer, source, *workers)
    tokens = {host.start()["token"] for _ in workers}
    changed = [{"spec": worker["spec"] | {"nice": 3}} for worker in workers]
    apply(peer, source, *changed, max_unavailable=1)
    stop = host.peer.next(wire.STOP)
    expect(stop["token"] in tokens, "STOP of one of them", stop)
    host.exit(stop["token"], "apply", cause="exited", code=0)
    again = host.start()
    kit.wires.idle(0.2)
    expect(not host.peer.inbox, "no other STOP before the first is ready", list(host.peer.inbox))
    names = ("slot", "generation", "incarnation", "token")
    host.peer.send(wire.READY, **{name: again[name] for name in names})
    second = host.peer.next(wire.STOP)
    expect(second["token"] in tokens - {stop["token"]}, "STOP of the next one", second)
    host.exit(second["token"], "apply", cause="exited", code=0)


@case("apply-prune", DECLARING, "What the source names no longer is terminated, if prune is on")
def apply_prune(kit: Kit) -> None:
    peer, source = kit.client(), fresh()
    one, two = entry(kit), entry(kit)
    other = kit.register(peer)
    apply(peer, source, one, two)
    kept = apply(peer, source, one, prune=False)
    expect(not kept.get("changes"), "nothing without prune", kept)
    answer = apply(peer, source, one)
    expect(actions(answer) == [("prune", two["spec"]["name"])], "one prune", answer)
    expect(not kit.status(peer, other["ref"]).get("final", False), "others untouched", other)


@case("apply-dry-run", DECLARING, "dry_run tells the same changes and has no effect")
def apply_dry_run(kit: Kit) -> None:
    peer, source = kit.client(), fresh()
    worker = entry(kit)
    told = apply(peer, source, worker, dry_run=True)
    expect(actions(told) == [("create", worker["spec"]["name"])], "one create", told)
    expect(told["changes"][0].get("handle") is None, "no handle yet", told)
    found = [w for w in kit.workers(peer) if w.get("source") == source]
    expect(not found, "nothing registered", found)


@case("apply-whole", DECLARING, "One wrong record refuses all, and names worker and field")
def apply_whole(kit: Kit) -> None:
    peer, source = kit.client(), fresh()
    good, bad = entry(kit), entry(kit, nice=99)
    got = failed(peer, "invalid_field", wire.APPLY, source=source, workers=[good, bad])
    detail = got.get("detail", {})
    named = (detail.get("worker"), detail.get("field"))
    expect(named == (bad["spec"]["name"], "nice"), "detail with worker and field", got)
    taken = kit.register(peer)
    clash = {"spec": kit.spec(name=kit_name(kit, peer, taken["ref"]))}
    failed(peer, "already_registered", wire.APPLY, source=source, workers=[good, clash])
    found = [w for w in kit.workers(peer) if w.get("source") == source]
    expect(not found, "nothing registered", found)


def kit_name(kit: Kit, peer: Peer, ref: str) -> str:
    name: str = kit.status(peer, ref)["name"]
    return name


@case("apply-reserved", DECLARING, "The sources of the master's configuration are its own")
def apply_reserved(kit: Kit) -> None:
    failed(kit.client(), "not_permitted", wire.APPLY, source="config", workers=[])


@case("apply-once", DECLARING, "The same request again has the same answer and one effect")
def apply_once(kit: Kit) -> None:
    peer, source, request = kit.client(), fresh(), os.urandom(16)
    body: dict[str, Any] = {"source": source, "workers": [entry(kit)]}
    first = peer.ask(wire.APPLY, wire.APPLIED, request, **body)
    again = peer.ask(wire.APPLY, wire.APPLIED, request, **body)
    expect(again == first, "the same answer", again)
    failed(peer, "request_conflict", wire.APPLY, request, source=source, workers=[])


@case("apply-parts", DECLARING, "A long declaration comes in parts, and one APPLY ends it")
def apply_parts(kit: Kit) -> None:
    peer, source, upload = kit.client(), fresh(), os.urandom(16)
    workers = [entry(kit) for _ in range(3)]
    for number, worker in enumerate(workers[:2]):
        body: dict[str, Any] = {"upload": upload, "part": number, "workers": [worker]}
        peer.ask(wire.DECLARE_PART, wire.DONE, **body)
        again = peer.ask(wire.DECLARE_PART, wire.DONE, **body)
        expect(again.get("changed") is False, "a part again is nothing", again)
    answer = apply(peer, source, workers[2], upload=upload)
    expect(answer.get("created") == 3, "3 created", answer)
    failed(peer, "upload_lost", wire.APPLY, source=source, upload=upload)


@case("apply-parts-lost", DECLARING, "Parts belong to one session, and come in order")
def apply_parts_lost(kit: Kit) -> None:
    peer, other, upload = kit.client(), kit.client(), os.urandom(16)
    body: dict[str, Any] = {"upload": upload, "workers": [entry(kit)]}
    failed(peer, "upload_lost", wire.DECLARE_PART, part=1, **body)
    peer.ask(wire.DECLARE_PART, wire.DONE, part=0, **body)
    failed(peer, "upload_lost", wire.DECLARE_PART, part=2, **body)
    failed(other, "upload_lost", wire.APPLY, source=fresh(), upload=upload)


GROUP: Final = "Groups"


def members(kit: Kit, peer: Peer, name: str) -> list[str]:
    found = kit.workers(peer, group=name)
    kit.wires.handles += [worker["status"]["handle"] for worker in found]
    expect(all(w.get("group") == name for w in found), f"group {name}", found)
    return [worker["status"]["name"] for worker in found]


@case("group", GROUP, "REGISTER_GROUP registers NAME:0, NAME:1, ...; LIST_WORKERS finds them")
def group(kit: Kit) -> None:
    peer, spec = kit.client(), kit.spec()
    name = spec["name"]
    answer = peer.ask(wire.REGISTER_GROUP, wire.GROUP_REGISTERED, spec=spec, replicas=3)
    expect((answer["name"], answer["members"]) == (name, 3), "3 members", answer)
    found = members(kit, peer, name)
    expect(found == [f"{name}:{n}" for n in range(3)], "three names", found)
    failed(peer, "already_registered", wire.REGISTER_GROUP, spec=spec, replicas=1)


@case("group-each-host", GROUP, "each-host is one member on a host that fits", host=True)
def group_each_host(kit: Kit) -> None:
    host, peer = kit.host(), kit.client()
    spec = kit.spec()
    del spec["host"]
    answer = peer.ask(wire.REGISTER_GROUP, wire.GROUP_REGISTERED, spec=spec, replicas="each-host")
    expect(answer["members"] == 1, "one member", answer)
    order = host.start()
    found = members(kit, peer, spec["name"])
    expect(found == [f"{spec['name']}:{host.name}"], f"NAME:{host.name}", found)
    expect(order["spec"].get("host") == host.name, f"a record for {host.name}", order)


@case("group-scale", GROUP, "A declared group has the members that it is declared with")
def group_scale(kit: Kit) -> None:
    peer, source, spec = kit.client(), fresh(), kit.spec()
    name = spec["name"]
    for replicas, wanted in (
        (2, [("create", f"{name}:0"), ("create", f"{name}:1")]),
        (3, [("create", f"{name}:2")]),
        (1, [("prune", f"{name}:1"), ("prune", f"{name}:2")]),
    ):
        answer = apply(peer, source, {"spec": spec, "replicas": replicas}, prune=False)
        expect(actions(answer) == wanted, repr(wanted), answer)


@case("group-wrong", GROUP, "replicas are a number from 0, or each-host; else the frame is bad")
def group_wrong(kit: Kit) -> None:
    peer = kit.client()
    spec = kit.spec(name=f"{PREFIX}{'n' * 80}")
    failed(peer, "invalid_field", wire.REGISTER_GROUP, spec=spec, replicas=10_000)
    peer.send(wire.REGISTER_GROUP, request=os.urandom(16), spec=kit.spec(), replicas="some")
    peer.ended("bad_frame")
