"""The real cores on virtual time: one seed, one world, every fault; `python -m` runs it.

Owns: simulated network, hosts, master, clients, faults, and the invariants checked against them.
Must not know: real sockets, processes, clocks. Invariant: see world.
"""
