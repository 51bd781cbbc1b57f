"""No descriptors, processes, disk, or the wrong folders: a clear refusal, and the warden lives."""

import contextlib
import ctypes
import os
import pwd
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from posthouse import limits
from posthouse_agent import procfs
from posthouse_agent.orders import (
    Confirm,
    Ended,
    Forked,
    ForkFailed,
    SignalWorker,
    StopUnknown,
    StopWorker,
)

ROOT = os.geteuid() == 0


def refused(host, agent, main="nothing", **spec):
    order = host.order(main, **spec)
    agent.give(order)
    return agent.expect(ForkFailed, order.token)


# --- at the start ---


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda h: h.home.chmod(0o755), "is open to others (mode 0755): chmod 0700"),
        (lambda h: _replace_by_file(h.home), "is not a folder: remove it"),
        (lambda h: _replace_by_link(h.home), "is not a folder: remove it"),
        (lambda h: (h.home / "journal").mkdir(), "journal: Is a directory"),
        (lambda h: (h.home / "host.lock").symlink_to("/etc/passwd"), "host.lock: Too many levels"),
        (lambda h: _replace_by_file(h.logs), "is not a folder: remove it"),
        (lambda h: os.chown(h.home, 4711, 4711) if ROOT else None, "belongs to user 4711"),
    ],
)
def test_folders_that_cannot_be_trusted(empty_host, spoil, text):
    if "4711" in text and not ROOT:
        pytest.skip("needs root to give a folder away")
    empty_host.home.mkdir(mode=0o700, parents=True)
    empty_host.logs.mkdir()
    spoil(empty_host)
    assert empty_host.spawn().wait(20) == 1
    log = empty_host.warden_log()
    assert "cannot start: " in log
    assert text in log
    assert "Traceback" not in log


def _replace_by_file(path):
    path.rmdir()
    path.touch()


def _replace_by_link(path):
    path.rmdir()
    target = path.with_name("elsewhere")
    target.mkdir(mode=0o700)
    path.symlink_to(target)


