"""The agent's process around its core: refusals at start, channels, latches, output, the thread
that renews."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from posthouse import BackgroundWorker, Handle
from posthouse.errors import ConfigError, RefusedError
from posthouse.settings import AgentSettings, RuntimeSettings
from posthouse_agent import daemon, logs, procfs
from posthouse_agent.chores import Chores
from posthouse_agent.effects import LogRead, ReadLogFile
from posthouse_testing import sweep
from posthouse_testing.cluster import LocalCluster

HERE = Path(__file__).parent
Eventually = Callable[..., Any]


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="ph", dir="/tmp"))
    yield path
    shutil.rmtree(path)


def settings(folder: Path, **fields: Any) -> AgentSettings:
    values: dict[str, Any] = {
        "host": "a",
        "master": f"ipc://{folder}/agents.sock",
        "runtime_dir": str(folder / "r"),
        "log_dir": str(folder / "l"),
        "start_wardens": False,
    }
    return AgentSettings(**{**values, **fields})


# --- what is refused at start ---


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused")
def test_a_root_agent_does_not_dial_tcp_without_keys(folder: Path) -> None:
    with pytest.raises(ConfigError, match="runs as root does not dial TCP without keys"):
        daemon.run(settings(folder, master="tcp://127.0.0.1:7400", insecure=True))
    assert not (folder / "r").exists()


def test_a_locked_folder_is_refused_with_the_holder(folder: Path) -> None:
    (folder / "r").mkdir(mode=0o700)
    lock = (folder / "r" / "agent.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    lock.write("4711\n")
    lock.flush()
    with pytest.raises(RefusedError, match=r"another agent runs here \(pid 4711\)"):
        daemon.run(settings(folder))
    lock.close()


def test_an_open_folder_is_refused(folder: Path) -> None:
    (folder / "r").mkdir()
    (folder / "r").chmod(0o755)
    with pytest.raises(ConfigError, match="0755"):
        daemon.run(settings(folder))


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"host": "a b"}, "host is"),
        ({"host": ""}, "host is"),
        ({"modules": tuple(f"m{n}" for n in range(300))}, "modules has 300 entries"),
        ({"users": tuple(f"u{n}" for n in range(65))}, "users has 65"),
        ({"runtimes": (RuntimeSettings(name="r", env={"A": "x" * 70_000}),)}, "runtime.r"),
        ({"master": "inproc://x"}, "inproc"),
    ],
)
def test_settings_that_would_not_fit_on_the_wire(
    folder: Path, fields: dict[str, Any], what: str
) -> None:
    with pytest.raises(ConfigError, match=what):
        daemon.run(settings(folder, **fields))


# --- with a real house ---


@pytest.fixture(scope="module")
def house() -> Iterator[LocalCluster]:
    with LocalCluster(hosts=("a",), path=[HERE / "workers"]) as cluster:
        yield cluster


@pytest.fixture
def run(house: LocalCluster) -> Iterator[Callable[..., Handle]]:
    """Register a worker of agent_jobs; it is ended afterwards."""
    handles: list[Handle] = []
    with house.connect() as client:

        def register(name: str, function: str, arg: Any = None) -> Handle:
            spec = BackgroundWorker(name=name, main=f"agent_jobs:{function}", main_arg=arg)
            handles.append(client.register(spec))
            return handles[-1]

        yield register
        for handle in handles:
            handle.terminate()
            handle.wait_until_unregistered(timeout=20)


def test_channel_requests_are_answered(run: Callable[..., Handle], eventually: Eventually) -> None:
    handle = run("talk", "talk", ["ready", "fly", "ready"])
    text = eventually(lambda: (t := handle.output().text).count("\n") == 3 and t)
    first, second, third = text.splitlines()
    assert first.startswith("ready {'op': 'reply'")
    assert "does not know the operation 'fly'" in second
    assert third.startswith("ready {'op': 'reply'")
    assert handle.status().ready


def test_a_worker_that_floods_its_channel_starves_nobody(
    run: Callable[..., Handle], house: LocalCluster, eventually: Eventually
) -> None:
    floods = [run(f"flood{n}", "flood", str(house.dir / "flood")) for n in range(3)]
    for flood in floods:
        eventually(lambda flood=flood: "flooding" in flood.output().text)
    other = run("other", "steady", str(house.dir / "flood"))
    assert other.wait_for_ready(timeout=20).ready
    for number in range(20):
        other.set_latch()
        eventually(lambda number=number: other.output().text.count("latch") > number)
    with house.connect() as client:
        assert client.hosts()[0].reachable
    for flood in floods:
        pid = flood.pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)  # it never reads; its end is told all the same
        eventually(lambda flood=flood: flood.status().last_exit)


def test_a_latch_set_from_afar_wakes_the_worker_through_a_new_agent(
    run: Callable[..., Handle], house: LocalCluster, eventually: Eventually
) -> None:
    handle = run("latch", "steady", str(house.dir / "latch"))
    handle.wait_for_ready(timeout=20)
    handle.set_latch()
    eventually(lambda: handle.output().text.count("latch") == 1)
    house.agent("a").restart()
    eventually(lambda: _woken_again(handle))


def _woken_again(handle: Handle) -> bool:
    try:
        handle.set_latch()  # again and again: what goes into the dead agent's session is lost
        return handle.output().text.count("latch") >= 2
    except RefusedError:  # the old session has ended, the new one has not told everything yet
        return False


def test_the_agent_lets_go_of_descriptors_of_ended_workers(
    run: Callable[..., Handle], house: LocalCluster, eventually: Eventually
) -> None:
    folder = Path(f"/proc/{house.agent('a').pid}/fd")
    before = len(list(folder.iterdir()))
    handles = [run(f"fd{n}", "steady", str(house.dir / "fd")) for n in range(5)]
    for handle in handles:
        handle.wait_for_ready(timeout=20)
    assert len(list(folder.iterdir())) == before + 2 * 5
    for handle in handles:
        handle.terminate()
        handle.wait_until_unregistered(timeout=20)
    eventually(lambda: len(list(folder.iterdir())) == before)


def test_workers_get_the_descriptor_limit_that_the_agent_was_given(
    run: Callable[..., Handle], house: LocalCluster
) -> None:
    handle = run("limit", "steady", str(house.dir / "limit"))
    pid = handle.wait_for_ready(timeout=20).pid
    ours = _soft_limit(os.getpid())
    assert _soft_limit(pid) == ours
    hard = Path(f"/proc/{os.getpid()}/limits").read_text().split("Max open files")[1].split()[1]
    assert _soft_limit(house.agent("a").pid) == hard


def _soft_limit(pid: int | None) -> str:
    return Path(f"/proc/{pid}/limits").read_text().split("Max open files")[1].split()[0]


def test_the_warden_is_nobodys_child_and_holds_no_end_of_the_agents(house: LocalCluster) -> None:
    warden = house.warden_pid("a")
    assert os.getsid(warden) == warden
    for number in (0, 1, 2):
        target = os.readlink(f"/proc/{warden}/fd/{number}")
        assert target in ("/dev/null", str(house.host_dir("a") / "fenced" / "warden.log"))
    sockets = {os.readlink(entry) for entry in Path(f"/proc/{warden}/fd").iterdir()}
    mine = {os.readlink(e) for e in Path(f"/proc/{house.agent('a').pid}/fd").iterdir()}
    shared = {name for name in sockets & mine if name.startswith(("socket:", "pipe:"))}
    assert not shared


def test_reload_takes_new_code_and_leaves_workers_alone(
    run: Callable[..., Handle], house: LocalCluster, eventually: Eventually
) -> None:
    old = run("old", "steady", str(house.dir / "old"))
    old.wait_for_ready(timeout=20)
    before = old.status()
    assert (before.runtime, len(before.code)) == ("default", 12)
    zygote = _zygote(house)
    argv = [sys.executable, "-m", "posthouse_cli", "reload", "--dir", str(house.dir)]
    told = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert (told.returncode, told.stdout.split(" (")[0]) == (0, "a: told"), told.stderr
    run("new", "steady", str(house.dir / "new")).wait_for_ready(timeout=20)
    eventually(lambda: _zygote(house) not in (0, zygote))
    after = old.status()
    assert (after.pid, after.incarnation, after.code) == (before.pid, 1, before.code)
    assert after.reachable


def test_reload_where_no_agent_runs(folder: Path) -> None:
    argv = [sys.executable, "-m", "posthouse_cli", "reload", "--dir", str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert done.returncode == 3
    assert f"no agent runs in {folder}/hosts" in done.stderr
    assert "--config FILE" in done.stderr


def _zygote(house: LocalCluster) -> int:
    """The leader of the session that the warden's spares are in."""
    warden = house.warden_pid("a")
    for pid in procfs.pids():
        process = procfs.read(pid)
        if process is not None and process.parent == warden and process.session != pid:
            return process.session
    return 0


