# Thin: each target is one command that can be typed without make.
UV ?= uv
SEEDS ?= 1000
JOBS ?= 0
KILLS ?= 1000
CYCLES ?= 100000

.PHONY: check test demo docs html sim crash-points faults kills churn models constraints

check:
	@UV="$(UV)" .ci/check

test:
	$(UV) run pytest

demo:
	$(UV) run posthouse demo

# The generated reference pages; the tests compare them.
docs:
	$(UV) run python docs/generate.py

# The pages as a site, in build/html.
html:
	$(UV) run --group docs sphinx-build -W --keep-going -q -b html docs build/html

# make sim SEEDS=100000; on all cores (JOBS=1: on one)
sim:
	$(UV) run python -m posthouse_testing.sim --seeds $(SEEDS) --jobs $(JOBS)

# The master killed at every SQL statement of a scripted run; the tests take a sample of them.
crash-points:
	$(UV) run pytest -m slow -s tests/sim/test_crash_points.py

# Every row of tests/faults/faulting/table.py, with real processes; some ten minutes.
faults:
	$(UV) run pytest -m '' -n 0 -rA tests/faults

# Random real kills of every role, one after another.
kills:
	$(UV) run python tests/faults/kills.py $(KILLS)

# Starts and exits beside watchers that are slow, late, dead and reconnecting.
churn:
	$(UV) run python tests/faults/churn.py $(CYCLES)

# All states of the protocol's models, and what is found without each guard; needs spin and gcc.
models:
	$(UV) run pytest -m '' -n 0 -rA tests/models

constraints:
	$(UV) run python deploy/constraints.py > deploy/constraints.txt
