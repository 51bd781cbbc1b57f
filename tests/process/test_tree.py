"""A tree warden: whatever its workers start ends with it, and it ends with its fuse."""

import fcntl
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from posthouse import limits
from posthouse_agent import namespace, procfs, stacks
from posthouse_agent.effects import TakeStacks
from posthouse_agent.orders import (
    Attached,
    Ended,
    ForkFailed,
    Leased,
    NoteReady,
    RenewLease,
    SignalWorker,
)


@pytest.fixture(autouse=True)
def _possible():
    if lacking := namespace.lacking():
        pytest.skip(lacking)


@pytest.fixture
def host(empty_host):
    empty_host.kind = "tree"
    return empty_host.start()


class Tree:
    """Fuse and warden of a host, a worker, and the lock that all it started has."""

    def __init__(self, host):
        self.host = host
        self.lock = host.folder / "lock"
        self.lock.touch(0o666)
        program = shutil.copy("/bin/sleep", host.folder / "set-uid")
        host.folder.chmod(0o755)
        Path(program).chmod(0o4755)
        (attached,) = (r for r in host.connect().attach() if isinstance(r, Attached))
        self.pids = {"fuse": host.pid, "warden": attached.pid}
        self.pidfds = {name: os.pidfd_open(pid) for name, pid in self.pids.items()}
        self.agent = host.agent()
        arg = {"lock": str(self.lock), "set_uid": str(program)}
        self.forked = host.begin(self.agent, "scatter", arg)
        self.inside = self.processes()

    def processes(self):
        """By the host's pids; the dead, and what is in a namespace further inside, included."""
        found, order = [], [self.pids["warden"]]
        parents = {}
        for pid in procfs.pids():
            if (process := procfs.read(pid)) is not None:
                parents.setdefault(process.parent, []).append(process)
        while order:
            for process in parents.get(order.pop(), ()):
                found.append(process)
                order.append(process.pid)
        return found

    def signal(self, number, *names):
        for name in names:
            signal.pidfd_send_signal(self.pidfds[name], number)

    def renew(self, length_s):
        now_s = boot_s()
        order = RenewLease(stamp=int(now_s * 1e6), deadline_us=int((now_s + length_s) * 1e6))
        self.agent.give(order)
        return order

    @property
    def locked(self):
        with self.lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def wait_for_the_last(self):
        """Until nothing has the lock. Returns when that was."""
        with self.lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            return boot_s()

    def all_dead(self):
        assert self.host.process.wait(20.0) != 0
        assert select.select([self.pidfds["warden"]], [], [], 20.0)[0]
        # The warden's end is that of its namespace: nothing is waited for here.
        assert not [p.pid for p in self.inside if is_alive(p)]


def boot_s():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def is_alive(process):
    now = procfs.read(process.pid)
    return now is not None and not now.dead and now.start == process.start


@pytest.fixture
def tree(host):
    made = Tree(host)
    yield made
    for fd in made.pidfds.values():
        os.close(fd)


slow = pytest.mark.slow


@pytest.mark.parametrize(
    "stopped",
    [
        pytest.param(("fuse",), marks=slow),
        pytest.param(("warden",), marks=slow),
        ("fuse", "warden"),
    ],
    ids="-".join,
)
def test_the_whole_tree_ends_with_the_lease(tree, stopped):
    """Nothing of ours can run: fuse, warden or both are stopped; what the worker started is deaf,
    busy, another user's, in other sessions and namespaces. All of it ends in time, and none of it
    before."""
    assert len(tree.inside) >= 9  # the worker, its four kinds in six processes, zygote and spares
    order = tree.renew(1.5)
    assert tree.agent.expect(Leased).stamp == order.stamp
    tree.signal(signal.SIGSTOP, *stopped)
    if stopped == ("fuse",):
        tree.renew(60.0)  # cannot be set, so it does not count: no Leased, and the older one holds
    ended_s = tree.wait_for_the_last()
    late_s = ended_s - order.deadline_us / 1e6
    print(f"the last of {len(tree.inside)} processes ended {late_s * 1000:.1f} ms after the lease")
    assert late_s >= 0 or "warden" not in stopped  # a warden that runs ends its workers before
    tree.all_dead()
    assert not any(isinstance(report, Leased) for report in tree.agent.unread)


@pytest.mark.parametrize(
    ("killed", "stopped"),
    [
        ("fuse", ("fuse", "warden")),
        pytest.param("fuse", (), marks=slow),
        pytest.param("warden", (), marks=slow),
        pytest.param("warden", ("fuse", "warden"), marks=slow),
    ],
)
def test_the_death_of_one_is_the_death_of_all(tree, killed, stopped):
    tree.signal(signal.SIGSTOP, *stopped)
    tree.signal(signal.SIGKILL, killed)
    tree.wait_for_the_last()
    if killed == "warden":
        tree.signal(signal.SIGCONT, "fuse")
    tree.all_dead()


@slow
def test_a_fuse_that_was_stopped_catches_up(tree):
    """What it had not read is set in its order: the newest one holds, and every one is told."""
    orders = [tree.renew(2.0)]
    tree.agent.expect(Leased)
    tree.signal(signal.SIGSTOP, "fuse")
    orders += [tree.renew(3.0), tree.renew(60.0)]
    tree.agent.give(NoteReady(token=tree.forked.token))
    tree.signal(signal.SIGCONT, "fuse")
    assert [tree.agent.expect(Leased).stamp for _ in range(2)] == [o.stamp for o in orders[1:]]
    while boot_s() < orders[1].deadline_us / 1e6 + 0.1:
        time.sleep(0.05)
    assert tree.locked
    assert tree.host.process.poll() is None


