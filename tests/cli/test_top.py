"""`posthouse top`: what workers and hosts use, by the kernel's own word."""

import os
import pty
import signal
import subprocess
import time
from pathlib import Path

from posthouse_testing.cluster import command

DEADLINE_S = 30.0


def test_what_a_worker_uses_is_what_the_kernel_says(objects, posthouse, idle, cluster):
    pid = int(posthouse("pid", idle).stdout)
    (line,) = [found for found in objects("top") if found["name"] == idle]
    assert (line["host"], line["pid"], line["threads"]) == ("b", pid, 1)
    assert line["descriptors"] == len(os.listdir(f"/proc/{pid}/fd"))
    # What it shares is divided among those who share it just now, and there is its own part.
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    own = sum(int(x.split()[1]) for x in rollup if x.startswith(("Private_Clean", "Private_Dirty")))
    assert own * 1024 // 2 <= line["pss_bytes"] <= line["rss_bytes"]
    piped = posthouse("top", "--host", "b").stdout.splitlines()
    assert [cells.split("\t")[:3] for cells in piped if cells.startswith(f"{idle}\t")] == [
        [idle, "b", str(pid)]
    ]
    assert (
        "no host named 'nowhere' has joined"
        in posthouse("top", "--host", "nowhere", status=1).stderr
    )
    with cluster.connect() as client:
        use = client.usage("b").use
    assert (use.cpus, use.memory_bytes > use.available_bytes > 0) == (os.cpu_count(), True)


def test_the_busiest_is_first(objects, posthouse, idle, name):
    busy = f"{name}-busy"
    posthouse("run", "jobs:hang", "--name", busy, "--on", "a", "--detach", "--arg", '"loop"')
    deadline_s = time.monotonic() + DEADLINE_S
    while objects("top")[0]["name"] != busy:
        assert time.monotonic() < deadline_s
    assert objects("top", "--host", "a")[0]["cpu_percent"] > 0
    posthouse("terminate", busy)


def test_on_a_terminal_it_goes_on_until_it_is_interrupted(cluster, idle):
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*command(), "top", "--every", "100ms"],
        env={**cluster.command_env(), "TERM": "xterm", "COLUMNS": "200", "LINES": "50"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        # A suite that runs in a shell's background has the signal ignored, and hands that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        os.close(theirs)
        said = b""
        while said.count(b"load ") < 4 or idle.encode() not in said:
            said += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        while True:
            try:
                if not os.read(ours, 65536):
                    break
            except OSError:  # the other end is closed
                break
        assert process.wait(DEADLINE_S) == 130
    os.close(ours)
