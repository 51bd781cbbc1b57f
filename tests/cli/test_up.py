"""`posthouse up`: everything on one machine, ended whole, and cleaned up after a kill -9."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

import posthouse
from posthouse_cli.screen import Screen
from posthouse_testing import sweep
from posthouse_testing.cluster import command

WORKERS = Path(__file__).parent / "workers"
PATIENCE_S = 30.0


class Place:
    """A private folder for `up`, and commands against it."""

    def __init__(self, folder):
        self.folder = folder
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("POSTHOUSE_")}
        self.env |= {"POSTHOUSE_DIR": str(folder), "NO_COLOR": "1"}
        self.screens = []

    def up(self, *options):
        screen = Screen(["up", *options], WORKERS, self.env)
        self.screens.append(screen)
        return screen

    def run(self, *arguments, status=0):
        ran = subprocess.run(
            [*command(), *arguments],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert status in (None, ran.returncode), ran
        return ran.stdout

    def start_idle(self):
        self.run("run", "jobs:idle", "--on", "b", "--detach", "--restart-time", "0.1")
        return self.idle_pid()

    def connect(self):
        return posthouse.connect(f"ipc://{self.folder}/clients.sock")

    def idle_pid(self):
        with self.connect() as client:
            return client.handle("jobs.idle").wait_for_startup(timeout=PATIENCE_S).pid

    def nobody(self):
        deadline_s = time.monotonic() + 5
        while left := sweep.writers(self.folder):
            assert time.monotonic() < deadline_s, left
            time.sleep(0.02)
        return True


@pytest.fixture
def place():
    folder = Path(tempfile.mkdtemp(prefix="ph", dir="/tmp"))
    guard = sweep.start_guard(folder)
    there = Place(folder)
    yield there
    for screen in there.screens:
        screen.end(PATIENCE_S)
    guard.stdin.close()
    guard.wait()
    assert not folder.exists()
    shutil.rmtree(folder, ignore_errors=True)


def test_ctrl_c_ends_all_and_registrations_stay(place):
    screen = place.up("--hosts", "a,b")
    assert "hosts a, b" in screen.wait_for("ready:", PATIENCE_S)
    pid = place.start_idle()
    screen.signal(signal.SIGINT)
    told = screen.rest(PATIENCE_S)
    assert "registrations are kept" in told
    # Each process's log lines are prefixed with who says them.
    assert {"master |", "b      |"} <= {line[:8] for line in told.splitlines()}
    assert screen.wait(PATIENCE_S) == 0
    assert sweep.identify(pid) is None
    assert place.nobody()

    again = place.up("--hosts", "b")
    again.wait_for("ready:", PATIENCE_S)
    assert place.idle_pid() != pid


def test_after_kill_9_the_next_one_cleans_up(place):
    first = place.up("--hosts", "a,b")
    first.wait_for("ready:", PATIENCE_S)
    pid = place.start_idle()
    left = set(sweep.writers(place.folder))
    first.signal(signal.SIGKILL)
    first.wait(PATIENCE_S)
    # Killed, it can end nothing itself: master, agents, wardens and the worker go on.
    assert len(left & set(sweep.writers(place.folder))) >= 6
    assert int(place.run("pid", "jobs.idle")) == pid

    second = place.up("--hosts", "a")
    assert "ending what it left" in second.wait_for("an earlier", PATIENCE_S)
    second.wait_for("ready:", PATIENCE_S)
    assert sweep.identify(pid) is None
    assert not left & set(sweep.writers(place.folder))
    # The registration is there; its host b is not.
    assert "jobs.idle" in place.run("ps")
    second.signal(signal.SIGTERM)
    assert second.wait(PATIENCE_S) == 0
    assert place.nobody()


def test_a_killed_part_is_started_again_and_a_shutdown_ends_all(place):
    screen = place.up("--hosts", "a,b")
    screen.wait_for("ready:", PATIENCE_S)

    second = place.up("--hosts", "a")
    assert "is running in" in second.wait_for("posthouse:", PATIENCE_S)
    assert second.wait(PATIENCE_S) == 1

    pid = place.start_idle()
    for who, lock in (("b", "hosts/b/agent.lock"), ("master", "master/registry.lock")):
        [held] = sweep.holders(place.folder / lock)
        os.kill(held.pid, signal.SIGKILL)
        screen.wait_for(f"{who} ended with status -9; starting it again", PATIENCE_S)
        deadline_s = time.monotonic() + PATIENCE_S
        while not sweep.holders(place.folder / lock):
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        assert place.idle_pid() == pid

    # A new master knows the worker from its registry before the host's agent is back; a shutdown
    # then would say, rightly, that it did not reach the host.
    deadline_s = time.monotonic() + PATIENCE_S
    with place.connect() as client:
        while [host.reachable for host in client.hosts()] != [True, True]:
            assert time.monotonic() < deadline_s, client.hosts()
            time.sleep(0.05)
    place.run("shutdown")
    assert "the cluster was shut down" in screen.rest(PATIENCE_S)
    assert screen.wait(PATIENCE_S) == 0
    assert sweep.identify(pid) is None


def test_a_second_ctrl_c_does_not_wait_for_the_grace(place):
    screen = place.up("--hosts", "a")
    screen.wait_for("ready:", PATIENCE_S)
    place.run("run", "jobs:deaf", "--detach", "-o", "stop_grace_s=1h")
    place.run("wait", "jobs.deaf", "--for", "ready", "--timeout", "20")
    pid = int(place.run("pid", "jobs.deaf"))
    screen.signal(signal.SIGINT)
    screen.wait_for("shutdown.begun", PATIENCE_S)
    screen.signal(signal.SIGINT)
    assert "everything has ended" in screen.rest(PATIENCE_S)
    assert screen.wait(PATIENCE_S) == 0
    assert sweep.identify(pid) is None
    assert place.nobody()


def test_a_closed_terminal_is_an_end_too(place):
    read, write = os.pipe()
    running = subprocess.Popen(
        [*command(), "up", "--hosts", "a"], env=place.env, cwd=WORKERS, stdout=write, stderr=write
    )
    os.close(write)
    with os.fdopen(read, "rb", buffering=0) as terminal:
        seen = b""
        while b"ready:" not in seen:
            seen += terminal.read(4096)
    # Nobody reads any more: what it says is lost, and what it has to do is done.
    running.send_signal(signal.SIGHUP)
    assert running.wait(PATIENCE_S) == 0
    assert place.nobody()


def test_what_cannot_start_is_told_with_its_log(place):
    (place.folder / "master").mkdir(mode=0o700)
    (place.folder / "master" / "registry.sqlite").write_text("no database")
    screen = place.up("--hosts", "a")
    told = screen.rest(PATIENCE_S)
    assert screen.wait(PATIENCE_S) == 1
    assert "master ended with status" in told
    assert "registry" in told
    assert place.nobody()


def test_impossible_options(place):
    assert place.up("--hosts", "a,a").wait(PATIENCE_S) == 2
    assert place.up("--hosts", "").wait(PATIENCE_S) == 2
    assert place.up("--hosts", "../x").wait(PATIENCE_S) == 2
    assert not (place.folder / "hosts").exists()
    assert place.up("--dir", "/" + "x" * 120).wait(PATIENCE_S) == 2


def test_posthouse_toml_says_which_workers_are_there(place):
    """Tables and a library of the current folder; a bad table is told of and stops nobody."""
    here = place.folder / "project"
    here.mkdir()
    (here / "lib.py").write_text(
        "import time\n"
        "from posthouse import BackgroundWorker\n"
        "def main(arg):\n    time.sleep(1000)\n"
        "def posthouse_init(registry):\n"
        "    registry.register(BackgroundWorker(name='of-lib', main=main, host='a'))\n"
    )
    file = here / "posthouse.toml"
    file.write_text(
        'preload_libraries = ["lib"]\n'
        '[[worker]]\nname = "table"\nmain = "lib:main"\nhost = "a"\n'
        '[[worker]]\nname = "bad"\nmain = "lib:main"\nnice = 99\n'
    )
    screen = Screen(["up", "--hosts", "a"], here, place.env)
    place.screens.append(screen)
    screen.wait_for("ready:", PATIENCE_S)
    for name in ("of-lib", "table"):
        place.run("wait", name, "--for", "started", "--timeout", "30s")
    told = subprocess.run(
        [*command(), "ps"], env=place.env, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert {line.split("\t")[0] for line in told.stdout.splitlines()} == {"of-lib", "table"}
    assert f"skipped: config: {file}:9: worker 'bad': nice is 99" in told.stderr
    screen.signal(signal.SIGINT)
    assert screen.wait(PATIENCE_S) == 0


def test_what_up_says_itself_is_refused_in_its_file(place):
    (place.folder / "x.toml").write_text('\nstate_dir = "/srv"\n')
    screen = place.up("--config", str(place.folder / "x.toml"))
    assert "x.toml:2: state_dir is not for `posthouse up`" in screen.rest(PATIENCE_S)
    assert screen.wait(PATIENCE_S) == 2


def test_what_another_folder_declared_stays_where_none_declares_anything(place):
    """In the same --dir: without a file nothing is said about workers, so none is ended."""
    here = place.folder / "project"
    here.mkdir()
    (here / "posthouse.toml").write_text(
        '[[worker]]\nname = "table"\nmain = "posthouse.exec"\nmain_arg = ["sleep", "600"]\n'
    )

    def up_in(folder):
        screen = Screen(["up", "--hosts", "a"], folder, place.env)
        place.screens.append(screen)
        screen.wait_for("ready:", PATIENCE_S)
        place.run("wait", "table", "--for", "started", "--timeout", "30s")
        screen.signal(signal.SIGINT)
        assert screen.wait(PATIENCE_S) == 0

    up_in(here)
    elsewhere = place.folder / "elsewhere"
    elsewhere.mkdir()
    up_in(elsewhere)


@pytest.mark.parametrize("deleted", ["hosts/b", "."])
def test_a_warden_whose_folder_was_deleted_is_found_and_ended(place, deleted):
    first = place.up("--hosts", "a,b")
    first.wait_for("ready:", PATIENCE_S)
    pid = place.start_idle()
    worker = sweep.identify(pid)
    left = set(sweep.writers(place.folder))
    first.signal(signal.SIGKILL)
    first.wait(PATIENCE_S)
    # Agents make their folder anew, and what is gone is gone while they do not run.
    for who in left:
        if who in sweep.holders(place.folder / "up.children"):
            os.kill(who.pid, signal.SIGSTOP)
    shutil.rmtree(place.folder / deleted)

    second = place.up("--hosts", "a")
    second.wait_for("ending what it left", PATIENCE_S)
    second.wait_for("ready:", PATIENCE_S)
    assert sweep.identify(pid) != worker
    assert not left & set(sweep.writers(place.folder))


def test_a_running_up_whose_folder_was_deleted_is_told_of(place):
    first = place.up("--hosts", "a")
    first.wait_for("ready:", PATIENCE_S)
    (place.folder / "up.lock").unlink()
    second = place.up("--hosts", "a")
    assert "whose files were deleted: process" in second.wait_for("posthouse:", PATIENCE_S)
    assert second.wait(PATIENCE_S) == 1


def test_a_script_goes_on_when_the_hosts_are_there(place):
    """It asks before there is a master, and lists both, not those that were the first."""
    place.up("--hosts", "a,b")
    rows = place.run("hosts", "--wait", "a,b").splitlines()
    assert [row.split("\t")[:2] for row in rows] == [["a", "reachable"], ["b", "reachable"]]
    place.run("run", "jobs:idle", "--on", "b", "--detach")
