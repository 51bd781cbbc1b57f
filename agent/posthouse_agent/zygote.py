"""The process of one runtime from which its workers come: load, check, fork spares on demand.

Owns: the preloading and its refusals, the double fork, what a spare does until it is told to
begin. Must not know: who may start, restarts, the agent. Invariant: one thread and no ZeroMQ at
every fork; nothing but the fork is done between forks, so that its memory stays shared.

A spare is a process that has everything of a worker but its order. It is forked twice, so that it
is the warden's child (the warden is the subreaper) before the warden hears of it:

1. the zygote forks a middle process, which forks spares and ends;
2. a spare waits until the warden is its parent, asks the kernel to be killed with it, and looks
   again: it may have ended in between;
3. only then it says "spare", over the zygote's socket, and sends one of its own along.

Whatever is killed in between, no order was given yet; the order itself is one packet, which the
warden knows to have been sent or not.
"""

import _socket
import gc
import importlib
import importlib.util
import os
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NoReturn, cast

from posthouse import __version__, limits
from posthouse_agent import child, native, procfs, zygote_line
from posthouse_agent.start_worker import Inheritance, StartWorker
from posthouse_agent.title import set_title
from posthouse_agent.zygote_line import PROTOCOL, SERVES_MIN

__all__ = ["serve"]

_STEP_S = 0.0002  # until the middle process has ended, which it does at once
_FILES_A_PACKET = 100
_COARSE_NS = 20_000_000  # file systems stamp with a clock that is behind by a tick of the kernel
_SPARE = zygote_line.encode({"op": "spare"})
_UNIX = int(socket.AF_UNIX)
_PACKETS = int(socket.SOCK_SEQPACKET) | int(socket.SOCK_CLOEXEC)
_LEVEL, _RIGHTS = int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS)


class _Refused(Exception):
    """Why this runtime cannot be used."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def serve(line: socket.socket, warden_pid: int) -> NoReturn:
    """The zygote's whole life."""
    since_ns = time.time_ns() - _COARSE_NS
    native.die_with_parent()
    if os.getppid() != warden_pid:
        os._exit(1)
    os.environ.pop(zygote_line.BIND_NOW, None)
    received = zygote_line.receive(line)
    if received is None:
        os._exit(0)
    try:
        _load(received.message)
        _tell_ready(line, since_ns)
    except _Refused as refused:
        _refuse(line, refused.code, str(refused))
    while (received := zygote_line.receive(line)) is not None:
        if received.message["op"] == "fork":
            _load_late(line, received.message.get("preload", []))
            _fork_spares(line, warden_pid, int(received.message["count"]))
    os._exit(0)


