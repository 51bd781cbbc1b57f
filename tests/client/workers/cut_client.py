"""A client in a network of its own, for test_cut.py: cut_client.py KIND SETTINGS.

Does what its standard input says, all at once, and says what comes of it: "register NAME",
"wait NAME". All events are told from the first one on.
"""

import asyncio
import json
import sys
import threading
from typing import Any

import posthouse.aio
from posthouse import BackgroundWorker, ClientSettings, Cursor
from posthouse.errors import PosthouseError

START = Cursor(0, 0)


_saying = threading.Lock()


def say(*words: object) -> None:
    # print() writes word by word: two threads would tell one line made of both.
    with _saying:
        print(*words, flush=True)


def asked(cluster: Any, what: str, name: str) -> Any:
    if what == "register":
        return cluster.register(BackgroundWorker(name=name, main="m:f", labels=("no",)), timeout=60)
    handles[name] = handles.get(name)
    return handles[name].wait_for_startup(timeout=60)


handles: dict[str, Any] = {}


async def answer(cluster: Any, what: str, name: str) -> None:
    found = asked(cluster, what, name)
    try:
        tell(what, name, await found)
    except PosthouseError as error:
        say(what, name, "failed:", type(error).__name__, error)


def tell(what: str, name: str, found: Any) -> None:
    if what == "register":
        handles[name] = found
    say(what, name, found.name if what == "register" else found.state)


async def on_a_loop(settings: ClientSettings) -> None:
    async def events(cluster: Any) -> None:
        async for event in cluster.events(after=START):
            say("event", event.sequence)

    async with posthouse.aio.connect(settings=settings, master_silence_s=2) as cluster:
        say("connected")
        tasks = [asyncio.create_task(events(cluster))]
        while line := await asyncio.to_thread(sys.stdin.readline):
            tasks.append(asyncio.create_task(answer(cluster, *line.split())))
        for task in tasks:
            task.cancel()


def in_threads(settings: ClientSettings) -> None:
    def events() -> None:
        for event in cluster.events(after=START):
            say("event", event.sequence)

    def call(what: str, name: str) -> None:
        try:
            tell(what, name, asked(cluster, what, name))
        except PosthouseError as error:
            say(what, name, "failed:", type(error).__name__, error)

    cluster = posthouse.connect(settings=settings, master_silence_s=2)
    say("connected")
    threading.Thread(target=events, daemon=True).start()
    while line := sys.stdin.readline():
        threading.Thread(target=call, args=line.split(), daemon=True).start()


settings = ClientSettings(**json.loads(sys.argv[2]))
if sys.argv[1] == "aio":
    asyncio.run(on_a_loop(settings))
else:
    in_threads(settings)
