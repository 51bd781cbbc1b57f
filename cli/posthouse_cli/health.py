"""What `posthouse doctor` looks at: this machine, measured against what its settings ask for.

Owns: the checks. Must not know: how they are printed. Invariant: a check reads only; it makes no
folder, opens no port, starts no process but one that tries out whether a namespace can be had, and
one that cannot look says so instead of "ok".
"""

import ctypes
import errno
import functools
import os
import platform
import resource
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from posthouse import keys, limits
from posthouse.config import Loaded
from posthouse.errors import ConfigError
from posthouse.settings import AgentSettings, ClientSettings, MasterSettings
from posthouse_cli import settled
from posthouse_cli.durations import shown

__all__ = ["KINDS", "Finding", "examine"]

KINDS: Final = ("master", "agent", "client")
_AGENT_SPARE: Final = 64  # descriptors of an agent besides two a worker
_MASTER_SPARE: Final = 64  # of a master besides one a session
_PYTHON: Final = (3, 11)
_ZMQ: Final = (4, 3)
_OLDEST_S: Final = 1_735_689_600  # 2025: before it nothing of posthouse existed
_TIME_ERROR: Final = 5  # adjtimex: the clock is not synchronised
_TRY_S: Final = 10.0  # making a namespace takes milliseconds

Verdict = Literal["ok", "warn", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; `hint` says what to do."""

    check: str
    verdict: Verdict
    what: str
    hint: str = ""


def examine(kinds: Sequence[str], *, master: str | None = None) -> list[Finding]:
    """Everything that concerns these kinds of programs here."""
    found = [_python(), _zmq(), _clock()]
    if "agent" in kinds:
        found += _kernel()
    for kind in kinds:
        flags = {"master": master} if kind == "client" else None
        try:
            loaded = settled.load(kind, None, flags)
        except ConfigError as error:
            found.append(Finding(f"{kind}.config", "bad", error.message, error.hint))
            continue
        file = settled.file_of(kind)
        there = file if Path(file).exists() else f"no {file}"
        found.append(Finding(f"{kind}.config", "ok", f"{there}, and environment"))
        found += [Finding(f"{kind}.config", "warn", told) for told in loaded.warnings]
        found += _KIND_CHECKS[kind](loaded)
    return found


# --- the machine ---


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info < _PYTHON:
        return Finding("python", "bad", f"Python {version}", "3.11 or newer is needed")
    return Finding("python", "ok", f"Python {version}")


def _zmq() -> Finding:
    try:
        import zmq
    except ImportError as error:
        return Finding("libzmq", "bad", f"cannot be loaded: {error}", "install pyzmq")
    version = zmq.zmq_version()
    if zmq.zmq_version_info()[:2] < _ZMQ:
        return Finding("libzmq", "bad", f"libzmq {version}", "4.3 or newer is needed")
    if not zmq.has("curve"):
        what = f"libzmq {version} has no CURVE: only sockets of this machine can be used"
        return Finding("libzmq", "warn", what, "the wheels of pyzmq have it")
    return Finding("libzmq", "ok", f"libzmq {version}, with CURVE")


def _clock() -> Finding:
    if time.time() < _OLDEST_S:
        return Finding("clock", "bad", f"the date is {time.ctime()}", "set the clock")
    state = _adjtimex()
    if state is None:
        return Finding("clock", "ok", "whether it is synchronised cannot be asked here")
    if state == _TIME_ERROR:
        return Finding(
            "clock",
            "warn",
            "the kernel says that it is not synchronised: times of events are as wrong as it is "
            "(leases and delays do not depend on it)",
            "run an NTP client",
        )
    return Finding("clock", "ok", "synchronised")


def _adjtimex() -> int | None:
    """The kernel's word on its clock; a struct of zeros asks and sets nothing."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        state = int(library.adjtimex(ctypes.create_string_buffer(512)))
    except (OSError, AttributeError):
        return None
    return state if state >= 0 else None


def _kernel() -> Iterator[Finding]:
    """What guards workers here."""
    if sys.platform != "linux":
        yield Finding("fences", "bad", f"{sys.platform} has no fences", "agents need Linux")
        return
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        told = errno.errorcode.get(error.errno or 0, str(error))
        yield Finding("fences", "bad", f"no pidfd: {told}", "Linux 5.3 or newer is needed")
    else:
        yield _fences()
        yield _fuse()
    from posthouse_agent.cgroups import own_folder

    own = own_folder("")
    if own is None:
        what = "no cgroup of version 2: what a worker leaves behind is found by looking"
        yield Finding("cgroups", "warn", what, "Delegate=yes in the warden's unit gives it one")
    elif not os.access(own, os.W_OK):
        yield Finding(
            "cgroups", "warn", f"{own} may not be written", "Delegate=yes in the warden's unit"
        )
    else:
        yield Finding("cgroups", "ok", own)


def _fences() -> Finding:
    """Which ones are available. A user other than this one may have other rights."""
    process = "process (a worker's own process ends with its warden)"
    if lacking := _no_tree():
        what = f"available: {process}; not tree: {lacking}"
        hint = "programs and run_as are placed here only with fence = 'process'"
        return Finding("fences", "warn", what, hint)
    tree = "tree (all that it starts does, too)"
    return Finding("fences", "ok", f"available: {process}, {tree}")


@functools.cache
def _no_tree() -> str:
    """Tried out in a program of its own: this one may have threads."""
    program = "from posthouse_agent.namespace import lacking; print(lacking())"
    argv = [sys.executable, "-P", "-c", program]
    try:
        ran = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=_TRY_S)
    except (OSError, subprocess.SubprocessError):
        return "it could not be tried out"
    return ran.stdout.strip()


