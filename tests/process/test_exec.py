"""Any program as a worker: posthouse.exec."""

import signal
from pathlib import Path

import pytest

from posthouse_agent.orders import Ended, Forked, SignalWorker, StopWorker


@pytest.fixture(name="host")
def _host(shared_host):
    return shared_host


@pytest.fixture(name="agent")
def _agent(shared_agent):
    return shared_agent


def test_program_replaces_python(host, agent):
    script = 'echo "$POSTHOUSE_NAME $MINE"; readlink /proc/self/exe; exit 7'
    ended = host.run(
        agent, "posthouse.exec", ["sh", "-c", script], name="script", env={"MINE": "x"}
    )
    assert ended.facts["code"] == 7
    assert host.log_path(ended.slot).read_text().splitlines()[0] == "script x"
    assert "python" not in ended.facts["output_tail"]


def test_program_inherits_only_the_log_and_the_lock(host, agent):
    ended = host.run(agent, "posthouse.exec", ["sh", "-c", "ls -l /proc/self/fd | sed 1d"])
    targets = [line.rpartition("-> ")[2] for line in ended.facts["output_tail"].splitlines()]
    log, lock = str(host.log_path(ended.slot)), str(host.home / "host.lock")
    # ls itself has one open, on /proc; stdout is the pipe to sed
    assert {t for t in targets if not t.startswith(("pipe", "/proc"))} == {"/dev/null", log, lock}


def test_program_has_plain_signals(host, agent):
    ended = host.run(agent, "posthouse.exec", ["cat", "/proc/self/status"])
    status = dict(line.split(":\t") for line in host.log_path(ended.slot).read_text().splitlines())
    assert {status[name] for name in ("SigBlk", "SigIgn", "SigCgt")} == {"0" * 16}


def test_program_dies_with_the_warden(empty_host, eventually, alive):
    host = empty_host.start()
    agent = host.agent()
    order = host.order("posthouse.exec", ["sleep", "600"])
    agent.give(order)
    forked = agent.expect(Forked)
    eventually(lambda: Path(f"/proc/{forked.pid}/comm").read_text() == "sleep\n")
    host.kill()
    eventually(lambda: not alive(forked.pid, forked.pid_start))


def test_n11_program_is_stopped_with_what_it_started(host, agent, eventually, alive):
    order = host.order("posthouse.exec", ["sh", "-c", "sleep 600 & echo $!; wait"])
    agent.give(order)
    agent.expect(Forked)
    eventually(lambda: host.log_path(order.slot).read_text().endswith("\n"))
    child = int(host.log_path(order.slot).read_text())
    agent.give(StopWorker(token=order.token, slot=order.slot, reason="hold", signal=15, grace_s=20))
    ended = agent.expect(Ended, order.token)
    assert (ended.facts["signal"], ended.stop) == (signal.SIGTERM, "hold")
    assert not alive(child)


def test_program_that_leaves_a_daemon(host, agent):
    facts = host.run(agent, "posthouse.exec", ["sh", "-c", "setsid sleep 600 & sleep 0.2"]).facts
    assert (facts["cause"], facts["code"]) == ("daemonised", 1)


jobs = str(Path(__file__).parent / "code" / "jobs.py")  # not executable


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["/no/such/program"], "cannot run: No such file or directory: '/no/such/program'"),
        (["no-such-program-on-the-path"], "cannot run: No such file or directory"),
        ([jobs], f"cannot run: Permission denied: '{jobs}'"),
        ([], "posthouse.exec takes an argv"),
        ("ls", "posthouse.exec takes an argv"),
    ],
)
def test_program_that_cannot_be_run(host, agent, argv, error):
    facts = host.run(agent, "posthouse.exec", argv).facts
    assert facts["code"] == 1
    assert error in facts["traceback"]


def test_signal_to_a_program(host, agent, eventually):
    # No `wait`: a signal that came just before it would be handled, and then waited for in vain.
    script = "trap 'echo hup; exit 9' HUP; echo up; while :; do sleep 0.05; done"
    order = host.order("posthouse.exec", ["sh", "-c", script])
    agent.give(order)
    agent.expect(Forked)
    eventually(lambda: host.log_path(order.slot).read_text() == "up\n")
    agent.give(SignalWorker(token=order.token, signal=signal.SIGHUP))
    ended = agent.expect(Ended, order.token)
    assert (ended.facts["code"], ended.facts["output_tail"]) == (9, "up\nhup\n")
