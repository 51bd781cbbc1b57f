"""System calls that Python 3.11 does not offer: prctl, signalfd, timers, namespaces, waitid with
rusage.

Owns: their calling conventions. Must not know: wardens and workers. Invariant: every failure is an
OSError with its errno.
"""

import ctypes
import os
import platform
import signal
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

__all__ = [
    "Death",
    "Fuse",
    "be_dumpable",
    "become_subreaper",
    "die_with_parent",
    "drop_capabilities",
    "keep_from_programs",
    "mount",
    "no_new_privileges",
    "open_signalfd",
    "punch",
    "read_signalfd",
    "reserve_space",
    "set_short_name",
    "unshare",
    "wait_facts",
]

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_LOWER: Final = 3
_CAPABILITY_VERSION: Final = 0x20080522
_P_PIDFD: Final = 3
_FALLOC_FL_KEEP_SIZE: Final = 1
_FALLOC_FL_PUNCH_HOLE: Final = 2
_SIGNALFD_INFO_BYTES: Final = 128
_SIGINFO_BYTES: Final = 128
_CLOCK_BOOTTIME: Final = 7
_TIMER_ABSTIME: Final = 1
_SIGEV_SIGNAL: Final = 0
_SIGEVENT_BYTES: Final = 64
_CLD_EXITED: Final = 1
_CLD_DUMPED: Final = 3
# os.waitid drops the rusage that the kernel's waitid gives, and glibc's wrapper has none either.
_WAITID_NUMBERS: Final = {
    "x86_64": 247,
    "i686": 284,
    "aarch64": 95,
    "riscv64": 95,
    "loongarch64": 95,
    "armv7l": 280,
    "ppc64le": 272,
    "s390x": 281,
}

_libc: Final = ctypes.CDLL(None, use_errno=True)
_call_prctl: Final = _libc.prctl
_call_prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
_waitid_number: Final = _WAITID_NUMBERS.get(platform.machine())


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """How a process ended, while it is still a zombie. Exactly one of code and signal."""

    code: int | None
    signal: int | None
    core: bool
    user_s: float = 0.0
    system_s: float = 0.0
    max_rss_bytes: int = 0


def _check(result: int) -> int:
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
    return result


def _prctl(option: int, argument: int) -> None:
    _check(_call_prctl(option, argument, 0, 0, 0))


def become_subreaper() -> None:
    """Orphans of this process's descendants become its children."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """SIGKILL at the moment the parent *thread* ends. Check getppid() after: it may have ended."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def no_new_privileges() -> None:
    """No set-uid program can raise this process or its children."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def be_dumpable() -> None:
    """Let the process's own user look into it, and let it dump core."""
    _prctl(_PR_SET_DUMPABLE, 1)


def unshare(flags: int) -> None:
    """New namespaces of these kinds: of pids, for the children; of others, for this process."""
    _check(_libc.unshare(ctypes.c_int(flags)))


def mount(source: str, target: str, kind: str, flags: int) -> None:
    """mount(2), without data."""
    strings = (text.encode() for text in (source, target, kind))
    _check(_libc.mount(*strings, ctypes.c_ulong(flags), None))


