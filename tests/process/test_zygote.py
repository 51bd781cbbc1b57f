"""Workers come from their runtime's zygote: whatever dies there, nothing is lost or doubled."""

import ctypes
import functools
import importlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import posthouse
from posthouse import limits
from posthouse_agent import procfs, zygote_line
from posthouse_agent.orders import Confirm, Ended, Forked, ForkFailed, RenewRuntime, StopWorker
from posthouse_agent.zygote_line import PROTOCOL, PROTOCOL_MIN


def zygote_of(host):
    """The zygote is its own session's leader; its spares are in that session."""
    (pid,) = {procfs.read(pid).session for pid in host.zygotes()}
    return pid


def spares_of(host):
    return [pid for pid in host.zygotes() if procfs.read(pid).session != pid]


def test_worker_is_the_wardens_child_and_alone_in_its_session(host, agent):
    forked = host.begin(agent, "idle")
    worker = procfs.read(forked.pid)
    assert (worker.parent, worker.session) == (host.pid, forked.pid)
    assert procfs.read(zygote_of(host)).parent == host.pid
    assert (forked.runtime, len(forked.code)) == ("default", 12)


def test_zygote_dies_and_workers_live_on(host, agent, alive):
    forked = host.begin(agent, "idle")
    os.kill(zygote_of(host), signal.SIGKILL)
    assert host.run(agent, "nothing").facts["code"] == 0
    assert alive(forked.pid, forked.pid_start)


def test_zygotes_and_spares_die_with_the_warden(host, agent, eventually, alive):
    host.run(agent, "nothing")
    ours = host.zygotes()
    assert ours
    os.kill(host.pid, signal.SIGKILL)
    eventually(lambda: not any(map(alive, ours)))


def test_zygotes_end_with_the_warden_s_own_end(host, agent, eventually, alive):
    host.run(agent, "nothing")
    ours = host.zygotes()
    os.kill(host.pid, signal.SIGTERM)
    assert host.process.wait(20) == 0
    eventually(lambda: not any(map(alive, ours)))


def test_zygotes_killed_again_and_again_while_starts_go_on(host, agent):
    """Each start is answered once, with one process at the most that runs its main once."""
    orders = {}
    answered = {}
    for _ in range(8):
        for _ in range(3):
            order = host.order("report")
            orders[order.token] = order
            agent.give(order)
        for pid in host.zygotes():  # zygote, spares, and what is in the middle of a fork
            os.kill(pid, signal.SIGKILL)
        while set(answered) != set(orders):
            report = agent.receive()
            if isinstance(report, ForkFailed | Ended):
                assert report.token not in answered
                answered[report.token] = report
    ended = [report for report in answered.values() if isinstance(report, Ended)]
    for report in ended:
        lines = host.said(report.slot) if host.log_path(report.slot).exists() else []
        ran = sum("arg" in line for line in lines)
        assert ran == (report.facts.get("code") == 0), "main ran once, or the worker was killed"
    for report in answered.values():
        if isinstance(report, ForkFailed):
            assert not host.log_path(report.slot).exists() or not host.said(report.slot)
    assert host.run(agent, "nothing").facts["code"] == 0
    assert not host.strays()


def test_dead_spare_is_passed_over(host, agent, eventually, alive):
    host.run(agent, "nothing")
    spares = eventually(lambda: spares_of(host))
    for pid in spares:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not any(map(alive, spares)))
    assert host.run(agent, "nothing").facts["code"] == 0


def test_stopped_zygote_is_a_start_that_fails_in_time(host, agent, eventually, alive):
    """Nobody waits for ever for a zygote that hangs: its start is taken back by a stop."""
    host.run(agent, "nothing")
    killed = host.zygotes()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    # Else the last start below might be told to a spare that is just being killed.
    eventually(lambda: not any(map(alive, killed)))
    host.runtime_name, host.preload = "slow", ["endless"]
    order = host.order("nothing")
    agent.give(order)
    agent.give(StopWorker(token=order.token, slot=order.slot, reason="x", signal=0, grace_s=0))
    failed = agent.expect(ForkFailed, order.token)
    assert (failed.code, failed.retry) == ("recalled", True)
    host.runtime_name, host.preload = "default", []
    assert host.run(agent, "nothing").facts["code"] == 0


