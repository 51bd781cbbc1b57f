"""The first code in a worker: from the fork to main, and from main's end to _exit.

Owns: the order of the set-up, the default signal handlers, the way out. Must not know: the
warden's tables. Invariant: main never runs before session, descriptors, limits, environment and
parent-death signal are in place; every path out of here is os._exit.

The way out, as PostgreSQL's and the interpreter's combined: before_exit callbacks (last first),
threads that are no daemons are joined, on_exit callbacks (last first), atexit handlers that were
registered in this process, streams flushed, os._exit.
"""

import atexit
import faulthandler
import gc
import importlib
import os
import resource
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType, TracebackType
from typing import IO, Any, Final, NoReturn

from posthouse import exec as posthouse_exec
from posthouse import limits, worker
from posthouse.ids import HandleId
from posthouse.spec import BackgroundWorker
from posthouse.states import DATABASE_CONNECTION
from posthouse_agent import cgroups, fork_hooks, identity, native, oom_score, progeny
from posthouse_agent.start_worker import Inheritance, StartWorker
from posthouse_agent.title import set_title

__all__ = ["prepare", "run"]

COOKIE: Final = "POSTHOUSE_COOKIE"  # instance:token in the environment of all that a worker starts
EXEC: Final = "posthouse.exec"


class Terminated(SystemExit):
    """What TERM's default handler raises: exit 1 from inside the handler (W2)."""


_STREAMS: Final = ("stdin", "stdout", "stderr")


class _Stacks:
    fd = -1  # kept open for faulthandler


def prepare() -> None:
    """In the zygote, once, when everything is loaded: make what is the same in all workers, which
    each would else pay for with pages of its own. It leaves an interpreter as if it had just begun:
    streams, no exit handlers of others, the signal handlers of W2.

    The streams are made over files of the kind that workers have, because a stream notes when it
    is made whether it can seek.
    """
    progeny.install()
    fork_hooks.take_off("threading", "logging", progeny.__name__)
    saved = [os.dup(fd) for fd in range(3)]
    null_fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    file_fd = os.memfd_create("posthouse-streams", os.MFD_CLOEXEC)
    try:
        for fd, source_fd in enumerate((null_fd, file_fd, file_fd)):
            os.dup2(source_fd, fd)
        streams = _open_streams()
    finally:
        for fd, source_fd in enumerate(saved):
            os.dup2(source_fd, fd)
            os.close(source_fd)
        os.close(null_fd)
        os.close(file_fd)
    for name, stream in zip(_STREAMS, streams, strict=True):
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.modules["__main__"] = types.ModuleType("__main__")
    atexit._clear()  # noqa: SLF001 - there is no public way; what was loaded is no worker
    faulthandler.enable(file=2)
    # All signals are blocked here and until a worker's main.
    for number, handler in _HANDLERS:
        _set_handler(number, handler)


def _open_streams() -> tuple[IO[Any], ...]:
    """Over the descriptors 0, 1 and 2, whatever these are by the time that they are used."""
    return tuple(
        open(fd, mode, buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
        for fd, mode in enumerate("rww")
    )


def run(order: StartWorker, given: Inheritance) -> NoReturn:
    """The whole life of a worker, called in the forked child, with all signals blocked."""
    status = 1
    try:
        gc.freeze()  # a collection here must not touch, and so unshare, the zygote's objects
        gc.enable()
        status = _run(order, given)
    except BaseException as error:  # noqa: BLE001 - the last barrier of the process
        with suppress(BaseException):
            _last_words(given.last_words_fd, error)
    finally:
        os._exit(status)


def _run(order: StartWorker, given: Inheritance) -> int:
    at = ""
    try:
        for name, step in _STEPS:
            at = name
            step(order, given)
    except BaseException as error:
        error.add_note(f"posthouse could not set up this worker's process (step: {at})")
        raise
    status = 1
    try:
        status = _guard(lambda: _main(order), given.last_words_fd)
        _Leaving.now = True
    except Terminated:  # raised by the handler between the guard's end and the line above
        _Leaving.now = True
    return _leave(status, given.last_words_fd)


# --- before main; _STEPS has the order ---


def _session(_order: StartWorker, _given: Inheritance) -> None:
    """Of its own: no terminal, and one number for all that it starts and does not move."""
    os.setsid()


def _descriptors(_order: StartWorker, given: Inheritance) -> None:
    """Nothing but the log, and the four that it is meant to have; `_handlers` opens a fifth."""
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(given.log_fd, 1)
    os.dup2(given.log_fd, 2)
    kept = [given.channel_fd, given.latch_fd, given.last_words_fd, given.host_lock_fd]
    if given.memory_fd != -1:
        kept.append(given.memory_fd)
    low = 3
    for fd in sorted(kept):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 2**31 - 1)  # the kernel's close_range
    # Held by whatever this worker becomes or starts by fork: while anything has it, a new warden
    # knows that something of the old one's still lives.
    os.set_inheritable(given.host_lock_fd, True)


