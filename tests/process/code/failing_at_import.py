"""Says no."""

raise ValueError("not today")
