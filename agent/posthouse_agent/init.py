"""A small init: what `posthouse agent` becomes where it is pid 1, in a container.

Owns: this process's children: wardens, one agent, and whatever the kernel hands to pid 1. Must
not know: masters, orders, workers. Invariant: one thread, no ZeroMQ, and all signals blocked and
waited for, because the kernel delivers to pid 1 only what it handles.

The agent is started again whenever it ends, and so are the wardens, those beside the fenced one
once the agent has asked for them; workers are a warden's, never ours, so neither the agent's end
nor this file's simplicity can touch them. TERM ends the wardens, which end their workers in their
own way while the agent still tells the master; then the agent; then us, and with us the kernel ends
whatever is left in the namespace.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from posthouse import limits
from posthouse_agent.wards import FENCED

__all__ = ["Service", "run"]

_ENDING: Final = (signal.SIGTERM, signal.SIGINT)
_WAITED_FOR: Final = (*_ENDING, signal.SIGCHLD, signal.SIGHUP)
_LOOK_S: Final = 0.5  # between two looks whether another kind of warden is wanted


@dataclass(slots=True)
class Service:
    """A child that is to run for as long as we do."""

    name: str
    argv: Sequence[str]
    env: dict[str, str]
    pid: int = 0
    since_s: float = 0.0
    failures: int = 0
    due_s: float = 0.0  # when to start it, if it does not run

    def start(self) -> None:
        """Raises OSError."""
        self.pid = os.posix_spawn(
            self.argv[0],
            list(self.argv),
            self.env,
            setsid=True,
            setsigmask=(),
            setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
        )
        self.since_s = time.monotonic()

    def ended(self, now_s: float) -> None:
        """One that had lasted is started again at once, others after a growing pause."""
        lasted = now_s - self.since_s >= limits.warden_backoff_s_max
        self.pid, self.failures = 0, 0 if lasted else self.failures + 1
        pause_s = 0.0
        if self.failures > 1:
            pause_s = limits.warden_backoff_s_min * 2.0 ** min(self.failures - 2, 10)
        self.due_s = now_s + min(pause_s, limits.warden_backoff_s_max)


class _Init:
    def __init__(
        self,
        wardens: Mapping[str, Service],
        agent: Service,
        wanted: Callable[[str], bool],
        say: Callable[[str], None],
    ) -> None:
        self._absent = dict(wardens)  # by kind: nobody has asked for them yet
        self._wanted = wanted
        self._wardens: list[Service] = []
        self._agent = agent
        self._say = say
        self._ending = False

    @property
    def _services(self) -> list[Service]:
        return [*self._wardens, self._agent]

    def run(self) -> int:
        while not self._ending or any(service.pid for service in self._services):
            for kind in [kind for kind in self._absent if self._wanted(kind)]:
                self._wardens.append(self._absent.pop(kind))
            self._start_what_is_due()
            info = self._wait()
            if info is not None and info.si_signo in _ENDING:
                self._end()
            self._reap()
        return 0

    def _wait(self) -> signal.struct_siginfo | None:
        now_s = time.monotonic()
        due = [service.due_s for service in self._services if not service.pid]
        due += [now_s + _LOOK_S] if self._absent else []
        if self._ending or not due:
            return signal.sigwaitinfo(_WAITED_FOR)
        return signal.sigtimedwait(_WAITED_FOR, max(0.0, min(due) - now_s))

    def _start_what_is_due(self) -> None:
        now_s = time.monotonic()
        for service in self._services:
            if self._ending or service.pid or service.due_s > now_s:
                continue
            try:
                service.start()
            except OSError as error:
                self._say(f"{service.name} cannot be started: {error.strerror}")
                service.ended(now_s)

    def _end(self) -> None:
        """Wardens first. Asked again, also if it is the agent's turn: TERM is harmless twice."""
        self._ending = True
        alive = [warden for warden in self._wardens if warden.pid]
        for service in alive or [self._agent]:
            self._forward(service)

    def _forward(self, service: Service) -> None:
        if service.pid:
            with suppress(ProcessLookupError):  # our child: not reaped, so its number is its own
                os.kill(service.pid, signal.SIGTERM)

    def _reap(self) -> None:
        """Our own, and all strangers, whose parent is dead."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for service in self._services:
                if service.pid == pid:
                    self._ended(service, status)

    def _ended(self, service: Service, status: int) -> None:
        service.ended(time.monotonic())
        if not self._ending:
            code = os.waitstatus_to_exitcode(status)
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            self._say(f"{service.name} ended ({how}); it is started again")
        elif not any(warden.pid for warden in self._wardens):
            self._forward(self._agent)


def run(
    wardens: Mapping[str, Sequence[str]], agent_argv: Sequence[str], wanted: Callable[[str], bool]
) -> int:
    """Be pid 1 until TERM or INT; returns the exit status. `wardens`: commands by kind; each is
    started once it is `wanted`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    env = dict(os.environ)
    found = {kind: Service(_name(kind), argv, env) for kind, argv in wardens.items()}
    # The agent must not start a second one: it could do so in the moment between two of ours.
    agent = Service("agent", agent_argv, {**env, "POSTHOUSE_START_WARDENS": "false"})
    return _Init(found, agent, wanted, _say).run()


def _name(kind: str) -> str:
    return "warden" if kind == FENCED else f"{kind} warden"


def _say(text: str) -> None:
    with suppress(OSError):
        sys.stderr.write(f"posthouse-init: {text}\n")
        sys.stderr.flush()
