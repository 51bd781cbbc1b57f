"""Workers that look at memory which a library has requested, for test_preloaded_memory.py."""

import json
import os
from pathlib import Path
from typing import Any

from posthouse import shmem, worker
from posthouse.errors import PosthouseError


def look(arg: dict[str, Any]) -> None:
    """What the warden has of its domain; then the structure itself, which its maker marks by a 7;
    then wait."""
    me = worker.entry()
    told: dict[str, Any] = {"there": _there()}
    worker.unblock_signals()
    try:
        segment, found = shmem.init_struct(arg["name"], arg["size"])
    except PosthouseError as error:
        told["error"] = f"{type(error).__name__}: {error}"
    else:
        told |= {"found": found, "before": segment[0], "epoch": segment.epoch}
        if not found:  # another one might do so before the maker has looked
            segment[0] = 7
    path = Path(arg["folder"]) / f"{me.name}.{me.incarnation}"
    path.with_suffix(".new").write_text(json.dumps(told))
    path.with_suffix(".new").rename(path)
    while True:
        worker.latch.reset()
        worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH)


def _there() -> list[int]:
    """Sizes of the segments that the warden, this worker's parent, has open."""
    folder = Path(f"/proc/{os.getppid()}/fd")
    sizes = []
    for entry in folder.iterdir():
        try:
            if "posthouse-segment" in os.readlink(entry):
                sizes.append(entry.stat().st_size)
        except OSError:
            continue
    return sorted(size for size in sizes if size)
