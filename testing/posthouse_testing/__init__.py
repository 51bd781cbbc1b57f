"""Simulator and test helpers; shipped, so that users test their own workers with them."""
