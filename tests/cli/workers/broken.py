"""A library that raises as it is imported."""

raise RuntimeError("this library is broken")
