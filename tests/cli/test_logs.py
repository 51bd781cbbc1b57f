"""`posthouse logs`: every byte once, in order, wherever the worker goes and whatever is killed."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from posthouse import limits
from posthouse_testing.cluster import LocalCluster, command

DEADLINE_S = 30.0


class Follower:
    """A `posthouse logs -f` whose output is collected."""

    def __init__(self, cluster: LocalCluster, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*command(), "logs", "-f", *arguments],
            env=cluster.command_env(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.data = b""
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while more := os.read(self.process.stdout.fileno(), 65536):
            self.data += more

    def end(self) -> str:
        """Wait for its end; its standard error."""
        try:
            self._thread.join(DEADLINE_S)
            err = self.process.stderr.read().decode()
            assert self.process.wait(DEADLINE_S) == 0, err
            return err
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self.process.stderr.close()


def until(check: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not check():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def wrote(follower: Follower, incarnation: int, after: int) -> bool:
    return incarnation > after and f"b {incarnation} ".encode() in follower.data


def file_of(cluster: LocalCluster, host: str, name: str) -> Path:
    with cluster.connect() as client:
        handle = client.handle(name).id
    return cluster.log_dir(host) / f"{handle.slot}.{handle.generation}.log"


def test_two_followers_get_every_byte_under_a_kill_loop(cluster, posthouse, name):
    """The worker is killed in the middle of its lines, a dozen times, and the agent once."""
    with cluster.connect() as client:
        run = ("run", "jobs:write", "--name", name, "--on", "b", "--restart-time", "0", "--detach")
        posthouse(*run, "--arg", '{"pause": 0.0005}')
        handle = client.handle(name)
        first = Follower(cluster, name)
        until(lambda: len(first.data) > 20_000)
        second = Follower(cluster, name, "--offset", "12345")
        killed = 0
        for number in range(12):
            until(lambda after=killed: wrote(first, handle.status().incarnation, after))
            if number == 6:
                cluster.agent("b").restart()
                cluster.wait_for_hosts(["b"])
            killed = handle.status().incarnation
            os.kill(handle.status().pid, signal.SIGKILL)
        handle.terminate()
        handle.wait_until_unregistered(timeout=DEADLINE_S)
        told = first.end(), second.end()
    written = file_of(cluster, "b", name).read_bytes()
    assert first.data == written, told
    assert second.data == written[12345:], told


def test_a_follower_goes_with_the_worker_to_another_host(cluster, posthouse, name):
    posthouse("run", "jobs:write", "--name", name, "--detach", "--arg", '{"pause": 0.01}')
    with cluster.connect() as client:
        handle = client.handle(name)
        here = handle.wait_for_startup(timeout=DEADLINE_S).host
        there = {"a": "b", "b": "a"}[here]
        follower = Follower(cluster, name)
        until(lambda: b" 5 " in follower.data)
        try:
            posthouse("drain", here)
            until(lambda: f"{there} 2 5 ".encode() in follower.data)
        finally:
            posthouse("drain", "--undo", here)
        handle.terminate()
        handle.wait_until_unregistered(timeout=DEADLINE_S)
    told = follower.end()
    written = {host: file_of(cluster, host, name).read_bytes() for host in (here, there)}
    assert follower.data == written[here] + written[there]
    assert f"now writes on host {there}" in told
    assert posthouse("logs", name, "--host", here).stdout.encode() == written[here]
    assert posthouse("logs", name).stdout.encode() == written[there]
    assert "'c'" in posthouse("logs", name, "--host", "c", status=1).stderr


def test_output_is_bounded_and_what_is_lost_is_counted(cluster, posthouse, objects, name):
    posthouse(
        *("run", "jobs:write", "--name", name, "--on", "a", "--detach", "--arg"),
        *('{"count": 30000}', "-o", "log_bytes=64KiB"),
    )
    path = file_of(cluster, "a", name)
    expected = b"".join(f"a 1 {n} äöü\n".encode() for n in range(30_000))
    until(lambda: path.exists() and path.stat().st_size == len(expected))
    until(lambda: path.stat().st_blocks * 512 <= 2 * limits.log_bytes_min)
    ran = posthouse("logs", name)
    kept = ran.stdout.encode()
    assert expected.endswith(b"\n" + kept)
    assert limits.log_bytes_min // 2 < len(kept) <= limits.log_bytes_min
    assert f"{len(expected) - len(kept)} bytes no longer kept" in ran.stderr
    last = objects("logs", name, "-n", "2")
    assert [line["text"] for line in last] == ["a 1 29998 äöü", "a 1 29999 äöü"]
    assert posthouse("logs", name, "-n", "20000").stdout.encode() == kept
    at = json.dumps(last[0]["offset"])
    assert posthouse("logs", name, "--offset", at).stdout == "a 1 29998 äöü\na 1 29999 äöü\n"
