"""CORE: what becomes of a registration whose process has ended, or could not be started.

Owns: the exit classes (E1-E8, M6-M13). Must not know: slots, sessions, phases, when it is asked;
the master runs it, and later a host that is cut off from its master.

Invariant: an exit that was asked for is judged by the request, never by its code; the codes speak
only for exits that nobody asked for.
"""

from dataclasses import dataclass
from typing import Literal

from posthouse.pacing import grown_delay
from posthouse.records import ExitFacts
from posthouse.signals import SIGNALS
from posthouse.spec import BackgroundWorker
from posthouse.states import NEVER_RESTART, StopReason

__all__ = ["Decision", "Repeat", "decide", "decide_failed_start", "takes_back"]

_UNSEEN = ("warden_died", "host_rebooted", "host_lost")  # nobody saw it: not the worker's doing


@dataclass(frozen=True, slots=True)
class Decision:
    """`unregister`: gone for good. `restart`: once `delay_s` has passed. `keep`: stays registered
    and is not started before whatever stopped it is over."""

    kind: Literal["unregister", "restart", "keep"]
    delay_s: float
    rule: str
    reason: str


# Who asked for the stop decides alone: (kind, rule, what people are told).
_ASKED: dict[StopReason, tuple[Literal["unregister", "restart", "keep"], str, str]] = {
    StopReason.TERMINATE: ("unregister", "M10", "terminated"),
    StopReason.HOLD: ("keep", "H-HOLD", "held"),
    StopReason.SHUTDOWN: ("keep", "N6", "stopped for a shutdown"),
    StopReason.RESTART: ("restart", "E-RESTART", "restarted on request"),
    StopReason.APPLY: ("restart", "E-APPLY", "restarted with a new revision"),
    StopReason.DRAIN: ("restart", "E-DRAIN", "moved off a drained host"),
    StopReason.LEASE_END: ("restart", "E-LEASE", "stopped at the end of its host's lease"),
    StopReason.DOMAIN_RESET: ("restart", "C2", "stopped by the reset of its crash domain"),
    StopReason.UNKNOWN: ("restart", "E-UNKNOWN", "stopped because the master did not know it"),
}


@dataclass(frozen=True, slots=True)
class Repeat:
    """How many failures in a row came before this one, and a draw from 0 up to 1 for the jitter."""

    streak: int = 0
    draw: float = 0.0


_FIRST = Repeat()
_AGAIN = "a reset once more within a minute"


def decide(
    spec: BackgroundWorker,
    facts: ExitFacts,
    stop: StopReason | None,
    by: str = "",
    repeat: Repeat = _FIRST,
) -> Decision:
    """The class of an exit. `stop` is the request that ended it, if any, made by `by`.

    >>> decide(BackgroundWorker(name="w", main="m:f"), ExitFacts(code=1), None)
    Decision(kind='restart', delay_s=5.0, rule='E2', reason='exited with code 1')
    >>> decide(BackgroundWorker(name="w", main="m:f"), ExitFacts(code=0), None).kind
    'unregister'
    """
    how = facts.describe()
    if stop is not None:
        return _asked(spec, facts, stop, by)
    if facts.cause == "watchdog":
        how = f"gave no heartbeat for {spec.watchdog_s} s; {how}"
    if facts.lock_held:
        how = f"{how} with a lock held"
    if facts.crash_domain:
        return _began_reset(spec, facts, how, repeat)
    if facts.code == 0 and facts.cause == "exited" and not facts.lock_held:
        return Decision("unregister", 0.0, "E1", how)
    if facts.cause in _UNSEEN:
        return _again(spec, "E3", f"{how}, which is no fault of its own", _FIRST)
    if facts.cause == "watchdog":
        return _again(spec, "E3", how, repeat)
    if facts.cause == "daemonised":
        told = "left processes behind as a daemon would; counts as exit code 1"
        return _again(spec, "E2", told, repeat)
    if facts.code == 1 and not facts.lock_held:
        return _again(spec, "E2", how, repeat)
    if facts.signal == SIGNALS["TERM"]:
        outside = "" if facts.by else " from outside"
        return _again(spec, "E6", f"{how}{outside}; counts as exit code 1", repeat)
    whose = "counts as a crash" if facts.by else "a crash of its own"
    return _again(spec, "E3", f"{how}; {whose}", repeat)


def _asked(spec: BackgroundWorker, facts: ExitFacts, stop: StopReason, by: str) -> Decision:
    """Judged by the request."""
    how = facts.describe()
    kind, rule, told = _ASKED[stop]
    who = f" by {by}" if by else ""
    if stop is StopReason.DOMAIN_RESET and facts.crash_domain:
        told = f"{told} {facts.crash_domain}: {facts.domain_cause}"
        if facts.domain_resets > 1 and spec.restart_time != NEVER_RESTART:
            return _again(spec, "C2", f"{told} ({how}); {_AGAIN}", _FIRST)
    if kind == "restart" and spec.restart_time == NEVER_RESTART and _ends_for_good(stop):
        return Decision("unregister", 0.0, "C3", f"{told}{who} ({how}); never restarted")
    return Decision(kind, 0.0, rule, f"{told}{who} ({how})")


def _began_reset(spec: BackgroundWorker, facts: ExitFacts, how: str, repeat: Repeat) -> Decision:
    """C2: whoever crashes restarts at once with its domain, the first time."""
    told = f"{how}; a crash that resets crash domain {facts.crash_domain}"
    if spec.restart_time == NEVER_RESTART:
        return Decision("unregister", 0.0, "C3", f"{told}; never restarted")
    if facts.domain_resets > 1:
        return _again(spec, "C2", f"{told}; {_AGAIN}", repeat)
    return Decision("restart", 0.0, "C2", told)


def takes_back(stop: StopReason | None) -> bool:
    """Whether a host whose process ended by this stop starts none by itself after it. The reset of
    a crash domain is the host's own."""
    return stop not in (None, StopReason.DOMAIN_RESET)


def decide_failed_start(
    spec: BackgroundWorker,
    why: str,
    stop: StopReason | None,
    by: str = "",
    repeat: Repeat = _FIRST,
) -> Decision:
    """The same for an incarnation that never ran. M6: a failed fork waits for restart_time."""
    if stop is not None:
        kind, rule, told = _ASKED[stop]
        return Decision(kind, 0.0, rule, f"{told}{f' by {by}' if by else ''} before it ran")
    if spec.restart_time == NEVER_RESTART:
        return Decision("unregister", 0.0, "M7", f"could not be started: {why}; never restarted")
    delay_s = grown_delay(spec, repeat.streak, repeat.draw)
    return Decision("restart", delay_s, "M6", f"could not be started: {why}")


def _ends_for_good(stop: StopReason) -> bool:
    # A worker that is never restarted does not outlive what stopped it without its own will
    # being asked; an operator's restart, apply or drain does start it again.
    return stop in (StopReason.LEASE_END, StopReason.DOMAIN_RESET, StopReason.UNKNOWN)


def _again(spec: BackgroundWorker, rule: str, reason: str, repeat: Repeat) -> Decision:
    if spec.restart_time == NEVER_RESTART:
        return Decision("unregister", 0.0, "M10", f"{reason}; never restarted")
    return Decision("restart", grown_delay(spec, repeat.streak, repeat.draw), rule, reason)
