"""One seed is one world: the same trace in every run and in every process."""

import json
import os
import re
import subprocess
import sys

import pytest

from posthouse_master.hosts import Hosts
from posthouse_testing.sim import batch
from posthouse_testing.sim.__main__ import main
from posthouse_testing.sim.run import Failure, Report, Simulation, simulate

pytestmark = pytest.mark.timeout(300)  # seconds of a processor, on a busy machine
PROGRAM = """
from posthouse_testing.sim.run import simulate
for seed in range(100, 108):
    print(seed, simulate(seed).trace_hash)
"""


def test_a_seed_gives_the_same_trace_twice() -> None:
    for seed in range(8):
        first, second = simulate(seed), simulate(seed)
        assert first == second


def test_two_seeds_differ() -> None:
    assert simulate(1).trace_hash != simulate(2).trace_hash


def test_the_trace_does_not_depend_on_the_hash_seed() -> None:
    told = []
    for hash_seed in ("0", "1", "4711"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        told.append(done.stdout)
    assert told[0].count("\n") == 8
    assert told[0] == told[1] == told[2]


def test_a_violation_is_printed_with_what_replays_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self: Simulation) -> list[str]:
        return ["the sun does not shine"]

    monkeypatch.setattr(Simulation, "_unsettled", broken)
    with pytest.raises(Failure) as first:
        simulate(5)
    assert main(["--seed", "5"]) == 1
    printed = capsys.readouterr().out
    assert "VIOLATION in seed 5: Violation: invariant 20" in printed
    assert "the sun does not shine" in printed
    assert "replay: python -m posthouse_testing.sim --seed 5 --trace" in printed
    assert f"trace {first.value.trace_hash}" in printed  # the very same run


def test_the_command_prints_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "3", "--start", "7"]) == 0
    printed = capsys.readouterr().out
    assert "seeds 7 to 9: 0 violations" in printed
    assert " simulated hours in " in printed
    assert " processes" in printed


def test_the_figures_do_not_depend_on_how_many_processes_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batch, "_DEALT", 2)
    told = []
    for jobs in ("1", "2"):
        assert main(["--seeds", "5", "--start", "3", "--jobs", jobs, "--json"]) == 0
        told.append(json.loads(capsys.readouterr().out) | {"real_s": 0})
    assert told[0] == told[1]
    assert (told[0]["first_seed"], told[0]["seeds"], told[0]["violations"]) == (3, 5, 0)
    assert told[0]["figures"]["processes"] > 0


def test_a_failing_plan_is_shrunk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Hosts, "_missing", lambda *_, **__: None)  # nobody minds what is gone
    seed = next(seed for seed in range(100) if isinstance(outcome(seed), Failure))
    assert main(["--seed", str(seed), "--shrink"]) == 1
    printed = capsys.readouterr().out
    shrunk = re.search(r"shrunk to (\d+) of (\d+) faults", printed)
    assert shrunk is not None
    assert int(shrunk[1]) < int(shrunk[2])
    skip = re.search(rf"--seed {seed} --skip ([\d,]+) --trace", printed)
    assert skip is not None
    again = outcome(seed, frozenset(int(number) for number in skip[1].split(",")))
    assert isinstance(again, Failure)
    assert f"trace {again.trace_hash}" in printed


def outcome(seed: int, skip: frozenset[int] = frozenset()) -> Report | Failure:
    try:
        return simulate(seed, skip=skip)
    except Failure as failure:
        return failure
