"""What runs on a host: the agent (ZeroMQ, replaceable) and the warden (forks, reaps, remembers)."""
