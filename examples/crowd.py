"""Run a few workers at once and tell what becomes of each, on one event loop without a thread.

    posthouse up --hosts a,b &
    python examples/crowd.py 3

Every worker has a task that follows its events; when all have started, all are ended. If one task
fails, the others are cancelled, and nothing of them is left behind, here or at the master.
"""

import asyncio
import sys

import posthouse
from posthouse import BackgroundWorker


async def follow(handle: posthouse.aio.Handle) -> None:
    """Each event once, from the first one on; ends when the worker is unregistered."""
    async for event in handle.events(timeout=60):
        told = event.exit.describe() if event.exit else event.host
        print(handle.name, event.kind, told, flush=True)


async def main(count: int) -> None:
    async with posthouse.aio.connect() as cluster, asyncio.TaskGroup() as tasks:
        handles = []
        for number in range(count):
            worker = BackgroundWorker(name=f"crowd-{number}", main="beat:main")
            handles.append(await cluster.register(worker, timeout=10))
            tasks.create_task(follow(handles[-1]))
        await asyncio.gather(*(handle.wait_for_startup(timeout=20) for handle in handles))
        await asyncio.gather(*(handle.terminate(timeout=10) for handle in handles))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
