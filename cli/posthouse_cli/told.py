"""What the rules that decide about workers say, in a sentence each, for people who ask why.

Owns: the sentences. Must not know: how a rule is carried out. Invariant: every rule that an event
may carry has one (tests/cli/test_why.py reads the code for them).
"""

from collections.abc import Mapping
from typing import Final

__all__ = ["RULES"]

RULES: Final[Mapping[str, str]] = {
    "C2": "a crash resets the crash domain: its members end and start again together",
    "C3": "a worker that is never restarted does not come back after a reset",
    "E1": "exit 0 means done: unregistered for good",
    "E2": "exit 1 asks to be started again after restart_time",
    "E3": "any other end is a crash of this worker alone: restarted after restart_time",
    "E6": "TERM from outside is no request of ours: counts as exit 1",
    "E-ALONE": "its host goes on by itself while the master is away, with the next reserved token",
    "E-APPLY": "a new revision was applied: started again at once",
    "E-DRAIN": "its host is drained: started elsewhere, or when the host is back",
    "E-LEASE": "its host was cut off for a whole lease: it may run elsewhere now",
    "E-RESTART": "a restart was asked for: started again at once",
    "E-UNKNOWN": "the master did not know this process: ended, and started anew if it is wanted",
    "H-HOLD": "a hold was asked for: kept registered, not started until `posthouse release`",
    "M4": "terminated before it ever ran: unregistered at once",
    "M5": "started when the phase allows it and a host can take it",
    "M6": "a start that fails is tried again after restart_time",
    "M7": "a start that fails ends a worker that is never restarted",
    "M8": "a stop is one signal of the worker's own choice, and KILL after its grace",
    "M10": "terminated, or failed and never restarted: unregistered",
    "M12": "started again when its delay is over, the phase allows it and a host can take it",
    "M13": "terminated while it waited for its restart: unregistered without a signal",
    "N6": "a shutdown ends processes and keeps registrations",
    "T3": "too many starts in its window: the budget puts the next one off",
}
