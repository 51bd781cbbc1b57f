"""Becoming another user (run_as), and whether this process may.

Owns: the capabilities that run_as takes and why, the change itself, the variables that belong to a
user. Must not know: who may ask for whom (admission). Invariant: `become` either leaves a process
with that user's ids, groups and no capability of ours, or raises with the process of no use to
anybody but root.
"""

import os
import pwd
from typing import Final

from posthouse_agent import native, procfs

__all__ = [
    "become",
    "environment",
    "known_users",
    "missing_capabilities",
    "session_variables",
]

# What a warden needs for workers of other users; root has them all unless somebody took them away.
_NEEDED: Final = (
    (0, "CAP_CHOWN", "to give it its output file"),
    (2, "CAP_DAC_READ_SEARCH", "to find what it leaves behind"),
    (5, "CAP_KILL", "to end it"),
    (6, "CAP_SETGID", "to take its groups"),
    (7, "CAP_SETUID", "to become it"),
    (19, "CAP_SYS_PTRACE", "to find what it leaves behind"),
)
_EFFECTIVE: Final = "CapEff:"
# Of the session that a daemon was started in; they lead into folders of its user.
_OF_A_SESSION: Final = ("DBUS_SESSION_BUS_ADDRESS", "MAIL", "SSH_AUTH_SOCK")


def missing_capabilities() -> str:
    """What this process lacks for running workers as other users; empty if it may."""
    text = procfs.slurp("/proc/self/status").decode(errors="replace")
    line = next(line for line in text.splitlines() if line.startswith(_EFFECTIVE))
    held = int(line.removeprefix(_EFFECTIVE), 16)
    users = sum(int(line.split()[2]) for line in procfs.slurp("/proc/self/uid_map").splitlines())
    if users == 1:
        return "another user to become (this user namespace has one)"
    return ", ".join(f"{name} ({why})" for bit, name, why in _NEEDED if not held >> bit & 1)


def known_users(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those that exist on this host."""
    return tuple(name for name in names if _find(name) is not None)


def environment(user: str | None) -> dict[str, str]:
    """What login programs set for this user; nothing for None: the daemon's own variables stay."""
    if user is None:
        return {}
    found = _get(user)
    return {
        "HOME": found.pw_dir,
        "LOGNAME": found.pw_name,
        "SHELL": found.pw_shell or "/bin/sh",
        "USER": found.pw_name,
    }


def session_variables() -> tuple[str, ...]:
    """Names in this environment that mean nothing to another user."""
    return tuple(n for n in os.environ if n.startswith("XDG_") or n in _OF_A_SESSION)


def become(user: str, log_fd: int) -> None:
    """Groups, group, user, in this order: each later one takes the right to do the earlier ones.

    The file behind `log_fd` becomes the user's: it may write there anyway, and reopening it
    (/dev/stdout) asks for ownership. Raises OSError.
    """
    found = _get(user)
    os.fchown(log_fd, found.pw_uid, -1)
    os.initgroups(found.pw_name, found.pw_gid)
    os.setresgid(found.pw_gid, found.pw_gid, found.pw_gid)
    os.setresuid(found.pw_uid, found.pw_uid, found.pw_uid)
    if found.pw_uid:
        # Root's go with its user id; those that a warden of another user was given do not.
        native.drop_capabilities()
    # The change of user closed it to its own user: no stacks, no core, no look into /proc/PID.
    native.be_dumpable()


def _get(user: str) -> pwd.struct_passwd:
    found = _find(user)
    if found is None:
        raise LookupError(f"run_as: there is no user {user!r} on this host")
    return found


def _find(user: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        return None
