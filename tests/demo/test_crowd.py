"""examples/crowd.py on real workers."""

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from posthouse_testing.cluster import LocalCluster

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_a_crowd_is_told_of_from_its_beginning_to_its_end() -> None:
    with LocalCluster(hosts=("a",), path=[EXAMPLES]) as cluster:
        done = subprocess.run(
            [sys.executable, "-W", "error", str(EXAMPLES / "crowd.py"), "3"],
            env=cluster.command_env(),
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    told: dict[str, list[str]] = defaultdict(list)
    for line in done.stdout.splitlines():
        name, kind, _ = line.split(" ", 2)
        told[name].append(kind)
    life = ["registered", "starting", "started", "stop_requested", "exited", "unregistered"]
    assert told == {f"crowd-{number}": life for number in range(3)}
