"""Both stores behind one interface: open the same registry again and again."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from posthouse_master.store.base import Store
from posthouse_master.store.memory import MemoryDisk, MemoryStore
from posthouse_master.store.sqlite import SqliteStore


@pytest.fixture
def state_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="ph", dir="/tmp"))
    yield path / "state"
    shutil.rmtree(path)


@pytest.fixture(params=["memory", "sqlite"])
def opened(request: Any, state_dir: Path) -> Iterator[Callable[[], Store]]:
    """Opens the registry; each store is closed at the end if the test has not done it."""
    disk = MemoryDisk(registry="ab" * 16)
    with ExitStack() as stores:

        def open_store() -> Store:
            store: Store = (
                MemoryStore(disk) if request.param == "memory" else SqliteStore(state_dir)
            )
            stores.callback(store.close)
            return store

        yield open_store
