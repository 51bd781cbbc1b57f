"""A whole cluster on virtual time, for tests of users' own workers.

Owns: simulated workers, the client that drives the world, faults on demand. Must not know: real
sockets, processes, clocks, pytest. Invariant: the same seed, workers and calls give the same run.
"""
