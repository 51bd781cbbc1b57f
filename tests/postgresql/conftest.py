"""Sessions of this very process, for test_sessions.py and test_lost.py."""

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from posthouse import spi

Open = Callable[..., spi.Session]


def asked(token: int = 1) -> spi.Asked:
    return spi.Asked(database="app", role=None, flags=0, name="w", token=token)


@pytest.fixture(scope="module")
def session_urls(served: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("sqlite")
    return {"postgresql": served.url, "sqlite": f"sqlite://{folder}/app.db"}


@pytest.fixture(scope="module")
def kept(session_urls: dict[str, str]) -> Iterator[dict[str, spi.Session]]:
    """One session with each engine, for tests that leave nothing behind."""
    opened = {engine: spi.connect({"app": url}, asked()) for engine, url in session_urls.items()}
    yield opened
    for session in opened.values():
        session._engine.close()


@pytest.fixture
def connect(session_urls: dict[str, str]) -> Iterator[Open]:
    opened: list[spi.Session] = []

    def connect(engine: str, token: int = 1, url: str = "") -> spi.Session:
        opened.append(spi.connect({"app": url or session_urls[engine]}, asked(token=token)))
        return opened[-1]

    yield connect
    for session in opened:
        session._engine.close()


@pytest.fixture
def table() -> str:
    return f"t{uuid.uuid4().hex[:8]}"
