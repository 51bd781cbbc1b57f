"""Loads ZeroMQ."""

import zmq  # noqa: F401
