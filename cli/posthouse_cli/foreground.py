"""A worker in the terminal's own process: `posthouse run --foreground`, for its author.

Owns: what stands in for host and agent: the latch, the other end of the channel, the way out. Must
not know: masters, hosts. Invariant: the function finds `posthouse.worker` as on a host, but nothing
is blocked, standard input is the terminal, and Ctrl-C interrupts it: a debugger works.
"""

import importlib
import os
import platform
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Final

from posthouse import BackgroundWorker, channel, limits, worker
from posthouse.errors import BadFrame, InvalidField
from posthouse.ids import HandleId

__all__ = ["run"]

_NOT_APPLIED: Final = ("run_as", "rlimits", "nice", "umask", "fence", "watchdog_s")
_TERMINATED: Final = 1
_FAREWELL_S: Final = 1.0  # what was sent is read in less


def not_applied(spec: BackgroundWorker) -> list[str]:
    """Fields of the record that would hold on a host and do not hold here."""
    plain = BackgroundWorker(name="plain", main="m:f")
    return [name for name in _NOT_APPLIED if getattr(spec, name) != getattr(plain, name)]


def run(spec: BackgroundWorker) -> int:
    """Call the worker's function, with its exit callbacks behind it; the worker's exit status."""
    spec.check()
    if spec.entry_point == "posthouse.exec":
        raise InvalidField("main is 'posthouse.exec': a program needs no worker, start it as it is")
    os.environ.update(spec.env)
    os.environ["POSTHOUSE_NAME"] = spec.name
    if spec.cwd:
        os.chdir(spec.cwd)
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - as python -m does
    end_agent = _begin(spec)
    status = _guard(lambda: _find(spec.entry_point)(spec.main_arg), 0)
    before, after = worker.exit_callbacks()
    for callbacks in (before, after):
        while callbacks:
            status = _guard(callbacks.pop(), status)
    end_agent()
    return status


def _begin(spec: BackgroundWorker) -> Callable[[], None]:
    """Make this process a worker. Returns how to hear out what it said."""
    handle = HandleId("0" * 32, 0, 0)
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    agent = threading.Thread(target=_be_agent, args=(ours,), name="agent", daemon=True)
    agent.start()
    worker.begin(
        lambda: worker.Entry(
            spec=spec, handle=handle, host=platform.node(), incarnation=1, token=0, revision=1
        ),
        theirs.detach(),
        os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK),
        os.memfd_create("posthouse-foreground", os.MFD_CLOEXEC),
    )
    signal.signal(signal.SIGUSR1, lambda _number, _frame: worker.latch.set())
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def end() -> None:
        ours.shutdown(socket.SHUT_RD)
        agent.join(_FAREWELL_S)

    return end


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(_TERMINATED)


def _be_agent(line: socket.socket) -> None:
    """Answer what a worker says to its host's agent."""
    while data := line.recv(limits.channel_frame_bytes_max):
        with suppress(BadFrame):
            message = channel.decode(data)
            answer: dict[str, Any] = {"op": "reply", "id": message.get("id")}
            if message["op"] == "ready":
                print("posthouse: the worker is ready", file=sys.stderr)
            else:
                text = f"{message['op']}: in the foreground there is no cluster"
                answer["error"] = {"code": "unsupported", "message": text}
            line.send(channel.encode(answer))


def _find(name: str) -> Callable[[Any], Any]:
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


def _guard(function: Callable[[], object], status: int) -> int:
    """Call it; the exit status that it leads to, by the rules of workers (E1, E2)."""
    try:
        function()
    except SystemExit as leaving:
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        return code & 0xFF or status or int(code != 0)
    except KeyboardInterrupt:
        return 130
    except Exception:  # noqa: BLE001 - an uncaught error ends a worker with 1 (W6)
        traceback.print_exc()
        return 1
    return status
