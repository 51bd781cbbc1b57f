"""Who this host and this agent process are.

Owns: boot id, machine id, user, the agent's instance. Must not know: what they decide.
Invariant: read once, at start; a boot id that cannot be read is an error, because everything that
is said about dead workers rests on it.
"""

import os
import pwd
import secrets
import time
from pathlib import Path

import posthouse
from posthouse.errors import InternalError
from posthouse.ids import Instant
from posthouse_agent.effects import HostFacts

__all__ = ["host_facts", "instant"]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MACHINE_IDS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))


def host_facts() -> HostFacts:
    """The facts of this process on this host."""
    return HostFacts(
        boot_id=_boot_id(),
        machine_id=_machine_id(),
        instance=secrets.token_hex(16),
        user=_user_name(),
        version=posthouse.__version__,
        notify_key=secrets.token_bytes(32),
    )


def instant() -> Instant:
    """Now. CLOCK_BOOTTIME goes on while the machine is suspended, and never jumps."""
    return Instant(time.clock_gettime(time.CLOCK_BOOTTIME), time.time())


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError as error:
        raise InternalError(f"{_BOOT_ID}: cannot be read: {error.strerror}") from None


def _machine_id() -> str:
    for path in _MACHINE_IDS:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text and text != "uninitialized":
            return text[:64]
    return ""  # many containers have none; then only the boot id tells hosts apart


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
