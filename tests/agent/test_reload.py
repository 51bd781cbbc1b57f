"""`posthouse reload` from any client: hosts load the code of their runtimes anew."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from posthouse import BackgroundWorker, Handle
from posthouse.errors import NotRunning, RefusedError, UnknownHost
from posthouse_testing.cluster import LocalCluster

Eventually = Callable[..., Any]

_JOBS = """
from pathlib import Path
from posthouse import worker

SETTING = Path({setting!r}).read_text()  # no file of code: nobody sees it change

def main(_):
    worker.unblock_signals()
    print(SETTING, flush=True)
    worker.latch.wait(worker.EXIT_ON_PM_DEATH, timeout=60)
"""


@pytest.fixture
def setting(tmp_path: Path) -> Path:
    return tmp_path / "setting"


@pytest.fixture
def house(tmp_path: Path, setting: Path) -> Iterator[LocalCluster]:
    (tmp_path / "jobs_of_ours.py").write_text(_JOBS.format(setting=str(setting)))
    env = {
        "POSTHOUSE_RUNTIME__ML__PRELOAD": "jobs_of_ours",
        "POSTHOUSE_RUNTIME__ML__PATH": str(tmp_path),
    }
    with LocalCluster(hosts=("a",), env=env) as cluster:
        yield cluster


def _register(house: LocalCluster, name: str) -> Handle:
    spec = BackgroundWorker(name=name, main="jobs_of_ours:main", runtime="ml", restart_time=0.0)
    return house.connect().register(spec)


def _text(handle: Handle) -> str:
    try:
        return handle.output().text
    except (RefusedError, NotRunning):
        return ""  # a host that is told opens a new session, and is not reachable meanwhile


def test_new_starts_have_new_code_and_running_workers_do_not_notice(
    house: LocalCluster, setting: Path, tmp_path: Path, eventually: Eventually
) -> None:
    setting.write_text("first")
    old = _register(house, "old")
    old.wait_for_startup(timeout=20)
    eventually(lambda: old.output().text == "first\n")
    before = old.status()
    setting.write_text("second")
    told = house.run("reload", "--host", "a", "--runtime", "ml")
    assert (told.returncode, told.stdout) == (0, "a: told\n"), told.stderr
    new = _register(house, "new")
    new.wait_for_startup(timeout=20)
    eventually(lambda: _text(new) == "second\n")
    # A changed file of code is noticed without being told, and shown.
    module = tmp_path / "jobs_of_ours.py"
    module.write_text(module.read_text() + "\n# changed\n")
    newest = _register(house, "newest")
    newest.wait_for_startup(timeout=20)
    shown = {handle: handle.status().code for handle in (old, newest)}
    assert len(shown[old]) == len(shown[newest]) == 12
    assert shown[old] != shown[newest]
    after = old.status()
    assert (after.pid, after.incarnation, after.code) == (before.pid, 1, before.code)
    assert f"ml, code {after.code}" in house.run("status", "old").stdout


def test_a_runtime_that_was_refused_is_tried_again(
    house: LocalCluster, setting: Path, eventually: Eventually
) -> None:
    handle = _register(house, "late")  # its preload fails: there is no such file
    eventually(lambda: "FileNotFoundError" in handle.status().reason)
    setting.write_text("there")
    assert house.run("reload").stdout == "a: told\n"
    eventually(lambda: _text(handle) == "there\n")


def test_who_cannot_be_told_is_named(house: LocalCluster) -> None:
    with house.connect() as client:
        with pytest.raises(UnknownHost, match="known are a"):
            client.reload_runtimes("nowhere")
        with pytest.raises(RefusedError, match="has no runtime 'gpu'") as refused:
            client.reload_runtimes("a", "gpu")
        assert "ml" in str(refused.value.hint)
        request = os.urandom(16)
        client.reload_runtimes("a", request_id=request)
        client.reload_runtimes("a", request_id=request)  # has one effect
        house.wait_for_hosts()
    told = house.master.log.read_text().count("host.reload")
    assert told == 1
    assert house.run("reload", "x", "--runtime", "ml").returncode == 2
    assert house.run("reload", "--dir", "/tmp", "--runtime", "ml").returncode == 2


def test_a_host_that_is_away_is_not_told(house: LocalCluster, eventually: Eventually) -> None:
    house.agent("a").terminate()
    with house.connect() as client:
        eventually(lambda: not client.hosts()[0].reachable)
        with pytest.raises(RefusedError, match="host a is not reachable now"):
            client.reload_runtimes("a")
    done = house.run("reload")
    assert done.returncode == 1
    assert "a is not reachable, and not told" in done.stderr
