"""The warden's process: `python -m posthouse_agent.warden --runtime-dir R --log-dir L --kind K`.

Owns: the command line, and what must hold before a warden may serve. Must not know: ZeroMQ, the
master, anybody's code. Invariant: one thread, standard library and msgpack only; it serves only
once nothing of an earlier warden lives.
"""

import gc
import os
import resource
import select
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from posthouse import limits, systemd
from posthouse_agent import cgroups, identity, native, oom_score, procfs, start
from posthouse_agent.agent_line import AgentLine
from posthouse_agent.journal import Head, Journal, read_journal
from posthouse_agent.processes import Processes, user_name
from posthouse_agent.title import set_title
from posthouse_agent.warden_core import WardenCore, recover
from posthouse_agent.warden_loop import Place, Warden, instant, log
from posthouse_agent.zygotes import Zygotes

__all__ = ["main"]

_USAGE: Final = (
    "usage: python -m posthouse_agent.warden --runtime-dir FOLDER --log-dir FOLDER "
    "--kind fenced|kept|tree [--name HOST] [--users NAME,NAME] "
    "[--cgroups auto|on|off]"
)

_KINDS: Final = ("fenced", "kept", "tree")
_LOCK_S: Final = 1.0  # a warden that was just killed takes its lock along in less
_LEFTOVERS_S: Final = 10.0  # for processes that were sent KILL
_STATUS_BUSY: Final = 3  # another warden serves the folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line."""

    runtime_dir: str
    log_dir: str
    kind: str
    name: str
    users: str  # whom the host's configuration lets workers run as, besides the warden's own
    cgroups: str

    @property
    def folder(self) -> str:
        return f"{self.runtime_dir}/{self.kind}"


def _options(argv: list[str]) -> Options:
    """--name value pairs; argparse would cost every worker a megabyte."""
    values = {"runtime-dir": "", "log-dir": "", "kind": "", "name": "", "users": "", "cgroups": ""}
    for at in range(0, len(argv), 2):
        name = argv[at].removeprefix("--")
        if not argv[at].startswith("--") or name not in values or at + 1 == len(argv):
            raise start.CannotStart(f"option {argv[at]!r}: {_USAGE}")
        values[name] = argv[at + 1]
    unknown = values["kind"] not in _KINDS or values["cgroups"] not in ("", *cgroups.MODES)
    if unknown or not (values["runtime-dir"] and values["log-dir"]):
        raise start.CannotStart(_USAGE)
    return Options(
        runtime_dir=os.path.abspath(values["runtime-dir"]),
        log_dir=os.path.abspath(values["log-dir"]),
        kind=values["kind"],
        name=values["name"],
        users=values["users"],
        cgroups=values["cgroups"] or "auto",
    )


def _settle(options: Options) -> None:
    """What holds for the whole life of the process, before anything is opened."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    os.umask(0o077)
    sys.path[:] = [os.path.abspath(p) for p in sys.path]
    if not sys.flags.safe_path:
        del sys.path[0]  # the folder that somebody happened to start us in
    os.chdir("/")
    native.become_subreaper()
    set_title(f"posthouse warden {options.kind} {options.name}".rstrip())


def _check_users(options: Options) -> None:
    """Whoever starts a process that he cannot end has lost it: refuse before the first one."""
    others = [name for name in options.users.split(",") if name not in ("", user_name())]
    lacking = identity.missing_capabilities() if others else ""
    if lacking:
        raise start.CannotStart(
            f"workers are to run as {', '.join(others)}, and this process, of user "
            f"{user_name()!r}, lacks {lacking}: start it as root, or take users out of the "
            "agent's configuration"
        )
    if others:
        start.check_log_folder(options.log_dir)


def _find_groups(options: Options, instance: str) -> cgroups.Cgroups | None:
    """Raises CannotStart if they were asked for and cannot be had."""
    try:
        return cgroups.find(options.cgroups, instance)
    except cgroups.NoCgroups as reason:
        if options.cgroups == "on":
            raise start.CannotStart(f'cgroups = "on": {reason}') from None
        log(f"no cgroup for each worker: {reason}")
        return None


def _find_fuse(kind: str) -> native.Fuse | None:
    """Of a fenced warden. Without one it is of use only where leases have no deadline."""
    if kind != "fenced":
        return None
    try:
        return native.Fuse()
    except OSError as error:
        log(f"no fence: the kernel gives no timer: {error.strerror}")
        return None


def _raise_descriptors() -> int:
    """Each worker takes four. Returns the soft limit that there was, for the workers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft


def _build(options: Options) -> Warden:
    """Become the one warden of the folder. Raises CannotStart, OSError."""
    folder = options.folder
    size = len(os.fsencode(f"{folder}/warden.sock"))
    if size > limits.socket_path_bytes_max:
        raise start.CannotStart(
            f"{folder}/warden.sock has {size} bytes: a socket's path has at most "
            f"{limits.socket_path_bytes_max}; choose a shorter --runtime-dir"
        )
    start.open_folder(folder)
    lock_fd = start.lock_warden(f"{folder}/warden.lock", _LOCK_S)
    start.open_log_folder(options.log_dir)
    _check_users(options)
    try:
        head, entries, bad = read_journal(f"{folder}/journal")
    except OSError as error:
        raise start.CannotStart(f"{folder}/journal: {error.strerror}") from None
    if bad:
        log(f"journal: {bad} lines make no sense and are left out")
    boot_id = procfs.boot_id()
    recovered = recover(entries, rebooted=head is not None and head.boot_id != boot_id)
    same_boot = head is not None and head.boot_id == boot_id
    if head is not None and same_boot and head.cgroup:
        start.sweep_cgroup(head.cgroup, _LEFTOVERS_S)
    host_lock_fd = start.take_host_lock(
        f"{folder}/host.lock",
        recovered.lost if same_boot else (),
        head.instance if head is not None and same_boot else None,
        _LEFTOVERS_S,
    )
    instance = os.urandom(16).hex()
    fuse = _find_fuse(options.kind)
    core = WardenCore(
        instance=instance,
        kind=options.kind,
        boot_id=boot_id,
        pid=os.getpid(),
        run_as=not identity.missing_capabilities(),
        entropy=os.urandom,
        fence=fuse is not None,
    )
    core.handle(recovered, instant())  # its entries are part of the rewrite
    groups = _find_groups(options, instance)
    head = Head(
        boot_id=boot_id, instance=instance, cgroup=groups.folder if groups is not None else ""
    )
    journal = Journal(f"{folder}/journal", head)
    journal.rewrite(core.entries())
    epoll = select.epoll()
    zygotes = Zygotes(epoll, host_lock_fd, log)
    processes = Processes(
        log_dir=options.log_dir,
        instance=instance,
        host_lock_fd=host_lock_fd,
        nofile_soft=_raise_descriptors(),
        is_zygotes=zygotes.owns,
        log=log,
        oom_score=oom_score.protect(),
        groups=groups,
    )
    line = AgentLine(f"{folder}/warden.sock", epoll)
    return Warden(core, processes, zygotes, journal, line, epoll, Place(folder, lock_fd, fuse))


def main(argv: list[str]) -> int:
    """The process, from its command line to its exit status."""
    try:
        options = _options(argv)
        _settle(options)
        warden = _build(options)
    except start.CannotStart as error:
        log(f"cannot start: {error}")
        return _STATUS_BUSY if error.busy else 1
    except OSError as error:
        log(f"cannot start: {error.filename or 'system call'}: {error.strerror or error}")
        return 1
    gc.collect()
    gc.freeze()
    systemd.ready(f"serving {options.folder}")
    return warden.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
