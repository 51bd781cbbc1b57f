"""A module that a runtime preloads."""

import gc
import json
import os
import random
import signal
import time

LOADED_BY = os.getpid()
signal.signal(signal.SIGALRM, lambda number, frame: None)


def look(arg):
    print(
        json.dumps(
            {
                "setting": os.environ.get("SETTING"),
                "loaded_by": LOADED_BY,
                "alarm": signal.getsignal(signal.SIGALRM) == signal.SIG_DFL,
                "gc": [gc.isenabled(), gc.get_freeze_count() > 0],
                "random": random.random(),
            }
        )
    )
    time.sleep(600)
