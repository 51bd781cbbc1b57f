"""What the workers of storm.py do: fail at once, or wait."""

import sys
import time


def fail(_arg: object) -> None:
    sys.exit(1)


def idle(_arg: object) -> None:
    time.sleep(3600)
