"""When the output files of this host's workers are looked at, and by which bounds.

Owns: the bound of each running worker's file, the times of the looks. Must not know: files (logs).
Invariant: a look runs in the I/O thread and one at a time; a file is looked at once more after its
worker's end, and whatever is left over by an agent that was away is seen by the next one's looks.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from posthouse import limits
from posthouse.settings import AgentSettings
from posthouse_agent import logs
from posthouse_agent.effects import Note
from posthouse_agent.orders import Ended, Forked

__all__ = ["LogKeeper"]


class LogKeeper:
    """Told of workers by the shell; `submit` hands a chore to the I/O thread."""

    def __init__(
        self, settings: AgentSettings, submit: Callable[[Callable[[], Any]], bool]
    ) -> None:
        self._log_dir = settings.log_dir
        self._total_max = settings.log_total_bytes
        self._submit = submit
        self._bounds: dict[tuple[int, int], int] = {}
        self._tokens: dict[tuple[int, int], int] = {}  # who writes to it
        self._told: set[tuple[int, int]] = set()
        self._due_s = 0.0
        self._tidy_due_s = 0.0
        self._looking = False

    def began(self, worker: Forked) -> None:
        """It writes from now on, or did already when this agent came."""
        key = (worker.slot, worker.generation)
        self._bounds[key] = worker.log_bytes
        self._tokens[key] = worker.token

    def ended(self, worker: Ended) -> None:
        """It writes no more."""
        key = (worker.slot, worker.generation)
        if self._tokens.get(key) == worker.token:
            del self._tokens[key]

    def look(self, now_s: float) -> None:
        """Have the files looked at, if it is time."""
        if self._looking or now_s < self._due_s:
            return
        tidy = now_s >= self._tidy_due_s
        self._looking = self._submit(
            partial(
                _look, self._log_dir, dict(self._bounds), frozenset(self._told),
                self._total_max if tidy else None, frozenset(self._tokens),
            )
        )  # fmt: skip
        self._due_s = now_s + limits.log_look_s
        if self._looking:
            self._tidy_due_s = now_s + limits.log_tidy_s if tidy else self._tidy_due_s
            self._bounds = {k: v for k, v in self._bounds.items() if k in self._tokens}
            self._told &= self._tokens.keys()

    def looked(self, result: logs.Looked) -> tuple[Note, ...]:
        """What to say about a look that is done."""
        self._looking = False
        if result.busy:
            self._due_s -= limits.log_look_s - limits.log_busy_s
        self._told |= result.troubled
        return result.notes


def _look(
    log_dir: str,
    bounds: dict[tuple[int, int], int],
    told: frozenset[tuple[int, int]],
    total_max: int | None,
    running: frozenset[tuple[int, int]],
) -> logs.Looked:
    # In the I/O thread.
    looked = logs.look(log_dir, bounds, told)
    if total_max is None:
        return looked
    notes = logs.tidy(log_dir, running, total_max, limits.log_free_bytes_min)
    return logs.Looked(looked.busy, looked.troubled, (*looked.notes, *notes))
