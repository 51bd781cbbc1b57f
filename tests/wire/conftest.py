"""What the wire tests share: a private folder, a context, and waiting with a deadline."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from posthouse import transport


@pytest.fixture
def folder() -> Iterator[Path]:
    """A private folder with a path short enough for Unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="ph", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def context() -> Iterator[transport.Context]:
    """A context; the sockets that a test leaves open in it are closed."""
    kept: list[Any] = []

    class Keeping(zmq.Context):  # type: ignore[type-arg]
        def socket(self, *given: Any, **options: Any) -> Any:
            kept.append(super().socket(*given, **options))
            return kept[-1]

    made = Keeping()
    yield made
    for socket in kept:
        socket.close(0)
    made.term()


@pytest.fixture
def until() -> Callable[..., Any]:
    """until(look): what `look()` returns as soon as it is true. Fails after a generous deadline."""

    def wait(look: Callable[[], Any], deadline_s: float = 20.0) -> Any:
        end = time.monotonic() + deadline_s
        while not (found := look()):
            assert time.monotonic() < end, f"still {found!r} after {deadline_s} s"
            time.sleep(0.005)
        return found

    return wait
