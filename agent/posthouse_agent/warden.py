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
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple

from posthouse import limits, systemd
from posthouse_agent import cgroups, fuse, identity, namespace, native, oom_score, procfs, start
from posthouse_agent.agent_line import AgentLine
from posthouse_agent.journal import Head, Journal, read_journal
from posthouse_agent.processes import Processes, user_name
from posthouse_agent.title import set_title
from posthouse_agent.warden_core import WardenCore, recover
from posthouse_agent.warden_effects import Recovered
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
    namespace.keep_to_ourselves()
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
    """Of a warden whose workers end with the host's lease. A fenced one without it is of use only
    where leases have no deadline; a tree is asked for by those who need it. Raises CannotStart."""
    if kind == "kept":
        return None
    try:
        return native.Fuse()
    except OSError as error:
        lacking = f"no fence: the kernel gives no timer: {error.strerror}"
        if kind == "tree":
            raise start.CannotStart(lacking) from None
        log(lacking)
        return None


def _raise_descriptors() -> int:
    """Each worker takes four. Returns the soft limit that there was, for the workers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ground:
    """What is ours once nothing of an earlier warden lives."""

    lock_fd: int
    host_lock_fd: int
    boot_id: str
    recovered: Recovered
    instance: str
    groups: cgroups.Cgroups | None
    fuse: native.Fuse | None
    oom_score: int | None  # of workers
    nofile_soft: int


def _take(options: Options) -> _Ground:
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
    ours = head if head is not None and head.boot_id == boot_id else None
    if ours is not None and ours.pid:
        start.end_namespace(ours.pid, ours.pid_start, _LEFTOVERS_S)
    if ours is not None and ours.cgroup:
        start.sweep_cgroup(ours.cgroup, _LEFTOVERS_S)
    host_lock_fd = start.take_host_lock(
        f"{folder}/host.lock",
        recovered.lost if ours is not None else (),
        ours.instance if ours is not None else None,
        _LEFTOVERS_S,
    )
    instance = os.urandom(16).hex()
    return _Ground(
        lock_fd=lock_fd,
        host_lock_fd=host_lock_fd,
        boot_id=boot_id,
        recovered=recovered,
        instance=instance,
        groups=_find_groups(options, instance),
        fuse=_find_fuse(options.kind),
        oom_score=oom_score.protect(),
        nofile_soft=_raise_descriptors(),
    )


class _Inside(NamedTuple):
    """What the first process of a namespace has of the outside."""

    host: namespace.Outside
    line: fuse.Line


def _divide(options: Options, ground: _Ground) -> _Inside:
    """Go on as the first process of a new namespace; this one stays outside, to be its fuse, and
    never returns. Raises CannotStart, OSError."""
    assert ground.fuse is not None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        namespace.divide()
    except OSError as error:
        raise start.CannotStart(f"no namespace for a tree: {error.strerror}") from None
    if pid := os.fork():
        theirs.close()
        # Whoever holds it is the warden; a fuse that is stopped must not keep the next one out.
        os.close(ground.lock_fd)
        set_title(f"posthouse fuse {options.name}".rstrip())
        os._exit(fuse.burn(ours, pid, ground.fuse))
    # 1. the fuse may have ended before the next line, which then asks for the death of another
    # one; 2. but then its end of the line was closed before.
    native.die_with_parent()
    ours.close()
    line = fuse.Line(theirs)
    if line.broken:
        os._exit(1)
    host = namespace.Outside.open()
    namespace.settle()
    return _Inside(host, line)


def _build(options: Options, ground: _Ground, inside: _Inside | None) -> Warden:
    """Raises OSError."""
    folder, instance, groups = options.folder, ground.instance, ground.groups
    pid = os.getpid() if inside is None else inside.host.own_pid()
    core = WardenCore(
        instance=instance,
        kind=options.kind,
        boot_id=ground.boot_id,
        pid=pid,
        run_as=not identity.missing_capabilities(),
        entropy=os.urandom,
        fence=ground.fuse is not None,
        no_tree=namespace.lacking() if options.kind == "fenced" else "",
    )
    core.handle(ground.recovered, instant())  # its entries are part of the rewrite
    own = procfs.read(os.getpid()) if inside is not None else None
    head = Head(
        boot_id=ground.boot_id,
        instance=instance,
        cgroup=groups.folder if groups is not None else "",
        pid=pid if own is not None else 0,
        pid_start=own.start if own is not None else 0,
    )
    journal = Journal(f"{folder}/journal", head)
    journal.rewrite(core.entries())
    epoll = select.epoll()
    zygotes = Zygotes(epoll, ground.host_lock_fd, log)
    processes = Processes(
        log_dir=options.log_dir,
        instance=instance,
        host_lock_fd=ground.host_lock_fd,
        nofile_soft=ground.nofile_soft,
        is_zygotes=zygotes.owns,
        log=log,
        oom_score=ground.oom_score,
        groups=groups,
        outside=inside.host if inside is not None else None,
    )
    line = AgentLine(f"{folder}/warden.sock", epoll)
    ending = ground.fuse if inside is None else inside.line
    place = Place(folder, ground.lock_fd, ending)
    return Warden(core, processes, zygotes, journal, line, epoll, place)


def main(argv: list[str]) -> int:
    """The process, from its command line to its exit status."""
    try:
        options = _options(argv)
        _settle(options)
        ground = _take(options)
        inside = _divide(options, ground) if options.kind == "tree" else None
        warden = _build(options, ground, inside)
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