def _asked(order: StartWorker, name: str) -> Any:
    """A field of the registration. The record itself is built when the worker asks for it: in a
    fork each object that is touched unshares a page, and the record is a tenth of a bare worker."""
    return order.spec.get(name, getattr(BackgroundWorker, name, None))


def _entry_point(order: StartWorker) -> str:
    main = _asked(order, "main")
    return str(main or f"{_asked(order, 'library')}:{_asked(order, 'function')}")


def _entry(order: StartWorker) -> worker.Entry:
    return worker.Entry(
        spec=BackgroundWorker.from_wire(order.spec),
        handle=HandleId(order.registry, order.slot, order.generation),
        host=order.host,
        incarnation=order.incarnation,
        token=order.token,
        revision=order.revision,
    )


def _cgroup(_order: StartWorker, given: Inheritance) -> None:
    if given.cgroup:
        cgroups.write(f"{given.cgroup}/cgroup.procs", "0")


def _rlimits(order: StartWorker, given: Inheritance) -> None:
    if given.oom_score is not None:
        oom_score.write(given.oom_score)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    soft = hard if given.nofile_soft == resource.RLIM_INFINITY else given.nofile_soft
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for name, limit in (_asked(order, "rlimits") or {}).items():
        number = getattr(resource, f"RLIMIT_{name}")
        try:
            resource.setrlimit(number, (limit, limit))
        except (ValueError, OSError) as error:
            raise OSError(f"rlimits: {name} cannot be {limit}: {error}") from None


def _umask(order: StartWorker, _given: Inheritance) -> None:
    os.umask(_asked(order, "umask"))


def _nice(order: StartWorker, _given: Inheritance) -> None:
    if nice := _asked(order, "nice"):
        os.setpriority(os.PRIO_PROCESS, 0, nice)


def _cwd(order: StartWorker, _given: Inheritance) -> None:
    os.chdir(_asked(order, "cwd") or "/")


def _environment(order: StartWorker, given: Inheritance) -> None:
    """The zygote's, which is the warden's without the daemons' own and with the runtime's; and the
    worker's."""
    if given.user is not None:
        for name in identity.session_variables():
            os.environ.pop(name, None)
    environment = {
        **identity.environment(given.user),
        **(order.env if given.user is not None else {}),
        **(_asked(order, "env") or {}),
        "POSTHOUSE_NAME": _asked(order, "name"),
        "POSTHOUSE_HOST": order.host,
        "POSTHOUSE_HANDLE": f"{order.registry}:{order.slot}.{order.generation}",
        "POSTHOUSE_INCARNATION": str(order.incarnation),
        "POSTHOUSE_TOKEN": str(order.token),
        COOKIE: given.cookie,
    }
    for name, value in environment.items():
        os.environ[name] = value


def _interpreter(order: StartWorker, given: Inheritance) -> None:
    """What is this worker's own; `prepare` has done the rest."""
    set_title(_asked(order, "name"))
    sys.argv = [_entry_point(order)]
    fork_hooks.put_back()
    progeny.switch_on()
    worker.interrupts.fire = _end_now
    worker.begin(
        lambda: _entry(order),
        given.channel_fd,
        given.latch_fd,
        given.last_words_fd,
        given.memory_fd,
        databases=lambda: order.databases,
    )