def test_runtime_has_its_path_environment_and_preloads(host, agent):
    host.runtime_name, host.preload = "loaded", ["preloaded"]
    host.runtime_env = {"SETTING": "seven"}
    forked = host.begin(agent, "preloaded:look")
    (said,) = host.said(forked.slot)
    assert said["setting"] == "seven"
    assert said["loaded_by"] != forked.pid, "loaded in the worker, not in its zygote"
    assert said["alarm"], "the handler that the preload had installed is still there"
    assert said["gc"] == [True, True]
    other = host.begin(agent, "preloaded:look")
    assert host.said(other.slot)[0]["loaded_by"] == said["loaded_by"]
    assert said["random"] != host.said(other.slot)[0]["random"]


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("absent", "preload absent: ModuleNotFoundError: No module named 'absent'"),
        ("failing_at_import", "preload failing_at_import: ValueError: not today"),
        ("leaving", "preload leaving: SystemExit: 3"),
        ("threading_one", "preload threading_one starts threads (1)"),
        ("loading_zmq", "preload loading_zmq loads ZeroMQ"),
    ],
)
def test_preloads_that_do_not_bear_a_fork_are_refused(host, agent, module, reason):
    host.runtime_name, host.preload = "bad", ["json", module]
    order = host.order("nothing")
    agent.give(order)
    failed = agent.expect(ForkFailed, order.token)
    assert failed.reason.startswith(f"runtime 'bad': {reason}")
    assert (failed.code, failed.retry) == ("preload_failed", False)
    host.runtime_name, host.preload = "default", []
    assert host.run(agent, "nothing").facts["code"] == 0


def test_interpreter_that_cannot_be_run(host, agent, tmp_path):
    host.runtime_name, host.interpreter = "gone", str(tmp_path / "python")
    order = host.order("nothing")
    agent.give(order)
    failed = agent.expect(ForkFailed, order.token)
    assert (failed.code, failed.retry) == ("runtime_unusable", True)
    assert f"{tmp_path}/python: No such file" in failed.reason


def test_changed_file_renews_the_zygote_and_leaves_workers_alone(host, agent, alive):
    code = host.folder / "code"
    code.mkdir()
    module = code / "versioned.py"
    body = "import json, time\ndef look(arg):\n    print(json.dumps({'version': VERSION}))\n"
    body += "    time.sleep(600)\n"
    module.write_text("VERSION = 1\n" + body)
    host.code, host.preload = str(code), ["versioned"]
    old = host.begin(agent, "versioned:look")
    _write_later(module, "VERSION = 2\n" + body)
    new = host.begin(agent, "versioned:look")
    assert [host.said(f.slot)[0]["version"] for f in (old, new)] == [1, 2]
    assert old.code != new.code
    assert alive(old.pid, old.pid_start)
    same = host.begin(agent, "versioned:look")
    assert same.code == new.code


def _write_later(path, text):
    """In another second than before: bytecode is of this source if second and size are the same."""
    then_s = path.stat().st_mtime
    path.write_text(text)
    os.utime(path, (then_s + 2, then_s + 2))


def test_renewal_on_demand(host, agent, alive):
    forked = host.begin(agent, "idle")
    before = zygote_of(host)
    agent.give(RenewRuntime(name="default"))
    host.run(agent, "nothing")
    assert zygote_of(host) != before
    assert alive(forked.pid, forked.pid_start)


def test_every_code_of_a_runtime_is_in_the_reference():
    """Strangers' masters read them in START_FAILED."""
    root = Path(__file__).parents[2]
    told = tomllib.loads((root / "docs" / "reference" / "notes.toml").read_text())["start_failed"]
    source = "".join(
        (root / "agent" / "posthouse_agent" / name).read_text()
        for name in ("boot.py", "zygote.py", "zygotes.py", "warden_core.py")
    )
    codes = set(re.findall(r'"((?:runtime|preload)_(?:un\w+|f\w+|s\w+)|recalled)"', source))
    assert {"runtime_slow", "preload_failed", "recalled"} <= codes <= set(told) | {"runtime_files"}


def test_changed_configuration_makes_a_new_zygote(host, agent):
    host.run(agent, "nothing")
    before = zygote_of(host)
    host.runtime_env = {"NEW": "1"}
    ended = host.run(agent, "environment")
    assert host.said(ended.slot)[0]["env"]["NEW"] == "1"
    assert zygote_of(host) != before


def test_no_variable_of_ours_is_left_over(host, agent):
    """The loader's option is the zygote's own."""
    ended = host.run(agent, "environment")
    assert "LD_BIND_NOW" not in host.said(ended.slot)[0]["env"]
    host.runtime_env = {"LD_BIND_NOW": "x"}
    ended = host.run(agent, "environment")
    assert host.said(ended.slot)[0]["env"]["LD_BIND_NOW"] == "x"


