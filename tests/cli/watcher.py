"""A program that is no worker: it registers one, and says each SIGUSR1 that it gets."""

import signal
import sys

import posthouse
from posthouse import BackgroundWorker
from posthouse.errors import RefusedError


def main(name: str, host: str, then: str) -> None:
    signal.signal(signal.SIGUSR1, lambda *_: print("SIGUSR1", flush=True))
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
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        print("registered", flush=True)
        for line in sys.stdin:
            print(line.strip(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
