"""CORE: the state of a host at one moment, as metrics and health checks want it.

Owns: why a host is not ready. Must not know: HTTP, Prometheus, what processes use.
Invariant: a view is a copy: whoever reads it on another thread sees one moment, and holds up
nobody.
"""

from dataclasses import dataclass

from posthouse.messages import Running

__all__ = ["HostView", "WardenView"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WardenView:
    """`pid`: 0 while there is none. `complete`: it has told everything that it runs."""

    kind: str
    pid: int
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """What an agent knows of its host. `workers`: names and processes; `lost`: the reason to give
    where there is no session; `told`: the master has been sent the whole inventory."""

    host: str
    version: str
    at_unix_s: float
    session: bool
    told: bool
    lost: str
    sessions: int
    granted_unix_s: float | None
    slots: int
    starting: int
    unconfirmed: int
    workers: tuple[tuple[str, Running], ...]
    wardens: tuple[WardenView, ...]

    @property
    def not_ready(self) -> list[str]:
        """Why the master cannot have anything run here now; nothing if it can."""
        reasons = []
        for warden in self.wardens:
            if not warden.pid:
                reasons.append(f"there is no {warden.kind} warden (yet)")
            elif not warden.complete:
                reasons.append(f"the {warden.kind} warden is telling what it runs")
        if not self.session:
            reasons.append(self.lost)
        elif not self.told:
            reasons.append("the master is being told what runs here")
        return reasons
