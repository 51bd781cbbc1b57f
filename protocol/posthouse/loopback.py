"""The listening socket of a daemon's health and metrics.

Owns: how it is opened. Must not know: who serves it, what it says. Invariant: the address has been
checked to be on loopback (config), because what is served here has no keys.
"""

import socket

from posthouse.errors import ConfigError

__all__ = ["bind"]


def bind(address: str) -> socket.socket:
    """A listening socket on host:port. Raises ConfigError."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, int(port)))
        listening.listen(64)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"http is {address!r}: cannot be served: {error.strerror}",
            hint="does another daemon serve there? choose another port",
        ) from error
    return listening
