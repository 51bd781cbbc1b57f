"""`python -m posthouse_testing.sim`: run seeds, print figures, replay and shrink a failure.

Owns: the command line of the simulator. Must not know: what is simulated.
Invariant: what it prints about a violation is enough to see the same violation again.
"""

import argparse
import io
import sys
import time
from collections import Counter

from posthouse_testing.sim.faults import KINDS
from posthouse_testing.sim.run import Failure, simulate

__all__ = ["main"]

LINES_SHOWN = 60


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0: no violation; 1: a violation, printed with the command that replays it."""
    parser = argparse.ArgumentParser(
        prog="python -m posthouse_testing.sim",
        description="Run posthouse's cores on virtual time with seeded faults.",
    )
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds (default 200)")
    parser.add_argument("--start", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    parser.add_argument(
        "--skip", default="", metavar="N,N", help="leave these faults out (as --shrink tells)"
    )
    parser.add_argument(
        "--only", default="", metavar="KIND,KIND", help="many faults, of these kinds alone"
    )
    parser.add_argument("--leases", action="store_true", help="leases have deadlines")
    parser.add_argument("--shrink", action="store_true", help="leave out faults that do not matter")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at a violation")
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a violation is seen at once, in a file too
    first = options.start if options.seed is None else options.seed
    count = options.seeds if options.seed is None else 1
    skip = frozenset(int(number) for number in options.skip.split(",") if number)
    only = tuple(kind for kind in options.only.split(",") if kind)
    if unknown := [kind for kind in only if kind not in KINDS]:
        parser.error(f"no such kind: {unknown[0]!r}; there are: {', '.join(KINDS)}")
    echo = print if options.trace else None

    totals: Counter[str] = Counter()
    begun_s = time.monotonic()
    virtual_s = settled_s = 0.0
    failures: list[Failure] = []
    done = 0
    for seed in range(first, first + count):
        done += 1
        try:
            report = simulate(seed, skip=skip, only=only, echo=echo, leases=options.leases)
        except Failure as failure:
            failures.append(failure)
            if options.shrink:
                failure, skip = _shrunk(failure, skip, only, leases=options.leases)
            _show(failure, _options(skip, only, leases=options.leases), options.trace)
            if not options.keep_going:
                break
            continue
        totals += report.figures
        virtual_s += report.virtual_s
        settled_s = max(settled_s, report.settled_s)
        if options.seed is not None:
            print(f"trace {report.trace_hash}")
    _summary(first, done, totals, virtual_s, settled_s, time.monotonic() - begun_s, failures)
    return 1 if failures else 0


def _show(failure: Failure, options: str, traced: bool) -> None:
    print(f"VIOLATION in {failure}")
    if not traced:
        for line in failure.trace[-LINES_SHOWN:]:
            print(f"  {line}")
    print(f"trace {failure.trace_hash}")
    print(f"replay: python -m posthouse_testing.sim --seed {failure.seed}{options} --trace")


def _options(skip: frozenset[int], only: tuple[str, ...], *, leases: bool) -> str:
    left_out = " --leases" if leases else ""
    left_out += f" --skip {','.join(str(number) for number in sorted(skip))}" if skip else ""
    return left_out + (f" --only '{','.join(only)}'" if only else "")


def _shrunk(
    failure: Failure, skip: frozenset[int], only: tuple[str, ...], *, leases: bool
) -> tuple[Failure, frozenset[int]]:
    """Leave faults out, one after the other, as long as the same invariant breaks."""
    kept = failure
    for fault in reversed(failure.faults):
        if fault.number in skip:
            continue
        try:
            simulate(failure.seed, skip=skip | {fault.number}, only=only, leases=leases)
        except Failure as smaller:
            if (smaller.number, type(smaller.cause)) == (kept.number, type(kept.cause)):
                kept, skip = smaller, skip | {fault.number}
    left = [str(fault) for fault in failure.faults if fault.number not in skip]
    print(f"shrunk to {len(left)} of {len(failure.faults)} faults:")
    for text in left:
        print(f"  {text}")
    return kept, skip


def _summary(
    first: int,
    done: int,
    totals: Counter[str],
    virtual_s: float,
    settled_s: float,
    real_s: float,
    failures: list[Failure],
) -> None:
    print(
        f"seeds {first} to {first + done - 1}: {len(failures)} violations, "
        f"{virtual_s / 3600:.2f} simulated hours in {real_s:.1f} s, "
        f"settled within {settled_s:.1f} s"
    )
    for name, count in sorted(totals.items()):
        print(f"  {count:>9} {name}")
    if failures:
        print("failed seeds: " + " ".join(str(failure.seed) for failure in failures))


if __name__ == "__main__":
    sys.exit(main())
