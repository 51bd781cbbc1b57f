"""The postmaster: registry, placement, restart decisions, event log."""
