"""Where things are when nobody says so: sockets, registry, logs, configuration files.

Owns: the default folders and endpoints, and how a private folder is made. Must not know: settings
(config turns these into defaults), ZeroMQ. Invariant: a folder from `private_dir` belongs to the
calling user, is open to nobody whom `mode` does not name, and was not reached by a symbolic link
that somebody else could have put there.
"""

import contextlib
import os
import stat
import sys
import tempfile
from pathlib import Path

from posthouse import limits
from posthouse.errors import ConfigError

__all__ = [
    "agents_endpoint",
    "clients_endpoint",
    "config_file",
    "host_log_dir",
    "host_runtime_dir",
    "ipc_endpoint",
    "local_dir",
    "private_dir",
    "state_dir",
]

_SHARED_TMP = Path("/tmp")  # noqa: S108 - only ever with our user id in the name and private_dir


def local_dir() -> Path:
    """The folder of this user's sockets: $POSTHOUSE_DIR, else posthouse in $XDG_RUNTIME_DIR, else
    /run/posthouse for root, else /tmp/posthouse-<uid>. It need not exist.

    Raises ConfigError if $POSTHOUSE_DIR is not absolute.
    """
    chosen = os.environ.get("POSTHOUSE_DIR")
    if chosen:
        return _absolute("POSTHOUSE_DIR", chosen)
    session = os.environ.get("XDG_RUNTIME_DIR")
    if session and Path(session).is_absolute() and Path(session).is_dir():
        return Path(session) / "posthouse"
    user = _user_id()
    if user is None:
        return Path(tempfile.gettempdir()) / "posthouse"
    return Path("/run/posthouse") if user == 0 else _SHARED_TMP / f"posthouse-{user}"


def state_dir() -> Path:
    """The folder of the registry: /var/lib/posthouse for root, else $XDG_STATE_HOME/posthouse, else
    ~/.local/state/posthouse."""
    if _user_id() == 0:
        return Path("/var/lib/posthouse")
    chosen = os.environ.get("XDG_STATE_HOME")
    base = Path(chosen) if chosen and Path(chosen).is_absolute() else None
    return (base or Path.home() / ".local" / "state") / "posthouse"


def host_runtime_dir(host: str) -> Path:
    """The folder of one host's agent and wardens: sockets, locks, journals."""
    return local_dir() / "hosts" / host


def host_log_dir(host: str) -> Path:
    """The folder of the output of one host's workers."""
    if _user_id() == 0:
        return Path("/var/log/posthouse") / host
    return state_dir() / "logs" / host


def clients_endpoint() -> str:
    """Where a local master serves clients."""
    return ipc_endpoint(local_dir() / "clients.sock")


def agents_endpoint() -> str:
    """Where a local master serves agents."""
    return ipc_endpoint(local_dir() / "agents.sock")


def ipc_endpoint(path: Path | str) -> str:
    """The endpoint of a Unix socket. Raises ConfigError if the path is too long for one.

    >>> ipc_endpoint("/run/posthouse/agents.sock")
    'ipc:///run/posthouse/agents.sock'
    """
    size = len(os.fsencode(path))
    if size > limits.socket_path_bytes_max:
        raise ConfigError(
            f"socket path {os.fspath(path)!r} has {size} bytes: "
            f"must be at most {limits.socket_path_bytes_max}",
            hint="choose a shorter folder, for instance by POSTHOUSE_DIR",
        )
    return f"ipc://{os.fspath(path)}"


def config_file(kind: str) -> Path:
    """The file that is read if none is named; `kind` is master, agent or client."""
    if kind != "client":
        return Path("/etc/posthouse") / f"{kind}.toml"
    chosen = os.environ.get("XDG_CONFIG_HOME")
    base = Path(chosen) if chosen and Path(chosen).is_absolute() else None
    return (base or Path.home() / ".config") / "posthouse" / "client.toml"


def private_dir(path: Path | str, mode: int = 0o700) -> Path:
    """Make the folder, if it is missing, and check that it is ours alone; returns it.

    `mode` is what it gets, and the most that an existing one may have. A missing parent is made as
    private, too: it may be one of ours that is used itself later. Raises ConfigError for a symbolic
    link, another owner, wider permissions, or if somebody else could put another folder in its
    place.
    """
    path = _absolute("folder", path)
    made = False
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=mode)
            made = True
        # Checked through one descriptor that follows no link: what is checked is what is there.
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if path.is_symlink():
            raise _unsafe(path, "is a symbolic link", "remove it, or choose another") from None
        what = f"cannot be made or opened as a folder: {error.strerror}"
        raise _unsafe(path, what, "choose another folder") from None
    try:
        if made:
            os.fchmod(descriptor, mode)  # mkdir's mode was cut by the umask
        found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if found.st_uid != os.geteuid():
        raise _unsafe(path, f"belongs to user {found.st_uid}", "choose another folder")
    bits = stat.S_IMODE(found.st_mode)
    if bits & 0o777 & ~mode:
        raise _unsafe(path, f"has mode {bits:04o}, wider than {mode:04o}", f"chmod {mode:o} {path}")
    _check_parents(path)
    return path


def _check_parents(path: Path) -> None:
    """Whoever may rename a folder above may put his own in the place of ours."""
    parent = path.parent.resolve()
    trusted = {0, os.geteuid(), Path("/").stat().st_uid}  # the last: a user namespace without root
    for above in (parent, *parent.parents):
        found = above.stat()
        if found.st_uid not in trusted:
            raise _unsafe(path, f"lies in {above} of user {found.st_uid}", "choose another folder")
        if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
            raise _unsafe(
                path, f"lies in {above}, where anybody may replace it", f"chmod o-w {above}"
            )


def _absolute(name: str, path: Path | str) -> Path:
    if not Path(path).is_absolute() or "\0" in os.fspath(path):
        raise ConfigError(f"{name} is {os.fspath(path)!r}: must be an absolute path")
    return Path(os.path.normpath(path))


def _unsafe(path: Path, what: str, hint: str) -> ConfigError:
    return ConfigError(f"{path} {what}", hint=hint)


def _user_id() -> int | None:
    """None where users have no numbers."""
    return None if sys.platform == "win32" else os.geteuid()