def _fuse() -> Finding:
    """Whether a warden here would get the timer that ends it with its lease."""
    from posthouse_agent.native import Fuse

    try:
        Fuse()
    except OSError as error:
        what = f"the kernel gives no timer: {error.strerror}"
        hint = "without it no worker that may move is placed here; ulimit -i raises the limit"
        return Finding("fuse", "warn", what, hint)
    return Finding(
        "fuse", "ok", "the kernel ends a warden with its lease, also one that is stopped"
    )


def _descriptors(check: str, needed: int, hint: str) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard in (resource.RLIM_INFINITY, -1) or hard >= needed:
        return Finding(
            check,
            "ok",
            f"{_count(hard)} may be open (soft {_count(soft)}), at most {needed} are needed",
        )
    return Finding(check, "warn", f"{hard} may be open, up to {needed} are needed", hint)


def _processes(check: str, needed: int) -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft in (resource.RLIM_INFINITY, -1) or soft >= needed:
        return Finding(check, "ok", f"{_count(soft)} of this user, at most {needed} workers here")
    what = f"{soft} of this user, and up to {needed} workers here"
    return Finding(check, "warn", what, "ulimit -u, or a smaller max_worker_processes")


def _count(limit: int) -> str:
    return "any number" if limit in (resource.RLIM_INFINITY, -1) else str(limit)


# --- files and folders ---


def _folder(check: str, path: str, wider: int = 0o700) -> Finding:
    """A folder that will be ours alone; one that is not there yet must be makeable."""
    folder = Path(path)
    try:
        found = folder.lstat()
    except FileNotFoundError:
        above = next(each for each in folder.parents if each.exists())
        if os.access(above, os.W_OK):
            return Finding(check, "ok", f"{path} is not there yet, and can be made")
        what = f"{path} is not there, and {above} may not be written by this user"
        return Finding(check, "bad", what, "make it, or choose another folder")
    except OSError as error:
        return Finding(check, "bad", f"{path}: {error.strerror}", "choose another folder")
    if not stat.S_ISDIR(found.st_mode):
        return Finding(check, "bad", f"{path} is no folder", "choose another folder")
    if found.st_uid != os.geteuid():
        what = f"{path} belongs to user {found.st_uid}, and this one is {os.geteuid()}"
        return Finding(check, "bad", what, "run as its owner, or choose another folder")
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o777 & ~wider:
        what = f"{path} has mode {mode:04o}, wider than {wider:04o}"
        return Finding(check, "bad", what, f"chmod {wider:o} {path}")
    return Finding(check, "ok", f"{path}, mode {mode:04o}")


def _room(check: str, path: str, needed: int) -> Finding:
    above = next(each for each in (Path(path), *Path(path).parents) if each.exists())
    free = shutil.disk_usage(above).free
    what = f"{free // 2**20} MiB free on the disk of {path}"
    if free < needed:
        return Finding(check, "bad", f"{what}, {needed // 2**20} MiB are needed", "make room")
    return Finding(check, "ok", what)


def _readable(check: str, path: str | None, read: Callable[[str], Any]) -> Iterator[Finding]:
    """A file of keys, if there is to be one: good, and as private as it must be."""
    if path is None:
        return
    try:
        read(path)
    except ConfigError as error:
        yield Finding(check, "bad", error.message, error.hint or f"chmod 600 {path}")
    else:
        yield Finding(check, "ok", path)


