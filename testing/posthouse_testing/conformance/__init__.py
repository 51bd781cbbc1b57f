"""The conformance kit: cases that judge any master from outside, by its bytes.

Owns: nothing but the order of the table. Must not know: posthouse's own code (see wire.py).
Invariant: each case has a name for ever, and says which section of the protocol it tests.
"""

from posthouse_testing.conformance import (  # noqa: I001 - the order of the table
    sessions,
    frames,
    requests,
    declare,
    workers,
    domains,
    events,
    hosts,
    operations,
)
from posthouse_testing.conformance.kit import CASES, Case, Outcome, Target, run, select
from posthouse_testing.conformance.wire import Keys

__all__ = [
    "CASES",
    "Case",
    "Keys",
    "Outcome",
    "Target",
    "declare",
    "domains",
    "events",
    "frames",
    "hosts",
    "operations",
    "requests",
    "run",
    "select",
    "sessions",
    "workers",
]
