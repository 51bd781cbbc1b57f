"""Hosts in network namespaces, faults to inject, and an oracle that asks posthouse nothing."""
