"""This process as one that gets SIGUSR1 at the starts and ends of what it registers.

Owns: finding an agent of this host, and asking it for its word. Must not know: the session, what
the word is made of (vouch). Invariant: the agent sees for itself who asks, by the kernel's word;
nothing that this process says about itself counts.
"""

import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posthouse import limits, paths
from posthouse.errors import RefusedError
from posthouse.records import Registrant
from posthouse.settings import ClientSettings

__all__ = ["SOCKET", "vouched"]

SOCKET = "notify.sock"
_HINT = "leave notify out: handles, events and waits never need it"
_AGENTS_MAX = 64  # of one machine that are asked


def vouched(settings: ClientSettings) -> Registrant:
    """The word of an agent of this host for this process. Raises RefusedError: there is none that
    this user may ask, or SIGUSR1 would end this process."""
    if not sys.platform.startswith("linux"):
        raise _refusal(f"{sys.platform} has no agents, which alone can signal a process")
    why = "no agent of this host was found"
    for path in list(_sockets(settings))[:_AGENTS_MAX]:
        try:
            told = _ask(path)
        except (OSError, ValueError) as error:
            why = f"the agent at {path} does not answer: {error}"
            continue
        if "error" in told:
            raise _refusal(str(told["error"]), str(told.get("hint", _HINT)))
        return Registrant(**told | {"mark": bytes.fromhex(told["mark"])})
    raise _refusal(why, f"say where its runtime_dir is by agent_dir of client.toml; or {_HINT}")


def _sockets(settings: ClientSettings) -> Iterator[Path]:
    """Where agents of this host that this user may ask listen: as configured, beside the master's
    socket, in the user's own folder."""
    if settings.agent_dir is not None:
        yield Path(settings.agent_dir, SOCKET)
        return
    folders = [paths.local_dir()]
    if settings.master.startswith("ipc://"):
        folders.insert(0, Path(settings.master.removeprefix("ipc://")).parent)
    for folder in dict.fromkeys(folders):
        yield from sorted(folder.glob(f"hosts/*/{SOCKET}"))


def _ask(path: Path) -> dict[str, Any]:
    """It says its word to whoever connects, and nothing else. Raises OSError and ValueError."""
    assert sys.platform != "win32"
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(limits.vouch_s)
        asking.connect(os.fspath(path))
        data = b""
        while chunk := asking.recv(limits.vouch_bytes_max):
            data += chunk
            if len(data) > limits.vouch_bytes_max:
                raise ValueError("more than an agent says")
    told = json.loads(data)
    if not isinstance(told, dict):
        raise ValueError("not what an agent says")
    return told


def _refusal(why: str, hint: str = _HINT) -> RefusedError:
    return RefusedError(
        f"notify is True, and this process cannot be given SIGUSR1: {why}",
        hint=hint,
        field="notify",
        value="True",
        rule="only for a process on a host with an agent of its own user, that is not ended by it",
    )
