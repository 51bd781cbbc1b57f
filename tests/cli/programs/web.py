"""A WSGI application that tells which process answers, and with which configuration."""

import os
from pathlib import Path

CONFIGURATION = Path(os.environ["WEB_CONFIGURATION"]).read_text().strip()


def app(_environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getppid()} {os.getpid()} {CONFIGURATION}".encode()]
