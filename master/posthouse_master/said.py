"""CORE: what an agent may say of processes, beyond types and bounds.

Owns: the rules that tie the fields of its messages together. Must not know: registrations, which
word is believed (hosts). Invariant: it only looks; a word that breaks a rule costs the agent its
session and changes nothing, because whoever sends one is broken or lies.
"""

from typing import Final

from posthouse import limits
from posthouse.errors import BadFrame
from posthouse.messages import Exit, Hello, Running
from posthouse.records import ExitFacts

__all__ = ["check_exit", "check_hello", "check_running", "check_token"]

_WARDENS: Final = frozenset(("fenced", "kept", "tree"))
_ENDED: Final = frozenset(("exited", "signaled", "daemonised"))
_UNSEEN: Final = frozenset(("warden_died", "host_rebooted"))


def check_hello(hello: Hello) -> None:
    """Raises BadFrame."""
    kinds = [warden.kind for warden in hello.wardens]
    _need(_WARDENS.issuperset(kinds), f"wardens of the kinds {kinds}")
    _need(len(set(kinds)) == len(kinds), "two wardens of one kind")
    instances = {warden.instance for warden in hello.wardens}
    _need(len(instances) == len(kinds), "one instance for two wardens")


def check_running(running: Running, drawn: int) -> None:
    """`drawn`: the token that the registry drew last. Raises BadFrame."""
    _need(running.warden in _WARDENS, f"a process under a warden {running.warden!r}")
    _need(running.incarnation > 0, "a process of incarnation 0")
    check_token(running.token, drawn)


def check_exit(ended: Exit, drawn: int) -> None:
    """Raises BadFrame."""
    check_token(ended.token, drawn)
    _need(ended.incarnation > 0, "an end of incarnation 0")
    _check_facts(ended.facts)


def check_token(token: int, drawn: int) -> None:
    """A registry that was restored may have drawn fewer tokens than its hosts have seen, but not
    so many fewer: the numbers would be used up by a few lies. Raises BadFrame."""
    ahead = token - drawn
    _need(ahead <= limits.token_ahead_max, f"token {token}, of which the registry is at {drawn}")


def _check_facts(facts: ExitFacts) -> None:
    known = (facts.code is not None) + (facts.signal is not None)
    if facts.cause in _UNSEEN:
        _need(known == 0, f"{facts.cause} with a code or signal that nobody saw")
        return
    _need(known <= 1, f"{facts.cause} with a code and a signal")
    if facts.cause not in _ENDED:
        return  # a word of a newer agent
    _need(known == 1, f"{facts.cause} without a code or a signal")
    by_signal = facts.cause == "signaled"
    _need(by_signal is (facts.signal is not None), f"{facts.cause} with the other's number")
    _need(by_signal or not (facts.core or facts.oom), "core or oom without a signal")


def _need(holds: bool, what: str) -> None:
    if not holds:
        raise BadFrame(f"the agent says: {what}")
