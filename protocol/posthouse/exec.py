"""The built-in entry point "posthouse.exec": any program in place of a Python function.

Owns: what an exec'd program inherits of signals. Must not know: how the worker was forked.
Invariant: the program begins as if a shell had started it: no signal blocked, none ignored.
"""

import os
import signal
from typing import NoReturn

from posthouse.errors import UsageError

__all__ = ["run"]


def run(argv: object) -> NoReturn:
    """Become the program `argv[0]`, found by PATH. Raises OSError if it cannot be run.

    Descriptors that are not inheritable close (the channel, the latch); the log stays at 1 and 2;
    the parent-death signal survives the exec.
    """
    if not (isinstance(argv, list) and argv and all(isinstance(a, str) for a in argv)):
        raise UsageError("posthouse.exec takes an argv, a list of strings, as main_arg")
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        # Python ignores PIPE and XFSZ, a worker ignores more; exec would hand all that down.
        if signal.getsignal(number) is not signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - no shell, on purpose
    except OSError as error:
        raise type(error)(error.errno, f"cannot run: {error.strerror}", argv[0]) from None
