"""Workers of another user than the warden's: what they become, reach, and leave."""

import grp
import os
import pwd
import shutil
import signal
import sys
from pathlib import Path

import pytest

from posthouse_agent.orders import Attached, Ended, Forked, ForkFailed, SignalWorker, StopWorker

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")

CODE = Path(__file__).parent / "code"
NEEDED = ("chown", "dac_read_search", "kill", "setgid", "setuid", "sys_ptrace")


@pytest.fixture
def user():
    """Somebody with a number, who is not root."""
    for name in ("nobody", "daemon"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return pytest.skip("no users here but root")


@pytest.fixture
def host(empty_host):
    """Its code may be read by everybody; the rest of it is closed."""
    opened = empty_host.folder / "code"
    opened.mkdir()
    shutil.copy(CODE / "other_user.py", opened)
    empty_host.folder.chmod(0o755)
    opened.chmod(0o755)
    empty_host.code = str(opened)
    empty_host.env = {"XDG_RUNTIME_DIR": "/run/user/0"}
    return empty_host


@pytest.fixture
def agent(host):
    return host.start().agent()


def look(host, agent, user, **spec):
    ended = host.run(agent, "other_user:look", run_as=user.pw_name, **spec)
    assert ended.facts["code"] == 0, ended.facts
    return ended, host.said(ended.slot)[0]


def test_a_worker_becomes_the_user_entirely(host, agent, user):
    ended, found = look(host, agent, user, nice=-1, umask=0o027, rlimits={"NOFILE": 99})
    assert found["uids"] == [user.pw_uid] * 3
    assert found["gids"] == [user.pw_gid] * 3
    assert set(found["groups"]) == set(os.getgrouplist(user.pw_name, user.pw_gid))
    assert set(found["capabilities"]) == {"0" * 16}
    assert found["no_new_privs"] == "1"
    assert found["pdeathsig"] == signal.SIGKILL  # a change of user takes it off: set after it
    assert found["dumpable"] == 1
    assert found["own_environment"] == "True"
    assert found["env"] == {
        "HOME": user.pw_dir,
        "USER": user.pw_name,
        "LOGNAME": user.pw_name,
        "SHELL": user.pw_shell or "/bin/sh",
    }
    assert found["session_variables"] == []
    # what only root may do was done before
    assert (found["nice"], found["umask"], found["nofile"]) == (-1, "27", [99, 99])
    log = host.log_path(ended.slot).stat()
    assert (log.st_uid, log.st_gid, log.st_mode & 0o777) == (user.pw_uid, os.getegid(), 0o640)
    assert found["reopened"] == "None"
    assert host.logs.stat().st_mode & 0o007 == 0


def test_the_worker_s_own_variables_win(host, agent, user):
    _, found = look(host, agent, user, env={"HOME": "/elsewhere"})
    assert found["env"]["HOME"] == "/elsewhere"


def test_groups_come_with_the_user(host, agent):
    """initgroups: all of them, and none of the warden's."""
    members = {name: g.gr_gid for g in grp.getgrall() for name in g.gr_mem}
    name = next((n for n in members if _exists(n) and pwd.getpwnam(n).pw_uid), None)
    if name is None:
        pytest.skip("nobody here has a second group")
    _, found = look(host, agent, pwd.getpwnam(name))
    assert members[name] in found["groups"]
    assert os.getegid() not in found["groups"]


def _exists(name):
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def test_latch_readiness_and_last_words_reach_another_user(host, agent, user, eventually):
    forked = host.begin(agent, "other_user:rounds", run_as=user.pw_name)
    with agent.channel(forked.token) as channel:
        assert channel.recv(100).startswith(b'{"op":"ready"')
    agent.set_latch(forked.token)
    eventually(lambda: {"woken": True} in host.said(forked.slot))
    agent.give(SignalWorker(token=forked.token, signal=signal.SIGTERM))
    assert agent.expect(Ended, forked.token).facts["code"] == 1
    failed = host.run(agent, "other_user:fail", run_as=user.pw_name)
    assert failed.facts["traceback"].endswith("ValueError: not as this user\n")
    assert "ValueError" in failed.facts["output_tail"]


def test_programs_run_as_another_user(host, agent, user):
    ended = host.run(agent, "posthouse.exec", ["id", "-u"], run_as=user.pw_name)
    assert ended.facts["output_tail"] == f"{user.pw_uid}\n"


def test_the_whole_tree_of_another_user_is_ended(host, agent, user, alive):
    forked = host.begin(agent, "other_user:family", run_as=user.pw_name)
    child = host.said(forked.slot)[0]["child"]
    stop = StopWorker(
        token=forked.token, slot=forked.slot, reason="hold", signal=signal.SIGTERM, grace_s=0.2
    )
    agent.give(stop)
    ended = agent.expect(Ended, forked.token)
    assert (ended.facts["signal"], ended.stop) == (signal.SIGKILL, "hold")
    assert not alive(child)
    leaver = host.run(agent, "other_user:family", "leave", run_as=user.pw_name)
    assert (leaver.facts["cause"], leaver.facts["code"]) == ("daemonised", 1)
    assert not alive(host.said(leaver.slot)[0]["child"])


def test_a_killed_warden_takes_workers_of_other_users_along(host, agent, user, eventually, alive):
    forked = host.begin(agent, "other_user:rounds", run_as=user.pw_name)
    host.kill()
    eventually(lambda: not alive(forked.pid, forked.pid_start))


@pytest.mark.parametrize("opened", [False, True])
def test_what_a_worker_of_another_user_can_reach(host, agent, user, opened):
    """Not the daemons: their folder is closed, and behind an open door the warden looks at who
    calls. Its own user's processes it can signal, as the kernel allows: give each kind of worker
    a user of its own."""
    neighbour = host.begin(agent, "other_user:rounds", run_as=user.pw_name)
    if opened:
        for folder in (host.runtime, host.home):
            folder.chmod(0o755)
        Path(host.socket_path).chmod(0o777)
    ended = host.run(
        agent,
        "other_user:reach",
        {
            "socket": host.socket_path,
            "logs": str(host.logs),
            "neighbour": neighbour.pid,
            "open": opened,
        },
        run_as=user.pw_name,
    )
    found = host.said(ended.slot)[0]
    assert found.pop("neighbour") == "None"
    if opened:
        assert found.pop("connect") in ("b''", "ConnectionResetError")
        found.pop("folder")
    assert set(found.values()) == {"PermissionError"}, found
    assert host.run(agent, "other_user:look").facts["code"] == 0  # the warden minds nothing


@pytest.mark.parametrize("main", ["other_user:look", "posthouse.exec"])
def test_a_user_that_does_not_exist(host, agent, main):
    facts = host.run(agent, main, ["true"], run_as="no-such-user").facts
    assert facts["code"] == 1
    assert "run_as: there is no user 'no-such-user' on this host" in facts["traceback"]


def test_a_folder_that_only_root_may_enter(host, agent, user):
    closed = host.folder / "closed"
    closed.mkdir(mode=0o700)
    facts = host.run(agent, "other_user:look", run_as=user.pw_name, cwd=str(closed)).facts
    assert facts["code"] == 1
    assert f"Permission denied: '{closed}'" in facts["traceback"]
    assert "(step: user)" in facts["traceback"]


# --- its output file ---


def second_start(host, agent, first, **spec):
    order = host.order("other_user:look", slot=first.slot, **spec)
    agent.give(order)
    return order, agent.expect((Forked, ForkFailed), order.token)


def test_output_goes_back_to_the_warden_s_user(host, agent, user):
    first, _ = look(host, agent, user)
    host.log_path(first.slot).chmod(0o666)  # as its owner may have done
    order, _ = second_start(host, agent, first)
    assert agent.expect(Ended, order.token).facts["code"] == 0
    log = host.log_path(first.slot).stat()
    assert (log.st_uid, log.st_mode & 0o777) == (os.geteuid(), 0o640)


@pytest.mark.parametrize("next_user", [None, "same"])
def test_output_with_a_second_name_is_refused(host, agent, user, next_user):
    """The user of an earlier start may have linked it elsewhere, to go on writing there."""
    first, _ = look(host, agent, user)
    os.link(host.log_path(first.slot), host.folder / "second-name")
    spec = {} if next_user is None else {"run_as": user.pw_name}
    _, answer = second_start(host, agent, first, **spec)
    assert isinstance(answer, ForkFailed)
    assert (answer.code, answer.retry) == ("fork_failed", True)
    assert "has 2 names: remove it" in answer.reason


def test_a_link_to_another_file_gives_nothing_away(host, agent, user):
    victim = host.folder / "victim"
    victim.write_text("root's")
    order = host.order("other_user:look", run_as=user.pw_name)
    os.link(victim, host.log_path(order.slot))
    agent.give(order)
    assert "has 2 names" in agent.expect(ForkFailed, order.token).reason
    assert (victim.stat().st_uid, victim.read_text()) == (0, "root's")


# --- who may ask for it ---


def without(*capabilities):
    taken = ",".join(f"-{name}" for name in capabilities)
    return ["setpriv", f"--bounding-set={taken}", f"--inh-caps={taken}"]


def start_as(host, *prefix):
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv here")
    host.python = [*prefix, sys.executable, "-P"]


@pytest.mark.parametrize("capability", NEEDED)
def test_a_warden_without_the_rights_refuses_to_start(host, user, capability):
    start_as(host, *without(capability))
    host.options = ["--users", user.pw_name]
    assert host.spawn().wait(20) == 1
    text = host.warden_log()
    assert f"cannot start: workers are to run as {user.pw_name}" in text
    assert f"lacks CAP_{capability.upper()} (" in text
    assert "take users out of the agent's configuration" in text


def test_a_warden_that_was_not_asked_refuses_the_order(host, user):
    start_as(host, *without("kill"))
    caller = host.start().connect()
    attached = caller.attach()[0]
    assert isinstance(attached, Attached)
    assert not attached.run_as
    order = host.order("other_user:look", run_as=user.pw_name)
    caller.give(order)
    failed = caller.expect(ForkFailed, order.token)
    assert (failed.code, failed.retry) == ("bad_order", False)
    assert f"cannot run workers as '{user.pw_name}': it lacks CAP_KILL (to end it)" in failed.reason
    assert host.run(caller, "other_user:look", run_as="root").facts["code"] == 0


def test_a_warden_of_root_says_that_it_may(host, user):
    host.options = ["--users", f"{user.pw_name},root"]
    assert host.start().connect().attach()[0].run_as


def test_a_warden_of_another_user_with_just_these_rights(host, user):
    """As systemd's AmbientCapabilities give them. The worker has none of them."""
    needed = ",".join(f"+{name}" for name in NEEDED)
    start_as(
        host,
        *("setpriv", "--reuid=61235", "--regid=61235", "--clear-groups"),
        *(f"--inh-caps=-all,{needed}", f"--ambient-caps=-all,{needed}"),
    )
    os.chown(host.folder, 61_235, 61_235)
    host.options = ["--users", user.pw_name]
    agent = host.start().agent()
    _, found = look(host, agent, user)
    assert found["uids"] == [user.pw_uid] * 3
    assert set(found["capabilities"]) == {"0" * 16}
    forked = host.begin(agent, "other_user:rounds", run_as=user.pw_name)
    agent.give(SignalWorker(token=forked.token, signal=signal.SIGKILL))
    assert agent.expect(Ended, forked.token).facts["signal"] == signal.SIGKILL


@pytest.mark.parametrize(("mode", "owner"), [(0o777, 0), (0o770, 0), (0o750, 4711)])
def test_output_folders_that_others_may_write_in(host, user, mode, owner):
    host.logs.mkdir()
    host.logs.chmod(mode)
    os.chown(host.logs, owner, owner)
    host.options = ["--users", user.pw_name]
    assert host.spawn().wait(20) == 1
    assert "with workers of other users it must be the warden's alone" in host.warden_log()