def test_nothing_starts_before_the_fuse_has_the_first_deadline(host):
    agent = host.agent()
    os.kill(host.pid, signal.SIGSTOP)
    now_s = boot_s()
    agent.give(RenewLease(stamp=int(now_s * 1e6), deadline_us=int((now_s + 60) * 1e6)))
    order = host.order("idle")
    agent.give(order)
    assert agent.expect(ForkFailed, order.token).code == "no_lease"
    os.kill(host.pid, signal.SIGCONT)
    agent.expect(Leased)
    host.begin(agent, "idle")


@slow
def test_a_deadline_in_the_far_future_is_cut_by_the_fuse_too(host):
    agent = host.agent()
    agent.give(RenewLease(stamp=int(boot_s() * 1e6), deadline_us=2**62))
    agent.expect(Leased)
    (attached,) = (r for r in host.connect().attach() if isinstance(r, Attached))
    assert attached.leased
    assert limits.lease_s_max < 2**62 / 1e6


def test_the_next_warden_ends_a_fuse_that_is_stopped(tree):
    """The warden has died, its fuse cannot know it. The next one finds it by the lock that all
    of them inherit, and tells how the workers ended."""
    tree.signal(signal.SIGSTOP, "fuse")
    tree.signal(signal.SIGKILL, "warden")
    tree.wait_for_the_last()
    first = tree.host.process
    agent = tree.host.start().connect()
    (ended,) = (r for r in agent.attach() if isinstance(r, Ended))
    assert first.wait(20.0) == -signal.SIGKILL
    assert (ended.token, ended.facts["cause"]) == (tree.forked.token, "warden_died")
    assert ended.facts["pid"] == tree.forked.pid


@slow
def test_term_to_the_fuse_ends_the_workers_in_their_way(host):
    agent = host.agent()
    forked = host.begin(agent, "own_term")
    host.process.terminate()
    ended = agent.expect(Ended, forked.token)
    assert (ended.stop, "code" in ended.facts) == ("shutdown", True)
    assert host.process.wait(20.0) == 0


def test_every_pid_that_is_told_is_the_host_s(host, agent):
    """The worker sees its own; signals, stacks, exits and the next agent go by the host's."""
    forked = host.begin(agent, "open_idle", rlimits={"CORE": 0})
    assert procfs.read(forked.pid).start == forked.pid_start
    assert inner_pid(forked.pid) not in (0, forked.pid)
    taken = stacks.take(TakeStacks(read=1, pid=forked.pid, pid_start=forked.pid_start))
    assert f"process {forked.pid}" in taken.text
    assert "open_idle" in taken.text
    agent = host.connect()
    attached, known = agent.attach()[:2]
    assert procfs.read(attached.pid).parent == host.pid
    assert known.pid == forked.pid
    agent.give(SignalWorker(token=forked.token, signal=signal.SIGABRT))
    facts = agent.expect(Ended, forked.token).facts
    assert (facts["pid"], facts["signal"]) == (forked.pid, signal.SIGABRT)
    said = host.run(agent, "report")
    assert host.said(said.slot)[1]["pid"] != said.facts["pid"]


def test_orphans_are_reaped_and_leftovers_killed(host, agent, eventually):
    keeper = host.begin(agent, "keep_daemon")
    (inside,) = (line["child"] for line in host.said(keeper.slot))
    (warden,) = (r.pid for r in host.connect().attach() if isinstance(r, Attached))
    agent = host.agent()
    (daemon,) = (p for p in procfs.pids() if inner_pid(p) == inside and is_below(p, warden))
    os.kill(daemon, signal.SIGKILL)
    eventually(lambda: procfs.read(daemon) is None, "a zombie stays")
    daemonised = host.run(agent, "leave_child", {"code": 0, "how": "double"})
    assert (daemonised.facts["cause"], daemonised.facts["code"]) == ("daemonised", 1)


def inner_pid(pid):
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[-1]) for line in lines if line.startswith("NSpid:"))


def is_below(pid, warden):
    process = procfs.read(pid)
    return process is not None and process.parent == warden


# --- hosts that can, and hosts that cannot ---


def test_without_rights_but_with_user_namespaces(empty_host):
    """Fuse and tree as before; only that its workers can be nobody else."""
    bare = ["setpriv", "--bounding-set=-sys_admin"]
    if subprocess.run([*bare, "true"], check=False).returncode:
        pytest.skip("setpriv cannot take a capability away here")
    empty_host.python = [*bare, *empty_host.python]
    empty_host.kind = "tree"
    empty_host.start()
    agent = empty_host.connect()
    attached = agent.attach()[0]
    assert (attached.kind, attached.run_as) == ("tree", False)
    forked = empty_host.begin(agent, "open_idle")
    assert inner_pid(forked.pid) not in (0, forked.pid)
    empty_host.kill()
    assert ended(forked.pid)


def ended(pid):
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], 20.0)[0])
    finally:
        os.close(pidfd)


def test_a_host_that_can_have_none_says_why(empty_host):
    """No CAP_SYS_ADMIN, and no more user namespaces: here, in a user namespace of its own."""
    script = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    bare = ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"]
    bare += ["setpriv", "--bounding-set=-sys_admin"]
    if subprocess.run([*bare, "true"], check=False).returncode:
        pytest.skip("unshare or setpriv cannot do this here")
    empty_host.python = [*bare, *empty_host.python]
    (told,) = (r for r in empty_host.start().connect().attach() if isinstance(r, Attached))
    assert told.fence
    assert "no CAP_SYS_ADMIN, and no user namespace either: " in told.no_tree
    empty_host.kill()
    empty_host.kind = "tree"
    assert empty_host.spawn().wait(20.0) == 1
    assert f"no namespace for a tree: {told.no_tree}" in empty_host.warden_log()
