"""Many seeds, on several cores, with their figures added up.

Owns: how seeds are dealt out to processes, what is kept of each. Must not know: the command line,
what is simulated. Invariant: the sums do not depend on how many processes there are.
"""

import signal
from collections import Counter
from collections.abc import Generator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from posthouse_agent import native
from posthouse_testing.sim.run import Failure, simulate

__all__ = ["Batch", "Seeds", "Violated", "run", "violated"]

_DEALT = 20  # seeds that a process is given at a time: some seconds of work


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeds:
    """What is run: seeds from `first` on, each with the same options of `simulate`."""

    first: int
    count: int
    skip: frozenset[int] = frozenset()
    only: tuple[str, ...] = ()
    leases: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Violated:
    """What is told of a seed that failed; a Failure itself keeps its whole world alive."""

    seed: int
    text: str
    trace: tuple[str, ...]
    trace_hash: str


@dataclass(slots=True)
class Batch:
    """Figures of some seeds."""

    done: int = 0
    figures: Counter[str] = field(default_factory=Counter)
    virtual_s: float = 0.0
    settled_s: float = 0.0  # the longest that one took to settle
    violations: list[Violated] = field(default_factory=list)

    def add(self, other: "Batch") -> None:
        self.done += other.done
        self.figures += other.figures
        self.virtual_s += other.virtual_s
        self.settled_s = max(self.settled_s, other.settled_s)
        self.violations += other.violations

    def told(self, seeds: Seeds, real_s: float) -> dict[str, Any]:
        """For other programs to read."""
        return {
            "first_seed": seeds.first,
            "seeds": self.done,
            "violations": len(self.violations),
            "failed_seeds": sorted(each.seed for each in self.violations),
            "simulated_hours": round(self.virtual_s / 3600, 2),
            "settled_s": round(self.settled_s, 1),
            "real_s": round(real_s, 1),
            "figures": dict(sorted(self.figures.items())),
        }


def run(seeds: Seeds, jobs: int) -> Generator[Batch, None, None]:
    """The seeds, a few at a time, in whatever order they are done. Whoever stops asking stops it,
    but for what is under way."""
    dealt = [
        (seeds, first, min(_DEALT, seeds.first + seeds.count - first))
        for first in range(seeds.first, seeds.first + seeds.count, _DEALT)
    ]
    if jobs <= 1:
        yield from (_some(*each) for each in dealt)
        return
    with ProcessPoolExecutor(jobs, initializer=_alone) as pool:
        under_way: set[Future[Batch]] = set()
        try:
            while dealt or under_way:
                while dealt and len(under_way) < 2 * jobs:
                    under_way.add(pool.submit(_some, *dealt.pop(0)))
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for each in done:
                    yield each.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _alone() -> None:
    """In a process of the pool: end with the one that made it, however that ends, and leave Ctrl-C
    to it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    native.die_with_parent()


def _some(seeds: Seeds, first: int, count: int) -> Batch:
    batch = Batch()
    for seed in range(first, first + count):
        batch.done += 1
        try:
            report = simulate(seed, skip=seeds.skip, only=seeds.only, leases=seeds.leases)
        except Failure as failure:
            batch.violations.append(violated(failure))
            continue
        batch.figures += report.figures
        batch.virtual_s += report.virtual_s
        batch.settled_s = max(batch.settled_s, report.settled_s)
    return batch


def violated(failure: Failure) -> Violated:
    return Violated(
        seed=failure.seed,
        text=str(failure),
        trace=tuple(failure.trace),
        trace_hash=failure.trace_hash,
    )
