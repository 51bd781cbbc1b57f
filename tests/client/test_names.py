"""The public names: complete, lazy, light, and importable where Linux's own names do not exist."""

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import posthouse

HOUSE = Path(posthouse.__file__).parent


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", posthouse.__all__)
def test_every_public_name_exists(name: str) -> None:
    assert getattr(posthouse, name) is not None


def test_star_import_and_dir_know_them_all() -> None:
    found: dict[str, object] = {}
    exec("from posthouse import *", found)
    assert set(posthouse.__all__) <= found.keys()
    assert set(posthouse.__all__) <= set(dir(posthouse))
    assert list(posthouse.__all__) == sorted(set(posthouse.__all__), key=posthouse.__all__.index)
    with pytest.raises(AttributeError, match="no attribute 'regsiter'"):
        _ = posthouse.regsiter  # type: ignore[attr-defined]


def test_the_type_checkers_names_are_the_same() -> None:
    """What stands under TYPE_CHECKING is what __getattr__ gives, from the same module."""
    tree = ast.parse((HOUSE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {"__version__"}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        assert node.module is not None
        for alias in node.names:
            seen.add(alias.name)
            value = getattr(posthouse, alias.name)
            if node.module != "posthouse":
                assert value is getattr(importlib.import_module(node.module), alias.name)
    assert seen == set(posthouse.__all__)


def test_every_error_is_public() -> None:
    from posthouse import errors

    assert set(errors.__all__) - {"from_wire"} <= set(posthouse.__all__)


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((HOUSE.parent.parent / "pyproject.toml").read_text())["project"]
    assert project["version"] == posthouse.__version__


LOADED = """
import sys
import importlib, typing
before = set(sys.modules)
import posthouse
{more}
loaded = set(sys.modules) - before
import threading
assert threading.active_count() == 1
roots = {{name.partition(".")[0] for name in loaded}}
print(*sorted(roots - set(sys.stdlib_module_names)))
print(*sorted(loaded))
"""


def test_importing_posthouse_loads_next_to_nothing() -> None:
    """Nothing but itself, beyond what typing loads: about 10 ms in all."""
    third_party, modules = run(LOADED.format(more="")).splitlines()
    assert (third_party, modules) == ("posthouse", "posthouse")


def test_a_record_needs_no_third_party() -> None:
    more = "posthouse.BackgroundWorker(name='w', main='m:f').check(); posthouse.HandleId"
    third_party, _ = run(LOADED.format(more=more)).splitlines()
    assert third_party == "posthouse"


def test_the_client_needs_only_the_base() -> None:
    third_party, _ = run(LOADED.format(more="posthouse.connect; posthouse.Event")).splitlines()
    compiled = {name for name in third_party.split() if "cython" in name}  # pyzmq and msgpack are
    of_pyzmq = {"typing_extensions"}
    found = set(third_party.split()) - compiled - of_pyzmq
    assert found == {"posthouse", "zmq", "msgpack", "msgspec"}


HIDDEN = """
import sys
import zmq, zmq.utils.monitor, zmq.utils.z85, msgpack, msgspec, tomllib, tempfile, platform
import subprocess, socket, threading, weakref, ipaddress, difflib, pathlib, os, time, signal
for module in ("fcntl", "resource", "pwd", "grp", "termios", "pty", "tty", "syslog", "posix"):
    sys.modules[module] = None
for name in ("pidfd_open eventfd eventfd_read eventfd_write memfd_create fork forkpty "
             "getuid geteuid getgid getegid getgroups setuid setgid setsid waitid wait3 wait4 "
             "O_DIRECTORY O_NOFOLLOW O_CLOEXEC getpgid setpgid nice fchmod fchown chown prctl "
             "register_at_fork posix_spawn uname pipe2").split():
    if hasattr(os, name):
        delattr(os, name)
for name in "CLOCK_BOOTTIME clock_gettime CLOCK_MONOTONIC".split():
    delattr(time, name)
for name in "SIGHUP SIGUSR1 SIGUSR2 SIGKILL SIGCHLD pthread_sigmask sigwait set_wakeup_fd".split():
    delattr(signal, name)
for name in "SOCK_SEQPACKET SO_PEERCRED SCM_RIGHTS SCM_CREDENTIALS".split():
    delattr(socket, name)
sys.platform = "PLATFORM"
import posthouse
from posthouse import client, session, spec, transport, engine, handle, follow, config, paths
spec.BackgroundWorker(name="w", main="m:f").check()
settings = posthouse.ClientSettings(master="tcp://127.0.0.1:9", insecure=True, timeout_s=0.2)
try:
    posthouse.connect(settings=settings)
except posthouse.Unreachable as error:
    print("unreachable" in error.code)
"""


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_the_client_works_without_linux(platform: str) -> None:
    assert run(HIDDEN.replace("PLATFORM", platform)) == "True"
