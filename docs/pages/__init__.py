"""What docs/generate.py writes: one module for each page, each with its TABLES."""