# --- waiting for a warden that somebody else starts ---


def test_an_agent_that_may_not_start_wardens_waits_for_one(
    folder: Path, eventually: Eventually
) -> None:
    code = (
        "import sys; from posthouse.settings import AgentSettings; from posthouse_agent import "
        "daemon; r, l, m = sys.argv[1:]; sys.exit(daemon.run(AgentSettings(host='a', master=m, "
        "runtime_dir=r, log_dir=l, start_wardens=False, log_format='json')))"
    )
    chosen = settings(folder)
    argv = [sys.executable, "-P", "-c", code, chosen.runtime_dir, chosen.log_dir, chosen.master]
    with (folder / "log").open("wb") as log:
        agent = subprocess.Popen(argv, stderr=log)
    warden = None
    try:
        eventually(lambda: "start_wardens is false" in (folder / "log").read_text())
        assert not (folder / "r" / "fenced").exists()
        warden = subprocess.Popen(
            [sys.executable, "-P", "-m", "posthouse_agent.warden", "--runtime-dir",
             chosen.runtime_dir, "--log-dir", chosen.log_dir, "--kind", "fenced"],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        eventually(lambda: "warden.ready" in (folder / "log").read_text())
        agent.terminate()
        assert agent.wait(20) == 0
        assert warden.poll() is None
    finally:
        for process in (agent, warden):
            if process is not None:
                process.kill()
                process.wait()


def test_standard_error_that_nobody_reads_stops_nothing(
    folder: Path, eventually: Eventually
) -> None:
    """A full pipe: lines are lost, and the agent goes on saying HELLO."""
    code = (
        "import sys, os; from posthouse.settings import AgentSettings; from posthouse_agent import "
        "daemon, talk\n"
        "say = talk.Talk.say\n"
        "talk.Talk.say = lambda self, name, **f: [say(self, name, **f, x='x' * 500) "
        "for _ in range(400)]\n"
        "r, l, m = sys.argv[1:]\n"
        "sys.exit(daemon.run(AgentSettings(host='a', master=m, runtime_dir=r, log_dir=l, "
        "log_format='json')))"
    )
    chosen = settings(folder)
    argv = [sys.executable, "-P", "-c", code, chosen.runtime_dir, chosen.log_dir, chosen.master]
    agent = subprocess.Popen(argv, stderr=subprocess.PIPE)
    try:
        eventually((folder / "r" / "fenced" / "warden.sock").exists)
        eventually(lambda: _unread(agent) > 60_000)
        agent.terminate()
        assert agent.wait(20) == 0
    finally:
        agent.kill()
        agent.wait()
        assert agent.stderr is not None
        agent.stderr.close()
        sweep.end_all(sweep.holders(folder / "r" / "fenced" / "warden.lock"), term_s=5.0)


def _unread(process: subprocess.Popen[bytes]) -> int:
    import array
    import termios

    assert process.stderr is not None
    size = array.array("i", [0])
    fcntl.ioctl(process.stderr, termios.FIONREAD, size)
    return size[0]


# --- pages of output ---


@pytest.fixture
def page(folder: Path) -> Callable[..., LogRead]:
    (folder / "3.1.log").write_bytes(b"0123456789")
    return lambda offset, limit: logs.read_page(str(folder), ReadLogFile(9, 3, 1, offset, limit))


@pytest.mark.parametrize(
    ("offset", "limit", "found"),
    [
        (0, 4, (0, b"0123")),
        (8, 4, (8, b"89")),
        (-1, 3, (7, b"789")),
        (-1, 99, (0, b"0123456789")),
        (10, 4, (10, b"")),
        (99, 4, (99, b"")),
        (3, 0, (3, b"")),
    ],
)
def test_pages_of_output(
    page: Callable[..., LogRead], offset: int, limit: int, found: tuple[int, bytes]
) -> None:
    read = page(offset, limit)
    assert (read.offset, read.data, read.size, read.lost, read.error) == (*found, 10, 0, "")


def test_output_that_is_not_there_is_empty(folder: Path) -> None:
    assert logs.read_page(str(folder), ReadLogFile(1, 5, 1, -1, 10)) == LogRead(1)


def test_a_link_in_the_place_of_output_is_not_followed(folder: Path) -> None:
    (folder / "secret").write_text("secret")
    (folder / "5.1.log").symlink_to(folder / "secret")
    read = logs.read_page(str(folder), ReadLogFile(1, 5, 1, 0, 10))
    assert read.data == b""
    assert read.error


def test_a_hole_at_the_head_counts_as_lost(folder: Path) -> None:
    with (folder / "5.1.log").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"kept")
    with (folder / "5.1.log").open("rb") as file:
        if os.lseek(file.fileno(), 0, os.SEEK_DATA) == 0:
            pytest.skip("this file system knows no holes")
    read = logs.read_page(str(folder), ReadLogFile(1, 5, 1, 100, 10))
    assert (read.offset, read.data, read.lost) == (1 << 20, b"kept", (1 << 20) - 100)


# --- the I/O thread ---


def test_chores_run_in_order_and_their_queue_is_bounded(eventually: Eventually) -> None:
    gate = threading.Event()
    chores = Chores("test", 3)
    assert chores.submit(gate.wait)
    eventually(chores._queue.empty)
    assert [chores.submit(partial(int, number)) for number in range(4)] == [True] * 3 + [False]
    assert chores.refused == 1
    gate.set()
    found: list[Any] = []
    eventually(lambda: found.extend(chores.collect()) or len(found) == 4)
    assert found == [True, 0, 1, 2]
    chores.close(5.0)


def test_a_chore_that_raises_is_not_swallowed(eventually: Eventually) -> None:
    chores = Chores("test", 3)
    chores.submit(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        eventually(chores.collect)
    chores.close(5.0)


def test_a_warden_of_another_user_is_not_talked_to(folder: Path) -> None:
    # The check itself: a socket that is served by this very process is fine.
    from posthouse_agent.wardens import WardenStarter

    (folder / "r" / "fenced").mkdir(parents=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(folder / "r" / "fenced" / "warden.sock"))
    listener.listen()
    connection = WardenStarter(settings(folder), 1024).connect("fenced")
    connection.close()
    listener.close()