def test_largest_registration(host, agent):
    """It does not fit into one packet between warden and spare."""
    arg = {"text": "\x01" * 30_000, "bytes": b"\xff" * 30_000, "odd": {"$bytes": [{"$map": 1}]}}
    ended = host.run(agent, "report", arg, extra=b"\x00" * limits.extra_bytes_max)
    told = host.said(ended.slot)[0]
    assert told["main_arg"] == repr(arg)
    assert told["extra"] == "00" * limits.extra_bytes_max
    agent.give(Confirm(tokens=[ended.token]))


def test_many_starts_at_once(host, agent):
    orders = [host.order("nothing") for _ in range(40)]
    for order in orders:
        agent.give(order)
    pids = {agent.expect(Forked, order.token).pid for order in orders}
    assert len(pids) == len(orders)
    for order in orders:
        assert agent.expect(Ended, order.token).facts["code"] == 0
    assert len(spares_of(host)) <= limits.spares_max + limits.spares_at_once_max


def test_files_of_the_zygote_are_closed_in_a_worker(host, agent):
    ended = host.run(agent, "descriptors")
    targets = sorted(host.said(ended.slot)[0]["fds"].values())
    sockets = [target for target in targets if target.startswith("socket:")]
    assert len(sockets) == 1, "its channel, and nothing of the zygote's"
    assert str(Path(host.home, "host.lock")) in targets


# --- other interpreters and environments ---


@functools.cache
def interpreters():
    """Other minor versions of Python on this machine: (version, path)."""
    found = {}
    folders = os.environ.get("PATH", "").split(os.pathsep)
    roots = [Path(folder) for folder in folders if folder]
    roots += sorted(Path.home().glob(".pyenv/versions/*/bin"))
    for root in roots:
        for path in root.glob("python3.[0-9]*"):
            if re.fullmatch(r"python3\.\d+", path.name) and path.name not in found:
                asked = "import sys; print(*sys.version_info[:2])"
                run = subprocess.run([path, "-c", asked], capture_output=True, text=True)
                if run.returncode == 0 and run.stdout.split() != [*map(str, sys.version_info[:2])]:
                    found[path.name] = (tuple(map(int, run.stdout.split())), str(path))
    return sorted(found.values())


def interpreter(good):
    for version, path in interpreters():
        if good(version):
            return path
    pytest.skip("this machine has no other minor version of Python that would do")


