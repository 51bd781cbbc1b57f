"""The public names: complete, lazy, light, and importable where Linux's own names do not exist."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import posthouse
from posthouse import (
    SHMEM_ACCESS,
    BackgroundWorker,
    Cursor,
    Event,
    EventKind,
    ExitFacts,
    HandleId,
    HostInfo,
    Output,
    Status,
    WorkerInfo,
    WorkerState,
)

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


@pytest.mark.parametrize("module", ["posthouse", "posthouse.aio"])
def test_the_documented_names_are_the_public_ones(module: str) -> None:
    """Each has its place on the page of the Python API, and no other name has."""
    page = (HOUSE.parent.parent / "docs/reference/python.md").read_text()
    part = page.partition(f"\n## {module}\n")[2].partition("\n## ")[0]
    found = set(re.findall(r"^### (?:class )?(?:aio\.)?(\w+)$", part, re.MULTILINE))
    found |= set(re.findall(r"^(\w+) = ", part, re.MULTILINE))  # constants
    found |= set(re.findall(r"\[(\w+)\]\(errors.md#", part))
    modules = {"aio", "shmem", "worker"} if module == "posthouse" else set()
    assert found | modules == set(importlib.import_module(module).__all__)


REPRS = [
    (BackgroundWorker(name="w", main="m:f"), "BackgroundWorker(name='w', main='m:f')"),
    (Cursor(1, 7), "Cursor('1/7')"),
    (HandleId("ab" * 16, 3, 2), f"HandleId('{'ab' * 16}:3.2')"),
    (
        Status(state=WorkerState.STARTED, name="w", host="b", pid=7),
        "Status(state=<WorkerState.STARTED: 'started'>, name='w', host='b', pid=7)",
    ),
    (
        Event(timeline=1, sequence=2, kind=EventKind.READY, at_unix_s=0.5, host="b"),
        "Event(timeline=1, sequence=2, kind=<EventKind.READY: 'ready'>, at_unix_s=0.5, host='b')",
    ),
    (ExitFacts(cause="signaled", signal=9), "ExitFacts(cause='signaled', signal=9)"),
    (HostInfo(name="b", reachable=True), "HostInfo(name='b', reachable=True)"),
    (
        WorkerInfo(
            status=Status(state=WorkerState.STARTED, name="w"),
            spec={"main": "m:f", "main_arg": "secret", "env": {"KEY": "secret"}},
            by="client:local",
        ),
        (
            "WorkerInfo(status=Status(state=<WorkerState.STARTED: 'started'>, name='w'),"
            " spec={'main': 'm:f', 'main_arg': ..., 'env': ...}, by='client:local')"
        ),
    ),
    (Output("b", 0, b"text", 4, 0), "Output(host='b', offset=0, data=b'text', size=4, lost=0)"),
    (SHMEM_ACCESS, "<Flags.SHMEM_ACCESS: 1>"),
]


@pytest.mark.parametrize(("value", "shown"), REPRS, ids=[type(r[0]).__name__ for r in REPRS])
def test_reprs_say_what_matters_and_no_secret(value: object, shown: str) -> None:
    """What is as by default is left out; main_arg, extra and env are never shown."""
    assert repr(value) == shown


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


def test_the_blocking_client_loads_no_asyncio() -> None:
    code = "import sys, posthouse; posthouse.connect; print('asyncio' in sys.modules); "
    assert run(code + "posthouse.aio; print('asyncio' in sys.modules)") == "False\nTrue"


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
REAL, sys.platform = sys.platform, "PLATFORM"
import posthouse
from posthouse import client, session, spec, transport, engine, handle, follow, config, paths
spec.BackgroundWorker(name="w", main="m:f").check()
settings = posthouse.ClientSettings(master="tcp://127.0.0.1:9", insecure=True, timeout_s=0.2)
try:
    posthouse.connect(settings=settings)
except posthouse.Unreachable as error:
    print("unreachable" in error.code)
sys.platform = REAL  # asyncio chooses by it what to load; all of ours is loaded after that
import asyncio
sys.platform = "PLATFORM"
from posthouse import aio
async def main():
    try:
        await aio.connect(settings=settings)
    except posthouse.Unreachable as error:
        print("unreachable" in error.code)
sys.platform = REAL
loop = asyncio.SelectorEventLoop()
sys.platform = "PLATFORM"
loop.run_until_complete(main())
loop.close()
"""


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_the_client_works_without_linux(platform: str) -> None:
    assert run(HIDDEN.replace("PLATFORM", platform)) == "True\nTrue"
