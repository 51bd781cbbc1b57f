"""Telling systemd how a daemon is: READY, STATUS, STOPPING, WATCHDOG.

Owns: the notification datagram. Must not know: who calls it. Invariant: without systemd, and
whatever systemd does, a call never raises and never blocks.
"""

import contextlib
import os
import socket

__all__ = ["notify", "ready", "status", "stopping", "watchdog", "watchdog_interval_s"]


def notify(*assignments: str) -> bool:
    """Send the assignments to $NOTIFY_SOCKET; False if there is none or it did not take them."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract socket
    message = "\n".join(a.replace("\n", " ") for a in assignments).encode()
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.connect(address)
        sender.sendall(message)
        return True
    return False


def ready(text: str = "") -> bool:
    """The daemon serves now."""
    return notify("READY=1", *([f"STATUS={text}"] if text else []))


def status(text: str) -> bool:
    """One line for `systemctl status`."""
    return notify(f"STATUS={text}")


def stopping(text: str = "") -> bool:
    """The daemon ends on purpose."""
    return notify("STOPPING=1", *([f"STATUS={text}"] if text else []))


def watchdog() -> bool:
    """Still alive; to be sent by the loop that does the work, at least every half interval."""
    return notify("WATCHDOG=1")


def watchdog_interval_s() -> float | None:
    """How long systemd waits for WATCHDOG=1 before it kills this process; None: it does not."""
    interval = os.environ.get("WATCHDOG_USEC", "")
    if not interval.isdecimal() or int(interval) == 0:
        return None
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(interval) / 1e6