def drop_capabilities() -> None:
    """All of them, for good: the ambient and inheritable ones too."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    _check(_libc.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)())))


def keep_from_programs(capability: int) -> None:
    """What this process was given of it is not handed on to the programs that it executes."""
    _check(_call_prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_LOWER, capability, 0, 0))


def set_short_name(name: str) -> None:
    """The 15 bytes that ps -o comm shows."""
    text = ctypes.create_string_buffer(name.encode()[:15])
    _check(_call_prctl(_PR_SET_NAME, ctypes.addressof(text), 0, 0, 0))


def open_signalfd(signals: Iterable[int]) -> int:
    """A descriptor, close-on-exec and non-blocking, that is readable while one is pending. The
    signals must be blocked."""
    words = (ctypes.c_ulong * 16)()  # glibc's sigset_t: 1024 bits
    for number in signals:
        words[(number - 1) // 64] |= 1 << ((number - 1) % 64)
    return _check(_libc.signalfd(-1, ctypes.byref(words), os.O_CLOEXEC | os.O_NONBLOCK))


def read_signalfd(fd: int) -> set[int]:
    """The signals that were pending; none is left."""
    found: set[int] = set()
    while True:
        try:
            data = os.read(fd, 16 * _SIGNALFD_INFO_BYTES)
        except BlockingIOError:
            return found
        for at in range(0, len(data), _SIGNALFD_INFO_BYTES):
            found.add(struct.unpack_from("I", data, at)[0])


def wait_facts(pidfd: int) -> Death | None:
    """What is known of the dead child behind `pidfd`, which stays a zombie; None if it lives."""
    if _waitid_number is None:
        return _wait_without_rusage(pidfd)
    info = ctypes.create_string_buffer(_SIGINFO_BYTES)
    usage = ctypes.create_string_buffer(18 * ctypes.sizeof(ctypes.c_long))
    flags = os.WEXITED | os.WNOWAIT | os.WNOHANG
    _check(_libc.syscall(_waitid_number, _P_PIDFD, pidfd, info, flags, usage))
    number, _, code = struct.unpack_from("iii", info)
    if number == 0:
        return None
    # After three ints the union begins, aligned to a pointer: pid, uid, status.
    status = struct.unpack_from("iIi", info, 16 if ctypes.sizeof(ctypes.c_void_p) == 8 else 12)[2]
    user_s, user_us, system_s, system_us, max_rss_kib = struct.unpack_from("lllll", usage)
    exited = code == _CLD_EXITED
    return Death(
        code=status if exited else None,
        signal=None if exited else status,
        core=code == _CLD_DUMPED,
        user_s=user_s + user_us / 1e6,
        system_s=system_s + system_us / 1e6,
        max_rss_bytes=max_rss_kib * 1024,
    )


def _wait_without_rusage(pidfd: int) -> Death | None:
    """On a machine whose number for waitid is not in the table."""
    info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    if info is None:
        return None
    exited = info.si_code == _CLD_EXITED
    return Death(
        code=info.si_status if exited else None,
        signal=None if exited else info.si_status,
        core=info.si_code == _CLD_DUMPED,
    )


class Fuse:
    """A timer of the kernel that kills this very process, whatever state it is in: stopped, hung,
    with every signal blocked. Not inherited by a fork, and gone with an exec.

    Raises OSError where the kernel, or a limit of pending signals, gives none.
    """

    def __init__(self) -> None:
        event = ctypes.create_string_buffer(_SIGEVENT_BYTES)
        # sigval, a union as wide as a pointer; then the signal and the kind of notification
        pointer = ctypes.sizeof(ctypes.c_void_p)
        struct.pack_into("ii", event, pointer, signal.SIGKILL, _SIGEV_SIGNAL)
        self._timer = ctypes.c_void_p()
        _check(_of_timers().timer_create(_CLOCK_BOOTTIME, event, ctypes.byref(self._timer)))

    def arm(self, deadline_s: float) -> None:
        """KILL at this second of CLOCK_BOOTTIME, at once if it has passed; 0: never."""
        whole = int(deadline_s)
        nanoseconds = max(0, min(999_999_999, int((deadline_s - whole) * 1e9)))
        when = (ctypes.c_long * 4)(0, 0, whole, nanoseconds)  # struct itimerspec
        _check(_of_timers().timer_settime(self._timer, _TIMER_ABSTIME, ctypes.byref(when), None))


def _of_timers() -> ctypes.CDLL:
    """glibc has them in a library of their own before 2.34."""
    return _libc if hasattr(_libc, "timer_create") else ctypes.CDLL("librt.so.1", use_errno=True)


def reserve_space(fd: int, offset: int, length: int) -> None:
    """Take `length` bytes of the disk for `fd` beyond its end, without changing its size."""
    zone = ctypes.c_longlong
    _check(_libc.fallocate64(fd, _FALLOC_FL_KEEP_SIZE, zone(offset), zone(length)))


def punch(fd: int, offset: int, length: int) -> None:
    """Give the blocks of that range back; its bytes read as NULs, and the size stays. Raises
    OSError EOPNOTSUPP where the file system cannot."""
    mode, zone = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE, ctypes.c_longlong
    _check(_libc.fallocate64(fd, mode, zone(offset), zone(length)))
