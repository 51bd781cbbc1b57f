"""PostgreSQL's worker_spi: each worker adds up the rows of a table of its own.

A worker makes schema N with a table `counted`, and then, at every nap's end and at HUP, takes its
rows of type "delta" and adds their values to the row of type "total". On SQLite, which has no
schemas, the table is `schemaN_counted`.
"""

import os
import signal
from typing import Any

from posthouse import (
    DATABASE_CONNECTION,
    SHMEM_ACCESS,
    BackgroundWorker,
    StartTime,
    StaticRegistry,
    worker,
)
from posthouse.spi import Session

FLAGS = SHMEM_ACCESS | DATABASE_CONNECTION
NAP_S = 10.0


def posthouse_init(registry: StaticRegistry) -> None:
    """The static workers, for `preload_libraries = ["worker_spi"]`, by the master's environment."""
    for number in range(1, int(os.environ.get("WORKER_SPI_TOTAL_WORKERS", "2")) + 1):
        registry.register(
            BackgroundWorker(
                name=f"worker_spi worker {number}",
                type="worker_spi",
                main="worker_spi:main",
                main_arg={
                    "number": number,
                    "database": os.environ.get("WORKER_SPI_DATABASE", "postgres"),
                    "role": os.environ.get("WORKER_SPI_ROLE"),
                    "nap_s": float(os.environ.get("WORKER_SPI_NAPTIME", NAP_S)),
                },
                flags=FLAGS,
                start_time=StartTime.RECOVERY_FINISHED,
                restart_time=5,
            )
        )


def main(arg: dict[str, Any]) -> None:
    signal.signal(signal.SIGHUP, lambda *_: worker.latch.set())  # the nap is over
    worker.unblock_signals()
    spi = worker.initialize_connection(arg["database"], arg["role"], flags=arg.get("flags", 0))
    table = initialize(spi, arg["number"])
    worker.ready()
    while True:
        nap(arg.get("nap_s", NAP_S))
        with spi.transaction():
            add_up(spi, table)


def nap(seconds: float) -> None:
    worker.latch.wait(worker.LATCH_SET, worker.EXIT_ON_PM_DEATH, timeout=seconds)
    worker.latch.reset()


def initialize(spi: Session, number: int) -> str:
    """The table's name; it is made if it is not there."""
    with spi.transaction():
        table = f"schema{number}.counted"
        if spi.engine == "sqlite":
            table = f"schema{number}_counted"
        elif not spi.execute("SELECT FROM pg_namespace WHERE nspname = $1", [f"schema{number}"]):
            spi.execute(f"CREATE SCHEMA schema{number}")
        spi.execute(
            f"CREATE TABLE IF NOT EXISTS {table}"
            " (type text CHECK (type IN ('total', 'delta')), value integer)"
        )
        index = table.replace("_counted", "_total") if spi.engine == "sqlite" else "total"
        spi.execute(
            f"CREATE UNIQUE INDEX IF NOT EXISTS {index} ON {table} (type) WHERE type = 'total'"
        )
    return table


def add_up(spi: Session, table: str) -> None:
    """Nobody's row is lost: only what was deleted is added."""
    taken = spi.execute(f"DELETE FROM {table} WHERE type = 'delta' RETURNING value")
    if not taken:
        return
    total = spi.execute(
        f"UPDATE {table} SET value = value + $1 WHERE type = 'total' RETURNING value",
        [sum(value for (value,) in taken)],
    )
    for (value,) in total:
        print(f"{worker.entry().name}: count in {table} is now {value}", flush=True)
