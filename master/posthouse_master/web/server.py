"""/livez, /readyz and /metrics in a thread of their own, beside the master's loop.

Owns: the HTTP server, and the bridge by which it asks the loop for a picture. Must not know: how a
picture is painted, what a metric is called.

Invariant: only the loop's thread touches the core; the server's thread asks through a queue and
waits with a deadline, so a slow reader costs the master nothing, and a hung loop is seen: /livez
then answers 503.
"""

import asyncio
import json
import queue
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from posthouse.ids import Instant
from posthouse_master.core import MasterCore
from posthouse_master.web.meter import Meter
from posthouse_master.web.metrics import expose
from posthouse_master.web.picture import Picture, paint

__all__ = ["Server", "Window"]

ANSWER_S: Final = 5.0  # a loop that does not answer for so long is not alive
_ASKED_MAX: Final = 64  # readers that wait at a time; one more is told to come again
_END_S: Final = 2.0


class Window:
    """The bridge: `ask` from any thread, `look` from the loop."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._asked: queue.Queue[Future[Picture]] = queue.Queue(_ASKED_MAX)
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._waiting: list[Future[Picture]] = []
        self._painting: Iterator[Picture | None] | None = None

    @property
    def descriptor(self) -> int:
        """Readable when somebody asks."""
        return self._reader.fileno()

    @property
    def busy(self) -> bool:
        """A picture is being painted: the loop is to come back at once."""
        return self._painting is not None

    def ask(self) -> "Future[Picture]":
        """A picture that the loop will paint. Raises queue.Full."""
        asked: Future[Picture] = Future()
        self._asked.put_nowait(asked)
        with suppress(BlockingIOError):  # full: there is more than enough for it to wake up by
            self._writer.send(b"?")
        return asked

    def look(self, core: MasterCore, now: Instant) -> None:
        """One slice of work for whoever asked."""
        with suppress(BlockingIOError):
            self._reader.recv(4096)
        if self._painting is None:
            while not self._asked.empty():
                self._waiting.append(self._asked.get_nowait())
            if not self._waiting:
                return
            self._painting = paint(core, now, self._version)
        picture = next(self._painting)
        if picture is None:
            return
        self._painting = None
        waiting, self._waiting = self._waiting, []
        for asked in waiting:
            if asked.set_running_or_notify_cancel():
                asked.set_result(picture)

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


class Server:
    """The thread. `close` ends it."""

    def __init__(self, listening: socket.socket, window: Window, meter: Meter) -> None:
        pages = _Pages(window, meter)
        routes = [
            Route("/livez", pages.livez),
            Route("/readyz", pages.readyz),
            Route("/metrics", pages.metrics),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes),
            log_config=None,
            access_log=False,
            lifespan="off",
            loop="asyncio",
            http="h11",
            ws="none",
            limit_concurrency=_ASKED_MAX,
            timeout_keep_alive=5,
            h11_max_incomplete_event_size=16_384,
        )
        self._listening = listening
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([listening],), name="web", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(_END_S)
        self._listening.close()


class _Pages:
    def __init__(self, window: Window, meter: Meter) -> None:
        self._window = window
        self._meter = meter

    async def livez(self, _request: Request) -> Response:
        """200 if the loop answers."""
        picture = await self._picture()
        if picture is None:
            return _json(503, {"live": False, "reasons": ["the master's loop does not answer"]})
        return _json(200, {"live": True, "epoch": picture.epoch})

    async def readyz(self, _request: Request) -> Response:
        """200 if registrations are taken and carried out as asked, else 503 and why not."""
        picture = await self._picture()
        reasons = picture.not_ready if picture else ("the master's loop does not answer",)
        body = {"ready": not reasons, "reasons": list(reasons)}
        if picture:
            # No reasons: a phase holds up starts on purpose, and registrations are taken; what was
            # skipped of the configuration costs nobody else anything.
            body |= {"phase": picture.phase, "phase_detail": picture.phase_detail}
            body["reports"] = list(picture.reports)
        return _json(503 if reasons else 200, body)

    async def metrics(self, request: Request) -> Response:
        picture = await self._picture()
        if picture is None:
            return _json(503, {"reasons": ["the master's loop does not answer"]})
        body, content_type = expose(picture, self._meter, request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    async def _picture(self) -> Picture | None:
        try:
            asked = asyncio.wrap_future(self._window.ask())
            return await asyncio.wait_for(asked, ANSWER_S)
        except (queue.Full, TimeoutError):
            return None


def _json(status: int, body: object) -> Response:
    return Response(json.dumps(body) + "\n", status, media_type="application/json")
