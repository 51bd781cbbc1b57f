"""`python -m posthouse_testing.sim`: run seeds, print figures, replay and shrink a failure.

Owns: the command line of the simulator. Must not know: what is simulated, how seeds are dealt out.
Invariant: what it prints about a violation is enough to see the same violation again.
"""

import argparse
import contextlib
import io
import json
import os
import signal
import sys
import time

from posthouse_testing.sim.batch import Batch, Seeds, Violated, run, violated
from posthouse_testing.sim.faults import KINDS
from posthouse_testing.sim.run import Failure, simulate

__all__ = ["main"]

LINES_SHOWN = 60
PROGRESS_S = 60.0


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0: no violation; 1: a violation, printed with the command that replays it."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a violation is seen at once, in a file too
    only = tuple(kind for kind in options.only.split(",") if kind)
    if unknown := [kind for kind in only if kind not in KINDS]:
        parser.error(f"no such kind: {unknown[0]!r}; there are: {', '.join(KINDS)}")
    if options.jobs < 0:
        parser.error(f"--jobs {options.jobs}: 0 (one for each core) or more")
    seeds = Seeds(
        first=options.start if options.seed is None else options.seed,
        count=options.seeds if options.seed is None else 1,
        skip=frozenset(int(number) for number in options.skip.split(",") if number),
        only=only,
        leases=True if options.leases else None,
    )
    begun_s = time.monotonic()
    with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
        if options.seed is not None:
            total = _one(seeds, traced=options.trace, shrink=options.shrink)
        else:
            jobs = options.jobs or os.cpu_count() or 1
            total = _many(seeds, jobs, keep_going=options.keep_going, shrink=options.shrink)
    real_s = time.monotonic() - begun_s
    if options.json:
        print(json.dumps(total.told(seeds, real_s), indent=1))
    else:
        _summary(seeds, total, real_s)
    return 1 if total.violations else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m posthouse_testing.sim",
        description="Run posthouse's cores on virtual time with seeded faults.",
    )
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds (default 200)")
    parser.add_argument("--start", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument(
        "--jobs", type=int, default=1, help="processes (default 1; 0: one for each core)"
    )
    parser.add_argument("--trace", action="store_true", help="print all that one seed does")
    parser.add_argument(
        "--skip", default="", metavar="N,N", help="leave these faults out (as --shrink tells)"
    )
    parser.add_argument(
        "--only", default="", metavar="KIND,KIND", help="many faults, of these kinds alone"
    )
    parser.add_argument(
        "--leases", action="store_true", help="leases have deadlines in every seed, not in some"
    )
    parser.add_argument("--shrink", action="store_true", help="leave out faults that do not matter")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at a violation")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser


# --- running ---


def _one(seeds: Seeds, *, traced: bool, shrink: bool) -> Batch:
    """A seed that somebody wants to look at."""
    total = Batch(done=1)
    echo = print if traced else None
    try:
        report = simulate(
            seeds.first, skip=seeds.skip, only=seeds.only, leases=seeds.leases, echo=echo
        )
    except Failure as failure:
        found = violated(failure)
        total.violations.append(found)
        _show(found, seeds, shrink=shrink, traced=traced)
    else:
        total.figures, total.virtual_s = report.figures, report.virtual_s
        total.settled_s = report.settled_s
        print(f"trace {report.trace_hash}")
    return total


def _many(seeds: Seeds, jobs: int, *, keep_going: bool, shrink: bool) -> Batch:
    """All of them, or as many as are done when somebody ends it (TERM, Ctrl-C)."""
    total = Batch()
    told_s = time.monotonic()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.closing(run(seeds, jobs)) as batches:
            for batch in batches:
                total.add(batch)
                for found in batch.violations:
                    _show(found, seeds, shrink=shrink, traced=False)
                if total.violations and not keep_going:
                    break
                if time.monotonic() - told_s > PROGRESS_S:
                    told_s = time.monotonic()
                    print(f"{total.done} of {seeds.count} seeds", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print(f"ended after {total.done} of {seeds.count} seeds", file=sys.stderr)
    finally:
        signal.signal(signal.SIGTERM, before)
    return total


# --- telling ---


def _show(found: Violated, seeds: Seeds, *, shrink: bool, traced: bool) -> None:
    skip = seeds.skip
    print(f"VIOLATION in {found.text}")
    if shrink:
        found, skip = _shrunk(found, seeds)
    if not traced:
        for line in found.trace[-LINES_SHOWN:]:
            print(f"  {line}")
    print(f"trace {found.trace_hash}")
    options = " --leases" if seeds.leases else ""
    options += f" --skip {','.join(str(number) for number in sorted(skip))}" if skip else ""
    options += f" --only '{','.join(seeds.only)}'" if seeds.only else ""
    print(f"replay: python -m posthouse_testing.sim --seed {found.seed}{options} --trace")


def _shrunk(found: Violated, seeds: Seeds) -> tuple[Violated, frozenset[int]]:
    """Leave faults out, one after the other, as long as the same invariant breaks."""
    kept, skip = _failure(found.seed, seeds, seeds.skip), seeds.skip
    assert kept is not None, "the same seed gives the same run"
    faults = kept.faults
    for fault in reversed(faults):
        if fault.number in skip:
            continue
        smaller = _failure(found.seed, seeds, skip | {fault.number})
        if smaller is not None and _kind(smaller) == _kind(kept):
            kept, skip = smaller, skip | {fault.number}
    left = [str(fault) for fault in faults if fault.number not in skip]
    print(f"shrunk to {len(left)} of {len(faults)} faults: {kept}")
    for text in left:
        print(f"  {text}")
    return violated(kept), skip


def _failure(seed: int, seeds: Seeds, skip: frozenset[int]) -> Failure | None:
    try:
        simulate(seed, skip=skip, only=seeds.only, leases=seeds.leases)
    except Failure as failure:
        return failure
    return None


def _kind(failure: Failure) -> tuple[int, type[Exception]]:
    return failure.number, type(failure.cause)


def _summary(seeds: Seeds, total: Batch, real_s: float) -> None:
    which = f"seeds {seeds.first} to {seeds.first + total.done - 1}"
    if total.done < seeds.count:
        which = f"{total.done} of the seeds {seeds.first} to {seeds.first + seeds.count - 1}"
    print(
        f"{which}: {len(total.violations)} violations, "
        f"{total.virtual_s / 3600:.2f} simulated hours in {real_s:.1f} s, "
        f"settled within {total.settled_s:.1f} s"
    )
    for name, count in sorted(total.figures.items()):
        print(f"  {count:>9} {name}")
    if total.violations:
        print("failed seeds: " + " ".join(str(each.seed) for each in total.violations))


if __name__ == "__main__":
    sys.exit(main())
