"""`posthouse backup` and `posthouse restore` of a cluster of real processes."""

import json
import os
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import posthouse
from posthouse import BackgroundWorker, Cursor, CursorTooOld, EventKind, WorkerGroup, WorkerState
from posthouse_cli.layout import Layout
from posthouse_testing.cluster import Daemon, LocalCluster

HERE = Path(__file__).parent


@pytest.fixture
def house() -> Iterator[LocalCluster]:
    with LocalCluster(hosts=("a",), path=[HERE / "workers"]) as running:
        yield running


def idle(name: str) -> BackgroundWorker:
    return BackgroundWorker(name=name, main="jobs:idle", host="a")


def waiting(name: str) -> BackgroundWorker:
    """One that no host will start."""
    return BackgroundWorker(name=name, main="jobs:idle", labels=("none-has-it",))


def copied(house: LocalCluster, verb: str, *arguments: str, status: int = 0) -> str:
    """Run it in the cluster's folder; what it says."""
    ran = house.run(verb, "--dir", str(house.dir), *arguments)
    assert ran.returncode == status, ran
    return ran.stdout + ran.stderr


def heard(house: LocalCluster) -> None:
    """Wait until host a has a session and answers in it: it has told what it runs."""
    house.wait_for_hosts()
    deadline_s = time.monotonic() + 30
    with house.connect() as client:
        while True:
            try:
                client.usage("a", timeout=5)
            except posthouse.PosthouseError:
                assert time.monotonic() < deadline_s
                time.sleep(0.02)
            else:
                return


def restored(house: LocalCluster, file: Path, *options: str) -> None:
    """Put the backup in place, as an operator does."""
    house.master.terminate()
    copied(house, "restore", str(file), *options)
    house.master.start()
    heard(house)


def json_of(house: LocalCluster, *arguments: str) -> list[dict[str, Any]]:
    ran = house.run(*arguments, "--json")
    assert ran.returncode == 0, ran
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_a_backup_while_workers_are_registered_has_all_that_were_acknowledged(house, tmp_path):
    acknowledged: list[str] = []
    enough = threading.Event()
    error: list[posthouse.PosthouseError] = []

    def register() -> None:
        try:
            with house.connect() as client:
                while not enough.is_set():
                    name = f"w-{len(acknowledged)}"
                    client.register(waiting(name))
                    acknowledged.append(name)
        except posthouse.PosthouseError as caught:
            error.append(caught)

    thread = threading.Thread(target=register)
    thread.start()
    try:
        backups = []
        for n in range(3):
            before = len(acknowledged)
            said = copied(house, "backup", str(tmp_path / f"b{n}"))
            backups.append((before, said))
    finally:
        enough.set()
        thread.join(30)
    assert not error and acknowledged
    assert stat.S_IMODE((tmp_path / "b2").stat().st_mode) == 0o600
    assert "is there already" in copied(house, "backup", str(tmp_path / "b2"), status=1)
    counts = [int(said.split(" registrations")[0].rsplit(" ", 1)[1]) for _, said in backups]
    assert all(count >= before for (before, _), count in zip(backups, counts, strict=True))
    restored(house, tmp_path / "b1")
    with house.connect() as client:
        names = {info.status.name for info in client.workers()}
    assert len(names) == counts[1]
    assert set(acknowledged[: backups[1][0]]) <= names <= {f"w-{n}" for n in range(counts[1])}


def test_a_restore_while_the_master_runs_is_refused(house, tmp_path):
    copied(house, "backup", str(tmp_path / "b"))
    said = copied(house, "restore", str(tmp_path / "b"), status=1)
    assert "another master has this registry open" in said
    with house.connect() as client:
        assert client.timeline == 1


def test_what_is_known_runs_on_and_old_cursors_are_refused_with_the_way_on(house, tmp_path):
    with house.connect() as client:
        handle = client.register(idle("known"))
        status = handle.wait_for_ready(timeout=20)
        copied(house, "backup", str(tmp_path / "b"))
        old = client.cursor()
    restored(house, tmp_path / "b")
    with house.connect() as client:
        assert client.timeline > 1
        again = client.handle("known")
        assert again.id == handle.id
        assert again.wait_for_ready(timeout=20).pid == status.pid
        with pytest.raises(CursorTooOld, match="restored from a backup") as caught:
            list(client.events(after=old, follow=False))
        assert "take a snapshot" in caught.value.hint
        cursor = caught.value.detail["cursor"]
        assert cursor.timeline == client.timeline
        list(client.events(after=cursor, follow=False))
        history = client.events(after=Cursor(0, 0), follow=False)
        kinds = [event.kind for event in history]
        assert EventKind.STARTED in kinds, "its history is that of the new timeline"
    said = house.run("events", "--after", str(old))
    assert said.returncode == 1 and "restored from a backup" in said.stderr


def test_a_handle_of_the_lost_history_never_reaches_another_worker(house, tmp_path):
    with house.connect() as client:
        copied(house, "backup", str(tmp_path / "b"))
        lost = client.register(waiting("lost"))
    restored(house, tmp_path / "b")
    with house.connect() as client:
        other = client.register(waiting("other"))
        assert other.id.slot == lost.id.slot and other.id.generation != lost.id.generation
        stale = client.handle(str(lost.id)).status()
        assert stale.state is WorkerState.STOPPED and stale.final