def _handlers(order: StartWorker, given: Inheritance) -> None:
    """The defaults of W2 (_HANDLERS), as far as they differ from worker to worker."""
    _Leaving.shown = _asked(order, "type") or _asked(order, "name")
    if int(_asked(order, "flags")) & _DATABASE:
        _set_handler(_FPE, _DEFAULT)
    # Its own place in the file, at the end: behind the last words and the heartbeat.
    with suppress(OSError):
        _Stacks.fd = os.open(
            f"/proc/self/fd/{given.last_words_fd}", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        )
        faulthandler.register(worker.STACKS_SIGNAL, _Stacks.fd, all_threads=True)


def _user(order: StartWorker, given: Inheritance) -> None:
    """Groups, group, user: from here on nothing can be undone."""
    if given.user is None:
        return
    identity.become(given.user, log_fd=1)
    os.chdir(_asked(order, "cwd") or "/")  # once more: may this user be there at all?


def _no_new_privileges(_order: StartWorker, _given: Inheritance) -> None:
    native.no_new_privileges()


def _parent_death(_order: StartWorker, _given: Inheritance) -> None:
    """Last, because a change of user takes it off again."""
    native.die_with_parent()


def _parent_check(_order: StartWorker, given: Inheritance) -> None:
    # The warden may have died before the step above; then nobody would ever kill this process.
    if os.getppid() != given.warden_pid:
        os._exit(1)


# The order is the contract. What root may do (limits, nice, folders) comes before the user; the
# parent-death signal after the user, whose change takes it off; the look at the parent after that.
# The signal mask is opened by _main, when all of it holds.
_STEPS: Final[tuple[tuple[str, Callable[[StartWorker, Inheritance], None]], ...]] = (
    ("session", _session),
    ("descriptors", _descriptors),
    ("cgroup", _cgroup),
    ("rlimits", _rlimits),
    ("umask", _umask),
    ("nice", _nice),
    ("cwd", _cwd),
    ("environment", _environment),
    ("interpreter", _interpreter),
    ("handlers", _handlers),
    ("user", _user),
    ("no_new_privileges", _no_new_privileges),
    ("parent_death", _parent_death),
    ("parent_check", _parent_check),
)


def _quit(_number: int, _frame: FrameType | None) -> None:
    os._exit(2)


def _wake(_number: int, _frame: FrameType | None) -> None:
    worker.latch.set()


def _die(_number: int, _frame: FrameType | None) -> None:
    if _Leaving.now:
        return  # PostgreSQL: no interrupt during proc_exit
    if worker.interrupts.held:
        worker.interrupts.pending = True  # K20: it comes when the last lock is released
        return
    _end_now()


def _end_now() -> None:
    text = f'FATAL: terminating background worker "{_Leaving.shown}" due to administrator command\n'
    os.write(2, text.encode())  # not through a stream: the signal may have come inside it
    raise Terminated(1)


# The defaults of W2, in place before anything is unblocked. Differences: USR1 always sets the latch
# (ignoring it is PostgreSQL's trap N4). FPE of a worker with DATABASE_CONNECTION keeps the kernel's
# action: a handler in Python cannot leave the faulting instruction. INT cancels a statement, and
# there is none yet. Plain numbers for the functions beneath `signal`, whose enums would unshare
# fifty pages.
_HANDLERS: Final = tuple(
    (int(number), handler if callable(handler) else int(handler))
    for number, handler in (
        (signal.SIGTERM, _die),
        (signal.SIGQUIT, _quit),
        (signal.SIGUSR1, _wake),
        (signal.SIGINT, signal.SIG_IGN),
        (signal.SIGHUP, signal.SIG_IGN),
        (signal.SIGPIPE, signal.SIG_IGN),
        (signal.SIGUSR2, signal.SIG_IGN),
        (signal.SIGFPE, signal.SIG_IGN),
        (signal.SIGCHLD, signal.SIG_DFL),
    )
)
_FPE: Final = int(signal.SIGFPE)
_DEFAULT: Final = int(signal.SIG_DFL)
_DATABASE: Final = int(DATABASE_CONNECTION)
_SET_MASK: Final = int(signal.SIG_SETMASK)
_BLOCKED: Final = tuple(int(number) for number in worker.BLOCKED if number is not None)
_beneath: Final = importlib.import_module("_signal")
_set_handler: Final = _beneath.signal
_set_mask: Final = _beneath.pthread_sigmask


