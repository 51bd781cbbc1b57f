"""The process in which one library of `preload_libraries` is loaded: no more than that.

    python -P -m posthouse_master.preload_child LIBRARY DESCRIPTOR [FOLDER...]

Owns: the import, the call of posthouse_init, the answer on the descriptor: one DECLARE_PART a
worker, one with all structures, then DONE or FAILED, each a frame with its length before it. Must
not know: the master.
Invariant: nothing is written before posthouse_init has returned, and only this process writes it:
what a fork of the library leaves posthouse_init through ends here.
"""

import ctypes
import os
import signal
import struct
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module

from posthouse import codec, limits
from posthouse.codec import NO_SESSION, Envelope
from posthouse.errors import PosthouseError, RefusedError
from posthouse.messages import Declared, DeclarePart, Done, Failed, Message, StructRequest
from posthouse.preload import StaticRegistry

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
_NOBODY = bytes(limits.request_id_bytes)  # the pipe has one reader, who needs no ids


def main(library: str, descriptor: int, folders: list[str]) -> None:
    """Load the library, answer, and end."""
    own = os.getpid()
    sys.argv = [library]
    sys.path[:0] = folders
    status = 0
    try:
        answer = list(_load(library))
    except BaseException as error:  # noqa: BLE001 - also SystemExit and KeyboardInterrupt
        if os.getpid() == own:
            traceback.print_exc()
        status = 1
        answer = [_failed(error)]
    if os.getpid() != own:
        os._exit(1)
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    _write(descriptor, answer)
    # Whatever threads and exit handlers the library has made: it has been asked all there is.
    os._exit(status)


def _load(library: str) -> Iterator[Message]:
    init = getattr(import_module(library), "posthouse_init", None)
    if not callable(init):
        raise RefusedError(
            f"{library} has no function posthouse_init(registry)",
            hint="a library in preload_libraries registers its workers there",
        )
    registry = StaticRegistry()
    wires = registry.collect(init)
    for number, wire in enumerate(wires):
        yield DeclarePart(
            request=_NOBODY, upload=_NOBODY, part=number, workers=[Declared(spec=wire)]
        )
    structs = [
        StructRequest(name=name, size=size, crash_domain=domain, library=library)
        for name, size, domain in registry.structs
    ]
    if structs:
        yield DeclarePart(
            request=_NOBODY, upload=_NOBODY, part=len(wires), workers=[], structs=structs
        )
    yield Done(request=_NOBODY)


def _failed(error: BaseException) -> Failed:
    own = isinstance(error, PosthouseError)
    told = str(error) if own else f"{type(error).__name__}: {error}"
    printable = told.encode(errors="replace").decode()
    return Failed(request=_NOBODY, code="refused", message=printable[: limits.report_chars_max])


def _write(descriptor: int, answer: list[Message]) -> None:
    frames = [codec.encode(Envelope(NO_SESSION, 0, 0, 0, message)) for message in answer]
    data = memoryview(b"".join(struct.pack(">I", len(frame)) + frame for frame in frames))
    while data:
        data = data[os.write(descriptor, data) :]


def _end_with(parent: int) -> None:
    """Whatever the library does: it does not outlive a master that is killed."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    _end_with(int(sys.argv[3]))
    main(sys.argv[1], int(sys.argv[2]), sys.argv[4:])
