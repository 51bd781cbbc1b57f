"""A huey application as its author would write it: nothing of it knows of posthouse.

A task is taken out of huey's queue before it runs, so one that is killed is huey's to lose. Its
author enqueues again what is not done; `done` has one row a task, however often it ran.
"""

import os
import sqlite3
import time

from huey import SqliteHuey

FOLDER = os.environ["TASKS"]
huey = SqliteHuey("tasks", filename=f"{FOLDER}/queue.db", timeout=30, fsync=False)


def connect():
    connection = sqlite3.connect(f"{FOLDER}/done.db", timeout=30, isolation_level=None)
    connection.execute("pragma synchronous = off")  # the machine does not lose power here
    connection.execute("create table if not exists done (number integer primary key, runs integer)")
    return connection


@huey.task()
def work(number):
    time.sleep(0.001)
    connect().execute(
        "insert into done values (?, 1) on conflict (number) do update set runs = runs + 1",
        (number,),
    )
