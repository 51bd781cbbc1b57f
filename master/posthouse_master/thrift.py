"""CORE: what is still done while the registry's disk is nearly full.

Owns: which requests begin something and which bring something to its end. Must not know: disks.

Invariant: what is refused here leaves no trace, so that asked again it is a first request; a
remembered refusal would itself need room, and would stand when there is room again.
"""

from typing import Final

from posthouse.errors import ResourceExhausted
from posthouse.messages import (
    Drain,
    ForgetHost,
    Hold,
    LatchWorker,
    Request,
    Shutdown,
    SignalWorker,
    Terminate,
)
from posthouse_master.effects import Room, Space

__all__ = ["afford"]

# Whoever fills the disk may be one of the workers: ending it has to be possible.
_FREEING: Final = (Terminate, Hold, Drain, ForgetHost, Shutdown, SignalWorker, LatchWorker)


def afford(space: Space, message: Request) -> None:
    """Raises ResourceExhausted if there is no room for what a request that changes something
    leads to."""
    if space.room is Room.AMPLE or (space.room is Room.LOW and isinstance(message, _FREEING)):
        return
    raise ResourceExhausted(
        "the master's disk is full: what runs goes on, nothing new is begun",
        hint=f"make room for {space.path}, where {space.free_bytes:,} bytes are free",
        path=space.path,
        free_bytes=space.free_bytes,
    )