# --- main ---


def _main(order: StartWorker) -> None:
    _set_mask(_SET_MASK, () if _asked(order, "unblock_signals") else _BLOCKED)
    name = _entry_point(order)
    if name == EXEC:
        posthouse_exec.run(_asked(order, "main_arg"))
    result = _find(name)(_asked(order, "main_arg"))
    if hasattr(result, "__await__"):
        raise TypeError(f"{name} is an async function: call asyncio.run() in a plain one")


def _find(name: str) -> Callable[[Any], Any]:
    """The function "module:qualified.name", imported here, after the fork (F12, F13)."""
    module_name, _, path = name.partition(":")
    found: Any = importlib.import_module(module_name)
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise AttributeError(
                f"could not find function {path!r} in module {module_name!r} "
                f"({getattr(sys.modules[module_name], '__file__', 'built-in')})"
            ) from None
    if not callable(found):
        raise TypeError(f"{name} is {found!r}, which cannot be called")
    return found  # type: ignore[no-any-return]


def _guard(function: Callable[[], object], last_words_fd: int, status: int = 0) -> int:
    """Call it; the exit status it leads to. Errors are printed and become last words."""
    try:
        function()
    except SystemExit as leaving:
        return _exit_status(leaving.code) or status  # a callback cannot make a failure good
    except BaseException as error:  # noqa: BLE001 - an uncaught error ends the worker with 1 (W6)
        _last_words(last_words_fd, error)
        return 1
    return status


def _exit_status(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        # A code such as 256 must not turn into 0, "done for good".
        return (code & 0xFF) or (1 if code else 0)
    with suppress(OSError):
        os.write(2, f"{code}\n".encode(errors="backslashreplace"))
    return 1


def _last_words(fd: int, error: BaseException) -> None:
    """The traceback, without the frames of this file: to stderr, and to the warden."""
    tb: TracebackType | None = error.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename == __file__:
        tb = tb.tb_next
    lines = traceback.format_exception(type(error), error, tb)
    data = "".join(lines).encode(errors="backslashreplace")
    with suppress(OSError):
        os.pwrite(fd, data[-limits.traceback_bytes_max :], 0)
    with suppress(Exception):
        sys.stderr.flush()
    with suppress(OSError):
        os.write(2, data)


# --- after main ---


class _Leaving:
    """What TERM's default handler looks at: whether the way out has begun, and whose it is."""

    now = False
    shown = ""


def _end_threads() -> None:
    """As the interpreter does before its atexit handlers: join all that are no daemons."""
    threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001


def _leave(status: int, last_words_fd: int) -> int:
    before, after = worker.exit_callbacks()
    leave_memory = worker.interrupts.leave
    steps: Sequence[Callable[[int], int]] = (
        lambda s: _guard(lambda: leave_memory(locks=True), last_words_fd, s),
        lambda s: _drain(before, last_words_fd, s),
        lambda s: _guard(_end_threads, last_words_fd, s),
        lambda s: _guard(lambda: leave_memory(locks=False), last_words_fd, s),
        lambda s: _drain(after, last_words_fd, s),
        lambda s: _guard(atexit._run_exitfuncs, last_words_fd, s),  # noqa: SLF001 - as above
    )
    for step in steps:
        status = step(status)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    return status


def _drain(callbacks: list[Callable[[], object]], last_words_fd: int, status: int) -> int:
    """Each is taken off before it runs: one that fails is not run again, and the rest still are."""
    while callbacks:
        status = _guard(callbacks.pop(), last_words_fd, status)
    return status