def test_socket_path_that_is_too_long(empty_host):
    empty_host.runtime = empty_host.folder / ("x" * 90)
    assert empty_host.spawn().wait(20) == 1
    assert "a socket's path has at most 107; choose a shorter" in empty_host.warden_log()


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--runtime-dir"],
        ["--runtime-dir", "/tmp/x", "--log-dir", "/tmp/y", "--kind", "wild"],
        ["--colour", "red"],
    ],
)
def test_command_line(argv):
    done = subprocess.run(
        [sys.executable, "-P", "-m", "posthouse_agent.warden", *argv],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 1
    assert "usage: python -m posthouse_agent.warden --runtime-dir" in done.stderr


# --- descriptors ---


def test_out_of_descriptors(host, agent):
    resource.prlimit(host.pid, resource.RLIMIT_NOFILE, (80, 80))
    running = []
    while True:
        order = host.order("idle")
        agent.give(order)
        report = agent.receive()
        if isinstance(report, ForkFailed):
            break
        running.append(report)
    assert (report.code, report.retry) == ("fork_failed", True)
    assert "Too many open files" in report.reason
    assert len(running) >= 3
    # what runs goes on, the agent may come again, and ends make room for a start and its spares
    agent = host.agent()
    for forked in running[:3]:
        agent.give(SignalWorker(token=forked.token, signal=signal.SIGKILL))
        agent.expect(Ended, forked.token)
    assert host.run(agent, "nothing").facts["code"] == 0


def test_callers_when_there_are_no_descriptors_at_all(host, agent):
    """The listener must not stay readable for ever: that would be a busy loop."""
    held = {int(name) for name in os.listdir(f"/proc/{host.pid}/fd")}
    free = next(n for n in range(1000) if n not in held)
    resource.prlimit(host.pid, resource.RLIMIT_NOFILE, (free, 1000))
    turned_away = host.connect()
    with pytest.raises((EOFError, ConnectionError)):
        turned_away.attach()
    assert "Too many open files" in refused(host, agent).reason
    before = _processor_s(host.pid)
    resource.prlimit(host.pid, resource.RLIMIT_NOFILE, (1000, 1000))
    assert host.run(agent, "nothing").facts["code"] == 0
    assert _processor_s(host.pid) - before < 2


def _processor_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- processes ---


@pytest.mark.skipif(not ROOT, reason="needs root to become somebody else")
@pytest.mark.skipif(not ROOT, reason="needs root to become somebody else")
def test_fork_that_fails(host, agent):
    """RLIMIT_NPROC binds all but root, so this zygote gives up being root once it is loaded."""
    user = 61_234  # nobody else's, so that only our own processes count
    jobs = host.folder / "code"
    jobs.mkdir()
    (jobs / "jobs.py").write_text(
        "import time\ndef idle(arg):\n    print('{}')\n    time.sleep(600)\n"
    )
    (jobs / "poor.py").write_text(
        "import os, resource\n"
        "# the zygote, a fork of that, and one worker\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (3, 3))\n"
        f"os.setgroups([]); os.setgid({user}); os.setuid({user})\n"
    )
    host.folder.chmod(0o755)
    host.code = str(jobs)
    host.preload = ["poor"]
    first = host.begin(agent, "idle")
    failed = refused(host, agent, "idle")
    assert (failed.code, failed.retry) == ("fork_failed", True)
    assert failed.reason == "fork: Resource temporarily unavailable"
    os.kill(first.pid, signal.SIGKILL)
    agent.expect(Ended, first.token)
    order = host.order("idle")
    agent.give(order)
    agent.expect(Forked, order.token)


# --- disk ---


def test_log_folder_that_was_cleared_away_is_made_anew(host, agent):
    shutil.rmtree(host.logs)
    assert host.run(agent, "nothing").facts["code"] == 0
    assert (host.logs / "1.1.log").exists()
    assert host.logs.stat().st_mode & 0o007 == 0


@pytest.mark.parametrize("spoil", ["a file", "a link"])
def test_log_folder(host, agent, spoil, tmp_path):
    if spoil == "a link":  # in place of the log file itself
        (host.logs / "1.1.log").symlink_to(tmp_path / "victim")
    else:
        shutil.rmtree(host.logs)
        host.logs.touch()
    failed = refused(host, agent)
    assert (failed.code, failed.retry) == ("fork_failed", True)
    assert str(host.logs / "1.1.log") in failed.reason
    assert not (tmp_path / "victim").exists()
    # once it is repaired the next token runs
    if spoil != "a link":
        host.logs.unlink()
        host.logs.mkdir()
    assert host.run(agent, "nothing").facts["code"] == 0


def test_log_file_that_is_a_pipe_does_not_hold_the_warden_up(host, agent):
    os.mkfifo(host.logs / "1.1.log")
    assert "1.1.log" in refused(host, agent).reason


@pytest.fixture
def small_disk(empty_host):
    """A disk of 256 KiB under the runtime folder."""
    if not ROOT:
        pytest.skip("needs root to mount a small disk")
    empty_host.runtime.mkdir(mode=0o700)
    libc = ctypes.CDLL(None, use_errno=True)
    target = os.fsencode(empty_host.runtime)
    if libc.mount(b"tmpfs", target, b"tmpfs", 0, b"size=256k,mode=0700") != 0:
        pytest.skip(f"no mounts here: {os.strerror(ctypes.get_errno())}")
    yield empty_host
    for agent in empty_host.agents:
        agent.close()
    if empty_host.process is not None and empty_host.process.poll() is None:
        empty_host.kill()
    libc.umount2(target, 2)  # MNT_DETACH


def fill(folder):
    """Take all that is left; returns the file."""
    path = folder / "filler"
    with open(path, "wb", buffering=0) as file:
        for size in (65_536, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)
    return path


def test_full_runtime_folder_refuses_starts(small_disk):
    host = small_disk.start()
    agent = host.agent()
    filler = fill(host.runtime)
    failed = refused(host, agent)
    assert (failed.code, failed.retry) == ("fork_failed", True)
    assert "no room on the disk" in failed.reason or "No space left" in failed.reason
    filler.unlink()
    assert host.run(agent, "nothing").facts["code"] == 0


def test_exits_are_recorded_though_the_disk_is_full(small_disk, eventually):
    """Room was taken in advance; when that is used up a dead worker stays a zombie until there is
    room again. No exit is lost, and none is told before it is written."""
    host = small_disk.start()
    agent = host.agent()
    count = 12
    running = [host.begin(agent, "open_idle") for _ in range(count)]
    noisy = [f for f in running if _make_noise(host, f)]
    filler = fill(host.runtime)
    for forked in running:
        agent.give(SignalWorker(token=forked.token, signal=signal.SIGKILL))
    eventually(lambda: all(procfs.read(f.pid) is None or procfs.read(f.pid).dead for f in running))
    eventually(lambda: "the worker is not reaped yet" in host.warden_log())
    zombies = [f for f in running if procfs.read(f.pid) is not None]
    assert zombies
    assert len(zombies) < count
    # the warden still hears its agent
    assert len([r for r in host.connect().attach() if isinstance(r, Forked)]) == len(zombies)
    filler.unlink()
    agent = host.agent()
    told = {}

    def all_told():
        # Closed again: in a tight loop the descriptors of thousands of snapshots would add up.
        with contextlib.closing(host.connect()) as caller:
            told.update({r.token: r for r in caller.attach() if isinstance(r, Ended)})
        return len(told) == count

    eventually(all_told)
    assert told.keys() == {f.token for f in running}
    assert all(procfs.read(f.pid) is None for f in running)
    host.kill()
    host.start()
    again = {r.token: r.facts for r in host.connect().attach() if isinstance(r, Ended)}
    assert again == {token: ended.facts for token, ended in told.items()}
    assert len(noisy) == count


def _make_noise(host, forked):
    """Give its exit record a long tail of output."""
    with open(host.log_path(forked.slot), "a") as file:
        file.write("\n" + "noise " * 1000)
    return True


def test_late_journal_is_made_whole_again(small_disk, eventually):
    """Entries that could not be written (a confirmation) are caught up with by a rewrite."""
    host = small_disk.start()
    agent = host.agent()
    tokens = [host.run(agent, "nothing").token for _ in range(3)]
    path = host.home / "journal"
    filler = fill(host.runtime)
    # the room taken in advance is used up by tombstones, then the confirmations do not fit
    number = 0
    while "journal: No space left" not in host.warden_log():
        number += 1
        agent.give(StopWorker(token=1000 + number, slot=9, reason="x", signal=0, grace_s=0))
        agent.expect(StopUnknown)
    agent.give(Confirm(tokens=tokens[:2]))
    filler.unlink()
    eventually(lambda: path.read_text().count('"op":"Mark"') == 4)
    host.kill()
    host.start()
    assert [r.token for r in host.connect().attach() if isinstance(r, Ended)] == tokens[2:]


# --- orders ---


@pytest.mark.parametrize(
    "spec",
    [
        {"name": 5},
        {"umask": "x"},
        {"env": {"A": 1}},
        {"env": {"A=B": "x"}},
        {"rlimits": {"NOPE": 1}},
        {"nice": "high"},
        {"flags": None},
        {"main": 7},
        {"cwd": 3.5},
        {"unblock_signals": []},
        {"surprise": 1, "name": None},
    ],
)
def test_odd_registrations_cost_one_process(shared_host, shared_agent, spec):
    host, agent = shared_host, shared_agent
    order = host.order("nothing")
    order.spec.update(spec)
    agent.give(order)
    ended = agent.expect(Ended, order.token)
    if spec != {"unblock_signals": []}:
        assert ended.facts["code"] == 1
        assert ended.facts["traceback"]
    assert host.run(agent, "nothing").facts["code"] == 0


def test_own_user_may_be_named(shared_host, shared_agent):
    host, agent = shared_host, shared_agent
    me = pwd.getpwuid(os.geteuid()).pw_name
    assert host.run(agent, "nothing", run_as=me).facts["code"] == 0


def test_greatest_registration(shared_host, shared_agent):
    host, agent = shared_host, shared_agent
    """main_arg, extra and environment as large as they may be."""
    ended = host.run(
        agent,
        "report",
        "a" * (limits.main_arg_bytes_max - 5),
        extra=b"e" * limits.extra_bytes_max,
        env={f"V{n}": "v" * 250 for n in range(limits.env_items_max)},
    )
    assert ended.facts["code"] == 0, ended.facts
