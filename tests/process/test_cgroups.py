"""A cgroup for each worker, where there may be one; and who ran out of memory.

The hierarchies are looked for: a machine may have version 2 with few controllers, version 1, both,
or none that may be written.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from posthouse_agent import cgroups, memory_events
from posthouse_agent.orders import Ended, SignalWorker, StopWorker

OWN = f"posthouse-test-{os.getpid()}"


def made_below(controller):
    """A cgroup of the test's own, or a skip with the reason."""
    own = cgroups.own_folder(controller)
    if own is None:
        pytest.skip(f"no cgroup hierarchy {controller or 'of version 2'} is mounted here")
    folder = Path(own, OWN)
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"{folder}: {error.strerror}")
    return folder


def removed(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            path.rmdir()
    folder.rmdir()


def put(folder, host):
    """The next warden of this host begins in this cgroup."""
    host.python = [
        "sh", "-c", f"echo $$ > {folder}/cgroup.procs; exec \"$@\"", "sh", sys.executable, "-P",
    ]  # fmt: skip


@pytest.fixture
def delegated(empty_host):
    """A host whose warden is alone in its cgroup, as in a unit with Delegate=yes."""
    folder = made_below("")
    if not (folder / "cgroup.kill").exists():
        folder.rmdir()
        pytest.skip("no cgroup.kill in this kernel")
    put(folder, empty_host)
    empty_host.folder_of_cgroups = folder
    yield empty_host
    for agent in empty_host.agents:
        agent.close()
    if empty_host.process is not None and empty_host.process.poll() is None:
        empty_host.kill()
    (folder / "cgroup.kill").write_text("1")
    _until(lambda: b"populated 0" in (folder / "cgroup.events").read_bytes())
    removed(folder)


def _until(check):
    for _ in range(10_000):
        if check():
            return
        os.sched_yield()
    raise AssertionError("not in time")


def groups(host):
    return sorted(host.folder_of_cgroups.glob("posthouse-*/[0-9]*"))


def test_each_worker_has_a_cgroup_while_it_lives(delegated, eventually):
    host = delegated.start()
    agent = host.agent()
    first, second = (host.begin(agent, "idle") for _ in range(2))
    found = groups(host)
    assert [int(path.name) for path in found] == [first.token, second.token]
    for path, forked in zip(found, (first, second), strict=True):
        assert cgroups.members(str(path)) == [forked.pid]
    assert host.pid not in cgroups.members(str(found[0].parent / "1"))
    agent.give(SignalWorker(token=first.token, signal=signal.SIGKILL))
    agent.expect(Ended, first.token)
    assert groups(host) == found[1:]
    for _ in range(20):
        assert host.run(agent, "nothing").facts["code"] == 0
    assert groups(host) == found[1:]


def test_a_whole_cgroup_is_ended(delegated, eventually, alive):
    """Also what would not be found otherwise: out of the session, its environment cleared, all its
    descriptors closed, while other workers live."""
    host = delegated.start()
    agent = host.agent()
    neighbour = host.begin(agent, "keep_daemon")
    hidden = host.begin(agent, "hide_child")
    child = host.said(hidden.slot)[0]["child"]
    agent.give(StopWorker(token=hidden.token, slot=hidden.slot, reason="hold", signal=9, grace_s=1))
    agent.expect(Ended, hidden.token)
    assert not alive(child)
    daemonised = host.run(agent, "hide_child", {"code": 0})
    assert (daemonised.facts["cause"], daemonised.facts["code"]) == ("daemonised", 1)
    assert alive(host.said(neighbour.slot)[0]["child"])


def test_cgroups_of_a_killed_warden_are_swept(delegated, alive):
    host = delegated.start()
    agent = host.agent()
    forked = host.begin(agent, "hide_child")
    child = host.said(forked.slot)[0]["child"]
    (old,) = groups(host)
    host.kill()
    assert alive(child)
    host.start()
    assert not alive(child)
    assert not old.parent.exists()
    exits = [r for r in host.connect().attach() if isinstance(r, Ended)]
    assert [e.facts["cause"] for e in exits] == ["warden_died"]


def test_another_wardens_cgroups_are_left_alone(delegated, make_host, alive):
    """Two hosts below one cgroup: each knows its own by a random number."""
    host = delegated
    host.options = ["--cgroups", "on"]
    agent = host.start().agent()
    forked = host.begin(agent, "idle")
    other = make_host()
    other.options = ["--cgroups", "on"]
    leaf = next(host.folder_of_cgroups.glob("posthouse-*"))
    put(host.folder_of_cgroups, other)
    other.start()
    others = other.begin(other.agent(), "idle")
    other.kill()
    other.start()
    assert not alive(others.pid, others.pid_start)
    assert alive(forked.pid, forked.pid_start)
    assert cgroups.members(str(leaf / str(forked.token))) == [forked.pid]
    other.kill()


def test_a_shared_cgroup_is_not_divided_unasked(empty_host):
    """auto: this test's own processes live in the same one."""
    host = empty_host
    agent = host.start().agent()
    assert host.run(agent, "nothing").facts["code"] == 0
    text = host.warden_log()
    assert "no cgroup for each worker: " in text
    assert "Traceback" not in text


def test_cgroups_that_cannot_be_had_are_refused_where_they_are_asked_for(empty_host):
    host = empty_host
    if cgroups.own_folder("") is None:
        reason = "no cgroup of version 2 is mounted here"
    else:  # out of sight: an empty file system over it
        if os.geteuid() != 0:
            pytest.skip("needs root to hide a mount")
        mount = cgroups.own_folder("")
        hide = f'mount -t tmpfs tmpfs {mount} && mount -o remount,ro {mount}; exec "$@"'
        host.python = ["unshare", "-m", "sh", "-c", hide, "sh", sys.executable, "-P"]
        reason = "Read-only file system"
    host.options = ["--cgroups", "on"]
    assert host.spawn().wait(20) == 1
    assert 'cannot start: cgroups = "on": ' in host.warden_log()
    assert reason in host.warden_log()
    # and where they are not insisted on, the warden does without
    host.options = []
    assert host.run(host.start().agent(), "nothing").facts["code"] == 0


def test_a_cgroup_that_was_taken_away_costs_no_start(delegated, alive):
    host = delegated.start()
    agent = host.agent()
    (folder,) = host.folder_of_cgroups.glob("posthouse-*")
    (host.folder_of_cgroups / "cgroup.procs").write_text(str(host.pid))
    for path in [*folder.iterdir(), folder]:
        if path.is_dir() and cgroups.members(str(path)) == []:
            path.rmdir()
    if folder.exists():
        pytest.skip("its zygotes live there")
    ended = host.run(agent, "leave_child", {"code": 0, "how": "double"})
    assert ended.facts["cause"] == "daemonised"
    assert "cgroup: " in host.warden_log()


# --- memory ---


@pytest.fixture
def small_memory(empty_host):
    """A host whose warden and workers may use 80 MiB together."""
    for controller in ("memory", ""):
        own = cgroups.own_folder(controller)
        if own is None:
            continue
        folder = Path(own, OWN)
        try:
            folder.mkdir()
        except OSError:
            continue
        for name in ("memory.limit_in_bytes", "memory.max"):
            if (folder / name).exists():
                (folder / name).write_text(str(80 << 20))
                put(folder, empty_host)
                yield empty_host
                if empty_host.process is not None and empty_host.process.poll() is None:
                    empty_host.kill()
                _until(lambda: not (folder / "cgroup.procs").read_text())  # noqa: B023
                removed(folder)
                return
        folder.rmdir()
    pytest.skip("no cgroup here whose memory could be limited")


def test_running_out_of_memory_is_told_from_a_kill(small_memory):
    host = small_memory.start()
    agent = host.agent()
    neighbour = host.begin(agent, "open_idle")
    facts = host.run(agent, "eat_memory", 300 << 20).facts
    assert (facts["signal"], facts["oom"], facts["sender"]) == (signal.SIGKILL, True, "kernel")
    # neither our own kill nor a stranger's is taken for that
    agent.give(SignalWorker(token=neighbour.token, signal=signal.SIGKILL))
    ours = agent.expect(Ended, neighbour.token).facts
    assert (ours.get("oom"), ours["sender"]) == (None, "posthouse")
    victim = host.begin(agent, "open_idle")
    os.kill(victim.pid, signal.SIGKILL)
    theirs = agent.expect(Ended, victim.token).facts
    assert (theirs.get("oom"), theirs["sender"]) == (None, "unknown")
    assert host.process.poll() is None
    again = host.run(agent, "eat_memory", 300 << 20).facts
    assert (again["oom"], again["sender"]) == (True, "kernel")


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("memory.events", "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\noom_group_kill 0\n", 1),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n", 7),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n", None),  # before Linux 4.13
        ("memory.stat", "oom_kill 1\n", None),
    ],
)
def test_both_versions_counters_are_read(tmp_path, name, text, count):
    (tmp_path / name).write_text(text)
    assert memory_events.kills_in(str(tmp_path)) == count


def test_one_count_explains_one_death(tmp_path, monkeypatch):
    counter = tmp_path / "memory.events"
    counter.write_text("oom_kill 4\n")
    monkeypatch.setattr(memory_events, "_nearest", lambda: str(tmp_path))
    events = memory_events.MemoryEvents()
    assert not events.take()  # what was before us is nobody's of ours
    counter.write_text("oom_kill 6\n")
    assert [events.take() for _ in range(3)] == [True, True, False]


def test_own_cgroup_is_the_kernels_answer():
    """Whatever is mounted where: a process that we put nowhere is listed in our own folder."""
    folder = cgroups.own_folder("")
    if folder is None:
        pytest.skip("no cgroup of version 2 is mounted here")
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert child.pid in [int(p) for p in Path(folder, "cgroup.procs").read_text().split()]
        assert os.getpid() in cgroups.members(folder)
    finally:
        child.kill()
        child.wait()
