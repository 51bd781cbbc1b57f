"""The tables of states.md, from the master's own table of transitions.

Owns: a word for each state and each step. Must not know: who takes them. Invariant: every cell of
the table is told.
"""

from pages.notes import Notes, Tables, Unfit, table
from posthouse_master.registry import TRANSITIONS, Step
from posthouse_master.store.base import Life

__all__ = ["TABLES"]

LIVES = {
    Life.SUBMITTED: (
        "registered; waits for a phase, a host, or its first start",
        "not yet started",
    ),
    Life.STARTING: (
        "an incarnation and its token are durable; START may have left",
        "not yet started; stopped, if an earlier incarnation ran",
    ),
    Life.RUNNING: ("its host has said that the process exists", "started"),
    Life.WAITING: ("it ended, or could not be started; it will be started again", "stopped"),
    Life.HELD: ("an operator keeps it from running until it is released", "stopped, not final"),
    Life.RETIRED: ("unregistered; listed with its last exit until trimmed", "stopped, final"),
}
STEPS = {
    Step.START: "it can be placed and its delay is over",
    Step.STARTED: "the host says that the process exists",
    Step.READY: "the worker says that it is ready",
    Step.STOP: "a stop is asked for",
    Step.FAIL: "the start led to no process",
    Step.FAIL_FOR_GOOD: "the start led to no process; never restarted, or terminated",
    Step.FAIL_HELD: "the start led to no process, while a hold was asked for",
    Step.EXIT: "the process ended; to be started again",
    Step.EXIT_FOR_GOOD: "the process ended: exit 0, never restarted, or terminated",
    Step.EXIT_HELD: "the process ended while a hold was asked for",
    Step.HOLD: "hold",
    Step.RELEASE: "release",
    Step.CANCEL: "terminate",
    Step.ADOPT: "found running after a restore",
    Step.REVISE: "apply with other content",
    Step.PROVE: "its process of a new revision has run for long enough",
}


def lives(_notes: Notes) -> str:
    rows = [(f"`{life}`", *LIVES[life]) for life in Life]
    return table(("state", "meaning", "a handle sees"), rows)


def transitions(_notes: Notes) -> str:
    if set(STEPS) != set(Step):
        raise Unfit(f"steps without a word: {sorted(set(Step) - set(STEPS))}")
    rows = [(f"`{b}`", STEPS[step], f"`{a}`") for (b, step), a in TRANSITIONS.items() if b != a]
    return table(("from", "what happens", "to"), rows)


def diagram(_notes: Notes) -> str:
    """Mermaid's words for the same table."""
    moves = [
        f"    {before} --> {after}: {step}"
        for (before, step), after in TRANSITIONS.items()
        if before is not after
    ]
    return "\n".join(("stateDiagram-v2", "    [*] --> submitted: register", *moves))


TABLES: Tables = {"states": lives, "transitions": transitions, "diagram": diagram}
