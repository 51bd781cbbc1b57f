"""The desk at which processes of this host get the agent's word that they may be notified.

Owns: the socket, and who stands in front of it by the kernel's word. Must not know: the master,
what is notified. Invariant: whoever connects is told at once and hung up on: nothing is read from
him, so he can keep nobody waiting; the word is about the process that connected and no other.
"""

import json
import os
import pwd
import signal
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from posthouse import limits, vouch
from posthouse.notified import SOCKET
from posthouse_agent import procfs

__all__ = ["Desk", "notify"]

_PEER: Final = struct.Struct("3i")  # struct ucred
_HINT: Final = "leave notify out: handles, events and waits never need it"


class Desk:
    """Of one agent; its descriptor is polled by the owner."""

    def __init__(self, folder: str, host: str, key: bytes, boot_id: str) -> None:
        self._host = host
        self._key = key
        self._boot_id = boot_id
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path = Path(folder, SOCKET)
        path.unlink(missing_ok=True)  # of an agent before us: we have the folder's lock
        self._listening.bind(os.fspath(path))
        path.chmod(0o600)
        self._listening.listen(16)
        self._listening.setblocking(False)

    def fileno(self) -> int:
        return self._listening.fileno()

    def close(self) -> None:
        self._listening.close()

    def serve(self) -> None:
        """Answer those who stand there, a bounded number of them."""
        for _ in range(limits.vouches_max):
            try:
                asking, _ = self._listening.accept()
            except OSError:
                return
            with asking, suppress(OSError):
                asking.setblocking(False)
                asking.send(json.dumps(self._word(asking)).encode())

    def _word(self, asking: socket.socket) -> dict[str, Any]:
        peer = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        pid, user, _ = _PEER.unpack(peer)
        found = procfs.read(pid) if pid > 0 else None
        if found is None:
            # Of another pid namespace, or it has just ended.
            return _no(f"the agent of host {self._host} does not see it")
        if user != os.geteuid():
            whose, ours = _user(user), _user(os.geteuid())
            return _no(f"it is of user {whose}, and the agent of host {self._host} of {ours}")
        if not procfs.minds(pid, signal.SIGUSR1):
            return _no(
                "it has no handler for SIGUSR1, which would end it",
                f"signal.signal(signal.SIGUSR1, handler) before registering; or {_HINT}",
            )
        word = vouch.marked(self._key, self._host, self._boot_id, pid, found.start)
        return {
            "host": word.host,
            "boot_id": word.boot_id,
            "pid": word.pid,
            "pid_start": word.pid_start,
            "mark": word.mark.hex(),
        }


def notify(pid: int, pid_start: int) -> None:
    """SIGUSR1 to this very process, unless it would end it by now. (One that gives its handler up
    between our look and the signal is ended by it: no system call does both.)"""
    with suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            # Asked once its pidfd is open: the number may be another's by now, the pidfd is not.
            found = procfs.read(pid)
            if found is None or found.start != pid_start or not procfs.minds(pid, signal.SIGUSR1):
                return
            signal.pidfd_send_signal(pidfd, signal.SIGUSR1)
        finally:
            os.close(pidfd)


def _no(why: str, hint: str = _HINT) -> dict[str, Any]:
    return {"error": why, "hint": hint}


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