def _refuse(line: socket.socket, code: str, reason: str) -> NoReturn:
    text = reason[: limits.wide_text_bytes_max // 4]
    with suppress(OSError):
        zygote_line.send(line, {"op": "refused", "code": code, "reason": text, "retry": False})
    os._exit(1)


# --- loading ---


def _load(message: dict[str, Any]) -> None:
    """Become the runtime. Raises _Refused."""
    low, high = message["protocol"]
    if not (low <= PROTOCOL and high >= SERVES_MIN):
        raise _Refused(
            "runtime_unusable",
            f"posthouse {__version__} in the environment of {sys.executable} speaks versions "
            f"{SERVES_MIN} to {PROTOCOL} of the zygote's protocol, this host {low} to {high}",
        )
    if message["bind_now"] is not None:
        os.environ[zygote_line.BIND_NOW] = message["bind_now"]
    set_title(f"posthouse zygote {message['name']}")
    sys.argv = [""]
    sys.path[:0] = [folder for folder in message["path"] if folder not in sys.path]
    for name in message["preload"]:
        _preload(name)
    # Finders of all folders of the path, which each worker would else make for its first import.
    importlib.util.find_spec("posthouse_no_such_module")
    _drop_handlers()
    child.prepare()
    _keep_shared()
    gc.disable()


def _keep_shared() -> None:
    """A child's collection would touch, and so unshare, everything that was loaded here."""
    gc.collect()
    gc.freeze()


def _load_late(line: socket.socket, names: list[str]) -> None:
    """Modules of posthouse's own that its workers have come to need. What cannot be had here is
    imported, and fails, in each of them."""
    missing = [name for name in names if name not in sys.modules]
    if not missing:
        return
    since_ns = time.time_ns() - _COARSE_NS
    before = set(sys.modules)
    for name in missing:
        with suppress(ImportError):
            importlib.import_module(name)
    _keep_shared()
    with suppress(OSError):  # the end of the line is seen where it is read
        _tell_files(line, since_ns, set(sys.modules) - before)


def _preload(name: str) -> None:
    try:
        importlib.import_module(name)
    except BaseException as error:  # noqa: BLE001 - the runtime's fault, whatever it is
        traceback.print_exc()
        last = traceback.format_exception_only(error)[-1].strip()
        raise _Refused("preload_failed", f"preload {name}: {last}") from None
    if "zmq" in sys.modules:
        raise _Refused(
            "preload_failed",
            f"preload {name} loads ZeroMQ, whose sockets and threads do not survive a fork: "
            f"import zmq where the worker runs, or take {name} out of preload",
        )
    if (count := procfs.threads()) != 1:
        raise _Refused(
            "preload_failed",
            f"preload {name} starts threads ({count - 1}), which do not survive a fork: "
            f"take {name} out of preload, or keep it from doing so "
            "(for numerical libraries: env = {OPENBLAS_NUM_THREADS = '1', OMP_NUM_THREADS = '1'})",
        )


def _drop_handlers() -> None:
    """A worker begins with the handlers of a worker, whatever a preloaded module has installed."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def _tell_files(line: socket.socket, since_ns: int, names: Iterable[str]) -> None:
    for at in range(0, len(files := _files(since_ns, names)), _FILES_A_PACKET):
        part = files[at : at + _FILES_A_PACKET]
        zygote_line.send(line, {"op": "files", "files": part})


def _tell_ready(line: socket.socket, since_ns: int) -> None:
    _tell_files(line, since_ns, list(sys.modules))
    zygote_line.send(
        line,
        {
            "op": "ready",
            "protocol": PROTOCOL,
            "version": __version__,
            "python": ".".join(map(str, sys.version_info[:3])),
        },
    )


def _files(since_ns: int, names: Iterable[str]) -> list[list[Any]]:
    """The files of these modules and what tells whether they are still the same, the interpreter's
    own ones left out: nobody replaces them one by one."""
    own = f"{os.path.dirname(os.__file__)}/"
    kept = f"{own}site-packages/"
    found = set()
    for name in names:
        path = getattr(sys.modules[name], "__file__", None)
        if isinstance(path, str) and (not path.startswith(own) or path.startswith(kept)):
            found.add(path)
    listed: list[list[Any]] = []
    now_ns = time.time_ns()
    for path in sorted(found)[: limits.runtime_files_max]:
        with suppress(OSError):
            seen = os.stat(path)
            mtime_ns = seen.st_mtime_ns
            if since_ns <= mtime_ns <= now_ns:
                mtime_ns = -1  # perhaps not what was loaded: the next look finds it changed
            listed.append([path, mtime_ns, seen.st_size, seen.st_ino])
    return listed


# --- forking ---


def _fork_spares(line: socket.socket, warden_pid: int, count: int) -> None:
    assert "zmq" not in sys.modules
    assert procfs.threads() == 1, "a fork of a process with threads"
    try:
        middle = os.fork()
    except OSError as error:
        _tell_failed(line, f"fork: {error.strerror}", count)
        return
    if middle == 0:
        try:
            _be_middle(line, warden_pid, count)
        finally:
            os._exit(1)
    _, status = os.waitpid(middle, 0)
    if status != 0:
        _tell_failed(line, f"the fork ended with {os.waitstatus_to_exitcode(status)}", count)


def _tell_failed(line: socket.socket, reason: str, missing: int) -> None:
    with suppress(OSError):  # the end of the line is seen where it is read
        zygote_line.send(line, {"op": "failed", "reason": reason, "missing": missing})


def _be_middle(line: socket.socket, warden_pid: int, count: int) -> NoReturn:
    pid = os.getpid()
    for made in range(count):
        try:
            spare = os.fork()
        except OSError as error:
            _tell_failed(line, f"fork: {error.strerror}", count - made)
            break
        if spare == 0:
            try:
                _be_spare(line, warden_pid, pid)
            finally:
                os._exit(1)
    os._exit(0)


def _be_spare(line: socket.socket, warden_pid: int, middle_pid: int) -> NoReturn:
    while os.getppid() == middle_pid:
        time.sleep(_STEP_S)
    native.die_with_parent()
    if os.getppid() != warden_pid:
        os._exit(1)
    # Beneath the socket module, whose enums would unshare a hundred pages, twice for each worker.
    own, theirs = _socket.socketpair(_UNIX, _PACKETS)
    try:
        line.sendmsg([_SPARE], [(_LEVEL, _RIGHTS, struct.pack("i", theirs.fileno()))])
    except OSError:  # the warden has done with this zygote
        os._exit(0)
    theirs.close()
    os.close(line.detach())
    received = zygote_line.receive(cast("socket.socket", own))
    if received is None:
        os._exit(0)
    message = received.message
    order = zygote_line.fit(StartWorker, message["order"])
    names = ("log_fd", "channel_fd", "latch_fd", "last_words_fd", "host_lock_fd")
    descriptors = dict(zip(names, received.descriptors[: len(names)], strict=True))
    if len(received.descriptors) > len(names):
        descriptors["memory_fd"] = received.descriptors[len(names)]
    child.run(order, zygote_line.fit(Inheritance, message["given"] | descriptors))