@pytest.fixture(params=[(3, 12), (3, 13)], ids=lambda version: "{}.{}".format(*version))
def other_python(request, tmp_path):
    """A virtual environment of another minor version, with nothing in it."""
    path = interpreter(lambda version: version == request.param)
    subprocess.run([path, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    return str(tmp_path / "venv" / "bin" / "python")


def site_packages(python):
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.check_output([python, "-c", asked], text=True).strip())


def test_worker_in_another_version_of_python_that_knows_nothing_of_posthouse(
    host, agent, other_python
):
    """It has the host's own copy, and nothing else of the host's packages."""
    host.runtime_name, host.interpreter = "other", other_python
    (site_packages(other_python) / "theirs.py").write_text("WORD = 'theirs'\n")
    host.preload = ["theirs"]
    forked = host.begin(agent, "elsewhere:look", {"data": b"\x00"})
    (said,) = host.said(forked.slot)
    assert said["version"] != list(sys.version_info[:2])
    assert said["executable"] == other_python
    assert said["word"] == "theirs"
    assert said["name"] == f"w{forked.token}"
    assert said["arg"] == repr({"data": b"\x00"})
    assert said["absent"] == ["zmq", "msgspec", "msgpack", "click"], "the host's packages"
    agent.give(StopWorker(token=forked.token, slot=forked.slot, reason="x", signal=15, grace_s=60))
    ended = agent.expect(Ended, forked.token)
    assert ended.facts["code"] == 1
    assert "terminating background worker" in ended.facts["output_tail"]


def test_environment_with_a_posthouse_of_its_own(host, agent, other_python):
    """Another version of it, which speaks the same version of the zygote's protocol."""
    packages = site_packages(other_python)
    for name in ("posthouse", "posthouse_agent"):
        package = sys.modules[name] if name in sys.modules else importlib.import_module(name)
        shutil.copytree(Path(package.__file__).parent, packages / name)
    text = (packages / "posthouse" / "__init__.py").read_text()
    (packages / "posthouse" / "__init__.py").write_text(
        text.replace(f'__version__: Final = "{posthouse.__version__}"', '__version__ = "9.9"')
    )
    host.runtime_name, host.interpreter = "own", other_python
    forked = host.begin(agent, "elsewhere:look")
    (said,) = host.said(forked.slot)
    assert said["posthouse"] == "9.9"

    line = packages / "posthouse_agent" / "zygote_line.py"
    ours = f"this host {PROTOCOL_MIN} to {PROTOCOL}"
    for low, high in ((0, 0), (76, 77)):  # 0 would drop the databases and the shared memory
        text = re.sub(
            r"^PROTOCOL = .*$", f"PROTOCOL = {high}", line.read_text(), flags=re.MULTILINE
        )
        line.write_text(
            re.sub(r"^SERVES_MIN = .*$", f"SERVES_MIN = {low}", text, flags=re.MULTILINE)
        )
        host.runtime_env = {"AGAIN": str(high)}
        order = host.order("elsewhere:look", flags=1)
        agent.give(order)
        failed = agent.expect(ForkFailed, order.token)
        assert (failed.code, failed.retry) == ("runtime_unusable", False)
        assert "posthouse 9.9" in failed.reason
        assert f"speaks versions {low} to {high} of the zygote's protocol, {ours}" in failed.reason

    (packages / "posthouse_agent" / "zygote.py").unlink()
    host.runtime_env = {"AGAIN": "1"}
    order = host.order("elsewhere:look")
    agent.give(order)
    failed = agent.expect(ForkFailed, order.token)
    assert "posthouse 9.9 in the environment of" in failed.reason
    assert "is too old" in failed.reason


def test_a_warden_from_before_an_upgrade_is_served():
    """It runs on, and its zygotes are made from the new files: it speaks version 0, and says
    nothing of what came later."""
    libc = ctypes.CDLL(None, use_errno=True)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(20)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    folder = Path(posthouse.__file__).parent
    boot = Path(procfs.__file__).parent / "boot.py"
    argv = [sys.executable, "-P", str(boot), str(theirs.fileno()), str(os.getpid()), str(folder)]
    assert libc.prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER, as a warden is
    try:
        with subprocess.Popen(argv, pass_fds=[theirs.fileno()]) as zygote:
            theirs.close()
            load = {"op": "load", "protocol": [0, 0], "name": "old", "path": [], "preload": []}
            zygote_line.send(ours, {**load, "bind_now": None})
            zygote_line.send(ours, {"op": "fork", "count": 1})
            heard = []
            while "spare" not in heard:
                received = zygote_line.receive(ours)
                assert received is not None, heard
                assert received.message["op"] in ("files", "ready", "spare"), received.message
                heard.append(received.message["op"])
            os.close(received.descriptors[0])  # it ends by that
            os.waitpid(received.pid, 0)
            ours.close()
            zygote.wait(20)
    finally:
        libc.prctl(36, 0, 0, 0, 0)


def test_version_of_python_that_is_too_old(host, agent):
    host.runtime_name = "old"
    host.interpreter = interpreter(lambda version: version < (3, 11))
    order = host.order("nothing")
    agent.give(order)
    failed = agent.expect(ForkFailed, order.token)
    assert (failed.code, failed.retry) == ("runtime_unusable", False), host.warden_log()
    assert "posthouse needs 3.11 or newer" in failed.reason


def test_spares_of_a_dead_zygote_are_not_used_once_their_code_has_changed(
    host, agent, eventually, alive
):
    code = host.folder / "code"
    code.mkdir()
    module = code / "versioned.py"
    body = "import json\ndef look(arg):\n    print(json.dumps({'version': VERSION}))\n"
    module.write_text("VERSION = 1\n" + body)
    host.code, host.preload = str(code), ["versioned"]
    host.run(agent, "versioned:look")
    eventually(lambda: spares_of(host))
    zygote = zygote_of(host)
    os.kill(zygote, signal.SIGKILL)
    eventually(lambda: not alive(zygote))
    _write_later(module, "VERSION = 2\n" + body)
    ended = host.run(agent, "versioned:look")
    assert host.said(ended.slot) == [{"version": 2}]


def test_file_that_changes_while_it_is_loaded(host, agent):
    """What was loaded may be what is on the disk now, or what was there before: load it again."""
    code = host.folder / "code"
    code.mkdir()
    body = "import json\ndef look(arg):\n    print(json.dumps({'version': VERSION}))\n"
    second = f"VERSION = 2\n{body}"
    first = f"VERSION = 1\nfrom pathlib import Path\nPath(__file__).write_text({second!r})\n{body}"
    (code / "restless.py").write_text(first)
    host.code, host.preload = str(code), ["restless"]
    ended = host.run(agent, "restless:look")
    assert host.said(ended.slot) == [{"version": 2}]