def _keyless(check: str, settings: Any, *endpoints: str) -> Iterator[Finding]:
    """TCP without a key is refused when the program starts; it is told of here, too."""
    far = [each for each in endpoints if each.startswith("tcp:")]
    if far and not settings.key_file and not settings.insecure:
        what = f"{far[0]} and no key_file: it will not start"
        yield Finding(check, "bad", what, "posthouse keygen makes keys")


# --- kinds ---


def _master(loaded: Loaded[MasterSettings]) -> Iterator[Finding]:
    settings = loaded.settings
    yield _descriptors(
        "master.descriptors", limits.peers_max + _MASTER_SPARE, "LimitNOFILE= in its unit"
    )
    yield _folder("master.state_dir", settings.state_dir)
    needed = limits.reserve_bytes + limits.disk_low_bytes
    yield _room("master.disk", settings.state_dir, needed)
    yield from _readable("master.key_file", settings.key_file, keys.server_keys)
    yield from _readable("master.principals_file", settings.principals_file, keys.load_principals)
    yield from _keyless("master.keys", settings, settings.listen_agents, settings.listen_clients)
    yield Finding("master.worst_cases", "ok", "; ".join(worst_cases(settings)))


def worst_cases(settings: MasterSettings) -> list[str]:
    """What follows from the settings and from the bounds of the system, in words."""
    from posthouse_master.leases import lost_after_s

    seen_s = limits.silence_s + limits.renew_s
    lease_s = settings.lease_s or limits.lease_s
    after = f"after {shown(lost_after_s(lease_s))} and their restart_time"
    moved = f"its workers that may move run elsewhere {after}"
    if settings.lease_s is None:
        moved += " (never, while every host is of the master's own boot)"
    parted_s = lost_after_s(settings.handover_s)
    mass = f"{limits.mass_loss_share:.0%} of at least {limits.mass_loss_hosts_min} hosts"
    return [
        f"a host that is gone shows as unreachable after {shown(seen_s)}",
        moved,
        "after a restart of the master the same counts from its beginning",
        f"after a planned end of it, up to {shown(parted_s)} for hosts that do not come back",
        f"of {mass} at once nothing is moved for another {shown(settings.mass_loss_wait_s)}",
        f"a waiter is told POSTMASTER_DIED after {shown(limits.master_silence_s)} without a master",
        f"an agent redials within {shown(limits.dial_backoff_s_max)}",
        f"a process that KILL does not end is told of after {shown(limits.unkillable_s)}",
    ]


def _agent(loaded: Loaded[AgentSettings]) -> Iterator[Finding]:
    settings = loaded.settings
    workers = settings.max_worker_processes
    yield _descriptors(
        "agent.descriptors",
        2 * workers + _AGENT_SPARE,
        "LimitNOFILE= in its unit, or a smaller max_worker_processes",
    )
    yield _processes("agent.processes", workers)
    yield _folder("agent.runtime_dir", settings.runtime_dir)
    yield _folder("agent.log_dir", settings.log_dir, 0o750)
    yield _room("agent.disk", settings.log_dir, limits.log_free_bytes_min)
    if not settings.modules and not settings.allow_exec:
        what = "nothing may be run here: modules is empty, and allow_exec is off"
        yield Finding("agent.modules", "warn", what, 'modules = ["acme.*"]')
    yield from _readable(
        "agent.key_file",
        settings.key_file,
        lambda path: keys.client_keys(path, settings.master_key),
    )
    yield from _keyless("agent.keys", settings, settings.master)
    for runtime in settings.runtimes:
        if runtime.python and not os.access(runtime.python, os.X_OK):
            what = f"{runtime.python} cannot be run"
            yield Finding(f"agent.runtime.{runtime.name}", "bad", what, "install it")
        for folder in runtime.path:
            if not Path(folder).is_dir():
                yield Finding(f"agent.runtime.{runtime.name}", "warn", f"{folder} is no folder")


def _client(loaded: Loaded[ClientSettings]) -> Iterator[Finding]:
    settings = loaded.settings
    yield from _readable(
        "client.key_file",
        settings.key_file,
        lambda path: keys.client_keys(path, settings.master_key),
    )
    yield from _keyless("client.keys", settings, settings.master)
    yield _endpoint("client.master", settings.master)


def _endpoint(check: str, endpoint: str) -> Finding:
    """Only looked at: `posthouse hosts` asks the master."""
    path = endpoint.removeprefix("ipc://")
    if path == endpoint or Path(path).is_socket():
        return Finding(check, "ok", endpoint)
    what = f"{endpoint}: no socket is there, so no master is"
    return Finding(check, "warn", what, "start one, or say which by --master")


_KIND_CHECKS: Final[dict[str, Callable[[Any], Iterator[Finding]]]] = {
    "master": _master,
    "agent": _agent,
    "client": _client,
}
