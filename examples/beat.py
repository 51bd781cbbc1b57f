"""A worker that prints a line every second. Try: posthouse run beat:main --on b"""

import sys

from posthouse import worker


def main(words: str | None) -> None:
    worker.unblock_signals()
    while True:
        print(words or "beat", flush=True)
        worker.latch.reset()
        if worker.POSTMASTER_DEATH in worker.latch.wait(timeout=1.0):
            sys.exit(1)
