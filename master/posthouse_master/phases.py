"""CORE: the phase of the cluster, and which start_time each phase lets start.

Owns: the gate (G1-G5). Must not know: registrations, hosts. With the embedded database a cluster
has nothing to recover, so its phase is RUNNING from the first moment (G6).
Invariant: the gate is asked only at a start; nothing that runs is stopped by a phase (G5).
"""

from typing import Final

from posthouse.states import Phase, StartTime

__all__ = ["GATE", "may_start"]

GATE: Final[dict[Phase, frozenset[StartTime]]] = {
    Phase.STARTING: frozenset((StartTime.POSTMASTER_START,)),  # G1
    Phase.HOT_STANDBY: frozenset((StartTime.POSTMASTER_START, StartTime.CONSISTENT_STATE)),  # G2
    Phase.RUNNING: frozenset(StartTime),  # G3
    Phase.STOPPING: frozenset(),  # G4
}


def may_start(phase: Phase, start_time: StartTime) -> bool:
    """True if a worker of this start_time may be started in this phase.

    >>> may_start(Phase.HOT_STANDBY, StartTime.RECOVERY_FINISHED)
    False
    """
    return start_time in GATE[phase]
