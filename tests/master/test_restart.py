"""The exit classes, E1-E8 and M6-M10 (protocol/posthouse/restart.py)."""

import pytest

from posthouse.records import ExitFacts
from posthouse.restart import Decision, decide, decide_failed_start
from posthouse.spec import BackgroundWorker
from posthouse.states import NEVER_RESTART, StopReason

KILLED = ExitFacts(cause="signaled", signal=9)
TERMED = ExitFacts(cause="signaled", signal=15)
REBOOTED = ExitFacts(cause="host_rebooted")
WARDEN = ExitFacts(cause="warden_died")
DAEMON = ExitFacts(cause="daemonised", code=0)


def worker(restart_time: float = 7) -> BackgroundWorker:
    return BackgroundWorker(name="w", main="m:f", restart_time=restart_time)


@pytest.mark.parametrize(
    ("facts", "kind", "rule", "says"),
    [
        pytest.param(ExitFacts(code=0), "unregister", "E1", "exited with code 0", id="E1"),
        pytest.param(ExitFacts(code=1), "restart", "E2", "exited with code 1", id="E2"),
        pytest.param(ExitFacts(code=2), "restart", "E3", "a crash of its own", id="E3-code"),
        pytest.param(KILLED, "restart", "E3", "killed by SIGKILL", id="E3-signal"),
        pytest.param(TERMED, "restart", "E6", "from outside; counts as exit code 1", id="E6"),
        pytest.param(WARDEN, "restart", "E3", "no fault of its own", id="warden"),
        pytest.param(REBOOTED, "restart", "E3", "no fault of its own", id="reboot"),
        pytest.param(DAEMON, "restart", "E2", "counts as exit code 1", id="daemonised"),
    ],
)
def test_an_exit_nobody_asked_for(facts, kind, rule, says):
    decision = decide(worker(), facts, None)
    assert (decision.kind, decision.rule) == (kind, rule)
    assert says in decision.reason
    if kind == "restart":
        assert decision.delay_s == 7.0


@pytest.mark.parametrize("facts", [ExitFacts(code=1), ExitFacts(code=3), KILLED, REBOOTED])
def test_m10_never_restart_is_unregistered_by_any_exit(facts):
    decision = decide(worker(NEVER_RESTART), facts, None)
    assert (decision.kind, decision.rule) == ("unregister", "M10")


def test_restart_time_0_is_at_once():
    assert decide(worker(0), KILLED, None).delay_s == 0.0


@pytest.mark.parametrize("facts", [ExitFacts(code=0), ExitFacts(code=1), KILLED, TERMED])
@pytest.mark.parametrize("restart_time", [0, 7, NEVER_RESTART])
def test_an_exit_that_was_asked_for_is_judged_by_the_request(facts, restart_time):
    spec = worker(restart_time)
    assert decide(spec, facts, StopReason.TERMINATE).kind == "unregister"
    assert decide(spec, facts, StopReason.SHUTDOWN).kind == "keep"
    assert decide(spec, facts, StopReason.HOLD).kind == "keep"
    for reason in (StopReason.RESTART, StopReason.APPLY, StopReason.DRAIN):
        assert decide(spec, facts, reason) == Decision(
            "restart", 0.0, decide(spec, facts, reason).rule, decide(spec, facts, reason).reason
        )


def test_every_reason_to_stop_has_a_class_and_names_who_asked():
    for reason in StopReason:
        decision = decide(worker(), KILLED, reason, "client:ann")
        assert "client:ann" in decision.reason
        assert "killed by SIGKILL" in decision.reason
        assert decide_failed_start(worker(), "no", reason).kind in ("unregister", "restart", "keep")


def test_c3_a_worker_that_is_never_restarted_does_not_survive_what_it_did_not_ask_for():
    for reason in (StopReason.LEASE_END, StopReason.DOMAIN_RESET, StopReason.UNKNOWN):
        assert decide(worker(NEVER_RESTART), KILLED, reason).kind == "unregister"
        assert decide(worker(), KILLED, reason).kind == "restart"


def test_m6_a_failed_start_waits_for_restart_time():
    decision = decide_failed_start(worker(), "no memory", None)
    assert decision == Decision("restart", 7.0, "M6", "could not be started: no memory")


def test_m7_a_failed_start_unregisters_one_that_is_never_restarted():
    decision = decide_failed_start(worker(NEVER_RESTART), "no memory", None)
    assert (decision.kind, decision.rule) == ("unregister", "M7")
