"""The master seen by HTTP: health and metrics, read-only, on loopback."""
