# Thin: each target is one command that can be typed without make.
UV ?= uv
SEEDS ?= 1000

.PHONY: check test demo docs sim constraints

check:
	@UV="$(UV)" .ci/check

test:
	$(UV) run pytest

demo:
	$(UV) run posthouse demo

# The generated reference pages; the tests compare them.
docs:
	$(UV) run python docs/generate.py

# make sim SEEDS=20000
sim:
	$(UV) run python -m posthouse_testing.sim --seeds $(SEEDS)

constraints:
	$(UV) run python deploy/constraints.py > deploy/constraints.txt
