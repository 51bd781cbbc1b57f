"""A program that is no worker: it registers one, and says each SIGUSR1 that it gets."""

import signal
import sys
import time

import posthouse
from posthouse import BackgroundWorker
from posthouse.errors import RefusedError


def main(name: str, host: str, then: str) -> None:
    told: list[int] = []  # an Event's lock is not for handlers

    def tell(*_: object) -> None:
        print("SIGUSR1", flush=True)
        told.append(1)

    signal.signal(signal.SIGUSR1, tell)
    if then == "deadly":
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    with posthouse.connect(timeout=30) as cluster:
        record = BackgroundWorker(
            name=name, main="jobs:idle", host=host, notify=True, restart_time=0.05
        )
        try:
            cluster.register(record)
        except RefusedError as error:
            print(error, flush=True)
        if then == "careless":
            while not told:  # that of the start is under way still
                time.sleep(0.01)
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        print("registered", flush=True)
        for line in sys.stdin:
            print(line.strip(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
