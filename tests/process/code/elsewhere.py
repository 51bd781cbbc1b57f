"""Runs under any interpreter: which one is it?"""

import importlib.util
import json
import sys
import time

import posthouse
from posthouse import worker


def look(arg):
    me = worker.entry()
    theirs = sys.modules.get("theirs")
    print(
        json.dumps(
            {
                "version": list(sys.version_info[:2]),
                "executable": sys.executable,
                "posthouse": posthouse.__version__,
                "word": theirs and theirs.WORD,
                "name": me.name,
                "arg": repr(arg),
                "absent": [
                    name
                    for name in ("zmq", "msgspec", "msgpack", "click")
                    if importlib.util.find_spec(name) is None
                ],
            }
        )
    )
    worker.unblock_signals()
    time.sleep(600)