def test_ten_workers_that_the_backup_does_not_know_run_on_and_are_claimed(house, tmp_path):
    """The backup is an hour old; since then ten were registered, and one known one restarted."""
    with house.connect() as client:
        known = client.register(replace(idle("known"), restart_time=0.0))
        before = known.wait_for_ready(timeout=20)
        copied(house, "backup", str(tmp_path / "b"))
        cursor = client.cursor()
        os.kill(before.pid, 9)
        for event in known.events(after=cursor):
            if event.kind is EventKind.READY:
                break
        since = known.status()
        assert since.incarnation == 2
        handles = [client.register(idle(f"new-{n}")) for n in range(10)]
        pids = {h.name: h.wait_for_ready(timeout=20).pid for h in handles}
    restored(house, tmp_path / "b", "--hosts-complete")
    with house.connect() as client:
        status = client.handle("known").wait_for_ready(timeout=20)
        assert (status.pid, status.incarnation, status.token) == (since.pid, 2, since.token)
        assert {info.status.name for info in client.workers()} == {"known"}
        listed = json_of(house, "unclaimed")
        assert {each["name"]: each["pid"] for each in listed} == pids
        assert "10 processes run that the registry does not know" in house.run("ps").stderr
        assert "10 unclaimed" in house.run("hosts").stdout
        # Who applies his configuration again does not start a second process of a name.
        again = client.register(idle("new-0"))
        assert "unclaimed" in again.status().reason
        tokens = {each["name"]: str(each["token"]) for each in listed}
        refused = house.run("claim", tokens["new-0"])
        assert refused.returncode == 1 and "new-0" in refused.stderr
        assert house.run("claim", "--stop", tokens["new-0"]).returncode == 0
        started = again.wait_for_ready(timeout=20)
        assert started.pid != pids["new-0"] and started.token > int(tokens["new-0"])
        assert not Path(f"/proc/{pids['new-0']}").exists(), "the old one was gone before"
        deadline_s = time.monotonic() + 20
        while house.run("claim", "--all").returncode != 0:
            assert time.monotonic() < deadline_s, house.run("claim", "--all")
        assert not json_of(house, "unclaimed")
        for handle in handles[1:]:
            status = client.handle(str(handle.id)).status()
            assert (status.state, status.pid) == (WorkerState.STARTED, pids[handle.name])
        house.master.restart()
        heard(house)
        new = client.handle("new-1")
        os.kill(pids["new-1"], 9)
        assert new.wait_for_shutdown(timeout=20).name == "new-1"


def test_what_was_applied_since_the_backup_is_claimed_as_what_it_was(house, tmp_path):
    """The host's warden has its source and its group, whatever becomes of master and agent."""
    web = [WorkerGroup(idle("web"), replicas=2)]
    with house.connect() as client:
        copied(house, "backup", str(tmp_path / "b"))
        client.apply(web, source="shop")
        pids = {n: client.handle(n).wait_for_ready(timeout=20).pid for n in ("web:0", "web:1")}
    house.agent("a").kill()
    house.start_host("a")
    restored(house, tmp_path / "b", "--hosts-complete")
    deadline_s = time.monotonic() + 20
    while house.run("claim", "--all").returncode != 0:
        assert time.monotonic() < deadline_s, house.run("claim", "--all")
    with house.connect() as client:
        plan = client.apply(web, source="shop")
        assert (plan.unchanged, plan.changes) == (2, ()), "its own, as it was declared"
        assert {n: client.handle(n).status().pid for n in pids} == pids
        assert {info.source for info in client.workers()} == {"shop"}


def test_a_second_master_on_a_copy_of_the_registry_is_obeyed_by_no_host(house, tmp_path):
    """Its folder was copied, lock file and all; both masters began one term since, so their epochs
    are equal. The host refuses the one that it has not obeyed, and says why."""
    with house.connect() as client:
        pid = client.register(idle("w")).wait_for_ready(timeout=20).pid
    registry = Layout.at(str(house.dir)).registry
    house.master.kill()
    shutil.copytree(registry, tmp_path / "copy")
    house.master.start()
    heard(house)
    house.master.kill()
    argv = [*house.master.argv, "--state-dir", str(tmp_path / "copy")]
    second = Daemon("second", argv, tmp_path / "second.log", house.env)
    second.start()
    try:
        deadline_s = time.monotonic() + 30
        told = house.agent("a").log
        while "one of them runs on a copy" not in told.read_text():
            assert second.alive and time.monotonic() < deadline_s, second.last_words()
            time.sleep(0.05)
        assert "copied_registry" in second.log.read_text()
        house.agent("a").kill()  # the next one has it from the warden
        before = len(told.read_text())
        house.start_host("a")
        while "one of them runs on a copy" not in told.read_text()[before:]:
            assert second.alive and time.monotonic() < deadline_s, second.last_words()
            time.sleep(0.05)
        with house.connect() as client:
            status = client.handle("w").status()
            assert (status.pid, status.reachable) == (pid, False)
    finally:
        second.kill()
    house.master.start()
    heard(house)
    with house.connect() as client:
        assert client.handle("w").wait_for_ready(timeout=20).pid == pid
