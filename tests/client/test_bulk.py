"""apply() and groups of the client: declarations of any size, over sessions that end."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import posthouse
from posthouse import (
    BackgroundWorker,
    Cluster,
    InvalidField,
    Plan,
    UsageError,
    WorkerGroup,
    WorkerState,
    bulk,
    limits,
)
from posthouse.messages import Applied, Apply, Change, Declared, DeclarePart, Done, Failed
from posthouse_testing.cluster import LocalCluster

HERE = Path(__file__).parent


def worker(name: str, **fields: Any) -> BackgroundWorker:
    return BackgroundWorker(**{"name": name, "main": "acme.jobs:main", **fields})


# --- cutting into frames -------------------------------------------------------------------------


def test_a_declaration_is_cut_so_that_each_piece_fits_a_frame() -> None:
    big = [Declared(spec=worker(f"w{n}", extra=b"x" * 60_000).to_wire()) for n in range(10)]
    small = [Declared(spec=worker(f"s{n}").to_wire()) for n in range(600)]
    pieces = list(bulk._frames(big + small))
    assert [each for piece in pieces for each in piece] == big + small
    assert max(map(len, pieces)) <= limits.page_items_max
    assert all(
        sum(len(bulk._packed(each)) for each in piece) <= bulk._FRAME_BYTES for piece in pieces
    )
    assert list(bulk._frames([])) == [[]]
    one = [Declared(spec=worker("w", extra=b"x" * 60_000, main_arg=b"y" * 60_000).to_wire())]
    assert [len(piece) for piece in bulk._frames(one * 3)] == [2, 1]


# --- against a scripted master -------------------------------------------------------------------


@pytest.fixture
def scripted(master: Any) -> Iterator[Cluster]:
    with posthouse.connect(master.endpoint) as made:
        yield made


def test_a_lost_upload_is_sent_again(master: Any, scripted: Cluster) -> None:
    seen: list[Any] = []

    def part(message: DeclarePart) -> Any:
        seen.append(message)
        return Done(request=message.request)

    def apply(message: Apply) -> Any:
        seen.append(message)
        if sum(isinstance(each, Apply) for each in seen) == 1:
            return Failed(request=message.request, code="upload_lost", message="gone")
        return Applied(request=message.request, created=300)

    with master.scripting() as script:
        script.answers |= {DeclarePart: part, Apply: apply}
    plan = scripted.apply([worker(f"w{n}") for n in range(300)], source="s")
    assert plan.created == 300
    first, one, second, two = seen
    assert first.upload == one.upload and second.upload == two.upload
    assert one.upload == two.upload
    assert one.request == two.request, "one request, however often its parts are sent"
    assert len(first.workers) + len(one.workers) == 300


def test_a_dry_run_tells_all_of_a_long_plan(master: Any, scripted: Cluster) -> None:
    names = [f"w{n}" for n in range(5)]

    def apply(message: Apply) -> Any:
        assert message.dry_run
        told = [Change(name=name, action="create") for name in names[message.skip :][:2]]
        more = message.skip + len(told) < len(names)
        return Applied(request=message.request, created=5, changes=told, more=more)

    with master.scripting() as script:
        script.answers[Apply] = apply
    plan = scripted.apply([worker(name) for name in names], source="s", dry_run=True)
    assert [change.name for change in plan.changes] == names
    assert not plan.more


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"source": ""}, "source is '': must be a text of 1 to 96 characters"),
        ({"source": "s", "max_unavailable": 0}, "max_unavailable is 0: must be a number from 1"),
    ],
)
def test_wrong_arguments_are_refused(scripted: Cluster, arguments: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        scripted.apply([worker("w")], **arguments)
    with pytest.raises(InvalidField, match="replicas is 'some': must be a whole number"):
        scripted.register_group(worker("w"), "some")


# --- for real ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def house() -> Iterator[LocalCluster]:
    with LocalCluster(hosts=("a", "b"), path=[HERE / "workers"]) as running:
        yield running


@pytest.fixture
def cluster(house: LocalCluster) -> Iterator[Cluster]:
    with house.connect() as made:
        yield made
        made.apply([], source="shop")


def held(name: str, **fields: Any) -> BackgroundWorker:
    """One that no host takes, so that many of it cost no processes."""
    return BackgroundWorker(name=name, main="clientjobs:idle", labels=("none",), **fields)


def test_a_thousand_workers_are_declared_in_parts(cluster: Cluster) -> None:
    plan = cluster.apply([held(f"many-{n}", extra=b"x" * 500) for n in range(1000)], source="shop")
    assert (plan.created, plan.more, plan.changed) == (1000, True, True)
    again = [held(f"many-{n}", extra=b"x" * 500, nice=int(n >= 990)) for n in range(995)]
    told = cluster.apply(again, source="shop", dry_run=True)
    assert (told.pruned, told.updated, told.unchanged) == (5, 5, 990)
    assert [c.action for c in told.changes] == ["prune"] * 5 + ["update"] * 5
    assert told.changes[-1].fields == ("nice",)
    assert isinstance(cluster.apply(again, source="shop"), Plan)
    assert cluster.status("many-994").revision == 2
    assert cluster.apply([], source="shop").pruned == 995


def test_a_group_of_handles(cluster: Cluster) -> None:
    group = cluster.register_group(BackgroundWorker(name="web", main="clientjobs:idle"), 3)
    assert repr(group) == "<Group web: 3 members>"
    assert [handle.name for handle in group] == ["web:0", "web:1", "web:2"]
    started = group.wait_for_startup(timeout=20)
    assert {status.state for status in started} == {WorkerState.STARTED}
    assert {status.host for status in started} == {"a", "b"}
    assert group.hold() == 3
    assert group.release() == 3
    assert group.terminate() == 3
    assert all(status.final for status in group.wait_until_unregistered(timeout=20))
    assert len(cluster.group("web")) == 0


def test_a_declared_group_is_rolled_over(cluster: Cluster) -> None:
    record = BackgroundWorker(name="api", main="clientjobs:idle")
    cluster.apply([WorkerGroup(record, 2)], source="shop")
    group = cluster.group("api")
    for handle in group:
        assert handle.wait_for_ready(timeout=20).ready
    before = [handle.pid() for handle in group]
    changed = WorkerGroup(BackgroundWorker(name="api", main="clientjobs:idle", nice=1), 2)
    plan = cluster.apply([changed], source="shop")
    assert [(c.action, c.fields) for c in plan.changes] == [("update", ("nice",))] * 2
    for handle in group:
        for event in handle.events(timeout=20):
            if event.kind == "ready" and event.revision == 2:
                break
    after = [handle.status() for handle in group]
    assert [status.running_revision for status in after] == [2, 2]
    assert not {status.pid for status in after} & set(before)
