"""Run as pid 1 of a pid namespace by test_recycled_pids: gives used pids to strangers on purpose.

    python recycled.py CASE

Prints one JSON object: what became of the stranger.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.process.conftest import Host, eventually

from posthouse_agent import procfs
from posthouse_agent.orders import Confirm, Ended, SignalWorker, StopUnknown, StopWorker

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


def recycle(pid: int) -> "subprocess.Popen[bytes]":
    """A stranger that has this pid."""
    for _ in range(1000):
        LAST_PID.write_text(str(pid - 1))
        stranger = subprocess.Popen(["sleep", "600"], start_new_session=True)
        if stranger.pid == pid:
            return stranger
        stranger.kill()
        stranger.wait()
    raise AssertionError(f"pid {pid} does not come round")


def dead_and_reaped(pid: int) -> None:
    """We are pid 1 here, so orphans of a dead warden are ours."""

    def gone() -> bool:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        return procfs.read(pid) is None

    eventually(gone, f"pid {pid} stays")


def orders_after_the_end(host: Host) -> list[int]:
    """The master's orders come late: the worker has ended, its pid is a stranger's."""
    agent = host.start().agent()
    ended = host.run(agent, "nothing")
    stranger = recycle(ended.facts["pid"])
    for number in (signal.SIGTERM, signal.SIGKILL):
        agent.give(SignalWorker(token=ended.token, signal=number))
        agent.give(
            StopWorker(token=ended.token, slot=ended.slot, reason="x", signal=number, grace_s=0)
        )
        assert agent.expect(Ended, ended.token).known
    agent.give(Confirm(tokens=[ended.token]))
    agent.give(StopWorker(token=ended.token, slot=ended.slot, reason="x", signal=0, grace_s=0))
    agent.expect(StopUnknown, ended.token)
    # and the next worker's end, whose leftovers are looked for among later pids
    host.run(agent, "nothing")
    return [stranger.pid, stranger.poll() is None]


def journal_of_a_dead_warden(host: Host) -> list[int]:
    """A warden reads in its predecessor's journal (same boot) a pid that is a stranger's now."""
    agent = host.start().agent()
    forked = host.begin(agent, "open_idle")
    host.kill()
    dead_and_reaped(forked.pid)
    stranger = recycle(forked.pid)
    assert f'"pid":{forked.pid},' in (host.home / "journal").read_text()
    exits = [r for r in host.start().connect().attach() if isinstance(r, Ended)]
    assert [(e.token, e.facts["cause"]) for e in exits] == [(forked.token, "warden_died")]
    return [stranger.pid, stranger.poll() is None]


def journal_of_an_earlier_boot(host: Host) -> list[int]:
    """As above, after a reboot: even the start time may be the same by chance."""
    agent = host.start().agent()
    forked = host.begin(agent, "open_idle")
    host.kill()
    dead_and_reaped(forked.pid)
    stranger = recycle(forked.pid)
    journal = host.home / "journal"
    start = procfs.read(stranger.pid).start
    text = journal.read_text().replace(procfs.boot_id(), "an earlier boot")
    journal.write_text(text.replace(f'"pid_start":{forked.pid_start}', f'"pid_start":{start}'))
    exits = [r for r in host.start().connect().attach() if isinstance(r, Ended)]
    assert [(e.token, e.facts["cause"]) for e in exits] == [(forked.token, "host_rebooted")]
    return [stranger.pid, stranger.poll() is None]


def between_look_and_kill(host: Host) -> list[int]:
    """The narrowest race: the process that is to be killed ends, and its pid is given away,
    after the warden has opened it and before it has decided."""
    condemned = subprocess.Popen(["sleep", "600"])
    found = []

    def judge(pid: int) -> bool:
        condemned.kill()
        condemned.wait()
        found.append(recycle(pid))
        return True

    pidfd = procfs.kill_if(condemned.pid, judge)
    assert pidfd is None
    (stranger,) = found
    assert stranger.pid == condemned.pid
    return [stranger.pid, stranger.poll() is None]


def leftovers_of_a_worker(host: Host) -> list[int]:
    """A worker that ends and leaves a child; strangers have pids all around."""
    agent = host.start().agent()
    strangers = [subprocess.Popen(["sleep", "600"], start_new_session=True) for _ in range(5)]
    order = host.order("leave_child", {"code": 0, "how": "double"})
    agent.give(order)
    eventually(lambda: host.log_path(order.slot).exists() and host.said(order.slot))
    strangers += [subprocess.Popen(["sleep", "600"], start_new_session=True) for _ in range(5)]
    assert agent.expect(Ended, order.token).facts["cause"] == "daemonised"
    return [strangers[0].pid, all(s.poll() is None for s in strangers)]


CASES = {
    case.__name__: case
    for case in (
        orders_after_the_end,
        journal_of_a_dead_warden,
        journal_of_an_earlier_boot,
        between_look_and_kill,
        leftovers_of_a_worker,
    )
}


def main() -> None:
    assert os.getpid() == 1, "only in a pid namespace of its own"
    host = Host(tempfile.mkdtemp(prefix="ph", dir="/tmp"))
    try:
        pid, unharmed = CASES[sys.argv[1]](host)
        print(json.dumps({"pid": pid, "unharmed": unharmed}))
    finally:
        host.close()


if __name__ == "__main__":
    main()
